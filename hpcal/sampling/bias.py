"""Biases: energies added to the mean of an ensemble to drive walkers where it is unsure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hpcal.core.protocols import Bias, BiasInput


class WalkerBias(Bias, Protocol):
    """A bias for the walkers of one batch."""

    def acts(self, time_fs: Tensor) -> Tensor:
        """(B,) bool: on which walkers it acts at (B,) times since their birth."""
        ...


def smooth_ramp(time_fs: Tensor, *, delay_fs: float, ramp_fs: float) -> Tensor:
    """0 until the delay is over, then rising to 1 over the ramp as 3 s² − 2 s³."""
    if ramp_fs == 0.0:
        return (time_fs >= delay_fs).to(time_fs.dtype)
    s = ((time_fs - delay_fs) / ramp_fs).clamp(0.0, 1.0)
    return s * s * (3.0 - 2.0 * s)


@dataclass(frozen=True, kw_only=True, eq=False)
class VarianceBias:
    """Gaussian of the members' disagreement, as in uncertainty-driven dynamics.

    ::

        E_bias = w A [exp(−ρ²/B²) − 1],   ρ² = (1/N) (1/M) Σ_m (E_m − ⟨E⟩)²

    with w the ramp of each walker's own time. E_bias is between −A and 0, lowest where the members
    disagree; at ρ = B it is A (1/e − 1). The variance is taken in two passes, and no root of it is,
    so the force is smooth where members agree.

    Attributes:
        strength: A, eV.
        width: (B,) B of each walker, eV per square root of the number of atoms.
        share: (B,) 1 for biased walkers, 0 for those that run without.
        delay_fs: time before which there is no bias.
        ramp_fs: time over which it is turned on after that.

    Source: Kulichenko et al., Nat. Comput. Sci. 2023, 10.1038/s43588-023-00406-5, and Chem. Rev.
    2024, 10.1021/acs.chemrev.4c00572, eq 19. There σ² = ½ Σ_m (E_m − ⟨E⟩)² is divided by M N B²,
    where σ² here is the mean over members: a published B is to be multiplied by √2.
    """

    strength: float
    width: Tensor
    share: Tensor
    delay_fs: float = 0.0
    ramp_fs: float = 0.0

    def energy(self, at: BiasInput) -> Tensor:
        """(B,) E_bias, eV."""
        deviation = at.energies - at.energies.mean(dim=0)
        rho_squared = (deviation**2).mean(dim=0) / at.n_atoms
        return self._weight(at.time_fs) * self.strength * torch.expm1(-rho_squared / self.width**2)

    def acts(self, time_fs: Tensor) -> Tensor:
        """(B,) bool: biased walkers whose bias has begun to be turned on."""
        return self._weight(time_fs) > 0.0

    def _weight(self, time_fs: Tensor) -> Tensor:
        return self.share * smooth_ramp(time_fs, delay_fs=self.delay_fs, ramp_fs=self.ramp_fs)

"""Disagreement of an ensemble on the energy."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from hpcal.core.batch import Batch
from hpcal.core.protocols import Potential


class EnergyStd:
    """Standard deviation of the energy over members, per square root of the number of atoms.

    ::

        ρ = sqrt((1/M) Σ_m (E_m − ⟨E⟩)²) / sqrt(N)

    Source: Chem. Rev. 2024, 10.1021/acs.chemrev.4c00572, eq 13; Smith et al., J. Chem. Phys. 2018,
    10.1063/1.5023802.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"energies"})
    unit: ClassVar[str] = "eV/sqrt(atom)"
    floor: ClassVar[float] = 0.002
    """Threshold below which disagreement is of no interest, in ``unit``."""

    def score(self, batch: Batch, potential: Potential) -> Tensor:
        """(B,) ρ, eV per square root of the number of atoms."""
        deviation = _deviation(batch, potential)
        return (deviation**2).mean(dim=0).sqrt() / batch.n_atoms.to(deviation.dtype).sqrt()


class EnergyDeviation:
    """Largest deviation of a member's energy from the mean.

    ::

        max_m |E_m − ⟨E⟩|

    Source: Chem. Rev. 2024, 10.1021/acs.chemrev.4c00572, eq 14.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"energies"})
    unit: ClassVar[str] = "eV"
    floor: ClassVar[float] = 0.01
    """Threshold below which disagreement is of no interest, in ``unit``."""

    def score(self, batch: Batch, potential: Potential) -> Tensor:
        """(B,) largest deviation, eV."""
        return _deviation(batch, potential).abs().amax(dim=0)


def _deviation(batch: Batch, potential: Potential) -> Tensor:
    """(M, B) E_m − ⟨E⟩, eV."""
    energies = potential.energies(batch)
    return energies - energies.mean(dim=0)

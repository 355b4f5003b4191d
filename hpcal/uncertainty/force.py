"""Disagreement of an ensemble on the forces."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from hpcal.core.batch import Batch
from hpcal.core.protocols import Potential


class ForceStd:
    """Standard deviation of the force vector over members, largest over atoms.

    ::

        max_i sqrt((1/M) Σ_m |F_mi − ⟨F_i⟩|²)

    The sum runs over the three components: it is the root of their summed variance.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"member_forces"})
    unit: ClassVar[str] = "eV/Å"
    floor: ClassVar[float] = 0.05
    """Threshold below which disagreement is of no interest, in ``unit``."""

    def score(self, batch: Batch, potential: Potential) -> Tensor:
        """(B,) largest force standard deviation of an atom, eV/Å."""
        return _squared_deviation(batch, potential).mean(dim=0).amax(dim=1).sqrt()


class ForceDeviation:
    """Largest deviation of a member's force from the mean, largest over atoms.

    ::

        max_i max_m |F_mi − ⟨F_i⟩|

    Source: Chem. Rev. 2024, 10.1021/acs.chemrev.4c00572, eq 15; Zhang et al.,
    Phys. Rev. Mater. 2019, 10.1103/PhysRevMaterials.3.023804.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"member_forces"})
    unit: ClassVar[str] = "eV/Å"
    floor: ClassVar[float] = 0.1
    """Threshold below which disagreement is of no interest, in ``unit``."""

    def score(self, batch: Batch, potential: Potential) -> Tensor:
        """(B,) largest force deviation of a member on an atom, eV/Å."""
        return _squared_deviation(batch, potential).amax(dim=(0, 2)).sqrt()


def _squared_deviation(batch: Batch, potential: Potential) -> Tensor:
    """(M, B, N) squared length of F_mi − ⟨F_i⟩, (eV/Å)²; zero at padding."""
    forces = potential.member_forces(batch)
    squared = ((forces - forces.mean(dim=0)) ** 2).sum(dim=-1)
    return squared * batch.mask

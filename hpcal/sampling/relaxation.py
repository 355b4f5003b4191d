"""Relaxation of structures, the bonds that they keep, and the different minima that they reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.neighborlist import neighbor_list
from ase.optimize import BFGS

from hpcal.core.arrays import FloatArray
from hpcal.core.elements import COVALENT_RADII
from hpcal.core.errors import FailureClass, TaskFailure
from hpcal.core.protocols import ForceFunction
from hpcal.core.structure import Structure, to_ase
from hpcal.sampling.hessian import hessian, normal_modes

BOND_FACTOR: Final = 1.25
"""Atoms nearer than this many sums of their covalent radii count as bonded."""
SOFT_WAVENUMBER: Final = 30.0
"""cm⁻¹; imaginary modes softer than this are within the error of differences of relaxed forces."""
SADDLE_DISPLACEMENT: Final = 0.2
"""Å; how far the atom that moves most is displaced off a saddle point."""
SADDLE_ROUNDS: Final = 4
"""Times that relaxations go on from saddle points."""
BondGraph = frozenset[tuple[int, int]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Relaxation:
    """Where a relaxation of N atoms ended.

    Attributes:
        structure: the last geometry.
        energy: eV.
        forces: (N, 3) eV/Å.
        steps: steps of the optimiser.
        converged: whether no force is longer than the limit.
        calls: evaluations of energy and forces.
        same_bonds: whether the bonds are those of the start.
    """

    structure: Structure
    energy: float
    forces: FloatArray
    steps: int
    converged: bool
    calls: int
    same_bonds: bool


def relax(
    structure: Structure, forces: ForceFunction, fmax: float = 0.01, max_steps: int = 200
) -> Relaxation:
    """Follows the forces to a stationary point by BFGS; a cell stays as it is.

    Args:
        forces: energy (eV) and forces (N, 3) (eV/Å) of a structure; what it raises is passed on.
        fmax: length of the longest force at which to stop, eV/Å.
        max_steps: steps after which to stop without having converged.
    """
    atoms = to_ase(structure)
    calculator = _ForceCalculator(structure, forces)
    atoms.calc = calculator
    with BFGS(atoms, logfile=None) as optimiser:
        converged = bool(optimiser.run(fmax=fmax, steps=max_steps))
    end = structure.with_positions(atoms.positions)
    return Relaxation(
        structure=end,
        energy=float(atoms.get_potential_energy()),
        forces=np.array(atoms.get_forces()),
        steps=int(optimiser.nsteps),
        converged=converged,
        calls=calculator.calls,
        same_bonds=bonds(end) == bonds(structure),
    )


def bonds(structure: Structure) -> BondGraph:
    """The bonded pairs (i, j) with i < j, by distance; periodic images included.

    Two atoms are bonded if they are nearer than ``BOND_FACTOR`` sums of their covalent radii.
    """
    limits = BOND_FACTOR * COVALENT_RADII[structure.numbers]
    if structure.periodic:
        first, second = neighbor_list("ij", to_ase(structure), limits.tolist())
    else:
        first, second = np.triu_indices(len(structure), k=1)
        gaps = structure.positions[first] - structure.positions[second]
        near = np.linalg.norm(gaps, axis=1) < limits[first] + limits[second]
        first, second = first[near], second[near]
    pairs = zip(first.tolist(), second.tolist(), strict=True)
    return frozenset((i, j) for i, j in pairs if i < j)


# ── Minima ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True, eq=False)
class Minima:
    """The different minima that a set of starting geometries relaxes to.

    Attributes:
        relaxations: one for each minimum, lowest energy first.
        calls: evaluations of energy and forces, those for curvatures included.
        unconverged: relaxations that did not come to rest.
        broken: relaxations that changed bonds.
        failed: relaxations that ended because there was no label.
        saddles: stationary points that were left because they are no minima.
    """

    relaxations: tuple[Relaxation, ...]
    calls: int
    unconverged: int
    broken: int
    failed: int
    saddles: int


def find_minima(
    starts: Sequence[Structure], forces: ForceFunction, *, fmax: float = 0.01, max_steps: int = 200
) -> Minima:
    """Relaxes all starting geometries of a molecule to its different minima.

    A relaxation from a symmetric geometry may end on a saddle point. So the curvature of each
    different end is computed (6N calls), and from one with an imaginary mode above
    ``SOFT_WAVENUMBER`` the relaxation goes on to both sides along that mode. Curvatures of periodic
    structures are not looked at.

    Raises:
        TaskFailure: as the force function raises it, but for class ``physics``, which is counted.
    """
    counted = _Counted(forces)
    counts = dict.fromkeys(("unconverged", "broken", "failed", "saddles"), 0)
    minima: list[Relaxation] = []
    saddles: list[Relaxation] = []
    pending = list(starts)
    for _ in range(SADDLE_ROUNDS):
        ends = [end for start in pending if (end := _end(start, counted, fmax, max_steps, counts))]
        pending = []
        for end in _different(ends):
            if any(_same(end, known) for known in [*minima, *saddles]):
                continue
            mode = downhill(end.structure, counted)
            if mode is None:
                minima.append(end)
                continue
            counts["saddles"] += 1
            saddles.append(end)
            pending += [end.structure.with_positions(end.structure.positions + s * mode) for s in (1, -1)]
        if not pending:
            break
    return Minima(relaxations=tuple(_different(minima)), calls=counted.calls, **counts)


def distance_fingerprint(structure: Structure) -> FloatArray:
    """(N(N−1)/2,) interatomic distances, Å, sorted within each pair of elements.

    The same for rotated, translated and mirrored geometries and for any order of equal atoms.
    """
    first, second = np.triu_indices(len(structure), k=1)
    distances = np.linalg.norm(structure.positions[first] - structure.positions[second], axis=1)
    pair = np.sort(structure.numbers[np.stack([first, second])], axis=0)
    return np.asarray(distances[np.lexsort((distances, pair[1], pair[0]))])


def same_minimum(
    a: Structure,
    energy_a: float,
    b: Structure,
    energy_b: float,
    *,
    energy_tol_eV: float = 0.002,  # noqa: N803
    rmsd_tol_A: float = 0.1,  # noqa: N803
) -> bool:
    """Whether two relaxed geometries of a molecule are one minimum.

    They are if their energies (eV) and their sorted interatomic distances (root mean square
    difference, Å) agree. Mirror images are one minimum: they have the same energy and the same
    forces, mirrored.
    """
    alike = (
        sorted(a.numbers.tolist()) == sorted(b.numbers.tolist())
        and (a.charge, a.multiplicity) == (b.charge, b.multiplicity)
        and abs(energy_a - energy_b) <= energy_tol_eV
    )
    if not alike:
        return False
    difference = distance_fingerprint(a) - distance_fingerprint(b)
    return len(difference) == 0 or float(np.sqrt(np.mean(difference**2))) <= rmsd_tol_A


def unique_minima(
    structures: Sequence[Structure],
    energies: Sequence[float],
    *,
    energy_tol_eV: float = 0.002,  # noqa: N803
    rmsd_tol_A: float = 0.1,  # noqa: N803
) -> list[int]:
    """Indices of one geometry for each minimum, lowest energy first; see :func:`same_minimum`."""
    kept: list[int] = []
    for i in sorted(range(len(structures)), key=lambda index: energies[index]):
        if not any(
            same_minimum(
                structures[i],
                energies[i],
                structures[j],
                energies[j],
                energy_tol_eV=energy_tol_eV,
                rmsd_tol_A=rmsd_tol_A,
            )
            for j in kept
        ):
            kept.append(i)
    return kept


def _end(
    start: Structure, forces: ForceFunction, fmax: float, max_steps: int, counts: dict[str, int]
) -> Relaxation | None:
    """Where a start relaxes to, or None with the reason counted."""
    try:
        end = relax(start, forces, fmax, max_steps)
    except TaskFailure as failure:
        if failure.failure_class is not FailureClass.PHYSICS:
            raise
        counts["failed"] += 1
        return None
    if not end.converged:
        counts["unconverged"] += 1
        return None
    if not end.same_bonds:
        counts["broken"] += 1
        return None
    return end


def downhill(structure: Structure, forces: ForceFunction) -> FloatArray | None:
    """(N, 3) displacement along the most imaginary mode, Å, or None at a minimum."""
    if structure.periodic or len(structure) < 3:
        return None
    modes = normal_modes(structure, hessian(structure, forces))
    if modes.wavenumbers[0] > -SOFT_WAVENUMBER:
        return None
    direction = modes.directions[0]
    return np.asarray(SADDLE_DISPLACEMENT * direction / np.linalg.norm(direction, axis=1).max())


def _different(relaxations: Sequence[Relaxation]) -> list[Relaxation]:
    chosen = unique_minima([r.structure for r in relaxations], [r.energy for r in relaxations])
    return [relaxations[i] for i in chosen]


def _same(a: Relaxation, b: Relaxation) -> bool:
    return same_minimum(a.structure, a.energy, b.structure, b.energy)


@dataclass(eq=False)
class _Counted:
    """A force function that counts its calls."""

    function: ForceFunction
    calls: int = 0

    def __call__(self, structure: Structure) -> tuple[float, FloatArray]:
        self.calls += 1
        return self.function(structure)


class _ForceCalculator(Calculator):  # type: ignore[misc]
    """A force function where ASE's optimisers expect a calculator."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self, structure: Structure, forces: ForceFunction) -> None:
        super().__init__()
        self._structure = structure
        self._function = forces
        self.calls = 0

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        energy, forces = self._function(self._structure.with_positions(self.atoms.positions))
        self.results: dict[str, Any] = {"energy": energy, "forces": np.asarray(forces)}

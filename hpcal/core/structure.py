"""A structure: atoms in space with a charge and a multiplicity."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from hpcal.core import elements
from hpcal.core.arrays import FloatArray, IntArray, frozen
from hpcal.core.errors import StructureError


@dataclass(frozen=True, kw_only=True, eq=False)
class Structure:
    """Atoms in space, immutable.

    Attributes:
        numbers: (N,) atomic numbers.
        positions: (N, 3) Å.
        cell: (3, 3) lattice vectors as rows, Å, or None.
        pbc: periodic directions; a periodic direction needs a cell.
        charge: total charge, e.
        multiplicity: 2S + 1.
        magnetic_moments: (N,) initial moments, Bohr magnetons, or None.

    Raises:
        StructureError: wrong shapes, no atoms, unknown elements, values that are not finite,
            or periodic directions without a cell.
    """

    numbers: IntArray
    positions: FloatArray
    cell: FloatArray | None = None
    pbc: tuple[bool, bool, bool] = (False, False, False)
    charge: int = 0
    multiplicity: int = 1
    magnetic_moments: FloatArray | None = None

    def __post_init__(self) -> None:
        numbers = np.array(self.numbers, dtype=np.int64)
        positions = np.array(self.positions, dtype=np.float64)
        if numbers.ndim != 1 or len(numbers) == 0:
            raise StructureError("a structure needs at least one atom")
        if positions.shape != (len(numbers), 3):
            raise StructureError(
                f"positions have shape {positions.shape}, not ({len(numbers)}, 3) as the "
                f"{len(numbers)} atomic numbers ask for"
            )
        if numbers.min() < 1 or numbers.max() > elements.MAX_ATOMIC_NUMBER:
            bad = numbers[(numbers < 1) | (numbers > elements.MAX_ATOMIC_NUMBER)][0]
            raise StructureError(f"unknown element: atomic number {bad}")
        if not np.isfinite(positions).all():
            atom = int(np.flatnonzero(~np.isfinite(positions).all(axis=1))[0])
            raise StructureError(
                f"coordinates of atom {atom} ({elements.symbol(int(numbers[atom]))}) are not "
                f"finite: {positions[atom].tolist()}"
            )
        object.__setattr__(self, "numbers", frozen(numbers))
        object.__setattr__(self, "positions", frozen(positions))
        self._check_cell()
        if self.multiplicity < 1:
            raise StructureError(f"multiplicity {self.multiplicity} is below 1")
        if self.magnetic_moments is not None:
            moments = np.array(self.magnetic_moments, dtype=np.float64)
            if moments.shape != numbers.shape or not np.isfinite(moments).all():
                raise StructureError("magnetic moments must be one finite number an atom")
            object.__setattr__(self, "magnetic_moments", frozen(moments))

    def _check_cell(self) -> None:
        object.__setattr__(self, "pbc", tuple(bool(p) for p in self.pbc))
        if self.cell is None:
            if any(self.pbc):
                raise StructureError("periodic directions without a cell")
            return
        cell = np.array(self.cell, dtype=np.float64)
        if cell.shape != (3, 3) or not np.isfinite(cell).all():
            raise StructureError(f"the cell must be 3 x 3 finite numbers in Å, not {cell.tolist()}")
        if any(self.pbc) and abs(np.linalg.det(cell)) < 1e-6:
            raise StructureError("a periodic structure has a cell without volume")
        object.__setattr__(self, "cell", frozen(cell))

    def __len__(self) -> int:
        return len(self.numbers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Structure) and self.content_hash == other.content_hash

    def __hash__(self) -> int:
        return hash(self.content_hash)

    @property
    def periodic(self) -> bool:
        """Whether any direction is periodic."""
        return any(self.pbc)

    @property
    def formula(self) -> str:
        """Hill formula."""
        return elements.formula(self.numbers.tolist())

    @property
    def electrons(self) -> int:
        """Number of electrons, cores included."""
        return int(self.numbers.sum()) - self.charge

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over all fields, little-endian: equal structures have equal hashes."""
        digest = hashlib.sha256()
        digest.update(f"{len(self)} {self.charge} {self.multiplicity} {self.pbc}".encode())
        digest.update(self.numbers.astype("<i8").tobytes())
        # Adding 0.0 turns -0.0 into 0.0, which is the same place.
        digest.update((self.positions + 0.0).astype("<f8").tobytes())
        for name, array in (("cell", self.cell), ("moments", self.magnetic_moments)):
            if array is not None:
                digest.update(name.encode() + (array + 0.0).astype("<f8").tobytes())
        return digest.hexdigest()

    def with_positions(self, positions: FloatArray) -> Structure:
        """The same atoms at (N, 3) other positions, Å."""
        return replace(self, positions=positions)


def parity_problem(structure: Structure) -> str | None:
    """Why charge and multiplicity cannot go together, or None if they can.

    N electrons with spin S need N and 2S of equal parity and 2S ≤ N. The bands of a crystal hold
    any number of electrons, so periodic structures have no parity.
    """
    if structure.periodic:
        return None
    unpaired = structure.multiplicity - 1
    if structure.electrons < 0:
        return f"charge {structure.charge} leaves {structure.electrons} electrons"
    if (structure.electrons - unpaired) % 2:
        return (
            f"{structure.formula} with charge {structure.charge} has {structure.electrons} "
            f"electrons, which cannot have multiplicity {structure.multiplicity}; state `charge` "
            "and `multiplicity`"
        )
    if unpaired > structure.electrons:
        return f"multiplicity {structure.multiplicity} needs more than {structure.electrons} electrons"
    return None


def from_ase(atoms: Any, *, charge: int | None = None, multiplicity: int | None = None) -> Structure:
    """A structure from ``ase.Atoms``; charge and multiplicity from its ``info`` unless given.

    Raises:
        StructureError: as for :class:`Structure`, or a charge that is no whole number.
    """
    info = atoms.info
    charge = _whole(info.get("charge", 0), "charge") if charge is None else charge
    if multiplicity is None:
        multiplicity = _whole(info.get("multiplicity", 1), "multiplicity")
    moments = atoms.get_initial_magnetic_moments() if atoms.has("initial_magmoms") else None
    has_cell = bool(np.asarray(atoms.cell).any())
    pbc = tuple(bool(p) for p in atoms.pbc)
    return Structure(
        numbers=atoms.numbers,
        positions=atoms.positions,
        cell=np.asarray(atoms.cell[:]) if has_cell else None,
        pbc=(pbc[0], pbc[1], pbc[2]),
        charge=charge,
        multiplicity=multiplicity,
        magnetic_moments=moments,
    )


def to_ase(structure: Structure) -> Any:
    """``ase.Atoms`` of the structure, with charge and multiplicity in ``info``."""
    from ase import Atoms

    atoms = Atoms(
        numbers=structure.numbers,
        positions=structure.positions,
        cell=structure.cell,
        pbc=structure.pbc,
        magmoms=structure.magnetic_moments,
    )
    atoms.info.update(charge=structure.charge, multiplicity=structure.multiplicity)
    return atoms


def _whole(value: Any, name: str) -> int:
    number = float(value)
    if not number.is_integer():
        raise StructureError(f"{name} {value!r} is not a whole number")
    return int(number)

"""Labelled structures as flat arrays: what trainers and evaluations take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from hpcal.core.arrays import AnyArray, FloatArray, IntArray
from hpcal.core.errors import InputError
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure
from hpcal.core.walker import Split

PER_STRUCTURE: Final = ("ids", "splits", "energies", "charges", "multiplicities", "cells", "pbc")
PER_ATOM: Final = ("numbers", "positions", "forces")
OPTIONAL_PER_STRUCTURE: Final[dict[str, Any]] = {
    "stresses": np.full((3, 3), np.nan),
    "dipoles": np.full(3, np.nan),
    "dipole_origins": np.full(3, np.nan),
    "charge_schemes": "",
    "hashes": "",
    "origins": "",
    "generations": -1,
    "uncertainties": np.nan,
}
OPTIONAL_PER_ATOM: Final[dict[str, Any]] = {"atomic_charges": np.nan, "magnetic_moments": np.nan}
"""Arrays that a data set may lack, and what stands for one structure (or atom) that has no value."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """n labelled structures with A atoms in all, at one level of theory.

    The arrays after ``level`` are None where nothing of that kind is known of any structure.

    Attributes:
        ids: (n,) rows of the structures in the store, or their place in a file.
        splits: (n,) strings of :class:`~hpcal.core.walker.Split`.
        offsets: (n + 1,) structure i owns atoms ``offsets[i]:offsets[i + 1]``.
        numbers: (A,) atomic numbers.
        positions: (A, 3) Å.
        energies: (n,) eV.
        forces: (A, 3) eV/Å, NaN where a label has none.
        charges: (n,) e.
        multiplicities: (n,).
        cells: (n, 3, 3) Å, zeros without a cell.
        pbc: (n, 3) bool.
        level: the level of theory, or None for a file that does not say.
        stresses: (n, 3, 3) eV/Å³, positive in tension; NaN where a label has none.
        dipoles: (n, 3) e·Å about ``dipole_origins``; NaN where a label has none.
        dipole_origins: (n, 3) Å; NaN where not stated.
        atomic_charges: (A,) partial charges, e; NaN where a label has none.
        charge_schemes: (n,) strings, the scheme of the partial charges; empty where not stated.
        magnetic_moments: (A,) initial moments, Bohr magnetons; NaN where a structure has none.
        hashes: (n,) strings, :attr:`~hpcal.core.structure.Structure.content_hash`.
        origins: (n,) strings, what made each structure, such as ``bootstrap`` or ``sample``.
        generations: (n,) generation in which each structure was made; -1 where not known.
        uncertainties: (n,) value of the metric when the structure was selected for its label; NaN
            where it was labelled for another reason.
    """

    ids: IntArray
    splits: AnyArray
    offsets: IntArray
    numbers: IntArray
    positions: FloatArray
    energies: FloatArray
    forces: FloatArray
    charges: IntArray
    multiplicities: IntArray
    cells: FloatArray
    pbc: AnyArray
    level: LevelOfTheory | None = None
    stresses: FloatArray | None = None
    dipoles: FloatArray | None = None
    dipole_origins: FloatArray | None = None
    atomic_charges: FloatArray | None = None
    charge_schemes: AnyArray | None = None
    magnetic_moments: FloatArray | None = None
    hashes: AnyArray | None = None
    origins: AnyArray | None = None
    generations: IntArray | None = None
    uncertainties: FloatArray | None = None

    @classmethod
    def of(
        cls,
        structures: Sequence[Structure],
        labels: Sequence[Label],
        *,
        ids: Sequence[int] | None = None,
        splits: Sequence[Split] | None = None,
    ) -> Dataset:
        """A data set of structures and their labels.

        Raises:
            InputError: no structures, or labels of more than one level of theory.
        """
        if not structures:
            raise InputError("a data set needs at least one labelled structure")
        levels = {label.level for label in labels}
        if len(levels) > 1:
            names = ", ".join(sorted(str(level) for level in levels))
            raise InputError(f"labels of different levels of theory in one data set: {names}")
        sizes = [len(s) for s in structures]
        charges = _padded_atoms([label.charges for label in labels], sizes)
        return cls(
            ids=np.arange(len(structures)) if ids is None else np.asarray(ids, dtype=np.int64),
            splits=np.array([str(s) for s in splits] if splits is not None else ["train"] * len(structures)),
            offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            numbers=np.concatenate([s.numbers for s in structures]),
            positions=np.concatenate([s.positions for s in structures]),
            energies=np.array([label.energy for label in labels]),
            forces=np.concatenate(
                [
                    label.forces if label.forces is not None else np.full((size, 3), np.nan)
                    for label, size in zip(labels, sizes, strict=True)
                ]
            ),
            stresses=_padded([label.stress for label in labels], (3, 3)),
            dipoles=_padded([label.dipole for label in labels], (3,)),
            dipole_origins=_padded([label.dipole_origin for label in labels], (3,)),
            atomic_charges=charges,
            charge_schemes=None
            if charges is None
            else np.array([label.charge_scheme or "" for label in labels]),
            magnetic_moments=_padded_atoms([s.magnetic_moments for s in structures], sizes),
            hashes=np.array([s.content_hash for s in structures]),
            charges=np.array([s.charge for s in structures], dtype=np.int64),
            multiplicities=np.array([s.multiplicity for s in structures], dtype=np.int64),
            cells=np.array([np.zeros((3, 3)) if s.cell is None else s.cell for s in structures]),
            pbc=np.array([s.pbc for s in structures], dtype=bool),
            level=next(iter(levels)),
        )

    def __len__(self) -> int:
        return len(self.energies)

    @property
    def sizes(self) -> IntArray:
        """(n,) number of atoms."""
        return np.diff(self.offsets)

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that occur, ascending."""
        return tuple(int(z) for z in np.unique(self.numbers))

    def structure(self, i: int) -> Structure:
        """Structure ``i``."""
        a, b = self.offsets[i], self.offsets[i + 1]
        pbc = tuple(bool(p) for p in self.pbc[i])
        return Structure(
            numbers=self.numbers[a:b],
            positions=self.positions[a:b],
            cell=self.cells[i] if self.cells[i].any() else None,
            pbc=(pbc[0], pbc[1], pbc[2]),
            charge=int(self.charges[i]),
            multiplicity=int(self.multiplicities[i]),
            magnetic_moments=_known(self.magnetic_moments, slice(a, b)),
        )

    def structures(self) -> list[Structure]:
        """All structures, in order."""
        return [self.structure(i) for i in range(len(self))]

    def label(self, i: int) -> Label:
        """Label ``i``, without diagnostics.

        Raises:
            InputError: the level of theory is not known.
        """
        if self.level is None:
            raise InputError("labels of an unknown level of theory: state the level")
        atoms = slice(self.offsets[i], self.offsets[i + 1])
        charges = _known(self.atomic_charges, atoms)
        scheme = None if charges is None or self.charge_schemes is None else str(self.charge_schemes[i])
        return Label(
            energy=float(self.energies[i]),
            forces=_known(self.forces, atoms),
            stress=_known(self.stresses, i),
            dipole=_known(self.dipoles, i),
            dipole_origin=_known(self.dipole_origins, i),
            charges=charges,
            charge_scheme=scheme or None,
            level=self.level,
        )

    def forces_of(self, i: int) -> FloatArray:
        """(N, 3) reference forces of structure ``i``, eV/Å."""
        return self.forces[self.offsets[i] : self.offsets[i + 1]]

    @property
    def has_forces(self) -> AnyArray:
        """(n,) whether each label has forces."""
        missing = np.isnan(self.forces).any(axis=1)
        return ~np.logical_or.reduceat(missing, self.offsets[:-1])

    def where(self, split: Split) -> IntArray:
        """Indices of the structures of one split."""
        return np.flatnonzero(self.splits == str(split))

    def take(self, index: Sequence[int] | IntArray) -> Dataset:
        """The structures at the given indices, in that order."""
        index = np.asarray(index, dtype=np.int64)
        sizes = self.sizes[index]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        atoms = np.arange(offsets[-1]) + np.repeat(self.offsets[index] - offsets[:-1], sizes)
        arrays: dict[str, Any] = {}
        for name in (*PER_STRUCTURE, *OPTIONAL_PER_STRUCTURE, *PER_ATOM, *OPTIONAL_PER_ATOM):
            array = getattr(self, name)
            by_atom = name in PER_ATOM or name in OPTIONAL_PER_ATOM
            arrays[name] = None if array is None else array[atoms if by_atom else index]
        return Dataset(offsets=offsets, level=self.level, **arrays)

    @classmethod
    def concatenate(cls, parts: Sequence[Dataset]) -> Dataset:
        """One data set of several, in order.

        Raises:
            InputError: no parts, or parts of more than one level of theory.
        """
        if not parts:
            raise InputError("a data set needs at least one part")
        if len(parts) == 1:
            return parts[0]
        levels = {part.level for part in parts}
        if len(levels) > 1:
            names = ", ".join(sorted(str(level) for level in levels))
            raise InputError(f"labels of different levels of theory in one data set: {names}")
        arrays: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in (*PER_STRUCTURE, *PER_ATOM)
        }
        for name, missing in OPTIONAL_PER_STRUCTURE.items():
            arrays[name] = _joined([(getattr(part, name), len(part)) for part in parts], missing)
        for name, missing in OPTIONAL_PER_ATOM.items():
            arrays[name] = _joined([(getattr(part, name), len(part.numbers)) for part in parts], missing)
        sizes = np.concatenate([part.sizes for part in parts])
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        return cls(offsets=offsets, level=parts[0].level, **arrays)


def _known(array: FloatArray | None, place: int | slice) -> FloatArray | None:
    """What stands at a place of an array that holds NaN where nothing is known."""
    if array is None or np.isnan(array[place]).any():
        return None
    return np.asarray(array[place])


def _padded(values: Sequence[FloatArray | None], shape: tuple[int, ...]) -> FloatArray | None:
    """(n, ...) of what some labels have, or None if none has it."""
    if all(value is None for value in values):
        return None
    return np.array([np.full(shape, np.nan) if value is None else value for value in values])


def _padded_atoms(values: Sequence[FloatArray | None], sizes: Sequence[int]) -> FloatArray | None:
    """(A,) of what some structures have, or None if none has it."""
    if all(value is None for value in values):
        return None
    pairs = zip(values, sizes, strict=True)
    return np.concatenate([np.full(size, np.nan) if value is None else value for value, size in pairs])


def _joined(parts: Sequence[tuple[AnyArray | None, int]], missing: Any) -> AnyArray | None:
    """Arrays one after the other; parts that have none are filled up."""
    if all(array is None for array, _ in parts):
        return None
    empty = np.asarray(missing)
    filled = [
        np.broadcast_to(empty, (count, *empty.shape)) if array is None else array for array, count in parts
    ]
    return np.concatenate(filled)

"""Labelled structures as flat arrays: what trainers and evaluations take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpcal.core.arrays import AnyArray, FloatArray, IntArray
from hpcal.core.errors import InputError
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure
from hpcal.core.walker import Split


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """n labelled structures with A atoms in all, at one level of theory.

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
        )

    def structures(self) -> list[Structure]:
        """All structures, in order."""
        return [self.structure(i) for i in range(len(self))]

    def forces_of(self, i: int) -> FloatArray:
        """(N, 3) reference forces of structure ``i``, eV/Å."""
        return self.forces[self.offsets[i] : self.offsets[i + 1]]

    def where(self, split: Split) -> IntArray:
        """Indices of the structures of one split."""
        return np.flatnonzero(self.splits == str(split))

    def take(self, index: Sequence[int] | IntArray) -> Dataset:
        """The structures at the given indices, in that order."""
        index = np.asarray(index, dtype=np.int64)
        atoms = (
            np.concatenate([np.arange(self.offsets[i], self.offsets[i + 1]) for i in index])
            if len(index)
            else np.zeros(0, dtype=np.int64)
        )
        return Dataset(
            ids=self.ids[index],
            splits=self.splits[index],
            offsets=np.concatenate([[0], np.cumsum(self.sizes[index])]).astype(np.int64),
            numbers=self.numbers[atoms],
            positions=self.positions[atoms],
            energies=self.energies[index],
            forces=self.forces[atoms],
            charges=self.charges[index],
            multiplicities=self.multiplicities[index],
            cells=self.cells[index],
            pbc=self.pbc[index],
            level=self.level,
        )

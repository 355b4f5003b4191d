"""Labelled structures on their way through the checks, each with the place it came from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np

from hpcal.core.arrays import AnyArray, FloatArray, IntArray
from hpcal.core.dataset import Dataset
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure
from hpcal.exchange.found import is_unknown
from hpcal.exchange.levels import told_apart

NOT_STATED: Final = "not stated"


def _names(records: Sequence[LevelOfTheory | None]) -> tuple[str, ...]:
    stated = [record for record in records if record is not None]
    names = dict(zip(stated, told_apart(stated), strict=True))
    return tuple(NOT_STATED if record is None else names[record] for record in records)


@dataclass(frozen=True, kw_only=True, eq=False)
class Collection:
    """n labelled structures, from one or more files or a store; levels of theory may differ.

    Attributes:
        data: the arrays; its splits are those that leakage is looked for between.
        levels: (n,) places in ``level_names``.
        level_names: the levels of theory, those of equal name with what they differ in.
        families: (n,) walker of each structure, -1 where none is known.
        sources: (n,) places in ``source_names``.
        source_names: names of files; empty for a store.
        ids: (n,) numbers of frames in their file, from 1, or ids of structures in a store.
        level_records: the levels of theory themselves, None for one that is not stated; empty for a store.
    """

    data: Dataset
    levels: IntArray
    level_names: tuple[str, ...]
    families: IntArray
    sources: IntArray
    source_names: tuple[str, ...]
    ids: IntArray
    level_records: tuple[LevelOfTheory | None, ...] = ()

    @classmethod
    def of_labels(
        cls,
        structures: Sequence[Structure],
        labels: Sequence[Label],
        *,
        source: str,
        splits: Sequence[str],
        families: Sequence[int] | None = None,
    ) -> Collection:
        """The frames of a file, in order."""
        known: dict[LevelOfTheory | None, int] = {}
        levels = [
            known.setdefault(None if is_unknown(label.level) else label.level, len(known)) for label in labels
        ]
        first = labels[0].level
        alike = [label if label.level == first else replace(label, level=first) for label in labels]
        data = replace(Dataset.of(structures, alike), splits=np.array([str(s) for s in splits]))
        return cls._of_file(data, levels, tuple(known), source, families)

    @classmethod
    def _of_file(
        cls,
        data: Dataset,
        levels: Sequence[int],
        records: tuple[LevelOfTheory | None, ...],
        source: str,
        families: Sequence[int] | None,
    ) -> Collection:
        n = len(data)
        return cls(
            data=data,
            levels=np.asarray(levels, dtype=np.int64),
            level_names=_names(records),
            level_records=records,
            families=np.full(n, -1) if families is None else np.asarray(families, dtype=np.int64),
            sources=np.zeros(n, dtype=np.int64),
            source_names=(source,),
            ids=np.arange(1, n + 1),
        )

    @classmethod
    def joined(cls, parts: Sequence[Collection]) -> Collection:
        """Files one after the other, each a split of its own.

        A split that a file states is kept beside its name. Families of different files are different.
        """
        if len(parts) == 1:
            return parts[0]
        records = tuple(dict.fromkeys(record for part in parts for record in part.level_records))
        levels, families, splits, most = [], [], [], 0
        for part in parts:
            levels.append(np.array([records.index(record) for record in part.level_records])[part.levels])
            families.append(np.where(part.families < 0, -1, part.families + most))
            most = max(most, int(families[-1].max()) + 1)
            file = part.source_names[0]
            stated = len(np.unique(part.data.splits)) > 1
            splits.append(np.array([f"{file}:{s}" if stated else file for s in part.data.splits]))
        data = Dataset.concatenate([replace(part.data, level=None) for part in parts])
        return cls(
            data=replace(data, splits=np.concatenate(splits)),
            levels=np.concatenate(levels),
            level_names=_names(records),
            level_records=records,
            families=np.concatenate(families),
            sources=np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
            source_names=tuple(part.source_names[0] for part in parts),
            ids=np.concatenate([part.ids for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.data)

    @cached_property
    def structures(self) -> list[Structure]:
        """All structures."""
        return self.data.structures()

    @cached_property
    def periodic(self) -> AnyArray:
        """(n,) whether any direction is periodic."""
        return np.asarray(self.data.pbc.any(axis=1))

    @cached_property
    def formulas(self) -> list[str]:
        """(n,) Hill formulas."""
        result = [""] * len(self)
        for group in self.compositions:
            formula = self.structures[int(group.index[0])].formula
            for i in group.index:
                result[int(i)] = formula
        return result

    @cached_property
    def compositions(self) -> list[Composition]:
        """Structures of one composition each, by their first occurrence."""
        offsets, numbers = self.data.offsets, self.data.numbers
        rows: dict[bytes, list[int]] = {}
        for i in range(len(self)):
            key = np.sort(numbers[offsets[i] : offsets[i + 1]]).tobytes()
            rows.setdefault(key, []).append(i)
        return [
            Composition(index=np.array(index), numbers=np.frombuffer(key, dtype=np.int64))
            for key, index in rows.items()
        ]

    def atoms_of(self, group: Composition, index: IntArray) -> tuple[FloatArray, IntArray]:
        """(m, N, 3) positions of some structures of a composition in the order of their atomic
        numbers, and (m, N) the place of each of those atoms in its structure."""  # noqa: D205, D209
        rows = self.data.offsets[index][:, None] + np.arange(len(group.numbers))
        order = np.argsort(self.data.numbers[rows], axis=1, kind="stable")
        return self.data.positions[np.take_along_axis(rows, order, 1)], order

    def name(self, i: int) -> str:
        """The place of structure ``i``, for a person."""
        if not self.source_names:
            return f"structure {self.ids[i]}"
        if len(self.source_names) == 1:
            return f"frame {self.ids[i]}"
        return f"{self.source_names[self.sources[i]]}, frame {self.ids[i]}"

    def place(self, i: int) -> dict[str, Any]:
        """The place of structure ``i``, for a program."""
        if not self.source_names:
            return {"structure": int(self.ids[i])}
        return {"file": self.source_names[self.sources[i]], "frame": int(self.ids[i])}


@dataclass(frozen=True, kw_only=True)
class Composition:
    """Structures of one composition.

    Attributes:
        index: (m,) their places in the collection, ascending.
        numbers: (N,) atomic numbers, ascending.
    """

    index: IntArray
    numbers: IntArray

    def chunks(self, per_structure: int, budget: int = 1 << 21) -> Iterator[IntArray]:
        """``index`` in pieces of which each needs about ``budget`` numbers."""
        step = max(1, budget // max(1, per_structure))
        for start in range(0, len(self.index), step):
            yield self.index[start : start + step]

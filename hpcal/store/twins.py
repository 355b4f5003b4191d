"""Structures of equal geometry: rotated, shifted, mirrored or renumbered, none costs a second label."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from hpcal.core.alignment import same_geometry
from hpcal.core.fingerprint import fingerprint, many_matching_fingerprints, matching_fingerprints
from hpcal.core.structure import Structure
from hpcal.store.rows import structure_of
from hpcal.store.tables import StructureRow
from hpcal.store.transitions import StructureState

KEYS: Final = 4000
"""Fingerprints in one question: databases limit the number of values."""


class Twins:
    """What the store has of the geometries of some newcomers, and those of them that came in since.

    Two structures are twins if they agree in composition, charge, multiplicity and periodicity, and
    no atom is displaced by more than :data:`hpcal.core.fingerprint.TOLERANCE_A` after the best
    rotation, reflection, translation and permutation (:func:`hpcal.core.alignment.same_geometry`).
    Seeds, which are not labelled themselves, and what was dropped are nobody's twins.
    """

    def __init__(self, session: Session, newcomers: Sequence[Structure]) -> None:
        self._keys = _keys(newcomers)
        self._known: dict[tuple[str, float], list[tuple[int, Structure]]] = defaultdict(list)
        formulas = sorted({s.formula for s in newcomers})
        keys = sorted({key for found in self._keys.values() for key in found})
        for start in range(0, len(keys), KEYS):
            rows = session.scalars(
                select(StructureRow)
                .where(
                    StructureRow.formula.in_(formulas),
                    StructureRow.fingerprint.in_(keys[start : start + KEYS]),
                    StructureRow.origin != "seed",
                    StructureRow.state != StructureState.DROPPED,
                )
                .order_by(StructureRow.id)
            )
            for row in rows:
                self._known[row.formula, row.fingerprint or 0.0].append((row.id, structure_of(row)))

    def of(self, newcomer: Structure) -> int | None:
        """The oldest twin of one of the newcomers, or None."""
        formula = newcomer.formula
        found = [
            known
            for key in self._keys[id(newcomer)]
            for known, structure in self._known.get((formula, key), ())
            if structure == newcomer or same_geometry(structure, newcomer)
        ]
        return min(found, default=None)

    def add(self, newcomer: Structure, structure_id: int) -> None:
        """One of the newcomers is in the store now."""
        self._known[newcomer.formula, fingerprint(newcomer)].append((structure_id, newcomer))


def _keys(structures: Sequence[Structure]) -> dict[int, Sequence[float]]:
    """Fingerprints that twins of each structure can have; molecules of one size are asked together."""
    keys: dict[int, Sequence[float]] = {}
    groups: dict[int, list[Structure]] = defaultdict(list)
    for structure in structures:
        if structure.periodic:
            keys[id(structure)] = matching_fingerprints(structure)
        else:
            groups[len(structure)].append(structure)
    for group in groups.values():
        owner, value = many_matching_fingerprints(
            np.array([s.numbers for s in group]), np.array([s.positions for s in group])
        )
        bounds = np.searchsorted(owner, np.arange(len(group) + 1))
        for structure, (start, end) in zip(group, pairwise(bounds.tolist()), strict=True):
            keys[id(structure)] = value[start:end].tolist()
    return keys

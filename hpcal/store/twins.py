"""Structures of equal geometry: rotated, shifted, mirrored or renumbered, none costs a second label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from hpcal.core.fingerprint import TOLERANCE_A
from hpcal.core.geometries import Geometries, matching_keys
from hpcal.core.structure import Structure
from hpcal.store import structures
from hpcal.store.rows import structure_of
from hpcal.store.tables import StructureRow
from hpcal.store.transitions import StructureState

KEYS: Final = 4000
"""Fingerprints in one question: databases limit the number of values."""
OTHER_LEVEL: Final = "other_level"
"""Origin of a structure that is there for its label at a level that is not the campaign's."""
APART: Final = ("seed", OTHER_LEVEL)
"""Origins of structures that are not labelled at the campaign's level themselves."""


class Twins:
    """What the store has of the geometries of some newcomers, and those of them that came in since.

    Structures that are not labelled themselves, and what was dropped, are nobody's twins.
    """

    def __init__(self, session: Session, newcomers: Sequence[Structure]) -> None:
        self._keys = dict(zip(map(id, newcomers), matching_keys(newcomers), strict=True))
        self._known: Geometries[int] = Geometries()
        formulas = sorted({s.formula for s in newcomers})
        keys = sorted({key for found in self._keys.values() for key in found})
        for start in range(0, len(keys), KEYS):
            rows = session.scalars(
                select(StructureRow)
                .where(
                    StructureRow.formula.in_(formulas),
                    StructureRow.fingerprint.in_(keys[start : start + KEYS]),
                    StructureRow.origin.not_in(APART),
                    StructureRow.state != StructureState.DROPPED,
                )
                .order_by(StructureRow.id)
            )
            for row in rows:
                self._known.add(structure_of(row), row.id, row.fingerprint)

    def of(self, newcomer: Structure) -> int | None:
        """The oldest twin of one of the newcomers, or None."""
        return min(self._known.find(newcomer, self._keys[id(newcomer)]), default=None)

    def add(self, newcomer: Structure, structure_id: int) -> None:
        """One of the newcomers is in the store now."""
        self._known.add(newcomer, structure_id)


def drop_duplicate(session: Session, row: StructureRow, twin: int, *, task_id: int | None) -> None:
    """Says of a structure that came in dropped which known one it equals."""
    row.twin_id = twin
    row.reason = f"duplicate: the geometry of structure {twin}, within {TOLERANCE_A:g} Å"
    structures.add_decision(session, row.id, "dropped", "duplicate", row.reason, task_id=task_id)

"""The electronic states of a geometry: rows of their own, beside the one that the geometry came in as."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from hpcal.core.structure import Structure
from hpcal.store.structures import add_structure, chunks, rows_of
from hpcal.store.tables import AUDIT_STATE, SIBLINGS, STATE, StructureRow, WalkerRow
from hpcal.store.transitions import StructureState


def geometry_of(row: StructureRow) -> int:
    """The structure that a row's geometry came in as: itself, or its parent if it is a further state."""
    return row.parent_id if row.origin in SIBLINGS and row.parent_id is not None else row.id


def fresh_rows(session: Session, ids: Sequence[int]) -> dict[int, StructureRow]:
    """Rows by id, as they are in the database now."""
    session.flush()
    return {
        row.id: row
        for part in chunks(ids)
        for row in session.scalars(
            select(StructureRow).where(StructureRow.id.in_(part)).execution_options(populate_existing=True)
        )
    }


def further_states(session: Session, first: Sequence[StructureRow]) -> dict[int, list[StructureRow]]:
    """The further states of geometries by the id of their first one, oldest first."""
    # Siblings have the fingerprint of their parent to the last bit, and fingerprints have an index.
    session.flush()
    found: dict[int, list[StructureRow]] = defaultdict(list)
    by_id = {row.id: row for row in first}
    for part in chunks(by_id):
        rows = session.scalars(
            select(StructureRow)
            .where(
                StructureRow.formula.in_({by_id[i].formula for i in part}),
                StructureRow.fingerprint.in_({by_id[i].fingerprint for i in part}),
                StructureRow.parent_id.in_(part),
                StructureRow.origin.in_(SIBLINGS),
            )
            .order_by(StructureRow.id)
            .execution_options(populate_existing=True)
        )
        for row in rows:
            found[geometry_of(row)].append(row)
    return found


def roots(session: Session, rows: Sequence[StructureRow]) -> dict[int, StructureRow]:
    """The structure whose state the further states of each row are relative to, by the row's id.

    A walker that was born from a further state goes on in that state; its frames still have the
    states of the geometry that the campaign began with, not those around their own.
    """
    found = {row.id: row for row in rows}
    rising = set(found)
    while rising:
        walkers = [found[i].walker_id for i in rising]
        seeds = _seeds(session, sorted({w for w in walkers if w is not None}))
        above = {i: _above(found[i], seeds) for i in rising}
        parents = rows_of(session, sorted({p for p in above.values() if p is not None}))
        rising = {i for i, parent in above.items() if parent is not None}
        found |= {i: parents[p] for i, p in above.items() if p is not None}
    return found


def _above(row: StructureRow, seeds: dict[int, int]) -> int | None:
    """The structure that a row has its geometry, or its walker its seed, from."""
    if row.origin in SIBLINGS:
        return row.parent_id
    return None if row.walker_id is None else seeds[row.walker_id]


def _seeds(session: Session, walker_ids: Sequence[int]) -> dict[int, int]:
    return {
        row.id: row.structure_id
        for part in chunks(walker_ids)
        for row in session.execute(select(WalkerRow.id, WalkerRow.structure_id).where(WalkerRow.id.in_(part)))
    }


def add_state(
    session: Session, first: StructureRow, structure: Structure, *, task_id: int | None, known: bool
) -> StructureRow:
    """A further state of a geometry, of the split and family of its first one.

    Args:
        known: whether the store has this geometry in this state already; it comes in dropped then.
    """
    return add_structure(
        session,
        structure,
        origin=AUDIT_STATE if first.split.audit else STATE,
        state=StructureState.DROPPED if known else StructureState.WAITING,
        split=first.split,
        generation=first.generation,
        parent_id=first.id,
        walker_id=first.walker_id,
        task_id=task_id,
        step=first.step,
        time_fs=first.time_fs,
        priority=first.priority,
    )

"""Writing walkers and their segments."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from hpcal.core.walker import Segment, Split, Walker
from hpcal.store import transitions
from hpcal.store.rows import blob, optional_blob, walker_of
from hpcal.store.tables import LabelRow, SegmentRow, StructureRow, WalkerRow
from hpcal.store.transitions import WalkerState


def add_walker(session: Session, **columns: Any) -> WalkerRow:
    """A new walker, idle; columns by name."""
    row = WalkerRow(state=WalkerState.IDLE, created=time.time(), **columns)
    session.add(row)
    session.flush()
    return row


def count(session: Session) -> int:
    """Walkers ever born."""
    return session.scalar(select(func.max(WalkerRow.id))) or 0


def claim(session: Session, ids: Sequence[int]) -> None:
    """Idle walkers go into a task."""
    for row in session.scalars(select(WalkerRow).where(WalkerRow.id.in_(ids))):
        _move(row, WalkerState.CLAIMED)


def release(session: Session, ids: Sequence[int]) -> None:
    """Walkers of a task that failed wait again, where they were before it."""
    for row in session.scalars(select(WalkerRow).where(WalkerRow.id.in_(ids))):
        if row.state is WalkerState.CLAIMED:
            _move(row, WalkerState.IDLE)


def walkers_of(session: Session, ids: Sequence[int]) -> list[Walker]:
    """Walkers by id, in the order of ``ids``."""
    rows = session.execute(
        select(WalkerRow, StructureRow)
        .join(StructureRow, StructureRow.id == WalkerRow.structure_id)
        .where(WalkerRow.id.in_(ids))
    )
    found = {row.id: walker_of(row, seed) for row, seed in rows}
    return [found[i] for i in ids]


def record_segment(
    session: Session, segment: Segment, *, attempt_id: int, ensemble_id: int, generation: int
) -> SegmentRow:
    """What a task did with a walker; the walker waits again or has ended."""
    walker = segment.walker
    row = session.get_one(WalkerRow, walker.id)
    record = SegmentRow(
        walker_id=walker.id,
        attempt_id=attempt_id,
        ensemble_id=ensemble_id,
        start_step=segment.start_step,
        end_step=walker.step,
        end_reason=segment.end,
        detail=segment.detail or None,
        max_trigger=segment.max_trigger,
        bias_ratio=segment.bias_ratio,
    )
    row.step = walker.step
    row.positions = blob(walker.structure.positions)
    row.velocities = optional_blob(walker.velocities)
    row.parameters = dict(walker.state)
    if segment.end is None:
        _move(row, WalkerState.IDLE)
    else:
        _move(row, WalkerState.ENDED)
        row.end_reason, row.end_detail, row.end_generation = segment.end, segment.detail or None, generation
    session.add(record)
    session.flush()
    return record


def rows_of(session: Session, ids: Sequence[int]) -> dict[int, WalkerRow]:
    """Walker rows by id."""
    return {row.id: row for row in session.scalars(select(WalkerRow).where(WalkerRow.id.in_(ids)))}


def seed_pool(session: Session, split: Split, limit: int) -> list[int]:
    """Structures that walkers may start from: newest labelled structures of a split."""
    rows = session.scalars(
        select(LabelRow.structure_id)
        .where(LabelRow.split == split, LabelRow.seq.is_not(None))
        .order_by(LabelRow.seq.desc())
        .limit(limit)
    )
    return list(rows)


def _move(row: WalkerRow, new: WalkerState) -> None:
    transitions.check(WalkerState, row.state, new, f"walker {row.id}")
    row.state = new


def splits_of(session: Session, ids: Sequence[int]) -> dict[int, Split]:
    """Split of each walker."""
    rows = session.execute(select(WalkerRow.id, WalkerRow.split).where(WalkerRow.id.in_(ids)))
    return {row.id: row.split for row in rows}

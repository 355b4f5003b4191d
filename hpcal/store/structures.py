"""Writing structures: birth, changes of state, decisions and scores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from hpcal.core.errors import StoreError, TransitionError
from hpcal.core.structure import Structure
from hpcal.core.walker import Scores, Split
from hpcal.store import queries, transitions
from hpcal.store.rows import structure_of, structure_row
from hpcal.store.tables import ScoreRow, SelectionRow, StructureRow
from hpcal.store.transitions import StructureState


def add_structure(
    session: Session,
    structure: Structure,
    *,
    origin: str,
    state: StructureState,
    split: Split,
    **columns: Any,
) -> StructureRow:
    """A new structure; further columns by name."""
    row = structure_row(structure, origin=origin, state=state, split=split, **columns)
    session.add(row)
    session.flush()
    return row


def known_twin(session: Session, structure: Structure) -> int | None:
    """The oldest structure of equal content that was not dropped, or None."""
    return session.scalar(
        select(StructureRow.id)
        .where(
            StructureRow.hash == structure.content_hash,
            StructureRow.origin != "seed",
            StructureRow.state != StructureState.DROPPED,
        )
        .order_by(StructureRow.id)
        .limit(1)
    )


def move(
    session: Session, ids: Iterable[int], new: StructureState, *, reason: str | None = None, **columns: Any
) -> None:
    """Changes the state of structures; all of them or none.

    Raises:
        TransitionError: one of them may not go there.
    """
    wanted = sorted(set(ids))
    values = {"state": new, **columns} | ({"reason": reason} if reason is not None else {})
    changed: Any = session.execute(
        update(StructureRow)
        .where(StructureRow.id.in_(wanted), StructureRow.state.in_(transitions.sources(new)))
        .values(**values)
        .execution_options(synchronize_session="fetch")
    )
    if changed.rowcount != len(wanted):
        states = states_of(session, wanted)
        bad = next((i for i in wanted if states.get(i) != new), wanted[0])
        raise TransitionError(f"structure {bad} cannot go from {states.get(bad)} to {new}")


def states_of(session: Session, ids: Sequence[int]) -> dict[int, StructureState]:
    """State of each structure."""
    rows = session.execute(select(StructureRow.id, StructureRow.state).where(StructureRow.id.in_(ids)))
    return {row.id: row.state for row in rows}


def structures_of(session: Session, ids: Sequence[int]) -> list[tuple[int, Structure]]:
    """Structures by id, in the order of ``ids``.

    Raises:
        StoreError: one of them is not there.
    """
    rows = {row.id: row for row in session.scalars(select(StructureRow).where(StructureRow.id.in_(ids)))}
    missing = [i for i in ids if i not in rows]
    if missing:
        raise StoreError(f"structure {missing[0]} is not in the store")
    return [(i, structure_of(rows[i])) for i in ids]


def rows_of(session: Session, ids: Sequence[int]) -> dict[int, StructureRow]:
    """Rows by id."""
    return {row.id: row for row in session.scalars(select(StructureRow).where(StructureRow.id.in_(ids)))}


def of_origin(session: Session, *origins: str) -> list[StructureRow]:
    """All structures of some origins, oldest first."""
    query = select(StructureRow).where(StructureRow.origin.in_(origins)).order_by(StructureRow.id)
    return list(session.scalars(query))


def ids_in_states(session: Session, states: Sequence[StructureState]) -> list[int]:
    """Structures in unfinished states, seeds aside."""
    query = (
        select(StructureRow.id)
        .where(queries.UNFINISHED, StructureRow.state.in_(states), StructureRow.origin != "seed")
        .order_by(StructureRow.id)
    )
    return list(session.scalars(query))


def add_score(
    session: Session,
    structure_id: int,
    ensemble_id: int,
    scores: Scores,
    *,
    purpose: str,
    metric: str,
    threshold: float | None,
    task_id: int | None,
    **errors: float | None,
) -> None:
    """A score, with errors where the structure has a label."""
    session.add(
        ScoreRow(
            structure_id=structure_id,
            ensemble_id=ensemble_id,
            task_id=task_id,
            purpose=purpose,
            metric=metric,
            value=scores.trigger,
            threshold=threshold,
            energy_std=_number(scores.energy_std),
            force_std=_number(scores.force_std),
            **errors,
        )
    )


def latest_value(session: Session, structure_id: int) -> float | None:
    """The newest value of the trigger metric of a structure."""
    return session.scalar(
        select(ScoreRow.value)
        .where(ScoreRow.structure_id == structure_id, ScoreRow.purpose.in_(("sample", "rescore")))
        .order_by(ScoreRow.id.desc())
        .limit(1)
    )


def add_decision(
    session: Session, structure_id: int, decision: str, rule: str, reason: str, **columns: Any
) -> None:
    """A decision on a structure; further columns of ``selection`` by name."""
    session.add(
        SelectionRow(structure_id=structure_id, decision=decision, rule=rule, reason=reason, **columns)
    )


def is_evaluated(session: Session, structure_id: int, ensemble_id: int) -> bool:
    """Whether an ensemble was evaluated on a labelled structure."""
    found = session.scalar(
        select(ScoreRow.id)
        .where(
            ScoreRow.structure_id == structure_id,
            ScoreRow.ensemble_id == ensemble_id,
            ScoreRow.purpose == "evaluate",
        )
        .limit(1)
    )
    return found is not None


def change(session: Session, structure_id: int, **columns: Any) -> None:
    """Changes columns of a structure other than its state."""
    session.execute(update(StructureRow).where(StructureRow.id == structure_id).values(**columns))


def elements(session: Session) -> tuple[int, ...]:
    """Atomic numbers of all structures, ascending."""
    found = session.execute(select(StructureRow.numbers).group_by(StructureRow.formula))
    return tuple(sorted({int(z) for (numbers,) in found for z in numbers}))


def _number(value: float) -> float | None:
    """None for what a potential cannot give."""
    return None if math.isnan(value) else value

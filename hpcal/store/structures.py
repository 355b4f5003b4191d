"""Writing structures: birth, changes of state, decisions and scores."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import bindparam, select, update

from hpcal.core.elements import atomic_number
from hpcal.core.errors import StoreError, TransitionError
from hpcal.core.structure import Structure
from hpcal.core.walker import Scores, Split
from hpcal.store import queries, transitions
from hpcal.store.rows import structure_of, structure_row
from hpcal.store.session import Session, ask
from hpcal.store.tables import ScoreRow, SelectionRow, StructureRow
from hpcal.store.transitions import StructureState

PORTION: Final = 5000
"""Ids in one question; databases limit the number of values."""


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


def chunks(ids: Iterable[int]) -> Iterator[list[int]]:
    """Ids in portions that a database takes in one question."""
    every = list(ids)
    for start in range(0, len(every), PORTION):
        yield every[start : start + PORTION]


def move(
    session: Session, ids: Iterable[int], new: StructureState, *, reason: str | None = None, **columns: Any
) -> None:
    """Changes the state of structures; all of them or none.

    Raises:
        TransitionError: one of them may not go there.
    """
    wanted = sorted(set(ids))
    _check_move(session, wanted, new)
    values = {"state": new, **columns} | ({"reason": reason} if reason is not None else {})
    for part in chunks(wanted):
        session.execute(
            update(StructureRow)
            .where(StructureRow.id.in_(part))
            .values(**values)
            .execution_options(synchronize_session="fetch")
        )


def move_each(session: Session, changes: Mapping[int, Mapping[str, Any]], new: StructureState) -> None:
    """Changes the state of structures, with further columns of their own; all of them or none.

    Raises:
        TransitionError: one of them may not go there.
    """
    if not changes:
        return
    _check_move(session, sorted(changes), new)
    session.execute(
        update(StructureRow), [{"id": i, "state": new, **columns} for i, columns in sorted(changes.items())]
    )


def _check_move(session: Session, ids: Sequence[int], new: StructureState) -> None:
    states = states_of(session, ids)
    allowed = transitions.sources(new)
    bad = next((i for i in ids if states.get(i) not in allowed), None)
    if bad is not None:
        raise TransitionError(f"structure {bad} cannot go from {states.get(bad)} to {new}")


_STATES: Final = select(StructureRow.id, StructureRow.state).where(
    StructureRow.id.in_(bindparam("ids", expanding=True))
)


def states_of(session: Session, ids: Sequence[int]) -> dict[int, StructureState]:
    """State of each structure."""
    return {i: state for part in chunks(ids) for i, state in ask(session, _STATES, {"ids": part})}


@dataclass(frozen=True, kw_only=True)
class Standing:
    """State and split of a structure."""

    state: StructureState
    split: Split


def standing(session: Session, ids: Sequence[int]) -> dict[int, Standing]:
    """State and split of each structure."""
    return {
        row.id: Standing(state=row.state, split=row.split)
        for part in chunks(ids)
        for row in session.execute(
            select(StructureRow.id, StructureRow.state, StructureRow.split).where(StructureRow.id.in_(part))
        )
    }


def structures_of(session: Session, ids: Sequence[int]) -> list[tuple[int, Structure]]:
    """Structures by id, in the order of ``ids``.

    Raises:
        StoreError: one of them is not there.
    """
    rows = rows_of(session, ids)
    missing = [i for i in ids if i not in rows]
    if missing:
        raise StoreError(f"structure {missing[0]} is not in the store")
    return [(i, structure_of(rows[i])) for i in ids]


_ROWS: Final = select(StructureRow).where(StructureRow.id.in_(bindparam("ids", expanding=True)))


def rows_of(session: Session, ids: Sequence[int]) -> dict[int, StructureRow]:
    """Rows by id."""
    return {row.id: row for part in chunks(ids) for row in session.scalars(_ROWS, {"ids": part})}


_OF_ORIGIN: Final = (
    select(StructureRow)
    .where(queries.START, StructureRow.origin.in_(bindparam("origins", expanding=True)))
    .order_by(StructureRow.id)
)


def of_origin(session: Session, *origins: str) -> list[StructureRow]:
    """All structures of some origins that a campaign starts from (see ``tables.START``), oldest first."""
    return list(session.scalars(_OF_ORIGIN, {"origins": origins}))


def ids_in_states(session: Session, states: Sequence[StructureState]) -> list[int]:
    """Structures in unfinished states, seeds aside."""
    query = (
        select(StructureRow.id)
        .where(queries.UNFINISHED, StructureRow.state.in_(states), StructureRow.origin != "seed")
        .order_by(StructureRow.id)
    )
    return list(session.scalars(query))


def latest_values(session: Session, ids: Sequence[int]) -> dict[int, float]:
    """The newest value of the trigger metric of each structure that has one."""
    return {
        structure_id: value
        for part in chunks(ids)
        for structure_id, value in session.execute(
            select(ScoreRow.structure_id, ScoreRow.value)
            .where(ScoreRow.structure_id.in_(part), ScoreRow.purpose.in_(("sample", "rescore")))
            .order_by(ScoreRow.id)
        )
    }


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
    **columns: Any,
) -> None:
    """A score; further columns by name."""
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
            **columns,
        )
    )


def add_decision(
    session: Session, structure_id: int, decision: str, rule: str, reason: str, **columns: Any
) -> None:
    """A decision on a structure; further columns of ``selection`` by name."""
    session.add(
        SelectionRow(structure_id=structure_id, decision=decision, rule=rule, reason=reason, **columns)
    )


def evaluated_among(session: Session, ensemble_id: int, ids: Sequence[int]) -> set[int]:
    """Those of some structures that an ensemble was evaluated on."""
    return {
        found
        for part in chunks(ids)
        for found in session.scalars(
            select(ScoreRow.structure_id).where(
                ScoreRow.structure_id.in_(part),
                ScoreRow.ensemble_id == ensemble_id,
                ScoreRow.purpose == "evaluate",
            )
        )
    }


def change(session: Session, ids: Sequence[int], **columns: Any) -> None:
    """Changes columns of structures other than their state."""
    for part in chunks(ids):
        session.execute(update(StructureRow).where(StructureRow.id.in_(part)).values(**columns))


def add_failure(session: Session, structure_id: int) -> int:
    """Counts one more failure of a structure; returns how many there are."""
    row = session.get_one(StructureRow, structure_id)
    row.failures += 1
    return row.failures


def elements(session: Session) -> tuple[int, ...]:
    """Atomic numbers of all structures, ascending."""
    formulas = session.scalars(select(StructureRow.formula).distinct())
    return tuple(sorted({atomic_number(part) for f in formulas for part in re.findall("[A-Z][a-z]*", f)}))


def _number(value: float) -> float | None:
    """None for what a potential cannot give."""
    return None if math.isnan(value) else value

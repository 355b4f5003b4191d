"""Read-only questions to the store about what went wrong, and what was changed on the way.

Every query follows a named index and reads only rows of failures, however long the history. Texts
come as they were recorded; the report makes causes of them. Nothing here writes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import ColumnElement, String, cast, func, literal_column, select, text, type_coerce
from sqlalchemy.orm import Session

from hpcal.core.walker import Split
from hpcal.store.tables import AttemptRow, EventRow, RejectionRow, StructureRow, TaskRow
from hpcal.store.transitions import StructureState, TaskState

GROUPS: Final = 1000
"""Most distinct texts of one kind that are read, those of the newest rows; the rest is counted."""
REST: Final = "others, not told apart"
"""Text of what is only counted."""
INTERRUPTED: Final = ("its controller ended", "stopped as asked")
"""Ends of attempts that are no failure: they were stopped with their controller."""
ENDED_BADLY: Final = "state IN ('failed', 'lost')"
"""Condition of the partial index on attempts; a query repeats it word for word."""
SET_ASIDE: Final = "host_set_aside"
CHANGED: Final = "changed"
_BADLY: Final = text(f"attempt.{ENDED_BADLY}")
_ONE: Final[ColumnElement[int]] = literal_column("1")
_HEAD: Final[ColumnElement[int]] = literal_column("300")
_TAIL: Final[ColumnElement[int]] = literal_column("299")


@dataclass(frozen=True, kw_only=True)
class Mishap:
    """Rows of one kind that went wrong with one text.

    Attributes:
        what: ``task`` (given up), ``retried`` (attempts, or structures in them, that were tried
            again), ``rejection`` or ``quarantine``.
        stage: kind of the task, or origin of the structure for a quarantine.
        failure_class: its class, or None where none was recorded.
        head, tail: beginning and end of the text, whole where it is short.
        code: code of a rejection, else empty.
        count: rows.
        structures: structures that they hold, as far as they are known.
        last_task: the newest task, or None.
        last_structure: the newest structure, or None.
        hosts: where it happened, as far as it is known.
        set_aside: of a rejection, whether such structures are set aside for a person; None: some are.
    """

    what: str
    stage: str
    failure_class: str | None
    head: str
    tail: str
    count: int
    structures: int = 0
    code: str = ""
    last_task: int | None = None
    last_structure: int | None = None
    hosts: tuple[str, ...] = ()
    set_aside: bool | None = False


def given_up(session: Session, kinds: Sequence[str]) -> list[Mishap]:
    """Tasks of some kinds that failed for good."""
    head, tail = _ends(TaskRow.error)
    rows = session.execute(
        select(
            TaskRow.kind, TaskRow.failure_class, head, tail, func.count(), func.max(TaskRow.id),
            func.sum(TaskRow.units),
        )
        .where(TaskRow.kind.in_(kinds), TaskRow.state == TaskState.FAILED)
        .group_by(TaskRow.kind, TaskRow.failure_class, head, tail)
        .order_by(func.max(TaskRow.id).desc())
        .limit(GROUPS)
    ).all()  # fmt: skip
    newest = _inputs(session, [row[5] for row in rows if row[0] in ("label", "relax")])
    found = [
        Mishap(
            what="task",
            stage=kind,
            failure_class=_word(cls),
            head=first or "",
            tail=last or "",
            count=n,
            structures=int(units or 0) if kind in ("label", "relax") else 0,
            last_task=task_id,
            last_structure=max(newest.get(task_id, ()), default=None),
        )
        for kind, cls, first, last, n, task_id, units in rows
    ]
    if len(found) < GROUPS:
        return found
    totals = session.execute(
        select(TaskRow.kind, TaskRow.failure_class, func.count(), func.max(TaskRow.id))
        .where(TaskRow.kind.in_(kinds), TaskRow.state == TaskState.FAILED)
        .group_by(TaskRow.kind, TaskRow.failure_class)
    )
    every = [_total("task", kind, _word(cls), n, task_id) for kind, cls, n, task_id in totals]
    return found + _rest(found, every)


def tried_again(session: Session) -> list[Mishap]:
    """Attempts that failed or were lost, of tasks that were not given up."""
    head, tail = _ends(AttemptRow.exit_reason)
    state = type_coerce(AttemptRow.state, String)
    rows = session.execute(
        select(
            TaskRow.kind, state, head, tail, AttemptRow.host, func.count(), func.max(AttemptRow.task_id)
        )
        .select_from(AttemptRow)
        .join(TaskRow, TaskRow.id == AttemptRow.task_id)
        .where(_BADLY, TaskRow.state != TaskState.FAILED, AttemptRow.exit_reason.not_in(INTERRUPTED))
        .group_by(TaskRow.kind, AttemptRow.state, head, tail, AttemptRow.host)
        .order_by(func.max(AttemptRow.id).desc())
        .limit(GROUPS)
    )  # fmt: skip
    found = [
        Mishap(
            what="retried",
            stage=kind,
            failure_class="node" if word == TaskState.LOST else None,
            head=first or "",
            tail=last or "",
            count=n,
            last_task=task_id,
            hosts=(host,) if host else (),
        )
        for kind, word, first, last, host, n, task_id in rows
    ]
    if len(found) < GROUPS:
        return found
    totals = session.execute(
        select(TaskRow.kind, state, func.count(), func.max(AttemptRow.task_id))
        .select_from(AttemptRow)
        .join(TaskRow, TaskRow.id == AttemptRow.task_id)
        .where(_BADLY, TaskRow.state != TaskState.FAILED, AttemptRow.exit_reason.not_in(INTERRUPTED))
        .group_by(TaskRow.kind, AttemptRow.state)
    )
    every = [
        _total("retried", kind, "node" if word == TaskState.LOST else None, n, task_id)
        for kind, word, n, task_id in totals
    ]
    return found + _rest(found, every)


def relabelled(session: Session) -> list[Mishap]:
    """Structures whose calculation broke and was tried again; those turned away in the end are left out."""
    turned_away = select(RejectionRow.id).where(RejectionRow.structure_id == EventRow.structure_id)
    cls = EventRow.data["failure_class"].as_string()
    head, tail = _ends(EventRow.message)
    broken = (
        select(
            cls.label("cls"), head.label("head"), tail.label("tail"), EventRow.task_id.label("task"),
            EventRow.structure_id.label("structure"), EventRow.id.label("event"),
        )
        .where(EventRow.kind == "label_failed", ~turned_away.exists())
        .subquery()
    )  # fmt: skip
    rows = session.execute(
        select(
            broken.c.cls, broken.c.head, broken.c.tail, func.count(), func.max(broken.c.task),
            func.max(broken.c.structure), func.count(broken.c.structure.distinct()),
        )
        .group_by(broken.c.cls, broken.c.head, broken.c.tail)
        .order_by(func.max(broken.c.event).desc())
        .limit(GROUPS)
    )  # fmt: skip
    found = [
        Mishap(
            what="retried",
            stage="label",
            failure_class=_word(word),
            head=first,
            tail=last,
            count=n,
            structures=several,
            last_task=task_id,
            last_structure=structure_id,
        )
        for word, first, last, n, task_id, structure_id, several in rows
    ]
    if len(found) < GROUPS:
        return found
    totals = session.execute(
        select(broken.c.cls, func.count(), func.max(broken.c.task)).group_by(broken.c.cls)
    )
    every = [_total("retried", "label", _word(word), n, task_id) for word, n, task_id in totals]
    return found + _rest(found, every)


def rejections(session: Session) -> list[Mishap]:
    """Structures that the labeler or its checks turned away."""
    rows = session.execute(
        select(
            RejectionRow.failure_class,
            RejectionRow.code,
            func.count(),
            func.max(RejectionRow.id),
            func.min(RejectionRow.message),
            func.max(RejectionRow.message),
        ).group_by(RejectionRow.failure_class, RejectionRow.code)
    ).all()
    newest = _rejected(session, [row[3] for row in rows])
    aside = _set_aside(session)
    found: list[Mishap] = []
    for cls, code, n, row_id, low, high in rows:
        structure_id, task_id, message = newest[row_id]
        one = Mishap(
            what="rejection",
            stage="label",
            failure_class=_word(cls),
            code=code,
            head=message,
            tail=message,
            count=n,
            structures=n,
            last_task=task_id,
            last_structure=structure_id,
            set_aside=None if 0 < aside[cls, code] < n else aside[cls, code] > 0,
        )
        found += [one] if low == high else _by_message(session, one)
    return found


def _set_aside(session: Session) -> Counter[tuple[str, str]]:
    """Rejections by class and code whose structures are set aside for a person."""
    rows = session.execute(
        select(RejectionRow.failure_class, RejectionRow.code, func.count())
        .join(StructureRow, StructureRow.id == RejectionRow.structure_id)
        # Naming every split lets the index on (split, state) answer.
        .where(StructureRow.split.in_(list(Split)), StructureRow.state == StructureState.QUARANTINED)
        .group_by(RejectionRow.failure_class, RejectionRow.code)
    )
    return Counter({(cls, code): n for cls, code, n in rows})


def _by_message(session: Session, one: Mishap) -> list[Mishap]:
    """The rejections of one code apart by their messages."""
    rows = session.execute(
        select(RejectionRow.message, func.count(), func.max(RejectionRow.id))
        .where(RejectionRow.failure_class == one.failure_class, RejectionRow.code == one.code)
        .group_by(RejectionRow.message)
        .order_by(func.max(RejectionRow.id).desc())
        .limit(GROUPS)
    ).all()
    newest = _rejected(session, [row[2] for row in rows])
    found = []
    for message, n, row_id in rows:
        structure_id, task_id, _ = newest[row_id]
        found.append(
            Mishap(
                what=one.what,
                stage=one.stage,
                failure_class=one.failure_class,
                code=one.code,
                head=message,
                tail=message,
                count=n,
                structures=n,
                last_task=task_id,
                last_structure=structure_id,
                set_aside=one.set_aside,
            )
        )
    return found + _rest(found, [replace(one, head=REST, tail=REST)])


def quarantines(session: Session) -> list[Mishap]:
    """Structures that were set aside without a rejection, such as seeds that could not be relaxed."""
    turned_away = select(RejectionRow.id).where(RejectionRow.structure_id == StructureRow.id)
    aside = (
        # Naming every split lets the index on (split, state) answer.
        StructureRow.split.in_(list(Split)),
        StructureRow.state == StructureState.QUARANTINED,
        ~turned_away.exists(),
    )
    rows = session.execute(
        select(StructureRow.origin, StructureRow.reason, func.count(), func.max(StructureRow.id))
        .where(*aside)
        .group_by(StructureRow.origin, StructureRow.reason)
        .order_by(func.max(StructureRow.id).desc())
        .limit(GROUPS)
    )
    found = [
        Mishap(
            what="quarantine",
            stage=_stage(origin),
            failure_class=None,
            head=reason or "",
            tail=reason or "",
            count=n,
            structures=n,
            last_structure=structure_id,
        )
        for origin, reason, n, structure_id in rows
    ]
    if len(found) < GROUPS:
        return found
    totals = session.execute(
        select(StructureRow.origin, func.count()).where(*aside).group_by(StructureRow.origin)
    )
    every = [
        replace(_total("quarantine", _stage(origin), None, n, None), structures=n) for origin, n in totals
    ]
    return found + _rest(found, every)


def _stage(origin: str) -> str:
    """The stage that a structure of an origin is in."""
    return "relax" if origin == "seed" else "label"


def _total(what: str, stage: str, failure_class: str | None, count: int, task_id: int | None) -> Mishap:
    return Mishap(
        what=what,
        stage=stage,
        failure_class=failure_class,
        head=REST,
        tail=REST,
        count=count,
        last_task=task_id,
    )


def _rest(found: Sequence[Mishap], totals: Sequence[Mishap]) -> list[Mishap]:
    """What the totals hold beyond what was read; those of one stage and class are one total."""
    counts: Counter[tuple[str | None, ...]] = Counter()
    for mishap in found:
        counts[_sort(mishap)] -= mishap.count
    kinds: dict[tuple[str | None, ...], Mishap] = {}
    for total in totals:
        counts[_sort(total)] += total.count
        kinds[_sort(total)] = total
    return [
        replace(total, count=counts[key], structures=counts[key] if total.structures else 0)
        for key, total in kinds.items()
        if counts[key] > 0
    ]


def _sort(mishap: Mishap) -> tuple[str | None, ...]:
    return mishap.what, mishap.stage, mishap.failure_class, mishap.code


@dataclass(frozen=True, kw_only=True)
class Happening:
    """An event of a kind that is asked for by name; ``time`` is in seconds since the epoch."""

    time: float
    epoch: int
    message: str
    data: dict[str, Any]
    task_id: int | None


def happenings(session: Session, kind: str, last: int = 200) -> list[Happening]:
    """The newest events of a kind, oldest first."""
    rows = session.execute(
        select(EventRow.time, EventRow.epoch, EventRow.message, EventRow.data, EventRow.task_id)
        .where(EventRow.kind == kind)
        .order_by(EventRow.id.desc())
        .limit(last)
    ).all()
    return [
        Happening(time=time, epoch=epoch, message=message, data=data, task_id=task_id)
        for time, epoch, message, data, task_id in rows[::-1]
    ]


def last_task_of(session: Session, structure_id: int) -> int | None:
    """The newest task that a structure was in, or the one that made it, or None."""
    asked = [
        session.scalar(select(func.max(EventRow.task_id)).where(EventRow.structure_id == structure_id)),
        session.scalar(
            select(func.max(AttemptRow.task_id))
            .join(RejectionRow, RejectionRow.attempt_id == AttemptRow.id)
            .where(RejectionRow.structure_id == structure_id)
        ),
        _naming(session, structure_id),
    ]
    known = [task_id for task_id in asked if task_id is not None]
    if known:
        return max(known)
    return session.scalar(select(StructureRow.task_id).where(StructureRow.id == structure_id))


def _naming(session: Session, structure_id: int) -> int | None:
    """The newest labelling or relaxation whose frozen inputs name a structure."""
    # The text narrows the search inside the database; the list itself decides.
    rows = session.execute(
        select(TaskRow.id, TaskRow.inputs)
        .where(TaskRow.kind.in_(("label", "relax")), cast(TaskRow.inputs, String).like(f"%{structure_id}%"))
        .order_by(TaskRow.id.desc())
    )
    return next((i for i, inputs in rows if structure_id in inputs.get("structure_ids", ())), None)


def rejections_of(session: Session, task_id: int, limit: int = 1000) -> list[dict[str, Any]]:
    """Structures that the attempts at a task turned away, in order."""
    own = select(AttemptRow.id).where(AttemptRow.task_id == task_id)
    rows = session.execute(
        select(RejectionRow.structure_id, RejectionRow.failure_class, RejectionRow.code, RejectionRow.message)
        .where(RejectionRow.attempt_id.in_(own))
        .order_by(RejectionRow.id)
        .limit(limit)
    )
    return [
        {"structure_id": i, "failure_class": _word(cls), "code": code, "message": message}
        for i, cls, code, message in rows
    ]


def structure_states(session: Session, ids: Sequence[int]) -> list[dict[str, Any]]:
    """State and reason of structures, in the order of their ids."""
    rows = session.execute(
        select(StructureRow.id, StructureRow.state, StructureRow.reason)
        .where(StructureRow.id.in_(ids))
        .order_by(StructureRow.id)
    )
    return [{"id": i, "state": str(state), "reason": reason} for i, state, reason in rows]


def _ends(column: Any) -> tuple[Any, Any]:
    """Beginning and end of a text: the cause stands in the first line, or in the last of a traceback."""
    # Numbers stand in the text of the query: as parameters PostgreSQL would not see that what is
    # selected is what is grouped by.
    return func.substr(column, _ONE, _HEAD), func.substr(column, func.length(column) - _TAIL)


def _inputs(session: Session, task_ids: Sequence[int]) -> dict[int, list[int]]:
    """Structures of tasks by their ids."""
    if not task_ids:
        return {}
    rows = session.execute(select(TaskRow.id, TaskRow.inputs).where(TaskRow.id.in_(task_ids)))
    return {task_id: list(inputs.get("structure_ids", ())) for task_id, inputs in rows}


def _rejected(session: Session, ids: Sequence[int]) -> dict[int, tuple[int, int | None, str]]:
    """Structure, task and message of rejections by their ids."""
    if not ids:
        return {}
    rows = session.execute(
        select(RejectionRow.id, RejectionRow.structure_id, AttemptRow.task_id, RejectionRow.message)
        .join(AttemptRow, AttemptRow.id == RejectionRow.attempt_id, isouter=True)
        .where(RejectionRow.id.in_(ids))
    )
    return {row_id: (structure_id, task_id, message) for row_id, structure_id, task_id, message in rows}


def _word(value: Any) -> str | None:
    return None if value is None else str(value)

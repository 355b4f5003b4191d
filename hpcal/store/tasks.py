"""Writing tasks and their attempts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import bindparam, func, select

from hpcal.core.errors import FailureClass
from hpcal.store import queries, transitions
from hpcal.store.session import Session, ask
from hpcal.store.tables import AttemptRow, EventRow, TaskRow
from hpcal.store.transitions import OUTSTANDING, TaskState


def add_task(
    session: Session, kind: str, pool: str, inputs: Mapping[str, Any], *, units: int, priority: int = 0
) -> TaskRow:
    """A new task with frozen inputs (JSON values)."""
    row = TaskRow(
        kind=kind,
        pool=pool,
        state=TaskState.QUEUED,
        inputs=dict(inputs),
        units=units,
        priority=priority,
        created=time.time(),
    )
    session.add(row)
    session.flush()
    return row


_NUMBER: Final = select(func.count()).where(AttemptRow.task_id == bindparam("task_id"))


def dispatch(session: Session, task: TaskRow, *, epoch: int, executor: str) -> AttemptRow:
    """The next attempt at a queued task; it has its id once the session is flushed."""
    _move(task, TaskState.DISPATCHED)
    number = ask(session, _NUMBER, {"task_id": task.id}).scalar_one()
    attempt = AttemptRow(
        task_id=task.id,
        number=number + 1,
        epoch=epoch,
        executor=executor,
        state=TaskState.DISPATCHED,
        dispatched=time.time(),
    )
    session.add(attempt)
    return attempt


def end_attempt(attempt: AttemptRow, state: TaskState, reason: str, **columns: Any) -> None:
    """How an attempt ended; further columns (host, pid, start, end, qm_calls …) by name."""
    attempt.state = state
    attempt.exit_reason = reason
    for name, value in columns.items():
        setattr(attempt, name, value)


def finish(task: TaskRow, seconds: float | None, *, epoch: int) -> None:
    """The task is done, as the controller of an epoch says."""
    _move(task, TaskState.DONE)
    task.finished, task.epoch = time.time(), epoch
    task.seconds = seconds


def fail(task: TaskRow, failure_class: FailureClass, error: str, *, epoch: int) -> None:
    """The task has failed for good, as the controller of an epoch says."""
    _move(task, TaskState.FAILED)
    task.finished, task.epoch = time.time(), epoch
    task.failure_class = failure_class
    task.error = error


def lose(task: TaskRow) -> None:
    """The attempt is gone; the task may be tried again."""
    _move(task, TaskState.LOST)


def requeue(task: TaskRow) -> None:
    """A lost task waits for its next attempt."""
    _move(task, TaskState.QUEUED)


def _move(task: TaskRow, new: TaskState) -> None:
    transitions.check(TaskState, task.state, new, f"task {task.id}")
    task.state = new


_UNFINISHED: Final = (
    select(TaskRow)
    .where(queries.OUTSTANDING, TaskRow.state.in_(bindparam("states", expanding=True)))
    .order_by(TaskRow.id)
)


def unfinished(session: Session, *states: TaskState) -> list[TaskRow]:
    """Unfinished tasks in the states (or all of them), in the order of their making."""
    return list(session.scalars(_UNFINISHED, {"states": states or tuple(OUTSTANDING)}))


def open_attempts(session: Session) -> list[AttemptRow]:
    """Attempts that have not ended as far as the store knows."""
    query = select(AttemptRow).where(queries.OPEN).order_by(AttemptRow.id)
    return list(session.scalars(query))


def open_attempts_at(session: Session, task_id: int) -> list[AttemptRow]:
    """Attempts at a task that have not ended as far as the store knows."""
    return list(session.scalars(select(AttemptRow).where(queries.OPEN, AttemptRow.task_id == task_id)))


def first_dispatch(session: Session, task_id: int, epoch: int) -> float | None:
    """When a controller first sent a task out, seconds since the epoch, or None."""
    query = select(func.min(AttemptRow.dispatched))
    return session.scalar(query.where(AttemptRow.task_id == task_id, AttemptRow.epoch == epoch))


def seconds_worked(session: Session, task_id: int) -> float:
    """Seconds that workers were at a task, over all of its attempts."""
    query = select(func.sum(AttemptRow.end - AttemptRow.start)).where(AttemptRow.task_id == task_id)
    return float(session.scalar(query) or 0.0)


def has_event(session: Session, task_id: int, kind: str) -> bool:
    """Whether an event of a kind is recorded for a task."""
    query = select(EventRow.id).where(EventRow.task_id == task_id, EventRow.kind == kind).limit(1)
    session.flush()
    return session.scalar(query) is not None


_INPUTS: Final = select(TaskRow.inputs).where(TaskRow.kind == bindparam("kind")).order_by(TaskRow.id)


def inputs_of(session: Session, kind: str) -> Sequence[Mapping[str, Any]]:
    """Inputs of all tasks of a kind, in the order of their making."""
    return list(ask(session, _INPUTS, {"kind": kind}).scalars())


_QUEUED: Final = select(TaskRow.id).where(queries.OUTSTANDING, TaskRow.state == TaskState.QUEUED).limit(1)


def any_queued(session: Session) -> bool:
    """Whether a task waits to be dispatched."""
    return ask(session, _QUEUED).scalar() is not None


def ended(session: Session) -> int:
    """How many tasks have come to their end, done or failed."""
    outstanding = select(func.count()).select_from(TaskRow).where(queries.OUTSTANDING)
    return (session.scalar(select(func.max(TaskRow.id))) or 0) - (session.scalar(outstanding) or 0)

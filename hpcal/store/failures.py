"""What the answers to failures ask of the store: attempts of a host, what stopped a stage, restorations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import bindparam, func, select, update

from hpcal.core.errors import FailureClass
from hpcal.store import queries
from hpcal.store.session import Session, ask
from hpcal.store.structures import chunks
from hpcal.store.tables import (
    AttemptRow,
    EnsembleRow,
    EventRow,
    LabelRow,
    ModelRow,
    RejectionRow,
    ShardRow,
    StructureRow,
    TaskRow,
    WalkerRow,
)
from hpcal.store.transitions import EnsembleState, StructureState, TaskState

NODE_PREFIX = f"{FailureClass.NODE}: "
"""How the reason of an attempt begins whose node was at fault."""
HOST_ATTEMPTS = 32
"""Newest attempts of a host that are looked at."""


_WITH_TASK: Final = select(AttemptRow, TaskRow).join(TaskRow, TaskRow.id == AttemptRow.task_id)
_BY_ID: Final = _WITH_TASK.where(AttemptRow.id.in_(bindparam("ids", expanding=True)))


def find_attempts(session: Session, ids: Sequence[int]) -> dict[int, tuple[AttemptRow, TaskRow]]:
    """Attempts by id, each with its task; those that the store does not know are left out."""
    found: dict[int, tuple[AttemptRow, TaskRow]] = {}
    for part in chunks(ids):
        rows = session.execute(_BY_ID, {"ids": part})
        found.update({attempt.id: (attempt, task) for attempt, task in rows})
    return found


_BY_NUMBER: Final = _WITH_TASK.where(
    AttemptRow.task_id == bindparam("task_id"), AttemptRow.number == bindparam("number")
)


def numbered_attempt(session: Session, task_id: int, number: int) -> tuple[AttemptRow, TaskRow] | None:
    """The n-th attempt at a task, or None."""
    found = session.execute(_BY_NUMBER, {"task_id": task_id, "number": number}).first()
    return None if found is None else (found[0], found[1])


@dataclass(frozen=True, kw_only=True)
class HostAttempt:
    """How one attempt on a host ended.

    Attributes:
        task_id: its task.
        dispatched: when it was sent out, seconds since the epoch.
        recorded: when its end was recorded, by the clock of the controller.
        node: whether the node was at fault.
        reason: what happened.
        structures: that its task was to label or relax.
    """

    task_id: int
    dispatched: float
    recorded: float
    node: bool
    reason: str
    structures: frozenset[int] = frozenset()


_ON_HOST: Final = (
    _WITH_TASK.where(
        AttemptRow.epoch == bindparam("epoch"),
        AttemptRow.host == bindparam("host"),
        AttemptRow.state.in_((TaskState.DONE, TaskState.FAILED, TaskState.LOST)),
    )
    .order_by(AttemptRow.id.desc())
    .limit(HOST_ATTEMPTS)
)


def attempts_on(session: Session, host: str, epoch: int) -> list[HostAttempt]:
    """The newest attempts on a host that ended under an epoch; interrupted ones say nothing of it."""
    rows = session.execute(_ON_HOST, {"epoch": epoch, "host": host}).all()
    ends = _recorded(session, [task for _, task in rows])
    found = []
    for row, task in rows:
        reason = row.exit_reason or ""
        node = reason.startswith(NODE_PREFIX)
        if row.state is TaskState.LOST and not node:
            continue
        found.append(
            HostAttempt(
                task_id=row.task_id,
                dispatched=row.dispatched,
                recorded=min((t for t in ends[task.id] if t >= row.dispatched), default=row.dispatched),
                node=node,
                reason=reason.removeprefix(NODE_PREFIX),
                structures=frozenset(task.inputs.get("structure_ids", ())),
            )
        )
    return found


_ENDS: Final = select(EventRow.task_id, EventRow.time).where(
    EventRow.task_id.in_(bindparam("ids", expanding=True)), EventRow.kind.in_(("lost", "failed", "enlarged"))
)


def _recorded(session: Session, tasks: Sequence[TaskRow]) -> dict[int, list[float]]:
    """When ends of attempts at tasks were recorded, by the clock of the controller.

    An attempt has the first of these times after it was sent out: a task has one attempt at a time.
    """
    times = {task.id: [] if task.finished is None else [task.finished] for task in tasks}
    for task_id, time in ask(session, _ENDS, {"ids": list(times)}):
        if task_id is not None:
            times[task_id].append(time)
    return times


@dataclass(frozen=True, kw_only=True)
class Broken:
    """How often a structure failed.

    Attributes:
        failures: failures that were not the node's.
        losses: failures of nodes.
    """

    failures: int
    losses: int


def broken(session: Session, structure_id: int) -> Broken:
    """How often the label or the relaxation of a structure broke; nodes apart."""
    session.flush()
    found = session.scalars(
        select(EventRow.data).where(
            EventRow.structure_id == structure_id, EventRow.kind.in_(("label_failed", "relax_failed"))
        )
    )
    by_node = [data.get("failure_class") == FailureClass.NODE for data in found]
    return Broken(failures=by_node.count(False), losses=by_node.count(True))


_BUG: Final = (
    select(TaskRow)
    .where(
        TaskRow.kind == bindparam("kind"),
        TaskRow.state == TaskState.FAILED,
        TaskRow.epoch == bindparam("epoch"),
        TaskRow.failure_class == FailureClass.BUG,
    )
    .order_by(TaskRow.id.desc())
    .limit(1)
)


def stopped_by_bug(session: Session, kind: str, epoch: int) -> TaskRow | None:
    """The newest task of a kind that was given up under an epoch because of a bug."""
    return session.scalar(_BUG, {"kind": kind, "epoch": epoch})


def ever_done(session: Session, kind: str) -> bool:
    """Whether a task of a kind was ever done."""
    query = select(TaskRow.id).where(TaskRow.kind == kind, TaskRow.state == TaskState.DONE).limit(1)
    session.flush()
    return session.scalar(query) is not None


def last_log(session: Session, task_id: int) -> str | None:
    """Log file of the newest attempt at a task, relative to the campaign's folder."""
    return session.scalar(
        select(AttemptRow.log)
        .where(AttemptRow.task_id == task_id)
        .order_by(AttemptRow.number.desc())
        .limit(1)
    )


@dataclass(frozen=True, kw_only=True)
class TurnedAway:
    """Structures that got no label, and the newest reason."""

    count: int
    example: str


_ANY_LABEL: Final = select(LabelRow.id).limit(1)
_ANY_STRUCTURE: Final = select(StructureRow.id).where(queries.UNFINISHED).limit(1)
_ANY_TASK: Final = select(TaskRow.id).where(queries.OUTSTANDING).limit(1)


def all_turned_away(session: Session) -> TurnedAway | None:
    """What was turned away if there is no label at all and nothing that could still become one."""
    if any(ask(session, query).first() for query in (_ANY_LABEL, _ANY_STRUCTURE, _ANY_TASK)):
        return None
    count, newest = session.execute(select(func.count(), func.max(RejectionRow.id))).one()
    if not count:
        return None
    example = session.scalar(select(RejectionRow.message).where(RejectionRow.id == newest))
    return TurnedAway(count=int(count), example=str(example))


_SEEDS: Final = select(StructureRow.state, StructureRow.reason).where(
    queries.START, StructureRow.origin == "seed"
)


def seeds_set_aside(session: Session) -> TurnedAway | None:
    """The seeds, if every one of them was set aside."""
    seeds = ask(session, _SEEDS).all()
    if not seeds or any(state is not StructureState.QUARANTINED for state, _ in seeds):
        return None
    return TurnedAway(count=len(seeds), example=seeds[-1][1] or "no reason was recorded")


def told_of(session: Session, structure_id: int, attempt_id: int) -> bool:
    """Whether it is recorded already that the label of an attempt was not used for a structure."""
    found = session.scalars(
        select(EventRow.data).where(
            EventRow.kind.in_(("duplicate_label", "late_label")), EventRow.structure_id == structure_id
        )
    )
    return any(attempt_id in data.get("attempts", ()) for data in found)


def shard_rows(session: Session) -> list[ShardRow]:
    """All shards, oldest first."""
    return list(session.scalars(select(ShardRow).order_by(ShardRow.level_of_theory_id, ShardRow.first_seq)))


USED = (EnsembleState.TRAINED, EnsembleState.PROMOTED, EnsembleState.REFUSED)
"""Ensembles that may still be loaded: to sample, to score, or to be evaluated on new audit labels."""


def used_models(session: Session) -> list[ModelRow]:
    """Trained members of all ensembles that may still be loaded, oldest first."""
    query = (
        select(ModelRow)
        .join(EnsembleRow, EnsembleRow.id == ModelRow.ensemble_id)
        .where(EnsembleRow.state.in_(USED), ModelRow.path.is_not(None))
        .order_by(ModelRow.id)
    )
    return list(session.scalars(query))


_TRAININGS: Final = select(TaskRow).where(queries.OUTSTANDING, TaskRow.kind == "train").order_by(TaskRow.id)


def outstanding_trainings(session: Session) -> list[TaskRow]:
    """Training tasks that have not come to their end."""
    return list(session.scalars(_TRAININGS))


_ENSEMBLE_STATES: Final = select(EnsembleRow.id, EnsembleRow.state).where(
    EnsembleRow.id.in_(bindparam("ids", expanding=True))
)


def ensemble_states(session: Session, ids: Sequence[int]) -> dict[int, EnsembleState]:
    """State of each ensemble."""
    return dict(ask(session, _ENSEMBLE_STATES, {"ids": list(ids)}).all())


def repin(session: Session, entries: Sequence[int], old: int, new: int | None) -> None:
    """Live walkers of some samplers that were bound to an ensemble go on with another."""
    alive = select(WalkerRow.id).where(
        queries.ALIVE, WalkerRow.entry.in_(entries), WalkerRow.ensemble_id == old
    )
    ids = list(session.scalars(alive))
    for start in range(0, len(ids), 500):
        session.execute(
            update(WalkerRow).where(WalkerRow.id.in_(ids[start : start + 500])).values(ensemble_id=new)
        )

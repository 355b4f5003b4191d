"""What the planner asks of the store: heads of queues and counts, each behind a named index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from sqlalchemy import ColumnElement, ScalarSelect, Select, bindparam, case, func, select, text
from sqlalchemy.orm import aliased

from hpcal.core.walker import Split, WalkerEnd
from hpcal.store import tables
from hpcal.store.session import Session, ask
from hpcal.store.tables import (
    AttemptRow,
    DatasetRow,
    EnsembleRow,
    LabelRow,
    RejectionRow,
    ScoreRow,
    SegmentRow,
    StructureRow,
    TaskRow,
    WalkerRow,
)
from hpcal.store.transitions import EnsembleState, StructureState, TaskState, WalkerState

BOOTSTRAP_ORIGINS = ("minimum", "saddle", "given", "bootstrap")
LEARNING_ORIGINS = (*BOOTSTRAP_ORIGINS, "sample", "file", tables.STATE)
"""Origins of structures that may be learned from."""
AUDIT_ORIGINS = ("audit", tables.AUDIT_STATE)
"""Origins of structures that audit."""
LEARNING = (Split.TRAIN, Split.VALIDATION)
AUDITING = (Split.CALIBRATION, Split.TEST)
OWN = (*LEARNING, *AUDITING)
"""Splits of the campaign's own structures: all but the fixed reference set."""
UNFINISHED = text(f"structure.{tables.UNFINISHED}")
START = text(f"structure.{tables.START}")
ALIVE = text(f"walker.{tables.ALIVE}")
OUTSTANDING = text(f"task.{tables.OUTSTANDING}")
EVALUATION = text(f"score.{tables.EVALUATION}")
FAILED = text(f"task.{tables.FAILED}")
OPEN = text(f"attempt.{tables.OPEN}")
BROKEN = tuple(
    end for end in WalkerEnd if end not in (WalkerEnd.QUIET, WalkerEnd.FULL_TIME, WalkerEnd.CROSSED)
)


_QUEUE: Final = (
    select(StructureRow.id)
    .where(
        UNFINISHED,
        StructureRow.state == bindparam("state"),
        StructureRow.origin.in_(bindparam("origins", expanding=True)),
    )
    .order_by(StructureRow.priority.desc(), StructureRow.id)
    .limit(bindparam("most"))
)


def queue(session: Session, state: StructureState, origins: Sequence[str], limit: int) -> tuple[int, ...]:
    """Head of a queue of structures: highest priority first, then oldest."""
    return tuple(ask(session, _QUEUE, {"state": state, "origins": origins, "most": limit}).scalars())


_UNFINISHED: Final = (
    select(StructureRow.state, StructureRow.origin, func.count())
    .where(UNFINISHED)
    .group_by(StructureRow.state, StructureRow.origin)
)


@dataclass(frozen=True)
class Unfinished:
    """Structures that something still happens to, counted by (state, origin)."""

    counts: Mapping[tuple[StructureState, str], int]

    def count(self, *states: StructureState, origins: Sequence[str] | None = None) -> int:
        """How many are in some states, of some origins or of any."""
        return sum(
            n
            for (state, origin), n in self.counts.items()
            if state in states and (origins is None or origin in origins)
        )


def unfinished(session: Session) -> Unfinished:
    """Counts of unfinished structures."""
    return Unfinished({(state, origin): n for state, origin, n in ask(session, _UNFINISHED)})


def scored_by(session: Session, generation: int, limit: int, *, stale: bool) -> tuple[int, ...]:
    """Sampled candidates scored by the given generation; or stale ones, waiting ones included."""
    states = (StructureState.CANDIDATE, StructureState.WAITING) if stale else (StructureState.CANDIDATE,)
    scored = StructureRow.scored_generation
    query = (
        select(StructureRow.id)
        .where(
            UNFINISHED,
            StructureRow.state.in_(states),
            StructureRow.origin == "sample",
            scored < generation if stale else scored >= generation,
        )
        .order_by(StructureRow.id)
        .limit(limit)
    )
    return tuple(ask(session, query).scalars())


_LAST_COMMIT: Final = select(func.max(LabelRow.seq))


def last_commit(session: Session) -> int:
    """Commit number of the newest label: how many were ever accepted."""
    return ask(session, _LAST_COMMIT).scalar() or 0


def _last_of(split: Split, *within: ColumnElement[bool]) -> ScalarSelect[int | None]:
    """Number of the last label of a split, one look into an index."""
    last = select(LabelRow.split_seq).where(LabelRow.split == split, LabelRow.seq.is_not(None), *within)
    return last.order_by(LabelRow.seq.desc()).limit(1).scalar_subquery()


_TOTALS: Final = select(*(_last_of(split) for split in Split))
_TOTALS_UP_TO: Final = select(*(_last_of(split, LabelRow.seq <= bindparam("up_to")) for split in Split))


def label_totals(session: Session, up_to: int | None = None) -> dict[Split, int]:
    """Accepted labels of each split, in all or up to a commit number."""
    if up_to is None:
        row = ask(session, _TOTALS).one()
    else:
        row = ask(session, _TOTALS_UP_TO, {"up_to": up_to}).one()
    return {split: n or 0 for split, n in zip(Split, row, strict=True)}


def labels_after(session: Session, seq: int, splits: Sequence[Split]) -> int:
    """Accepted labels of the splits with a higher commit number."""
    total = label_totals(session)
    before = label_totals(session, seq) if seq else dict.fromkeys(total, 0)
    return sum(total[split] - before[split] for split in splits)


def commit_numbers(session: Session, splits: Sequence[str]) -> dict[str, list[int]]:
    """Numbers for new labels, in their order: ``seq`` among all, ``split_seq`` within their splits."""
    first = last_commit(session) + 1
    last = {str(split): n for split, n in label_totals(session).items()}
    within = []
    for split in splits:
        last[split] += 1
        within.append(last[split])
    return {"seq": list(range(first, first + len(splits))), "split_seq": within}


@dataclass(frozen=True, kw_only=True)
class Outstanding:
    """Unfinished tasks of one kind in one pool."""

    kind: str
    pool: str
    count: int


_OUTSTANDING: Final = (
    select(TaskRow.kind, TaskRow.pool, func.count()).where(OUTSTANDING).group_by(TaskRow.kind, TaskRow.pool)
)


def outstanding(session: Session) -> list[Outstanding]:
    """Unfinished tasks by kind and pool."""
    return [Outstanding(kind=kind, pool=pool, count=n) for kind, pool, n in ask(session, _OUTSTANDING)]


_MEASURED: Final = (
    select(TaskRow.seconds, TaskRow.units)
    .where(TaskRow.kind == bindparam("kind"), TaskRow.state == TaskState.DONE, TaskRow.seconds.is_not(None))
    .order_by(TaskRow.epoch.desc(), TaskRow.id.desc())
    .limit(bindparam("last"))
)


def seconds_per_unit(session: Session, kinds: Sequence[str], last: int = 20) -> dict[str, float]:
    """Mean seconds per unit of work over the last tasks of each kind."""
    measured = {}
    for kind in kinds:
        rows = ask(session, _MEASURED, {"kind": kind, "last": last}).all()
        seconds, units = sum(r[0] or 0.0 for r in rows), sum(r[1] for r in rows)
        if units and seconds:
            measured[kind] = seconds / units
    return measured


_NEWEST: Final = (
    select(EnsembleRow, DatasetRow.last_seq)
    .join(DatasetRow, DatasetRow.id == EnsembleRow.dataset_id)
    .where(EnsembleRow.state.in_(bindparam("states", expanding=True)))
    .order_by(EnsembleRow.generation.desc(), EnsembleRow.revision.desc())
    .limit(1)
)


def newest_ensemble(session: Session, *states: EnsembleState) -> tuple[EnsembleRow, int] | None:
    """The ensemble of the highest generation in one of the states, with its data set's last commit.

    Args:
        states: all of them without any.
    """
    found = session.execute(_NEWEST, {"states": states or tuple(EnsembleState)}).first()
    return None if found is None else (found[0], found[1])


_ENDED: Final = (
    select(WalkerRow.end_reason, func.count())
    .where(
        WalkerRow.generation == bindparam("generation"),
        WalkerRow.state == WalkerState.ENDED,
        WalkerRow.split.in_(LEARNING),
    )
    .group_by(WalkerRow.end_reason)
)


def walker_ends(session: Session, generation: int) -> tuple[int, int]:
    """(ended, crossed) learning walkers born under a generation; broken ones say nothing and are left out."""
    rows = ask(session, _ENDED, {"generation": generation}).all()
    ends = {reason: int(n) for reason, n in rows if reason not in BROKEN}
    return sum(ends.values()), ends.get(WalkerEnd.CROSSED, 0)


_IDLE: Final = (
    select(WalkerRow.id)
    .where(ALIVE, WalkerRow.entry == bindparam("entry"), WalkerRow.state == WalkerState.IDLE)
    .order_by(WalkerRow.id)
    .limit(bindparam("most"))
)


def idle_walkers(session: Session, entry: int, limit: int) -> tuple[int, ...]:
    """Head of the queue of walkers of one sampler; the oldest first."""
    return tuple(ask(session, _IDLE, {"entry": entry, "most": limit}).scalars())


_ALIVE: Final = (
    select(WalkerRow.entry, WalkerRow.state, WalkerRow.split, func.count())
    .where(ALIVE)
    .group_by(WalkerRow.entry, WalkerRow.state, WalkerRow.split)
)


@dataclass(frozen=True)
class Walkers:
    """Walkers that have not ended, counted by (entry of ``sampling``, state, split)."""

    counts: Mapping[tuple[int, WalkerState, Split], int]

    def idle(self, entry: int) -> int:
        """Those of one sampler that wait for a task."""
        return sum(n for (e, state, _), n in self.counts.items() if e == entry and state is WalkerState.IDLE)

    def alive(self, entry: int, splits: Sequence[Split]) -> int:
        """Idle and claimed ones of one sampler in some splits."""
        return sum(n for (e, _, split), n in self.counts.items() if e == entry and split in splits)


def alive_walkers(session: Session) -> Walkers:
    """Counts of walkers that have not ended."""
    found = ask(session, _ALIVE)
    return Walkers({(entry, state, split): n for entry, state, split, n in found})


_FIRST_ATTEMPT: Final = select(func.min(AttemptRow.id)).where(AttemptRow.epoch == bindparam("epoch"))
_LAST_ENDS: Final = (
    select(SegmentRow.end_reason)
    .where(SegmentRow.end_reason.is_not(None), SegmentRow.attempt_id >= bindparam("first"))
    .order_by(SegmentRow.attempt_id.desc(), SegmentRow.id.desc())
    .limit(bindparam("last"))
)


def last_ends(session: Session, epoch: int, last: int) -> list[WalkerEnd | None]:
    """How the walkers that ended last under an epoch ended."""
    first = ask(session, _FIRST_ATTEMPT, {"epoch": epoch}).scalar()
    if first is None:
        return []
    return list(ask(session, _LAST_ENDS, {"first": first, "last": last}).scalars())


def unevaluated(
    session: Session, ensemble_id: int, splits: Sequence[Split], limit: int, *, level_id: int
) -> tuple[int, ...]:
    """Structures of the splits with a label at a level that an ensemble was not evaluated on."""
    seen = select(ScoreRow.structure_id).where(
        ScoreRow.ensemble_id == ensemble_id, EVALUATION, ScoreRow.split.in_(splits)
    )
    rows = session.scalars(
        select(LabelRow.structure_id)
        .where(
            LabelRow.split.in_(splits),
            LabelRow.level_of_theory_id == level_id,
            LabelRow.retracted.is_(None),
            LabelRow.structure_id.not_in(seen),
        )
        .order_by(LabelRow.structure_id)
        .limit(limit)
    )
    return tuple(rows)


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Errors of an ensemble on a group of labelled structures; sums let groups be joined."""

    count: int
    energy_rmse: float
    force_rmse: float


def errors(
    session: Session, ensemble_id: int, splits: Sequence[Split], *, like: int | None = None
) -> Errors | None:
    """RMSE of energy (eV/atom) and force (eV/Å, all components) of an ensemble, or None without any.

    Args:
        like: only structures that this other ensemble was evaluated on too.
    """
    n = ScoreRow.n_atoms
    query = select(
        func.count(),
        func.avg((ScoreRow.energy_error / n) * (ScoreRow.energy_error / n)),
        func.sum(n * ScoreRow.force_rmse * ScoreRow.force_rmse)
        / func.sum(case((ScoreRow.force_rmse.is_not(None), n))),
    ).where(
        ScoreRow.ensemble_id == ensemble_id,
        EVALUATION,
        ScoreRow.split.in_(splits),
        ScoreRow.structure_id.not_in(select(LabelRow.structure_id).where(LabelRow.retracted.is_not(None))),
    )
    if like is not None:
        query = query.where(ScoreRow.structure_id.in_(_evaluated_by(like, splits)))
    number, energy, force = session.execute(query).one()
    if not number or energy is None or force is None:
        return None
    return Errors(count=number, energy_rmse=energy**0.5, force_rmse=force**0.5)


def _evaluated_by(ensemble_id: int, splits: Sequence[Split]) -> Select[int]:
    other = aliased(ScoreRow, name="other")
    return select(other.structure_id).where(
        other.ensemble_id == ensemble_id, text(f"other.{tables.EVALUATION}"), other.split.in_(splits)
    )


def evaluated(session: Session, ensemble_id: int, splits: Sequence[Split]) -> list[ScoreRow]:
    """Evaluations of an ensemble on the splits, in the order of the structures."""
    return list(
        session.scalars(
            select(ScoreRow)
            .where(ScoreRow.ensemble_id == ensemble_id, EVALUATION, ScoreRow.split.in_(splits))
            .order_by(ScoreRow.structure_id)
        )
    )


def ensembles(session: Session, *states: EnsembleState) -> list[EnsembleRow]:
    """Ensembles in the states, newest first."""
    return list(
        session.scalars(
            select(EnsembleRow)
            .where(EnsembleRow.state.in_(states))
            .order_by(EnsembleRow.generation.desc(), EnsembleRow.revision.desc())
        )
    )


_FAILED_KINDS: Final = select(TaskRow.kind).where(FAILED, TaskRow.epoch == bindparam("epoch")).distinct()


def failed_kinds(session: Session, epoch: int) -> set[str]:
    """Kinds of tasks of which any was given up under an epoch; mostly none."""
    return set(ask(session, _FAILED_KINDS, {"epoch": epoch}).scalars())


_LAST_STATES: Final = (
    select(TaskRow.id, TaskRow.state, TaskRow.error)
    .where(
        TaskRow.kind == bindparam("kind"),
        TaskRow.state == bindparam("wanted"),
        TaskRow.epoch == bindparam("epoch"),
    )
    .order_by(TaskRow.id.desc())
    .limit(bindparam("last"))
)


def last_task_states(
    session: Session, kind: str, epoch: int, last: int
) -> list[tuple[TaskState, str | None]]:
    """State and error of the newest tasks of a kind that were finished under an epoch."""
    found = [
        (task_id, state, error)
        for wanted in (TaskState.DONE, TaskState.FAILED)
        for task_id, state, error in ask(
            session, _LAST_STATES, {"kind": kind, "wanted": wanted, "epoch": epoch, "last": last}
        )
    ]
    return [(state, error) for _, state, error in sorted(found, key=lambda row: -row[0])[:last]]


_LAST_LABELLED: Final = (
    select(LabelRow.attempt_id)
    .where(LabelRow.seq.is_not(None), LabelRow.attempt_id.is_not(None))
    .order_by(LabelRow.seq.desc())
    .limit(1)
)
_REJECTED_SINCE: Final = (
    select(func.count(), func.max(RejectionRow.message))
    .join(AttemptRow, AttemptRow.id == RejectionRow.attempt_id)
    .where(RejectionRow.attempt_id > bindparam("last"), AttemptRow.epoch == bindparam("epoch"))
)


def rejected_since_label(session: Session, epoch: int) -> tuple[int, str]:
    """How many structures an epoch turned away since the last label, and one of the reasons."""
    last = ask(session, _LAST_LABELLED).scalar() or 0
    found = ask(session, _REJECTED_SINCE, {"last": last, "epoch": epoch}).one()
    return int(found[0]), str(found[1] or "")


def audit_waiting(session: Session, *, up_to: int) -> tuple[int, ...]:
    """Audit frames that wait for a label and arose under generations up to the given one."""
    rows = session.scalars(
        select(StructureRow.id)
        .where(
            UNFINISHED,
            StructureRow.state == StructureState.WAITING,
            StructureRow.origin == "audit",  # its further states go with it
            StructureRow.generation <= up_to,
        )
        .order_by(StructureRow.id)
    )
    return tuple(rows)


def failed_in_a_row(session: Session) -> int:
    """How many of the newest ensembles failed in training."""
    states = session.scalars(select(EnsembleRow.state).order_by(EnsembleRow.id.desc()).limit(10))
    return len(list(takewhile(lambda state: state is EnsembleState.FAILED, states)))


def labelled_ids(session: Session, splits: Sequence[Split], *, after: int) -> list[int]:
    """Structures of the splits whose label has a higher commit number, in that order."""
    query = select(LabelRow.structure_id).where(LabelRow.split.in_(splits), LabelRow.seq > after)
    return list(session.scalars(query.order_by(LabelRow.seq)))

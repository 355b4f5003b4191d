"""Read-only questions to the store about a whole campaign: counts and records.

Counting is left to the database and follows its indexes, so that a status does not become slower
than the history is long. Nothing here writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session, aliased

from hpcal.core.errors import InputError
from hpcal.store import queries
from hpcal.store.labels import HELD
from hpcal.store.tables import (
    AttemptRow,
    Campaign,
    DatasetRow,
    EnsembleRow,
    EventRow,
    LabelRow,
    LevelOfTheoryRow,
    ModelRow,
    RejectionRow,
    SelectionRow,
    StructureRow,
    TaskRow,
    WalkerRow,
)
from hpcal.store.transitions import EnsembleState, StructureState, TaskState

Counts = dict[tuple[Any, ...], int]
"""Number of rows for each combination of the grouped columns; words as plain strings."""

BLOCKS_WAIT: Final = "blocks_wait"
"""Kind of the events that tell why batch jobs have not started."""
ERROR_LENGTH: Final = 400
"""Characters of an error that are read for grouping failures by cause."""


@dataclass(frozen=True, kw_only=True)
class CampaignRecord:
    """The campaign itself; ``level`` is the record of its level of theory, or None."""

    name: str
    run_id: str
    hpcal_version: str
    created: float
    state: str
    stop_reason: str | None
    spec: dict[str, Any]
    site: dict[str, Any]
    level: dict[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class EnsembleRecord:
    """One ensemble with its data set.

    Attributes:
        labels: accepted labels with a commit number up to the data set's, audit included.
        members: how many members are there.
        planned: how many it was to have.
        missing: why each member is missing that the ensemble went on without, by its number.
        errors: its error summary by split, or None where none was kept.
        closed: when it was decided on, or made where it was not; seconds since the epoch.
    """

    id: int
    generation: int
    revision: int
    state: str
    kind: str
    dataset_id: int
    labels: int
    n_train: int
    n_validation: int
    created: float
    closed: float
    decision: str | None
    metric: str
    threshold: float | None
    bias_width: float | None
    calibration: dict[str, Any] | None
    members: int
    planned: int
    missing: dict[int, str]
    errors: dict[str, Any] | None

    @property
    def trained(self) -> bool:
        """Whether training came to an end with an ensemble."""
        return self.state not in (EnsembleState.TRAINING, EnsembleState.FAILED)

    @property
    def promoted(self) -> bool:
        """Whether it took over."""
        return self.state == EnsembleState.PROMOTED

    @property
    def size(self) -> str:
        """Its members, such as ``6 of 8``, or ``8`` where all are there."""
        return str(self.members) if self.members == self.planned else f"{self.members} of {self.planned}"

    @property
    def name(self) -> str:
        """Generation, with the revision where there is one."""
        return f"{self.generation}.{self.revision}" if self.revision else str(self.generation)


@dataclass(frozen=True, kw_only=True)
class RejectionCount:
    """Structures turned away for one reason, with the message of one of them."""

    failure_class: str
    code: str
    count: int
    example: str


def campaign(session: Session) -> CampaignRecord:
    """The campaign. Raises InputError for a store in which none was begun."""
    row = session.scalars(select(Campaign)).one_or_none()
    if row is None:
        raise InputError("this store holds no campaign yet; start it with `hpcal run`")
    level = session.get(LevelOfTheoryRow, row.level_of_theory_id) if row.level_of_theory_id else None
    return CampaignRecord(
        name=row.name,
        run_id=row.run_id,
        hpcal_version=row.hpcal_version,
        created=row.created,
        state=str(row.state),
        stop_reason=row.stop_reason,
        spec=row.spec,
        site=row.site,
        level=None if level is None else level.record,
    )


def structure_counts(session: Session) -> Counts:
    """Structures by (split, state)."""
    return _counts(session, select(StructureRow.split, StructureRow.state, func.count()))


def unfinished_counts(session: Session) -> Counts:
    """Structures that something still happens to, by (state, origin)."""
    return _counts(
        session,
        # SQLite uses a partial index only where a query repeats its condition word by word.
        select(StructureRow.state, StructureRow.origin, func.count()).where(queries.UNFINISHED),
    )


def structure_origins(session: Session) -> Counts:
    """Structures by (origin, state)."""
    return _counts(session, select(StructureRow.origin, StructureRow.state, func.count()))


def task_counts(session: Session) -> Counts:
    """Tasks by (kind, state)."""
    return _counts(session, select(TaskRow.kind, TaskRow.state, func.count()))


def walker_counts(session: Session) -> Counts:
    """Walkers by (state, end reason)."""
    return _counts(session, select(WalkerRow.state, WalkerRow.end_reason, func.count()))


def walker_ends(session: Session) -> Counts:
    """Walkers by (sampler, split, generation of birth, state, end reason)."""
    return _counts(
        session,
        select(
            WalkerRow.sampler,
            WalkerRow.split,
            WalkerRow.generation,
            WalkerRow.state,
            WalkerRow.end_reason,
            func.count(),
        ),
    )


def label_counts(session: Session) -> tuple[Counts, int]:
    """Accepted labels by (split,), and how many more were taken back; those held back are neither."""
    rows = session.execute(
        select(LabelRow.split, func.count(), func.count(LabelRow.retracted))
        .where(LabelRow.seq.is_not(None))
        .group_by(LabelRow.split)
    ).all()
    accepted = {(str(split),): n - taken_back for split, n, taken_back in rows if n > taken_back}
    never_counted = session.scalar(
        select(func.count())
        .select_from(LabelRow)
        .where(LabelRow.retracted.is_not(None), LabelRow.seq.is_(None), LabelRow.retracted != HELD)
    )
    return accepted, sum(row[2] for row in rows) + (never_counted or 0)


def labels_held(session: Session) -> int:
    """Labels that wait for the other multiplicities of their geometry before one of them may stand."""
    held = select(func.count()).select_from(LabelRow)
    return session.scalar(held.where(LabelRow.retracted.is_not(None), LabelRow.retracted == HELD)) or 0


def label_origins(session: Session) -> Counts:
    """Accepted labels by (generation of the structure, origin); those taken back are looked up singly."""
    counts = _counts(
        session,
        select(StructureRow.generation, StructureRow.origin, func.count()).where(
            StructureRow.split.in_(queries.OWN), StructureRow.state == StructureState.LABELLED
        ),
    )
    taken_back = session.execute(
        select(StructureRow.generation, StructureRow.origin, func.count())
        .join(LabelRow, LabelRow.structure_id == StructureRow.id)
        .where(LabelRow.retracted.is_not(None), LabelRow.split.in_(queries.OWN))
        .group_by(StructureRow.generation, StructureRow.origin)
    )
    for generation, origin, n in taken_back:
        counts[generation, origin] -= n
    return {key: n for key, n in counts.items() if n}


def selection_counts(session: Session) -> Counts:
    """Decisions by (decision, rule)."""
    return _counts(session, select(SelectionRow.decision, SelectionRow.rule, func.count()))


def labels_saved(session: Session) -> Counts:
    """Structures chosen for a label, then dropped as a later ensemble was sure: by (its generation,)."""
    before = aliased(SelectionRow)
    chosen = select(before.id).where(
        before.structure_id == SelectionRow.structure_id, before.decision == "chosen"
    )
    return _counts(
        session,
        select(EnsembleRow.generation, func.count())
        .select_from(SelectionRow)
        .join(EnsembleRow, EnsembleRow.id == SelectionRow.ensemble_id, isouter=True)
        .where(SelectionRow.decision == "dropped", SelectionRow.rule == "rescore", chosen.exists()),
    )


def dropped_by_rescoring(session: Session) -> int:
    """Structures, chosen or not, that were dropped as a later ensemble was sure of them."""
    query = select(func.count()).where(SelectionRow.decision == "dropped", SelectionRow.rule == "rescore")
    return session.scalar(query) or 0


def rejections(session: Session) -> list[RejectionCount]:
    """Rejections by cause, most frequent first."""
    number = func.count()
    rows = session.execute(
        select(RejectionRow.failure_class, RejectionRow.code, number, func.min(RejectionRow.message))
        .group_by(RejectionRow.failure_class, RejectionRow.code)
        .order_by(number.desc(), RejectionRow.code)
    )
    return [
        RejectionCount(failure_class=str(cls), code=code, count=n, example=message)
        for cls, code, n, message in rows
    ]


def attempt_endings(session: Session) -> Counts:
    """Attempts that failed or were lost, by (kind of task, state, exit reason)."""
    return _counts(
        session,
        select(TaskRow.kind, AttemptRow.state, AttemptRow.exit_reason, func.count())
        .select_from(AttemptRow)
        .join(TaskRow, TaskRow.id == AttemptRow.task_id)
        .where(AttemptRow.state.in_([TaskState.FAILED, TaskState.LOST])),
    )


def events(session: Session, last: int) -> list[tuple[float, str, str]]:
    """The latest events as (time, kind, message), oldest first, less those that only tell of queues."""
    rows = session.execute(
        select(EventRow.time, EventRow.kind, EventRow.message)
        .where(EventRow.kind != BLOCKS_WAIT)
        .order_by(EventRow.id.desc())
        .limit(last)
    )
    return [(time, kind, message) for time, kind, message in rows][::-1]


def waiting_blocks(session: Session) -> dict[str, dict[str, int]]:
    """Blocks that have not started, as the present controller was told last.

    Returns:
        How many of each pool, by the scheduler's words for why.
    """
    present = select(Campaign.lease_epoch).scalar_subquery()
    data = session.scalar(
        select(EventRow.data)
        .where(EventRow.kind == BLOCKS_WAIT, EventRow.epoch == present)
        .order_by(EventRow.id.desc())
        .limit(1)
    )
    return {} if data is None else dict(data["pools"])


def ensembles(session: Session) -> list[EnsembleRecord]:
    """All ensembles in the order of generation and revision."""
    rows = session.execute(
        select(EnsembleRow, DatasetRow)
        .join(DatasetRow, DatasetRow.id == EnsembleRow.dataset_id)
        .order_by(EnsembleRow.generation, EnsembleRow.revision)
    ).all()
    labels = _labels_up_to(session, sorted({dataset.last_seq for _, dataset in rows}))
    members = _members(session)
    return [
        _ensemble_record(row, dataset, labels[dataset.last_seq], members.get(row.id, []))
        for row, dataset in rows
    ]


def _members(session: Session) -> dict[int, list[tuple[int, bool, str | None]]]:
    """Members of every ensemble: number, whether it is there, and why it is missing."""
    rows = session.execute(
        select(ModelRow.ensemble_id, ModelRow.member, ModelRow.path.is_not(None), ModelRow.missing)
    )
    found: dict[int, list[tuple[int, bool, str | None]]] = {}
    for ensemble_id, member, there, missing in rows:
        found.setdefault(ensemble_id, []).append((member, bool(there), missing))
    return found


def _counts(session: Session, query: Select[*tuple[Any, ...]]) -> Counts:
    """Groups by every column of a query but the last, which counts."""
    columns = list(query.selected_columns)[:-1]
    rows = session.execute(query.group_by(*columns).order_by(*columns))
    return {tuple(_word(v) for v in row[:-1]): int(row[-1]) for row in rows}


def _word(value: Any) -> Any:
    return str(value) if isinstance(value, str) else value


def _labels_up_to(session: Session, commits: list[int]) -> dict[int, int]:
    """Accepted labels that stand, up to each of some ascending commit numbers."""
    gone = session.scalars(select(LabelRow.seq).where(LabelRow.retracted.is_not(None))).all()
    taken_back = [seq for seq in gone if seq is not None]
    # Commit numbers have no gaps: the last one is how many there are.
    return {commit: commit - sum(seq <= commit for seq in taken_back) for commit in commits}


def _ensemble_record(
    row: EnsembleRow, dataset: DatasetRow, labels: int, members: list[tuple[int, bool, str | None]]
) -> EnsembleRecord:
    return EnsembleRecord(
        id=row.id,
        generation=row.generation,
        revision=row.revision,
        state=str(row.state),
        kind=row.kind,
        dataset_id=row.dataset_id,
        labels=labels,
        n_train=dataset.n_train,
        n_validation=dataset.n_validation,
        created=row.created,
        closed=row.created if row.decided is None else row.decided,
        decision=row.decision,
        metric=row.metric,
        threshold=row.threshold,
        bias_width=row.bias_width,
        calibration=row.calibration,
        members=sum(there for _, there, _ in members),
        planned=len(members),
        missing={member: why for member, _, why in sorted(members) if why is not None},
        errors=row.errors,
    )

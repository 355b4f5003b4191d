"""The tables: one row of each thing that happened in a campaign.

The rows of one structure read in the order of the flow: structure → score → selection → task and
attempt → label or rejection → dataset → model. Arrays are little-endian BLOBs whose shape follows
from the number of atoms. Times are seconds since the epoch (UTC).
"""

from __future__ import annotations

import enum
from typing import Any, ClassVar, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    Enum,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from hpcal.core.errors import FailureClass
from hpcal.core.walker import Split, WalkerEnd
from hpcal.store.transitions import CampaignState, EnsembleState, StructureState, TaskState, WalkerState

SCHEMA_VERSION: Final = 4


def _words(kind: type[enum.StrEnum]) -> Enum:
    """A column of words, checked here rather than by the database so that migrations stay easy."""
    return Enum(kind, native_enum=False, length=24, values_callable=lambda e: [m.value for m in e])


WORDS: Final = (
    CampaignState,
    EnsembleState,
    FailureClass,
    Split,
    StructureState,
    TaskState,
    WalkerEnd,
    WalkerState,
)
"""Enumerations that stand in columns."""


LONG: Final = Integer().with_variant(BigInteger(), "postgresql")
"""Whole numbers beyond 32 bits, such as seeds; SQLite's integers all have 64."""

STATE, AUDIT_STATE = "state", "audit_state"
SIBLINGS: Final = (STATE, AUDIT_STATE)
"""Origins of further electronic states of a geometry; ``parent_id`` is the structure that it came in as."""

UNFINISHED: Final = "state IN ('candidate', 'waiting', 'claimed')"
START: Final = "origin IN ('seed', 'minimum', 'saddle', 'given')"
ALIVE: Final = "state IN ('idle', 'claimed')"
OUTSTANDING: Final = "state IN ('queued', 'dispatched', 'lost')"
EVALUATION: Final = "purpose = 'evaluate'"
DROPPED: Final = "decision = 'dropped'"
RETRACTED: Final = "retracted IS NOT NULL"
FAILED: Final = "state = 'failed'"
ENDED_BADLY: Final = "state IN ('failed', 'lost')"
OPEN: Final = "state = 'dispatched'"
"""Conditions of the partial indexes. SQLite uses such an index only for a query that holds its
condition word for word, so that queries repeat it (with the table's name before it)."""


class Base(DeclarativeBase):
    """Base of all tables."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        dict[str, Any]: JSON,
        list[Any]: JSON,
        bytes: LargeBinary,
        **{kind: _words(kind) for kind in WORDS},
    }


ALEMBIC: Final = Table("alembic_version", Base.metadata, Column("version_num", String(32), primary_key=True))
"""Alembic's own table: the step that the schema stands at."""


class Campaign(Base):
    """The one campaign of this store, with its lease."""

    __tablename__ = "campaign"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    run_id: Mapped[str]
    schema_version: Mapped[int]
    hpcal_version: Mapped[str]
    created: Mapped[float]
    spec: Mapped[dict[str, Any]]
    spec_folder: Mapped[str]
    site: Mapped[dict[str, Any]]
    state: Mapped[CampaignState]
    stop_reason: Mapped[str | None]
    planned: Mapped[int] = mapped_column(default=0)
    level_of_theory_id: Mapped[int | None] = mapped_column(ForeignKey("level_of_theory.id"))
    lease_epoch: Mapped[int] = mapped_column(default=0)
    lease_host: Mapped[str | None]
    lease_pid: Mapped[int | None]
    lease_process_start: Mapped[float | None]
    lease_counter: Mapped[int] = mapped_column(default=0)


class LevelOfTheoryRow(Base):
    """A level of theory."""

    __tablename__ = "level_of_theory"
    id: Mapped[int] = mapped_column(primary_key=True)
    hash: Mapped[str] = mapped_column(unique=True)
    record: Mapped[dict[str, Any]]


class StructureRow(Base):
    """A structure and where it comes from."""

    __tablename__ = "structure"
    id: Mapped[int] = mapped_column(primary_key=True)
    hash: Mapped[str]
    state: Mapped[StructureState]
    origin: Mapped[str]
    split: Mapped[Split]
    n_atoms: Mapped[int]
    formula: Mapped[str]
    numbers: Mapped[bytes]
    positions: Mapped[bytes]
    cell: Mapped[bytes | None]
    pbc: Mapped[int]
    charge: Mapped[int]
    multiplicity: Mapped[int]
    magnetic_moments: Mapped[bytes | None]
    created: Mapped[float]
    generation: Mapped[int]
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("structure.id"))
    walker_id: Mapped[int | None] = mapped_column(ForeignKey("walker.id"))
    segment_id: Mapped[int | None] = mapped_column(ForeignKey("segment.id"))
    task_id: Mapped[int | None] = mapped_column(ForeignKey("task.id"))
    step: Mapped[int | None]
    time_fs: Mapped[float | None]
    energy: Mapped[float | None]
    scored_generation: Mapped[int | None]
    priority: Mapped[float] = mapped_column(default=0.0)
    failures: Mapped[int] = mapped_column(default=0)
    reason: Mapped[str | None]
    fingerprint: Mapped[float | None]
    twin_id: Mapped[int | None] = mapped_column(ForeignKey("structure.id"))

    __table_args__ = (
        Index("ix_structure_hash", "hash"),
        Index("ix_structure_formula_fingerprint", "formula", "fingerprint"),
        Index("ix_structure_walker_id", "walker_id"),
        Index("ix_structure_task_id", "task_id"),
        # The planner's queues: only rows that something still happens to, however long the history.
        Index(
            "ix_structure_queue",
            "state", "origin", "priority", "id",
            sqlite_where=text(UNFINISHED),
            postgresql_where=text(UNFINISHED),
        ),
        Index(
            "ix_structure_start",
            "origin", "id",
            sqlite_where=text(START),
            postgresql_where=text(START),
        ),
        Index("ix_structure_split", "split", "state", "origin", "generation"),
    )  # fmt: skip


class WalkerRow(Base):
    """A walker: one trajectory from birth to end."""

    __tablename__ = "walker"
    id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[WalkerState]
    structure_id: Mapped[int] = mapped_column(ForeignKey("structure.id"))
    entry: Mapped[int]
    sampler: Mapped[str]
    split: Mapped[Split]
    stream: Mapped[int] = mapped_column(LONG)
    temperature: Mapped[float]
    steps_full: Mapped[int]
    frames_at: Mapped[list[Any]]
    step: Mapped[int] = mapped_column(default=0)
    positions: Mapped[bytes | None]
    velocities: Mapped[bytes | None]
    parameters: Mapped[dict[str, Any]]
    ensemble_id: Mapped[int | None] = mapped_column(ForeignKey("ensemble.id"))
    generation: Mapped[int]
    created: Mapped[float]
    end_reason: Mapped[WalkerEnd | None]
    end_detail: Mapped[str | None]
    end_generation: Mapped[int | None]

    __table_args__ = (
        Index(
            "ix_walker_alive",
            "entry", "state", "id", "split",
            sqlite_where=text(ALIVE),
            postgresql_where=text(ALIVE),
        ),
        Index("ix_walker_generation", "generation", "state", "end_reason", "split"),
    )  # fmt: skip


class SegmentRow(Base):
    """What one task did with one walker."""

    __tablename__ = "segment"
    id: Mapped[int] = mapped_column(primary_key=True)
    walker_id: Mapped[int] = mapped_column(ForeignKey("walker.id"), index=True)
    attempt_id: Mapped[int] = mapped_column(ForeignKey("attempt.id"), index=True)
    ensemble_id: Mapped[int] = mapped_column(ForeignKey("ensemble.id"))
    start_step: Mapped[int]
    end_step: Mapped[int]
    end_reason: Mapped[WalkerEnd | None]
    detail: Mapped[str | None]
    max_trigger: Mapped[float | None]
    bias_ratio: Mapped[float | None]


class ArtifactRow(Base):
    """A file that belongs to a task or a walker, with its hash."""

    __tablename__ = "artifact"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    path: Mapped[str]
    sha256: Mapped[str]
    size: Mapped[int] = mapped_column(LONG)
    task_id: Mapped[int | None] = mapped_column(ForeignKey("task.id"))
    walker_id: Mapped[int | None] = mapped_column(ForeignKey("walker.id"))


class ScoreRow(Base):
    """The uncertainty of one structure under one ensemble; with errors where there is a label.

    Split, family (the walker it comes from, or minus the structure's id) and number of atoms of an
    evaluated structure never change and are repeated here, so that errors are summed from one index.
    """

    __tablename__ = "score"
    id: Mapped[int] = mapped_column(primary_key=True)
    structure_id: Mapped[int] = mapped_column(ForeignKey("structure.id"))
    ensemble_id: Mapped[int] = mapped_column(ForeignKey("ensemble.id"))
    task_id: Mapped[int | None] = mapped_column(ForeignKey("task.id"))
    purpose: Mapped[str]
    metric: Mapped[str]
    value: Mapped[float]
    threshold: Mapped[float | None]
    energy_std: Mapped[float | None]
    force_std: Mapped[float | None]
    energy: Mapped[float | None]
    energy_error: Mapped[float | None]
    committee_error: Mapped[float | None]
    force_mae: Mapped[float | None]
    force_rmse: Mapped[float | None]
    split: Mapped[Split | None]
    family: Mapped[int | None]
    n_atoms: Mapped[int | None]

    __table_args__ = (
        Index("ix_score_structure_id_ensemble_id", "structure_id", "ensemble_id"),
        Index("ix_score_ensemble_id_purpose", "ensemble_id", "purpose"),
        Index("ix_score_task_id_purpose", "task_id", "purpose"),
        # Errors of an ensemble over its evaluations, read from the index alone.
        Index(
            "ix_score_evaluation",
            "ensemble_id", "split", "structure_id", "family", "n_atoms",
            "energy_error", "force_mae", "force_rmse",
            sqlite_where=text(EVALUATION),
            postgresql_where=text(EVALUATION),
        ),
    )  # fmt: skip


class SelectionRow(Base):
    """A decision on one structure: chosen, passed over, dropped; by which rule, against whom."""

    __tablename__ = "selection"
    id: Mapped[int] = mapped_column(primary_key=True)
    structure_id: Mapped[int] = mapped_column(ForeignKey("structure.id"), index=True)
    task_id: Mapped[int | None] = mapped_column(ForeignKey("task.id"))
    ensemble_id: Mapped[int | None] = mapped_column(ForeignKey("ensemble.id"))
    decision: Mapped[str]
    rule: Mapped[str]
    value: Mapped[float | None]
    threshold: Mapped[float | None]
    rank: Mapped[int | None]
    distance: Mapped[float | None]
    competitors: Mapped[int | None]
    reason: Mapped[str]

    __table_args__ = (
        Index("ix_selection_ensemble_id_decision", "ensemble_id", "decision"),
        Index("ix_selection_task_id_decision", "task_id", "decision"),
        Index(
            "ix_selection_dropped",
            "rule", "ensemble_id", "structure_id",
            sqlite_where=text(DROPPED),
            postgresql_where=text(DROPPED),
        ),
    )  # fmt: skip


class TaskRow(Base):
    """A piece of work with frozen inputs."""

    __tablename__ = "task"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    pool: Mapped[str]
    state: Mapped[TaskState]
    priority: Mapped[int] = mapped_column(default=0)
    inputs: Mapped[dict[str, Any]]
    units: Mapped[int]
    size: Mapped[int] = mapped_column(default=0)
    created: Mapped[float]
    finished: Mapped[float | None]
    seconds: Mapped[float | None]
    failures: Mapped[int] = mapped_column(default=0)
    losses: Mapped[int] = mapped_column(default=0)
    epoch: Mapped[int | None]
    failure_class: Mapped[FailureClass | None]
    error: Mapped[str | None]

    __table_args__ = (
        Index(
            "ix_task_outstanding",
            "state", "pool", "kind",
            sqlite_where=text(OUTSTANDING),
            postgresql_where=text(OUTSTANDING),
        ),
        Index("ix_task_kind", "kind", "state", "epoch", "id"),
        Index("ix_task_failed", "epoch", "kind", sqlite_where=text(FAILED), postgresql_where=text(FAILED)),
    )  # fmt: skip


class AttemptRow(Base):
    """One try at a task."""

    __tablename__ = "attempt"
    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("task.id"), index=True)
    number: Mapped[int]
    epoch: Mapped[int]
    executor: Mapped[str]
    state: Mapped[TaskState]
    dispatched: Mapped[float]
    host: Mapped[str | None]
    pid: Mapped[int | None]
    block: Mapped[str | None]
    start: Mapped[float | None]
    end: Mapped[float | None]
    exit_reason: Mapped[str | None]
    qm_calls: Mapped[int] = mapped_column(default=0)
    log: Mapped[str | None]
    spool: Mapped[str | None]

    __table_args__ = (
        UniqueConstraint("task_id", "number"),
        Index("ix_attempt_epoch", "epoch", "id"),
        Index(
            "ix_attempt_ended_badly",
            "task_id",
            sqlite_where=text(ENDED_BADLY),
            postgresql_where=text(ENDED_BADLY),
        ),
        Index("ix_attempt_open", "id", sqlite_where=text(OPEN), postgresql_where=text(OPEN)),
    )


class LabelRow(Base):
    """An accepted label.

    ``seq`` is the commit number that data sets are cut by, ``split_seq`` the same within its split:
    counting labels is looking at the last one.
    """

    __tablename__ = "label"
    id: Mapped[int] = mapped_column(primary_key=True)
    seq: Mapped[int | None] = mapped_column(unique=True)
    split_seq: Mapped[int | None]
    structure_id: Mapped[int] = mapped_column(ForeignKey("structure.id"))
    level_of_theory_id: Mapped[int] = mapped_column(ForeignKey("level_of_theory.id"))
    attempt_id: Mapped[int | None] = mapped_column(ForeignKey("attempt.id"))
    split: Mapped[Split]
    energy: Mapped[float]
    forces: Mapped[bytes | None]
    stress: Mapped[bytes | None]
    dipole: Mapped[bytes | None]
    dipole_origin: Mapped[bytes | None]
    charges: Mapped[bytes | None]
    charge_scheme: Mapped[str | None]
    quadrupole: Mapped[bytes | None]
    other_charges: Mapped[bytes | None]
    other_schemes: Mapped[list[Any] | None]
    diagnostics: Mapped[dict[str, Any]]
    qm_calls: Mapped[int]
    created: Mapped[float]
    retracted: Mapped[str | None]

    __table_args__ = (
        UniqueConstraint("structure_id", "level_of_theory_id"),
        Index(
            "ix_label_split_seq",
            "split",
            "seq",
            "split_seq",
            "structure_id",
            "level_of_theory_id",
            "retracted",
        ),
        Index("ix_label_retracted", "seq", sqlite_where=text(RETRACTED), postgresql_where=text(RETRACTED)),
    )


class RejectionRow(Base):
    """Why a structure was not labelled."""

    __tablename__ = "rejection"
    id: Mapped[int] = mapped_column(primary_key=True)
    structure_id: Mapped[int] = mapped_column(ForeignKey("structure.id"), index=True)
    level_of_theory_id: Mapped[int] = mapped_column(ForeignKey("level_of_theory.id"))
    attempt_id: Mapped[int | None] = mapped_column(ForeignKey("attempt.id"), index=True)
    failure_class: Mapped[FailureClass]
    code: Mapped[str]
    message: Mapped[str]
    diagnostics: Mapped[dict[str, Any]]
    qm_calls: Mapped[int]
    created: Mapped[float]

    __table_args__ = (Index("ix_rejection_cause", "failure_class", "code"),)


class DatasetRow(Base):
    """A data set: a rule, all accepted labels of one level up to a commit number.

    ``origins`` counts its structures by split and origin.
    """

    __tablename__ = "dataset"
    id: Mapped[int] = mapped_column(primary_key=True)
    generation: Mapped[int]
    level_of_theory_id: Mapped[int] = mapped_column(ForeignKey("level_of_theory.id"))
    last_seq: Mapped[int]
    n_train: Mapped[int]
    n_validation: Mapped[int]
    created: Mapped[float]
    origins: Mapped[dict[str, Any] | None]


class ShardRow(Base):
    """An immutable file of labelled structures."""

    __tablename__ = "shard"
    id: Mapped[int] = mapped_column(primary_key=True)
    path: Mapped[str]
    sha256: Mapped[str]
    first_seq: Mapped[int]
    last_seq: Mapped[int]
    count: Mapped[int]
    level_of_theory_id: Mapped[int] = mapped_column(ForeignKey("level_of_theory.id"))


class EnsembleRow(Base):
    """An immutable ensemble, and what was found of it.

    ``errors`` sums up its evaluations on the audit test group and the reference set, as they were
    when the last of them was recorded.
    """

    __tablename__ = "ensemble"
    id: Mapped[int] = mapped_column(primary_key=True)
    generation: Mapped[int]
    revision: Mapped[int] = mapped_column(default=0)
    state: Mapped[EnsembleState]
    kind: Mapped[str]
    dataset_id: Mapped[int] = mapped_column(ForeignKey("dataset.id"))
    predecessor_id: Mapped[int | None] = mapped_column(ForeignKey("ensemble.id"))
    hash: Mapped[str | None]
    path: Mapped[str | None]
    created: Mapped[float]
    decided: Mapped[float | None]
    decision: Mapped[str | None]
    metric: Mapped[str]
    threshold: Mapped[float | None]
    bias_width: Mapped[float | None]
    calibration: Mapped[dict[str, Any] | None]
    quiet_rounds: Mapped[int] = mapped_column(default=0)
    errors: Mapped[dict[str, Any] | None]

    __table_args__ = (
        UniqueConstraint("generation", "revision"),
        Index("ix_ensemble_state", "state", "generation"),
    )


class ModelRow(Base):
    """One member of an ensemble.

    Its task is the one that trains it. A member without a file is in training, or ``missing`` says
    why the ensemble goes on without it.
    """

    __tablename__ = "model"
    id: Mapped[int] = mapped_column(primary_key=True)
    ensemble_id: Mapped[int] = mapped_column(ForeignKey("ensemble.id"), index=True)
    member: Mapped[int]
    seed: Mapped[int] = mapped_column(LONG)
    task_id: Mapped[int | None] = mapped_column(ForeignKey("task.id"))
    path: Mapped[str | None]
    sha256: Mapped[str | None]
    metrics: Mapped[dict[str, Any]]
    trained_on: Mapped[bytes | None]
    missing: Mapped[str | None]

    __table_args__ = (UniqueConstraint("ensemble_id", "member"),)


class EventRow(Base):
    """Something worth knowing later."""

    __tablename__ = "event"
    id: Mapped[int] = mapped_column(primary_key=True)
    time: Mapped[float]
    epoch: Mapped[int]
    kind: Mapped[str]
    message: Mapped[str]
    data: Mapped[dict[str, Any]]
    structure_id: Mapped[int | None] = mapped_column(ForeignKey("structure.id"), index=True)
    task_id: Mapped[int | None] = mapped_column(ForeignKey("task.id"), index=True)

    __table_args__ = (Index("ix_event_kind", "kind", "id"),)

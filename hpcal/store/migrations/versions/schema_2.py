"""Fingerprints, counts within splits, what errors are summed from, sizes of retried tasks.

Stores of the first schema are all in SQLite.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"
branch_labels = None
depends_on = None

SPLIT = sa.Enum(
    "train", "validation", "calibration", "test", "reference",
    name="split", native_enum=False, length=24,
)  # fmt: skip

OLD_INDEXES = (
    ("label", "ix_label_split_seq"),
    ("structure", "ix_structure_split"),
    ("task", "ix_task_kind"),
    ("walker", "ix_walker_alive"),
    ("walker", "ix_walker_generation"),
)
START = "origin IN ('seed', 'minimum', 'saddle', 'given')"
ERRORS = "ensemble_id split structure_id family n_atoms energy_error force_mae force_rmse"
NEW_INDEXES = (
    ("attempt", "ix_attempt_epoch", "epoch id", None),
    ("attempt", "ix_attempt_ended_badly", "task_id", "state IN ('failed', 'lost')"),
    ("attempt", "ix_attempt_open", "id", "state = 'dispatched'"),
    ("label", "ix_label_split_seq", "split seq split_seq structure_id level_of_theory_id retracted", None),
    ("label", "ix_label_retracted", "seq", "retracted IS NOT NULL"),
    ("event", "ix_event_structure_id", "structure_id", None),
    ("event", "ix_event_task_id", "task_id", None),
    ("rejection", "ix_rejection_attempt_id", "attempt_id", None),
    ("rejection", "ix_rejection_cause", "failure_class code", None),
    ("score", "ix_score_evaluation", ERRORS, "purpose = 'evaluate'"),
    ("score", "ix_score_task_id_purpose", "task_id purpose", None),
    ("selection", "ix_selection_ensemble_id_decision", "ensemble_id decision", None),
    ("selection", "ix_selection_task_id_decision", "task_id decision", None),
    ("segment", "ix_segment_attempt_id", "attempt_id", None),
    ("selection", "ix_selection_dropped", "rule ensemble_id structure_id", "decision = 'dropped'"),
    ("structure", "ix_structure_split", "split state origin generation", None),
    ("structure", "ix_structure_formula_fingerprint", "formula fingerprint", None),
    ("structure", "ix_structure_task_id", "task_id", None),
    ("structure", "ix_structure_start", "origin id", START),
    ("task", "ix_task_kind", "kind state epoch id", None),
    ("task", "ix_task_failed", "epoch kind", "state = 'failed'"),
    ("walker", "ix_walker_alive", "entry state id split", "state IN ('idle', 'claimed')"),
    ("walker", "ix_walker_generation", "generation state end_reason split", None),
)


def upgrade() -> None:
    """Adds columns and indexes, and fills the columns from what is there."""
    op.add_column("label", sa.Column("split_seq", sa.Integer()))
    op.add_column("score", sa.Column("split", SPLIT))
    op.add_column("score", sa.Column("family", sa.Integer()))
    op.add_column("score", sa.Column("n_atoms", sa.Integer()))
    op.add_column("structure", sa.Column("fingerprint", sa.Double()))
    op.execute("ALTER TABLE structure ADD COLUMN twin_id INTEGER REFERENCES structure (id)")
    op.add_column("task", sa.Column("size", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("task", sa.Column("epoch", sa.Integer()))
    op.add_column("ensemble", sa.Column("errors", sa.JSON()))
    op.add_column("dataset", sa.Column("origins", sa.JSON()))
    _fill()
    _indexes()


def _fill() -> None:
    op.execute(
        "UPDATE label SET split_seq = counted.n FROM (SELECT id, row_number() OVER "
        "(PARTITION BY split ORDER BY seq) AS n FROM label WHERE seq IS NOT NULL) AS counted "
        "WHERE counted.id = label.id"
    )
    op.execute(
        "UPDATE score SET split = structure.split, n_atoms = structure.n_atoms, "
        "family = coalesce(structure.walker_id, -structure.id) "
        "FROM structure WHERE structure.id = score.structure_id AND score.purpose = 'evaluate'"
    )
    op.execute(
        "UPDATE task SET epoch = (SELECT max(epoch) FROM attempt WHERE attempt.task_id = task.id) "
        "WHERE state IN ('done', 'failed')"
    )


def _indexes() -> None:
    for table, name in OLD_INDEXES:
        op.drop_index(name, table_name=table)
    for table, name, columns, condition in NEW_INDEXES:
        where = None if condition is None else sa.text(condition)
        op.create_index(name, table, columns.split(), sqlite_where=where, postgresql_where=where)

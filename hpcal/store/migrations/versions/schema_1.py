"""The first schema, as SQLite stores of the first release have it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Makes all tables."""
    op.create_table(
        "level_of_theory",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.Column("record", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_level_of_theory")),
        sa.UniqueConstraint("hash", name=op.f("uq_level_of_theory_hash")),
    )
    op.create_table(
        "segment",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("walker_id", sa.Integer(), nullable=False),
        sa.Column("attempt_id", sa.Integer(), nullable=False),
        sa.Column("ensemble_id", sa.Integer(), nullable=False),
        sa.Column("start_step", sa.Integer(), nullable=False),
        sa.Column("end_step", sa.Integer(), nullable=False),
        sa.Column(
            "end_reason",
            sa.Enum(
                "quiet",
                "full_time",
                "crossed",
                "overlap",
                "dissociated",
                "force",
                "temperature",
                "not_finite",
                name="walkerend",
                native_enum=False,
                length=24,
            ),
            nullable=True,
        ),
        sa.Column("detail", sa.String(), nullable=True),
        sa.Column("max_trigger", sa.Double(), nullable=True),
        sa.Column("bias_ratio", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["attempt_id"], ["attempt.id"], name=op.f("fk_segment_attempt_id")),
        sa.ForeignKeyConstraint(["ensemble_id"], ["ensemble.id"], name=op.f("fk_segment_ensemble_id")),
        sa.ForeignKeyConstraint(["walker_id"], ["walker.id"], name=op.f("fk_segment_walker_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_segment")),
    )
    op.create_index(op.f("ix_segment_walker_id"), "segment", ["walker_id"], unique=False)
    op.create_table(
        "structure",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("hash", sa.String(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "candidate",
                "waiting",
                "claimed",
                "labelled",
                "rejected",
                "dropped",
                "quarantined",
                name="structurestate",
                native_enum=False,
                length=24,
            ),
            nullable=False,
        ),
        sa.Column("origin", sa.String(), nullable=False),
        sa.Column(
            "split",
            sa.Enum(
                "train",
                "validation",
                "calibration",
                "test",
                "reference",
                name="split",
                native_enum=False,
                length=24,
            ),
            nullable=False,
        ),
        sa.Column("n_atoms", sa.Integer(), nullable=False),
        sa.Column("formula", sa.String(), nullable=False),
        sa.Column("numbers", sa.LargeBinary(), nullable=False),
        sa.Column("positions", sa.LargeBinary(), nullable=False),
        sa.Column("cell", sa.LargeBinary(), nullable=True),
        sa.Column("pbc", sa.Integer(), nullable=False),
        sa.Column("charge", sa.Integer(), nullable=False),
        sa.Column("multiplicity", sa.Integer(), nullable=False),
        sa.Column("magnetic_moments", sa.LargeBinary(), nullable=True),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("parent_id", sa.Integer(), nullable=True),
        sa.Column("walker_id", sa.Integer(), nullable=True),
        sa.Column("segment_id", sa.Integer(), nullable=True),
        sa.Column("task_id", sa.Integer(), nullable=True),
        sa.Column("step", sa.Integer(), nullable=True),
        sa.Column("time_fs", sa.Double(), nullable=True),
        sa.Column("energy", sa.Double(), nullable=True),
        sa.Column("scored_generation", sa.Integer(), nullable=True),
        sa.Column("priority", sa.Double(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["parent_id"], ["structure.id"], name=op.f("fk_structure_parent_id")),
        sa.ForeignKeyConstraint(["segment_id"], ["segment.id"], name=op.f("fk_structure_segment_id")),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"], name=op.f("fk_structure_task_id")),
        sa.ForeignKeyConstraint(["walker_id"], ["walker.id"], name=op.f("fk_structure_walker_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_structure")),
    )
    op.create_index("ix_structure_hash", "structure", ["hash"], unique=False)
    op.create_index(
        "ix_structure_queue",
        "structure",
        ["state", "origin", "priority", "id"],
        unique=False,
        sqlite_where=sa.text("state IN ('candidate', 'waiting', 'claimed')"),
        postgresql_where=sa.text("state IN ('candidate', 'waiting', 'claimed')"),
    )
    op.create_index("ix_structure_split", "structure", ["split", "state"], unique=False)
    op.create_index("ix_structure_walker_id", "structure", ["walker_id"], unique=False)
    op.create_table(
        "task",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("pool", sa.String(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "queued",
                "dispatched",
                "done",
                "failed",
                "lost",
                name="taskstate",
                native_enum=False,
                length=24,
            ),
            nullable=False,
        ),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("inputs", sa.JSON(), nullable=False),
        sa.Column("units", sa.Integer(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("finished", sa.Double(), nullable=True),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("losses", sa.Integer(), nullable=False),
        sa.Column(
            "failure_class",
            sa.Enum(
                "input",
                "physics",
                "resource",
                "node",
                "bug",
                name="failureclass",
                native_enum=False,
                length=24,
            ),
            nullable=True,
        ),
        sa.Column("error", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_task")),
    )
    op.create_index("ix_task_kind", "task", ["kind", "state", "id"], unique=False)
    op.create_index(
        "ix_task_outstanding",
        "task",
        ["state", "pool", "kind"],
        unique=False,
        sqlite_where=sa.text("state IN ('queued', 'dispatched', 'lost')"),
        postgresql_where=sa.text("state IN ('queued', 'dispatched', 'lost')"),
    )
    op.create_table(
        "walker",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column(
            "state",
            sa.Enum("idle", "claimed", "ended", name="walkerstate", native_enum=False, length=24),
            nullable=False,
        ),
        sa.Column("structure_id", sa.Integer(), nullable=False),
        sa.Column("entry", sa.Integer(), nullable=False),
        sa.Column("sampler", sa.String(), nullable=False),
        sa.Column(
            "split",
            sa.Enum(
                "train",
                "validation",
                "calibration",
                "test",
                "reference",
                name="split",
                native_enum=False,
                length=24,
            ),
            nullable=False,
        ),
        sa.Column("stream", sa.Integer(), nullable=False),
        sa.Column("temperature", sa.Double(), nullable=False),
        sa.Column("steps_full", sa.Integer(), nullable=False),
        sa.Column("frames_at", sa.JSON(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("positions", sa.LargeBinary(), nullable=True),
        sa.Column("velocities", sa.LargeBinary(), nullable=True),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("ensemble_id", sa.Integer(), nullable=True),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column(
            "end_reason",
            sa.Enum(
                "quiet",
                "full_time",
                "crossed",
                "overlap",
                "dissociated",
                "force",
                "temperature",
                "not_finite",
                name="walkerend",
                native_enum=False,
                length=24,
            ),
            nullable=True,
        ),
        sa.Column("end_detail", sa.String(), nullable=True),
        sa.Column("end_generation", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["ensemble_id"], ["ensemble.id"], name=op.f("fk_walker_ensemble_id")),
        sa.ForeignKeyConstraint(["structure_id"], ["structure.id"], name=op.f("fk_walker_structure_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_walker")),
    )
    op.create_index(
        "ix_walker_alive",
        "walker",
        ["entry", "state", "id"],
        unique=False,
        sqlite_where=sa.text("state IN ('idle', 'claimed')"),
        postgresql_where=sa.text("state IN ('idle', 'claimed')"),
    )
    op.create_index("ix_walker_generation", "walker", ["generation", "state", "end_reason"], unique=False)
    op.create_table(
        "artifact",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("task_id", sa.Integer(), nullable=True),
        sa.Column("walker_id", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"], name=op.f("fk_artifact_task_id")),
        sa.ForeignKeyConstraint(["walker_id"], ["walker.id"], name=op.f("fk_artifact_walker_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_artifact")),
    )
    op.create_table(
        "attempt",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("task_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("executor", sa.String(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "queued",
                "dispatched",
                "done",
                "failed",
                "lost",
                name="taskstate",
                native_enum=False,
                length=24,
            ),
            nullable=False,
        ),
        sa.Column("dispatched", sa.Double(), nullable=False),
        sa.Column("host", sa.String(), nullable=True),
        sa.Column("pid", sa.Integer(), nullable=True),
        sa.Column("block", sa.String(), nullable=True),
        sa.Column("start", sa.Double(), nullable=True),
        sa.Column("end", sa.Double(), nullable=True),
        sa.Column("exit_reason", sa.String(), nullable=True),
        sa.Column("qm_calls", sa.Integer(), nullable=False),
        sa.Column("log", sa.String(), nullable=True),
        sa.Column("spool", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"], name=op.f("fk_attempt_task_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attempt")),
        sa.UniqueConstraint("task_id", "number", name=op.f("uq_attempt_task_id_number")),
    )
    op.create_index(op.f("ix_attempt_task_id"), "attempt", ["task_id"], unique=False)
    op.create_table(
        "campaign",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("run_id", sa.String(), nullable=False),
        sa.Column("schema_version", sa.Integer(), nullable=False),
        sa.Column("hpcal_version", sa.String(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("spec_folder", sa.String(), nullable=False),
        sa.Column("site", sa.JSON(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "running", "stopped", "finished", "failed", name="campaignstate", native_enum=False, length=24
            ),
            nullable=False,
        ),
        sa.Column("stop_reason", sa.String(), nullable=True),
        sa.Column("planned", sa.Integer(), nullable=False),
        sa.Column("level_of_theory_id", sa.Integer(), nullable=True),
        sa.Column("lease_epoch", sa.Integer(), nullable=False),
        sa.Column("lease_host", sa.String(), nullable=True),
        sa.Column("lease_pid", sa.Integer(), nullable=True),
        sa.Column("lease_process_start", sa.Double(), nullable=True),
        sa.Column("lease_counter", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["level_of_theory_id"], ["level_of_theory.id"], name=op.f("fk_campaign_level_of_theory_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_campaign")),
    )
    op.create_table(
        "dataset",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("level_of_theory_id", sa.Integer(), nullable=False),
        sa.Column("last_seq", sa.Integer(), nullable=False),
        sa.Column("n_train", sa.Integer(), nullable=False),
        sa.Column("n_validation", sa.Integer(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["level_of_theory_id"], ["level_of_theory.id"], name=op.f("fk_dataset_level_of_theory_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dataset")),
    )
    op.create_table(
        "event",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("time", sa.Double(), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("structure_id", sa.Integer(), nullable=True),
        sa.Column("task_id", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["structure_id"], ["structure.id"], name=op.f("fk_event_structure_id")),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"], name=op.f("fk_event_task_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event")),
    )
    op.create_index("ix_event_kind", "event", ["kind", "id"], unique=False)
    op.create_table(
        "shard",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("first_seq", sa.Integer(), nullable=False),
        sa.Column("last_seq", sa.Integer(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("level_of_theory_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["level_of_theory_id"], ["level_of_theory.id"], name=op.f("fk_shard_level_of_theory_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_shard")),
    )
    op.create_table(
        "ensemble",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "training",
                "trained",
                "promoted",
                "refused",
                "failed",
                name="ensemblestate",
                native_enum=False,
                length=24,
            ),
            nullable=False,
        ),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("dataset_id", sa.Integer(), nullable=False),
        sa.Column("predecessor_id", sa.Integer(), nullable=True),
        sa.Column("hash", sa.String(), nullable=True),
        sa.Column("path", sa.String(), nullable=True),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("decided", sa.Double(), nullable=True),
        sa.Column("decision", sa.String(), nullable=True),
        sa.Column("metric", sa.String(), nullable=False),
        sa.Column("threshold", sa.Double(), nullable=True),
        sa.Column("bias_width", sa.Double(), nullable=True),
        sa.Column("calibration", sa.JSON(), nullable=True),
        sa.Column("quiet_rounds", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["dataset_id"], ["dataset.id"], name=op.f("fk_ensemble_dataset_id")),
        sa.ForeignKeyConstraint(["predecessor_id"], ["ensemble.id"], name=op.f("fk_ensemble_predecessor_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ensemble")),
        sa.UniqueConstraint("generation", "revision", name=op.f("uq_ensemble_generation_revision")),
    )
    op.create_index("ix_ensemble_state", "ensemble", ["state", "generation"], unique=False)
    op.create_table(
        "label",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=True),
        sa.Column("structure_id", sa.Integer(), nullable=False),
        sa.Column("level_of_theory_id", sa.Integer(), nullable=False),
        sa.Column("attempt_id", sa.Integer(), nullable=True),
        sa.Column(
            "split",
            sa.Enum(
                "train",
                "validation",
                "calibration",
                "test",
                "reference",
                name="split",
                native_enum=False,
                length=24,
            ),
            nullable=False,
        ),
        sa.Column("energy", sa.Double(), nullable=False),
        sa.Column("forces", sa.LargeBinary(), nullable=True),
        sa.Column("stress", sa.LargeBinary(), nullable=True),
        sa.Column("dipole", sa.LargeBinary(), nullable=True),
        sa.Column("dipole_origin", sa.LargeBinary(), nullable=True),
        sa.Column("charges", sa.LargeBinary(), nullable=True),
        sa.Column("charge_scheme", sa.String(), nullable=True),
        sa.Column("diagnostics", sa.JSON(), nullable=False),
        sa.Column("qm_calls", sa.Integer(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("retracted", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["attempt_id"], ["attempt.id"], name=op.f("fk_label_attempt_id")),
        sa.ForeignKeyConstraint(
            ["level_of_theory_id"], ["level_of_theory.id"], name=op.f("fk_label_level_of_theory_id")
        ),
        sa.ForeignKeyConstraint(["structure_id"], ["structure.id"], name=op.f("fk_label_structure_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_label")),
        sa.UniqueConstraint("seq", name=op.f("uq_label_seq")),
        sa.UniqueConstraint(
            "structure_id", "level_of_theory_id", name=op.f("uq_label_structure_id_level_of_theory_id")
        ),
    )
    op.create_index("ix_label_split_seq", "label", ["split", "seq"], unique=False)
    op.create_table(
        "rejection",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("structure_id", sa.Integer(), nullable=False),
        sa.Column("level_of_theory_id", sa.Integer(), nullable=False),
        sa.Column("attempt_id", sa.Integer(), nullable=True),
        sa.Column(
            "failure_class",
            sa.Enum(
                "input",
                "physics",
                "resource",
                "node",
                "bug",
                name="failureclass",
                native_enum=False,
                length=24,
            ),
            nullable=False,
        ),
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("diagnostics", sa.JSON(), nullable=False),
        sa.Column("qm_calls", sa.Integer(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["attempt_id"], ["attempt.id"], name=op.f("fk_rejection_attempt_id")),
        sa.ForeignKeyConstraint(
            ["level_of_theory_id"], ["level_of_theory.id"], name=op.f("fk_rejection_level_of_theory_id")
        ),
        sa.ForeignKeyConstraint(["structure_id"], ["structure.id"], name=op.f("fk_rejection_structure_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rejection")),
    )
    op.create_index(op.f("ix_rejection_structure_id"), "rejection", ["structure_id"], unique=False)
    op.create_table(
        "model",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("ensemble_id", sa.Integer(), nullable=False),
        sa.Column("member", sa.Integer(), nullable=False),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("task_id", sa.Integer(), nullable=True),
        sa.Column("path", sa.String(), nullable=True),
        sa.Column("sha256", sa.String(), nullable=True),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("trained_on", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["ensemble_id"], ["ensemble.id"], name=op.f("fk_model_ensemble_id")),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"], name=op.f("fk_model_task_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model")),
        sa.UniqueConstraint("ensemble_id", "member", name=op.f("uq_model_ensemble_id_member")),
    )
    op.create_index(op.f("ix_model_ensemble_id"), "model", ["ensemble_id"], unique=False)
    op.create_table(
        "score",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("structure_id", sa.Integer(), nullable=False),
        sa.Column("ensemble_id", sa.Integer(), nullable=False),
        sa.Column("task_id", sa.Integer(), nullable=True),
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("metric", sa.String(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("threshold", sa.Double(), nullable=True),
        sa.Column("energy_std", sa.Double(), nullable=True),
        sa.Column("force_std", sa.Double(), nullable=True),
        sa.Column("energy", sa.Double(), nullable=True),
        sa.Column("energy_error", sa.Double(), nullable=True),
        sa.Column("committee_error", sa.Double(), nullable=True),
        sa.Column("force_mae", sa.Double(), nullable=True),
        sa.Column("force_rmse", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["ensemble_id"], ["ensemble.id"], name=op.f("fk_score_ensemble_id")),
        sa.ForeignKeyConstraint(["structure_id"], ["structure.id"], name=op.f("fk_score_structure_id")),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"], name=op.f("fk_score_task_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_score")),
    )
    op.create_index("ix_score_ensemble_id_purpose", "score", ["ensemble_id", "purpose"], unique=False)
    op.create_index(
        "ix_score_structure_id_ensemble_id", "score", ["structure_id", "ensemble_id"], unique=False
    )
    op.create_table(
        "selection",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("structure_id", sa.Integer(), nullable=False),
        sa.Column("task_id", sa.Integer(), nullable=True),
        sa.Column("ensemble_id", sa.Integer(), nullable=True),
        sa.Column("decision", sa.String(), nullable=False),
        sa.Column("rule", sa.String(), nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("threshold", sa.Double(), nullable=True),
        sa.Column("rank", sa.Integer(), nullable=True),
        sa.Column("distance", sa.Double(), nullable=True),
        sa.Column("competitors", sa.Integer(), nullable=True),
        sa.Column("reason", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["ensemble_id"], ["ensemble.id"], name=op.f("fk_selection_ensemble_id")),
        sa.ForeignKeyConstraint(["structure_id"], ["structure.id"], name=op.f("fk_selection_structure_id")),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"], name=op.f("fk_selection_task_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_selection")),
    )
    op.create_index(op.f("ix_selection_structure_id"), "selection", ["structure_id"], unique=False)

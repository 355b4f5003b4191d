"""Why a member is missing from its ensemble, and the task of a member from its beginning."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "3"
down_revision = "2"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the column; members in training learn which task trains them."""
    op.add_column("model", sa.Column("missing", sa.String()))
    connection = op.get_bind()
    found = connection.execute(
        sa.text("SELECT id, inputs FROM task WHERE kind = 'train' AND state IN ('queued', 'dispatched')")
    )
    for task_id, stored in found.all():
        inputs = json.loads(stored) if isinstance(stored, str) else stored
        for member in inputs.get("members", ()):
            connection.execute(
                sa.text(
                    "UPDATE model SET task_id = :task WHERE ensemble_id = :ensemble AND member = :member "
                    "AND task_id IS NULL"
                ),
                {"task": task_id, "ensemble": inputs["ensemble_id"], "member": member["index"]},
            )

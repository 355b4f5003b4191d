"""Quadrupoles, and charges by further schemes."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "4"
down_revision = "3"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the columns; labels of earlier releases have none of them."""
    op.add_column("label", sa.Column("quadrupole", sa.LargeBinary()))
    op.add_column("label", sa.Column("other_charges", sa.LargeBinary()))
    op.add_column("label", sa.Column("other_schemes", sa.JSON()))

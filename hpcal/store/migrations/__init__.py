"""How stores of earlier releases are brought up to date (Alembic)."""

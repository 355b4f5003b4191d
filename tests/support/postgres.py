"""The PostgreSQL database that tests may use."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

POSTGRES_VARIABLE = "HPCAL_TEST_POSTGRES"
"""Environment variable with the URL of a database in which tests may make and drop schemas."""


def postgres_url() -> str:
    """The test database; skips where there is none."""
    url = os.environ.get(POSTGRES_VARIABLE)
    if url is None:
        pytest.skip(f"{POSTGRES_VARIABLE} does not name a PostgreSQL database")
    return url


def drop_schemas(url: str, folder: Path) -> None:
    """Removes what the stores of a folder left in the database."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        for record in folder.rglob("store.json"):
            schema = json.loads(record.read_text())["schema"]
            connection.execute(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')

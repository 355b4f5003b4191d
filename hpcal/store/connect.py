"""Engines: how SQLite and PostgreSQL are opened for writing and for reading."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine, StaticPool, create_engine, event

from hpcal.core.errors import PluginError
from hpcal.store.location import Location

BUSY_SECONDS: Final = 30
"""How long a connection waits for another one's transaction."""
IDLE_SECONDS: Final = 600
"""How long PostgreSQL lets a controller stand still within a transaction: its locks keep others out."""


def as_json(value: Any) -> str:
    """JSON that every database takes: numbers that are not finite become null."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def writer(location: Location) -> Engine:
    """An engine for the controller: durable, with foreign keys enforced."""
    if location.url is not None:
        return _postgresql(location, readonly=False)
    return _sqlite(location.file, readonly=False, alone=location.shared)


def reader(location: Location, file: Path | None = None) -> Engine:
    """An engine that cannot write.

    Args:
        file: the SQLite file to read in place of the store's own.
    """
    if location.url is not None:
        return _postgresql(location, readonly=True)
    return _sqlite(file or location.file, readonly=True, alone=False)


def _sqlite(path: Path, *, readonly: bool, alone: bool) -> Engine:
    query = "?mode=ro&uri=true" if readonly else "?uri=true"
    arguments: dict[str, Any] = {"timeout": BUSY_SECONDS}
    options: dict[str, Any] = {}
    if alone:
        # A second connection of this process would be locked out as well.
        arguments["check_same_thread"] = False
        options["poolclass"] = StaticPool
    engine = create_engine(
        f"sqlite:///file:{path}{query}", connect_args=arguments, json_serializer=as_json, **options
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        # SQLAlchemy begins transactions itself, so that BEGIN IMMEDIATE can take the write lock at once.
        connection.isolation_level = None
        cursor = connection.cursor()
        if not readonly:
            if alone:
                cursor.execute("PRAGMA locking_mode = EXCLUSIVE")
            cursor.execute(f"PRAGMA journal_mode = {'TRUNCATE' if alone else 'WAL'}")
            cursor.execute("PRAGMA synchronous = FULL")
            cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA cache_size = -65536")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")

    return engine


def _postgresql(location: Location, *, readonly: bool) -> Engine:
    settings = {
        "search_path": location.schema,
        "lock_timeout": f"{BUSY_SECONDS}s",
        "idle_in_transaction_session_timeout": f"{IDLE_SECONDS}s",
        "synchronous_commit": "on",
        "default_transaction_read_only": "on" if readonly else "off",
    }
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    try:
        return create_engine(
            str(location.url),
            connect_args={"options": options, "connect_timeout": BUSY_SECONDS},
            pool_pre_ping=True,
            json_serializer=as_json,
            # A reader sees one moment of the store, however many queries it makes.
            isolation_level="REPEATABLE READ" if readonly else "READ COMMITTED",
        )
    except ImportError as error:
        raise PluginError(
            f"the store is in PostgreSQL, but there is no psycopg ({error}): pip install 'hpcal[postgres]'"
        ) from error

"""Opening the database: pragmas, schema, read-only readers, fenced transactions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine, create_engine, event, inspect, select, text
from sqlalchemy.exc import DatabaseError, OperationalError
from sqlalchemy.orm import Session

from hpcal.core.errors import InputError, StoreError
from hpcal.store.lease import Lease
from hpcal.store.tables import SCHEMA_VERSION, Base, Campaign, EventRow

STORE_FILE: Final = "store.db"


class Store:
    """The store of one campaign.

    A writer holds a lease; every transaction of it asserts the lease's epoch first, so that a
    controller that was taken over cannot write. Readers open the file read-only.
    """

    def __init__(self, engine: Engine, lease: Lease | None = None) -> None:
        self._engine = engine
        self._lease = lease

    @classmethod
    def create(cls, folder: Path) -> Store:
        """Makes a new store in ``folder`` and opens it for writing, without a lease yet."""
        folder.mkdir(parents=True, exist_ok=True)
        engine = _engine(folder / STORE_FILE)
        Base.metadata.create_all(engine)
        return cls(engine)

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Opens an existing store for writing, without a lease yet. Raises as :meth:`read`."""
        store = cls(_engine(_existing(folder)))
        store._check_schema(folder)
        return store

    @classmethod
    def read(cls, folder: Path) -> Store:
        """Opens an existing store read-only.

        Raises:
            InputError: there is none, it is no store, or of another schema.
        """
        store = cls(_engine(_existing(folder), readonly=True))
        store._check_schema(folder)
        return store

    def acquire(self) -> Lease:
        """Takes the lease. Raises CampaignHeld if another live controller has it."""
        self._lease = Lease.acquire(self._engine)
        return self._lease

    def release(self) -> None:
        """Gives the lease back, so that another host need not wait until it looks dead."""
        if self._lease is not None:
            self._lease.release(self._engine)
            self._lease = None

    def beat(self) -> None:
        """Shows that the holder of the lease lives. Raises FencedError if it is another."""
        with self.write() as session:
            if self._lease is not None:
                self._lease.beat(session)

    def close(self) -> None:
        """Closes all connections."""
        self._engine.dispose()

    @property
    def epoch(self) -> int:
        """The fencing epoch of the lease held; 0 without one."""
        return self._lease.epoch if self._lease is not None else 0

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One durable transaction that asserts the lease.

        Raises:
            FencedError: another controller has taken over.
            StoreError: the database refused (disk full, read-only …); nothing of it was written.
        """
        try:
            with Session(self._engine, expire_on_commit=False) as session, session.begin():
                if self._lease is not None:
                    self._lease.assert_held(session)
                yield session
        except (OperationalError, DatabaseError) as error:
            raise StoreError(
                f"the store could not be written: {error.orig}; nothing of this step was kept"
            ) from error

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A session for reading."""
        with Session(self._engine) as session:
            yield session

    def _check_schema(self, folder: Path) -> None:
        try:
            known = inspect(self._engine).has_table(Campaign.__tablename__)
        except DatabaseError as error:
            raise InputError(f"{folder / STORE_FILE} is not a store of hpcal: {error.orig}") from error
        if not known:
            raise InputError(f"{folder / STORE_FILE} is not a store of hpcal: it has no campaign")
        with self.session() as session:
            version = session.scalar(select(Campaign.schema_version))
        if version is not None and version != SCHEMA_VERSION:
            newer = version > SCHEMA_VERSION
            advice = "use a newer hpcal" if newer else "it was made by an older hpcal; use that one"
            raise InputError(
                f"{folder / STORE_FILE} has schema {version}, this hpcal knows {SCHEMA_VERSION}: {advice}"
            )


def add_event(session: Session, epoch: int, kind: str, message: str, **data: Any) -> None:
    """Records an event; ``structure_id`` and ``task_id`` among the data go into their columns."""
    structure_id, task_id = data.pop("structure_id", None), data.pop("task_id", None)
    session.add(
        EventRow(
            time=time.time(), epoch=epoch, kind=kind, message=message, data=data,
            structure_id=structure_id, task_id=task_id,
        )
    )  # fmt: skip


def _existing(folder: Path) -> Path:
    path = folder / STORE_FILE
    if not path.is_file():
        raise InputError(f"no campaign in {folder}: {path} does not exist")
    return path


def _engine(path: Path, *, readonly: bool = False) -> Engine:
    query = "?mode=ro&uri=true" if readonly else "?uri=true"
    engine = create_engine(f"sqlite:///file:{path}{query}", connect_args={"timeout": 30})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        # SQLAlchemy begins transactions itself, so that BEGIN IMMEDIATE can take the write lock at once.
        connection.isolation_level = None
        cursor = connection.cursor()
        if not readonly:
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.execute("PRAGMA synchronous = FULL")
            cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA cache_size = -65536")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.execute(text("BEGIN" if readonly else "BEGIN IMMEDIATE"))

    return engine

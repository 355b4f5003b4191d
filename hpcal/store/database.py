"""Opening the store: schema, lease, read-only readers, fenced transactions."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine, func, insert, inspect, select, text
from sqlalchemy.exc import (
    DatabaseError,
    DataError,
    IntegrityError,
    OperationalError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.orm import Session

from hpcal.core.errors import InputError, StoreError
from hpcal.store import lease_file
from hpcal.store.connect import reader, writer
from hpcal.store.lease import Lease
from hpcal.store.lease_file import HolderRecord
from hpcal.store.location import SNAPSHOT_FILE, STORE_FILE, Location, exists
from hpcal.store.tables import ALEMBIC, SCHEMA_VERSION, Base, Campaign, EventRow

__all__ = ["STORE_FILE", "Store", "add_event"]

_DISK: Final = ("disk I/O error", "disk is full", "database is locked")
"""What SQLite says when the file is no fault of the user's."""

SNAPSHOT_SHARE: Final = 0.02
"""Share of the time that may go into snapshots for readers of a store on a network file system."""
SNAPSHOT_SECONDS: Final = 60.0
"""Least time between two snapshots."""


class Store:
    """The store of one campaign.

    A writer holds a lease; every transaction of it asserts the lease's epoch first, so that a
    controller that was taken over cannot write. Readers cannot write. On a network file system the
    writer has the file to itself, and readers see the last snapshot while it lives.
    """

    def __init__(self, engine: Engine, location: Location, lease: Lease | None = None) -> None:
        self._engine = engine
        self._location = location
        self._lease = lease
        self._holder: HolderRecord | None = None
        # One connection serves all threads of a controller that has the file to itself.
        self._alone = threading.RLock() if location.shared else None
        self._snapshot_due = 0.0

    @classmethod
    def create(cls, folder: Path, url: str | None = None) -> Store:
        """Makes a new store and opens it for writing, without a lease yet.

        Args:
            folder: folder of the campaign.
            url: PostgreSQL URL; None takes that of the environment (``HPCAL_STORE``), or else SQLite.

        Raises:
            InputError: the database cannot be used.
        """
        location = Location.new(folder, url)
        engine = writer(location)
        with _opening(location, new=True), engine.begin() as connection:
            if location.schema is not None:
                connection.execute(text(f'CREATE SCHEMA IF NOT EXISTS "{location.schema}"'))
            Base.metadata.create_all(connection)
            if connection.scalar(select(ALEMBIC.c.version_num)) is None:
                connection.execute(insert(ALEMBIC).values(version_num=str(SCHEMA_VERSION)))
        return cls(engine, location)

    @classmethod
    def open(cls, folder: Path) -> Store:
        """Opens an existing store for writing, without a lease yet.

        Raises:
            InputError: there is none, it is no store, or of another schema.
            CampaignHeld: it is on a network file system and a live controller has it to itself.
            StoreError: its database cannot be reached now.
        """
        location = Location.of(folder)
        if location.shared:
            lease_file.refuse_held(folder)
        store = cls(writer(location), location)
        store._check_schema(store._tables())
        return store

    @classmethod
    def read(cls, folder: Path) -> Store:
        """Opens an existing store read-only.

        Raises:
            InputError: there is none, it is no store, or of another schema.
            StoreError: its database cannot be reached now, or it is on a network file system and its
                controller has not published a snapshot yet.
        """
        store = cls._reading(Location.of(folder))
        store._check_schema(store._tables())
        return store

    @classmethod
    def _reading(cls, location: Location) -> Store:
        store = cls(reader(location, _published(location)), location)
        store._alone = None
        return store

    @classmethod
    def begun(cls, folder: Path) -> bool:
        """Whether a folder holds a campaign; one that was killed at its very start holds none yet.

        Raises:
            InputError: what is there is no store, or of another schema.
            StoreError: its database cannot be reached now.
        """
        if not exists(folder):
            return False
        location = Location.of(folder)
        if location.shared and not (folder / SNAPSHOT_FILE).is_file():
            lease_file.refuse_held(folder)
        store = cls._reading(location)
        try:
            tables = store._tables()
            # They come after the file, or in PostgreSQL after the one that says where they are.
            if not tables or (location.url is not None and Campaign.__tablename__ not in tables):
                return False
            store._check_schema(tables)
            with store.session() as session:
                return session.scalar(select(Campaign.id)) is not None
        finally:
            store.close()

    def acquire(self) -> Lease:
        """Takes the lease. Raises CampaignHeld if another live controller has it."""
        with self._refusals(), self._one_at_a_time():
            self._lease = Lease.acquire(self._engine)
            if self._location.url is not None:
                _set_sequences(self._engine)
        if self._location.shared:
            self._holder = HolderRecord.this_process().show(self._location.folder)
        return self._lease

    def release(self) -> None:
        """Gives the lease back, so that another host need not wait until it looks dead."""
        if self._lease is not None:
            with self._refusals(), self._one_at_a_time():
                self._lease.release(self._engine)
            self._lease = None
        if self._holder is not None:
            lease_file.withdraw(self._location.folder, self._holder)
            self._holder = None

    def beat(self) -> None:
        """Shows that the holder of the lease lives.

        Raises:
            FencedError: it is another.
            StoreError: a full disk or a long lock, which may pass.
        """
        with self.write():
            pass
        try:
            if self._holder is not None:
                self._holder = self._holder.show(self._location.folder)
            self._publish()
        except (OSError, sqlite3.Error) as error:
            raise StoreError(
                f"readers of {self._location} could not be told how it stands: {error}"
            ) from error

    def close(self) -> None:
        """Closes all connections."""
        self._engine.dispose()

    @property
    def epoch(self) -> int:
        """The fencing epoch of the lease held; 0 without one."""
        return self._lease.epoch if self._lease is not None else 0

    @property
    def location(self) -> Location:
        """Where it is."""
        return self._location

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One durable transaction that asserts the lease.

        Raises:
            FencedError: another controller has taken over.
            StoreError: the database refused (disk full, read-only …); nothing of it was written.
        """
        try:
            with (
                self._one_at_a_time(),
                Session(self._engine, expire_on_commit=False) as session,
                session.begin(),
            ):
                if self._lease is not None:
                    self._lease.assert_held(session)
                yield session
        except (IntegrityError, DataError, ProgrammingError):
            raise  # a fault of hpcal's, not of the disk
        except DatabaseError as error:
            raise StoreError(
                f"the store could not be written: {_cause(error)}; nothing of this step was kept"
            ) from error

    @contextmanager
    def session(self) -> Iterator[Session]:
        """A session for reading. Raises StoreError if the database cannot be reached."""
        try:
            with self._one_at_a_time(), Session(self._engine) as session:
                yield session
        except OperationalError as error:
            raise StoreError(f"the store {self._location} could not be read: {_cause(error)}") from error

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except OperationalError as error:
            raise StoreError(f"the store {self._location} could not be written: {_cause(error)}") from error

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        with ExitStack() as stack:
            if self._alone is not None:
                stack.enter_context(self._alone)
            yield

    def _publish(self) -> None:
        """A copy for readers, where they cannot open the store itself."""
        now = time.monotonic()
        if self._alone is None or self._location.url is not None or now < self._snapshot_due:
            return
        self.snapshot(self._location.folder / SNAPSHOT_FILE)
        took = time.monotonic() - now
        self._snapshot_due = time.monotonic() + max(SNAPSHOT_SECONDS, took / SNAPSHOT_SHARE)

    def snapshot(self, path: Path) -> None:
        """Copies an SQLite store as of one moment, by the backup interface; whole or not at all."""
        part = path.with_suffix(".part")
        part.unlink(missing_ok=True)
        with self._one_at_a_time(), self._engine.connect() as connection:
            copy = sqlite3.connect(part)
            try:
                source: Any = connection.connection.dbapi_connection
                connection.rollback()  # a backup within a write transaction would wait for itself
                source.backup(copy)
            finally:
                copy.close()
        os.replace(part, path)

    def _tables(self) -> list[str]:
        with _opening(self._location):
            return inspect(self._engine).get_table_names()

    def _check_schema(self, tables: Sequence[str]) -> None:
        where = self._location
        if not tables:
            raise InputError(f"{where} holds no campaign that was begun: start it with `hpcal run`")
        if Campaign.__tablename__ not in tables:
            raise InputError(f"{where} is not a store of hpcal: it has no campaign")
        with self.session() as session:
            version = session.scalar(select(Campaign.schema_version))
        if version is None or version == SCHEMA_VERSION:
            return
        advice = (
            "it was made by a newer hpcal: use that one"
            if version > SCHEMA_VERSION
            else f"it was made by an older hpcal: bring it up to date with `hpcal migrate {where.folder}`, "
            "which keeps a copy"
        )
        raise InputError(f"{where} has schema {version}, this hpcal knows {SCHEMA_VERSION}: {advice}")


def _set_sequences(engine: Engine) -> None:
    """Ids go on where they stand: a transaction that was rolled back leaves no gap in PostgreSQL either.

    Random streams are keyed by ids, and an interrupted campaign must draw what it would have drawn.
    """
    with engine.begin() as connection:
        for table in Base.metadata.tables.values():
            if "id" not in table.c:
                continue
            last = connection.scalar(select(func.max(table.c.id))) or 0
            name = connection.scalar(select(func.pg_get_serial_sequence(f'"{table.name}"', "id")))
            connection.execute(select(func.setval(name, max(last, 1), last > 0)))


@contextmanager
def _opening(location: Location, *, new: bool = False) -> Iterator[None]:
    """Raises InputError for what is no store, StoreError for one that another try may find.

    Args:
        new: it is only being made, so that a database that does not answer is most likely a wrong URL.
    """
    try:
        yield
    except (OperationalError, DatabaseError) as error:
        cause = _cause(error)
        if any(word in cause for word in _DISK):
            raise StoreError(f"{location} could not be opened: {cause}") from error
        if location.url is None:
            raise InputError(f"{location} is not a store of hpcal: {cause}") from error
        kind = InputError if new else StoreError
        raise kind(f"{location} cannot be reached: {cause}") from error


def _published(location: Location) -> Path | None:
    """The snapshot to read in place of a store that a live controller has to itself, or None."""
    holder = HolderRecord.read(location.folder) if location.shared else None
    if holder is None or holder.known_dead:
        return None
    snapshot = location.folder / SNAPSHOT_FILE
    if not snapshot.is_file():
        raise StoreError(
            f"{location} is on a network file system, where process {holder.pid} on {holder.host} has it to "
            "itself, and no snapshot is there yet: try again in a minute, or look at `hpcal status`"
        )
    return snapshot


def _cause(error: SQLAlchemyError) -> str:
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]


def add_event(session: Session, epoch: int, kind: str, message: str, **data: Any) -> None:
    """Records an event; ``structure_id`` and ``task_id`` among the data go into their columns."""
    structure_id, task_id = data.pop("structure_id", None), data.pop("task_id", None)
    session.add(
        EventRow(
            time=time.time(), epoch=epoch, kind=kind, message=message, data=data,
            structure_id=structure_id, task_id=task_id,
        )
    )  # fmt: skip

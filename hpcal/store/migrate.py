"""Bringing a store of an earlier release up to date."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from sqlalchemy import Connection, func, select, update
from sqlalchemy.orm import Session

from hpcal.core.errors import InputError
from hpcal.core.fingerprint import fingerprint
from hpcal.store import ensembles, lease_file
from hpcal.store.connect import writer
from hpcal.store.database import Store
from hpcal.store.location import Location
from hpcal.store.rows import structure_of
from hpcal.store.tables import SCHEMA_VERSION, Campaign, EnsembleRow, StructureRow

PORTION = 10_000


@dataclass(frozen=True, kw_only=True)
class Migrated:
    """What was done: schema numbers before and after, and the copy of the store as it was."""

    before: int
    after: int
    copy: Path | None


def migrate(folder: Path) -> Migrated:
    """Brings the store of a campaign to this release's schema, in one transaction.

    An SQLite store is copied first; what PostgreSQL holds is for its own backups to keep.

    Raises:
        InputError: there is no store, or it was made by a newer hpcal.
        CampaignHeld: a controller is running the campaign.
    """
    location = Location.of(folder)
    if location.shared:
        lease_file.refuse_held(folder)
    engine = writer(location)
    store = Store(engine, location)
    try:
        with store.session() as session:
            before = session.scalar(select(Campaign.schema_version))
        if before is None or before == SCHEMA_VERSION:
            return Migrated(before=SCHEMA_VERSION, after=SCHEMA_VERSION, copy=None)
        if before > SCHEMA_VERSION:
            raise InputError(
                f"{location} has schema {before}, this hpcal knows {SCHEMA_VERSION}: use a newer hpcal"
            )
        store.acquire()
        copy = None if location.url is not None else folder / f"store.schema-{before}.db"
        if copy is not None:
            store.snapshot(copy)
        with engine.begin() as connection:
            _upgrade(connection, before)
        return Migrated(before=before, after=SCHEMA_VERSION, copy=copy)
    finally:
        store.release()
        store.close()


def _upgrade(connection: Connection, before: int) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(files("hpcal.store.migrations")))
    config.attributes["connection"] = connection
    if before == 1:  # the first schema did not say its number in Alembic's own table
        command.stamp(config, "1")
    command.upgrade(config, "head")
    with Session(connection, join_transaction_mode="rollback_only") as session:
        _fill_fingerprints(session)
        ensembles.sum_errors(session, session.scalars(select(EnsembleRow.id)))
        session.execute(update(Campaign).values(schema_version=SCHEMA_VERSION))
        session.flush()
        session.commit()


def _fill_fingerprints(session: Session) -> None:
    last = session.scalar(select(func.max(StructureRow.id))) or 0
    for start in range(0, last, PORTION):
        rows = session.scalars(
            select(StructureRow).where(
                StructureRow.id.between(start + 1, start + PORTION), StructureRow.fingerprint.is_(None)
            )
        )
        found = [{"id": row.id, "fingerprint": fingerprint(structure_of(row))} for row in rows]
        if found:
            session.execute(update(StructureRow), found)
        session.expire_all()

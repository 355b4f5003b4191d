"""Where the store of a campaign is: a file in its folder, or a PostgreSQL database.

An SQLite store is ``DIR/store.db``. One in PostgreSQL has a database schema of its own, and
``DIR/store.json`` says which. SQLite shares a write-ahead log between processes through memory,
which no network file system provides; there the controller has the file to itself (``shared``).
"""

from __future__ import annotations

import json
import os
import re
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from hpcal.core.errors import InputError

STORE_FILE: Final = "store.db"
LOCATION_FILE: Final = "store.json"
LEASE_FILE: Final = "lease.json"
SNAPSHOT_FILE: Final = "snapshot.db"
STATUS_FILE: Final = "status.json"

URL_VARIABLE: Final = "HPCAL_STORE"
"""Environment variable with the URL of the database for new campaigns."""
FILESYSTEM_VARIABLE: Final = "HPCAL_FILESYSTEM"
"""Environment variable that overrides what is detected: ``local`` or ``network``."""

NETWORK_FILESYSTEMS: Final = frozenset(
    {
        *("afs", "beegfs", "ceph", "cifs", "dvs", "fhgfs", "fuse.ceph", "fuse.glusterfs", "fuse.sshfs"),
        *("glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs3", "nfs4", "orangefs", "panfs", "pvfs2"),
        *("smb2", "smb3", "smbfs", "wekafs"),
    }
)
"""Types of file systems on which processes of several hosts cannot share memory."""


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where a store is.

    Attributes:
        folder: folder of the campaign.
        url: PostgreSQL URL without a password, or None for an SQLite file in the folder.
        schema: PostgreSQL schema that holds the tables, or None.
        shared: whether the SQLite file is on a network file system.
    """

    folder: Path
    url: str | None = None
    schema: str | None = None
    shared: bool = False

    @classmethod
    def new(cls, folder: Path, url: str | None = None) -> Location:
        """Where a new campaign keeps its store; recorded in its folder if that is elsewhere.

        Args:
            folder: folder of the campaign; made if it is not there.
            url: PostgreSQL URL; None takes that of the environment, or else SQLite.

        Raises:
            InputError: the URL is of another database, or holds a password.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if exists(folder):  # left by a run that was killed at its very start
            return cls.of(folder)
        url = url or os.environ.get(URL_VARIABLE) or None
        if url is None:
            return cls(folder=folder, shared=on_network(folder))
        name = re.sub(r"[^a-z0-9]+", "_", folder.resolve().name.lower()).strip("_")[:40]
        location = cls(folder=folder, url=checked_url(url), schema=f"{name}_{uuid.uuid4().hex[:8]}")
        record = json.dumps({"url": location.url, "schema": location.schema}, indent=1)
        _write(folder / LOCATION_FILE, record)
        return location

    @classmethod
    def of(cls, folder: Path) -> Location:
        """Where the store of an existing campaign is. Raises InputError if there is none."""
        record = folder / LOCATION_FILE
        if record.is_file():
            try:
                found = json.loads(record.read_text(encoding="utf-8"))
                return cls(folder=folder, url=str(found["url"]), schema=str(found["schema"]))
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{record} does not say where the store is: {error}") from error
        if not (folder / STORE_FILE).is_file():
            raise InputError(f"no campaign in {folder}: {folder / STORE_FILE} does not exist")
        return cls(folder=folder, shared=on_network(folder))

    @property
    def file(self) -> Path:
        """The SQLite file."""
        return self.folder / STORE_FILE

    def __str__(self) -> str:
        return str(self.file) if self.url is None else f"{self.url} (schema {self.schema})"


def exists(folder: Path) -> bool:
    """Whether a folder has a store, or says where its store is."""
    return (folder / STORE_FILE).is_file() or (folder / LOCATION_FILE).is_file()


def checked_url(url: str) -> str:
    """A PostgreSQL URL for SQLAlchemy and psycopg.

    Raises:
        InputError: a URL of something else, or one with a password.
    """
    found = re.match(r"^postgres(?:ql)?(?:\+psycopg)?://(?P<rest>.*)$", url)
    if found is None:
        shown = re.sub(r":[^:@/]*@", ":…@", url)
        raise InputError(
            f"store {shown!r}: a URL such as postgresql://user@host/database is needed; leave it out for "
            "an SQLite file in the campaign's folder"
        )
    user = found["rest"].split("/", 1)[0].rpartition("@")[0]
    if ":" in user or "password=" in found["rest"]:
        raise InputError(
            "the URL of the store holds a password, and the URL is recorded in the campaign's folder: "
            "put the password into ~/.pgpass or PGPASSWORD instead"
        )
    return f"postgresql+psycopg://{found['rest']}"


def on_network(folder: Path) -> bool:
    """Whether a folder is on a network file system, where processes cannot share SQLite's memory."""
    forced = os.environ.get(FILESYSTEM_VARIABLE)
    if forced in ("local", "network"):
        return forced == "network"
    return filesystem(folder) in NETWORK_FILESYSTEMS


def filesystem(folder: Path) -> str:
    """Type of the file system that a folder is on, such as ``ext4`` or ``nfs4``."""
    path = folder.resolve()
    mounts = {Path(p.mountpoint): p.fstype for p in psutil.disk_partitions(all=True)}
    at = next((parent for parent in (path, *path.parents) if parent in mounts), None)
    return "" if at is None else mounts[at].lower()


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)

"""The folder of a campaign: whether it may be used, what it holds, and who runs it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hpcal.core.errors import InputError
from hpcal.store import campaigns
from hpcal.store.database import Store
from hpcal.store.lease import process_alive
from hpcal.store.lease_file import HolderRecord
from hpcal.store.location import (
    LEASE_FILE,
    LOCATION_FILE,
    SNAPSHOT_FILE,
    STATUS_FILE,
    STORE_FILE,
    Location,
)

OWN: Final = frozenset(
    {
        "controller",
        "ensemble",
        "models",
        "parsl",
        "report.html",
        "scratch",
        "shards",
        "stop",
        "tasks",
        "store.part",
        LEASE_FILE,
        LOCATION_FILE,
        SNAPSHOT_FILE,
        STATUS_FILE,
        STORE_FILE,
        f"{STORE_FILE}-journal",
        f"{STORE_FILE}-shm",
        f"{STORE_FILE}-wal",
    }
)
"""What a campaign puts into its folder; a folder with anything else belongs to someone else."""


def begun(root: Path) -> bool:
    """Whether a folder holds a campaign; one that was killed at its very start holds none yet."""
    return Store.begun(root)


def refuse_foreign(root: Path) -> None:
    """Raises InputError for a folder that holds something else than a campaign."""
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file: give another folder with --dir")
    if not root.is_dir():
        return
    foreign = sorted(entry.name for entry in root.iterdir() if entry.name not in OWN)
    if foreign:
        raise InputError(
            f"{root} is not empty and holds no campaign (there: {', '.join(foreign[:3])}): give an empty "
            "or new folder with --dir"
        )


@contextmanager
def reading(root: Path) -> Iterator[Store]:
    """The store of a campaign, read-only. Raises InputError if there is none."""
    store = Store.read(root)
    try:
        with store.session() as session:
            if not campaigns.exists(session):
                raise InputError(f"{root} holds no campaign that was begun: start it with `hpcal run`")
        yield store
    finally:
        store.close()


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The controller that has the lease of a campaign.

    Attributes:
        host: where it runs.
        pid: its process.
        counter: what it advances while it lives.
        gone: whether it is known to be dead, which only its own host can tell at once.
    """

    host: str
    pid: int
    counter: int
    gone: bool


def holder(root: Path) -> Holder | None:
    """Who has the lease of the campaign of a folder, or None if it was given back.

    Raises:
        InputError: there is no campaign.
    """
    if Location.of(root).shared:
        shown = HolderRecord.read(root)
        if shown is not None:
            return Holder(host=shown.host, pid=shown.pid, counter=shown.counter, gone=shown.known_dead)
    with reading(root) as store, store.session() as session:
        row = campaigns.campaign(session)
        if row.lease_host is None or row.lease_pid is None:
            return None
        here = row.lease_host == socket.gethostname()
        return Holder(
            host=row.lease_host,
            pid=row.lease_pid,
            counter=row.lease_counter,
            gone=here and not process_alive(row.lease_pid, row.lease_process_start),
        )

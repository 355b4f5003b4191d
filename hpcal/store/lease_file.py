"""Who runs a campaign whose store nobody else can open: a file beside it.

On a network file system the controller has the SQLite file to itself, so that the lease inside
cannot be read by others. What they need of it stands in ``DIR/lease.json``.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import psutil

from hpcal.core.errors import CampaignHeld
from hpcal.store.lease import advances, process_alive
from hpcal.store.location import LEASE_FILE

_LOCK: Final = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class HolderRecord:
    """A controller, as it shows itself beside its store.

    Attributes:
        host, pid, process_start: the process.
        counter: advances while it lives.
    """

    host: str
    pid: int
    process_start: float
    counter: int = 0

    @classmethod
    def this_process(cls) -> HolderRecord:
        """The process that asks."""
        return cls(host=socket.gethostname(), pid=os.getpid(), process_start=psutil.Process().create_time())

    @classmethod
    def read(cls, folder: Path) -> HolderRecord | None:
        """Who shows itself in a folder; None if nobody does."""
        try:
            return cls(**json.loads((folder / LEASE_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def show(self, folder: Path) -> HolderRecord:
        """Advances the counter; returns the record to go on with."""
        following = replace(self, counter=self.counter + 1)
        with _LOCK:
            part = folder / f".{LEASE_FILE}.part"
            part.write_text(json.dumps(asdict(following)), encoding="utf-8")
            os.replace(part, folder / LEASE_FILE)
        return following

    @property
    def known_dead(self) -> bool:
        """Whether it is dead for certain, which only its own host can tell at once."""
        return self.host == socket.gethostname() and not process_alive(self.pid, self.process_start)


def refuse_held(folder: Path) -> None:
    """Raises CampaignHeld if a live controller shows itself in the folder.

    One on another host is dead when its counter stands still for ``WATCH_SECONDS`` of this
    process's own clock; clocks are never compared.
    """
    seen = HolderRecord.read(folder)
    if seen is None or seen.known_dead or (seen.host, seen.pid) == (socket.gethostname(), os.getpid()):
        return

    def counter() -> int | None:
        now = HolderRecord.read(folder)
        return None if now is None else now.counter

    if seen.host == socket.gethostname() or advances(counter, seen.counter):
        raise CampaignHeld(
            f"the campaign in {folder} is run by process {seen.pid} on {seen.host}; stop that one with "
            "`hpcal stop`, or wait for it"
        )


def withdraw(folder: Path, holder: HolderRecord) -> None:
    """The controller has ended in good order; a successor's record stays."""
    shown = HolderRecord.read(folder)
    if shown is not None and (shown.host, shown.pid) == (holder.host, holder.pid):
        (folder / LEASE_FILE).unlink(missing_ok=True)

"""The lease: one controller at a time, judged dead without comparing clocks."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import psutil
from sqlalchemy import Engine, bindparam, select, update
from sqlalchemy.orm import Session

from hpcal.core.errors import CampaignHeld, FencedError
from hpcal.store.tables import Campaign

WATCH_SECONDS: Final = 15.0
"""How long a counter of another host must stand still before its controller counts as dead."""
BEAT_SECONDS: Final = 3.0
"""How often a live controller advances its counter."""


_LEASE: Final = Campaign.__table__.c
_BEAT: Final = (
    update(Campaign.__table__)  # type: ignore[arg-type]
    .where(_LEASE.lease_epoch == bindparam("held"))
    .values(lease_counter=_LEASE.lease_counter + 1)
)


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to write, with the epoch that fences off earlier holders."""

    epoch: int

    @classmethod
    def acquire(cls, engine: Engine) -> Lease:
        """Takes the lease of a campaign.

        A holder on this host is judged by process id and start time, at once. One on another host
        is dead when its counter stands still for ``WATCH_SECONDS`` of this process's own clock.

        Raises:
            CampaignHeld: a live controller has it; names host and process.
        """
        with Session(engine) as session:
            seen = session.scalars(select(Campaign)).one()
            epoch, counter = seen.lease_epoch, seen.lease_counter
            session.expunge(seen)
        # Outside the transaction: watching must not keep the holder from showing that it lives.
        if seen.lease_host is not None and _alive(engine, seen):
            raise CampaignHeld(
                f"campaign {seen.name!r} is run by process {seen.lease_pid} on {seen.lease_host}; "
                "stop that one with `hpcal stop`, or wait for it"
            )
        with Session(engine) as session, session.begin():
            # The counter too: a holder that was in a long transaction has shown by now that it lives.
            taken = session.execute(
                update(Campaign)
                .where(Campaign.lease_epoch == epoch, Campaign.lease_counter == counter)
                .values(
                    lease_epoch=epoch + 1,
                    lease_host=socket.gethostname(),
                    lease_pid=os.getpid(),
                    lease_process_start=psutil.Process().create_time(),
                    lease_counter=Campaign.lease_counter + 1,
                )
            )
            if _rows(taken) != 1:
                raise CampaignHeld("another controller took this campaign a moment ago, or its own one lives")
        return cls(epoch=epoch + 1)

    def assert_held(self, session: Session) -> None:
        """Shows that this controller lives, or raises FencedError if the lease has gone to another.

        From here to its commit the transaction keeps others from taking over: SQLite by its write
        lock, PostgreSQL by the lock on this row.
        """
        connection = session.connection()
        if connection.execute(_BEAT, {"held": self.epoch}).rowcount != 1:
            host, pid = connection.execute(select(Campaign.lease_host, Campaign.lease_pid)).one()
            raise FencedError(f"process {pid} on {host} has taken this campaign over; this controller ends")

    def release(self, engine: Engine) -> None:
        """Gives the lease back; a no-op if it has already gone to another."""
        with Session(engine) as session, session.begin():
            session.execute(
                update(Campaign)
                .where(Campaign.lease_epoch == self.epoch)
                .values(lease_host=None, lease_pid=None, lease_process_start=None)
            )


def _alive(engine: Engine, holder: Campaign) -> bool:
    if holder.lease_host == socket.gethostname():
        return process_alive(holder.lease_pid, holder.lease_process_start)

    def counter() -> int | None:
        with Session(engine) as session:
            now, host = session.execute(select(Campaign.lease_counter, Campaign.lease_host)).one()
        return None if host is None else int(now)

    return advances(counter, holder.lease_counter)


def advances(counter: Callable[[], int | None], seen: int) -> bool:
    """Whether a counter moves on within ``WATCH_SECONDS``; None says that its holder has gone."""
    deadline = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < deadline:
        time.sleep(min(1.0, WATCH_SECONDS / 10))
        now = counter()
        if now is None:
            return False
        if now != seen:
            return True
    return False


def process_alive(pid: int | None, start: float | None) -> bool:
    """Whether a process of this host that began at ``start`` (seconds since the epoch) still lives."""
    if pid is None or start is None:
        return False
    try:
        process = psutil.Process(pid)
        # A process id comes back after a while; the start time tells the two apart.
        return abs(process.create_time() - start) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _rows(result: Any) -> int:
    return int(result.rowcount)

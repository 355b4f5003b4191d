"""Watching the blocks of a pool: workers that fall silent, blocks that take no work, bad hosts.

Parsl notices a worker that dies at work and a block that misses its heartbeats. It does not notice

- a worker that is killed while it waits for work: it takes the lock of its manager's queue with it,
  and the workers beside it wait for ever;
- a result that was lost between a worker and its manager, as when the worker is killed while it sends;
- a worker that hangs, as on a dead file system.

So hpcal looks at the spools. Each attempt makes one as it begins and touches it while it lives.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hpcal.engine.dispatch import Assignment, Report, now
from hpcal.engine.parsl_blocks import PoolBlocks
from hpcal.engine.spool import BEAT_SECONDS, begun_in

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 5.0
SILENT_SECONDS: Final = 12 * BEAT_SECONDS
"""An attempt whose spool was not touched for so long counts as lost."""
STARVED_SECONDS: Final = 30.0
"""How long a block that has worked before may hold work and begin none of it."""
START_SECONDS: Final = 300.0
"""The same for a block that has not worked yet, whose first imports may take minutes."""


@dataclass
class _Open:
    """An attempt without a report.

    Attributes:
        spool: its file, made as it begins.
        block: block that it began in, once it has.
        touched: time of the file's last change, by the file system's clock.
        since: moment when a change was last seen, by this process's clock.
    """

    spool: Path
    block: str | None = None
    touched: int = 0
    since: float = 0.0


@dataclass
class PoolWatch:
    """Finds attempts that have fallen silent and replaces blocks that begin nothing."""

    blocks: PoolBlocks
    clock: Callable[[], float] = time.monotonic
    _open: dict[int, _Open] = field(default_factory=dict)
    _progress: dict[str, float] = field(default_factory=dict)
    _worked: set[str] = field(default_factory=set)
    _going: set[str] = field(default_factory=set)
    _looked: float = 0.0

    def submitted(self, assignment: Assignment) -> None:
        """An assignment was handed to the pool."""
        self._open[assignment.attempt_id] = _Open(spool=Path(assignment.spool))

    def reported(self, reports: Sequence[Report]) -> None:
        """Reports have come in, of this pool or others."""
        for report in reports:
            if self._open.pop(report.attempt_id, None) is not None and report.block is not None:
                self._began(report.block)

    def block_of(self, attempt_id: int) -> str | None:
        """Block in which an attempt without a report has begun, or None."""
        one = self._open.get(attempt_id)
        return None if one is None else one.block or begun_in(one.spool)

    def look(self) -> list[Report]:
        """Looks around, if it is time to; returns reports of attempts that count as lost."""
        moment = self.clock()
        if moment - self._looked < LOOK_SECONDS:
            return []
        self._looked = moment
        self.blocks.tend()
        if not (self._open or self._going):
            return []
        silent = [number for number, one in self._open.items() if self._silent(one)]
        lost = [self._lost(number) for number in silent]
        busy = Counter(one.block for one in self._open.values() if one.block is not None)
        self._replace_starved(busy)
        return lost

    def _silent(self, one: _Open) -> bool:
        """Whether an attempt has begun and shown no sign of life for too long."""
        try:
            touched = one.spool.stat().st_mtime_ns
        except OSError:  # not begun, or a file system that does not answer now
            return False
        if one.block is None:
            one.block = begun_in(one.spool)
            if one.block is not None:
                self._began(one.block)
        if touched != one.touched:
            one.touched, one.since = touched, self.clock()
        return self.clock() - one.since > SILENT_SECONDS

    def _lost(self, number: int) -> Report:
        one = self._open.pop(number)
        if one.block is not None:
            self._give_up(one.block, "a worker in it has fallen silent")
        text = f"no sign of life for {SILENT_SECONDS:.0f} s: its worker was killed, or hangs"
        return Report(attempt_id=number, lost=True, message=text, block=one.block, end=now())

    def _began(self, block: str) -> None:
        self._worked.add(block)
        self._progress[block] = self.clock()

    def _replace_starved(self, busy: Counter[str]) -> None:
        held: Counter[str] = Counter()
        for manager in self.blocks.executor.connected_managers():
            held[manager["block_id"]] += manager["tasks"]
        for block, count in held.items():
            if count <= busy[block]:
                self._progress[block] = self.clock()
            waited = self.clock() - self._progress.setdefault(block, self.clock())
            if waited > (STARVED_SECONDS if block in self._worked else START_SECONDS):
                self._give_up(block, "it begins none of the work that it holds")
        # A block that goes is let finish what it is at.
        done = [block for block in self._going if not busy[block]]
        self._going.difference_update(done)
        self.blocks.end(done)

    def _give_up(self, block: str, why: str) -> None:
        if block not in self._going:
            logger.warning("pool %s: block %s is replaced: %s", self.blocks.executor.label, block, why)
            self._going.add(block)
            self.blocks.hold(block)


@dataclass
class PoolHosts:
    """Which hosts the blocks of a pool were seen on, and which of them get no more work.

    Parsl knows no hosts that can be told to stay idle, so that whole blocks are: they are held,
    which lets no more tasks start there, and cancelled, upon which Parsl asks for others.
    """

    blocks: PoolBlocks
    local: bool
    _seen: dict[str, set[str]] = field(default_factory=dict)
    _aside: set[str] = field(default_factory=set)

    def reported(self, report: Report) -> None:
        """A report has come in, of this pool; a host set aside may have come back with a new block."""
        if report.block is None or report.host is None:
            return
        self._seen.setdefault(report.block, set()).add(report.host)
        if report.host in self._aside:
            self._give_up([report.block])

    def set_aside(self, host: str) -> bool:
        """Holds and replaces the blocks on a host; False if this pool has no other host."""
        if self.local:
            return host != socket.gethostname()
        self._aside.add(host)
        there = [block for block, hosts in self._seen.items() if host in hosts]
        alive = self.blocks.alive()
        full = len(alive) >= int(self.blocks.executor.provider.max_blocks)
        if full and set(alive) <= set(there):
            return False
        self._give_up(there)
        return True

    def _give_up(self, blocks: Sequence[str]) -> None:
        for block in blocks:
            self.blocks.hold(block)
        jobs = self.blocks.end(blocks)
        if jobs:
            logger.warning("pool %s: jobs %s are on a host set aside", self.blocks.executor.label, jobs)

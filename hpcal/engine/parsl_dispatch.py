"""Carrying assignments by Parsl: one executor a pool; completions arrive as events."""

from __future__ import annotations

import logging
import queue
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import parsl
from parsl.app.app import python_app
from parsl.executors.errors import ExecutorError
from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost

from hpcal.core.errors import FailureClass
from hpcal.engine.dispatch import Assignment, Report, now
from hpcal.engine.tasks import run_attempt
from hpcal.sites.parsl_config import parsl_config, parsl_log
from hpcal.sites.schema import Site

logger = logging.getLogger(__name__)

GONE: Final = (ManagerLost, WorkerLost)
"""What Parsl raises for a task whose worker or node has vanished."""

STARVED_SECONDS: Final = 30.0
"""How long a pool that has worked before may have work and begin none of it."""


@dataclass
class PoolWatch:
    """Notices a pool that has stopped taking work, and replaces its blocks.

    A worker that is killed while it waits for work takes the lock of Parsl's queue with it: its
    successor waits for ever, and Parsl sees nothing wrong. An attempt has begun when its spool is
    there.
    """

    executor: Any
    _open: dict[int, Path] = field(default_factory=dict)
    _works: bool = False
    _since: float | None = None

    def submitted(self, assignment: Assignment) -> None:
        """An assignment was handed to the pool."""
        self._open[assignment.attempt_id] = Path(assignment.spool)

    def reported(self, reports: Sequence[Report]) -> None:
        """Reports have come in, of this pool or others."""
        for report in reports:
            if self._open.pop(report.attempt_id, None) is not None:
                self._works, self._since = not report.lost, None

    def look(self) -> None:
        """Replaces the blocks of a pool that has begun nothing for too long."""
        begun = any(spool.exists() for spool in self._open.values())
        if begun or not self._open or not self._works:
            self._since = None
            return
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if now - self._since > STARVED_SECONDS:
            logger.warning("pool %s takes no work: its blocks are replaced", self.executor.label)
            self._works, self._since = False, None
            self.executor.scale_in_facade(len(self.executor.blocks_to_job_id))


@dataclass
class PoolHosts:
    """Which hosts the blocks of a pool were seen on, and which of them get no more work.

    Parsl knows no hosts that can be told to stay idle, so that whole blocks are: they are held,
    which lets no more tasks start there, and cancelled, upon which Parsl asks for others.
    """

    executor: Any
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
        blocks = [block for block, hosts in self._seen.items() if host in hosts]
        others = [block for block in self._alive() if block not in blocks]
        if not others and self._full():
            return False
        self._give_up(blocks)
        return True

    def _alive(self) -> list[str]:
        return [block for block, status in self.executor.status().items() if not status.terminal]

    def _full(self) -> bool:
        """Whether no further block may be asked for beside those that are there."""
        return len(self._alive()) >= int(self.executor.provider.max_blocks)

    def _give_up(self, blocks: Sequence[str]) -> None:
        alive = set(self._alive())
        jobs = []
        for block in blocks:
            if block in alive:
                self.executor._hold_block(block)
                jobs.append(self.executor.blocks_to_job_id[block])
        if jobs:
            logger.warning("pool %s: jobs %s are on a host set aside", self.executor.label, jobs)
            self.executor.provider.cancel(jobs)


class ParslDispatcher:
    """Carries assignments to the pools of a site; to be made and used in the main thread."""

    virtual = False

    def __init__(self, site: Site, run_dir: Path, run_id: str) -> None:
        self._site = site
        self._done: queue.SimpleQueue[Report] = queue.SimpleQueue()
        self._pools: dict[int, str] = {}
        self._exit = ExitStack()
        run_dir.mkdir(parents=True, exist_ok=True)
        self._exit.enter_context(parsl_log(run_dir / "parsl.log"))
        kernel = parsl.load(parsl_config(site, run_dir, run_id))
        self._exit.callback(kernel.cleanup)
        self._watch = {pool: PoolWatch(executor=kernel.executors[pool]) for pool in site.pools}
        self._hosts = {
            pool: PoolHosts(
                executor=kernel.executors[pool],
                local=(site.pools[pool].kind or site.kind) == "local",
            )
            for pool in site.pools
        }
        self._apps = {
            pool: python_app(run_attempt, data_flow_kernel=kernel, executors=[pool], cache=False)
            for pool in site.pools
        }

    def slots(self) -> Mapping[str, int]:
        """Workers by pool."""
        return {pool: self._site.slots(pool) for pool in self._site.pools}

    def pool(self, wanted: str, size: int = 0) -> str:
        """The pool that serves for ``wanted``, or a larger one if the site names such a pool."""
        return self._site.larger(wanted, size)

    def set_aside(self, host: str) -> tuple[str, ...]:
        """Gives a host no more work; returns the pools that have no other host."""
        return tuple(pool for pool, hosts in self._hosts.items() if not hosts.set_aside(host))

    def submit(self, assignment: Assignment) -> None:
        """Hands an assignment to its pool."""
        pool = self._site.pool(assignment.pool)
        seconds = assignment.seconds
        if seconds is not None and pool.walltime_s is not None:
            seconds = min(seconds, float(pool.walltime_s))
        slot = replace(assignment, threads=pool.cores_per_worker, seconds=seconds)
        future = self._apps[assignment.pool](slot)
        self._watch[assignment.pool].submitted(assignment)
        self._pools[assignment.attempt_id] = assignment.pool
        future.add_done_callback(lambda f: self._done.put(_report(assignment, f)))

    def wait(self, timeout: float) -> list[Report]:
        """What has come in; completions close to each other come together."""
        reports = self._collect(timeout)
        for watch in self._watch.values():
            watch.reported(reports)
            watch.look()
        for report in reports:
            pool = self._pools.pop(report.attempt_id, None)
            if pool is not None:
                self._hosts[pool].reported(report)
        return reports

    def _collect(self, timeout: float) -> list[Report]:
        try:
            reports = [self._done.get(timeout=timeout)]
        except queue.Empty:
            return []
        while True:
            try:
                reports.append(self._done.get_nowait())
            except queue.Empty:
                return reports

    def close(self) -> None:
        """Ends all workers."""
        self._exit.close()


def _report(assignment: Assignment, future: Future[Any]) -> Report:
    error = future.exception()
    if error is None:
        report: Report = future.result()
        return report
    if isinstance(error, GONE):
        return Report(
            attempt_id=assignment.attempt_id, lost=True, message=str(error), host=error.hostname, end=now()
        )
    kind = FailureClass.NODE if isinstance(error, ExecutorError) else FailureClass.BUG
    return Report(attempt_id=assignment.attempt_id, failure=kind, message=f"{type(error).__name__}: {error}")

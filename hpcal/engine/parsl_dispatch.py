"""Carrying assignments by Parsl: one executor a pool; completions arrive as events."""

from __future__ import annotations

import logging
import queue
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
from hpcal.engine.dispatch import Assignment, Report
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


class ParslDispatcher:
    """Carries assignments to the pools of a site; to be made and used in the main thread."""

    virtual = False

    def __init__(self, site: Site, run_dir: Path, run_id: str) -> None:
        self._site = site
        self._done: queue.SimpleQueue[Report] = queue.SimpleQueue()
        self._exit = ExitStack()
        run_dir.mkdir(parents=True, exist_ok=True)
        self._exit.enter_context(parsl_log(run_dir / "parsl.log"))
        kernel = parsl.load(parsl_config(site, run_dir, run_id))
        self._exit.callback(kernel.cleanup)
        self._watch = {pool: PoolWatch(executor=kernel.executors[pool]) for pool in site.pools}
        self._apps = {
            pool: python_app(run_attempt, data_flow_kernel=kernel, executors=[pool], cache=False)
            for pool in site.pools
        }

    def slots(self) -> Mapping[str, int]:
        """Workers by pool."""
        return {pool: self._site.slots(pool) for pool in self._site.pools}

    def pool(self, wanted: str) -> str:
        """The pool that serves for ``wanted``."""
        return self._site.pool_name(wanted)

    def submit(self, assignment: Assignment) -> None:
        """Hands an assignment to its pool."""
        threads = self._site.pool(assignment.pool).cores_per_worker
        future = self._apps[assignment.pool](replace(assignment, threads=threads))
        self._watch[assignment.pool].submitted(assignment)
        future.add_done_callback(lambda f: self._done.put(_report(assignment, f)))

    def wait(self, timeout: float) -> list[Report]:
        """What has come in; completions close to each other come together."""
        reports = self._collect(timeout)
        for watch in self._watch.values():
            watch.reported(reports)
            watch.look()
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
        return Report(attempt_id=assignment.attempt_id, lost=True, message=str(error))
    kind = FailureClass.NODE if isinstance(error, ExecutorError) else FailureClass.BUG
    return Report(attempt_id=assignment.attempt_id, failure=kind, message=f"{type(error).__name__}: {error}")

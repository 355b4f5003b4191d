"""Carrying assignments by Parsl: one executor a pool; completions arrive as events."""

from __future__ import annotations

import queue
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
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

GONE: Final = (ManagerLost, WorkerLost)
"""What Parsl raises for a task whose worker or node has vanished."""


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
        future.add_done_callback(lambda f: self._done.put(_report(assignment, f)))

    def wait(self, timeout: float) -> list[Report]:
        """What has come in; completions close to each other come together."""
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

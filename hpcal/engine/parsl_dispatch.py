"""Carrying assignments by Parsl: one executor a pool; completions arrive as events."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import parsl
from parsl.app.app import python_app
from parsl.executors.errors import ExecutorError
from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost

from hpcal.core.errors import FailureClass, WorkersLost
from hpcal.engine.dispatch import Assignment, BlockEnd, BlocksWait, Report, now
from hpcal.engine.parsl_blocks import PoolBlocks
from hpcal.engine.parsl_watch import PoolHosts, PoolWatch
from hpcal.engine.tasks import run_attempt
from hpcal.sites.answers import End, how_ended
from hpcal.sites.interchange import Interchange
from hpcal.sites.parsl_config import end_parsl, parsl_config, parsl_log
from hpcal.sites.pool import Pool
from hpcal.sites.scheduler import Job
from hpcal.sites.schema import Site

NEWS_SECONDS: Final = 30.0
"""Least time between two words on why blocks wait, which changes as often as a scheduler is asked."""
GONE: Final = (ManagerLost, WorkerLost)
"""What Parsl raises for a task whose worker or node has vanished."""


class ParslDispatcher:
    """Carries assignments to the pools of a site; to be made and used in the main thread."""

    virtual = False

    def __init__(
        self,
        site: Site,
        run_dir: Path,
        run_id: str,
        block_ended: Callable[[BlockEnd], None] | None = None,
        blocks_wait: Callable[[BlocksWait], None] | None = None,
    ) -> None:
        """Starts the pools of a site.

        Args:
            run_dir: folder for Parsl's files.
            run_id: of the campaign.
            block_ended: is told of each batch job that has ended, within :meth:`wait`.
            blocks_wait: is told there, when it changes, why batch jobs have not started.
        """
        self._site, self._run_id = site, run_id
        self._block_ended, self._blocks_wait = block_ended, blocks_wait
        self._waiting, self._told_at = BlocksWait(pools={}), float("-inf")
        self._ended_jobs: queue.SimpleQueue[tuple[str, str, Job]] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Report] = queue.SimpleQueue()
        self._pools: dict[int, str] = {}
        self._ends: dict[tuple[str, str], tuple[BlockEnd, End]] = {}
        self._exit = ExitStack()
        run_dir.mkdir(parents=True, exist_ok=True)
        self._exit.enter_context(parsl_log(run_dir / "parsl.log"))
        kernel = parsl.load(parsl_config(site, run_dir, run_id, self._job_ended))
        self._exit.callback(end_parsl, kernel)
        self._interchanges = {pool: Interchange(kernel.executors[pool]) for pool in site.pools}
        self._blocks = {pool: PoolBlocks(executor=kernel.executors[pool]) for pool in site.pools}
        self._watch = {pool: PoolWatch(blocks=blocks) for pool, blocks in self._blocks.items()}
        self._hosts = {
            pool: PoolHosts(blocks=blocks, local=site.kind_of(pool) == "local")
            for pool, blocks in self._blocks.items()
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

    def room(self, wanted: str) -> float | None:
        """Seconds that work can have in its largest pool; None where blocks have no end."""
        return self._site.room(wanted)

    def set_aside(self, host: str) -> tuple[str, ...]:
        """Gives a host no more work; returns the pools that have no other host."""
        return tuple(pool for pool, hosts in self._hosts.items() if not hosts.set_aside(host))

    def submit(self, assignment: Assignment) -> None:
        """Hands an assignment to its pool."""
        pool = self._site.pool(assignment.pool)
        local = self._site.kind_of(assignment.pool) == "local"
        slot = replace(
            assignment,
            threads=pool.cores_per_worker,
            memory_MB=pool.memory_MB,
            margin=float(pool.walltime_margin),
            room=None if local else pool.task_seconds,
            scratch=_scratch(pool, assignment.scratch, self._run_id),
            temporary=pool.scratch_of(self._run_id),
        )
        future = self._apps[assignment.pool](slot)
        self._watch[assignment.pool].submitted(assignment)
        self._pools[assignment.attempt_id] = assignment.pool
        future.add_done_callback(lambda f: self._done.put(_report(assignment, f)))

    def wait(self, timeout: float) -> list[Report]:
        """What has come in; completions close to each other come together.

        Raises:
            WorkersLost: the workers of a pool cannot be reached any more.
        """
        self._refuse_lost()
        reports = self._collect(timeout)
        self._tell_ended_blocks()
        self._tell_waiting_blocks()
        reports = [self._explained(report) for report in reports]
        for watch in self._watch.values():
            watch.reported(reports)
            reports += watch.look()
        for report in reports:
            pool = self._pools.pop(report.attempt_id, None)
            if pool is not None:
                self._hosts[pool].reported(report)
        return reports

    def _refuse_lost(self) -> None:
        for pool, interchange in self._interchanges.items():
            if fault := interchange.fault:
                raise WorkersLost(
                    f"Parsl's interchange, by which the workers of pool {pool} are reached, {fault}, as "
                    "where this host runs out of memory; nothing finished is lost: go on with `hpcal resume`"
                )

    def _job_ended(self, pool: str, job_id: str, job: Job) -> None:
        """Called in the thread in which Parsl looks at its blocks."""
        self._ended_jobs.put((pool, job_id, job))

    def _tell_ended_blocks(self) -> None:
        while not self._ended_jobs.empty():
            pool, job_id, job = self._ended_jobs.get()
            block = self._blocks[pool].executor.job_ids_to_block.get(job_id, "?")
            end = BlockEnd(
                pool=pool, block=block, job=job.id, reason=job.reason, exit_code=job.exit_code, time=now()
            )
            self._ends[pool, block] = end, how_ended(job)
            if self._block_ended is not None:
                self._block_ended(end)

    def _tell_waiting_blocks(self) -> None:
        if self._blocks_wait is None or time.monotonic() - self._told_at < NEWS_SECONDS:
            return
        found = {pool: blocks.waiting() for pool, blocks in self._blocks.items()}
        waiting = BlocksWait(pools={pool: reasons for pool, reasons in found.items() if reasons})
        if waiting != self._waiting:
            self._waiting, self._told_at = waiting, time.monotonic()
            self._blocks_wait(waiting)

    def _explained(self, report: Report) -> Report:
        """A lost attempt with the scheduler's word; its job being cancelled counts against nobody."""
        pool = self._pools.get(report.attempt_id)
        if not report.lost or pool is None:
            return report
        block = report.block or self._watch[pool].block_of(report.attempt_id)
        end, how = self._ends.get((pool, block or ""), (None, None))
        if end is None:
            return replace(report, block=block)
        called_off = how in (End.CANCELLED, End.LOST)
        message = f"{report.message}; {end.sentence}"
        return replace(report, block=block, message=message, lost=not called_off, interrupted=called_off)

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
        """Ends all workers; says which batch jobs the scheduler could not be told to end."""
        self._exit.close()


def _scratch(pool: Pool, usual: str, run_id: str) -> str:
    """Folder of an attempt's own files; variables in it are those of the node."""
    own = pool.scratch_of(run_id)
    return usual if own is None else str(Path(own) / Path(usual).name)


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

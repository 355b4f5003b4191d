"""Blocks of workers as batch jobs, whichever the scheduler: a mixin before one of Parsl's providers.

A provider asks nothing of its base but the settings and the batch script. What it does otherwise:

- **A submission that fails is owed, not raised.** Parsl would count it as a failed block and try
  again every quarter of a second. Here the block is pending, under a ticket in place of a job's
  id, and is handed in again after a pause that grows from 1 s to 60 s. What the scheduler will
  never take (:class:`~hpcal.sites.answers.Refused`) is tried twice, then its block has failed.
- **Only an answer changes a block.** Where the scheduler fails to answer, statuses stay.
- **A job that the scheduler has forgotten has ended**, unless it was handed in just now and not
  seen since.
- How each job ended, in the scheduler's words, is reported once.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from parsl.jobs.states import JobState, JobStatus

from hpcal.sites.answers import FORGOTTEN, End, Refused, how_ended
from hpcal.sites.scheduler import MARK, Job, Scheduler, SchedulerError, SchedulerState

REFUSALS: Final = 2
"""Times that a scheduler may refuse a block for good before the block has failed."""
_TICKET: Final = "owed:"
_LONGEST_PAUSE_S: Final = 60.0
_CANCEL_TRIES: Final = 3
_SOON_S: Final = 0.25

_PARSL_STATES: Final = {
    End.NORMAL: JobState.COMPLETED,
    End.TIMEOUT: JobState.TIMEOUT,
    End.CANCELLED: JobState.CANCELLED,
    End.LOST: JobState.TIMEOUT,  # Parsl has no state of its own for it; it is no failure either
    End.FAILED: JobState.FAILED,
}

logger = logging.getLogger("parsl.hpcal.blocks")
"""Below Parsl's, so that it goes where Parsl's log goes."""


class BackOff:
    """The pause after failures in a row: 1, 2, 4 … 60 s."""

    def __init__(self) -> None:
        self._failures = 0
        self._until = 0.0

    def failed(self) -> None:
        """Lengthens the pause, which begins now."""
        pause_s = min(_LONGEST_PAUSE_S, 2.0**self._failures)
        self._failures = min(self._failures + 1, 10)
        self._until = time.monotonic() + pause_s

    def succeeded(self) -> None:
        """Ends the pause; the next failure is the first."""
        self._failures, self._until = 0, 0.0

    @property
    def left_s(self) -> float:
        """Seconds until the next try; 0 if it may be made now."""
        return max(0.0, self._until - time.monotonic())


@dataclass(frozen=True, kw_only=True)
class BatchScript:
    """A batch script as written, and where its job will write."""

    path: Path
    stdout: Path
    stderr: Path


@dataclass(kw_only=True)
class Block:
    """A block from the provider's side.

    Attributes:
        known_as: the id that Parsl knows: the job's, or a ticket if the first submission failed.
        mark: of its job in the scheduler, unique.
        write: writes its batch script.
        script: once written.
        job: as the scheduler last told of it; None while the block is owed.
        handed_in_at: when the scheduler took it, on the monotonic clock, in s.
        seen: the scheduler has told of its job since.
        tries: times that it was handed in.
        refusals: times that the scheduler refused it for good.
        words: of the scheduler when a submission failed last; empty if none did.
        cancelled: by this provider.
        ended: its job is known to have ended, or it never had one and never will.
        failed: as a block of workers; None until judged (see ``block_errors``).
    """

    known_as: str = ""
    mark: str
    write: Callable[[], BatchScript]
    script: BatchScript | None = None
    job: Job | None = None
    handed_in_at: float = 0.0
    seen: bool = False
    tries: int = 0
    refusals: int = 0
    words: str = ""
    cancelled: bool = False
    ended: bool = False
    failed: bool | None = None

    @property
    def owed(self) -> bool:
        """Whether it has still to be handed in."""
        return self.job is None and not self.ended

    @property
    def watched(self) -> bool:
        """Whether its job has been handed in and has not ended."""
        return self.job is not None and not self.ended

    @property
    def state(self) -> JobState:
        """Parsl's word for where it stands."""
        if self.cancelled:
            return JobState.CANCELLED
        if self.job is None:
            return JobState.FAILED if self.ended else JobState.PENDING
        if self.ended:
            return _PARSL_STATES[how_ended(self.job)]
        return JobState.RUNNING if self.job.state is SchedulerState.RUNNING else JobState.PENDING

    @property
    def last_job(self) -> Job:
        """The job of a block that has one."""
        if self.job is None:
            raise LookupError(f"block {self.mark} has no job yet")
        return self.job

    def status(self) -> JobStatus:
        """For Parsl; a new one each time, because HTEX writes into it."""
        return JobStatus(
            self.state,
            message=(self.job.reason if self.job else self.words) or None,
            exit_code=self.job.exit_code if self.job else None,
            stdout_path=str(self.script.stdout) if self.script else None,
            stderr_path=str(self.script.stderr) if self.script else None,
        )


class SchedulerBlocks:
    """Before a provider of Parsl in the list of bases; :meth:`_write_script` is for the subclass.

    Parsl submits blocks from one thread; all else may be called from others meanwhile.

    Args:
        scheduler: that takes the jobs.
        run_id: of the campaign; part of each job's mark, ``hpcal:RUN_ID:POOL.N.TOKEN``.
        pool: name of the pool of workers.
        poll_seconds: between two looks at the jobs.
        grace_seconds: after its submission in which a job may be unknown to the scheduler.
        ended: called once for each block whose job has ended, with the id that Parsl knows
            (``executor.job_ids_to_block`` has its block) and the job; or None.
        options: for Parsl's provider.
    """

    script_dir: str | None

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        run_id: str,
        pool: str,
        poll_seconds: float = 60.0,
        grace_seconds: float = 60.0,
        ended: Callable[[str, Job], None] | None = None,
        **options: Any,
    ) -> None:
        self.scheduler = scheduler
        self.run_id = run_id
        self.pool = pool
        self.poll_seconds = poll_seconds
        self.grace_seconds = grace_seconds
        self.ended = ended
        self.blocks: dict[str, Block] = {}
        """All blocks by the id that Parsl knows, in the order of submission."""
        self.ended_blocks: list[Block] = []
        """Those whose jobs have ended, in the order in which that was seen."""
        self.refused_for = ""
        """The scheduler's words for what it will never take; empty once it has taken a block since."""
        self.bad_starts = BackOff()
        """The pause after blocks that failed; for who judges them."""
        self._refusals = BackOff()
        self._handing_in = threading.Lock()
        self._asking = threading.Lock()
        self._closed = False
        self._left: set[str] = set()
        self._token = secrets.token_hex(3)
        self._looked_at = float("-inf")
        super().__init__(**options)

    @property
    def status_polling_interval(self) -> float:
        """Seconds until Parsl should ask for statuses again; soon while blocks are owed."""
        if any(block.owed for block in list(self.blocks.values())):
            return min(self.poll_seconds, max(self.pause_s, _SOON_S))
        return self.poll_seconds

    @property
    def pause_s(self) -> float:
        """Seconds until a block may be handed in."""
        return max(self._refusals.left_s, self.bad_starts.left_s)

    @property
    def waiting(self) -> Mapping[str, str]:
        """Why blocks that have not started have not: the scheduler's words by the id Parsl knows."""
        pending = [block for block in list(self.blocks.values()) if block.state == JobState.PENDING]
        return {block.known_as: (block.job.reason if block.job else block.words) for block in pending}

    def submit(self, command: str, tasks_per_node: int, job_name: str = "hpcal") -> str:
        """Hands in a block; where the scheduler does not take it now, it is owed.

        Returns:
            The job's id, or a ticket that stands for it from now on.
        """
        number = len(self.blocks)
        block = Block(
            mark=f"{MARK}{self.run_id}:{self.pool}.{number}.{self._token}",
            write=lambda: self._write_script(command, tasks_per_node, job_name),
        )
        if self._closed:
            block.ended = block.cancelled = True
        elif not self.pause_s:
            self._hand_in(block)
        block.known_as = block.job.id if block.job else f"{_TICKET}{block.mark}"
        self.blocks[block.known_as] = block
        return block.known_as

    def status(self, job_ids: Sequence[str]) -> list[JobStatus]:
        """Where blocks stand, after handing in what is owed and, once a poll is due, a look.

        Without these two while another thread is at them: no end is told of twice.
        """
        if not self._closed and self._asking.acquire(blocking=False):
            try:
                self._ask()
            finally:
                self._asking.release()
        return [self.blocks[job_id].status() for job_id in job_ids]

    def _ask(self) -> None:
        for block in [block for block in list(self.blocks.values()) if block.owed]:
            if self.pause_s:
                break
            self._hand_in(block)
        # A little early rather than a whole call of Parsl's too late.
        if time.monotonic() >= self._looked_at + self.poll_seconds - _SOON_S:
            self._look()

    def cancel(self, job_ids: Sequence[str]) -> list[bool]:
        """Ends blocks; False for all whose jobs the scheduler could not be told to end."""
        blocks = [self.blocks[job_id] for job_id in job_ids]
        for block in blocks:
            if block.owed:
                self._give_up(block)
        jobs = [block.last_job.id for block in blocks if block.watched]
        told = self._cancel([job_id for job_id in jobs if job_id not in self._left])
        for block in blocks:
            over = not block.watched or (told and block.last_job.id not in self._left)
            block.cancelled = block.cancelled or over
        if self._closed and not told:
            self._left.update(jobs)
        return [block.cancelled for block in blocks]

    def cancel_all(self) -> None:
        """Ends all blocks, as for a pool that is given up, whose blocks Parsl would leave."""
        self.cancel([known_as for known_as, block in list(self.blocks.items()) if not block.ended])

    def close(self) -> None:
        """Ends all blocks and hands in no more; a scheduler that does not answer is not asked again."""
        self._closed = True
        self.cancel_all()

    @property
    def left(self) -> list[str]:
        """Ids of jobs that the scheduler could not be told to end."""
        return [b.last_job.id for b in list(self.blocks.values()) if b.watched and not b.cancelled]

    def _write_script(self, command: str, tasks_per_node: int, job_name: str) -> BatchScript:
        """Writes the batch script of a block.

        Args:
            command: that starts the workers, not wrapped by the launcher yet.
            tasks_per_node: times that the launcher starts it on each node.
            job_name: a name for the job, unique in this executor.
        """
        raise NotImplementedError

    def _hand_in(self, block: Block) -> None:
        """One try; whether it succeeded is told by the block."""
        with self._handing_in:
            if block.owed and not self._closed:
                self._try(block)

    def _try(self, block: Block) -> None:
        try:
            if block.script is None:
                block.script = block.write()
            if not self._find(block):
                block.tries += 1
                job_id = self.scheduler.submit(block.script.path, mark=block.mark)
                self._taken(block, Job(id=job_id, state=SchedulerState.PENDING, mark=block.mark))
        except Refused as error:
            self._not_taken(block, error)
            block.refusals += 1
            block.ended = block.refusals >= REFUSALS
            if block.ended:
                self.refused_for = block.words
        except (SchedulerError, OSError) as error:
            self._not_taken(block, error)
        else:
            self._refusals.succeeded()

    def _give_up(self, block: Block) -> None:
        """Makes sure that an owed block will not be handed in, unless it has been after all."""
        with self._handing_in:
            with suppress(SchedulerError):  # one that did arrive is a stray like any other
                if block.owed:
                    self._find(block)
            block.ended = block.ended or block.job is None

    def _find(self, block: Block) -> bool:
        """Whether an earlier try reached the scheduler after all."""
        if not block.tries:
            return False
        found = self.scheduler.marked(block.mark)
        if found:
            self._taken(block, found[0])
        return bool(found)

    def _taken(self, block: Block, job: Job) -> None:
        self.refused_for = ""
        logger.info("pool %s: the scheduler took block %s as job %s", self.pool, block.mark, job.id)
        block.job = job
        block.handed_in_at = time.monotonic()

    def _not_taken(self, block: Block, error: Exception) -> None:
        block.words = str(error)
        self._refusals.failed()
        logger.warning("pool %s: no block, next try in %.0f s: %s", self.pool, self.pause_s, error)

    def _look(self) -> None:
        self._looked_at = time.monotonic()
        watched = {block.last_job.id: block for block in list(self.blocks.values()) if block.watched}
        if not watched:
            return
        try:
            jobs = self.scheduler.look(list(watched))
        except SchedulerError as error:
            logger.warning("pool %s: statuses are kept: %s", self.pool, error)
            return
        for job_id, block in watched.items():
            if job_id in jobs:
                self._seen(block, jobs[job_id])

    def _seen(self, block: Block, job: Job) -> None:
        ended = job.state is SchedulerState.ENDED
        fresh = time.monotonic() - block.handed_in_at < self.grace_seconds
        if job.reason == FORGOTTEN and fresh and not block.seen:
            return
        block.job, block.ended, block.seen = job, ended, True
        if not ended:
            return
        logger.info("pool %s: job %s has ended: %s", self.pool, job.id, job.reason or "no reason given")
        self.ended_blocks.append(block)
        if self.ended is not None:
            self.ended(block.known_as, job)

    def _cancel(self, job_ids: list[str]) -> bool:
        for tried in range(_CANCEL_TRIES if job_ids else 0):
            try:
                self.scheduler.cancel(job_ids)
                return True
            except SchedulerError as error:
                logger.warning("pool %s: jobs %s are not cancelled: %s", self.pool, job_ids, error)
            if self._closed:
                break
            if tried + 1 < _CANCEL_TRIES:
                time.sleep(2.0**tried)
        return not job_ids

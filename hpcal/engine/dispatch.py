"""The seam to execution: assignments go out, reports come back."""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from hpcal.core.errors import FailureClass
from hpcal.engine.spool import BLOCK_VARIABLE


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """One attempt to be carried out. Everything bulky is in files, as wires are slow.

    Attributes:
        attempt_id: row of the attempt.
        task_id: row of the task; the inline dispatcher works in this order.
        epoch: fencing epoch of the controller that made it.
        kind: kind of task.
        pool: pool to run in.
        priority: lower goes first where the executor can choose.
        payload: file with the frozen inputs.
        spool: file that results are appended to.
        log: file for what libraries print.
        scratch: folder for this attempt's own files.
        temporary: folder for what outlives an attempt on its worker, such as the files of a labeler, or
            None for the system's own; like ``scratch``, it may hold variables of the node.
        stop_file: its appearance asks for an orderly stop.
        seconds: wall budget, or None.
        steps: budget of steps, or None.
        virtual: the campaign must not depend on when it is interrupted.
        size: times that the slot was enlarged, after work that ran out of memory or time.
        threads: threads that the work may use.
        memory_MB: memory that the work may use in units of 10⁶ bytes, or None where the site states none.
        margin: seconds before the end of its batch job at which the work stops.
        room: seconds that work has which begins with a batch job, or None where none ends.
    """

    attempt_id: int
    task_id: int
    epoch: int
    kind: str
    pool: str
    priority: int
    payload: str
    spool: str
    log: str
    scratch: str
    stop_file: str
    seconds: float | None = None
    steps: int | None = None
    virtual: bool = False
    size: int = 0
    temporary: str | None = None
    threads: int = 1
    memory_MB: float | None = None  # noqa: N815
    margin: float = 0.0
    room: float | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """How an attempt ended. Its results are in the spool.

    Attributes:
        attempt_id: row of the attempt.
        interrupted: it stopped before its end because it was asked to; to be tried again.
        failure: class of the failure, or None.
        message: what happened, for a person.
        lost: the attempt vanished with its worker.
        damaged: a file that it read is not what was written; the message names it.
        host, pid, block: where it ran.
        start, end: seconds since the epoch.
    """

    attempt_id: int
    interrupted: bool = False
    failure: FailureClass | None = None
    message: str = ""
    lost: bool = False
    damaged: bool = False
    host: str | None = None
    pid: int | None = None
    block: str | None = None
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True, kw_only=True)
class BlockEnd:
    """A batch job of workers that has ended.

    Attributes:
        pool, block: whose workers it held.
        job: its id in the scheduler.
        reason: the scheduler's own words, or empty.
        exit_code: of the job, or None.
        time: when it was seen, seconds since the epoch.
    """

    pool: str
    block: str
    job: str
    reason: str
    exit_code: int | None
    time: float

    @property
    def sentence(self) -> str:
        """For a person."""
        code = "" if self.exit_code is None else f", exit code {self.exit_code}"
        return f"job {self.job} of pool {self.pool} ended: {self.reason or 'no reason given'}{code}"


@dataclass(frozen=True, kw_only=True)
class BlocksWait:
    """Why batch jobs of workers have not started.

    Attributes:
        pools: blocks of each pool that has any that wait, counted by the scheduler's own words.
    """

    pools: Mapping[str, Mapping[str, int]]

    @property
    def sentence(self) -> str:
        """For a person."""
        found = [f"pool {pool}: {waiting_words(reasons)}" for pool, reasons in self.pools.items()]
        return "; ".join(found) or "no block waits any more"


def waiting_words(reasons: Mapping[str, int]) -> str:
    """How many blocks wait and why, such as ``2 blocks wait (Resources)``."""
    count = sum(reasons.values())
    return f"{count} block{' waits' if count == 1 else 's wait'} ({'; '.join(reasons)})"


class Dispatcher(Protocol):
    """Carries assignments to workers."""

    @property
    def virtual(self) -> bool:
        """Whether durations are virtual: the campaign then depends on no clock."""
        ...

    def slots(self) -> Mapping[str, int]:
        """Workers by pool."""
        ...

    def pool(self, wanted: str, size: int = 0) -> str:
        """The pool that serves for ``wanted``: ``score`` defaults to ``sample``.

        Args:
            size: times that work ran out of memory or time there and asks for a larger pool.
        """
        ...

    def room(self, wanted: str) -> float | None:
        """Seconds that work for ``wanted`` can have at most, larger pools included; None without limit."""
        ...

    def set_aside(self, host: str) -> tuple[str, ...]:
        """Gives a host no more work; returns the pools that have no other host."""
        ...

    def submit(self, assignment: Assignment) -> None:
        """Accepts an assignment."""
        ...

    def wait(self, timeout: float) -> list[Report]:
        """Reports that have come in; waits for the first at most ``timeout`` seconds."""
        ...

    def close(self) -> None:
        """Ends all workers."""
        ...


class InlineDispatcher:
    """Carries assignments out in this process, one after the other, in the order of their tasks.

    Nothing depends on a clock: budgets are in steps, so that two runs of one seed, or one that was
    interrupted, give the same rows.
    """

    virtual = True

    def __init__(self, slots: Mapping[str, int], run: Callable[[Assignment], Report]) -> None:
        self._slots = dict(slots)
        self._run = run
        self._queue: deque[Assignment] = deque()

    def slots(self) -> Mapping[str, int]:
        """Workers by pool."""
        return self._slots

    def pool(self, wanted: str, size: int = 0) -> str:  # noqa: ARG002
        """The pool that serves for ``wanted``; this process is as large as it is."""
        return wanted if wanted in self._slots else "sample"

    def room(self, wanted: str) -> float | None:  # noqa: ARG002
        """No limit: this process has no walltime."""
        return None

    def set_aside(self, host: str) -> tuple[str, ...]:  # noqa: ARG002
        """Does nothing: whatever fails here is answered by the caps of its tasks."""
        return ()

    def submit(self, assignment: Assignment) -> None:
        """Accepts an assignment."""
        self._queue.append(assignment)

    def wait(self, timeout: float) -> list[Report]:  # noqa: ARG002
        """Carries out the oldest assignment."""
        if not self._queue:
            return []
        assignment = min(self._queue, key=lambda a: a.task_id)
        self._queue.remove(assignment)
        return [self._run(assignment)]

    def close(self) -> None:
        """Forgets what was not begun."""
        self._queue.clear()


def here() -> dict[str, str | int | None]:
    """Host, process and Parsl's block, for reports."""
    block = os.environ.get(BLOCK_VARIABLE)
    return {"host": socket.gethostname(), "pid": os.getpid(), "block": block}


def now() -> float:
    """Seconds since the epoch."""
    return time.time()

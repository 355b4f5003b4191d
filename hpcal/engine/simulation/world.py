"""Virtual hosts on a virtual clock: they write real spool files, and outlive their controller."""

from __future__ import annotations

import heapq
import os
import random
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hpcal.core.codec import pack, unpack
from hpcal.core.errors import FailureClass, FormatError
from hpcal.engine.dispatch import Assignment, Report
from hpcal.engine.simulation.faults import NO_FAULTS, Fate, Rates
from hpcal.engine.simulation.physics import Nature, records
from hpcal.engine.spool import MAGIC, VERSION
from hpcal.engine.tasks import END

Deliver = Callable[[Report], None]
START: Final = 2.0e9
"""Where the virtual clock begins, seconds since the epoch."""
HOSTS: Final = 4
START_S: Final = 0.05
RECORD_S: Final = {"label": 0.4, "relax": 0.4, "train": 1.5, "sample": 1.0}
DAWDLING: Final = 20.0
"""How many times as long a training takes that dawdles."""
_PREFIX: Final = struct.Struct("<II")


def spool_start(attempt: int, epoch: int) -> bytes:
    """The bytes that :class:`~hpcal.engine.spool.SpoolWriter` begins a file with."""
    return MAGIC + bytes([VERSION]) + spool_record({"attempt": attempt, "epoch": epoch, "block": None})


def spool_record(value: Any) -> bytes:
    """The bytes that it appends for a value."""
    payload = pack(value)
    length = len(payload)
    return _PREFIX.pack(length, zlib.crc32(payload, zlib.crc32(length.to_bytes(4, "little")))) + payload


def qm_calls(record: Any) -> int:
    """QM calls that a record of a task states."""
    if not isinstance(record, dict):
        return 0
    return int(record.get("qm_calls", 0)) + int(getattr(record.get("result"), "qm_calls", 0))


@dataclass(frozen=True, kw_only=True)
class Host:
    """A node: how slow it is, and whether everything fails on it."""

    name: str
    slowness: float = 1.0
    bad: bool = False


@dataclass(kw_only=True, eq=False)
class Running:
    """One attempt on its worker.

    Attributes:
        deliver: takes its report to the controller that submitted it; None once that is gone.
        ended: it writes nothing any more.
    """

    assignment: Assignment
    host: Host
    deliver: Deliver | None
    pending: list[bytes] = field(default_factory=list)
    file: int | None = None
    start: float = 0.0
    ended: bool = False
    free: Callable[[], None] | None = None


@dataclass(kw_only=True, eq=False)
class World:
    """Everything outside the controller.

    Attributes:
        gather_s: completions within at most this time of the first come together.
        diverging: share of training tasks that always diverge.
        dawdling: share of training tasks that take many times as long.
        clock: seconds.
        steps: what has happened, for a person.
        fates: how often each fate befell an attempt.
        on_work: is told the attempt and its QM calls when one begins its work.
    """

    rng: random.Random
    nature: Nature
    rates: Rates
    gather_s: float = 0.0
    diverging: float = 0.0
    dawdling: float = 0.0
    clock: float = START
    steps: list[str] = field(default_factory=list)
    hosts: list[Host] = field(default_factory=list)
    fates: Counter[Fate] = field(default_factory=Counter)
    on_work: Callable[[int, int], None] = lambda _attempt, _calls: None
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _count: int = 0

    def __post_init__(self) -> None:
        for number in range(HOSTS):
            # The first host is sound: a machine without any is no test of hpcal.
            faulty = number > 0
            slow = faulty and self.rng.random() < self.rates.slow
            bad = faulty and self.rng.random() < self.rates.bad
            self.hosts.append(Host(name=f"node{number}", slowness=10.0 if slow else 1.0, bad=bad))

    def say(self, text: str) -> None:
        """Notes a step."""
        self.steps.append(f"{self.clock - START:9.2f} s  {text}")

    def calm(self) -> None:
        """From now on nothing goes wrong."""
        self.rates = NO_FAULTS
        self.diverging = self.dawdling = 0.0
        self.hosts = [Host(name=host.name) for host in self.hosts]

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        """Something happens later."""
        self._count += 1
        heapq.heappush(self._events, (self.clock + seconds, self._count, what))

    def next_event(self) -> float | None:
        """When the next thing happens, or None."""
        return self._events[0][0] if self._events else None

    def advance(self, until: float) -> None:
        """Lets the next thing happen if it does before ``until``; else only time passes."""
        if self._events and self._events[0][0] <= until:
            at, _, what = heapq.heappop(self._events)
            self.clock = max(self.clock, at)
            what()
        else:
            self.clock = max(self.clock, until)

    def begin(self, run: Running) -> None:
        """An attempt starts on its host."""
        run.start = self.clock
        try:
            inputs = unpack(Path(run.assignment.payload).read_bytes())
        except OSError as error:
            self._finish(run, 0.0, failure=FailureClass.NODE, message=str(error))
            return
        if Path(run.assignment.stop_file).exists():
            self._finish(run, 0.0, interrupted=True, message="stopped as asked")
            return
        if run.host.bad:
            message = f"{run.host.name}: /scratch is read-only"
            self._finish(run, 0.0, failure=FailureClass.NODE, message=message)
            return
        if self._trains(run, "diverges", self.diverging):
            self._finish(run, 0.1, failure=FailureClass.PHYSICS, message="the training diverged")
            return
        self._work(run, inputs)

    def _trains(self, run: Running, how: str, share: float) -> bool:
        """Whether an attempt is of one of the training tasks with a property that so many have."""
        job = run.assignment
        return job.kind == "train" and self.nature.unit(how, job.task_id) < share

    def _work(self, run: Running, inputs: Any) -> None:
        job = run.assignment
        try:
            run.file = os.open(job.spool, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            os.write(run.file, spool_start(job.attempt_id, job.epoch))
            made = records(self.nature, job.kind, inputs, job.attempt_id)
        except FileExistsError:
            text = f"{job.spool} exists: another process has run this attempt"
            self._finish(run, 0.0, failure=FailureClass.BUG, message=text)
            return
        except FormatError as error:
            self._finish(run, 0.0, failure=FailureClass.INPUT, message=str(error), damaged=True)
            return
        self.on_work(job.attempt_id, sum(map(qm_calls, made)))
        run.pending = [spool_record(value) for value in [*made, {END: True}]]
        fate = self.rates.fate(self.rng)
        self.fates[fate] += 1
        if fate is not Fate.GOOD:
            self.say(f"attempt {job.attempt_id} ({job.kind}) on {run.host.name} will be {fate}")
        self._schedule(run, fate, _harmless(self.nature, job.kind, inputs))

    def _schedule(self, run: Running, fate: Fate, harmless: int | None) -> None:
        dawdles = DAWDLING if self._trains(run, "dawdles", self.dawdling) else 1.0
        step = (
            dawdles * run.host.slowness * RECORD_S.get(run.assignment.kind, 0.1) * (0.5 + self.rng.random())
        )
        total = len(run.pending)
        whole = fate in (Fate.GOOD, Fate.LATE, Fate.TRUNCATED)
        count = total if whole else self.rng.randrange(total)
        if harmless is not None and count > harmless:
            fate, count = Fate.LOST, harmless
            self.say(f"attempt {run.assignment.attempt_id} comes to a structure that kills its worker")
        for number in range(count):
            self.after(step * (number + 1), lambda: self._append(run))
        end = step * (count + 0.5)
        if fate is Fate.LATE:
            report = Report(
                attempt_id=run.assignment.attempt_id, lost=True, message="manager lost", end=self.clock
            )
            self.after(step * self.rng.random() * count, lambda: self._report(run, report))
        self.after(end, lambda: self._end(run, fate))

    def _append(self, run: Running) -> None:
        if not run.ended and run.file is not None:
            os.write(run.file, run.pending.pop(0))

    def _end(self, run: Running, fate: Fate) -> None:
        if run.ended:
            return
        if fate is Fate.TRUNCATED and run.file is not None:
            size = os.fstat(run.file).st_size
            os.ftruncate(run.file, self.rng.randrange(max(0, size - 2000), size))
        if fate is Fate.FAILED:
            failure = self.rng.choice(list(FailureClass))
            self._finish(run, 0.1, failure=failure, message=f"made-up failure of class {failure}")
        elif fate is Fate.FULL:
            text = "results cannot be written: the disk is full"
            self._finish(run, 0.1, failure=FailureClass.NODE, message=text)
        elif fate is Fate.LOST:
            self._tear(run)
            self._finish(run, 2.0 * self.rng.random(), lost=True, message="manager lost")
        elif fate is Fate.STOPPED:
            self._finish(run, 0.1, interrupted=True, message="stopped as asked")
        else:
            self._finish(run, 0.1)

    def _tear(self, run: Running) -> None:
        if run.file is not None and run.pending and self.rng.random() < self.rates.torn:
            record = run.pending[0]
            os.write(run.file, record[: self.rng.randrange(1, len(record))])

    def _finish(self, run: Running, delay: float, **how: Any) -> None:
        """The worker has ended with its attempt; the report arrives after ``delay`` seconds."""
        self.kill(run)
        report = Report(
            attempt_id=run.assignment.attempt_id,
            host=run.host.name,
            pid=1000 + run.assignment.attempt_id,
            block="0",
            start=run.start,
            end=self.clock,
            **how,
        )
        self.after(delay, lambda: self._report(run, report))
        if self.rng.random() < self.rates.twice:
            self.after(delay + 3.0 * self.rng.random(), lambda: self._report(run, report))

    def kill(self, run: Running) -> None:
        """The worker of an attempt ends at once; what it has written stays."""
        run.ended = True
        if run.file is not None:
            os.close(run.file)
            run.file = None
        if run.free is not None:
            free, run.free = run.free, None
            free()

    def _report(self, run: Running, report: Report) -> None:
        if run.deliver is not None:
            run.deliver(report)

    def orphan(self, run: Running) -> None:
        """The controller of an attempt has gone: its worker goes with it, or works on."""
        run.deliver = None
        run.free = None
        if not run.ended and self.rng.random() >= self.rates.strays:
            self._tear(run)
            self.kill(run)
        elif not run.ended:
            self.say(f"attempt {run.assignment.attempt_id} survives its controller")

    def close(self) -> None:
        """Ends everything that still runs."""
        self._events.clear()


def _harmless(nature: Nature, kind: str, inputs: Any) -> int | None:
    """How many records a labelling task writes before a structure kills its worker; None if none does."""
    if kind != "label":
        return None
    hashes = [item["structure"].content_hash for item in inputs["structures"]]
    return next((i for i, key in enumerate(hashes) if nature.poisonous(key)), None)

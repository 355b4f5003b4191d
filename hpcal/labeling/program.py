"""A program that is not ours, run in a directory of its own: watched, and ended with all it started.

The program leads a process group, which is ended at the deadline. It also gets a signal from the
kernel when the process that started it goes away (Linux), so that a worker that was killed leaves
no calculation behind. A launcher of ranks gets SIGTERM there, as it has ranks to end, on this host
and on others; a program on its own gets SIGKILL.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hpcal.core.deadline import Deadline
from hpcal.core.errors import FailureClass, TaskFailure
from hpcal.core.launch import RankLauncher, child_environment
from hpcal.labeling.child import MEGABYTE, PR_SET_PDEATHSIG
from hpcal.labeling.failures import killed_by

END_SECONDS: Final = 2.0
"""Seconds that a program has to end by itself, before it is killed; less where little time is left."""
WATCHED: Final = 65536
"""Bytes of the output's beginning that are looked at while the program runs."""
KEPT: Final = 20_000_000
"""Bytes at the end of a longer output that are read."""
TAIL: Final = 1500
"""Characters of the output's end that go into a message."""
_POLL: Final = 0.5
_LIBC: Final = ctypes.CDLL(None, use_errno=True) if sys.platform.startswith("linux") else None
_FROM_A_SIGNAL: Final = 128
"""What shells and launchers add to the number of the signal that ended a program."""

Watch = Callable[[str], bool]
"""Looks at the beginning of the output while a program runs; True when it has seen enough."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """How to run a program.

    Attributes:
        argv: the program and its arguments.
        launcher: what starts its ranks, or None.
        timeout_seconds: longest time that it may take, or None.
        memory_MB: limit of the data segment of each process in units of 10⁶ bytes, or None.
        several_nodes: whether it may run on other nodes too, where TMPDIR of this one is not there.
    """

    argv: Sequence[str]
    launcher: RankLauncher | None = None
    timeout_seconds: float | None = None
    memory_MB: float | None = None  # noqa: N815
    several_nodes: bool = False

    @property
    def command(self) -> list[str]:
        """The whole command line."""
        return list(self.argv) if self.launcher is None else self.launcher.argv(self.argv)

    @property
    def environment(self) -> dict[str, str]:
        """Its environment variables."""
        given = child_environment()
        # Slurm and OpenMPI would make that folder on the other nodes and leave it there.
        return {n: v for n, v in given.items() if n != "TMPDIR"} if self.several_nodes else given


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a program ended.

    Attributes:
        signal: number of the signal that ended it, also as a launcher reports it, or None.
        status: exit status; 0 if a signal ended it.
        output: what it wrote to its standard output.
        errors: what it wrote to its standard error.
        seconds: time that it took.
    """

    signal: int | None
    status: int
    output: str
    errors: str
    seconds: float

    @property
    def tail(self) -> str:
        """The end of what it wrote, as the end of a message."""
        text = "\n".join(part.strip() for part in (self.output, self.errors) if part.strip())[-TAIL:]
        return f"; its last output:\n{text}" if text else "; it wrote nothing"


def run(call: Call, folder: Path, deadline: Deadline, watch: Watch | None = None) -> Ended:
    """Runs a program in a folder and waits for its end.

    Args:
        watch: called with the beginning of the output while the program runs; an exception of it
            ends the program.

    Raises:
        TaskFailure: it cannot be started (``node``), or its time is up (``resource``).
    """
    start = time.monotonic()
    output, errors = folder / "output", folder / "errors"
    with output.open("wb") as out, errors.open("wb") as err:
        process = _start(call, folder, out.fileno(), err.fileno())
    limits = _limits(call, deadline, start)
    try:
        _wait(process, limits, output, watch)
    finally:
        _end(process, limits.grace)
    code = process.returncode
    return Ended(
        signal=_signal_of(code, launched=call.launcher is not None),
        status=max(code, 0),
        output=_read(output),
        errors=_read(errors),
        seconds=time.monotonic() - start,
    )


def signal_failure(number: int, name: str) -> tuple[FailureClass, str]:
    """The class of an ending by a signal, and a sentence on it."""
    failure_class, cause = killed_by(number)
    return failure_class, f"{name} was killed by {signal.Signals(number).name}: {cause}"


@dataclass(frozen=True, kw_only=True)
class _Limits:
    """When a program has to end, on ``time.monotonic()``, why, and how long it may take to do so."""

    at: float | None
    grace: float
    cause: str


def _limits(call: Call, deadline: Deadline, start: float) -> _Limits:
    left = deadline.remaining()
    grace = END_SECONDS if left is None else min(END_SECONDS, left / 10)
    own = None if call.timeout_seconds is None else start + call.timeout_seconds
    block = None if deadline.at is None else deadline.at - grace
    if own is not None and (block is None or own < block):
        return _Limits(at=own, grace=grace, cause=f"timeout_s {call.timeout_seconds:g} is over; raise it")
    return _Limits(at=block, grace=grace, cause="its time is up; give the pool a longer walltime")


def _start(call: Call, folder: Path, out: int, err: int) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            call.command,
            cwd=folder,
            env=call.environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
            # Nothing else can set both between fork and exec; it calls no Python that takes locks.
            preexec_fn=_preparation(call),  # noqa: PLW1509
        )
    except OSError as error:
        raise TaskFailure(
            FailureClass.NODE,
            f"{call.command[0]} cannot be started on this host: {error.strerror or error}; load its module "
            "in the pool's worker_init, or correct the pool's launcher",
        ) from error


def _preparation(call: Call) -> Callable[[], None]:
    """What the new process does before it becomes the program."""
    parent = os.getpid()
    ending = signal.SIGKILL if call.launcher is None else signal.SIGTERM
    limit = None if call.memory_MB is None else int(call.memory_MB * MEGABYTE)

    def prepare() -> None:
        if _LIBC is not None:
            _LIBC.prctl(PR_SET_PDEATHSIG, ending)
            if os.getppid() != parent:
                os._exit(1)
        if limit is not None:
            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))

    return prepare


def _wait(process: subprocess.Popen[bytes], limits: _Limits, output: Path, watch: Watch | None) -> None:
    """Waits for the end of a program. Raises TaskFailure when its time is up."""
    watching = watch
    while True:
        left = None if limits.at is None else limits.at - time.monotonic()
        if left is not None and left <= 0:
            raise TaskFailure(
                FailureClass.RESOURCE, f"the calculation was ended: {limits.cause}, or use a cheaper method"
            )
        step = _POLL if watching is not None else left
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(step if left is None or step is None else min(step, left))
            return
        if watching is not None and watching(_beginning(output)):
            watching = None


def _end(process: subprocess.Popen[bytes], grace: float) -> None:
    """Ends the group of a program: asks it, and kills what is still there."""
    if process.poll() is None:
        _signal_group(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace)
    # Also after an end in good order: a program may leave others behind.
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _signal_of(code: int, *, launched: bool) -> int | None:
    if code < 0:
        return -code
    known = {int(number) for number in signal.Signals}
    return code - _FROM_A_SIGNAL if launched and code - _FROM_A_SIGNAL in known else None


def _beginning(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(WATCHED).decode(errors="replace")


def _read(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - KEPT))
        return file.read().decode(errors="replace")

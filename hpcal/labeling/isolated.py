"""A labeler in a child process, so that a crash, a hang or a memory limit has a known cause.

What an ending of the child means is in :mod:`hpcal.labeling.isolated_end`. At the deadline it is
killed, which is ``resource``. The next label after a failure starts a fresh child.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import hpcal
from hpcal.core.closing import Closing
from hpcal.core.codec import unpack
from hpcal.core.deadline import Deadline
from hpcal.core.errors import FailureClass, TaskFailure
from hpcal.core.label import Audit, Label, LevelOfTheory, Rejection
from hpcal.core.structure import Structure
from hpcal.labeling.failures import check_time
from hpcal.labeling.isolated_end import Ending, has_no_room, memory_of, wait_for, written_since
from hpcal.labeling.scratch import Scratch
from hpcal.labeling.wire import LENGTH, failure_of, hello, send

THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
GRACE: Final = 0.5
"""Seconds beyond the deadline in which a labeler may stop by itself and keep its child."""
LOOK: Final = 0.25
"""Seconds between looks at the memory of a child that has a limit."""
START_LIMIT: Final = 300.0
"""Seconds in which a child must be ready, also where no deadline is given; slow file systems."""


class IsolatedLabeler(Closing):
    """A labeler in a child process of this one, started when first needed.

    Use it from one thread: the child ends with the thread that started it. Its working directory
    is a scratch directory that is removed with it, so paths in the settings must be absolute.
    """

    def __init__(
        self,
        name: str,
        settings: Mapping[str, Any],
        *,
        threads: int = 1,
        memory_MB: float | None = None,  # noqa: N803
        log: Path | None = None,
    ) -> None:
        """Prepares a child.

        Args:
            name: short name of the labeler (entry point ``hpcal.labelers``).
            settings: its settings as JSON values.
            threads: threads that its libraries may use.
            memory_MB: memory that the child may hold in units of 10⁶ bytes, or None.
            log: file to which its output is appended; thrown away with the scratch directory if None.
        """
        self._hello = hello(name, settings, memory_MB)
        self._threads = threads
        self._log = log
        self._child: _Child | None = None
        self._about: dict[str, Any] | None = None
        self._missing: dict[int, bool] = {}

    def close(self) -> None:
        """Ends the child and removes its scratch directory."""
        if self._child is not None:
            self._child.close()
            self._child = None

    @property
    def level(self) -> LevelOfTheory:
        """The level of theory, as the child says."""
        level: LevelOfTheory = self._description()["level"]
        return level

    @property
    def periodic(self) -> bool:
        """Whether it takes periodic structures."""
        return bool(self._description()["periodic"])

    @property
    def audits(self) -> tuple[str, ...]:
        """Names of the audits that it can make."""
        return tuple(self._description()["audits"])

    @property
    def pid(self) -> int | None:
        """Process id of the child, or None if none runs."""
        return None if self._child is None else self._child.pid

    def missing_elements(self, numbers: Sequence[int]) -> tuple[int, ...]:
        """Those of the atomic numbers that it cannot treat; asks the child once for each."""
        unknown = [int(z) for z in numbers if z not in self._missing]
        if unknown:
            missing = self._ask({"elements": unknown}, Deadline.after(START_LIMIT))
            self._missing.update({z: z in missing for z in unknown})
        return tuple(z for z in numbers if self._missing[z])

    def label(self, structure: Structure, deadline: Deadline) -> Label | Rejection:
        """A label, or why there is none.

        Raises:
            TaskFailure: the child was killed, crashed, ran out of time, or raised (class ``bug``,
                with its traceback).
            InputError: the settings cannot be used.
        """
        check_time(deadline)
        result = self._ask({"structure": structure, "seconds": deadline.remaining()}, deadline)
        if not isinstance(result, Label | Rejection):
            raise TaskFailure(
                FailureClass.BUG,
                f"labeler {self._hello['labeler']!r} returned a {type(result).__name__}, not a label",
            )
        return result

    def audit(self, name: str, structure: Structure, label: Label, deadline: Deadline) -> Audit:
        """One audit of a label. Raises as :meth:`label`."""
        check_time(deadline)
        request = {"audit": name, "structure": structure, "label": label, "seconds": deadline.remaining()}
        made: Audit = self._ask(request, deadline)
        return made

    def _description(self) -> dict[str, Any]:
        if self._about is None:
            self._ready(Deadline.after(START_LIMIT))
        assert self._about is not None
        return self._about

    def _ask(self, request: dict[str, Any], deadline: Deadline) -> Any:
        child = self._ready(deadline)
        if "seconds" in request:
            request["seconds"] = deadline.remaining()
        return self._exchange(child, request, deadline)

    def _ready(self, deadline: Deadline) -> _Child:
        """The running child, or a fresh one that has said what it is."""
        if self._child is None or not self._child.alive():
            self.close()
            limit = deadline.remaining()
            starting = Deadline.after(START_LIMIT if limit is None else min(limit, START_LIMIT))
            self._child = _Child(self._threads, self._hello["memory_MB"], self._log)
            self._about = self._exchange(self._child, self._hello, starting)
        return self._child

    def _exchange(self, child: _Child, request: dict[str, Any], deadline: Deadline) -> Any:
        """One request and its reply; a child that fails to reply is given up."""
        try:
            record = child.ask(request, deadline)
        except BaseException:
            # Also on an interrupt: a child in the middle of a calculation cannot take a request.
            self.close()
            raise
        if "failure" in record:
            if record.get("final") or request is self._hello:
                self.close()
            raise failure_of(record)
        return record["result"]


class _Child:
    """The process, its pipes, its scratch directory and its log."""

    def __init__(self, threads: int, memory_MB: float | None, log: Path | None) -> None:  # noqa: N803
        self._scratch = Scratch()
        self._memory = memory_MB
        self._log = self._scratch.path / "child.log" if log is None else log
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "hpcal.labeling.child", str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                bufsize=0,
                cwd=self._scratch.path,
                env=_environment(threads, self._scratch.path),
                # An interrupt from the terminal is the worker's to handle.
                start_new_session=True,
            )
        self._start = self._log.stat().st_size

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: dict[str, Any], deadline: Deadline) -> dict[str, Any]:
        """Sends a request and waits for its reply.

        Raises:
            TaskFailure: no reply came.
        """
        assert self._process.stdin is not None
        self._start = self._log.stat().st_size
        with contextlib.suppress(BrokenPipeError):
            send(self._process.stdin.fileno(), request)
        head = self._read(LENGTH.size, deadline)
        record: dict[str, Any] = unpack(self._read(LENGTH.unpack(head)[0], deadline))
        return record

    def close(self) -> None:
        """Ends the process and all that it started, and removes what it left behind."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._scratch.remove()

    def _read(self, size: int, deadline: Deadline) -> bytes:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        parts: list[bytes] = []
        end = None if deadline.at is None else deadline.at + GRACE
        while size > 0:
            self._wait(fd, end)
            part = os.read(fd, min(size, 1 << 20))
            if not part:
                raise self._ending()
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _wait(self, fd: int, end: float | None) -> None:
        """Waits for something to read. Raises TaskFailure where the time or the memory does not do."""
        while True:
            left = None if end is None else max(0.0, end - time.monotonic())
            wait = left if self._memory is None else LOOK if left is None else min(LOOK, left)
            readable, _, _ = select.select([fd], [], [], wait)
            if readable:
                return
            if end is not None and time.monotonic() >= end:
                raise TaskFailure(
                    FailureClass.RESOURCE,
                    "the calculation was ended because its time is up; give the pool a longer walltime, or "
                    "use a cheaper method",
                )
            self._look_at_memory()

    def _look_at_memory(self) -> None:
        used = None if self._memory is None else memory_of(self._process.pid)
        if used is not None and used > (self._memory or 0):
            raise TaskFailure(
                FailureClass.RESOURCE,
                f"the calculation was ended because it is out of memory: it holds {used:.0f} MB, and has "
                f"{self._memory:.0f}; give the pool more",
            )

    def _ending(self) -> TaskFailure:
        """Why the process ended."""
        self._process.returncode, peak = wait_for(self._process.pid)
        return Ending(
            code=self._process.returncode,
            output=written_since(self._log, self._start),
            peak_MB=peak,
            limit_MB=self._memory,
            full=has_no_room(self._scratch.path),
        ).failure()


def _environment(threads: int, scratch: Path) -> dict[str, str]:
    package = str(Path(hpcal.__file__).parents[1])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        **dict.fromkeys(THREAD_VARIABLES, str(threads)),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONFAULTHANDLER": "1",
        "TMPDIR": str(scratch),
        "PYSCF_TMPDIR": str(scratch),
        # Its files are its own, and a network file system may have no locks.
        "HDF5_USE_FILE_LOCKING": "FALSE",
    }

"""Why a labelling child ended without a reply.

================================  ==========================================================
SIGKILL, SIGXCPU                  ``resource``: the kernel or the batch system took it away,
                                  most likely out of memory
SIGSEGV, SIGABRT, SIGFPE          ``physics``: the code fell over on this structure
SIGTERM, SIGBUS, SIGILL, others   ``node``: ended from outside, a full or broken file system,
                                  or a binary that this machine cannot run
exit without a reply              ``bug``: the end of its log is in the message
================================  ==========================================================

Compiled code seldom looks whether it got the memory or the room on disk that it asked for, and
crashes a little later, or exits with a line on its standard error. So a crash or such an exit is

* ``node`` where its last output speaks of a full disk, or its file system has no room left;
* ``resource`` where its last output speaks of memory, or where it crashed with half of its memory
  limit in use. That may be wrong for a code that crashes on a structure: it is tried again in a
  larger slot, whereas a structure that was rejected would be lost.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hpcal.core.errors import FailureClass, TaskFailure
from hpcal.labeling.failures import killed_by

NO_ROOM: Final = 65536
"""Bytes; a file system with fewer left is full."""
MEMORY_SHARE: Final = 0.5
"""Part of the memory limit that speaks for memory as the cause of a crash."""
LOG_TAIL: Final = 2000
"""Characters of the child's log that go into a message."""
_LOG_READ: Final = 100_000
_MODULES: Final = "Extension modules:"
"""Begins a line of Python's fault handler that names every compiled module and no cause."""
_AMBIGUOUS: Final = frozenset({signal.SIGSEGV, signal.SIGABRT})
_FULL: Final = ("no space left on device", "disk quota exceeded", "file too large")
_MEMORY: Final = re.compile(
    r"cannot allocate memory|out of memory|bad_alloc|memoryerror|thread creation failed"
    r"|error (re)?allocating \d+ bytes|(?<!de)alloc\w*\b.{0,40}\bfailed"
)
"""What PySCF, OpenBLAS, libgomp, Fortran's run time library and others write before they leave."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a child ended.

    Attributes:
        code: exit status, or minus the signal that killed it.
        output: what it wrote to its log during the request.
        peak_MB: largest memory that it held, in units of 10⁶ bytes.
        limit_MB: its memory limit in units of 10⁶ bytes, or None.
        full: whether the file system of its scratch directory has no room left.
    """

    code: int
    output: str
    peak_MB: float  # noqa: N815
    limit_MB: float | None  # noqa: N815
    full: bool

    def failure(self) -> TaskFailure:
        """The failure that it stands for."""
        text = self.output.strip()[-LOG_TAIL:]
        tail = f"; its last output:\n{text}" if text else ""
        known = self._machine()
        if self.code >= 0:
            failure_class, cause = known or (FailureClass.BUG, "")
            how = f"exited with status {self.code} without a reply"
            how += f" ({cause})" if cause else ""
            return TaskFailure(failure_class, f"the labelling process {how}{tail}")
        failure_class, cause = killed_by(-self.code)
        if known is not None and -self.code in _AMBIGUOUS:
            failure_class, cause = known
        with contextlib.suppress(ValueError):
            cause = f"{signal.Signals(-self.code).name}: {cause}"
        return TaskFailure(
            failure_class, f"the labelling process was killed by signal {-self.code} ({cause}){tail}"
        )

    def _machine(self) -> tuple[FailureClass, str] | None:
        """What speaks for the machine as the cause, or None."""
        said = self.output.lower()
        if self.full or any(words in said for words in _FULL):
            return FailureClass.NODE, "most likely its scratch directory is full"
        if _MEMORY.search(said):
            return FailureClass.RESOURCE, "out of memory; give the pool more"
        if self.code < 0 and self.limit_MB is not None and self.peak_MB > MEMORY_SHARE * self.limit_MB:
            return (
                FailureClass.RESOURCE,
                f"most likely out of memory, with {self.peak_MB:.0f} of {self.limit_MB:.0f} MB in use; give "
                "the pool more",
            )
        return None


def memory_of(pid: int) -> float | None:
    """Memory that a process has for itself now, MB; None where that cannot be told."""
    try:
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    except (OSError, ValueError):
        return None
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE") / 1e6


def wait_for(pid: int) -> tuple[int, float]:
    """Exit code (minus the signal) of a child process that ends, and its peak memory in MB.

    The kernel counts what this process held when it started the child as the child's.
    """
    _, status, usage = os.wait4(pid, 0)
    unit = 1024 if sys.platform.startswith("linux") else 1
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss * unit / 1e6


def written_since(log: Path, start: int) -> str:
    """The end of what was written to a log behind a position, without the list of modules."""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - _LOG_READ))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(line for line in lines if not line.startswith(_MODULES))


def has_no_room(folder: Path) -> bool:
    """Whether the file system of a folder is full."""
    found = os.statvfs(folder)
    # Some file systems do not count.
    return found.f_blocks > 0 and found.f_bavail * found.f_frsize < NO_ROOM

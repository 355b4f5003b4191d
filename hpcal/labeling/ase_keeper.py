"""A process that keeps watch over a calculation: ``python ase_keeper.py FOLDER PARENT PYTHON RUNNER``.

It starts the runner and waits for it. When the runner ends, when it is told to end, or when its
parent goes away, it ends everything that the calculation has started, also programs that made
themselves a session of their own: all of them carry a variable of the environment that names the
folder. If the parent is gone it removes the folder too.

It is run as a file and imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Final

MARK: Final = "HPCAL_CALCULATION"
"""Variable that holds the folder of a calculation in the environment of all its processes."""
TERM_SECONDS: Final = 1.0
"""Seconds in which launchers may end their ranks on other hosts."""
KILL_SECONDS: Final = 5.0
"""Seconds after which processes that do not even die of SIGKILL are given up (hung file systems)."""
_POLL: Final = 0.02
_PR_SET_PDEATHSIG: Final = 1


class _Told(BaseException):
    """SIGTERM came."""


def marked(folder: Path) -> list[int]:
    """Processes of the calculation in a folder, this one left out (Linux; elsewhere none are found)."""
    wanted = f"{MARK}={folder}".encode() + b"\0"
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # A process that has ended and was not waited for has no environment left.
            if wanted in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return [pid for pid in found if pid != os.getpid()]


def end_all(folder: Path, grace: float = 0.0) -> None:
    """Ends all processes of a calculation.

    Args:
        grace: seconds that they get to end by themselves after SIGTERM.
    """
    if grace > 0:
        _signal(marked(folder), signal.SIGTERM)
        until = time.monotonic() + grace
        while marked(folder) and time.monotonic() < until:
            time.sleep(_POLL)
    until = time.monotonic() + KILL_SECONDS
    # Again until none is left: one may have started another in the meantime.
    while (left := marked(folder)) and time.monotonic() < until:
        _signal(left, signal.SIGKILL)
        time.sleep(_POLL)


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _told(_number: int, _frame: FrameType | None) -> None:
    raise _Told


def _watch_parent(parent: int) -> None:
    """Has the kernel send SIGTERM when the parent ends (Linux)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise _Told


def _end_as(code: int) -> None:
    """Ends this process as the runner ended."""
    if code < 0:
        signal.signal(signal.Signals(-code), signal.SIG_DFL) if -code != signal.SIGKILL else None
        os.kill(os.getpid(), -code)
    sys.exit(code)


def main(folder: Path, parent: int, command: list[str]) -> None:
    """Runs the runner, and ends as it does."""
    signal.signal(signal.SIGTERM, _told)
    # Files of the size of the memory, which nobody reads.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    code = 128 + signal.SIGTERM
    try:
        _watch_parent(parent)
        runner = subprocess.Popen([*command, str(folder)], env={**os.environ, MARK: str(folder)})
        code = runner.wait()
        end_all(folder)
    except _Told:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_all(folder, TERM_SECONDS)
        if os.getppid() != parent:
            shutil.rmtree(folder, ignore_errors=True)
    _end_as(code)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])

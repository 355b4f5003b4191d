"""Ends processes with the controller that started them, however it ends.

Run as a script, before any package is imported::

    python leash.py interchange CONTROLLER COMMAND …
    python leash.py block       CONTROLLER COMMAND …

``interchange`` becomes the command, which the kernel kills when its parent, the controller, dies.
``block`` runs the command in a process group of its own, and ends that group, children of tasks
included, when the process of id CONTROLLER dies, when the block is cancelled, or when the command
ends; it is for blocks on the controller's own machine, whose parent is a shell. A block elsewhere
ends by itself when it misses the heartbeats of the interchange.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_LOOK_EVERY_S: Final = 0.5
_GRACE_S: Final = 2.0
"""Seconds between asking a block to end and killing it."""


class Watched:
    """Another process of this machine, of which only its end is of interest."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._descriptor: int | None = None
        # A descriptor knows a dead process that nobody has waited for, and no other takes its place.
        with suppress(AttributeError, OSError):
            self._descriptor = os.pidfd_open(pid)

    def ended(self, within_s: float) -> bool:
        """Whether it ends within so many seconds, or has ended."""
        if self._descriptor is not None:
            return bool(select.select([self._descriptor], [], [], within_s)[0])
        time.sleep(within_s)
        try:
            os.kill(self._pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        return False


def main(arguments: list[str]) -> int:
    """Runs one of the two commands; see the module."""
    kind, controller, command = arguments[0], int(arguments[1]), arguments[2:]
    if kind == "block":
        return _run(command, Watched(controller), own_group=True)
    # Ctrl-C at the terminal is for the controller, which ends its tasks in good order first.
    os.setpgid(0, 0)
    if _die_with_parent():
        if os.getppid() == controller:
            os.execv(command[0], command)
        return 1  # it died before the kernel was told
    return _run(command, Watched(controller), own_group=False)


def _die_with_parent() -> bool:
    """Asks the kernel to kill this process when its parent dies; False where it cannot (not Linux)."""
    if not sys.platform.startswith("linux"):
        return False
    return bool(ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0)


def _run(command: list[str], controller: Watched, *, own_group: bool) -> int:
    child = subprocess.Popen(command, process_group=0 if own_group else None)

    def send(number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number) if own_group else child.send_signal(number)

    signal.signal(signal.SIGTERM, lambda *_: send(signal.SIGTERM))
    while child.poll() is None:
        if controller.ended(within_s=_LOOK_EVERY_S):
            send(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                child.wait(_GRACE_S)
            send(signal.SIGKILL)
            child.wait()
    if own_group:  # what it started and left behind
        send(signal.SIGKILL)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

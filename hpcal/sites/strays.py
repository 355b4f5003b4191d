"""Processes of a campaign that outlived their controller on this machine."""

from __future__ import annotations

import os

import psutil

from hpcal.sites.worker_init import RUN_VARIABLE

_GRACE_S = 2.0


def strays(run_id: str) -> list[psutil.Process]:
    """Live processes of this user that were started for a run, this process aside."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(RUN_VARIABLE) == run_id:
                found.append(process)
        except psutil.Error:  # ended meanwhile, or another user's
            continue
    return [process for process in found if not _ended(process)]


def end_strays(run_id: str, within_s: float = 20.0) -> int:
    """Ends the strays of a run and waits until they are gone, so that its spools can be adopted.

    Returns:
        How many there were.

    Raises:
        TimeoutError: some are still there after ``within_s``, as in an uninterruptible wait for
            a file system.
    """
    ended = 0
    left = strays(run_id)
    for wait_s in (_GRACE_S, within_s):
        ended = max(ended, len(left))
        for process in left:
            try:
                process.terminate() if wait_s == _GRACE_S else process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(left, timeout=wait_s)
        left = strays(run_id)
        if not left:
            return ended
    raise TimeoutError(f"processes of run {run_id} do not end: {[process.pid for process in left]}")


def _ended(process: psutil.Process) -> bool:
    """Also true of a dead process that nobody has waited for."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True

"""Scratch directories of labelling children, removed also after workers that were killed.

A worker holds a lock on a file in each of its scratch directories for as long as it lives. The
kernel gives the lock back however the worker ends, so a directory whose lock can be taken belongs
to nobody any more. Process ids would not do: containers on one host share the directory but not
their numbers.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

PREFIX: Final = "hpcal-label-"
_LOCK: Final = "lock"


class Scratch:
    """A fresh directory in the node's temporary space; making one sweeps those left behind."""

    def __init__(self) -> None:
        sweep(Path(tempfile.gettempdir()))
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        # Locked before it has its name: nobody finds it free.
        unnamed = self.path / f"{_LOCK}.new"
        self._lock = os.open(unnamed, os.O_RDWR | os.O_CREAT, 0o600)
        if _taken(self._lock):
            unnamed.rename(self.path / _LOCK)

    def remove(self) -> None:
        """Removes the directory and all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def sweep(folder: Path) -> int:
    """Removes this user's scratch directories whose worker is gone; returns how many."""
    removed = 0
    for scratch in folder.glob(f"{PREFIX}*"):
        try:
            if scratch.stat().st_uid != os.getuid():
                continue
            lock = os.open(scratch / _LOCK, os.O_RDWR)
        except OSError:
            # Just made or removed by another worker, or on a file system without locks.
            continue
        try:
            if _taken(lock):
                shutil.rmtree(scratch, ignore_errors=True)
                removed += 1
        finally:
            os.close(lock)
    return removed


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True

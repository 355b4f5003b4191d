"""Spools of attempts that were recorded as lost: their results may still come.

A worker that was cut off from its controller goes on, and the file system may show what it wrote
only later. So the spool of a lost attempt is kept while its task is unfinished and a while after,
and is looked at again when its size or time of change differs from what was read last.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hpcal.engine.context import Folders

LOOK_SECONDS: Final = 5.0
"""How often kept spools are looked at."""
KEPT_SECONDS: Final = 600.0
"""How long a spool is kept after its task has ended: a late label tells of work done twice."""
_STEM: Final = re.compile(r"(\d+)-(\d+)")

Mark = tuple[int, int]
"""Size and time of change of a file."""


@dataclass
class _Kept:
    path: Path
    mark: Mark | None
    ready: bool
    checked: float


class KeptSpools:
    """The spools of lost attempts, and what of them was read. Can be rebuilt from the folder."""

    def __init__(self) -> None:
        self._kept: dict[int, _Kept] = {}
        self._next = 0.0

    def keep(self, attempt_id: int, path: Path, *, mark: Mark | None = None, ready: bool = False) -> None:
        """Looks at a spool from now on.

        Args:
            mark: of :func:`mark_of` before it was read, or None if it was not read.
            ready: it is whole, but its task is being tried again: it counts if that attempt is lost.
        """
        self._kept[attempt_id] = _Kept(path=path, mark=mark, ready=ready, checked=time.monotonic())

    def forget(self, attempt_id: int) -> None:
        """Does not look at a spool any more."""
        self._kept.pop(attempt_id, None)

    def due(self, *, now: bool = False) -> dict[int, bool]:
        """Attempts of whose spool there may be something new, and whether the file has changed.

        Args:
            now: look although the last look was a moment ago.
        """
        clock = time.monotonic()
        if not self._kept or (clock < self._next and not now):
            return {}
        self._next = clock + LOOK_SECONDS
        found = {}
        for attempt_id, kept in self._kept.items():
            mark = mark_of(kept.path)
            old = clock - kept.checked >= KEPT_SECONDS
            if old or kept.ready or (mark is not None and mark != kept.mark):
                found[attempt_id] = mark is not None and mark != kept.mark
        return found


def mark_of(path: Path) -> Mark | None:
    """Size and time of change of a spool, or None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def files_in(folders: Folders) -> Iterator[tuple[Path, int, int]]:
    """Spools, inputs and scratch of attempts, with task and number of the attempt from their names."""
    left = [*folders.tasks.glob("*.spool"), *folders.tasks.glob("*.task"), *folders.scratch.iterdir()]
    for path in sorted(left):
        named = _STEM.fullmatch(path.stem)
        if named is not None:
            yield path, int(named[1]), int(named[2])

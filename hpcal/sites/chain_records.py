"""What the jobs of a chain of controllers leave for each other, and when a chain is hopeless."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

STOPPED: Final = "stopped by `hpcal stop`"
FAILURES_IN_A_ROW: Final = 3
"""Controller jobs without any task done, and without an orderly end, after which the chain ends."""
IDLE_IN_A_ROW: Final = 10
"""Controller jobs without any task done, however they ended, after which the chain ends."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was submitted.

    Attributes:
        run_id: of the campaign.
        kind: of batch system, ``slurm`` or ``pbs``.
        chain: how the next job comes.
        timeout_s: after which one of the scheduler's commands counts as not answered.
        margin_s: seconds before the end of its job at which a controller begins to end.
        first: number of the first job; those before it are of an earlier submission.
    """

    run_id: str
    kind: str
    chain: Literal["batch", "scrontab"]
    timeout_s: float
    margin_s: float
    first: int


@dataclass(frozen=True, kw_only=True)
class Began:
    """A controller job as it begins.

    Attributes:
        job_id: the scheduler's.
        host: its node.
        progress: tasks of the campaign that had come to their end; None if that could not be read.
    """

    job_id: str
    host: str
    progress: int | None


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a controller job came to its end by itself.

    Attributes:
        exit_code: as of ``hpcal resume``.
        in_order: it left the campaign to the next one as planned.
        reason: one sentence.
    """

    exit_code: int
    in_order: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Link:
    """What is known of one job of a chain; None for what it did not come to write."""

    number: int
    job_id: str | None
    began: Began | None
    ended: Ended | None


def hopeless(links: Sequence[Link], progress: int | None) -> str | None:
    """Why a chain had better end, or None.

    Args:
        links: its jobs that have ended, in order.
        progress: tasks of the campaign that have come to their end by now; None if not known, which
            counts as no progress: a store that stays unreadable must not keep a chain alive.
    """
    idle: list[Link] = []
    for link in reversed(links):
        at_begin = None if link.began is None else link.began.progress
        progress = at_begin if progress is None else progress
        if at_begin not in (None, progress):
            break
        idle.append(link)
    bad = [link for link in idle if link.ended is None or not link.ended.in_order]
    names = ", ".join(link.job_id or f"number {link.number}" for link in reversed(idle))
    if len(bad) >= FAILURES_IN_A_ROW:
        said = next((link.ended.reason for link in bad if link.ended is not None), "they died")
        return f"controller jobs {names} ended without any task done, the last so: {said}"
    if len(idle) >= IDLE_IN_A_ROW:
        return f"controller jobs {names} each ran to its end without any task done"
    return None


def next_number(folder: Path) -> int:
    """The number after the highest that a file of the folder begins with; 1 where there is none."""
    stems = [path.name.split(".")[0] for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(stem) for stem in stems if stem.isdigit()), default=0) + 1


def read_record(path: Path) -> Mapping[str, Any] | None:
    """The JSON of a file, or None where there is none that can be read."""
    with suppress(OSError, ValueError):
        found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    return None


def write_whole(path: Path, text: str) -> None:
    """Whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)

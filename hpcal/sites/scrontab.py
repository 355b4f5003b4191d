"""Entries of a campaign in the user's scrontab, which is Slurm's crontab of batch jobs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hpcal.sites.scheduler import SchedulerError, command

EVERY: Final = "*/5 * * * *"
"""How often Slurm looks whether the job may start again; while one runs it starts no other."""
_NONE_YET: Final = "no crontab"


def entry(run_id: str, options: Sequence[str], line: str) -> str:
    """The lines of a campaign in a scrontab.

    Args:
        options: of sbatch, without the dashes.
        line: the command.
    """
    asked = "".join(f"#SCRON --{option}\n" for option in options)
    begins, ends = _bounds(run_id)
    return f"{begins}\n{asked}{EVERY} {line}\n{ends}\n"


def install(run_id: str, options: Sequence[str], line: str, timeout_s: float) -> None:
    """Puts the lines of a campaign into the scrontab, in place of those that are there.

    Raises:
        SchedulerError: scrontab refuses; the message holds the lines, to be put in by hand.
    """
    lines = entry(run_id, options, line)
    try:
        _write(_without(_read(timeout_s), run_id) + lines, timeout_s)
    except SchedulerError as error:
        raise SchedulerError(
            f"{error}; put these lines into your scrontab yourself, with `scrontab -e`:\n{lines}"
        ) from error


def remove(run_id: str, timeout_s: float) -> None:
    """Takes the lines of a campaign out of the scrontab. Raises SchedulerError."""
    text = _read(timeout_s)
    rest = _without(text, run_id)
    if rest != text:
        _write(rest, timeout_s)


def _bounds(run_id: str) -> tuple[str, str]:
    return f"# hpcal {run_id} begins", f"# hpcal {run_id} ends"


def _without(text: str, run_id: str) -> str:
    begins, ends = _bounds(run_id)
    kept, inside = [], False
    for line in text.splitlines(keepends=True):
        inside = inside or line.strip() == begins
        if not inside:
            kept.append(line)
        inside = inside and line.strip() != ends
    return "".join(kept)


def _read(timeout_s: float) -> str:
    result = command(["scrontab", "-l"], timeout_s)
    if result.returncode == 0:
        return result.stdout
    if _NONE_YET in result.stderr.lower():
        return ""
    raise SchedulerError(f"scrontab -l failed with exit code {result.returncode}: {result.stderr.strip()}")


def _write(text: str, timeout_s: float) -> None:
    with tempfile.TemporaryDirectory(prefix="hpcal-scrontab-") as folder:
        path = Path(folder) / "scrontab"
        path.write_text(text, encoding="utf-8")
        result = command(["scrontab", str(path)], timeout_s)
    if result.returncode != 0:
        raise SchedulerError(f"scrontab failed with exit code {result.returncode}: {result.stderr.strip()}")

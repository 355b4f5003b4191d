"""What hpcal asks of a batch system, whichever it is. ``slurm_commands`` and ``pbs_commands`` answer."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

MARK: Final = "hpcal:"
"""Begins the mark of a job in the scheduler's own records: ``hpcal:RUN_ID:PURPOSE``."""


class SchedulerState(StrEnum):
    """Where a batch job stands."""

    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A batch job as its scheduler tells of it.

    Attributes:
        id: the scheduler's name for it.
        state: where it stands; one that the scheduler has forgotten has ended.
        reason: the scheduler's own words for why it waits or how it ended, such as
            ``TIMEOUT`` or ``CANCELLED by 1000``; empty if it gives none.
        exit_code: of an ended job, or None if not known.
        mark: the mark given at submission, or empty.
    """

    id: str
    state: SchedulerState
    reason: str = ""
    exit_code: int | None = None
    mark: str = ""


class SchedulerError(Exception):
    """A command of the batch system failed or did not answer; it may do so later."""


class Scheduler(Protocol):
    """The commands of one batch system. All of them raise SchedulerError."""

    def submit(self, script: Path, *, mark: str, after: str | None = None) -> str:
        """Hands in a batch script; returns the job's id.

        A submission that timed out but reached the scheduler is found again by its mark, which
        is therefore given to one job only.

        Args:
            mark: recorded by the scheduler with the job, see ``MARK``.
            after: id of a job after whose end, however it ends, this one may start.
        """
        ...

    def look(self, ids: Sequence[str]) -> Mapping[str, Job]:
        """Where each job stands; one that the scheduler does not know any more has ended."""
        ...

    def marked(self, prefix: str) -> list[Job]:
        """This user's jobs that have not ended and whose mark begins so."""
        ...

    def cancel(self, ids: Sequence[str]) -> None:
        """Ends jobs; those that have ended already are left out without complaint."""
        ...


def command(words: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Runs a command of the batch system; its exit code is for the caller to judge.

    Raises:
        SchedulerError: there is no such command, or it did not answer in time.
    """
    try:
        # Names and variables of jobs that they print need not be text in this locale.
        return subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False
        )
    except FileNotFoundError as error:
        text = f"there is no command {words[0]} here: is this a node of the cluster?"
        raise SchedulerError(text) from error
    except subprocess.TimeoutExpired as error:
        raise SchedulerError(f"{words[0]} did not answer within {timeout_s:g} s") from error
    except OSError as error:
        raise SchedulerError(f"{words[0]} cannot be run: {error}") from error

"""What the answers of a batch system mean, whichever it is."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from hpcal.sites.scheduler import Job, SchedulerError

FORGOTTEN: Final = "no longer known to the scheduler"
"""The reason of a job that has ended so long ago that the scheduler has nothing to say of it."""


class Refused(SchedulerError):
    """The scheduler answered and will not take this job, however often it is asked.

    As for a partition or an account that does not exist; the message holds its own words.
    """


class End(StrEnum):
    """How a batch job ended."""

    NORMAL = "normal"
    TIMEOUT = "timeout"
    """It reached its walltime, which is how a block is expected to end."""
    CANCELLED = "cancelled"
    LOST = "lost"
    """Its node failed or was needed for another job: nothing that the job did."""
    FAILED = "failed"


_ENDS: Final = {
    "COMPLETED": End.NORMAL,
    "TIMEOUT": End.TIMEOUT,
    "DEADLINE": End.TIMEOUT,
    "CANCELLED": End.CANCELLED,
    "REVOKED": End.CANCELLED,
    "PREEMPTED": End.LOST,
    "NODE_FAIL": End.LOST,
    "BOOT_FAIL": End.LOST,
    "FAILED": End.FAILED,
    "LAUNCH_FAILED": End.FAILED,
    "RECONFIG_FAIL": End.FAILED,
    "OUT_OF_MEMORY": End.FAILED,
}


def how_ended(job: Job) -> End:
    """How a job that has ended did so.

    By the first word of its reason if that is one of Slurm's states (a scheduler with other words
    puts the right one of these first), else by its exit code; one without either ended normally.
    """
    words = job.reason.split(maxsplit=1)
    if words and words[0] in _ENDS:
        return _ENDS[words[0]]
    return End.FAILED if job.exit_code else End.NORMAL

"""Keys of batch jobs that a batch system does not know, or would pass over in silence."""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Final

from hpcal.sites.pool import JobKeys

_DIRECTIVES: Final = {"slurm": "#SBATCH", "pbs": "#PBS"}


def option_lines(options: str) -> list[str]:
    """The lines of ``scheduler_options`` that go into a batch script."""
    return [line.strip() for line in options.splitlines() if line.strip()]


def fault_of_words(job: JobKeys, kind: str) -> str | None:
    """What of a job's keys is another batch system's, in a sentence; None if all fits."""
    if kind == "slurm" and job.queue is not None:
        return "queue is PBS's word; on Slurm it is partition (or qos)"
    if kind == "slurm" and (job.select_options or job.filesystems):
        return "select_options and filesystems are PBS's words; on Slurm give constraint or scheduler_options"
    if kind == "pbs" and (job.partition or job.qos or job.constraint):
        return "partition, qos and constraint are Slurm's words; on PBS give queue and select_options"
    return next(
        filter(None, (_no_directive(line, kind) for line in option_lines(job.scheduler_options))), None
    )


def unheeded_by_pbs(options: str, ours: Container[str]) -> str | None:
    """What of further lines PBS would not heed, because the first directive wins; None if nothing.

    Args:
        options: lines of a batch script.
        ours: what is asked for before them, such as ``-q`` or ``-l select=``.
    """
    for line in option_lines(options):
        if fault := _no_directive(line, "pbs"):
            return fault
        option, value = re.findall(r"#PBS\s+(-\w?)\s*(.*)", line)[0]
        names = [f"-l {name}" for name in re.findall(r"\w+=", value)] if option == "-l" else [option]
        if any(name in ours for name in names):
            return (
                f"scheduler_options holds {line!r}, which PBS would not heed, because the first directive "
                "wins; use the key for it, or select_options for resources of a node"
            )
    return None


def _no_directive(line: str, kind: str) -> str | None:
    """Why a line says nothing to a batch system, which takes a misspelled one for a comment; or None."""
    directive = _DIRECTIVES[kind]
    if re.match(rf"{directive}\s+-", line):
        return None
    return (
        f"scheduler_options holds {line!r}, which is no `{directive}` line with an option; commands of the "
        "shell belong in worker_init"
    )

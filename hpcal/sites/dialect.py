"""Keys of batch jobs that a batch system does not know, or would pass over in silence."""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Final

from hpcal.sites.pool import JobKeys

_DIRECTIVES: Final = {"slurm": "#SBATCH", "pbs": "#PBS"}


def fault_of_words(job: JobKeys, kind: str) -> str | None:
    """What of a job's keys is another batch system's, in a sentence; None if all fits."""
    if kind == "slurm" and job.queue is not None:
        return "queue is PBS's word; on Slurm it is partition (or qos)"
    if kind == "slurm" and (job.select_options or job.filesystems):
        return "select_options and filesystems are PBS's words; on Slurm give constraint or scheduler_options"
    if kind == "pbs" and (job.partition or job.qos or job.constraint):
        return "partition, qos and constraint are Slurm's words; on PBS give queue and select_options"
    for line in filter(None, map(str.strip, job.scheduler_options.splitlines())):
        if not line.startswith("#"):
            return (
                f"scheduler_options holds {line!r}, which is no `{_DIRECTIVES[kind]}` line; commands of the "
                "shell belong in worker_init"
            )
    return None


def unheeded_by_pbs(options: str, ours: Container[str]) -> str | None:
    """What of further lines PBS would not heed, because the first directive wins; None if nothing.

    Args:
        options: lines of a batch script.
        ours: what is asked for before them, such as ``-q`` or ``-l select=``.
    """
    for line in filter(None, map(str.strip, options.splitlines())):
        match = re.match(r"#PBS\s+(-\w)\s*(.*)", line)
        if match is None:
            return (
                f"scheduler_options holds {line!r}, which is no `#PBS` line; commands of the shell belong in "
                "worker_init"
            )
        option, value = match.groups()
        names = [f"-l {name}" for name in re.findall(r"\w+=", value)] if option == "-l" else [option]
        if any(name in ours for name in names):
            return (
                f"scheduler_options holds {line!r}, which PBS would not heed, because the first directive "
                "wins; use the key for it, or select_options for resources of a node"
            )
    return None

"""What outlived the controller of a campaign: processes of this machine, and batch jobs."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import psutil

from hpcal.sites.pbs_commands import PBS
from hpcal.sites.scheduler import MARK, Job, Scheduler, SchedulerError
from hpcal.sites.slurm_commands import Slurm
from hpcal.sites.worker_init import RUN_VARIABLE

JOBS_GONE_S: Final = 120.0
"""How long a controller waits for strays in the scheduler; a cancelled job has 30 s or so to end."""
CONTROLLER: Final = "controller"
"""Purpose in the marks of jobs of ``hpcal submit``: ``hpcal:RUN_ID:controller.N``."""
CRON: Final = "cron"
"""In place of the number, of a job that scrontab starts again and again."""

_GRACE_S: Final = 2.0
_LONGEST_PAUSE_S: Final = 8.0
_ANSWERS: Final = {"slurm": "squeue", "pbs": "qstat"}
_JOB_ID: Final = {"slurm": "SLURM_JOB_ID", "pbs": "PBS_JOBID"}


def scheduler_of(kind: str, timeout_s: float = 60.0) -> Scheduler | None:
    """The batch system of a kind of site; None for kinds that have none (``local``, a Python file).

    Args:
        timeout_s: after which one of its commands counts as not answered.
    """
    match kind:
        case "slurm":
            return Slurm(timeout_s)
        case "pbs":
            return PBS(timeout_s)
        case _:
            return None


def scheduler_kinds(site: Mapping[str, Any]) -> set[str]:
    """Kinds of batch systems in the record that a store keeps of a site."""
    kinds = {str(pool.get("kind")) for pool in site.get("pools", {}).values()}
    return kinds & _ANSWERS.keys()


def own_job_id(kind: str) -> str | None:
    """Id of the batch job in which this process runs, or None."""
    return os.environ.get(_JOB_ID[kind]) or None


def same_job(one: str | None, other: str | None) -> bool:
    """Whether two ids are of one job; PBS writes the name of the server in full, in part or not at all."""
    return bool(one and other) and str(one).split(".")[0] == str(other).split(".")[0]


def controller_number(job: Job) -> int | None:
    """Place in its chain of a job that runs a controller, or None for any other."""
    match = re.fullmatch(rf"{MARK}[^:]*:{CONTROLLER}\.(\d+)", job.mark)
    return int(match[1]) if match else None


@dataclass(frozen=True, kw_only=True)
class EndedJobs:
    """What became of strays in one batch system.

    Attributes:
        gone: ids of those that were there and are gone.
        left: ids of those that are still there.
        trouble: the words of a scheduler that did not answer to the end; empty if it did.
    """

    gone: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    trouble: str = ""


def stray_jobs(scheduler: Scheduler, kind: str, run_id: str) -> list[Job]:
    """Jobs of a campaign that nobody waits for, given that this process is its only controller.

    Where this process runs in a job of the campaign's own chain, that job and its successors are
    none; nor is the entry of scrontab, which looks for itself whether there is anything to do.

    Raises:
        SchedulerError: the scheduler does not answer.
    """
    jobs = [job for job in scheduler.marked(f"{MARK}{run_id}:") if not job.mark.endswith(f".{CRON}")]
    own = own_job_id(kind)
    first = next((controller_number(job) for job in jobs if same_job(job.id, own)), None)
    if first is None:
        return [job for job in jobs if not same_job(job.id, own)]
    return [job for job in jobs if (number := controller_number(job)) is None or number < first]


def end_stray_jobs(
    kind: str, run_id: str, *, timeout_s: float = 60.0, within_s: float = JOBS_GONE_S
) -> EndedJobs:
    """Cancels the stray jobs of a run and waits until the scheduler says that they are gone.

    Args:
        kind: of batch system.
        timeout_s: after which one of its commands counts as not answered.
        within_s: after which the wait ends, whatever the scheduler has said.
    """
    scheduler = scheduler_of(kind, timeout_s)
    if scheduler is None:
        return EndedJobs()
    if shutil.which(_ANSWERS[kind]) is None:
        return EndedJobs(trouble=f"there is no command {_ANSWERS[kind]} here")
    deadline, pause_s = time.monotonic() + within_s, 1.0
    seen: set[str] = set()
    while True:
        left, trouble = _cancelled(scheduler, kind, run_id)
        seen.update(left)
        left = tuple(seen) if trouble else left  # nothing is known to have gone
        if (not left and not trouble) or time.monotonic() + pause_s > deadline:
            return EndedJobs(gone=tuple(sorted(seen.difference(left))), left=left, trouble=trouble)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _cancelled(scheduler: Scheduler, kind: str, run_id: str) -> tuple[tuple[str, ...], str]:
    """One try: the strays that are there, told to end; and the scheduler's words if it failed."""
    ids: tuple[str, ...] = ()
    try:
        ids = tuple(job.id for job in stray_jobs(scheduler, kind, run_id))
        scheduler.cancel(ids)
    except SchedulerError as error:
        return ids, str(error)
    return ids, ""


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
    """Ends a run's processes on this machine and waits for it, so that its spools can be adopted.

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

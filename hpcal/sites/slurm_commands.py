"""The commands of Slurm: all that hpcal says to it, and what it understands of the answers."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from hpcal.sites.answers import FORGOTTEN, Refused
from hpcal.sites.scheduler import Job, SchedulerError, SchedulerState, command

# The comment is last, because it may hold the separator.
_FIELDS: Final = "JobID:|,State:|,exit_code:|,Reason:|,Comment:|"
_RUNNING: Final = frozenset(
    {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
)
_ENDED: Final = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "LAUNCH_FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "RECONFIG_FAIL",
        "REVOKED",
        "TIMEOUT",
    }
)
"""A job of ours that cannot be launched has ended, because it is handed in with ``--no-requeue``. What
is in neither set (held, requeued, nodes that are yet to boot) waits.
"""
_NOTHING: Final = frozenset({"", "None", "(null)"})
_UNKNOWN_ID: Final = "invalid job id"
_REFUSALS: Final = re.compile(
    r"invalid (partition|account|qos|feature|generic resource|reservation|constraint|--\S+|user id)"
    r"|reservation is invalid|time limit is invalid|specification invalid|unrecognized option|invalid option"
    r"|node configuration is not available|memory specification can not be satisfied"
    r"|more processors requested than permitted|not permitted to use this partition"
    r"|does not look like a batch script|unable to open file",
    re.IGNORECASE,
)
"""What sbatch says of a job that it will never take."""
_UNSURE: Final = re.compile(
    r"timed? ?out|zero bytes|transmi|communication|unexpected|receive|^$",
    re.IGNORECASE,
)
"""What sbatch says where the job may have reached the controller all the same."""
_SEARCH_PAUSES_S: Final = (0.0, 1.0, 2.0)
_HISTORY_TIMEOUT_S: Final = 20.0
_OF_A_JOB: Final = re.compile(
    r"SLURM_(?!CONF$).*|SLURMD_.*|SRUN_.*|CUDA_VISIBLE_DEVICES|ROCR_VISIBLE_DEVICES|GPU_DEVICE_ORDINAL"
    r"|ZE_AFFINITY_MASK"
)
"""Variables that Slurm sets for one job, and which would contradict what it sets for another."""


class _Unsure(SchedulerError):
    """The job may have reached the controller, though sbatch could not tell its id."""


class Slurm:
    """Slurm's answers to :class:`~hpcal.sites.scheduler.Scheduler`, by its commands.

    Args:
        timeout_s: after which a command counts as not answered.
    """

    def __init__(self, timeout_s: float = 60.0) -> None:
        self.timeout_s = timeout_s

    def submit(self, script: Path, *, mark: str, after: str | None = None) -> str:
        """See :class:`~hpcal.sites.scheduler.Scheduler`.

        Raises:
            Refused: sbatch names something that is wrong with the job; its words.
            SchedulerError: it failed otherwise; where the job may have reached the controller, none
                with this mark is to be found within a few seconds.
        """
        options = [f"--comment={mark}"]
        if after is not None:
            options.append(f"--dependency=afterany:{after}")
        try:
            return self._sbatch([*options, str(script)])
        except _Unsure:
            job = self._search(mark)
            if job is None:
                raise
            return job.id

    def look(self, ids: Sequence[str]) -> Mapping[str, Job]:
        """See :class:`~hpcal.sites.scheduler.Scheduler`."""
        if not ids:
            return {}
        # Never `--job`: with one unknown id squeue fails, and with several it says nothing of it.
        known = {job.id: job for job in self._jobs()}
        found = {job_id: known[job_id] for job_id in ids if job_id in known}
        missing = [job_id for job_id in ids if job_id not in known]
        for job_id in missing:
            job = self._last_word(job_id)
            if job is not None:
                found[job_id] = job
        forgotten = [job_id for job_id in missing if job_id not in found]
        return {**found, **self._history(forgotten)}

    def marked(self, prefix: str) -> list[Job]:
        """See :class:`~hpcal.sites.scheduler.Scheduler`."""
        return [
            job
            for job in self._jobs()
            if job.mark.startswith(prefix) and job.state is not SchedulerState.ENDED
        ]

    def cancel(self, ids: Sequence[str]) -> None:
        """See :class:`~hpcal.sites.scheduler.Scheduler`."""
        if not ids:
            return
        result = command(["scancel", *ids], self.timeout_s)
        complaints = [line for line in result.stderr.splitlines() if line.strip() and not _over(line)]
        if result.returncode != 0 and (complaints or not result.stderr.strip()):
            raise _failed("scancel", result.returncode, "\n".join(complaints))

    def _sbatch(self, arguments: Sequence[str]) -> str:
        try:
            result = command([*_outside_a_job(), "sbatch", "--parsable", *arguments], self.timeout_s)
        except SchedulerError as error:
            raise _Unsure(str(error)) from error
        if result.returncode != 0:
            words = result.stderr.strip() or result.stdout.strip()
            if _REFUSALS.search(words):
                raise Refused(f"sbatch refuses the job: {_one_line(words)}")
            failure = _failed("sbatch", result.returncode, words)
            raise _Unsure(str(failure)) if _UNSURE.search(words) else failure
        # "ID" or "ID;CLUSTER", after what a site's own wrapper may print.
        for line in reversed(result.stdout.splitlines()):
            if match := re.fullmatch(r"(\d+)(;\S+)?", line.strip()):
                return match[1]
        raise _Unsure(f"sbatch printed no job id but {_one_line(result.stdout)!r}")

    def _search(self, mark: str) -> Job | None:
        """The job with this mark, in any state, if there is one within a few seconds."""
        for pause_s in _SEARCH_PAUSES_S:
            time.sleep(pause_s)
            try:
                jobs = self._jobs()
            except SchedulerError:
                return None
            for job in jobs:
                if job.mark == mark:
                    return job
        return None

    def _jobs(self) -> list[Job]:
        """All jobs of this user that the controller knows, ended ones included."""
        words = ["squeue", f"--user={os.getuid()}", "--states=all", "--noheader", f"--Format={_FIELDS}"]
        result = command(words, self.timeout_s)
        if result.returncode != 0:
            raise _failed("squeue", result.returncode, result.stderr)
        return list(_listed(result.stdout))

    def _last_word(self, job_id: str) -> Job | None:
        """What the controller still knows of a job; None if nothing."""
        result = command(["scontrol", "show", "job", job_id], self.timeout_s)
        if result.returncode != 0:
            if _UNKNOWN_ID in result.stderr.lower():
                return None
            raise _failed("scontrol", result.returncode, result.stderr)
        value = dict(re.findall(r"(?m)(?:^|\s)(JobState|Reason|ExitCode)=(\S+)", result.stdout))
        comment = re.search(r"(?m)^\s*Comment=(.*)$", result.stdout)
        return _job(
            job_id,
            value.get("JobState", ""),
            exit_code=value.get("ExitCode", ""),
            reason=value.get("Reason", ""),
            mark=comment[1] if comment else "",
        )

    def _history(self, ids: Sequence[str]) -> dict[str, Job]:
        """How jobs ended that the controller has forgotten, from the accounts where there are any."""
        jobs = {job_id: Job(id=job_id, state=SchedulerState.ENDED, reason=FORGOTTEN) for job_id in ids}
        if not ids:
            return jobs
        words = ["sacct", "-X", "--noheader", "--parsable2", "--format=JobIDRaw,State,ExitCode"]
        try:
            result = command([*words, f"--jobs={','.join(ids)}"], min(self.timeout_s, _HISTORY_TIMEOUT_S))
        except SchedulerError:
            return jobs
        for line in result.stdout.splitlines() if result.returncode == 0 else ():
            job_id, state, exit_code = (*line.split("|"), "", "")[:3]
            # The accounts may be behind; that it has ended is known from the controller.
            if job_id in jobs and _state(state) is SchedulerState.ENDED:
                jobs[job_id] = _job(job_id, state, exit_code=exit_code)
        return jobs


def _listed(text: str) -> Iterator[Job]:
    """The jobs of a listing by squeue; a line of a comment that has several is none."""
    for line in text.splitlines():
        fields = line.split("|", 4)
        if len(fields) == 5 and fields[0].strip().isdigit():
            job_id, state, exit_code, reason, comment = fields
            yield _job(
                job_id.strip(), state, exit_code=exit_code, reason=reason, mark=comment.removesuffix("|")
            )


def _job(job_id: str, state: str, *, exit_code: str, reason: str = "", mark: str = "") -> Job:
    stands, reason, mark = _state(state), reason.strip(), mark.strip()
    reason = "" if reason in _NOTHING else reason
    ended = stands is SchedulerState.ENDED
    if ended:
        reason = f"{state.strip()} ({reason})" if reason else state.strip()
    return Job(
        id=job_id,
        state=stands,
        reason=reason,
        exit_code=_exit_code(exit_code.strip()) if ended else None,
        mark="" if mark in _NOTHING else mark,
    )


def _state(state: str) -> SchedulerState:
    """Of the first word, because sacct says ``CANCELLED by 1000``."""
    first = (state.split() or [""])[0]
    if first in _ENDED:
        return SchedulerState.ENDED
    return SchedulerState.RUNNING if first in _RUNNING else SchedulerState.PENDING


def _exit_code(text: str) -> int | None:
    """Of ``CODE:SIGNAL`` or, from squeue, of the number that ``wait`` gives; as a shell would say it."""
    code, _, signal = text.partition(":")
    if not code.isdigit():
        return None
    if signal.isdigit():
        return 128 + int(signal) if int(signal) else int(code)
    killed_by = int(code) & 0x7F
    return 128 + killed_by if killed_by else int(code) >> 8


def _over(line: str) -> bool:
    """Whether scancel says that there is nothing left to cancel."""
    return _UNKNOWN_ID in line.lower() or "already complet" in line.lower()


def _outside_a_job() -> list[str]:
    """Before sbatch inside a job: takes away the variables that are for that job only."""
    if "SLURM_JOB_ID" not in os.environ or shutil.which("sbatch") is None:
        return []
    names = [name for name in os.environ if _OF_A_JOB.fullmatch(name)]
    return ["env", *(f"--unset={name}" for name in names)]


def _failed(name: str, exit_code: int, words: str) -> SchedulerError:
    return SchedulerError(f"{name} failed with exit code {exit_code}: {_one_line(words) or 'no word why'}")


def _one_line(words: str) -> str:
    return "; ".join(line.strip() for line in words.splitlines() if line.strip())

"""PBS (OpenPBS and PBS Pro) as a :class:`~hpcal.sites.scheduler.Scheduler`: its words and formats."""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hpcal.sites.answers import FORGOTTEN, Refused
from hpcal.sites.scheduler import Job, SchedulerError, SchedulerState, command

MARK_VARIABLE: Final = "HPCAL_MARK"
"""PBS knows no comment at submission; a variable of the job's own stays in its ``Variable_List``."""

_LOOKS_FOR_LATE: Final = 3
_LATE_PAUSE_S: Final = 2.0
_STUCK_S: Final = 60.0
"""PBS gives a deleted job some seconds to end by itself (kill_delay); one that needs longer is stuck."""

_STATES: Final = {
    "F": SchedulerState.ENDED,
    "X": SchedulerState.ENDED,
    "H": SchedulerState.PENDING,
    "M": SchedulerState.PENDING,
    "Q": SchedulerState.PENDING,
    "T": SchedulerState.PENDING,
    "W": SchedulerState.PENDING,
}
"""The other states (running, exiting, suspended and what is yet to come) count as running."""

_UNKNOWN: Final = "Unknown Job Id"
_NO_MORE: Final = (_UNKNOWN, "Job has finished")
_CANNOT_BE_DELETED: Final = (*_NO_MORE, "invalid for state of job", "Delete already in progress")
_NO_HISTORY: Final = "not configured to maintain job history"

_NEVER: Final = (
    "Access to queue is denied",
    "Bad GID",
    "Bad UID",
    "Illegal attribute or resource value",
    "Invalid Account",
    "Job rejected by all possible destinations",
    "Job violates queue and/or server resource limits",
    "Resource invalid in",
    "Unauthorized Request",
    "Unknown queue",
    "Unknown resource",
    "duplicated resource",
    "illegal -",
    "script file",
    "usage:",
)
"""Of what `qsub` says, that which it will say again; the rest, such as too many jobs, may pass."""

# Negative values of Exit_status, as OpenPBS documents them in src/include/job.h; those that are not
# here (checkpoints, passwords, hooks) are failures.
_SIGTERM: Final = 256 + signal.SIGTERM
_EXITS: Final = {
    -1: "FAILED (could not be started)",
    -2: "FAILED (could not be started)",
    -3: "FAILED (could not be started, PBS wanted to try again)",
    -4: "NODE_FAIL (the PBS of its node started anew)",
    -5: "NODE_FAIL (the PBS of its node started anew)",
    -6: "NODE_FAIL (the PBS of its node started anew)",
    -10: "FAILED (user or group not known on the node)",
    -14: "NODE_FAIL (another node of it failed)",
    -17: "FAILED (refused by a hook of the site)",
    -19: "CANCELLED (by a hook of the site)",
    -20: "NODE_FAIL (its first node could not be reached)",
    -22: "FAILED (a hook of the site failed)",
    -24: "FAILED (more CPUs used than asked for)",
    -25: "FAILED (more CPUs used than asked for)",
    -26: "OUT_OF_MEMORY (more virtual memory used than asked for)",
    -27: "OUT_OF_MEMORY (more memory used than asked for)",
    -28: "FAILED (more CPU time used than asked for)",
    -29: "TIMEOUT (walltime exceeded)",
    -30: "NODE_FAIL (its nodes did not find together)",
    -31: "OUT_OF_MEMORY (more huge pages used than asked for)",
    -32: "NODE_FAIL (processes of it could not be ended)",
}


@dataclass(frozen=True, kw_only=True)
class _Record:
    """What ``qstat -f`` says of a job."""

    state: str
    comment: str
    exit_status: int | None
    mark: str


class PBS:
    """The commands of a PBS.

    Args:
        timeout_s: seconds after which a command counts as not answered.
    """

    def __init__(self, timeout_s: float = 60.0) -> None:
        self._timeout_s = timeout_s
        self._asks_history = True
        self._deleted: dict[str, float] = {}

    def history(self) -> bool:
        """Whether PBS still tells of jobs that have ended; it does not by default.

        Raises:
            SchedulerError: PBS did not answer.
        """
        done = self._run("qstat", "-x", "0")  # whether there is such a job does not matter
        if _NO_HISTORY in done.stderr:
            return False
        if done.returncode == 0:
            return bool(done.stdout.strip())
        if _UNKNOWN in done.stderr:
            return True
        raise _failed(done)

    def submit(self, script: Path, *, mark: str, after: str | None = None) -> str:
        """Hands in a batch script; see :meth:`hpcal.sites.scheduler.Scheduler.submit`."""
        if not re.fullmatch(r"[\w:.@+-]+", mark):
            raise SchedulerError(
                f"PBS cannot keep the mark {mark!r}: only letters, digits and _ : . @ + - do"
            )
        if after is not None and self._ended(after):
            after = None  # PBS would refuse the job, or hold it for ever
        try:
            done = self._qsub(script, mark, after)
        except SchedulerError:
            late = self._late(mark)
            if late is None:
                raise
            return late
        if done.returncode != 0 and after is not None and self._ended(after):
            done = self._qsub(script, mark, None)
        if done.returncode != 0:
            raise Refused(_said(done)) if any(words in done.stderr for words in _NEVER) else _failed(done)
        ids = [line for line in map(str.strip, done.stdout.splitlines()) if re.match(r"\d+\S*$", line)]
        id_ = ids[-1] if ids else self._late(mark)  # sites may print more than the id, but the id last
        if id_ is None:
            raise _failed(done)
        return id_

    def look(self, ids: Sequence[str]) -> Mapping[str, Job]:
        """Where jobs stand; see :meth:`hpcal.sites.scheduler.Scheduler.look`.

        A job that PBS neither shows nor calls ended is left out, and does not hold up the others.
        """
        if not ids:  # would be a question for all jobs of all users
            return {}
        found, done = self._ask(ids)
        if not found and done.returncode != 0:
            raise _failed(done)
        # Some versions print only the first of several jobs (openpbs issue 2672).
        for id_ in ids:
            if id_ not in found and (job := self._look_at(id_)) is not None:
                found[id_] = job
        return found

    def marked(self, prefix: str) -> list[Job]:
        """This user's jobs that have not ended and whose mark begins so."""
        # Not `qstat -u`, which prints a table even where JSON is asked for.
        done = self._run("qselect", "-u", pwd.getpwuid(os.getuid()).pw_name)
        if done.returncode != 0:
            raise _failed(done)
        jobs = self.look(done.stdout.split()).values()
        return [job for job in jobs if job.state is not SchedulerState.ENDED and job.mark.startswith(prefix)]

    def cancel(self, ids: Sequence[str]) -> None:
        """Ends jobs; those that have ended already are left out without complaint.

        A job that is still there a minute after it was first cancelled, as on a node that has gone
        down, is taken from PBS's books by force when it is cancelled again.
        """
        now = time.monotonic()
        stuck = [id_ for id_ in ids if now - self._deleted.get(id_, now) >= _STUCK_S]
        for words, chosen in (((), [id_ for id_ in ids if id_ not in stuck]), (("-W", "force"), stuck)):
            if not chosen:
                continue
            done = self._run("qdel", *words, *chosen)
            for id_ in chosen:
                self._deleted.setdefault(id_, now)
            if done.returncode != 0 and not _all_say(done.stderr, _CANNOT_BE_DELETED):
                raise _failed(done)

    def _qsub(self, script: Path, mark: str, after: str | None) -> subprocess.CompletedProcess[str]:
        depend = () if after is None else ("-W", f"depend=afterany:{after}")
        return self._run("qsub", "-v", f"{MARK_VARIABLE}={mark}", *depend, str(script))

    def _late(self, mark: str) -> str | None:
        """The job of a submission that did not answer, if it reached PBS."""
        for look in range(_LOOKS_FOR_LATE):
            if look:
                time.sleep(_LATE_PAUSE_S)
            with suppress(SchedulerError):  # whatever made the submission fail may do so here
                for job in self.marked(mark):
                    if job.mark == mark:
                        return job.id
        return None

    def _ended(self, id_: str) -> bool:
        job = self.look([id_]).get(id_)
        return job is not None and job.state is SchedulerState.ENDED

    def _look_at(self, id_: str) -> Job | None:
        """A job of which PBS said nothing when it was asked for several."""
        found, done = self._ask([id_])
        if not found and done.returncode == 0 and self._asks_history:
            found, _ = self._ask([id_], history=False)  # there is no history, and no word about that
        return found.get(id_)

    def _ask(
        self, ids: Sequence[str], *, history: bool = True
    ) -> tuple[dict[str, Job], subprocess.CompletedProcess[str]]:
        """What PBS says of jobs in one reply, whatever its exit code, and the reply.

        One unknown id makes the exit code 153 with all other jobs in the reply. A job that the
        reply does not mention is missing from what is returned: that is no sign of its end.
        """
        history = history and self._asks_history
        done = self._run("qstat", *(["-x"] if history else []), "-f", "-F", "json", *ids)
        if history and _NO_HISTORY in done.stderr:
            self._asks_history = False
            return self._ask(ids)
        records = _records(done.stdout)
        forgotten = _forgotten(done.stderr)
        found = {}
        for id_ in ids:
            number = _number(id_)
            if number in records:
                found[id_] = _job(id_, records[number])
            elif number in forgotten:
                found[id_] = Job(id=id_, state=SchedulerState.ENDED, reason=forgotten[number])
        return found, done

    def _run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return command(words, self._timeout_s)


def _failed(done: subprocess.CompletedProcess[str]) -> SchedulerError:
    return SchedulerError(_said(done))


def _said(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    said = "; ".join(lines) or "nothing"
    return f"{' '.join(done.args)} failed with exit code {done.returncode} and said: {said}"


def _all_say(text: str, words: Iterable[str]) -> bool:
    lines = [line for line in text.splitlines() if line.strip()]
    return bool(lines) and all(any(word in line for word in words) for line in lines)


def _number(id_: str) -> str:
    """The part of an id that is the same in all its spellings: the server's name is cut in some."""
    return id_.split(".", maxsplit=1)[0]


def _forgotten(errors: str) -> dict[str, str]:
    """The jobs of which PBS says that they are no more, and its words."""
    found: dict[str, str] = {}
    for line in errors.splitlines():
        words = next((words for words in _NO_MORE if words in line), None)
        if words is not None:
            for id_ in re.findall(r"\b\d+(?:\[\d*\])?\.\S+|\b\d+\b", line):
                found[_number(id_)] = FORGOTTEN if words == _UNKNOWN else words
    return found


def _job(id_: str, record: _Record) -> Job:
    state = _STATES.get(record.state, SchedulerState.RUNNING)
    reason, exit_code = record.comment, None
    if state is SchedulerState.RUNNING:
        reason = ""  # where and when it started
    if state is SchedulerState.ENDED:
        exit_code = record.exit_status
        reason = ": ".join(filter(None, (_ending(record), record.comment)))
    return Job(id=id_, state=state, reason=reason, exit_code=exit_code, mark=record.mark)


def _ending(record: _Record) -> str:
    """How a job ended, in the words that ``answers.how_ended`` knows; empty if its script ended it."""
    status = record.exit_status
    if "terminated by" in record.comment or (status == _SIGTERM and not record.comment):
        return "CANCELLED (by qdel)"
    if status is None or 0 <= status < 256:
        return ""
    if status >= 256:
        return f"FAILED (ended by signal {status - 256})"
    return _EXITS.get(status, f"FAILED (Exit_status {status} of PBS)")


def _records(text: str) -> dict[str, _Record]:
    """Jobs by number of the reply to ``qstat -f -F json``, as far as it can be read."""
    try:
        jobs = json.loads(text, strict=False).get("Jobs", {})
    except (ValueError, AttributeError):
        return _scraped(text)
    records = {_number(id_): _record(job) for id_, job in jobs.items()}
    return {number: record for number, record in records.items() if record.state}


def _record(job: Mapping[str, Any]) -> _Record:
    status = job.get("Exit_status")
    variables = job.get("Variable_List", {})
    if isinstance(variables, str):
        variables = dict(re.findall(r"(\w+)=([^,]*)", variables))
    return _Record(
        state=str(job.get("job_state", "")),
        comment=str(job.get("comment", "")),
        exit_status=None if status is None else int(status),
        mark=str(variables.get(MARK_VARIABLE, "")),
    )


def _scraped(text: str) -> dict[str, _Record]:
    r"""The same from a reply that is not JSON.

    PBS is known to print variables of a job's environment as they are: ``\,`` and ``\'`` for what
    it quotes itself, ``005`` as a number, shell functions without quotes (openpbs issues 1255, 2049).
    """
    parts = re.split(r'"(\d+(?:\[\d*\])?)(?:\.[^"\s]*)?"\s*:\s*\{', text)
    records = {number: _scraped_record(part) for number, part in zip(parts[1::2], parts[2::2], strict=True)}
    return {number: record for number, record in records.items() if record.state}  # a cut one has none


def _scraped_record(text: str) -> _Record:
    def value(name: str, pattern: str) -> str:
        match = re.search(rf'(?<!\\)"{name}"\s*:\s*{pattern}', text)
        return match[1] if match else ""

    string = r'"((?:[^"\\]|\\.)*)"'
    status = value("Exit_status", r'"?(-?\d+)')
    return _Record(
        state=value("job_state", string),
        comment=re.sub(r"\\(.)", r"\1", value("comment", string)),
        exit_status=int(status) if status else None,
        mark=value(MARK_VARIABLE, string),
    )

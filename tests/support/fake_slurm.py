"""A Slurm of three commands that keep their jobs in files, and run nothing unless told to."""

from __future__ import annotations

import os
import shlex
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from support.slurm import Commands

_SBATCH = """\
[ ! -e {folder}/refuse ] || {{ cat {folder}/refuse >&2; exit 1; }}
number=$(( $(cat {folder}/last) + 1 ))
echo $number > {folder}/last
for word; do
  case $word in --comment=*) mark=${{word#--comment=}};; --dependency=*) why=Dependency;; esac
done
echo "$number|PENDING|0|${{why:-None}}|$mark|" > {folder}/jobs/$number
echo $number"""
_SQUEUE = """\
[ ! -e {folder}/silent ] || {{ echo 'squeue: error: slurm_load_jobs error: Socket timed out' >&2; exit 1; }}
cat {folder}/jobs/* 2>/dev/null; exit 0"""
_RUN = """\
echo "$number|RUNNING|0|None|$mark|" > {folder}/jobs/$number
SLURM_JOB_ID=$number setsid bash "$word" > {folder}/out-$number 2>&1 &
echo $! > {folder}/pids/$number"""
_KILL = 'for id; do kill -- -"$(cat {folder}/pids/"$id")"; done'
_SCANCEL = 'for id; do [ -e {folder}/stuck ] || rm -f {folder}/jobs/"$id"; done'


class FakeSlurm:
    """What a test sees of it beyond its commands."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder.mkdir()
        (folder / "jobs").mkdir()
        (folder / "last").write_text("100\n")
        self.folder = folder
        self.commands = Commands(folder / "bin", monkeypatch)
        for name, text in (("sbatch", _SBATCH), ("squeue", _SQUEUE), ("scancel", _SCANCEL)):
            self._write(name, text)
        monkeypatch.delenv("SLURM_JOB_ID", raising=False)

    def _write(self, name: str, text: str) -> None:
        self.commands.write(name, *text.format(folder=shlex.quote(str(self.folder))).splitlines())

    def runs_jobs(self) -> None:
        """Lets jobs run on this machine as soon as they are submitted; see :meth:`kill_jobs`."""
        (self.folder / "pids").mkdir()
        self._write("sbatch", f"{_SBATCH}\n{_RUN}")
        self.answers()

    def answers(self) -> None:
        """Lets squeue and scancel answer, also after they did not, where jobs run."""
        self._write("squeue", _SQUEUE)
        self._write("scancel", f"{_KILL}\n{_SCANCEL}")

    def kill_jobs(self) -> None:
        """Ends what is left of jobs that have run."""
        for path in (self.folder / "pids").iterdir():
            with suppress(ProcessLookupError):
                os.killpg(int(path.read_text()), signal.SIGKILL)

    def hangs(self, seconds: float) -> None:
        """Lets squeue and scancel say nothing for so long, and then that they have failed."""
        for name in ("squeue", "scancel"):
            self.commands.says(name, err="Socket timed out", exit_code=1, after_s=seconds)

    def add(self, mark: str, state: str = "RUNNING") -> str:
        """A job that somebody has submitted; returns its id."""
        job_id = str(int((self.folder / "last").read_text()) + 1)
        (self.folder / "last").write_text(f"{job_id}\n")
        (self.folder / "jobs" / job_id).write_text(f"{job_id}|{state}|0|None|{mark}|\n")
        return job_id

    def marks(self) -> dict[str, str]:
        """Marks of the jobs that are there, by id."""
        lines = [path.read_text().split("|") for path in sorted((self.folder / "jobs").iterdir())]
        return {line[0]: line[4] for line in lines}

    def run(self, job_id: str) -> None:
        """Lets a job begin."""
        path = self.folder / "jobs" / job_id
        path.write_text(path.read_text().replace("PENDING", "RUNNING"))

    def end(self, job_id: str) -> None:
        """Lets a job end and be forgotten."""
        (self.folder / "jobs" / job_id).unlink(missing_ok=True)

    def refuses(self, words: str) -> None:
        """Lets sbatch fail so."""
        (self.folder / "refuse").write_text(words)

    def is_silent(self, silent: bool = True) -> None:
        """Lets squeue fail, or answer again."""
        (self.folder / "silent").touch() if silent else (self.folder / "silent").unlink(missing_ok=True)

    def is_stuck(self) -> None:
        """Lets no job end that is cancelled."""
        (self.folder / "stuck").touch()

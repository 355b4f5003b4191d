"""Slurm in tests: whether there is a real one, and commands on PATH that misbehave."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def no_slurm() -> str:
    """Why there is no Slurm to test with; empty if there is one."""
    if shutil.which("sinfo") is None:
        return "there is no Slurm here (tests/slurm/slurm_up.sh brings one up)"
    try:
        answer = subprocess.run(["sinfo", "-h"], capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return "sinfo does not answer"
    return "" if answer.returncode == 0 else f"sinfo says: {answer.stderr.strip()}"


def needs_slurm() -> None:
    """Skips the test, with the reason, where no Slurm answers."""
    if reason := no_slurm():
        pytest.skip(reason)


def eventually(true: Callable[[], bool], within_s: float = 30.0, every_s: float = 0.2) -> bool:
    """Whether something comes true in time."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if true():
            return True
        time.sleep(every_s)
    return true()


def batch_script(path: Path, *commands: str) -> Path:
    """A batch script of these commands, whose output goes nowhere."""
    lines = ["#!/bin/bash", "#SBATCH --output=/dev/null", "#SBATCH --ntasks=1", *commands]
    path.write_text("\n".join([*lines, ""]))
    return path


class Commands:
    """Commands in a folder that comes first on PATH."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder.mkdir()
        self.folder = folder
        self.log = folder / "log"
        self.log.touch()
        self._path = os.environ["PATH"]
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{self._path}")

    def write(self, name: str, *lines: str) -> None:
        """Makes a command of shell lines; each call of it is logged with its arguments."""
        path = self.folder / name
        new = path.with_suffix(".new")
        new.write_text(
            "\n".join(["#!/bin/sh", f'echo "{name} $*" >> {shlex.quote(str(self.log))}', *lines, ""])
        )
        new.chmod(0o755)
        new.replace(path)  # a running one goes on with the file that it has

    def says(
        self, name: str, out: str = "", *, err: str = "", exit_code: int = 0, after_s: float = 0
    ) -> None:
        """Makes a command that prints this and exits so."""
        self.write(
            name,
            f"sleep {after_s}" if after_s else ":",
            f"printf %s {shlex.quote(out)}",
            f"printf %s {shlex.quote(err)} >&2",
            f"exit {exit_code}",
        )

    def real(self, name: str) -> str:
        """The path of the command that the one in the folder hides."""
        path = shutil.which(name, path=self._path)
        if path is None:
            raise FileNotFoundError(name)
        return path

    def remove(self, name: str) -> None:
        """Lets the real command answer again."""
        (self.folder / name).unlink()

    def calls(self, name: str) -> list[str]:
        """Arguments of all calls of a command so far."""
        lines = self.log.read_text().splitlines()
        return [line.removeprefix(f"{name} ") for line in lines if line.startswith(f"{name} ")]


@contextmanager
def forgets_after(seconds: int) -> Iterator[None]:
    """Lets the Slurm of slurm_up.sh forget ended jobs after so long; skips on any other."""
    conf = Path(os.environ.get("SLURM_CONF", ""))
    if not conf.is_file() or "ClusterName=hpcal\n" not in conf.read_text():
        pytest.skip("only the Slurm of tests/slurm/slurm_up.sh may be set up otherwise")
    _set_age(conf, str(seconds))
    try:
        yield
    finally:
        _set_age(conf)


def _set_age(conf: Path, *seconds: str) -> None:
    script = Path(__file__).parents[1] / "slurm" / "slurm_up.sh"
    environment = {**os.environ, "HPCAL_SLURM_ROOT": str(conf.parents[1])}
    subprocess.run([script, "age", *seconds], env=environment, check=True, timeout=60)

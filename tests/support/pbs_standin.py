"""A PBS on this machine: commands that really run jobs, and misbehave as they are told."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

COMMANDS = Path(__file__).parent / "pbs"


class StandIn:
    """What a test sees of the stand-in beyond its commands; ``pbs/books.py`` has its settings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._settings: dict[str, Any] = {}
        (folder / "spool").mkdir(parents=True)

    def set(self, **settings: Any) -> None:
        """Changes settings, from the next command on."""
        self._settings |= settings
        new = self.folder / "control.new"
        new.write_text(json.dumps(self._settings))
        new.replace(self.folder / "control.json")

    def go_down(self, seconds: float) -> None:
        self.set(down_until=time.time() + seconds)

    def jobs(self) -> dict[str, dict[str, Any]]:
        """All jobs by number, ended ones and those that the history has lost included."""
        path = self.folder / "jobs.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def wait(self, done: Callable[[], bool], limit_s: float = 10.0) -> None:
        end = time.monotonic() + limit_s
        while not done():
            assert time.monotonic() < end, self.jobs()
            time.sleep(0.03)

    def wait_for(self, id_: str, states: str, limit_s: float = 10.0) -> None:
        """Until a job is in one of some states of PBS."""
        self.wait(lambda: self.jobs()[id_.split(".", maxsplit=1)[0]]["state"] in states, limit_s)

    def processes(self) -> list[int]:
        """Everything that jobs started and that is still there."""
        return self._with_variables(f"PBS_STANDIN={self.folder}", "PBS_ENVIRONMENT=PBS_BATCH")

    def end(self) -> None:
        """Ends the whole PBS at once."""
        self.set(nodes={})  # nothing starts any more
        while left := self._with_variables(f"PBS_STANDIN={self.folder}"):
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    @staticmethod
    def _with_variables(*variables: str) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and int(entry.name) != os.getpid():
                    environment = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                    if set(variables) <= set(environment):
                        found.append(int(entry.name))
        return found


@contextmanager
def running_pbs(folder: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Iterator[StandIn]:
    """A PBS whose commands are on PATH; what its jobs left behind is ended with it."""
    monkeypatch.setenv("PATH", f"{COMMANDS}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PBS_STANDIN", str(folder))
    pbs = StandIn(folder)
    pbs.set(**settings)
    try:
        yield pbs
    finally:
        pbs.end()

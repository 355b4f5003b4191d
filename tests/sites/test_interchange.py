"""An interchange that dies or falls silent holds nobody up."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from parsl.executors.high_throughput.errors import CommandClientTimeoutError

from hpcal.sites.interchange import Interchange

CONTROLLER = """
import sys, time
from pathlib import Path
import psutil
from hpcal.core.errors import WorkersLost
from hpcal.engine.parsl_dispatch import ParslDispatcher
from hpcal.sites.schema import Site
if __name__ == "__main__":
    site = Site(pools={"label": {}, "sample": {}, "train": {}})
    dispatcher = ParslDispatcher(site, Path(sys.argv[1]) / "parsl", "test-lost-interchange")
    dispatcher.wait(1.0)
    [first, *_] = [p for p in psutil.Process().children() if any("interchange" in w for w in p.cmdline())]
    first.kill()
    try:
        while True:
            dispatcher.wait(1.0)
    except WorkersLost as error:
        print(error)
    dispatcher.close()
"""


class Client:
    """In place of Parsl's, whose interchange answers or does not."""

    def __init__(self) -> None:
        self.answers = True
        self.limits: list[float | None] = []

    def run(self, message: Any, max_retries: int = 3, timeout_s: float | None = None) -> list[Any]:
        self.limits.append(timeout_s)
        if not self.answers:
            raise CommandClientTimeoutError("Waiting for a reply from command channel")
        return [message]


def test_one_that_does_not_answer_in_time_is_dead_and_asked_no_more() -> None:
    executor = SimpleNamespace(interchange_proc=SimpleNamespace(poll=lambda: None), command_client=Client())
    client = executor.command_client
    interchange = Interchange(executor, answer_s=7.0)
    assert executor.command_client.run("MANAGERS") == ["MANAGERS"]
    assert interchange.fault == ""
    client.answers = False
    assert executor.command_client.run("MANAGERS") == []
    assert executor.command_client.run("CONNECTED_BLOCKS") == []
    assert interchange.fault == "has not answered for 7 s"
    assert client.limits == [7.0, 7.0]


@pytest.mark.parametrize(
    ("exit_code", "fault"), [(-signal.SIGKILL, "was killed by signal 9"), (1, "has ended with 1")]
)
def test_one_that_has_ended_is_not_asked(exit_code: int, fault: str) -> None:
    process = SimpleNamespace(poll=lambda: exit_code)
    executor = SimpleNamespace(interchange_proc=process, command_client=Client())
    client = executor.command_client
    interchange = Interchange(executor)
    assert executor.command_client.run("MANAGERS") == []
    assert interchange.fault == fault
    assert client.limits == []


@pytest.mark.parsl
def test_a_controller_whose_interchange_is_killed_says_so_and_ends(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CONTROLLER, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "interchange, by which the workers of pool" in done.stdout
    assert "was killed by signal 9" in done.stdout
    assert "hpcal resume" in done.stdout

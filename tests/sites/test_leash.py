"""Processes end with the controller, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from hpcal.sites import leash

LEASH = [sys.executable, "-I", "-S", leash.__file__]
SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
# As Parsl starts a block: a shell in a group of its own, which leaves the block to init.
BLOCK = """
import os, subprocess, sys, time
subprocess.run(["bash", "-c", sys.argv[1].replace("PID", str(os.getpid()))], preexec_fn=os.setpgrp)
time.sleep(60)
"""
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(os.getpid(), child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def started() -> Iterator[list[int]]:
    """Process ids to end whatever happens."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def gone_after(pids: list[int], limit_s: float) -> float:
    start = time.monotonic()
    while time.monotonic() - start < limit_s:
        if all(not alive(pid) for pid in pids):
            return time.monotonic() - start
        time.sleep(0.05)
    raise AssertionError(f"still there after {limit_s} s: {[pid for pid in pids if alive(pid)]}")


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_an_interchange_dies_with_its_parent(started: list[int], platform: str) -> None:
    """By the kernel's hand on Linux; elsewhere by a process that looks."""
    as_script = (
        f"import sys; sys.platform = {platform!r}; from hpcal.sites import leash; leash.main(sys.argv[1:])"
    )
    parent = (
        "import os, signal, subprocess, sys, time\n"
        "code, command = sys.argv[1], sys.argv[2:]\n"
        "leashed = [sys.executable, '-c', code, 'interchange', str(os.getpid()), *command]\n"
        "child = subprocess.Popen(leashed, stdout=subprocess.PIPE)\n"
        "signal.signal(signal.SIGINT, lambda *_: None)\n"
        "child.stdout.readline(); print(child.pid, flush=True); time.sleep(60)\n"
    )
    controller = subprocess.Popen(
        [sys.executable, "-c", parent, as_script, *SLEEP],
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    started.append(controller.pid)
    assert controller.stdout is not None
    leashed = psutil.Process(int(controller.stdout.readline()))
    pids = [leashed.pid, *(child.pid for child in leashed.children())]
    assert len(pids) == (1 if platform == "linux" else 2)
    started += pids
    controller.stdout.close()
    os.killpg(controller.pid, signal.SIGINT)  # Ctrl-C: an orderly end still needs the interchange
    time.sleep(0.7)
    assert all(alive(pid) for pid in (controller.pid, *pids))
    controller.kill()
    controller.wait()
    assert gone_after(pids, 5) < 3


@pytest.mark.slow
@pytest.mark.parametrize("reaped", [True, False])
def test_a_block_and_what_it_started_die_with_the_controller(
    tmp_path: Path, started: list[int], reaped: bool
) -> None:
    """Even if the block ignores SIGTERM, and if nobody waits for the dead controller."""
    script = tmp_path / "block.py"
    script.write_text(STUBBORN)
    pids_file = tmp_path / "pids"
    shell = f"{' '.join(LEASH)} block PID {sys.executable} {script} > {pids_file} &"
    controller = subprocess.Popen([sys.executable, "-c", BLOCK, shell])
    started.append(controller.pid)
    deadline = time.monotonic() + 10
    while (
        not pids_file.exists() or not pids_file.read_text().endswith("\n")
    ) and time.monotonic() < deadline:
        time.sleep(0.02)
    pids = [int(word) for word in pids_file.read_text().split()]
    leashed = psutil.Process(pids[0]).ppid()
    started += [*pids, leashed]
    assert all(alive(pid) for pid in (*pids, leashed))
    controller.kill()
    if reaped:
        controller.wait()
    assert gone_after([*pids, leashed], 10) < 5
    controller.wait()


def test_a_leash_to_a_dead_controller_does_not_hold(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    start = time.monotonic()
    for kind in ("interchange", "block"):
        leashed = subprocess.run(
            [*LEASH, kind, str(dead.pid), *SLEEP], timeout=20, process_group=0, check=False
        )
        assert leashed.returncode != 0
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("code", [0, 7])
def test_a_block_that_ends_says_how(code: int) -> None:
    command = [*LEASH, "block", str(os.getpid()), sys.executable, "-c", f"raise SystemExit({code})"]
    assert subprocess.run(command, timeout=20, check=False).returncode == code


@pytest.mark.parametrize("code", ["os._exit(3)", "os.kill(os.getpid(), 9)"])
def test_a_block_that_ends_leaves_no_workers(started: list[int], code: str) -> None:
    manager = (
        "import os, subprocess, sys\n"
        "child = subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL)\n"
        f"print(child.pid, flush=True); {code}\n"
    )
    command = [*LEASH, "block", str(os.getpid()), sys.executable, "-c", manager]
    block = subprocess.run(command, timeout=20, check=False, capture_output=True)
    worker = int(block.stdout)
    started.append(worker)
    assert block.returncode == (3 if "exit" in code else 128 + signal.SIGKILL)
    assert gone_after([worker], 2) < 1


def test_a_cancelled_block_takes_its_workers_along(started: list[int]) -> None:
    block = subprocess.Popen(
        [*LEASH, "block", str(os.getpid()), *SLEEP], stdout=subprocess.PIPE, process_group=0
    )
    assert block.stdout is not None
    assert block.stdout.readline() == b"up\n"
    block.stdout.close()
    children = [child.pid for child in psutil.Process(block.pid).children()]
    started += [block.pid, *children]
    assert len(children) == 1
    block.terminate()
    assert block.wait(10) == 128 + signal.SIGTERM
    assert gone_after(children, 5) < 2

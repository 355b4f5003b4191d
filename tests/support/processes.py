"""Controllers as processes of their own, and what they leave behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from hpcal.sites.worker_init import RUN_VARIABLE
from support.campaigns import query


def start(*words: str, env: Mapping[str, str] | None = None) -> subprocess.Popen:
    """The command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "hpcal", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"} if env is None else dict(env),
    )


def finish(process: subprocess.Popen, seconds: float = 300) -> tuple[int, str]:
    """Waits for its end; exit code and what it said on standard error."""
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, errors


def wait_until(
    condition: Callable[[], bool],
    seconds: float = 120,
    what: str = "it",
    process: subprocess.Popen | None = None,
) -> None:
    """Returns when a condition holds; fails if it does not in time, or if a process has ended before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come that far within {seconds:.0f} s"
        assert process is None or process.poll() is None, process.communicate()[1]
        time.sleep(0.1)


def count(root: Path, sql: str) -> int:
    """The number that a query gives; 0 while the store is not there yet or is being written."""
    try:
        return int(query(root, sql)[0][0] or 0)
    except Exception:  # whatever a reader meets while the store is being made
        return 0


def labels(root: Path) -> int:
    """Accepted labels."""
    return count(root, "SELECT count(*) FROM label WHERE seq IS NOT NULL")


def run_id(root: Path) -> str:
    """The run id of a campaign."""
    return str(query(root, "SELECT run_id FROM campaign")[0][0])


def left_behind(run: str) -> list[int]:
    """Live processes on this machine that were started for a run."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(RUN_VARIABLE) == run:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def check_whole(root: Path) -> None:
    """Finished, consistent, and no structure labelled twice."""
    assert query(root, "SELECT state FROM campaign") == [("finished",)]
    assert count(root, "SELECT count(*) FROM structure WHERE state = 'claimed'") == 0
    assert count(root, "SELECT count(*) FROM walker WHERE state = 'claimed'") == 0
    assert count(root, "SELECT count(*) FROM event WHERE kind = 'duplicate_label'") == 0
    assert query(root, "SELECT structure_id FROM label GROUP BY structure_id HAVING count(*) > 1") == []

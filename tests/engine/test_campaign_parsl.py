"""A campaign through Parsl on this machine: killed, interrupted, its workers killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from support.campaigns import query

pytestmark = pytest.mark.parsl


def start(*words: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "hpcal", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("the campaign did not come that far")


def count(root: Path, sql: str) -> int:
    try:
        return query(root, sql)[0][0] or 0
    except Exception:  # not there yet, or being written
        return 0


def labels(root: Path) -> int:
    return count(root, "SELECT count(*) FROM label WHERE seq IS NOT NULL")


def finish(process: subprocess.Popen) -> tuple[int, str]:
    try:
        _, errors = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, errors


def check_whole(root: Path) -> None:
    """Finished, consistent, and no structure labelled twice."""
    assert query(root, "SELECT state FROM campaign") == [("finished",)]
    assert query(root, "SELECT count(*) FROM structure WHERE state = 'claimed'") == [(0,)]
    assert query(root, "SELECT count(*) FROM event WHERE kind = 'duplicate_label'") == [(0,)]
    doubled = query(root, "SELECT structure_id FROM label GROUP BY structure_id HAVING count(*) > 1")
    assert doubled == []


@pytest.fixture
def slow_campaign(campaign_file) -> Path:
    """Long enough to be hit in its middle."""
    file = campaign_file(stop="{labels: 120, generations: 6}", threshold="0.01")
    text = file.read_text().replace("count: 16", "count: 40")
    text = text.replace("walkers: 8, batch: 8", "walkers: 16, batch: 16")
    file.write_text(text)
    return file


def test_killed_controller_resumes_without_losing_or_repeating_a_label(slow_campaign, tmp_path):
    root = tmp_path / "run"
    process = start("run", str(slow_campaign), "--dir", str(root))
    wait_until(lambda: labels(root) >= 50)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    kept = labels(root)
    psutil.wait_procs(children, timeout=20)
    assert not [c for c in children if c.is_running() and c.status() != psutil.STATUS_ZOMBIE]
    code, errors = finish(start("resume", str(root)))
    assert code == 0, errors
    assert labels(root) >= kept
    check_whole(root)


def test_interrupted_controller_ends_in_good_order_and_resumes(slow_campaign, tmp_path):
    root = tmp_path / "run"
    process = start("run", str(slow_campaign), "--dir", str(root))
    wait_until(lambda: labels(root) >= 20)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    code, errors = finish(process)
    assert code == 130, errors
    assert time.monotonic() - began < 60
    assert query(root, "SELECT state FROM campaign") == [("stopped",)]
    code, errors = finish(start("run", str(slow_campaign), "--dir", str(root)))
    assert code == 0, errors
    check_whole(root)


def test_killed_worker_costs_one_attempt_and_no_label(slow_campaign, tmp_path):
    slow_campaign.write_text(slow_campaign.read_text().replace("time_ps: 0.05", "time_ps: 1"))
    root = tmp_path / "run"
    process = start("run", str(slow_campaign), "--dir", str(root))
    sampling = "SELECT count(*) FROM task WHERE kind = 'sample' AND state = 'dispatched'"
    wait_until(lambda: count(root, sampling) == 1)
    time.sleep(2)
    # The one worker of the pool has evaluated the first ensemble and is now moving walkers.
    (pid,) = query(root, "SELECT pid FROM attempt WHERE executor = 'sample' AND state = 'done' LIMIT 1")[0]
    os.kill(pid, signal.SIGKILL)
    code, errors = finish(process)
    assert code == 0, errors
    check_whole(root)
    assert query(root, "SELECT count(*) FROM attempt WHERE state = 'lost'") == [(1,)]


def test_pool_whose_idle_worker_was_killed_goes_on(slow_campaign, tmp_path):
    root = tmp_path / "run"
    process = start("run", str(slow_campaign), "--dir", str(root))
    # The training worker has trained the first generation and waits for the second.
    wait_until(lambda: count(root, "SELECT count(*) FROM ensemble WHERE state = 'promoted'") >= 1)
    (pid,) = query(root, "SELECT pid FROM attempt WHERE executor = 'train' AND state = 'done' LIMIT 1")[0]
    os.kill(pid, signal.SIGKILL)
    code, errors = finish(process)
    assert code == 0, errors
    check_whole(root)


def test_second_controller_is_refused(slow_campaign, tmp_path):
    root = tmp_path / "run"
    first = start("run", str(slow_campaign), "--dir", str(root))
    wait_until(lambda: labels(root) >= 1)
    code, errors = finish(start("resume", str(root)))
    assert code == 3
    assert str(first.pid) in errors
    first.send_signal(signal.SIGTERM)
    assert finish(first)[0] == 130

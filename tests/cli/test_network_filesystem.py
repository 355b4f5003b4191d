"""A campaign on a network file system (forced): the store is the controller's own, readers see copies."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli.helpers import hpcal
from support.campaigns import content

from hpcal.store import lease, location
from hpcal.store.database import Store
from hpcal.store.location import Location


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(location.FILESYSTEM_VARIABLE, "network")


def run(file: Path, root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "hpcal.cli.main", "run", str(file), "--dir", str(root), "--inline"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, location.FILESYSTEM_VARIABLE: "network"},
    )


def wait_for(condition, seconds: float = 60.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)


@pytest.fixture
def running(here: Path, edited):
    """A controller that is stopped in the middle of its campaign, so that readers meet it alive."""
    root = here / "run"
    process = run(edited(("labels: 32", "labels: 400"), ("generations: 2", "generations: 40")), root)
    wait_for(lambda: (root / "snapshot.db").is_file() and (root / "status.json").is_file())
    os.kill(process.pid, signal.SIGSTOP)
    yield root, process
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_readers_see_what_was_published(running):
    root, _ = running
    status = json.loads(hpcal("status", root, "--json").stdout)
    assert status["state"] == "running"
    assert status["structures"]["total"] >= 1
    assert status == json.loads((root / "status.json").read_text()) | {
        "next": status["next"],
        "controller": None,
    }
    assert hpcal("trace", root, "1", "--json").exit_code == 0
    assert hpcal("report", root, "--out", root.parent / "report.html").exit_code == 0
    # Nobody else gets at the file itself: SQLite's own lock says so.
    store = sqlite3.connect(f"file:{root / 'store.db'}?mode=ro", uri=True, timeout=0.1)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        store.execute("SELECT count(*) FROM structure").fetchone()
    store.close()


@pytest.mark.slow
def test_a_second_controller_is_refused_and_told_who_holds_it(running):
    root, process = running
    second = hpcal("resume", root, "--inline")
    assert second.exit_code == 3
    assert f"process {process.pid} on {os.uname().nodename}" in second.stderr


@pytest.mark.slow
def test_a_dead_one_is_taken_over_and_nothing_is_lost(running):
    root, process = running
    process.kill()
    process.wait()
    before = json.loads(hpcal("status", root, "--json").stdout)
    assert "hpcal resume" in hpcal("status", root).stdout
    extended = hpcal("extend", root, "--labels", str(before["labels"]["accepted"] + 5), "--inline")
    assert extended.exit_code in (0, 2), extended.stderr  # 2 where the running limit was higher
    store = Store.open(root)
    assert store.acquire().epoch == 2
    store.release()
    store.close()
    assert not (root / "lease.json").exists()


@pytest.mark.slow
def test_one_on_another_host_is_judged_by_its_counter_alone(running, monkeypatch):
    root, process = running
    shown = json.loads((root / "lease.json").read_text())
    (root / "lease.json").write_text(json.dumps(shown | {"host": "elsewhere"}))
    monkeypatch.setattr(lease, "WATCH_SECONDS", 2.0)
    process.kill()
    process.wait()
    began = time.monotonic()
    Store.open(root).close()  # its counter stands still: it is dead
    assert time.monotonic() - began >= 2.0


@pytest.mark.slow
def test_the_campaign_is_the_same_as_on_a_local_disk(here, monkeypatch):
    for kind in ("network", "local"):
        monkeypatch.setenv(location.FILESYSTEM_VARIABLE, kind)
        assert hpcal("run", here / "tiny.yaml", "--dir", here / kind, "--inline").exit_code == 0
    assert content(here / "network") == content(here / "local")
    # Moved to a network file system, a store of a local disk goes on, and the other way round.
    monkeypatch.setenv(location.FILESYSTEM_VARIABLE, "network")
    assert hpcal("resume", here / "local", "--inline").exit_code == 0


def test_detection_reads_the_mounts(monkeypatch, tmp_path):
    monkeypatch.delenv(location.FILESYSTEM_VARIABLE)
    assert location.filesystem(tmp_path)
    part = type("Part", (), {"mountpoint": str(tmp_path), "fstype": "nfs4"})
    monkeypatch.setattr(location.psutil, "disk_partitions", lambda **_: [part])
    assert location.on_network(tmp_path / "campaign")
    part.fstype = "ext4"
    assert not Location.new(tmp_path / "campaign").shared

"""A campaign from its file to its end: results, changes, stops, and controllers that died."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ase.io import read
from cli.helpers import CAMPAIGN, hpcal

from hpcal.ase import EnsembleCalculator
from hpcal.store.database import Store


def sql(root: Path, statement: str) -> list[tuple]:
    connection = sqlite3.connect(root / "store.db")
    try:
        with connection:
            return connection.execute(statement).fetchall()
    finally:
        connection.close()


@contextmanager
def running(here: Path, *args: str) -> Iterator[subprocess.Popen[str]]:
    """A campaign in a process of its own that would go on for long; yields once it labels."""
    text = CAMPAIGN.replace("name: tiny", "name: long").replace(
        "{labels: 32, generations: 2}", "{labels: 100000}"
    )
    # Every walker crosses at once, so labels keep coming.
    (here / "long.yaml").write_text(text + "uncertainty: {threshold: 1.0e-6}\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "hpcal.cli.main", *args],
        cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        before = _labels(here / "long")
        limit = time.monotonic() + 60
        while _labels(here / "long") <= before:
            assert time.monotonic() < limit
            assert process.poll() is None, process.communicate()
            time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.communicate()


def _labels(root: Path) -> int:
    try:
        return sql(root, "SELECT count(*) FROM label")[0][0]
    except sqlite3.OperationalError:
        return 0


def test_a_finished_campaign_says_its_result_and_leaves_what_is_needed(finished):
    result = hpcal("resume", finished)
    assert result.exit_code == 0
    assert "is finished: " in result.stdout
    labels = sql(finished, "SELECT count(*) FROM label WHERE seq IS NOT NULL")[0][0]
    assert f"{labels} accepted, 0 turned away" in result.stdout
    assert "force RMSE" in result.stdout
    assert f"report: {finished / 'report.html'}" in result.stdout
    assert (finished / "report.html").stat().st_size > 1000
    assert f"EnsembleCalculator({str(finished / 'ensemble')!r})" in result.stdout


def test_the_ensemble_works_in_ase_from_another_place(finished, here):
    shutil.copytree(finished / "ensemble", here / "elsewhere")
    atoms = read(here / "water.xyz")
    atoms.calc = EnsembleCalculator(here / "elsewhere")
    assert -20.0 < atoms.get_potential_energy() < 0.0
    assert atoms.calc.info["campaign"] == "tiny"
    assert atoms.calc.info["level"]["code"] == "hpcal-teacher"


def test_run_of_a_finished_campaign_exits_0_and_changes_nothing(own_copy, here):
    before = sql(own_copy, "SELECT count(*) FROM task")
    result = hpcal("run", "tiny.yaml", "--dir", own_copy, "--inline")
    assert result.exit_code == 0
    assert "is finished" in result.stdout
    assert sql(own_copy, "SELECT count(*) FROM task") == before


def test_the_store_of_a_campaign_stays_where_it_is(own_copy, here):
    result = hpcal("run", "tiny.yaml", "--dir", own_copy, "--inline", "--store", "postgresql://me@db/labels")
    assert result.exit_code == 2
    assert result.stderr == (
        f"hpcal: the campaign in {own_copy} has its store in {own_copy / 'store.db'}, not in "
        "postgresql://me@db/labels: leave out --store\n"
    )


def test_a_finished_campaign_in_a_folder_that_is_closed_says_its_result(own_copy, here, monkeypatch):
    """As another user's campaign is, or one on a disk that is full."""
    before = (own_copy / "ensemble" / "ensemble.json").read_bytes()

    def closed(*_args):
        raise PermissionError(errno.EACCES, "Permission denied", "somewhere")

    monkeypatch.setattr(shutil, "copyfile", closed)
    result = hpcal("run", "tiny.yaml", "--dir", own_copy, "--inline")
    assert result.exit_code == 0
    assert "is finished" in result.stdout
    assert "note: the ensemble was not written" in result.stderr
    assert (own_copy / "ensemble" / "ensemble.json").read_bytes() == before
    result = hpcal("export", own_copy, here / "apart")
    assert result.exit_code == 2
    assert result.stderr == (
        f"hpcal: {here / 'apart'} cannot be written: Permission denied; nothing of it was kept\n"
    )
    assert [p.name for p in here.iterdir() if "apart" in p.name] == []


def test_comments_and_layout_may_change(own_copy, here):
    (here / "tiny.yaml").write_text("# another comment\n" + CAMPAIGN.replace("seed: 3", "seed:    3"))
    assert hpcal("run", "tiny.yaml", "--dir", own_copy, "--inline").exit_code == 0


def test_a_changed_file_is_refused_with_the_difference_unless_accepted(own_copy, edited):
    file = edited(("labels: 32, generations: 2", "labels: 36, generations: 5"))
    result = hpcal("run", file, "--dir", own_copy, "--inline")
    assert result.exit_code == 2
    assert "-  labels: 32" in result.stderr
    assert "+  labels: 36" in result.stderr
    assert "--accept-changes" in result.stderr
    result = hpcal("run", file, "--dir", own_copy, "--inline", "--accept-changes")
    assert result.exit_code == 0, result.stderr
    assert "finished: " in result.stdout
    assert sql(own_copy, "SELECT count(*) FROM label WHERE seq IS NOT NULL")[0][0] == 36


def test_changes_are_checked_before_they_are_taken(own_copy, edited):
    file = edited(("members: 2", "members: 1"))
    result = hpcal("run", file, "--dir", own_copy, "--inline", "--accept-changes")
    assert result.exit_code == 2
    assert "1 member has no spread" in result.stderr
    assert json.loads(sql(own_copy, "SELECT spec FROM campaign")[0][0])["potential"]["members"] == 2


def test_a_campaign_held_by_a_live_controller_exits_3(own_copy, here):
    sql(own_copy, "UPDATE campaign SET state = 'stopped'")
    store = Store.open(own_copy)
    store.acquire()
    try:
        result = hpcal("resume", own_copy, "--inline")
    finally:
        store.release()
        store.close()
    assert result.exit_code == 3
    assert f"run by process {os.getpid()}" in result.stderr


def test_the_site_is_recorded_with_its_slots(finished):
    site = json.loads(sql(finished, "SELECT site FROM campaign")[0][0])
    assert site["name"] == "local"
    assert site["inline"] is True
    assert site["pools"]["label"]["slots"] == 2
    assert site["pools"]["label"]["workers_per_node"] == 2


@pytest.mark.slow
def test_a_site_file_is_taken_again_on_resume(own_copy, here):
    (here / "machine.yaml").write_text("pools: {label: {max_workers_per_node: 5}, sample: {}, train: {}}\n")
    sql(own_copy, "UPDATE campaign SET state = 'stopped'")
    assert hpcal("resume", own_copy, "--inline", "--site", "machine.yaml").exit_code == 0
    sql(own_copy, "UPDATE campaign SET state = 'stopped'")
    assert hpcal("resume", own_copy, "--inline").exit_code == 0
    site = json.loads(sql(own_copy, "SELECT site FROM campaign")[0][0])
    assert site["name"] == "machine"
    assert site["pools"]["label"]["slots"] == 5


@pytest.mark.slow
def test_a_folder_left_by_a_run_killed_at_its_start_is_taken(here):
    (here / "tiny" / "tasks").mkdir(parents=True)
    Store.create(here / "tiny").close()
    result = hpcal("run", "tiny.yaml", "--inline")
    assert result.exit_code == 0, result.stderr
    assert (here / "tiny" / "ensemble" / "ensemble.json").is_file()


@pytest.mark.slow
def test_stop_ends_a_running_campaign_in_good_order(here):
    with running(here, "run", "long.yaml", "--inline") as process:
        held = hpcal("run", "long.yaml", "--inline")
        assert held.exit_code == 3
        assert f"run by process {process.pid}" in held.stderr
        result = hpcal("stop", "long")
        assert result.exit_code == 0, result.stderr
        assert "stopped; go on with `hpcal resume long`" in result.stdout
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopped in good order" in err
    assert "Traceback" not in err
    assert " accepted" in out
    assert json.loads(hpcal("status", "long", "--json").stdout)["state"] == "stopped"
    assert hpcal("stop", "long").exit_code == 0


@pytest.mark.parametrize("state", ["stopped", "running"])
def test_stop_waits_for_a_controller_that_has_the_lease_whatever_the_state(own_copy, state):
    sql(own_copy, f"UPDATE campaign SET state = '{state}'")
    store, asked = Store.open(own_copy), own_copy / "stop"
    store.acquire()
    ended = []

    def controller() -> None:
        """Takes the first request for an old one, as a controller that begins does."""
        for _ in range(2):
            limit = time.monotonic() + 20
            while not asked.exists() and time.monotonic() < limit:
                time.sleep(0.02)
            asked.unlink()
        ended.append(state)
        store.release()

    thread = threading.Thread(target=controller)
    thread.start()
    result = hpcal("stop", own_copy)
    seen = list(ended)
    thread.join()
    store.close()
    assert result.exit_code == 0, result.stderr
    assert "stopped; go on with" in result.stdout
    assert seen == [state]


@pytest.mark.slow
def test_signals_and_a_killed_controller(here):
    with running(here, "run", "long.yaml", "--inline") as process:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 130
    with running(here, "resume", "long", "--inline") as process:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 130
    with running(here, "resume", "long", "--inline") as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        result = hpcal("stop", "long")
        assert result.exit_code == 1
        assert "is dead" in result.stderr
        assert "its controller is dead: go on with `hpcal resume long`" in hpcal("status", "long").stdout
    with running(here, "resume", "long", "--inline") as process:
        assert hpcal("stop", "long", "--no-wait").exit_code == 0
        process.communicate(timeout=60)
        assert process.returncode == 130


def test_a_campaign_that_fails_exits_1_with_the_cause(edited, here):
    file = edited(
        (
            "{labeler: teacher, model: teacher}",
            "{labeler: teacher, model: teacher, checks: {max_force_eV_per_A: 1.0e-9}}",
        )
    )
    result = hpcal("run", file, "--dir", "fails", "--inline")
    assert result.exit_code == 1
    assert "above 1e-09 eV/Å" in result.stderr or "no label to learn from" in result.stderr
    assert (here / "fails" / "report.html").is_file()


@pytest.mark.parsl
def test_a_campaign_on_parsl_workers(edited, here):
    file = edited(("labels: 32, generations: 2", "labels: 30, generations: 2"))
    done = subprocess.run(
        [sys.executable, "-m", "hpcal.cli.main", "run", str(file), "--dir", "run"],
        cwd=here, capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "finished: " in done.stdout
    hosts = sql(here / "run", "SELECT count(DISTINCT pid) FROM attempt")
    assert hosts[0][0] >= 3

"""Strays of a run, processes and jobs, are ended; those of another are not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.fake_slurm import FakeSlurm

from hpcal.sites import strays as strays_module
from hpcal.sites.strays import EndedJobs, end_stray_jobs, end_strays, same_job, scheduler_kinds, strays
from hpcal.sites.worker_init import RUN_VARIABLE

SLEEP = "import time; print('up', flush=True); time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP
RUN = "0123456789ab"
BLOCK = f"hpcal:{RUN}:label.0.aa11bb"


def start(code: str, run_id: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, RUN_VARIABLE: run_id}, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.stdout.close()
    return process


@pytest.mark.slow
def test_strays_of_one_run_are_ended() -> None:
    mine, other = f"mine-{os.getpid()}", f"other-{os.getpid()}"
    processes = [start(SLEEP, mine), start(STUBBORN, mine), start(SLEEP, other)]
    try:
        assert {p.pid for p in strays(mine)} == {p.pid for p in processes[:2]}
        assert end_strays(mine) == 2
        assert strays(mine) == []
        assert end_strays(mine) == 0
        assert processes[2].poll() is None
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    monkeypatch.setattr(strays_module.time, "sleep", lambda _s: None)
    return FakeSlurm(tmp_path / "slurm", monkeypatch)


def test_jobs_of_this_run_are_cancelled_and_no_other(slurm: FakeSlurm) -> None:
    mine = [slurm.add(BLOCK), slurm.add(f"hpcal:{RUN}:train.3.aa11bb", "PENDING")]
    others = [slurm.add("hpcal:ffff:label.0.aa11bb"), slurm.add(f"hpcal:{RUN}x:label.0.a"), slurm.add("")]
    assert end_stray_jobs("slurm", RUN) == EndedJobs(gone=tuple(mine))
    assert list(slurm.marks()) == others
    assert end_stray_jobs("slurm", RUN) == EndedJobs()


def test_a_controller_in_a_job_keeps_itself_and_its_successor(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, own, following = (slurm.add(f"hpcal:{RUN}:controller.{n}") for n in (9, 10, 11))
    block = slurm.add(BLOCK)
    of_a_pool_with_that_name = slurm.add(f"hpcal:{RUN}:controller.12.aa11bb")
    monkeypatch.setenv("SLURM_JOB_ID", own)
    assert set(end_stray_jobs("slurm", RUN).gone) == {dead, block, of_a_pool_with_that_name}
    assert list(slurm.marks()) == [own, following]


def test_a_controller_elsewhere_ends_the_chain_but_not_the_entry_of_scrontab(slurm: FakeSlurm) -> None:
    waiting, cron = slurm.add(f"hpcal:{RUN}:controller.2"), slurm.add(f"hpcal:{RUN}:controller.cron")
    assert end_stray_jobs("slurm", RUN).gone == (waiting,)
    assert list(slurm.marks()) == [cron]


def test_a_scheduler_that_does_not_answer_is_waited_for_and_then_said(slurm: FakeSlurm) -> None:
    slurm.add(BLOCK)
    slurm.is_silent()
    ended = end_stray_jobs("slurm", RUN, within_s=1.5)
    assert ended.gone == ()
    assert "Socket timed out" in ended.trouble


def test_a_scheduler_that_answers_again_in_time_is_no_trouble(
    slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = slurm.add(BLOCK)
    slurm.is_silent()
    monkeypatch.setattr(strays_module.time, "sleep", lambda _s: slurm.is_silent(False))
    assert end_stray_jobs("slurm", RUN, within_s=30) == EndedJobs(gone=(job,))


def test_a_job_that_does_not_end_is_left(slurm: FakeSlurm) -> None:
    job = slurm.add(BLOCK)
    slurm.is_stuck()
    assert end_stray_jobs("slurm", RUN, within_s=1.5) == EndedJobs(left=(job,))


def test_where_there_are_no_commands_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert end_stray_jobs("slurm", RUN, within_s=1e6).trouble == "there is no command squeue here"
    assert end_stray_jobs("pbs", RUN, within_s=1e6).trouble == "there is no command qstat here"


def test_kinds_without_a_batch_system_have_no_jobs() -> None:
    assert end_stray_jobs("local", RUN) == end_stray_jobs("parsl", RUN) == EndedJobs()
    pools = {"label": {"kind": "slurm"}, "train": {"kind": "local"}, "sample": {"kind": "parsl"}, "old": {}}
    assert scheduler_kinds({"pools": pools}) == {"slurm"}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("12.server", "12", True), ("12", "12", True), ("12", "120", False), (None, "12", False)],
)
def test_ids_of_pbs_are_spelled_in_several_ways(one: str | None, other: str, same: bool) -> None:
    assert same_job(one, other) is same

"""Pools of a scheduler from the controller to their workers, on a Slurm that runs its jobs here."""

from __future__ import annotations

import os
import re
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import parsl
import pytest
from support.fake_slurm import FakeSlurm
from support.slurm import eventually

from hpcal.engine.dispatch import Assignment, BlocksWait, Report
from hpcal.engine.parsl_dispatch import ParslDispatcher
from hpcal.sites.parsl_config import parsl_config
from hpcal.sites.schema import Site
from hpcal.sites.strays import end_strays
from hpcal.sites.worker_init import DRAIN

HANGS_S = 8.0

pytestmark = pytest.mark.parsl


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSlurm]:
    slurm = FakeSlurm(tmp_path / "slurm", monkeypatch)
    slurm.runs_jobs()
    yield slurm
    slurm.kill_jobs()


@pytest.fixture
def run_id() -> Iterator[str]:
    run_id = f"test-{uuid.uuid4().hex}"
    yield run_id
    end_strays(run_id)


def slurm_site(**label: Any) -> Site:
    idle = {"init_blocks": 0, "min_blocks": 0}
    pools = {"label": {"status_polling_interval": 1, **label}, "sample": idle, "train": idle}
    return Site.model_validate({"kind": "slurm", "walltime": "00:10:00", "pools": pools})


def assigned(folder: Path, number: int) -> Assignment:
    stem = folder / str(number)
    return Assignment(
        attempt_id=number,
        task_id=number,
        epoch=1,
        kind="label",
        pool="label",
        priority=0,
        payload=f"{stem}.task",
        spool=f"{stem}.spool",
        log=f"{stem}.log",
        scratch=str(stem),
        stop_file=str(folder / "stop"),
    )


def reported(dispatcher: ParslDispatcher, within_s: float) -> Report:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if reports := dispatcher.wait(0.2):
            (report,) = reports
            return report
    raise AssertionError(f"nothing has come in within {within_s} s")


def test_completions_come_in_while_the_scheduler_hangs(slurm: FakeSlurm, run_id: str, tmp_path: Path) -> None:
    site = slurm_site(max_workers_per_node=2, max_blocks=2)
    payload = tmp_path / "2.task"
    os.mkfifo(payload)  # its task ends when somebody writes
    with closing(ParslDispatcher(site, tmp_path / "parsl", run_id)) as dispatcher:
        dispatcher.submit(assigned(tmp_path, 2))
        dispatcher.submit(assigned(tmp_path, 1))
        assert reported(dispatcher, 60).attempt_id == 1
        slurm.hangs(HANGS_S)
        start = time.monotonic()
        assert dispatcher.set_aside(socket.gethostname()) == ()
        with payload.open("wb") as file:
            file.write(b"no payload")
        assert reported(dispatcher, HANGS_S).attempt_id == 2
        assert time.monotonic() - start < HANGS_S / 2
        while not slurm.commands.calls("scancel"):
            assert time.monotonic() - start < HANGS_S, "the block was not to end"
            time.sleep(0.1)
        slurm.answers()


def test_the_controller_is_told_why_jobs_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = FakeSlurm(tmp_path / "slurm", monkeypatch)
    slurm.commands.says("squeue", "101|PENDING|0|AssocGrpCPULimit|(null)|\n")
    told: list[BlocksWait] = []
    with closing(
        ParslDispatcher(slurm_site(), tmp_path / "parsl", "test-waits", blocks_wait=told.append)
    ) as dispatcher:
        assert eventually(lambda: dispatcher.wait(0.1) or told)
    assert told == [BlocksWait(pools={"label": {"AssocGrpCPULimit": 1}})]
    assert told[0].sentence == "pool label: 1 block waits (AssocGrpCPULimit)"


def test_a_manager_that_starts_late_stops_taking_tasks_no_later(
    slurm: FakeSlurm, run_id: str, tmp_path: Path
) -> None:
    late = tmp_path / "python"
    late.write_text(f'#!/bin/sh\nsleep 4\nexec {sys.executable} "$@"\n')  # it unpacks itself, say
    late.chmod(0o755)
    config = parsl_config(slurm_site(python=str(late)), tmp_path / "parsl", run_id)
    with parsl.load(config) as kernel:
        ask = parsl.python_app(os.getenv, data_flow_kernel=kernel, executors=["label"], cache=False)
        moment = float(ask(DRAIN).result(timeout=60))
        (log,) = (tmp_path / "parsl").rglob("manager.log")
    (drains,) = re.findall(r"Will request drain at ([\d.]+)", log.read_text())
    assert moment - 2 < float(drains) <= moment + 0.5

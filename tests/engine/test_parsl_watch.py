"""Attempts that fall silent and blocks that take no work, with a clock that the tests turn."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from hpcal.engine.dispatch import Assignment, Report
from hpcal.engine.parsl_blocks import PoolBlocks
from hpcal.engine.parsl_watch import (
    LOOK_SECONDS,
    SILENT_SECONDS,
    START_SECONDS,
    STARVED_SECONDS,
    PoolWatch,
)
from hpcal.engine.spool import BLOCK_VARIABLE, SpoolWriter


@dataclass
class Executor:
    """One block a number, each with a manager that holds so many tasks."""

    tasks: dict[str, int]
    label: str = "label"
    held: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    deaf: bool = False
    """Whether its scheduler cannot be told to end a job."""
    tries: int = 0

    def connected_managers(self) -> list[dict[str, object]]:
        return [{"block_id": block, "tasks": n} for block, n in self.tasks.items()]

    @property
    def status_facade(self) -> dict[str, SimpleNamespace]:
        return {block: SimpleNamespace(terminal=f"job{block}" in self.cancelled) for block in self.tasks}

    @property
    def blocks_to_job_id(self) -> dict[str, str]:
        return {block: f"job{block}" for block in self.tasks}

    @property
    def provider(self) -> SimpleNamespace:
        return SimpleNamespace(cancel=self._cancel)

    def _cancel(self, jobs: list[str]) -> list[bool]:
        self.tries += 1
        if not self.deaf:
            self.cancelled += jobs
        return [not self.deaf] * len(jobs)

    def _hold_block(self, block: str) -> None:
        self.held.append(block)


@dataclass
class Scene:
    """A pool, its spools and its clock."""

    folder: Path
    executor: Executor
    now: float = 1000.0
    watch: PoolWatch = field(init=False)

    def __post_init__(self) -> None:
        blocks = PoolBlocks(executor=self.executor, beside=lambda work: work())
        self.watch = PoolWatch(blocks=blocks, clock=lambda: self.now)

    def spool(self, number: int) -> Path:
        return self.folder / f"{number}.spool"

    def submit(self, number: int) -> None:
        paths = dict.fromkeys(("payload", "log", "scratch", "stop_file"), "")
        self.watch.submitted(
            Assignment(
                attempt_id=number, task_id=number, epoch=1, kind="label", pool="label", priority=0,
                spool=str(self.spool(number)), **paths,
            )
        )  # fmt: skip

    def begin(self, number: int, block: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(BLOCK_VARIABLE, block)
        SpoolWriter(self.spool(number), attempt=number, epoch=1).close()

    def touch(self, number: int) -> None:
        os.utime(self.spool(number), (self.now, self.now))

    def pass_time(self, seconds: float, beating: tuple[int, ...] = ()) -> list[Report]:
        lost = []
        end = self.now + seconds
        while self.now < end:
            self.now += LOOK_SECONDS
            for number in beating:
                self.touch(number)
            lost += self.watch.look()
        return lost


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(folder=tmp_path, executor=Executor(tasks={"0": 1}))


def test_an_attempt_that_shows_signs_of_life_is_left_alone(scene, monkeypatch):
    scene.submit(1)
    scene.begin(1, "0", monkeypatch)
    assert scene.pass_time(50 * SILENT_SECONDS, beating=(1,)) == []
    assert scene.executor.held == []


def test_a_silent_attempt_is_lost_and_its_block_replaced_when_the_others_are_done(scene, monkeypatch):
    scene.executor.tasks["0"] = 2
    for number in (1, 2):
        scene.submit(number)
        scene.begin(number, "0", monkeypatch)
    lost = scene.pass_time(2 * SILENT_SECONDS, beating=(2,))
    assert [(r.attempt_id, r.lost, r.block) for r in lost] == [(1, True, "0")]
    assert "no sign of life" in lost[0].message
    assert (scene.executor.held, scene.executor.cancelled) == (["0"], [])
    scene.watch.reported([Report(attempt_id=2, block="0")])
    scene.pass_time(LOOK_SECONDS)
    assert scene.executor.cancelled == ["job0"]


def test_a_block_that_could_not_be_ended_is_ended_later(scene, monkeypatch):
    """It is held, and would take the place of another to the end of its walltime."""
    clock = SimpleNamespace(monotonic=lambda: scene.now)
    monkeypatch.setattr("hpcal.sites.blocks.time", clock)
    scene.submit(1)
    scene.begin(1, "0", monkeypatch)
    scene.executor.deaf = True
    scene.pass_time(2 * SILENT_SECONDS)
    assert scene.executor.tries > 1
    scene.executor.deaf = False
    scene.pass_time(2 * SILENT_SECONDS)
    assert scene.executor.cancelled == ["job0"]


def test_a_block_that_begins_nothing_is_replaced_also_after_another_was(scene, monkeypatch):
    """What a lost worker reports between must not make the watch look away."""
    for block in ("0", "1"):
        scene.executor.tasks = {block: 1}
        number = int(block) * 10
        scene.submit(number)
        scene.begin(number, block, monkeypatch)
        scene.pass_time(LOOK_SECONDS, beating=(number,))
        scene.watch.reported([Report(attempt_id=number, block=block)])
        scene.submit(number + 1)  # sent to a manager whose queue is locked
        scene.watch.reported([Report(attempt_id=999, lost=True)])
        scene.pass_time(STARVED_SECONDS + 3 * LOOK_SECONDS)
        assert scene.executor.cancelled[-1] == f"job{block}"
        scene.watch.reported([Report(attempt_id=number + 1, lost=True)])


def test_a_queue_without_blocks_is_no_fault(scene):
    """Blocks wait for the batch system: nothing is held, so that nothing is starved."""
    scene.executor.tasks = {}
    scene.submit(1)
    assert scene.pass_time(10 * START_SECONDS) == []
    assert scene.executor.held == []


def test_a_new_block_is_given_time_for_its_imports(scene):
    scene.submit(1)
    scene.pass_time(START_SECONDS - LOOK_SECONDS)
    assert scene.executor.held == []
    scene.pass_time(4 * LOOK_SECONDS)
    assert scene.executor.cancelled == ["job0"]


def test_short_work_that_goes_on_starves_nobody(scene):
    """More is held than has begun at every look, and yet reports come in."""
    scene.executor.tasks["0"] = 3
    for number in range(200):
        scene.submit(number)
        scene.pass_time(LOOK_SECONDS)
        scene.watch.reported([Report(attempt_id=number, block="0")])
    assert scene.executor.held == []


def test_a_live_attempt_touches_its_spool(tmp_path, monkeypatch):
    monkeypatch.setattr("hpcal.engine.spool.BEAT_SECONDS", 0.05)
    path = tmp_path / "1.spool"
    with SpoolWriter(path, attempt=1, epoch=1):
        os.utime(path, (0, 0))
        for _ in range(200):
            if path.stat().st_mtime > 0:
                break
            time.sleep(0.02)
        assert path.stat().st_mtime > 0

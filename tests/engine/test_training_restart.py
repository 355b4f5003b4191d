"""A training worker is killed in the middle; the next one ends with the same member, bit for bit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from hpcal.core.codec import pack
from hpcal.core.dataset import Dataset
from hpcal.core.ensemble import file_sha256
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure
from hpcal.core.walker import Split
from hpcal.engine.dispatch import Assignment
from hpcal.engine.endings import read_results
from hpcal.exchange.hdf5 import write_shard

WORKER = """
import json, sys
from hpcal.engine.dispatch import Assignment
from hpcal.engine.tasks import run_attempt
from hpcal.potentials import training

training.CHECKPOINT_SECONDS = 0.0
steps, step = [], training.ANITrainer._step

def counted(self, *args):
    steps.append(1)
    return step(self, *args)

training.ANITrainer._step = counted
report = run_attempt(Assignment(**json.loads(sys.argv[1])))
print(json.dumps({"steps": len(steps), "failure": report.failure, "message": report.message}))
"""
"""A worker that keeps its state after each step, and says how many steps it took."""

EPOCHS, BATCHES = 12, 4


def dataset() -> Dataset:
    """Shaken water in a harmonic well."""
    rng = np.random.default_rng(4)
    rest = np.array([[0.0, 0.0, 0.0], [0.76, 0.59, 0.0], [-0.76, 0.59, 0.0]])
    level = LevelOfTheory(code="well", version="1", method="harmonic")
    shifts = [0.05 * rng.standard_normal((3, 3)) for _ in range(40)]
    structures = [Structure(numbers=np.array([8, 1, 1]), positions=rest + shift) for shift in shifts]
    labels = [Label(energy=float((s**2).sum()), forces=-2.0 * s, level=level) for s in shifts]
    splits = [Split.VALIDATION if i % 5 == 0 else Split.TRAIN for i in range(40)]
    return Dataset.of(structures, labels, ids=range(40), splits=splits)


def task(folder: Path, members: list[int]) -> dict:
    """The inputs of a training task."""
    folder.mkdir(parents=True, exist_ok=True)
    shard = folder / "shard.h5"
    digest = file_sha256(shard) if shard.exists() else write_shard(shard, dataset())
    settings = {"members": 4, "hidden": [8, 4], "epochs": EPOCHS, "batch_size": 8, "device": "cpu"}
    return {
        "shards": [{"path": str(shard), "sha256": digest}],
        "potential": {"name": "ani", "settings": settings},
        "elements": [1, 8],
        "members": [{"index": i, "seed": 100 + i} for i in members],
        "starts": [],
        "stream": 9,
        "checkpoint": str(folder / "task-1"),
    }


def attempt(folder: Path, inputs: dict, number: int) -> Assignment:
    """An attempt at it, with its own payload, spool and scratch, as the controller makes it."""
    stem = folder / f"00000001-{number}"
    stem.with_suffix(".task").write_bytes(pack(inputs))
    return Assignment(
        attempt_id=number, task_id=1, epoch=1, kind="train", pool="train", priority=0,
        payload=str(stem.with_suffix(".task")), spool=str(stem.with_suffix(".spool")),
        log=str(stem.with_suffix(".log")), scratch=str(folder / f"scratch-{number}"),
        stop_file=str(folder / "stop"),
    )  # fmt: skip


def worker(assignment: Assignment) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, json.dumps(asdict(assignment))], stdout=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> dict:
    out, _ = process.communicate(timeout=120)
    found = json.loads(out.splitlines()[-1])
    assert found["failure"] is None, found
    return found


def written(folder: Path) -> Iterator[tuple[str, int]]:
    """Files of a folder that another process writes to, with their times; a renamed one is left out."""
    for path in folder.glob("*"):
        with suppress(FileNotFoundError):
            yield path.name, path.stat().st_mtime_ns


def kill_in_the_middle(process: subprocess.Popen, checkpoint: Path, writes: int) -> None:
    """kill -9 once the state was written a few times."""
    seen, last, deadline = 0, None, time.monotonic() + 100
    while seen < writes and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        marks = sorted(written(checkpoint))
        seen, last = seen + (marks != last and bool(marks)), marks
        time.sleep(0.0005)
    assert seen >= writes
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    process.stdout.close()


@pytest.mark.slow
@pytest.mark.parametrize("members", [[2], [1, 3]])
def test_a_member_whose_worker_was_killed_is_the_one_of_an_uninterrupted_training(tmp_path, members):
    whole = tmp_path / "whole"
    first = attempt(whole, task(whole, members), 1)
    total = finish(worker(first))["steps"]
    assert total == EPOCHS * BATCHES
    expected = read_results(Path(first.spool), 1).values

    folder = tmp_path / "killed"
    inputs = task(folder, members)
    killed = attempt(folder, inputs, 1)
    kill_in_the_middle(worker(killed), Path(inputs["checkpoint"]), 5)
    assert read_results(Path(killed.spool), 1).values == []
    second = attempt(folder, inputs, 2)
    left = finish(worker(second))["steps"]
    assert 0 < left < total
    found = read_results(Path(second.spool), 2)
    assert found.complete
    assert [v["sha256"] for v in found.values] == [v["sha256"] for v in expected]
    assert [v["index"] for v in found.values] == members
    for value in found.values:
        assert file_sha256(Path(value["path"])) == value["sha256"]
    # A third attempt, should the second one's results be lost too, finds the finished training.
    third = attempt(folder, inputs, 3)
    assert finish(worker(third))["steps"] == 0
    assert [v["sha256"] for v in read_results(Path(third.spool), 3).values] == [v["sha256"] for v in expected]


@pytest.mark.slow
def test_a_checkpoint_of_other_members_is_not_gone_on_from(tmp_path):
    """Each member's task finds its own: a folder that holds another training is begun anew."""
    inputs = task(tmp_path, [0])
    kill_in_the_middle(worker(attempt(tmp_path, inputs, 1)), Path(inputs["checkpoint"]), 5)
    other = {**inputs, "members": [{"index": 1, "seed": 101}]}
    assert finish(worker(attempt(tmp_path, other, 2)))["steps"] == EPOCHS * BATCHES

"""The engine over two local workers: how busy they are, and what the controller costs."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import parsl
import psutil
import pytest
from support.campaigns import query
from support.processes import count, start, wait_until
from support.sleepy import install

from hpcal.sites.parsl_config import parsl_config
from hpcal.sites.schema import load_site

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1200)]

CAMPAIGN = """
name: springs
structures: {{smiles: "O"}}
label: {{labeler: springs, seconds: {seconds}}}
potential: {{kind: morse, members: 2}}
bootstrap: [{{sampler: random_displacement, count: {count}, amplitude_A: 0.08}}]
sampling: [{{sampler: langevin, walkers: 2, batch: 2, time_ps: 0.01, temperature_K: 300}}]
uncertainty: {{metric: force_std, threshold: 0.5}}
stop: {{generations: 1}}
tasks: {{max_label_chunk: 1}}
"""
DONE = (
    "SELECT count(*) FROM attempt JOIN task ON task.id = task_id "
    "WHERE kind = 'label' AND attempt.state = 'done'"
)


def controller_cpu(process: psutil.Process) -> float:
    """Seconds of processor time of the controller, its interchanges and workers aside."""
    times = process.cpu_times()
    return float(times.user + times.system)


def measure(folder: Path, seconds: float, tasks: int, warm: int) -> tuple[list[tuple[float, float]], float]:
    """Start and end of each label task after the first ones, and the controller's CPU for them."""
    campaign, root = folder / "springs.yaml", folder / "run"
    campaign.write_text(CAMPAIGN.format(seconds=seconds, count=tasks + warm))
    process = start("run", str(campaign), "--dir", str(root), env=install(folder / "plugin"))
    try:
        watched = psutil.Process(process.pid)
        wait_until(lambda: count(root, DONE) >= warm, 120, "warm-up", process)
        before, done_before = controller_cpu(watched), count(root, DONE)
        wait_until(lambda: count(root, DONE) >= tasks + warm, 60 + tasks * (seconds + 0.2), "labels", process)
        cpu = (controller_cpu(watched) - before) / (count(root, DONE) - done_before)
    finally:
        process.terminate()
        process.communicate(timeout=120)
    rows = query(
        root,
        "SELECT attempt.start, attempt.end FROM attempt JOIN task ON task.id = task_id "
        "WHERE kind = 'label' AND attempt.state = 'done' ORDER BY attempt.start",
    )
    return [(float(a), float(b)) for a, b in rows[warm : warm + tasks]], cpu


def busy_share(times: Sequence[tuple[float, float]], workers: int) -> float:
    """Time in tasks over the time of the workers from the first start to the last end."""
    span = max(end for _, end in times) - min(begin for begin, _ in times)
    return sum(end - begin for begin, end in times) / (workers * span)


def test_two_workers_are_busy_with_short_labels(tmp_path):
    times, cpu = measure(tmp_path, seconds=1.0, tasks=400, warm=16)
    share = busy_share(times, workers=2)
    print(f"400 labels of 1 s on 2 workers: busy {share:.1%}; controller {1000 * cpu:.1f} ms CPU a task")
    assert share >= 0.97


def bare_parsl(folder: Path, tasks: int) -> float:
    """No-op tasks a second through the same executors without hpcal."""
    with parsl.load(parsl_config(load_site("local"), folder, "bare")) as kernel:
        app = parsl.python_app(os.getpid, data_flow_kernel=kernel, executors=["label"], cache=False)
        for future in [app() for _ in range(50)]:
            future.result(timeout=120)
        begin = time.perf_counter()
        for future in [app() for _ in range(tasks)]:
            future.result(timeout=120)
        return tasks / (time.perf_counter() - begin)


def test_tasks_that_do_nothing_through_the_engine_and_through_bare_parsl(tmp_path):
    n = 1000
    bare = bare_parsl(tmp_path / "bare", n)
    times, cpu = measure(tmp_path, seconds=0.0, tasks=n, warm=50)
    rate = n / (max(end for _, end in times) - min(begin for begin, _ in times))
    print(
        f"no-op tasks a second: bare Parsl {bare:.0f}, through the engine, durable, {rate:.0f} "
        f"({rate / bare:.0%}); controller {1000 * cpu:.1f} ms CPU a task"
    )
    assert rate > 0.02 * bare

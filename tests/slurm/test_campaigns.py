"""Campaigns on a real Slurm: jobs that are cancelled or forgotten, workers and controllers that die."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest
from support.campaigns import query
from support.processes import check_whole, count, finish, labels, left_behind, run_id, start, wait_until
from support.sleepy import computed
from support.slurm import Commands, eventually, forgets_after

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a failed test has left in the queue must not disturb the next one."""
    yield
    mine = [job for job, comment in jobs() if comment.startswith("hpcal:")]
    if mine:
        subprocess.run(["scancel", *mine], check=False, timeout=60)


def jobs(prefix: str = "") -> list[tuple[str, str]]:
    """Ids and comments of all jobs that have not ended."""
    out = subprocess.run(
        ["squeue", "--noheader", "--format=%i %k"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    found = [(line.split()[0], line.split()[1]) for line in out.splitlines() if len(line.split()) > 1]
    return [(job, comment) for job, comment in found if comment.startswith(prefix)]


def job_of(root, pool: str) -> str:
    """The one running job of a pool."""
    (job,) = [job for job, _ in jobs(f"hpcal:{run_id(root)}:{pool}.")]
    return job


def busy(root, pool: str) -> bool:
    """Whether an attempt of a pool has begun and has not ended."""
    rows = query(root, "SELECT spool FROM attempt WHERE state = 'dispatched' AND executor = :pool", pool=pool)
    return any((root / spool).exists() for (spool,) in rows)


def check_clean(root, log) -> None:
    """Everything whole, nothing computed twice, no job and no process left."""
    check_whole(root)
    # A relaxation has looked at its minimum before that is labelled.
    sampled = query(root, "SELECT hash FROM structure WHERE origin IN ('bootstrap', 'sample')")
    times = computed(log)
    assert all(times[digest] <= 1 for (digest,) in sampled), "finished labels were computed again"
    run = run_id(root)
    assert eventually(lambda: not jobs(f"hpcal:{run}"), 30), jobs()
    assert eventually(lambda: not left_behind(run), 30), left_behind(run)


def test_a_cancelled_block_and_a_scheduler_that_fails_cost_nothing_finished(scene, tmp_path, monkeypatch):
    """sbatch fails at the start, a block is cancelled at work, squeue hangs, ended jobs are forgotten."""
    one = scene(labels=70)
    commands = Commands(tmp_path / "bin", monkeypatch)
    env = {**one.env, "PATH": os.environ["PATH"]}
    commands.says("sbatch", err="sbatch: error: Batch job submission failed: Socket timed out", exit_code=1)
    with forgets_after(10):
        process = start(*one.words, env=env)
        assert eventually(lambda: bool(commands.calls("sbatch")), 60)
        time.sleep(10)
        assert len(commands.calls("sbatch")) <= 30, "failed submissions are not repeated without a pause"
        commands.remove("sbatch")
        wait_until(lambda: labels(one.root) >= 8, what="labels after sbatch came back", process=process)
        # Between its first and its last label of a task.
        wait_until(lambda: busy(one.root, "label"), what="a label task", process=process)
        subprocess.run(["scancel", job_of(one.root, "label")], check=True, timeout=60)
        before = labels(one.root)
        wait_until(lambda: labels(one.root) > before + 8, what="labels of the next block", process=process)
        commands.write("squeue", "sleep 30", f'exec {commands.real("squeue")} "$@"')
        # A block ends while nobody can ask for it.
        subprocess.run(["scancel", "--name=hpcal.sample", "--state=RUNNING"], check=True, timeout=60)
        time.sleep(31)
        commands.remove("squeue")
        code, errors = finish(process)
    assert code == 0, errors
    check_clean(one.root, one.log)
    words = [text for (text,) in query(one.root, "SELECT message FROM event WHERE kind = 'block_ended'")]
    assert any("CANCELLED" in text for text in words), words


def worker_of(root, kind: str) -> int:
    """A worker that has done a task of a kind and lives."""
    pids = query(
        root,
        "SELECT DISTINCT pid FROM attempt JOIN task ON task.id = task_id "
        "WHERE attempt.state = 'done' AND kind = :kind ORDER BY attempt.id DESC",
        kind=kind,
    )
    return next(pid for (pid,) in pids if pid in left_behind(run_id(root)))


def test_killed_workers_and_controllers_leave_nothing_behind_and_lose_nothing(scene):
    one = scene(labels=80)
    process = start(*one.words, env=one.env)
    wait_until(lambda: labels(one.root) >= 8, what="first labels", process=process)
    os.kill(worker_of(one.root, "label"), signal.SIGKILL)
    wait_until(lambda: labels(one.root) >= 20, what="labels after a worker was killed", process=process)
    process.kill()
    finish(process)
    # Interchanges die with the controller, and blocks miss their heartbeats.
    run = run_id(one.root)
    assert eventually(lambda: not left_behind(run), 60), left_behind(run)
    assert eventually(lambda: not jobs(f"hpcal:{run}"), 60), jobs()
    process = start(*one.words, env=one.env)
    before = labels(one.root)
    wait_until(lambda: labels(one.root) >= before + 8, what="the resumed campaign", process=process)
    process.terminate()
    asked = time.monotonic()
    code, errors = finish(process)
    assert code == 130, errors
    assert time.monotonic() - asked < 60
    assert eventually(lambda: not left_behind(run), 60), left_behind(run)
    assert eventually(lambda: not jobs(f"hpcal:{run}"), 60), jobs()
    code, errors = finish(start("resume", str(one.root), env=one.env))
    assert code == 0, errors
    check_clean(one.root, one.log)


def test_a_second_controller_at_once_after_a_kill_cancels_the_strays_and_only_those(scene, tmp_path):
    one = scene(labels=40)
    mark = "--comment=hpcal:another:label.0.abc"
    other = subprocess.run(
        ["sbatch", "--parsable", mark, "--output=/dev/null", "--wrap=sleep 300"],
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout.strip()  # fmt: skip
    process = start(*one.words, env=one.env)
    wait_until(lambda: labels(one.root) >= 8, what="first labels", process=process)
    old = {job for job, _ in jobs(f"hpcal:{run_id(one.root)}:")}
    process.kill()
    finish(process)
    code, errors = finish(start("resume", str(one.root), env=one.env))
    assert code == 0, errors
    check_clean(one.root, one.log)
    assert len(old) == 3
    assert other in {job for job, _ in jobs()}
    subprocess.run(["scancel", other], check=True, timeout=60)


def test_walltimes_end_blocks_in_the_middle_of_everything(scene):
    """Dynamics and trainings that outlast a job go on in the next one; no label is cut."""
    one = scene(
        labels=40,
        generations=2,
        seconds=2,
        chunk=12,
        walltime="00:01:00",
        margin=10,
        potential="{kind: sleepy_ani, members: 2, hidden: [32, 24], epochs: 1300, warm_epochs: 100}",
        time_ps=20,
        sample_seconds=120,
    )
    code, errors = finish(start(*one.words, env=one.env), 800)
    assert code == 0, errors
    check_clean(one.root, one.log)
    blocks = dict(query(one.root, "SELECT executor, count(DISTINCT block) FROM attempt GROUP BY 1"))
    assert min(blocks.values()) >= 2, blocks
    lost = query(one.root, "SELECT id, exit_reason FROM attempt WHERE state IN ('lost', 'failed')")
    assert [row for row in lost if "stopped as asked" not in row[1]] == []
    tries = count(
        one.root,
        "SELECT max(n) FROM (SELECT count(*) AS n FROM attempt JOIN task ON task.id = task_id "
        "WHERE kind = 'train' GROUP BY task_id)",
    )
    assert tries >= 2, "no training was cut by the end of its job"
    crossing = count(
        one.root,
        "SELECT count(*) FROM (SELECT walker_id FROM segment JOIN attempt ON attempt.id = attempt_id "
        "GROUP BY walker_id HAVING count(DISTINCT block) > 1)",
    )
    assert crossing > 0, "no walker went on in another job"

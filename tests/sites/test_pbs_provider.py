"""Blocks of workers as jobs of a PBS: what is asked for, and what becomes of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import parsl
import pytest
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.executors.high_throughput.errors import ManagerLost
from parsl.jobs.states import JobState
from parsl.launchers import SimpleLauncher
from support.pbs_standin import StandIn, running_pbs

from hpcal.core.errors import ConfigurationError
from hpcal.sites.pbs_commands import PBS
from hpcal.sites.pbs_provider import PBSBlocks
from hpcal.sites.scheduler import Job, SchedulerState

SLEEP = "sleep 600"
BIN = Path(sys.executable).parent


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with running_pbs(tmp_path / "pbs", monkeypatch) as pbs:
        yield pbs


def provider(folder: Path, **options: Any) -> PBSBlocks:
    given = {"run_id": "run-1", "pool": "label", "poll_seconds": 0.0, "launcher": SimpleLauncher()}
    blocks = PBSBlocks(**(given | options))
    (folder / "scripts").mkdir(exist_ok=True)
    blocks.script_dir = str(folder / "scripts")
    return blocks


def rendered(folder: Path, **options: Any) -> list[str]:
    script = provider(folder, **options)._write_script("run workers", 1, "parsl.label.block-0")
    return script.path.read_text().splitlines()


def directives(folder: Path, **options: Any) -> list[str]:
    return [line[5:] for line in rendered(folder, **options) if line.startswith("#PBS ")]


def state(blocks: PBSBlocks, id_: str) -> JobState:
    return blocks.status([id_])[0].state


def wait_for_state(blocks: PBSBlocks, id_: str, wanted: JobState, limit_s: float = 10.0) -> None:
    end = time.monotonic() + limit_s
    while state(blocks, id_) != wanted:
        assert time.monotonic() < end, blocks.status([id_])
        time.sleep(0.05)


def test_the_batch_script(tmp_path: Path) -> None:
    lines = rendered(
        tmp_path,
        queue="debug",
        account="ProjectX",
        walltime="01:30:00",
        nodes_per_block=2,
        cpus_per_node=32,
        mem_per_node=200,
        gpus_per_node=4,
        select_options="system=polaris",
        filesystems="home:eagle",
        scheduler_options="#PBS -W umask=027\n\n  #PBS -j n",
        worker_init="module load conda",
    )
    scripts = tmp_path / "scripts"
    assert lines == [
        "#!/bin/bash",
        f"#PBS -o {scripts}/parsl.label.block-0.stdout",
        f"#PBS -e {scripts}/parsl.label.block-0.stderr",
        "#PBS -N label",
        "#PBS -S /bin/bash",
        "#PBS -m n",
        "#PBS -r n",
        "#PBS -q debug",
        "#PBS -A ProjectX",
        "#PBS -l walltime=01:30:00",
        "#PBS -l select=2:ncpus=32:mem=200gb:ngpus=4:system=polaris",
        "#PBS -l place=scatter",
        "#PBS -l filesystems=home:eagle",
        "#PBS -W umask=027",
        "#PBS -j n",
        "",
        f"cd {scripts}",
        "export JOBNAME=parsl.label.block-0",
        "export PARSL_CORES=32",
        "export PARSL_MEMORY_GB=200",
        "module load conda",
        "run workers",
    ]


def test_what_is_not_given_is_not_asked_for(tmp_path: Path) -> None:
    asked = directives(tmp_path)
    assert "-l select=1:ncpus=1" in asked
    assert not [line for line in asked if line.startswith(("-q", "-A", "-l place", "-l filesystems"))]


@pytest.mark.parametrize(
    ("options", "select"),
    [
        ({"select_options": ":ngpus=1"}, "1:ncpus=1:ngpus=1"),
        ({"select_options": "ngpus=1", "gpus_per_node": 4}, "1:ncpus=1:ngpus=1"),
        ({"select_options": "mem=7gb:ncpus=3", "mem_per_node": 9}, "1:mem=7gb:ncpus=3"),
        ({"cpus_per_node": 8, "ranks_per_node": 2}, "1:ncpus=8:mpiprocs=2"),
        ({"place": "scatter:excl"}, "1:ncpus=1"),
    ],
)
def test_a_resource_is_asked_for_once(tmp_path: Path, options: dict[str, Any], select: str) -> None:
    asked = directives(tmp_path, **options)
    assert f"-l select={select}" in asked
    assert ("-l place=scatter:excl" in asked) == ("place" in options)


def test_an_account_with_a_blank_is_not_sent(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match="pool label: account is 'my project', but PBS takes a blank"
    ):
        provider(tmp_path, account="my project")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("#PBS -l select=2:ncpus=8", "PBS would not heed"),
        ("#PBS -l walltime=10:00:00", "PBS would not heed"),
        ("#PBS -l place=excl,walltime=10:00:00", "PBS would not heed"),
        ("#PBS -N mine", "PBS would not heed"),
        ("#PBS -q debug", "PBS would not heed"),
        ("module load conda", "belong in worker_init"),
        ("#PSB -W umask=027", "is no `#PBS` line"),
    ],
)
def test_scheduler_options_that_would_do_nothing(tmp_path: Path, line: str, fault: str) -> None:
    with pytest.raises(ConfigurationError, match=fault):
        provider(tmp_path, queue="workq", scheduler_options=line)


def test_scheduler_options_that_pbs_heeds(tmp_path: Path) -> None:
    options = "#PBS -l filesystems=home\n#PBS -q debug\n#PBS -l place=excl"
    assert directives(tmp_path, scheduler_options=options)[-3:] == [
        "-l filesystems=home",
        "-q debug",
        "-l place=excl",
    ]


def test_an_option_that_parsl_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="qos"):
        provider(tmp_path, qos="high")
    assert "PBSBlocks(" in repr(provider(tmp_path))


def test_a_block_from_submission_to_its_cancellation(standin: StandIn, tmp_path: Path) -> None:
    told: list[tuple[str, Job]] = []
    blocks = provider(tmp_path, ended=lambda id_, job: told.append((id_, job)), worker_init="echo from init")
    id_ = blocks.submit(SLEEP, 1, "parsl.label.block-0")
    wait_for_state(blocks, id_, JobState.RUNNING)
    assert [job.id for job in PBS().marked("hpcal:run-1:label.")] == [id_]
    assert blocks.cancel([id_]) == [True]
    wait_for_state(blocks, id_, JobState.CANCELLED)
    standin.wait_for(id_, "F")
    assert blocks.cancel([id_]) == [True]  # a second time does no harm
    blocks.status([id_])
    assert [(told_id, job.state) for told_id, job in told] == [(id_, SchedulerState.ENDED)]
    assert told[0][1].reason.startswith("CANCELLED (by qdel): Job run at")
    assert blocks.status([id_])[0].stdout == "from init\n"
    assert not standin.processes()


def test_walltime_ends_a_block_and_is_no_failure(standin: StandIn, tmp_path: Path) -> None:
    told: list[Job] = []
    blocks = provider(tmp_path, walltime="00:00:01", ended=lambda _, job: told.append(job))
    id_ = blocks.submit(SLEEP, 1, "block-0")
    wait_for_state(blocks, id_, JobState.TIMEOUT)
    assert told[0].exit_code == -29
    assert "walltime exceeded" in blocks.status([id_])[0].message
    assert "=>> PBS: job killed: walltime" in blocks.status([id_])[0].stderr


def test_job_history_disabled_takes_no_running_block_for_ended(standin: StandIn, tmp_path: Path) -> None:
    standin.set(history=False)
    blocks = provider(tmp_path, grace_seconds=60.0)
    go = tmp_path / "go"
    waiting = f"while [ ! -e {go} ]; do sleep 0.05; done"
    ids = [blocks.submit(command, 1, f"block-{i}") for i, command in enumerate([SLEEP, waiting])]
    for _ in range(4):
        assert state(blocks, ids[0]) == JobState.RUNNING
    assert state(blocks, ids[1]) == JobState.RUNNING
    go.touch()
    wait_for_state(blocks, ids[1], JobState.COMPLETED)
    assert state(blocks, ids[0]) == JobState.RUNNING
    assert len(standin.jobs()) == 2


def test_one_finished_id_purged_does_not_freeze_the_others(standin: StandIn, tmp_path: Path) -> None:
    blocks = provider(tmp_path, grace_seconds=0.0)
    ids = [blocks.submit(command, 1, f"block-{i}") for i, command in enumerate(["true", SLEEP, "sleep 0.5"])]
    standin.wait_for(ids[0], "F")
    standin.set(purged=["0"])
    assert state(blocks, ids[0]) == JobState.COMPLETED
    assert state(blocks, ids[1]) == JobState.RUNNING
    wait_for_state(blocks, ids[2], JobState.COMPLETED)


def test_only_the_first_job_printed_ends_no_block(standin: StandIn, tmp_path: Path) -> None:
    standin.set(first_only=True)
    blocks = provider(tmp_path)
    ids = [blocks.submit(SLEEP, 1, f"block-{i}") for i in range(3)]
    assert [status.state for status in blocks.status(ids)] == [JobState.RUNNING] * 3


def test_more_cpus_than_a_node_has_shows_why_it_waits(standin: StandIn, tmp_path: Path) -> None:
    blocks = provider(tmp_path, cpus_per_node=64)
    id_ = blocks.submit(SLEEP, 1, "block-0")
    assert state(blocks, id_) == JobState.PENDING
    assert blocks.waiting[id_].startswith("Can Never Run: Insufficient amount of resource: ncpus")


def test_unknown_queue_fails_the_block_with_the_words_of_pbs(standin: StandIn, tmp_path: Path) -> None:
    """At the second try, a second after the first."""
    blocks = provider(tmp_path, queue="nowhere")
    id_ = blocks.submit(SLEEP, 1, "block-0")
    wait_for_state(blocks, id_, JobState.FAILED)
    assert "qsub: Unknown queue" in blocks.status([id_])[0].message


def test_a_bad_worker_init_fails_the_block(standin: StandIn, tmp_path: Path) -> None:
    blocks = provider(tmp_path, worker_init="source /nowhere/activate || exit 9")
    id_ = blocks.submit(SLEEP, 1, "block-0")
    wait_for_state(blocks, id_, JobState.FAILED)
    status = blocks.status([id_])[0]
    assert status.exit_code == 9
    assert "/nowhere/activate" in status.stderr


@pytest.mark.pbs
def test_a_server_that_is_down_at_submission_and_later(standin: StandIn, tmp_path: Path) -> None:
    blocks = provider(tmp_path)
    standin.go_down(2.5)
    id_ = blocks.submit(SLEEP, 1, "block-0")
    assert state(blocks, id_) == JobState.PENDING
    assert "cannot connect to server" in blocks.waiting[id_]
    wait_for_state(blocks, id_, JobState.RUNNING, 20)
    standin.go_down(1.5)
    for _ in range(6):
        assert state(blocks, id_) == JobState.RUNNING
        time.sleep(0.3)
    assert state(blocks, id_) == JobState.RUNNING
    assert len(standin.jobs()) == 1


@pytest.mark.pbs
def test_a_slow_submission_leaves_no_second_job(standin: StandIn, tmp_path: Path) -> None:
    standin.set(qsub_queues_after_s=3.0)
    blocks = provider(tmp_path, cmd_timeout=2)
    id_ = blocks.submit(SLEEP, 1, "block-0")
    wait_for_state(blocks, id_, JobState.RUNNING, 20)
    time.sleep(2)
    blocks.status([id_])
    assert len(standin.jobs()) == 1


def test_a_block_of_two_nodes_with_two_ranks_each(standin: StandIn, tmp_path: Path) -> None:
    blocks = provider(tmp_path, nodes_per_block=2, cpus_per_node=2, ranks_per_node=2)
    id_ = blocks.submit("cat $PBS_NODEFILE", 1, "block-0")
    wait_for_state(blocks, id_, JobState.COMPLETED)
    assert blocks.status([id_])[0].stdout.split() == ["node01", "node01", "node02", "node02"]


@pytest.mark.pbs
def test_two_blocks_with_one_gpu_each_on_one_node(standin: StandIn, tmp_path: Path) -> None:
    """The site hands each job its own GPU; both jobs on the same node."""
    blocks = provider(tmp_path, gpus_per_node=1)
    command = 'echo "$CUDA_VISIBLE_DEVICES $(sort -u $PBS_NODEFILE)"; sleep 1'
    ids = [blocks.submit(command, 1, f"block-{i}") for i in range(2)]
    for id_ in ids:
        wait_for_state(blocks, id_, JobState.COMPLETED)
    assert sorted(status.stdout for status in blocks.status(ids)) == ["0 node01\n", "1 node01\n"]


@contextmanager
def executor(folder: Path, **options: Any) -> Iterator[tuple[Any, PBSBlocks]]:
    """Parsl's executor of workers in jobs of the stand-in, with nothing of ours in between."""
    blocks = PBSBlocks(
        run_id="run-1",
        pool="label",
        poll_seconds=0.5,
        grace_seconds=5.0,
        launcher=SimpleLauncher(),
        worker_init=f"export PATH={BIN}:$PATH PYTHONPATH={os.pathsep.join(filter(None, sys.path))}",
        init_blocks=1,
        max_blocks=options.pop("max_blocks", 1),
        **options,
    )
    workers = HighThroughputExecutor(
        label="label",
        provider=blocks,
        address="127.0.0.1",
        max_workers_per_node=1,
        cores_per_worker=1,
        heartbeat_period=1,
        heartbeat_threshold=8,
        interchange_launch_cmd=[sys.executable, str(BIN / "interchange.py")],
        encrypted=True,
    )
    config = Config(
        executors=[workers],
        run_dir=str(folder / "runinfo"),
        strategy="simple",
        strategy_period=0.25,
        initialize_logging=False,
        usage_tracking=0,
    )
    with parsl.load(config) as kernel:

        def submit(function: Any, *arguments: Any) -> Future[Any]:
            return parsl.python_app(function, data_flow_kernel=kernel, cache=False)(*arguments)

        yield submit, blocks


@pytest.mark.pbs
def test_a_function_runs_in_a_block_on_pbs(standin: StandIn, tmp_path: Path) -> None:
    told: list[Job] = []
    start = time.monotonic()
    options = {"gpus_per_node": 1, "walltime": "00:10:00", "ended": lambda _, job: told.append(job)}
    with executor(tmp_path, **options) as (submit, blocks):
        job_id = submit(os.getenv, "PBS_JOBID").result(timeout=120)
        print(f"first result {time.monotonic() - start:.1f} s after the start")
        assert job_id == next(iter(blocks.blocks)) == "0.pbs"
        assert submit(os.getenv, "CUDA_VISIBLE_DEVICES").result(timeout=60) == "0"
        assert submit(pow, 2, 10).result(timeout=60) == 1024
        assert len(standin.jobs()) == 1
    standin.wait_for(job_id, "F")
    assert not standin.processes()


@pytest.mark.pbs
def test_a_block_deleted_mid_task_is_replaced(standin: StandIn, tmp_path: Path) -> None:
    with executor(tmp_path) as (submit, blocks):
        first = submit(os.getenv, "PBS_JOBID").result(timeout=120)
        lost = submit(subprocess.call, ["sleep", "600"])
        time.sleep(1)
        PBS().cancel([first])
        with pytest.raises(ManagerLost):
            lost.result(timeout=60)
        assert submit(os.getenv, "PBS_JOBID").result(timeout=120) != first
        assert blocks.ended_blocks[0].job.reason.startswith("CANCELLED (by qdel)")
    standin.wait(lambda: all(job["state"] == "F" for job in standin.jobs().values()))
    assert not standin.processes()


@pytest.mark.pbs
def test_without_history_submission_does_not_run_away(standin: StandIn, tmp_path: Path) -> None:
    """Running blocks that are taken for ended would be replaced, poll after poll."""
    standin.set(history=False)
    with executor(tmp_path, max_blocks=2) as (submit, _):
        submit(os.getenv, "PBS_JOBID").result(timeout=120)
        waiting = [submit(subprocess.call, ["sleep", "3"]) for _ in range(2)]
        for future in waiting:
            future.result(timeout=60)
        assert len(standin.jobs()) <= 2

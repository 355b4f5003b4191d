"""Blocks on a real Slurm, and on one whose commands hang, fail or come late."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from parsl.config import Config
from parsl.dataflow.dflow import DataFlowKernel
from parsl.executors import HighThroughputExecutor
from parsl.executors.errors import BadStateException
from parsl.executors.high_throughput.errors import ManagerLost
from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD
from parsl.jobs.states import JobState
from support.slurm import Commands, batch_script, eventually, forgets_after, needs_slurm

from hpcal.sites.answers import FORGOTTEN, Refused
from hpcal.sites.block_errors import block_error_handler
from hpcal.sites.scheduler import Job, SchedulerError, SchedulerState
from hpcal.sites.slurm_commands import Slurm
from hpcal.sites.slurm_provider import SlurmBlocks

pytestmark = pytest.mark.slurm

RUN = f"test{secrets.token_hex(4)}"
PARSL = "parsl.executors.high_throughput"


@pytest.fixture(autouse=True)
def jobs() -> Iterator[None]:
    """Ends what a test leaves in the queue."""
    needs_slurm()
    yield
    slurm = Slurm(30)
    slurm.cancel([job.id for job in slurm.marked(f"hpcal:{RUN}:")])
    assert eventually(lambda: not slurm.marked(f"hpcal:{RUN}:"))


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    return Commands(tmp_path / "bin", monkeypatch)


@pytest.fixture
def ended() -> list[tuple[str, Job]]:
    return []


@pytest.fixture
def provider(tmp_path: Path, ended: list[tuple[str, Job]]) -> Callable[..., SlurmBlocks]:
    """Makes a provider of small blocks that looks every second."""

    def make(**options: Any) -> SlurmBlocks:
        settings: dict[str, Any] = {"walltime": "00:05:00", "cmd_timeout": 30, "poll_seconds": 1, **options}
        made = SlurmBlocks(
            run_id=RUN,
            pool="label",
            ended=lambda known_as, job: ended.append((known_as, job)),
            **settings,
        )
        made.script_dir = str(tmp_path)
        return made

    return make


@contextmanager
def running(provider: SlurmBlocks, folder: Path) -> Iterator[HighThroughputExecutor]:
    """An executor over a provider, with Parsl's own strategy."""
    python = f"{sys.executable} -P -m"
    executor = HighThroughputExecutor(
        label="label",
        provider=provider,
        address="127.0.0.1",
        max_workers_per_node=1,
        encrypted=True,
        heartbeat_period=1,
        heartbeat_threshold=8,
        launch_cmd=DEFAULT_LAUNCH_CMD.replace(
            "process_worker_pool.py", f"{python} {PARSL}.process_worker_pool"
        ),
        interchange_launch_cmd=[*python.split(), f"{PARSL}.interchange"],
        block_error_handler=block_error_handler,
    )
    config = Config(
        executors=[executor],
        run_dir=str(folder / "runinfo"),
        strategy="simple",
        strategy_period=0.25,
        initialize_logging=False,
    )
    kernel = DataFlowKernel(config)
    try:
        yield executor
    finally:
        kernel.cleanup()


def job_of(executor: HighThroughputExecutor) -> Future[str]:
    """A task that tells in which job it runs."""
    future: Future[str] = executor.submit(os.getenv, {}, "SLURM_JOB_ID")
    return future


def ran_in(executor: HighThroughputExecutor) -> str:
    """The job in which a task ran; empty if it was given to a block that is no more."""
    try:
        return job_of(executor).result(60)
    except ManagerLost:
        return ""


def stands(provider: SlurmBlocks, block: str, state: JobState, within_s: float = 30.0) -> bool:
    return eventually(lambda: provider.status([block])[0].state == state, within_s)


# The commands


def test_a_job_from_its_submission_to_its_end(tmp_path: Path) -> None:
    slurm = Slurm(30)
    script = batch_script(tmp_path / "job.sh", "sleep 100")
    first = slurm.submit(script, mark=f"hpcal:{RUN}:first")
    second = slurm.submit(script, mark=f"hpcal:{RUN}:second|x y", after=first)
    assert eventually(lambda: slurm.look([first])[first].state is SchedulerState.RUNNING)
    waiting = slurm.look([first, second])[second]
    assert (waiting.state, waiting.reason) == (SchedulerState.PENDING, "Dependency")
    assert {job.id: job.mark for job in slurm.marked(f"hpcal:{RUN}:")} == {
        first: f"hpcal:{RUN}:first",
        second: f"hpcal:{RUN}:second|x y",
    }
    slurm.cancel([first])
    assert eventually(lambda: slurm.look([first])[first].state is SchedulerState.ENDED)
    assert slurm.look([first])[first].reason.startswith("CANCELLED")
    assert eventually(lambda: slurm.look([second])[second].state is SchedulerState.RUNNING)
    slurm.cancel([first, second])


def test_exit_codes_and_ids_that_never_were(tmp_path: Path) -> None:
    slurm = Slurm(30)
    job_id = slurm.submit(batch_script(tmp_path / "job.sh", "exit 3"), mark=f"hpcal:{RUN}:exit")
    assert eventually(lambda: slurm.look([job_id])[job_id].state is SchedulerState.ENDED)
    found = slurm.look([job_id, "99999999"])
    assert (found[job_id].reason, found[job_id].exit_code) == ("FAILED (NonZeroExitCode)", 3)
    assert found["99999999"] == Job(id="99999999", state=SchedulerState.ENDED, reason=FORGOTTEN)
    slurm.cancel([job_id, "99999999"])


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--partition=nope", "nvalid partition"),
        ("--constraint=nope", "Invalid feature specification"),
        ("--gres=gpu:99", "Requested node configuration is not available"),
        ("--gres=nope:1", "Invalid generic resource"),
        ("--mem=999999G", "Memory specification can not be satisfied"),
        ("--time=nope", "Invalid --time specification"),
        ("--nope", "unrecognized option"),
    ],
)
def test_refusals(tmp_path: Path, option: str, words: str) -> None:
    script = batch_script(tmp_path / "job.sh", "true")
    script.write_text(script.read_text().replace("--ntasks=1", option))
    with pytest.raises(Refused, match=words):
        Slurm(30).submit(script, mark=f"hpcal:{RUN}:refused")


def test_a_late_submission_is_found_by_its_comment(tmp_path: Path, commands: Commands) -> None:
    commands.write("sbatch", f'{commands.real("sbatch")} "$@" > /dev/null', "sleep 20")
    slurm, mark = Slurm(2), f"hpcal:{RUN}:late"
    job_id = slurm.submit(batch_script(tmp_path / "job.sh", "sleep 60"), mark=mark)
    assert [job.id for job in slurm.marked(mark)] == [job_id]


def test_a_controller_that_is_away_ends_no_job(
    tmp_path: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = Slurm(60)
    job_id = slurm.submit(batch_script(tmp_path / "job.sh", "sleep 60"), mark=f"hpcal:{RUN}:away")
    conf = Path(os.environ.get("SLURM_CONF", "/etc/slurm/slurm.conf")).read_text()
    away = tmp_path / "slurm.conf"
    away.write_text("".join(f"{line}\n" for line in conf.splitlines() if "SlurmctldPort" not in line))
    with away.open("a") as file:
        file.write("SlurmctldPort=9\n")
    with monkeypatch.context() as patch:
        patch.setenv("SLURM_CONF", str(away))
        with pytest.raises(SchedulerError, match="Unable to contact slurm controller"):
            slurm.look([job_id])
    assert slurm.look([job_id])[job_id].state is not SchedulerState.ENDED


# Blocks


def test_walltime_and_cancellation_are_told_by_their_names(
    provider: Callable[..., SlurmBlocks], ended: list[tuple[str, Job]]
) -> None:
    blocks = provider(walltime="00:01:00")
    timeout = blocks.submit("sleep 600", 1, "timeout")
    cancelled = blocks.submit("sleep 600", 1, "cancelled")
    assert stands(blocks, cancelled, JobState.RUNNING)
    Slurm(30).cancel([cancelled])  # by somebody else
    assert stands(blocks, cancelled, JobState.CANCELLED)
    assert stands(blocks, timeout, JobState.TIMEOUT, within_s=150)
    assert {known_as: job.reason.split()[0] for known_as, job in ended} == {
        cancelled: "CANCELLED",
        timeout: "TIMEOUT",
    }


@pytest.mark.parametrize(("walltime", "limit"), [("120:00:00", "5-00:00:00"), ("00:02:30", "00:03:00")])
def test_walltime_is_what_was_asked_for(
    provider: Callable[..., SlurmBlocks], tmp_path: Path, walltime: str, limit: str
) -> None:
    block = provider(walltime=walltime).submit("sleep 100", 1, "block")
    words = ["scontrol", "show", "job", block]
    limits = subprocess.run(words, capture_output=True, text=True, check=True, timeout=30).stdout
    assert f"TimeLimit={limit} " in limits  # Slurm counts in whole minutes, and rounds up


def test_blocks_of_one_gpu_share_a_node(provider: Callable[..., SlurmBlocks], tmp_path: Path) -> None:
    blocks = provider(partition="gpu", gpus_per_node=1)
    names = ["one", "two"]
    ids = [blocks.submit("echo seen $CUDA_VISIBLE_DEVICES; sleep 60", 1, name) for name in names]

    def seen() -> set[str]:
        lines = [
            line
            for name in names
            if (tmp_path / f"{name}.stdout").exists()
            for line in (tmp_path / f"{name}.stdout").read_text().splitlines()
        ]
        return {line for line in lines if line.startswith("seen")}

    assert all(stands(blocks, block, JobState.RUNNING) for block in ids)
    assert eventually(lambda: len(seen()) == 2)
    assert seen() == {"seen 0", "seen 1"}


def test_a_forgotten_job_has_ended(
    provider: Callable[..., SlurmBlocks], ended: list[tuple[str, Job]]
) -> None:
    with forgets_after(10):
        blocks = provider(grace_seconds=5)
        block = blocks.submit("sleep 1", 1, "block")
        slurm = Slurm(30)
        assert eventually(lambda: slurm.look([block])[block].reason == FORGOTTEN, within_s=180, every_s=1)
        assert blocks.status([block])[0].state == JobState.COMPLETED
    assert [job.reason for _, job in ended] == [FORGOTTEN]


def test_statuses_are_kept_while_squeue_hangs(
    provider: Callable[..., SlurmBlocks], commands: Commands
) -> None:
    blocks = provider(cmd_timeout=2)
    block = blocks.submit("sleep 6", 1, "block")
    assert stands(blocks, block, JobState.RUNNING)
    commands.write("squeue", "exec sleep 30")
    until = time.monotonic() + 10
    while time.monotonic() < until:
        assert blocks.status([block])[0].state == JobState.RUNNING
        time.sleep(0.5)
    assert len(commands.calls("squeue")) > 2
    commands.remove("squeue")
    assert stands(blocks, block, JobState.COMPLETED)


# Blocks under Parsl's executor and strategy


def test_tasks_go_on_while_squeue_hangs_for_30_s(
    provider: Callable[..., SlurmBlocks], commands: Commands, tmp_path: Path
) -> None:
    with running(provider(cmd_timeout=60), tmp_path) as executor:
        block = job_of(executor).result(60)
        commands.write("squeue", "sleep 30", f'exec {commands.real("squeue")} "$@"')
        assert eventually(lambda: commands.calls("squeue") != [], 10)
        before = time.monotonic()
        while time.monotonic() < before + 30:
            assert job_of(executor).result(5) == block
            time.sleep(0.2)
        commands.remove("squeue")
        assert job_of(executor).result(5) == block
        assert not executor.bad_state_is_set


def test_sbatch_that_fails_for_10_s_at_the_start_only_delays(
    provider: Callable[..., SlurmBlocks], commands: Commands, tmp_path: Path
) -> None:
    words = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
    commands.says("sbatch", err=words, exit_code=1)
    with running(provider(max_blocks=2), tmp_path) as executor:
        results = [job_of(executor) for _ in range(4)]
        time.sleep(10)
        assert 2 <= len(commands.calls("sbatch")) <= 4  # not four a second
        assert "Socket timed out" in next(iter(executor.provider.waiting.values()))
        commands.remove("sbatch")
        assert len({future.result(60) for future in results}) in (1, 2)
        assert not executor.bad_state_is_set


def test_a_partition_that_does_not_exist_is_said_within_seconds(
    provider: Callable[..., SlurmBlocks], tmp_path: Path
) -> None:
    before = time.monotonic()
    with running(provider(partition="nope"), tmp_path) as executor:
        with pytest.raises(BadStateException) as failure:
            job_of(executor).result(30)
        assert "invalid partition specified: nope" in str(failure.value)
        assert time.monotonic() - before < 10


def test_blocks_that_fail_at_their_start_are_said_with_what_they_wrote(
    provider: Callable[..., SlurmBlocks], tmp_path: Path
) -> None:
    with running(provider(worker_init="modul load nothing; exit 4"), tmp_path) as executor:
        with pytest.raises(BadStateException) as failure:
            job_of(executor).result(150)
        assert "the last 5 blocks failed" in str(failure.value)
        assert "exit code 4" in str(failure.value)
        assert "modul: command not found" in str(failure.value)
    assert Slurm(30).marked(f"hpcal:{RUN}:") == []


def test_a_cancelled_block_is_replaced_and_told(
    provider: Callable[..., SlurmBlocks], ended: list[tuple[str, Job]], tmp_path: Path
) -> None:
    with running(provider(), tmp_path) as executor:
        first = job_of(executor).result(60)
        Slurm(30).cancel([first])
        assert eventually(lambda: ended != [])
        assert eventually(lambda: ran_in(executor) not in (first, ""), 60)
        assert [(known_as, job.reason) for known_as, job in ended] == [(first, "CANCELLED")]
    assert eventually(lambda: Slurm(30).marked(f"hpcal:{RUN}:") == [])

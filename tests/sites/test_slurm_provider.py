"""Blocks on a scheduler that answers as told, with a clock that the tests turn; Slurm's batch scripts."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from parsl.jobs.states import JobState, JobStatus
from parsl.launchers import SrunLauncher
from support.slurm import Commands

from hpcal.sites.answers import FORGOTTEN, Refused
from hpcal.sites.block_errors import WINDOW, block_error_handler
from hpcal.sites.blocks import REFUSALS
from hpcal.sites.scheduler import Job, SchedulerError, SchedulerState
from hpcal.sites.slurm_provider import SlurmBlocks

DOWN = SchedulerError("sbatch failed with exit code 1: Socket timed out on send/recv operation")
NO_PARTITION = Refused("sbatch refuses the job: sbatch: error: invalid partition specified: nope")
POLL_S = 30.0
GRACE_S = 45.0


class Clock:
    """In place of the module ``time``."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class FakeScheduler:
    """Takes jobs and tells of them, unless it is told to raise."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.submissions: list[float] = []
        self.looks: list[Sequence[str]] = []
        self.cancelled: list[str] = []
        self.trouble: dict[str, SchedulerError | None] = {}
        self.arrives = False
        """Whether a submission that fails arrives all the same."""
        self.clock: Clock

    def submit(self, script: Path, *, mark: str, after: str | None = None) -> str:
        assert script.is_file()
        self.submissions.append(self.clock.now)
        job_id = str(len(self.submissions))
        if not self.trouble.get("submit") or self.arrives:
            self.jobs[job_id] = Job(id=job_id, state=SchedulerState.PENDING, reason="Priority", mark=mark)
        self._answer("submit")
        return job_id

    def look(self, ids: Sequence[str]) -> Mapping[str, Job]:
        self.looks.append(ids)
        self._answer("look")
        return {i: self.jobs.get(i, Job(id=i, state=SchedulerState.ENDED, reason=FORGOTTEN)) for i in ids}

    def marked(self, prefix: str) -> list[Job]:
        self._answer("marked")
        return [job for job in self.jobs.values() if job.mark.startswith(prefix)]

    def cancel(self, ids: Sequence[str]) -> None:
        self._answer("cancel")
        self.cancelled += ids

    def runs(self, job_id: str) -> None:
        self.jobs[job_id] = Job(id=job_id, state=SchedulerState.RUNNING)

    def ends(self, job_id: str, reason: str = "COMPLETED", exit_code: int = 0) -> None:
        self.jobs[job_id] = Job(id=job_id, state=SchedulerState.ENDED, reason=reason, exit_code=exit_code)

    def _answer(self, verb: str) -> None:
        if error := self.trouble.get(verb):
            raise error


class Executor:
    """What Parsl's executor does with a provider: blocks, statuses, MISSING, the end."""

    def __init__(self, provider: SlurmBlocks) -> None:
        self.provider = provider
        self.blocks_to_job_id: dict[str, str] = {}
        self.job_ids_to_block: dict[str, str] = {}
        self.connected: set[str] = set()
        self.failed: Exception | None = None
        self.broken: list[str] = []

    @property
    def bad_state_is_set(self) -> bool:
        return self.failed is not None

    def scale_out(self) -> str:
        block = str(len(self.blocks_to_job_id))
        known_as = self.provider.submit("workers", 1, f"block-{block}")
        self.blocks_to_job_id[block], self.job_ids_to_block[known_as] = known_as, block
        return known_as

    def connected_blocks(self) -> list[str]:
        return list(self.connected)

    def status(self) -> dict[str, JobStatus]:
        statuses = self.provider.status(list(self.blocks_to_job_id.values()))
        found = dict(zip(self.blocks_to_job_id, statuses, strict=True))
        for block, status in found.items():
            if status.terminal and block not in self.connected:
                status.state = JobState.MISSING
        return found

    def poll(self) -> dict[str, JobStatus]:
        found = self.status()
        block_error_handler(self, found)
        return found

    def set_bad_state_and_fail_all(self, exception: Exception) -> None:
        assert self.failed is None
        self.failed = exception


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("hpcal.sites.blocks.time", clock)
    return clock


@pytest.fixture
def scheduler(clock: Clock) -> FakeScheduler:
    scheduler = FakeScheduler()
    scheduler.clock = clock
    return scheduler


@pytest.fixture
def ended() -> list[tuple[str, Job]]:
    """What was reported of jobs that ended."""
    return []


@pytest.fixture
def provider(scheduler: FakeScheduler, ended: list[tuple[str, Job]], tmp_path: Path) -> SlurmBlocks:
    provider = SlurmBlocks(
        run_id="run",
        pool="label",
        poll_seconds=POLL_S,
        grace_seconds=GRACE_S,
        ended=lambda known_as, job: ended.append((known_as, job)),
        scheduler=scheduler,
        walltime="04:00:00",
    )
    provider.script_dir = str(tmp_path)
    return provider


@pytest.fixture
def executor(provider: SlurmBlocks) -> Executor:
    return Executor(provider)


def state(provider: SlurmBlocks, known_as: str) -> JobState:
    return provider.status([known_as])[0].state


# Blocks and their jobs


def test_a_block_goes_from_pending_to_its_end_which_is_reported_once(
    provider: SlurmBlocks, scheduler: FakeScheduler, clock: Clock, ended: list[tuple[str, Job]]
) -> None:
    block = provider.submit("workers", 1, "block-0")
    assert block == "1"
    assert state(provider, block) == JobState.PENDING
    assert provider.waiting == {"1": "Priority"}
    scheduler.runs("1")
    clock.now += POLL_S
    assert state(provider, block) == JobState.RUNNING
    assert provider.waiting == {}
    scheduler.ends("1", "TIMEOUT (TimeLimit)", 143)
    for _ in range(3):
        clock.now += POLL_S
        (status,) = provider.status([block])
    assert status.state == JobState.TIMEOUT
    assert (status.message, status.exit_code) == ("TIMEOUT (TimeLimit)", 143)
    assert status.stderr_path.endswith("block-0.stderr")
    assert ended == [("1", scheduler.jobs["1"])]
    assert len(scheduler.looks) == 3  # an ended job is not asked for again


@pytest.mark.parametrize(
    ("reason", "exit_code", "expected"),
    [
        ("COMPLETED", 0, JobState.COMPLETED),
        ("CANCELLED by 1000", 0, JobState.CANCELLED),
        ("FAILED (NonZeroExitCode)", 1, JobState.FAILED),
        ("OUT_OF_MEMORY", 137, JobState.FAILED),
        ("NODE_FAIL", 1, JobState.TIMEOUT),
    ],
)
def test_ends_in_the_words_of_parsl(
    provider: SlurmBlocks, scheduler: FakeScheduler, reason: str, exit_code: int, expected: JobState
) -> None:
    block = provider.submit("workers", 1, "block-0")
    scheduler.ends("1", reason, exit_code)
    assert state(provider, block) == expected


def test_statuses_are_new_each_time(provider: SlurmBlocks, scheduler: FakeScheduler) -> None:
    block = provider.submit("workers", 1, "block-0")
    scheduler.ends("1")
    provider.status([block])[0].state = JobState.MISSING  # as HTEX does
    assert state(provider, block) == JobState.COMPLETED


def test_marks_are_those_of_the_run_and_unique(provider: SlurmBlocks, scheduler: FakeScheduler) -> None:
    for number in range(3):
        provider.submit("workers", 1, f"block-{number}")
    marks = [job.mark for job in scheduler.jobs.values()]
    assert all(mark.startswith(f"hpcal:run:label.{n}.") for n, mark in enumerate(marks))
    other = SlurmBlocks(run_id="run", pool="label", scheduler=scheduler)
    other.script_dir = provider.script_dir
    other.submit("workers", 1, "block-0")
    assert len({job.mark for job in scheduler.jobs.values()}) == 4


def test_looks_are_as_seldom_as_asked_for(
    provider: SlurmBlocks, scheduler: FakeScheduler, clock: Clock
) -> None:
    block = provider.submit("workers", 1, "block-0")
    for _ in range(100):
        state(provider, block)
        clock.now += POLL_S / 100
    assert len(scheduler.looks) == 1
    assert provider.status_polling_interval == POLL_S


def test_a_forgotten_job_has_ended(
    provider: SlurmBlocks, scheduler: FakeScheduler, clock: Clock, ended: list[tuple[str, Job]]
) -> None:
    block = provider.submit("workers", 1, "block-0")
    scheduler.runs("1")
    assert state(provider, block) == JobState.RUNNING
    del scheduler.jobs["1"]
    clock.now += POLL_S  # within the grace, but it was seen
    assert state(provider, block) == JobState.COMPLETED
    assert [job.reason for _, job in ended] == [FORGOTTEN]


def test_a_job_that_the_scheduler_does_not_know_yet_is_pending(
    provider: SlurmBlocks, scheduler: FakeScheduler, clock: Clock
) -> None:
    block = provider.submit("workers", 1, "block-0")
    del scheduler.jobs["1"]
    clock.now += POLL_S
    assert state(provider, block) == JobState.PENDING
    clock.now += GRACE_S
    assert state(provider, block) == JobState.COMPLETED


def test_statuses_are_kept_where_the_scheduler_does_not_answer(
    provider: SlurmBlocks, scheduler: FakeScheduler, clock: Clock
) -> None:
    block = provider.submit("workers", 1, "block-0")
    scheduler.runs("1")
    state(provider, block)
    scheduler.ends("1")
    scheduler.trouble["look"] = SchedulerError("squeue did not answer within 60 s")
    for _ in range(5):
        clock.now += POLL_S
        assert state(provider, block) == JobState.RUNNING
    scheduler.trouble["look"] = None
    clock.now += POLL_S
    assert state(provider, block) == JobState.COMPLETED


# Submissions that fail


def test_a_failed_submission_is_owed_and_tried_with_growing_pauses(
    provider: SlurmBlocks, scheduler: FakeScheduler, clock: Clock, ended: list[tuple[str, Job]]
) -> None:
    scheduler.trouble["submit"] = DOWN
    blocks = [provider.submit("workers", 1, f"block-{number}") for number in range(3)]
    start = clock.now
    while clock.now < start + 600:  # as often as Parsl's strategy comes round
        assert all(status.state == JobState.PENDING for status in provider.status(blocks))
        clock.now += 0.25
    gaps = [b - a for a, b in zip(scheduler.submissions, scheduler.submissions[1:], strict=False)]
    assert gaps[:7] == pytest.approx([1, 2, 4, 8, 16, 32, 60], abs=0.3)
    assert gaps[7:] == pytest.approx([60] * len(gaps[7:]), abs=0.3)
    assert "Socket timed out" in provider.waiting[blocks[0]]
    scheduler.trouble["submit"] = None
    clock.now += 60
    assert {status.state for status in provider.status(blocks)} == {JobState.PENDING}
    assert len(scheduler.jobs) == 3
    for job_id in list(scheduler.jobs):
        scheduler.ends(job_id)
    clock.now += POLL_S
    assert {status.state for status in provider.status(blocks)} == {JobState.COMPLETED}
    assert [known_as for known_as, _ in ended] == blocks  # the ids that Parsl knows


def test_parsl_asks_again_as_soon_as_an_owed_block_may_be_handed_in(
    provider: SlurmBlocks, scheduler: FakeScheduler, clock: Clock
) -> None:
    scheduler.trouble["submit"] = DOWN
    block = provider.submit("workers", 1, "block-0")
    assert provider.status_polling_interval == 1
    clock.now += 1
    provider.status([block])
    assert provider.status_polling_interval == 2
    clock.now += 2
    assert 0 < provider.status_polling_interval < 1  # never 0, which is never


def test_a_submission_that_arrived_after_all_is_not_made_twice(
    provider: SlurmBlocks, scheduler: FakeScheduler, clock: Clock
) -> None:
    scheduler.trouble["submit"], scheduler.arrives = DOWN, True
    block = provider.submit("workers", 1, "block-0")
    scheduler.trouble["submit"] = None
    clock.now += 1
    provider.status([block])
    assert len(scheduler.submissions) == 1
    assert provider.waiting == {block: "Priority"}


def test_a_full_disk_is_no_failed_block(
    provider: SlurmBlocks, scheduler: FakeScheduler, clock: Clock
) -> None:
    folder = provider.script_dir
    provider.script_dir = f"{folder}/absent"
    block = provider.submit("workers", 1, "block-0")
    assert state(provider, block) == JobState.PENDING
    assert "No such file" in provider.waiting[block]
    provider.script_dir = folder
    clock.now += 1
    assert provider.status([block])[0].state == JobState.PENDING
    assert scheduler.submissions == [clock.now]


# Cancelling


def test_cancelled_blocks_have_ended_for_parsl_and_are_watched_to_their_end(
    provider: SlurmBlocks, scheduler: FakeScheduler, clock: Clock, ended: list[tuple[str, Job]]
) -> None:
    blocks = [provider.submit("workers", 1, f"block-{number}") for number in range(2)]
    assert provider.cancel(blocks[:1]) == [True]
    assert scheduler.cancelled == ["1"]
    assert [status.state for status in provider.status(blocks)] == [JobState.CANCELLED, JobState.PENDING]
    scheduler.ends("1", "CANCELLED by 0")
    clock.now += POLL_S
    assert state(provider, blocks[0]) == JobState.CANCELLED
    assert [job.reason for _, job in ended] == ["CANCELLED by 0"]
    assert provider.cancel(blocks[:1]) == [True]
    assert scheduler.cancelled == ["1"]


def test_an_owed_block_is_given_up_and_never_handed_in(
    provider: SlurmBlocks, scheduler: FakeScheduler, clock: Clock
) -> None:
    scheduler.trouble["submit"] = DOWN
    block = provider.submit("workers", 1, "block-0")
    assert provider.cancel([block]) == [True]
    scheduler.trouble["submit"] = None
    clock.now += 100
    assert state(provider, block) == JobState.CANCELLED
    assert len(scheduler.submissions) == 1


def test_an_owed_block_that_arrived_after_all_is_cancelled(
    provider: SlurmBlocks, scheduler: FakeScheduler
) -> None:
    scheduler.trouble["submit"], scheduler.arrives = DOWN, True
    block = provider.submit("workers", 1, "block-0")
    assert provider.cancel([block]) == [True]
    assert scheduler.cancelled == ["1"]


def test_cancelling_is_tried_again_and_then_said_to_have_failed(
    provider: SlurmBlocks, scheduler: FakeScheduler, clock: Clock
) -> None:
    block = provider.submit("workers", 1, "block-0")
    scheduler.trouble["cancel"] = SchedulerError("scancel did not answer within 60 s")
    before = clock.now
    assert provider.cancel([block]) == [False]
    assert clock.now - before == 3
    assert state(provider, block) == JobState.PENDING


def test_an_end_is_told_once_though_two_threads_look(
    provider: SlurmBlocks, scheduler: FakeScheduler, clock: Clock, ended: list[tuple[str, Job]]
) -> None:
    block = provider.submit("workers", 1, "block-0")
    look = scheduler.look

    def slowly(ids: Sequence[str]) -> Mapping[str, Job]:
        """So slowly that the next look is due, which another thread asks for."""
        scheduler.look = look
        clock.now += POLL_S
        other = threading.Thread(target=provider.status, args=([block],))
        other.start()
        other.join(10)
        return look(ids)

    scheduler.look = slowly
    scheduler.ends("1")
    assert state(provider, block) == JobState.COMPLETED
    assert ended == [("1", scheduler.jobs["1"])]
    assert len(provider.ended_blocks) == 1


def test_at_the_end_a_scheduler_that_does_not_answer_is_asked_once(
    provider: SlurmBlocks, scheduler: FakeScheduler, clock: Clock
) -> None:
    blocks = [provider.submit("workers", 1, f"block-{number}") for number in range(2)]
    tries: list[Sequence[str]] = []

    def silent(ids: Sequence[str]) -> None:
        tries.append(ids)
        raise SchedulerError("scancel did not answer within 60 s")

    scheduler.cancel = silent
    before = clock.now
    provider.close()
    assert provider.cancel(blocks) == [False, False]  # as Parsl does in its own clean-up
    assert (tries, clock.now - before) == ([["1", "2"]], 0)
    assert provider.left == ["1", "2"]


def test_no_block_is_handed_in_or_looked_at_after_the_end(
    provider: SlurmBlocks, scheduler: FakeScheduler, clock: Clock
) -> None:
    scheduler.trouble["submit"] = DOWN
    owed = provider.submit("workers", 1, "block-0")
    scheduler.trouble["submit"] = None
    provider.close()
    clock.now += 100
    late = provider.submit("workers", 1, "block-1")  # Parsl's thread has not ended yet
    assert [status.state for status in provider.status([owed, late])] == [JobState.CANCELLED] * 2
    assert (len(scheduler.submissions), scheduler.looks, provider.left) == (1, [], [])


# When a pool is broken


def fail(executor: Executor, scheduler: FakeScheduler, clock: Clock, reason: str, exit_code: int = 0) -> None:
    """One block from its submission to this end, seen by the handler."""
    known_as = executor.scale_out()
    clock.now += 70
    executor.poll()
    block = executor.provider.blocks[known_as]
    scheduler.ends(block.last_job.id, reason, exit_code)
    clock.now += 70
    executor.poll()


def test_five_blocks_without_workers_in_a_row_are_a_broken_pool(
    executor: Executor, scheduler: FakeScheduler, clock: Clock, tmp_path: Path
) -> None:
    for number in range(WINDOW):
        assert executor.failed is None
        (tmp_path / f"block-{number}.stderr").write_text("one\npython: command not found\n")
        fail(executor, scheduler, clock, "COMPLETED")
    words = str(executor.failed)
    assert words.startswith("pool label: the last 5 blocks failed, the last of them as job 5: COMPLETED")
    assert "no worker reached the controller" in words
    assert "python: command not found" in words
    executor.poll()  # once only


def test_failed_jobs_are_a_broken_pool_though_workers_came(
    executor: Executor, scheduler: FakeScheduler, clock: Clock
) -> None:
    executor.connected = {str(n) for n in range(WINDOW)}
    for _ in range(WINDOW):
        fail(executor, scheduler, clock, "OUT_OF_MEMORY (OutOfMemory)", 137)
    assert "OUT_OF_MEMORY (OutOfMemory), exit code 137" in str(executor.failed)


@pytest.mark.parametrize("reason", ["TIMEOUT (TimeLimit)", "NODE_FAIL", "COMPLETED", "CANCELLED", FORGOTTEN])
def test_normal_ends_are_no_failures(
    executor: Executor, scheduler: FakeScheduler, clock: Clock, reason: str
) -> None:
    if reason != "CANCELLED":  # these are normal without workers, too
        executor.connected = {str(n) for n in range(2 * WINDOW)}
    for _ in range(2 * WINDOW):
        fail(executor, scheduler, clock, reason)
    assert executor.failed is None


def test_whole_walltimes_without_a_worker_are_failures(
    executor: Executor, scheduler: FakeScheduler, clock: Clock
) -> None:
    for _ in range(WINDOW):
        fail(executor, scheduler, clock, "TIMEOUT (TimeLimit)")
    assert "TIMEOUT (TimeLimit)" in str(executor.failed)
    assert "no worker reached the controller" in str(executor.failed)


def test_one_good_block_among_them_is_enough(
    executor: Executor, scheduler: FakeScheduler, clock: Clock
) -> None:
    for number in range(3 * WINDOW):
        good = number % WINDOW == WINDOW - 1
        executor.connected |= {str(number)} if good else set()
        fail(executor, scheduler, clock, "TIMEOUT (TimeLimit)" if good else "FAILED", 0 if good else 1)
    assert executor.failed is None


def test_a_block_at_work_keeps_its_pool_which_gets_new_ones_slowly(
    executor: Executor, scheduler: FakeScheduler, clock: Clock
) -> None:
    at_work = executor.scale_out()
    scheduler.runs("1")
    executor.connected = {"0"}
    start = clock.now
    while clock.now < start + 600:  # a node that takes every job and fails it at once
        pending = [s for s in executor.poll().values() if s.state == JobState.PENDING]
        if not pending:
            executor.scale_out()
        for job_id, job in list(scheduler.jobs.items()):
            if job_id != "1" and job.state is not SchedulerState.ENDED:
                scheduler.ends(job_id, "FAILED (NonZeroExitCode)", 1)
        clock.now += 1
    assert executor.failed is None
    assert WINDOW < len(scheduler.submissions) < 25
    scheduler.ends("1", "COMPLETED")
    executor.connected = set()
    for _ in range(2 * WINDOW):
        clock.now += 100
        executor.poll()
        if executor.failed is None:
            scheduler.ends(str(len(scheduler.submissions)), "FAILED (NonZeroExitCode)", 1)
    assert "exit code 1" in str(executor.failed)
    assert at_work not in scheduler.cancelled


def test_what_the_scheduler_will_never_take_is_said_within_seconds(
    executor: Executor, scheduler: FakeScheduler, clock: Clock
) -> None:
    scheduler.trouble["submit"] = NO_PARTITION
    executor.scale_out()
    start = clock.now
    while executor.failed is None and clock.now < start + 60:
        executor.poll()
        clock.now += 0.25
    assert clock.now - start < 3
    assert len(scheduler.submissions) == REFUSALS
    assert "pool label: the scheduler will not take its jobs" in str(executor.failed)
    assert "invalid partition specified: nope" in str(executor.failed)


def test_a_scheduler_that_is_away_breaks_no_pool(
    executor: Executor, scheduler: FakeScheduler, clock: Clock
) -> None:
    scheduler.trouble["submit"] = DOWN
    executor.scale_out()
    for _ in range(4 * 3600):
        executor.poll()
        clock.now += 1
    assert executor.failed is None
    scheduler.trouble["submit"] = None
    clock.now += 60
    executor.poll()
    assert len(scheduler.jobs) == 1


def test_a_refusal_does_not_end_blocks_that_are_there(
    executor: Executor, scheduler: FakeScheduler, clock: Clock
) -> None:
    executor.scale_out()
    scheduler.runs("1")
    executor.connected = {"0"}
    scheduler.trouble["submit"] = NO_PARTITION  # an account that expires, say
    executor.scale_out()
    for _ in range(60):
        executor.poll()
        clock.now += 1
    assert executor.failed is None
    scheduler.ends("1")
    clock.now += POLL_S
    executor.poll()
    assert "invalid partition" in str(executor.failed)


def test_jobs_of_a_broken_pool_are_cancelled(
    executor: Executor, scheduler: FakeScheduler, clock: Clock
) -> None:
    for _ in range(WINDOW - 1):
        fail(executor, scheduler, clock, "FAILED", 1)
    executor.scale_out()
    executor.scale_out()
    clock.now += 70
    executor.poll()
    scheduler.ends(str(WINDOW), "FAILED", 1)
    clock.now += 70
    executor.poll()
    assert executor.failed is not None
    assert scheduler.cancelled == [str(WINDOW + 1)]


def test_blocks_that_cannot_be_made_are_a_broken_pool(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Parsl keeps such a block under its number and with the exception's words.
    status = {str(n): JobStatus(JobState.FAILED, f"Failed to start block {n}: why") for n in range(WINDOW)}
    block_error_handler(executor, dict(list(status.items())[1:]))
    assert executor.failed is None
    block_error_handler(executor, status)
    assert "its blocks cannot be made: Failed to start block 4: why" in str(executor.failed)


# What Slurm is asked for


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., list[str]]:
    """Lines of the batch script of a pool with these options."""

    def write(**options: Any) -> list[str]:
        scheduler = SimpleNamespace(submit=lambda path, mark: "1")
        provider = SlurmBlocks(run_id="run", pool="label", scheduler=scheduler, **options)
        provider.script_dir = str(tmp_path)
        provider.submit("workers --block", 1, "block-0")
        return (tmp_path / "block-0.slurm").read_text().splitlines()

    return write


@pytest.mark.parametrize("walltime", ["120:00:00", "00:00:45", "00:10:30", "1-12:00:00"])
def test_walltime_is_as_given(script: Callable[..., list[str]], walltime: str) -> None:
    assert f"#SBATCH --time={walltime}" in script(walltime=walltime)


def test_nodes_are_shared_unless_asked_for(script: Callable[..., list[str]]) -> None:
    assert "#SBATCH --exclusive" not in script()
    assert "#SBATCH --exclusive" in script(exclusive=True)


def test_resources_of_a_node(script: Callable[..., list[str]]) -> None:
    lines = script(nodes_per_block=2, cores_per_node=8, mem_per_node=3, gpus_per_node=2, partition="gpu")
    for asked in ("nodes=2", "ntasks-per-node=1", "cpus-per-task=8", "mem=3G", "gpus-per-node=2"):
        assert f"#SBATCH --{asked}" in lines
    assert "#SBATCH --partition=gpu" in lines
    assert "export PARSL_CORES=8" in lines
    assert "export PARSL_MEMORY_GB=3" in lines
    assert not [line for line in lines if "SRUN_CPUS_PER_TASK" in line]
    directives = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
    commands = [number for number, line in enumerate(lines) if line and not line.startswith("#")]
    assert max(directives) < min(commands)  # Slurm heeds none after a command


def test_ranks_share_the_cores_of_a_node(script: Callable[..., list[str]]) -> None:
    lines = script(cores_per_node=8, ranks_per_node=4)
    assert "#SBATCH --ntasks-per-node=4" in lines
    assert "#SBATCH --cpus-per-task=2" in lines


def test_srun_gives_a_manager_all_cores(script: Callable[..., list[str]]) -> None:
    assert "export SRUN_CPUS_PER_TASK=8" in script(cores_per_node=8, launcher=SrunLauncher())


def test_blocks_of_several_nodes_that_start_together_keep_their_own_commands(
    tmp_path: Path, scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    Commands(tmp_path / "bin", monkeypatch).says("srun")
    blocks = SlurmBlocks(
        run_id="run", pool="label", scheduler=scheduler, nodes_per_block=2, launcher=SrunLauncher()
    )
    blocks.script_dir = str(tmp_path)
    for number in range(2):
        blocks.submit(f"workers --block={number}", 1, f"parsl.label.block-{number}")
    for block in blocks.blocks.values():
        of_slurm = {**os.environ, "SLURM_JOB_NAME": "hpcal.label"}
        assert block.script is not None
        subprocess.run(["bash", str(block.script.path)], cwd=tmp_path, env=of_slurm, check=True, timeout=20)
    written = sorted(path.read_text().strip() for path in tmp_path.glob("cmd_*.sh"))
    assert written == ["workers --block=0", "workers --block=1"]


def test_what_the_site_sets_comes_last_and_wins(script: Callable[..., list[str]]) -> None:
    lines = script(cores_per_node=8, worker_init="export PARSL_CORES=4\nmodule load x")
    assert lines.index("export PARSL_CORES=4") > lines.index("export PARSL_CORES=8")
    assert lines.index("module load x") < lines.index("workers --block")


def test_a_provider_is_made_without_any_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = Commands(tmp_path / "bin", monkeypatch)
    for name in ("sacct", "squeue", "sinfo"):
        commands.says(name, after_s=5)
    assert "pool='label'" in repr(SlurmBlocks(run_id="run", pool="label"))
    assert commands.log.read_text() == ""

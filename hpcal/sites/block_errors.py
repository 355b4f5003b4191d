"""When a pool of workers on a scheduler is broken: the rule by which its executor gives up.

- The last five blocks that ended all **failed**: no worker of theirs ever came, or their job failed.
  A block that was cancelled has ended as it should, and so has one whose walltime or node ended it
  after workers had come.
- Or the scheduler **refused** a block for good, twice. What it does not take for another reason
  counts for nothing; see :mod:`hpcal.sites.blocks`.

A pool with blocks at work is not broken. It gets no new ones faster than the pauses after failures
allow, and is judged again when the others have ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from parsl.executors import HighThroughputExecutor
from parsl.jobs.errors import TooManyJobFailuresError
from parsl.jobs.states import JobState, JobStatus

from hpcal.sites.answers import End, how_ended
from hpcal.sites.blocks import Block, SchedulerBlocks

WINDOW: Final = 5
"""Blocks that fail in a row before a pool counts as broken."""
_TAIL_LINES: Final = 5
_TAIL_BYTES: Final = 4096


def block_error_handler(executor: HighThroughputExecutor, status: Mapping[str, JobStatus]) -> None:
    """Fails all tasks of an executor whose pool is broken, with the scheduler's words.

    To be given to a HighThroughputExecutor whose provider is a
    :class:`~hpcal.sites.blocks.SchedulerBlocks`. Parsl leaves the jobs of an executor that has
    failed; here they are cancelled.
    """
    if executor.bad_state_is_set:
        return
    provider: SchedulerBlocks = executor.provider
    _judge(provider, executor.job_ids_to_block, status)
    why = _refused(provider) or _failing(executor, provider) or _never_made(executor, status)
    if why:
        provider.cancel_all()
        executor.set_bad_state_and_fail_all(TooManyJobFailuresError(f"pool {provider.pool}: {why}"))


def _judge(provider: SchedulerBlocks, block_ids: Mapping[str, str], status: Mapping[str, JobStatus]) -> None:
    """Says of each block that has ended whether it failed, once; HTEX knows whether workers came."""
    for block in provider.ended_blocks:
        block_id = block_ids.get(block.known_as, "")
        if block.failed is not None or block_id not in status:
            continue
        end = how_ended(block.last_job)
        no_worker_came = status[block_id].state == JobState.MISSING
        block.failed = not block.cancelled and (
            end is End.FAILED or (no_worker_came and end is not End.CANCELLED)
        )
        if block.failed:
            provider.bad_starts.failed()
        elif not block.cancelled:
            provider.bad_starts.succeeded()


def _refused(provider: SchedulerBlocks) -> str:
    if not provider.refused_for or any(block.watched for block in provider.blocks.values()):
        return ""
    return f"the scheduler will not take its jobs: {provider.refused_for}; correct the site file"


def _failing(executor: HighThroughputExecutor, provider: SchedulerBlocks) -> str:
    judged = [block for block in provider.ended_blocks if block.failed is not None and not block.cancelled]
    last = judged[-WINDOW:]
    if len(last) < WINDOW or not all(block.failed for block in last) or _at_work(executor, provider):
        return ""
    return f"the last {WINDOW} blocks failed, the last of them as {_story(last[-1])}"


def _never_made(executor: HighThroughputExecutor, status: Mapping[str, JobStatus]) -> str:
    """Blocks for which Parsl could not even call the scheduler: a fault of hpcal's or of the site's."""
    last = sorted(status, key=int)[-WINDOW:]
    failed = [status[block] for block in last if block not in executor.blocks_to_job_id]
    if len(failed) < WINDOW or any(each.state != JobState.FAILED for each in failed):
        return ""
    return f"its blocks cannot be made: {failed[-1].message}"


def _at_work(executor: HighThroughputExecutor, provider: SchedulerBlocks) -> bool:
    """Whether a block runs of which workers have come."""
    running = [known_as for known_as, block in provider.blocks.items() if block.state == JobState.RUNNING]
    if not running:
        return False
    connected = set(executor.connected_blocks())
    return any(executor.job_ids_to_block.get(known_as) in connected for known_as in running)


def _story(block: Block) -> str:
    """How a block failed, with the end of what it wrote."""
    job = block.last_job
    words = f"job {job.id}: {job.reason or 'ended without a reason given'}"
    if job.exit_code is not None:
        words += f", exit code {job.exit_code}"
    if how_ended(job) is not End.FAILED:
        words += "; no worker reached the controller"
    if block.script is None:
        return words
    lines = _tail(block.script.stderr) or _tail(block.script.stdout)
    said = f"; it wrote: {' | '.join(lines)}" if lines else "; it wrote nothing"
    return f"{words}{said} ({block.script.stderr})"


def _tail(path: Path) -> list[str]:
    with suppress(OSError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
        return [line.strip() for line in lines if line.strip()][-_TAIL_LINES:]
    return []

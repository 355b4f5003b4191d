"""Proves a site: one block in each pool, through the executors of a campaign, and a probe on each worker."""

from __future__ import annotations

import importlib.metadata
import platform
import secrets
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import parsl
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.jobs.states import JobState

from hpcal.core.errors import ConfigurationError
from hpcal.sites import probe
from hpcal.sites.blocks import SchedulerBlocks
from hpcal.sites.interchange import Interchange
from hpcal.sites.parsl_config import check_folder, end_parsl, parsl_config, parsl_log
from hpcal.sites.pool import Pool
from hpcal.sites.python_site import PythonSite
from hpcal.sites.scheduler import Job
from hpcal.sites.schema import Site
from hpcal.sites.strays import end_strays

PACKAGES: Final = ("hpcal", "parsl", "numpy", "torch", "ase", "pyscf", "tblite", "torchani")
IMPORTS: Final = ("numpy", "torch", "ase", "pyscf", "tblite", "torchani")
_POLL_S: Final = 2.0
_LOOK_S: Final = 0.5
_LATE_WORKERS_S: Final = 60.0
"""How long the other workers of a block are waited for once one has answered."""
_ENDED_WITHIN_S: Final = 15.0
_ERRORS: Final = (".stderr", ".err")
"""Ends of the names of the files in which a job's standard error goes."""
_CALLS_PER_WORKER: Final = 20
_TAIL_LINES: Final = 60
_SHOWN: Final = 300


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What a block of a pool has shown.

    Attributes:
        pool: name of the pool.
        kind: of its scheduler.
        workers: that a block has.
        queued_s: seconds from its submission until it was seen to run, or None.
        started_s: seconds from then until its first workers were there, or None.
        answers: of its workers, each as :func:`hpcal.sites.probe.probe` gives it.
        state: of the block at the end: ``answered``, ``owed`` where the scheduler has not taken its job
            yet, or Parsl's word.
        words: of the scheduler, or of Parsl, on why it is no better; empty if there are none.
        output: end of what the job has written on standard error, or else on standard output.
    """

    pool: str
    kind: str
    workers: int
    queued_s: float | None = None
    started_s: float | None = None
    answers: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    state: str = ""
    words: str = ""
    output: Sequence[str] = field(default_factory=tuple)


def own_versions() -> dict[str, str | None]:
    """Versions of the same packages here, and of Python."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def probe_pools(site: Site, names: Sequence[str], *, folder: Path, timeout_s: float) -> dict[str, Probed]:
    """Submits a block of each pool and asks each of its workers. To be called in the main thread.

    Args:
        folder: that the nodes see; a folder of its own is made there, and removed.
        timeout_s: after which a block is given up, in the queue or afterwards.

    Raises:
        ConfigurationError: the blocks cannot be made.
    """
    check_folder(folder)
    own = Path(tempfile.mkdtemp(prefix="hpcal-site-check-", dir=folder)).resolve()
    run_id = f"check-{uuid.uuid4().hex[:12]}"
    try:
        with parsl_log(own / "parsl.log"), _running(site, names, own, run_id) as executors:
            watches = [_Watch(site, name, executors[name], own, timeout_s) for name in names]
            while left := [watch for watch in watches if not watch.over()]:
                wait([future for watch in left for future in watch.pending], timeout=_LOOK_S)
            return {watch.name: watch.end() for watch in watches}
    finally:
        end_strays(run_id)
        shutil.rmtree(own, ignore_errors=True)


@contextmanager
def _running(
    site: Site, names: Sequence[str], folder: Path, run_id: str
) -> Iterator[Mapping[str, HighThroughputExecutor]]:
    config = parsl_config(_one_block_each(site, names), folder / "parsl", run_id)
    executors = [each for each in config.executors if each.label in names]
    for each in executors:  # a user's own provider has not heard of one block
        each.provider.init_blocks, each.provider.min_blocks, each.provider.max_blocks = 1, 0, 1
    one_block = Config(
        executors=executors,
        run_dir=config.run_dir,
        strategy="none",  # a block that fails is not replaced
        strategy_period=config.strategy_period,
        initialize_logging=False,
    )
    kernel = parsl.load(one_block)
    try:
        yield kernel.executors
    finally:
        end_parsl(kernel)


def _one_block_each(site: Site, names: Sequence[str]) -> Site:
    if isinstance(site, PythonSite):
        return site
    pools = {}
    for name in names:
        pool = site.pools[name]
        polling = min(_POLL_S, pool.status_polling_interval)
        one = {"init_blocks": 1, "min_blocks": 0, "max_blocks": 1, "status_polling_interval": polling}
        pools[name] = pool.model_copy(update=one)
    return site.model_copy(update={"pools": pools})


class _Watch:
    """One block, from its submission to the answers of its workers."""

    def __init__(
        self, site: Site, name: str, executor: HighThroughputExecutor, folder: Path, timeout_s: float
    ) -> None:
        self.name, self._kind = name, site.kind_of(name)
        self._pool: Pool = site.pools[name]
        self._executor, self._folder = executor, folder
        self._interchange = Interchange(executor)
        self._begun = time.monotonic()
        self._deadline = self._begun + timeout_s
        self._ran: float | None = None
        self._connected: float | None = None
        self._asked = 0
        self._failure = ""
        self._answers: dict[tuple[str, str], Mapping[str, Any]] = {}
        token = secrets.token_hex(8)
        own = folder / f"shared-{name}"
        own.mkdir()
        (own / "token").write_text(token)
        scratch = str(self._pool.scratch or own)
        self._source = _expression(PACKAGES, IMPORTS, scratch, str(own), token)
        self._report: Probed | None = None
        self.pending: list[Future[Any]] = []
        """Questions without an answer."""
        self._look()

    def over(self) -> bool:
        """Looks at what has come in; whether all workers have answered, or none will any more."""
        if self._report is None:
            self._look()
            lost = self._executor.bad_state_is_set or self._interchange.fault or self._block().terminal
            if not self.pending or lost or time.monotonic() > self._deadline:
                self._report = self._told()
                self._executor.scale_in_facade(1)  # its nodes may be costly, and others still wait
        return self._report is not None

    def end(self) -> Probed:
        """What was found, with what the job has written; PBS gives that out only when a job has ended."""
        until = time.monotonic() + _ENDED_WITHIN_S
        while isinstance(self._executor.provider, SchedulerBlocks) and time.monotonic() < until:
            if self._ran is None or _written(self._folder, self.name, _ERRORS):
                break
            time.sleep(_LOOK_S)
        return replace(self._report or self._told(), output=_output(self._folder, self.name))

    def _look(self) -> None:
        if self._connected is None and self._executor.connected_blocks():
            self._connected = time.monotonic()
        if self._ran is None and (self._connected or self._block().state == JobState.RUNNING):
            self._ran = time.monotonic()
        for future in [future for future in self.pending if future.done()]:
            self.pending.remove(future)
            self._heard(future)
        missing = 0 if self._executor.bad_state_is_set else self._pool.tasks_per_block - len(self._answers)
        while len(self.pending) < missing and self._asked < _CALLS_PER_WORKER * self._pool.tasks_per_block:
            self._ask()

    def _ask(self) -> None:
        self._asked += 1
        # A built-in function is there in every Python; one of ours would be that of the worker.
        self.pending.append(self._executor.submit(eval, {}, self._source))

    def _heard(self, future: Future[Any]) -> None:
        error = future.exception()
        if error is not None:
            self._failure = f"{type(error).__name__}: {error}"
            self._deadline = min(self._deadline, time.monotonic())
            return
        answer = future.result()
        if not self._answers:
            self._deadline = min(self._deadline, time.monotonic() + _LATE_WORKERS_S)
        self._answers[answer["host"] + answer["manager"], answer["worker"]] = answer

    def _block(self) -> Any:
        return self._executor.status_facade.get("0") or _Nothing()

    def _told(self) -> Probed:
        enough = len(self._answers) >= self._pool.tasks_per_block
        return Probed(
            pool=self.name,
            kind=self._kind,
            workers=self._pool.tasks_per_block,
            queued_s=None if self._ran is None else round(self._ran - self._begun, 1),
            started_s=None
            if self._connected is None or self._ran is None
            else round(max(0.0, self._connected - self._ran), 1),
            answers=tuple(self._answers[key] for key in sorted(self._answers)),
            state="answered" if enough else self._state(),
            words="" if enough else self._words(),
        )

    def _state(self) -> str:
        provider = self._executor.provider
        if isinstance(provider, SchedulerBlocks) and any(block.owed for block in provider.blocks.values()):
            return "owed"
        return str(self._block().state.name).lower()

    def _words(self) -> str:
        executor = self._executor
        if executor.bad_state_is_set:
            return " ".join(str(executor.executor_exception).split())
        if self._interchange.fault:
            return f"Parsl's interchange on this host {self._interchange.fault}"
        if self._failure:
            return self._failure[:_SHOWN]
        if isinstance(executor.provider, SchedulerBlocks):
            for block in executor.provider.blocks.values():
                return _of_job(block.job) if block.job else block.words
        return ""


def _of_job(job: Job) -> str:
    code = None if job.exit_code is None else f"exit code {job.exit_code}"
    return ", ".join(filter(None, (job.reason, code)))


class _Nothing:
    """In place of the status of a block that has not been submitted yet."""

    state = JobState.PENDING
    terminal = False


def _expression(*arguments: object) -> str:
    """A Python expression that runs :func:`hpcal.sites.probe.probe` from its text."""
    text = Path(probe.__file__).read_text(encoding="utf-8")
    call = ", ".join(map(repr, arguments))
    return f"(lambda names: (exec({text!r}, names), names['probe']({call}))[1])({{'__name__': 'probe'}})"


def _output(folder: Path, pool: str) -> tuple[str, ...]:
    """The end of what the job of a pool's only block has written."""
    for path in (*_written(folder, pool, _ERRORS), *_written(folder, pool, (".stdout", ".out"))):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        lines = [line.strip()[:_SHOWN] for line in lines if line.strip()]
        if lines:
            return tuple(lines[-_TAIL_LINES:])
    return ()


def _written(folder: Path, pool: str, suffixes: Sequence[str]) -> list[Path]:
    """Files that the job of a pool writes, of these kinds."""
    files = (folder / "parsl").rglob(f"submit_scripts/parsl.{pool}.block-*")
    return sorted(path for path in files if path.suffix in suffixes)


def pools_of(site: Site, only: str | None) -> list[str]:
    """Pools to look at. Raises ConfigurationError if there is no such pool."""
    if only is None:
        return list(site.pools)
    if only not in site.pools:
        raise ConfigurationError(f"the site has no pool {only!r}; it has {', '.join(site.pools)}")
    return [only]

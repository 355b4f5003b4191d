"""What a site becomes in Parsl: one executor a pool, started by absolute paths and tied to us."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD
from parsl.jobs.error_handlers import windowed_error_handler
from parsl.launchers import SimpleLauncher
from parsl.providers import LocalProvider

from hpcal.core.errors import ConfigurationError
from hpcal.sites import leash
from hpcal.sites.schema import Pool, Site

RUN_VARIABLE: Final = "HPCAL_RUN_ID"
"""Set for all workers and what they start, so that a campaign's strays can be told from others."""

_THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_FAILED_BLOCKS: Final = 5
"""Blocks that fail in a row before a pool counts as broken."""
_STRATEGY_PERIOD_S: Final = 0.25
_POLL_MS: Final = 100


def parsl_config(site: Site, run_dir: Path, run_id: str) -> Config:
    """Parsl's configuration of a site.

    To be called, and loaded, in the main thread of the controller: its blocks end with this
    process, its interchanges with the thread that loads.

    Args:
        run_dir: folder for Parsl's own files, inside the campaign's; made if needed.
        run_id: of the campaign; in the environment of all workers (``HPCAL_RUN_ID``).

    Raises:
        ConfigurationError: a folder whose name Parsl's shell scripts would take apart.
    """
    run_dir = run_dir.resolve()
    check_folder(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    return Config(
        executors=[_executor(name, pool, site, run_dir, run_id) for name, pool in site.pools.items()],
        run_dir=str(run_dir),
        retries=0,  # hpcal's failure classes decide
        strategy="simple",  # replaces a block that is lost, which `none` does not
        strategy_period=_STRATEGY_PERIOD_S,
        # Its own log is at debug level and halves the throughput; see parsl_log.
        initialize_logging=False,
        usage_tracking=0,
    )


def check_folder(folder: Path) -> None:
    """Raises ConfigurationError for a folder whose name Parsl's shell scripts would take apart."""
    text = str(folder.resolve())
    if shlex.quote(text) != text or set("{}") & set(text):
        raise ConfigurationError(
            f"Parsl cannot work in {text!r}: blanks and characters that a shell interprets "
            "break its scripts; choose another folder with --dir"
        )


@contextmanager
def parsl_log(path: Path, level: int = logging.INFO) -> Iterator[None]:
    """Keeps what Parsl says in this process in a file."""
    handler = logging.FileHandler(path, delay=True)
    handler.setLevel(level)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("parsl")
    before = logger.level
    logger.setLevel(level)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        handler.close()


def _executor(name: str, pool: Pool, site: Site, run_dir: Path, run_id: str) -> HighThroughputExecutor:
    return HighThroughputExecutor(
        label=name,
        provider=LocalProvider(
            init_blocks=pool.init_blocks,
            min_blocks=pool.min_blocks,
            max_blocks=pool.max_blocks,
            worker_init=_worker_init(pool, run_id),
            launcher=SimpleLauncher(),
        ),
        launch_cmd=_launch_command(),
        interchange_launch_cmd=_tied("interchange", "parsl.executors.high_throughput.interchange"),
        address=site.address,
        working_dir=str(run_dir),
        cores_per_worker=pool.cores_per_worker,
        max_workers_per_node=pool.max_workers_per_node,
        available_accelerators=pool.available_accelerators,
        prefetch_capacity=0,
        heartbeat_period=pool.heartbeat_period,
        heartbeat_threshold=pool.heartbeat_threshold,
        drain_period=pool.walltime_s,
        poll_period=_POLL_MS,
        block_error_handler=partial(windowed_error_handler, threshold=_FAILED_BLOCKS),
        encrypted=True,
    )


def _tied(kind: str, module: str) -> list[str]:
    """Runs a module of this very interpreter, tied to this process.

    Absolute paths, because the environment need not be on PATH. ``-P`` keeps a file that happens
    to lie in the current folder from being imported in place of a package.
    """
    leashed = [sys.executable, "-I", "-S", leash.__file__, kind, str(os.getpid())]
    return [*leashed, sys.executable, "-P", "-m", module]


def _launch_command() -> str:
    command = shlex.join(_tied("block", "parsl.executors.high_throughput.process_worker_pool"))
    # Parsl formats the command twice; braces of a path must outlive both.
    literal = command.replace("{", "{{{{").replace("}", "}}}}")
    return str(DEFAULT_LAUNCH_CMD.replace("process_worker_pool.py", literal))


def _worker_init(pool: Pool, run_id: str) -> str:
    """Shell lines before a worker pool starts; what the user sets comes last and wins."""
    cores = pool.cores_per_worker
    variables = dict.fromkeys(_THREAD_VARIABLES, str(cores))
    variables[RUN_VARIABLE] = run_id
    # Parsl would start fewer workers on a machine with fewer cores than the site asks for.
    variables["PARSL_CORES"] = str(pool.max_workers_per_node * cores)
    variables.update(pool.environment)
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return "\n".join([*exports, pool.worker_init])

"""What a site becomes in Parsl: one executor a pool, started by absolute paths and tied to us."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from parsl.config import Config
from parsl.dataflow.dflow import DataFlowKernel
from parsl.executors import HighThroughputExecutor
from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD
from parsl.jobs.error_handlers import windowed_error_handler
from parsl.launchers import MpiExecLauncher, MpiRunLauncher, SimpleLauncher, SrunLauncher
from parsl.launchers.base import Launcher
from parsl.providers import LocalProvider
from parsl.providers.base import ExecutionProvider

from hpcal.core.errors import ConfigurationError
from hpcal.sites import leash, worker_manager
from hpcal.sites.addresses import controller_addresses
from hpcal.sites.block_errors import block_error_handler
from hpcal.sites.blocks import SchedulerBlocks
from hpcal.sites.pbs_provider import PBSBlocks
from hpcal.sites.pool import Pool
from hpcal.sites.python_site import PythonSite, read_config
from hpcal.sites.scheduler import Job
from hpcal.sites.schema import Site
from hpcal.sites.slurm_provider import SlurmBlocks
from hpcal.sites.worker_init import DRAIN, RUN_VARIABLE, interpreter, worker_init

logger = logging.getLogger(__name__)

Ended = Callable[[str, str, Job], None]
"""Is told the pool, the job's id as Parsl knows it, and how the job ended."""

_LOCAL_FAILURES: Final = partial(windowed_error_handler, threshold=5)
"""When a pool on this machine is broken: its last five blocks failed."""
_STRATEGY_PERIOD_S: Final = 0.25
_POLL_MS: Final = 100


def parsl_config(site: Site, run_dir: Path, run_id: str, ended: Ended | None = None) -> Config:
    """Parsl's configuration of a site.

    To be called, and loaded, in the main thread of the controller: its blocks end with this
    process, its interchanges with the thread that loads.

    Args:
        run_dir: folder for Parsl's own files, inside the campaign's; made if needed.
        run_id: of the campaign; in the environment of all workers (``HPCAL_RUN_ID``) and in the
            scheduler's record of their jobs.
        ended: is told of each batch job that ends.

    Raises:
        ConfigurationError: a folder whose name Parsl's shell scripts would take apart, or a
            network interface that this host has not.
    """
    run_dir = run_dir.resolve()
    check_folder(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    if isinstance(site, PythonSite):
        return _users_own(site, run_dir, run_id)
    return Config(
        executors=[
            executor(name, pool, site=site, run_dir=run_dir, run_id=run_id, ended=ended)
            for name, pool in site.pools.items()
        ],
        run_dir=str(run_dir),
        retries=0,  # hpcal's failure classes decide
        strategy="simple",  # replaces a block that is lost, which `none` does not
        strategy_period=_STRATEGY_PERIOD_S,
        # Its own log is at debug level and halves the throughput; see parsl_log.
        initialize_logging=False,
        usage_tracking=0,
    )


def _users_own(site: PythonSite, run_dir: Path, run_id: str) -> Config:
    """The configuration of a Python file, with what a campaign needs of it."""
    config = read_config(Path(site.python_file))
    config.run_dir, config.retries, config.initialize_logging = str(run_dir), 0, False
    for own in config.executors:
        if isinstance(getattr(own.provider, "worker_init", None), str):
            own.provider.worker_init = f"export {RUN_VARIABLE}={run_id}\n{own.provider.worker_init}"
    return config


def check_folder(folder: Path) -> None:
    """Raises ConfigurationError for a folder whose name Parsl's shell scripts would take apart."""
    text = str(folder.resolve())
    if shlex.quote(text) != text or set("{}") & set(text):
        raise ConfigurationError(
            f"Parsl cannot work in {text!r}: blanks and characters that a shell interprets "
            "break its scripts; choose another folder with --dir"
        )


def end_parsl(kernel: DataFlowKernel) -> None:
    """Ends all blocks and Parsl; says which batch jobs the scheduler could not be told to end."""
    found = [getattr(each, "provider", None) for each in kernel.executors.values()]
    providers = [provider for provider in found if isinstance(provider, SchedulerBlocks)]
    with ThreadPoolExecutor() as threads:  # Parsl would wait for the scheduler once for each pool
        list(threads.map(SchedulerBlocks.close, providers))
    kernel.cleanup()
    if left := [job for provider in providers for job in provider.left]:
        logger.warning(
            "batch jobs %s could not be cancelled, as the scheduler does not answer: look for them with "
            "`hpcal clean`, or cancel them by hand",
            ", ".join(left),
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


def executor(
    name: str, pool: Pool, *, site: Site, run_dir: Path, run_id: str, ended: Ended | None = None
) -> HighThroughputExecutor:
    """The executor of one pool; arguments as for :func:`parsl_config`."""
    kind, addresses = site.kind_of(name), controller_addresses(site)
    local = kind == "local"
    period, threshold = pool.heartbeats(kind)
    made = HighThroughputExecutor(
        label=name,
        provider=_provider(name, pool, kind, run_id, ended),
        launch_cmd=_launch_command(pool, run_dir, local=local),
        interchange_launch_cmd=_tied("interchange", "parsl.executors.high_throughput.interchange"),
        address=addresses[0],
        working_dir=str(run_dir),
        cores_per_worker=pool.cores_per_worker,
        max_workers_per_node=pool.max_workers_per_node,
        cpu_affinity=pool.cpu_affinity,
        prefetch_capacity=0,
        heartbeat_period=period,
        heartbeat_threshold=threshold,
        drain_period=pool.walltime_s,
        poll_period=_POLL_MS,
        block_error_handler=_LOCAL_FAILURES if local else block_error_handler,
        encrypted=True,
    )
    if not local:
        made.drain_period = f"${DRAIN}"  # a moment, see worker_manager; its last tasks have time to stop
    if len(addresses) > 1:
        # Parsl takes one address, or else asks a server in the world for this host's.
        made.address, made.all_addresses = None, set(addresses)
    return made


def _provider(name: str, pool: Pool, kind: str, run_id: str, ended: Ended | None) -> ExecutionProvider:
    common = {
        "init_blocks": pool.init_blocks,
        "min_blocks": pool.min_blocks,
        "max_blocks": pool.max_blocks,
        "worker_init": worker_init(pool, name, run_id, batch=kind != "local"),
        "launcher": _launcher(pool, kind),
    }
    if kind == "local":
        return LocalProvider(**common)
    common |= {
        "nodes_per_block": pool.nodes_per_block,
        "walltime": pool.walltime,
        "account": pool.account,
        "cmd_timeout": pool.cmd_timeout,
        "run_id": run_id,
        "pool": name,
        "poll_seconds": pool.status_polling_interval,
        "grace_seconds": pool.submit_grace,
        "ended": None if ended is None else lambda job_id, job: ended(name, job_id, job),
        "scheduler_options": pool.scheduler_options,
    }
    if kind == "slurm":
        return SlurmBlocks(
            **common,
            partition=pool.partition,
            qos=pool.qos,
            constraint=pool.constraint,
            cores_per_node=pool.cores_asked,
            mem_per_node=pool.memory_asked,
            gpus_per_node=pool.gpus_per_node or None,
            exclusive=pool.exclusive,
            ranks_per_node=pool.ranks_per_node,
        )
    return PBSBlocks(
        **common,
        queue=pool.queue,
        cpus_per_node=pool.cores_asked,
        mem_per_node=pool.memory_asked,
        gpus_per_node=pool.gpus_per_node,
        select_options=pool.select_options,
        filesystems=pool.filesystems,
        place="scatter:excl" if pool.exclusive else None,
    )


def _launcher(pool: Pool, kind: str) -> Launcher:
    """What starts a manager on each node of a block."""
    options = pool.launcher_options
    usual = "srun" if kind == "slurm" else "mpiexec"
    single = pool.mpi is not None or pool.nodes_per_block == 1
    match pool.launcher or ("single" if single else usual):
        case "srun":
            return SrunLauncher(overrides=f"--ntasks-per-node=1 {options}".strip())
        case "mpiexec":
            return MpiExecLauncher(overrides=f"--ppn 1 {options}".strip())
        case "mpirun":
            return MpiRunLauncher(overrides=f"--map-by ppr:1:node {options}".strip())
        case _:
            return SimpleLauncher()


def _launch_command(pool: Pool, run_dir: Path, *, local: bool) -> str:
    """The worker manager of one node. A batch job's ends with the job; here it is tied to this process."""
    words = [*interpreter(pool, run_dir), "-P"]
    if local:
        words = [*_leash("block"), *words, "-m", worker_manager.MANAGER]
    else:
        script = run_dir / "worker_manager.py"  # the nodes see this folder
        shutil.copyfile(worker_manager.__file__, script)
        words.append(str(script))
    # Parsl formats the command twice; braces of a path must outlive both.
    literal = shlex.join(words).replace("{", "{{{{").replace("}", "}}}}")
    return str(DEFAULT_LAUNCH_CMD.replace("process_worker_pool.py", literal))


def _tied(kind: str, module: str) -> list[str]:
    """Runs a module of this very interpreter, tied to this process.

    Absolute paths, because the environment need not be on PATH. ``-P`` keeps a file that happens
    to lie in the current folder from being imported in place of a package.
    """
    return [*_leash(kind), sys.executable, "-P", "-m", module]


def _leash(kind: str) -> list[str]:
    return [sys.executable, "-I", "-S", leash.__file__, kind, str(os.getpid())]

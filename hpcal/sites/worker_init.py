"""What happens on a node before the workers start: variables, modules, an environment of their own."""

from __future__ import annotations

import hashlib
import shlex
import sys
from pathlib import Path
from typing import Final

from hpcal.core import launch
from hpcal.sites import devices
from hpcal.sites.block_end import BLOCK_END
from hpcal.sites.pool import Container, JobKeys, Pool

RUN_VARIABLE: Final = "HPCAL_RUN_ID"
"""Set for all workers and what they start, so that a campaign's strays can be told from others."""
POOL_VARIABLE: Final = "HPCAL_POOL"
DRAIN: Final = "HPCAL_DRAIN_AT"
"""When the workers of a batch job are given no more tasks, in seconds since the epoch."""

_THREAD_VARIABLES: Final = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_CONTAINER_GPU: Final = {"none": [], "nvidia": ["--nv"], "amd": ["--rocm"]}

_STAGE: Final = """\
#!/bin/bash
# Unpacks the environment of the workers on this node, once, and runs the worker manager with it.
set -e
# Of this user and of this version of the archive: /tmp is everybody's, and outlives the job.
home="${{TMPDIR:-/tmp}}/hpcal-environment-$(id -u)-{key}-$(stat -L -c %Y-%s {archive})"
mkdir -p -m 700 "$home"
[ -O "$home" ] || {{ echo "$home belongs to another user: set TMPDIR in worker_init" >&2; exit 1; }}
(
  flock 9
  if [ ! -e "$home/.whole" ]; then
    tar -xf {archive} -C "$home"
    [ ! -x "$home/bin/conda-unpack" ] || "$home/bin/conda-unpack"
    touch "$home/.whole"
  fi
) 9>"$home.lock"
export PATH="$home/bin:$PATH"
exec "$home/bin/python" "$@"
"""


def worker_init(pool: Pool, name: str, run_id: str, *, batch: bool) -> str:
    """Shell lines of a block before its workers start; what the user sets comes last and wins.

    Args:
        batch: it is a batch job, which ends after the walltime of the pool.
    """
    lines = [f"export {key}={shlex.quote(value)}" for key, value in _variables(pool, name, run_id).items()]
    if batch and pool.walltime_s is not None:
        lines += [
            f"export {BLOCK_END}=$(( $(date +%s) + {pool.walltime_s} ))",
            f'if [ -n "${{SLURM_JOB_END_TIME:-}}" ]; then export {BLOCK_END}=$SLURM_JOB_END_TIME; fi',
        ]
    lines += job_init(pool)
    if batch and pool.walltime_s is not None:
        # Last: the user may have set another end.
        lines.append(f"export {DRAIN}=$(( {BLOCK_END} - {2 * pool.walltime_margin} ))")
    return "\n".join(lines)


def job_init(job: JobKeys) -> list[str]:
    """Shell lines for modules and what the user asks for."""
    lines = [f"module load {shlex.quote(module)}" for module in job.modules]
    return [*lines, job.worker_init] if job.worker_init else lines


def _variables(pool: Pool, name: str, run_id: str) -> dict[str, str]:
    cores = pool.cores_per_worker
    variables = dict.fromkeys(_THREAD_VARIABLES, str(cores))
    variables[RUN_VARIABLE], variables[POOL_VARIABLE] = run_id, name
    # Parsl would start fewer workers on a machine with fewer cores than the site asks for.
    variables["PARSL_CORES"] = str(pool.max_workers_per_node * cores)
    if pool.gpu_count:
        variables[devices.COUNT] = str(pool.gpu_count)
        variables[devices.SHARE] = str(pool.gpus_per_worker)
        variables[devices.VENDOR] = pool.gpu_vendor
        if isinstance(pool.available_accelerators, list):
            variables[devices.NAMES] = " ".join(pool.available_accelerators)
    if pool.mpi is not None:
        filled = pool.mpi.command.format(nodes=pool.nodes_per_block, ranks=pool.mpi.ranks)
        variables[launch.MPI_COMMAND], variables[launch.MPI_RANKS] = filled, str(pool.mpi.ranks)
    variables.update(pool.environment)
    return variables


def interpreter(job: JobKeys, script_dir: Path) -> list[str]:
    """Words that run Python on a node: in the container, the staged environment, or as it is.

    Args:
        script_dir: folder that the nodes see, for the script that unpacks a staged environment.
    """
    if job.container is not None:
        return [*container_words(job.container), job.container.python]
    if job.staged_environment is not None:
        return ["bash", str(_stage_script(job.staged_environment, script_dir))]
    return [job.python or sys.executable]


def container_words(container: Container) -> list[str]:
    """``apptainer exec`` with its options and the image."""
    binds = [word for bind in container.binds for word in ("--bind", bind)]
    options = shlex.split(container.options)
    return [
        container.program, "exec", *_CONTAINER_GPU[container.gpu], *binds, *options, container.image,
    ]  # fmt: skip


def _stage_script(archive: str, script_dir: Path) -> Path:
    key = hashlib.sha256(archive.encode()).hexdigest()[:12]
    script = script_dir / f"stage-{key}.sh"
    script.write_text(_STAGE.format(key=key, archive=shlex.quote(archive)), encoding="utf-8")
    return script

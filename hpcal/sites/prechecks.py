"""What can be told of a pool before a job is handed in, in seconds."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hpcal.sites.faults import Verdict
from hpcal.sites.pbs_commands import PBS
from hpcal.sites.pool import Pool
from hpcal.sites.scheduler import SchedulerError, command
from hpcal.sites.schema import Site

_MODULE_TIMEOUT_S: Final = 60.0
_NO_MODULES: Final = 99


def precheck(site: Site, name: str) -> Verdict:
    """Faults and notes of a pool that need no job."""
    pool, kind = site.pools[name], site.kind_of(name)
    if kind not in ("local", "slurm", "pbs"):
        return Verdict()
    faults = [*_files(pool), *_modules(pool)]
    notes: list[str] = []
    if kind != "local" and pool.account is None:
        notes.append("no `account` is given: the scheduler's default one pays")
    try:
        if kind == "slurm":
            faults += _partition(pool)
        elif kind == "pbs" and not PBS(pool.cmd_timeout).history():
            notes.append(
                "this PBS keeps no history of jobs: why a block ended cannot always be told (its "
                "administrator can switch on job_history_enable)"
            )
    except SchedulerError as error:
        faults.append(f"the scheduler does not answer: {error}")
    return Verdict(faults=tuple(faults), notes=tuple(notes))


def _partition(pool: Pool) -> Iterator[str]:
    answer = command(["sinfo", "--noheader", "--format=%R"], pool.cmd_timeout)
    known = sorted(set(answer.stdout.split()))
    if answer.returncode != 0:
        raise SchedulerError(f"sinfo failed with exit code {answer.returncode}: {answer.stderr.strip()}")
    for partition in (pool.partition or "").split(","):
        if partition and known and partition not in known:
            yield f"partition {partition!r} is not known to Slurm, which has {', '.join(known)}; correct it"


def _files(pool: Pool) -> Iterator[str]:
    """Files that the pool names and that are not here."""
    image = None if pool.container is None else pool.container.image
    for key, path in (("container image", image), ("staged_environment", pool.staged_environment)):
        if path and "://" not in path and not Path(path).exists():
            yield f"{key} {path} does not exist here; build it, or correct the path"


def _modules(pool: Pool) -> Iterator[str]:
    """Modules that `module avail` does not list, where there is such a command."""
    for module in pool.modules:
        listed = _listed(module)
        if listed is not None and module not in listed:
            yield (
                f"module {module!r} is not among those of `module avail`; correct `modules`, or `module use` "
                "its folder in your shell's set-up"
            )


def _listed(module: str) -> str | None:
    """What `module avail` says of a name; None where it does not answer."""
    there = f"type module >/dev/null 2>&1 || exit {_NO_MODULES}"
    script = f"{there}; module -t avail {shlex.quote(module)} 2>&1; exit 0"
    if shutil.which("bash") is None:
        return None
    try:
        done = subprocess.run(
            ["bash", "-lc", script],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_MODULE_TIMEOUT_S,
            check=False,
        )
    except (subprocess.TimeoutExpired, OSError):
        return None
    return None if done.returncode == _NO_MODULES else done.stdout

"""The batch script of a controller's job, as the block ``controller`` of a site asks for it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Final

from hpcal.core.errors import ConfigurationError
from hpcal.sites.block_end import BLOCK_END
from hpcal.sites.dialect import fault_of_words, option_lines, unheeded_by_pbs
from hpcal.sites.pool import ControllerJob
from hpcal.sites.schema import LEAST_WORK_S, Site
from hpcal.sites.worker_init import interpreter, job_init

FOLDER: Final = "controller"
MODULE: Final = "hpcal.cli.controller_job"
"""What a controller job runs, with the campaign's folder and the number of the job."""
NUMBER: Final = "@NUMBER@"


def controller_of(site: Site) -> tuple[ControllerJob, str]:
    """What a site says about controller jobs, and the kind of its batch system.

    Raises:
        ConfigurationError: nothing, or what cannot be.
    """
    job = site.controller
    if job is None:
        raise ConfigurationError(
            "the site has no block `controller`, which says how the controller itself runs as a batch job; "
            'add one to its file, such as `controller: {walltime: "24:00:00", cores: 1}`, or start the '
            "controller here with `hpcal run`"
        )
    kind = job.kind or site.kind
    fault = _fault_of(job, kind)
    if fault is not None:
        raise ConfigurationError(f"block `controller` of the site: {fault}")
    return job, kind


def _fault_of(job: ControllerJob, kind: str) -> str | None:
    if kind not in ("slurm", "pbs"):
        return f"its kind is {kind}, and only slurm and pbs have batch jobs; use `hpcal run`"
    if job.container is not None:
        return (
            "a container is given, but the controller calls the scheduler's commands, which are not in an "
            "image; leave it out here and give `python`, an interpreter of the host, if it needs another one"
        )
    if job.walltime_s is None:
        return 'walltime is missing: the job has a limit, such as "24:00:00"'
    if job.walltime_s < job.walltime_margin + LEAST_WORK_S:
        return (
            f"walltime {job.walltime} less walltime_margin ({job.walltime_margin} s) leaves no time to work; "
            "give a longer walltime"
        )
    if kind == "pbs" and job.chain == "scrontab":
        return "chain: scrontab is Slurm's; on PBS it is batch"
    fault = fault_of_words(job, kind)
    if fault is None and kind == "pbs":
        fault = unheeded_by_pbs(job.scheduler_options, _pbs_asked(job, Path(FOLDER)))
    return fault


def controller_script(site: Site, root: Path, number: int | str = NUMBER) -> str:
    """The batch script of a controller job.

    Args:
        root: folder of the campaign.
        number: place of the job in its chain.

    Raises:
        ConfigurationError: the site cannot run controllers as jobs.
    """
    job, kind = controller_of(site)
    folder = root.resolve() / FOLDER
    output = folder / f"{number}.out"
    asked = _slurm_lines(job, output) if kind == "slurm" else _pbs_lines(job, output)
    words = [*interpreter(job, folder), "-P", "-m", MODULE, str(root.resolve()), str(number)]
    lines = [
        "#!/bin/bash",
        *asked,
        *option_lines(job.scheduler_options),
        "",
        f"export {BLOCK_END}=$(( $(date +%s) + {job.walltime_s} ))",
        f'if [ -n "${{SLURM_JOB_END_TIME:-}}" ]; then export {BLOCK_END}=$SLURM_JOB_END_TIME; fi',
        f"cd {shlex.quote(os.getcwd())}",
        "export PYTHONUNBUFFERED=1",
        *(f"export {name}={shlex.quote(value)}" for name, value in job.environment.items()),
        *job_init(job),
        # In place of the shell, so that signals of the scheduler reach it.
        f"exec {shlex.join(words)}",
        "",
    ]
    return "\n".join(lines)


def slurm_options(job: ControllerJob, output: Path) -> list[str]:
    """What a Slurm is asked for, as options of sbatch without the dashes."""
    asked = {
        "job-name": "hpcal.controller",
        "output": str(output).replace("%", "%%"),
        "open-mode": "append",
        "nodes": 1,
        "ntasks": 1,
        "cpus-per-task": job.cores,
        "time": job.walltime,
        "mem": job.mem and f"{job.mem}G",
        "account": job.account,
        "partition": job.partition,
        "qos": job.qos,
        "constraint": job.constraint,
    }
    options = [f"{name}={value}" for name, value in asked.items() if value is not None]
    return [*options, *(["exclusive"] if job.exclusive else []), "no-requeue"]


def _slurm_lines(job: ControllerJob, output: Path) -> list[str]:
    return [f"#SBATCH --{option}" for option in slurm_options(job, output)]


def _pbs_lines(job: ControllerJob, output: Path) -> list[str]:
    asked = _pbs_asked(job, output)
    return [f"#PBS {name}{'' if name.endswith('=') else ' '}{value}" for name, value in asked.items()]


def _pbs_asked(job: ControllerJob, output: Path) -> dict[str, str]:
    memory = f"mem={job.mem}gb" if job.mem else ""
    select = ":".join(filter(None, ("1", f"ncpus={job.cores}", memory, job.select_options.strip(":"))))
    asked = {
        "-N": "hpcal.control",
        "-S": "/bin/bash",
        "-m": "n",
        "-r": "n",
        "-j": "oe",
        "-k": "doe",  # written as it comes, where the node sees the folder
        "-o": str(output),
        "-l walltime=": job.walltime,
        "-l select=": select,
        "-l place=": "excl" if job.exclusive else None,
        "-l filesystems=": job.filesystems,
        "-q": job.queue,
        "-A": job.account,
    }
    return {name: value for name, value in asked.items() if value}

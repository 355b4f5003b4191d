"""Blocks of workers as jobs of a Slurm."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from parsl.launchers import SrunLauncher
from parsl.providers import SlurmProvider

from hpcal.core.errors import ConfigurationError
from hpcal.sites.blocks import BatchScript, SchedulerBlocks
from hpcal.sites.dialect import option_lines
from hpcal.sites.scheduler import Job, Scheduler
from hpcal.sites.slurm_commands import Slurm


class SlurmBlocks(SchedulerBlocks, SlurmProvider):  # type: ignore[misc]  # Parsl has no types
    """Parsl's provider for Slurm, with the behaviour of :class:`~hpcal.sites.blocks.SchedulerBlocks`.

    Args:
        run_id: of the campaign.
        pool: name of the pool of workers.
        poll_seconds: between two looks at the jobs.
        grace_seconds: after its submission in which a job may be unknown to Slurm.
        ended: called once for each block whose job has ended; or None.
        scheduler: a Slurm with its own timeout unless given.
        ranks_per_node: of the programs that tasks start; Slurm's launchers, and OpenMPI's, start no
            more on a node.
        cmd_timeout: seconds that a command of Slurm may take.
        exclusive: whether nodes are shared with no other job.
        options: for Parsl's SlurmProvider: account, partition, qos, constraint, gres,
            gpus_per_node, cores_per_node, mem_per_node (GB), scheduler_options, worker_init,
            nodes_per_block, init_blocks, min_blocks, max_blocks, parallelism, launcher and
            walltime, which goes to ``--time`` as it is.
    """

    def __init__(
        self,
        *,
        run_id: str,
        pool: str,
        poll_seconds: float = 60.0,
        grace_seconds: float = 60.0,
        ended: Callable[[str, Job], None] | None = None,
        scheduler: Scheduler | None = None,
        ranks_per_node: int = 1,
        cmd_timeout: int = 60,
        exclusive: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            scheduler=scheduler or Slurm(cmd_timeout),
            run_id=run_id,
            pool=pool,
            poll_seconds=poll_seconds,
            grace_seconds=grace_seconds,
            ended=ended,
            cmd_timeout=cmd_timeout,
            exclusive=exclusive,
            **options,
        )
        self.ranks_per_node = ranks_per_node

    def execute_wait(self, cmd: str, timeout: int | None = None) -> tuple[int, str, str]:  # noqa: ARG002
        """Runs nothing: Parsl asks for sacct as soon as a provider is made, on whatever machine."""
        return 1, "", ""

    def _write_script(self, command: str, tasks_per_node: int, job_name: str) -> BatchScript:
        if self.script_dir is None:
            raise ConfigurationError(f"pool {self.pool}: there is no folder for batch scripts yet")
        base = Path(self.script_dir).resolve() / job_name
        script = BatchScript(
            path=base.with_name(f"{base.name}.slurm"),
            stdout=base.with_name(f"{base.name}.stdout"),
            stderr=base.with_name(f"{base.name}.stderr"),
        )
        lines = [
            "#!/bin/bash",
            *(f"#SBATCH --{option}" for option in self._asked(script)),
            *option_lines(self.scheduler_options),
            "",
            *self._variables(job_name),
            self.worker_init,
            self.launcher(command, tasks_per_node, self.nodes_per_block, str(base.parent)),
            "",
        ]
        script.path.write_text("\n".join(lines))
        return script

    def _asked(self, script: BatchScript) -> list[str]:
        """What sbatch is asked for besides Parsl's own options."""
        asked = [
            f"job-name=hpcal.{self.pool}",
            f"output={_literal(script.stdout)}",
            f"error={_literal(script.stderr)}",
            f"chdir={script.path.parent}",
            f"nodes={self.nodes_per_block}",
            f"ntasks-per-node={self.ranks_per_node}",
            f"time={self.walltime}",
            "no-requeue",  # a lost block is replaced by another
        ]
        if self.cores_per_node is not None:
            asked.append(f"cpus-per-task={self._cpus_per_task}")
        if self.mem_per_node is not None:
            asked.append(f"mem={self.mem_per_node}G")
        return asked

    def _variables(self, job_name: str) -> list[str]:
        """Lines before the site's own, which come last and win."""
        lines = [f"export JOBNAME={shlex.quote(job_name)}"]  # launchers name their files by it
        if self.cores_per_node is not None:
            lines.append(f"export PARSL_CORES={self.cores_per_node}")
        if isinstance(self.launcher, SrunLauncher):
            # It names a file by this variable, which Slurm sets to what all blocks of a pool are called.
            lines.append(f"export SLURM_JOB_NAME={shlex.quote(job_name)}")
            if self.cores_per_node is not None:
                # Since 22.05, srun gives a task one core unless told by this variable.
                lines.append(f"export SRUN_CPUS_PER_TASK={self._cpus_per_task}")
        if self.mem_per_node is not None:
            lines.append(f"export PARSL_MEMORY_GB={self.mem_per_node}")
        return lines

    @property
    def _cpus_per_task(self) -> int:
        return max(1, int(self.cores_per_node or 1) // self.ranks_per_node)


def _literal(path: Path) -> str:
    """A path in which Slurm fills in nothing."""
    return str(path).replace("%", "%%")

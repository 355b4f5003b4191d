"""Blocks of workers as jobs of a PBS."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from parsl.providers import PBSProProvider

from hpcal.core.errors import ConfigurationError
from hpcal.sites.blocks import BatchScript, SchedulerBlocks
from hpcal.sites.dialect import option_lines, unheeded_by_pbs
from hpcal.sites.pbs_commands import PBS
from hpcal.sites.scheduler import Job, Scheduler

_LONGEST_NAME: Final = 15
"""Of a job, on all versions of PBS."""


class PBSBlocks(SchedulerBlocks, PBSProProvider):  # type: ignore[misc]  # Parsl has no types
    """Parsl's provider for PBS, with the behaviour of :class:`~hpcal.sites.blocks.SchedulerBlocks`.

    Args:
        run_id: of the campaign.
        pool: name of the pool of workers.
        poll_seconds: between two looks at the jobs.
        grace_seconds: after its submission in which a job may be unknown to PBS.
        ended: called once for each block whose job has ended; or None.
        scheduler: a PBS with its own timeout unless given.
        mem_per_node: memory asked for on each node, GB, or None for what the site gives.
        gpus_per_node: asked for on each node as ``ngpus``, or None; for sites that define it.
        ranks_per_node: of the programs that tasks start; PBS names a node to launchers that often.
        filesystems: that must be up, such as ``home:eagle``; for sites that ask for it.
        place: how nodes are shared, such as ``scatter:excl``; by default, several nodes are
            different ones.
        cmd_timeout: seconds that a command of PBS may take.
        options: for Parsl's PBSProProvider: account, queue, select_options, scheduler_options,
            worker_init, nodes_per_block, cpus_per_node, init_blocks, min_blocks, max_blocks,
            parallelism, launcher, walltime. A job starts with no variable of the controller's:
            worker_init brings the environment.

    Raises:
        ConfigurationError: an option that PBS would take apart or not heed.
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
        mem_per_node: int | None = None,
        gpus_per_node: int | None = None,
        ranks_per_node: int = 1,
        filesystems: str | None = None,
        place: str | None = None,
        cmd_timeout: int = 60,
        **options: Any,
    ) -> None:
        super().__init__(
            scheduler=scheduler or PBS(cmd_timeout),
            run_id=run_id,
            pool=pool,
            poll_seconds=poll_seconds,
            grace_seconds=grace_seconds,
            ended=ended,
            cmd_timeout=cmd_timeout,
            **options,
        )
        self.mem_per_node = mem_per_node
        self.gpus_per_node = gpus_per_node
        self.ranks_per_node = ranks_per_node
        self.filesystems = filesystems
        self.place = place or ("scatter" if self.nodes_per_block > 1 else None)
        for name in ("account", "queue", "select_options", "filesystems", "place"):
            _check_word(pool, name, getattr(self, name))
        if fault := unheeded_by_pbs(self.scheduler_options, {"-o", "-e", *self._asked()}):
            raise ConfigurationError(f"pool {pool}: {fault}")

    def _write_script(self, command: str, tasks_per_node: int, job_name: str) -> BatchScript:
        if self.script_dir is None:
            raise ConfigurationError(f"pool {self.pool}: there is no folder for batch scripts yet")
        base = Path(self.script_dir).resolve() / job_name
        script = BatchScript(
            path=base.with_name(f"{base.name}.pbs"),
            stdout=base.with_name(f"{base.name}.stdout"),
            stderr=base.with_name(f"{base.name}.stderr"),
        )
        launched = self.launcher(command, tasks_per_node, self.nodes_per_block, str(base.parent))
        asked = {"-o": script.stdout, "-e": script.stderr, **self._asked()}
        lines = [
            "#!/bin/bash",
            *(f"#PBS {name}{'' if name.endswith('=') else ' '}{value}" for name, value in asked.items()),
            *option_lines(self.scheduler_options),
            "",
            f"cd {shlex.quote(str(base.parent))}",  # PBS starts jobs in the home folder
            *self._variables(job_name),
            self.worker_init,
            launched,
            "",
        ]
        script.path.write_text("\n".join(lines))
        return script

    def _variables(self, job_name: str) -> list[str]:
        """Lines before the site's own, which come last and win."""
        lines = [f"export JOBNAME={shlex.quote(job_name)}"]  # launchers name their files by it
        lines.append(f"export PARSL_CORES={self.cpus_per_node}")
        if self.mem_per_node is not None:
            lines.append(f"export PARSL_MEMORY_GB={self.mem_per_node}")
        return lines

    def _asked(self) -> dict[str, str]:
        """What PBS is asked for."""
        asked = {
            "-N": self.pool[:_LONGEST_NAME],
            "-S": "/bin/bash",
            "-m": "n",
            "-r": "n",  # a lost block is replaced by another
            "-q": self.queue,
            "-A": self.account,
            "-l walltime=": self.walltime,
            "-l select=": self._select(),
            "-l place=": self.place,
            "-l filesystems=": self.filesystems,
        }
        return {name: value for name, value in asked.items() if value}

    def _select(self) -> str:
        asked = {
            "ncpus": self.cpus_per_node,
            "mpiprocs": self.ranks_per_node if self.ranks_per_node > 1 else None,
            "mem": f"{self.mem_per_node}gb" if self.mem_per_node else None,
            "ngpus": self.gpus_per_node,
        }
        own = self.select_options.strip(":")
        given = {word.partition("=")[0] for word in own.split(":")}  # PBS refuses a resource given twice
        ours = [f"{name}={value}" for name, value in asked.items() if value and name not in given]
        return ":".join(filter(None, (str(self.nodes_per_block), *ours, own)))


def _check_word(pool: str, name: str, value: str | None) -> None:
    if value and re.search(r"\s", value):
        raise ConfigurationError(
            f"pool {pool}: {name} is {value!r}, but PBS takes a blank for the end of it; "
            "give the name that the site's own tools show"
        )

"""A calculation by a calculator of ASE in a process and a directory of its own, and what it leaves of itself.

::

    labeler ─► program.run ─► ase_keeper ─► ase_run ─► sh launch ─► [launcher] program

``launch`` writes down with which status the program exited, which not all calculators of ASE tell.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hpcal.core.deadline import Deadline
from hpcal.core.errors import TaskFailure
from hpcal.core.launch import RankLauncher
from hpcal.labeling import ase_keeper, ase_run
from hpcal.labeling.ase_outcome import Finished
from hpcal.labeling.ase_recipes import Recipe
from hpcal.labeling.program import KEPT, TAIL, Call, run

TEMPORARY: Final = "t"
"""Directory for temporary files; a short name, as MPI libraries put sockets below it."""
_STATUSES: Final = "statuses"
_LAUNCH: Final = "launch"


@dataclass(frozen=True, kw_only=True)
class Job:
    """How to run calculations.

    Attributes:
        recipe: of the program.
        launcher: what starts the program's ranks, or None.
        python: interpreter of the runner.
        timeout_seconds: longest time of one, or None.
        memory_MB: limit of the data of each process, or None.
        files: to be found in its directory, by their names there.
        several_nodes: whether ranks may run on other nodes.
    """

    recipe: Recipe
    launcher: RankLauncher | None
    python: str
    timeout_seconds: float | None
    memory_MB: float | None  # noqa: N815
    files: Mapping[str, Path]
    several_nodes: bool


def finish(job: Job, folder: Path, request: Mapping[str, Any], name: str, deadline: Deadline) -> Finished:
    """Answers a request of the runner in an empty folder; nothing of it is left running.

    Args:
        request: as ``ase_run`` takes it, without command and environment.
        name: of the calculation in messages.

    Raises:
        TaskFailure: it cannot be started (``node``), or its time is up (``resource``).
    """
    _prepare(job, folder, request)
    keeper, runner = str(Path(ase_keeper.__file__)), str(Path(ase_run.__file__))
    call = Call(
        argv=(sys.executable, "-I", "-S", keeper, str(folder), str(os.getpid()), job.python, runner),
        timeout_seconds=job.timeout_seconds,
        memory_MB=job.memory_MB,
        several_nodes=job.several_nodes,
    )
    try:
        ended = run(call, folder, deadline)
    except TaskFailure as failure:
        text = _output(job.recipe, folder).strip()[-TAIL:]
        last = f"; its last output:\n{text}" if text else "; it wrote no output"
        raise TaskFailure(failure.failure_class, f"{name}: {failure}{last}") from failure
    finally:
        # The keeper does the same, unless it was killed itself.
        ase_keeper.end_all(folder)
    return Finished(
        name=name,
        answer=_answer(folder),
        statuses=_statuses(folder),
        signal=ended.signal,
        status=ended.status,
        output=_output(job.recipe, folder) if job.recipe.output else ended.output,
        log="\n".join(part for part in (ended.output, ended.errors, _texts(folder, "*.err")) if part),
        seconds=ended.seconds,
    )


def command_of(job: Job, folder: Path) -> str | None:
    """What the calculator is told to run; None where it runs nothing."""
    recipe = job.recipe
    if recipe.command is None:
        return None
    words = ["/bin/sh", str(folder / _LAUNCH), *([] if job.launcher is None else job.launcher.command)]
    return f"{shlex.join(words)} {recipe.command} {recipe.arguments}".rstrip()


def _prepare(job: Job, folder: Path, request: Mapping[str, Any]) -> None:
    """Directories, links to files, and what the runner is asked."""
    for name in (ase_run.WORK, TEMPORARY):
        (folder / name).mkdir()
    for name, path in job.files.items():
        link = folder / ase_run.WORK / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    statuses = shlex.quote(str(folder / _STATUSES))
    (folder / _LAUNCH).write_text(f'"$@"\ns=$?\necho "$s" >> {statuses}\nexit "$s"\n', encoding="utf-8")
    environment = {n: v.format(folder=folder / ase_run.WORK) for n, v in job.recipe.environment.items()}
    if not job.several_nodes:
        environment["TMPDIR"] = str(folder / TEMPORARY)
    asked = {**request, "command": command_of(job, folder), "environment": environment}
    (folder / ase_run.REQUEST).write_text(json.dumps(asked), encoding="utf-8")


def _answer(folder: Path) -> Mapping[str, Any]:
    try:
        found: Mapping[str, Any] = json.loads((folder / ase_run.RESULT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found


def _statuses(folder: Path) -> tuple[int, ...]:
    try:
        return tuple(int(line) for line in (folder / _STATUSES).read_text(encoding="utf-8").split())
    except FileNotFoundError:
        return ()


def _output(recipe: Recipe, folder: Path) -> str:
    """The program's output: the end of each file that the recipe names, by name."""
    if recipe.output is None:
        return _read(folder / "output")
    return _texts(folder, recipe.output)


def _texts(folder: Path, pattern: str) -> str:
    return "\n".join(_read(path) for path in sorted((folder / ase_run.WORK).glob(pattern)))


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - KEPT))
            return file.read().decode(errors="replace")
    except OSError:
        return ""

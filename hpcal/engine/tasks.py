"""Carrying out an assignment on a worker: inputs from a file, results to the spool, a report back."""

from __future__ import annotations

import shutil
import socket
import tempfile
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from hpcal.core.codec import unpack
from hpcal.core.deadline import Deadline, StopFile
from hpcal.core.errors import FailureClass, FormatError, InputError, TaskFailure, out_of_memory
from hpcal.engine.dispatch import Assignment, Report, here, now
from hpcal.engine.spool import SpoolWriter
from hpcal.engine.work.context import Work, WorkInterrupted
from hpcal.sites.block_end import seconds_left
from hpcal.sites.devices import pin
from hpcal.sites.probe import on_this_node

WORK: Final[Mapping[str, str]] = {
    "relax": "hpcal.engine.work.quantum:relax_seeds",
    "curvature": "hpcal.engine.work.quantum:curvature",
    "bootstrap": "hpcal.engine.work.quantum:bootstrap",
    "label": "hpcal.engine.work.quantum:label",
    "train": "hpcal.engine.work.learning:train",
    "evaluate": "hpcal.engine.work.learning:evaluate",
    "rescore": "hpcal.engine.work.learning:rescore",
    "select": "hpcal.engine.work.learning:select",
    "sample": "hpcal.engine.work.sampling:sample",
}
"""Kinds of tasks. Imported when first needed: a labelling worker never loads torch."""

STAGES: Final[Mapping[str, str]] = {
    "relax": "label",
    "curvature": "label",
    "bootstrap": "label",
    "label": "label",
    "train": "train",
    "evaluate": "score",
    "rescore": "score",
    "select": "score",
    "sample": "sample",
}
"""The pool that a kind of task is made for; a site may name a larger one for what does not fit."""

LATE: Final = 0.5
"""Share of a batch job: work that had less, and did not get done, is tried again in another one."""

END: Final = "end"
"""Key of the last record of an attempt that came to its end."""


def run_attempt(assignment: Assignment) -> Report:
    """Carries out one attempt; never raises, as the report says what went wrong."""
    start = now()

    def report(message: str = "", **how: object) -> Report:
        ended = {"start": start, "end": now(), **here(), **how}
        return Report(attempt_id=assignment.attempt_id, message=message, **ended)  # type: ignore[arg-type]

    assignment = replace(assignment, scratch=on_this_node(assignment.scratch))
    try:
        pin()
        if assignment.temporary is not None:
            _keep_temporary_files_in(Path(on_this_node(assignment.temporary)))
        _carry_out(assignment)
        return report()
    except WorkInterrupted:
        return report("stopped as asked", interrupted=True)
    except TaskFailure as failure:
        return report(str(failure), failure=failure.failure_class)
    except FormatError as error:
        return report(str(error), failure=FailureClass.INPUT, damaged=True)
    except InputError as error:
        return report(str(error), failure=FailureClass.INPUT)
    except OSError as error:
        return report(f"{error}; the disk or file system of the node failed", failure=FailureClass.NODE)
    except Exception as error:  # a fault of hpcal or of a plugin must reach the store, whatever it is
        if out_of_memory(error):
            return report("out of memory; give the pool's workers more of it", failure=FailureClass.RESOURCE)
        text = traceback.format_exc()
        _keep(Path(assignment.log), text)
        return report(text, failure=FailureClass.BUG)
    finally:
        shutil.rmtree(assignment.scratch, ignore_errors=True)


def _keep_temporary_files_in(folder: Path) -> None:
    """Has all of this worker's temporary files go to a folder, apart from those of other hosts."""
    own = folder / socket.gethostname()
    own.mkdir(parents=True, exist_ok=True)
    # Not by TMPDIR: the folder itself may be given as $TMPDIR.
    tempfile.tempdir = str(own)


def _keep(log: Path, text: str) -> None:
    """Adds a traceback to what libraries have printed; it is in the report too."""
    with suppress(OSError), log.open("a", encoding="utf-8") as out:
        out.write(text)


def _carry_out(assignment: Assignment) -> None:
    scratch = Path(assignment.scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    inputs = _inputs(Path(assignment.payload))
    stop = StopFile(Path(assignment.stop_file))
    deadline = Deadline.after(_seconds(assignment), steps=assignment.steps, stop=stop)
    if stop():
        raise WorkInterrupted
    spool = Path(assignment.spool)
    with SpoolWriter(spool, attempt=assignment.attempt_id, epoch=assignment.epoch) as writer:
        _function(assignment.kind, assignment.threads)(
            Work(
                inputs=inputs,
                spool=writer,
                deadline=deadline,
                log=Path(assignment.log),
                scratch=scratch,
                threads=assignment.threads,
                memory_MB=assignment.memory_MB,
                virtual=assignment.virtual,
                late=_late(assignment, deadline),
            )
        )
        writer.append({END: True})


def _seconds(assignment: Assignment) -> float | None:
    """Wall budget: what the task is given, or what is left of its batch job."""
    limits = (assignment.seconds, seconds_left(assignment.margin))
    return min((limit for limit in limits if limit is not None), default=None)


def _late(assignment: Assignment, deadline: Deadline) -> bool:
    """Whether it begins so late in its batch job that being out of time says nothing of the work."""
    left = deadline.remaining()
    return assignment.room is not None and left is not None and left < LATE * assignment.room


def _inputs(payload: Path) -> Any:
    """The frozen inputs; the next attempt is given a fresh file, so that a bad one is the node's fault."""
    try:
        return unpack(payload.read_bytes())
    except (OSError, FormatError) as error:
        raise TaskFailure(FailureClass.NODE, f"the inputs {payload} cannot be read: {error}") from error


def _function(kind: str, threads: int) -> Callable[[Work], None]:
    module, name = WORK[kind].split(":")
    if not module.endswith("quantum"):
        import torch

        torch.set_num_threads(threads)
    function: Callable[[Work], None] = getattr(import_module(module), name)
    return function

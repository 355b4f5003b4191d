"""One rank of a data-parallel training; see :mod:`hpcal.potentials.parallel`.

::

    LAUNCHER python -P -m hpcal.potentials.parallel_worker FOLDER

A rank that comes to its end, or fails as all others do (deadline, divergence), exits with 0, so that
a launcher does not end the first rank while it still writes. One that fails alone exits with 1.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from socket import gethostname
from typing import Any, Final

import torch
import torch.distributed as dist

from hpcal.core.deadline import Deadline
from hpcal.core.errors import FailureClass, FormatError, InputError, TaskFailure, out_of_memory
from hpcal.potentials import files
from hpcal.potentials.ani import ANISettings
from hpcal.potentials.parallel import FAULT, ORDER, STOP, Run, pid_namespace, read_run
from hpcal.potentials.ranks import Group
from hpcal.potentials.rendezvous import Meeting, Place, meet, place
from hpcal.potentials.training import ANITrainer

_MEET_S: Final = 300.0
"""Seconds for all ranks to start: reading Python and torch from a shared file system takes its time."""
_WAIT_S: Final = 600.0
"""Seconds that a rank waits for another one between two steps, or while descriptors are computed."""


def main(arguments: list[str]) -> int:
    """Takes part in the training of a folder; the exit status."""
    folder = Path(arguments[0])
    own = None
    try:
        run = _handed_over(folder)
        own = place(os.environ, run.ranks)
        _take_part(folder, run, own)
    except Exception as error:  # whatever it is, the worker has to say it
        with suppress(OSError):
            _leave_word(folder, own, error)
        return 0 if isinstance(error, TaskFailure) else 1
    return 0


def _handed_over(folder: Path) -> Run:
    """What the worker has just written; where it cannot be read, this node's file system is at fault."""
    try:
        return read_run(folder)
    except FormatError as error:
        raise OSError(str(error)) from error


def _take_part(folder: Path, run: Run, own: Place) -> None:
    meeting = meet(folder, own, _MEET_S)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(meeting.cores)
    _join(own, meeting)
    order = run.order
    ranks = Group(meeting.local)
    trainer = ANITrainer(ANISettings.model_validate(order.settings), order.elements, order.seed, ranks)
    deadline = Deadline(steps=run.steps)
    if own.rank == 0:
        left = None if run.until is None else run.until - time.time()
        deadline = Deadline.after(left, steps=run.steps, stop=_Asked(folder, run))
    trainer.train(order, run.dataset, deadline, run.checkpoint)


def _join(own: Place, meeting: Meeting) -> None:
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(
        backend,
        store=meeting.store,
        rank=own.rank,
        world_size=own.size,
        timeout=timedelta(seconds=_WAIT_S),
    )


@dataclass
class _Asked:
    """Whether the worker asked for a stop; looks twice a second.

    Raises, so that nothing is written any more, where the worker is gone or has begun another run.
    """

    folder: Path
    run: Run
    _next: float = 0.0

    def __post_init__(self) -> None:
        # Only on the same host, and only where its processes are seen at all, as not from a container.
        self._watch = (self.run.host, self.run.namespace) == (gethostname(), pid_namespace())

    def __call__(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + 0.5
        if not (self.folder / ORDER).exists() or (self._watch and not _runs(self.run.pid)):
            raise TaskFailure(FailureClass.NODE, "the worker that started this training has ended")
        return (self.folder / STOP).exists()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


# ── Faults ───────────────────────────────────────────────────────────────────────────────────


def _leave_word(folder: Path, own: Place | None, error: Exception) -> None:
    rank = -1 if own is None else own.rank
    kind, message = _said(error, rank)
    word: dict[str, Any] = {
        "rank": rank,
        "class": kind,
        "message": message,
        "damaged": isinstance(error, FormatError),
        "lost": _of_another(error),
        "trace": "".join(traceback.format_exception(error)).strip(),
    }
    if folder.exists():
        files.write_bytes(folder / f"{FAULT}-{rank}", json.dumps(word).encode())


def _said(error: Exception, rank: int) -> tuple[FailureClass, str]:
    """The class of a failure and one sentence."""
    where = f"rank {rank} on {gethostname()}"
    match error:
        case TaskFailure():
            return error.failure_class, str(error)
        case InputError():
            return FailureClass.INPUT, str(error)
        case _ if out_of_memory(error):
            text = f"{where} is out of memory; give the pool more nodes or lower jacobian_memory_GB"
            return FailureClass.RESOURCE, text
        case OSError():
            return FailureClass.NODE, f"{where} failed: {error}; the disk or file system of the node failed"
    first = str(error).split("\n", maxsplit=1)[0]
    return FailureClass.BUG, f"{where} failed: {type(error).__name__}: {first}"


def _of_another(error: Exception) -> bool:
    """Whether a rank fails only because another one is gone."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Connections to ranks that have left would be taken down in an order that nobody agreed on.
    os._exit(status)

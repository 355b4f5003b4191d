"""One training on several ranks: starts them, hands over the data, and says how it went.

The ranks are children of a worker, started by its pool's launcher (``srun``, ``mpirun``) over the
nodes of its block; what each does is in :mod:`hpcal.potentials.parallel_worker`. All they exchange
with the worker is files in a folder within the training's own, which all nodes have to see:

==============  =========================================================================
``order``       what to train, until when (the worker writes it)
``data.h5``     the structures and labels (the worker)
``stop``        is there once the ranks have to stop (the worker)
``rank-K``      host of a rank, and ``meeting``, where they meet (:mod:`~hpcal.potentials.rendezvous`)
``fault-K``     why a rank ended before its time
``log``         what the launcher and the ranks print
==============  =========================================================================

A run's folder goes when the run ends or another one begins, and ranks whose folder is gone end
without writing anything.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from socket import gethostname
from typing import Any, Final

from hpcal.core.dataset import PER_ATOM, PER_STRUCTURE, Dataset
from hpcal.core.deadline import Deadline
from hpcal.core.errors import FailureClass, FormatError, InputError, TaskFailure
from hpcal.core.launch import RankLauncher, child_environment
from hpcal.core.parent import ends_with_this_process
from hpcal.core.protocols import MemberResult, MemberSpec
from hpcal.exchange.hdf5 import read_shard, write_shard
from hpcal.potentials import files, fitting
from hpcal.potentials.rendezvous import OF_A_RANK

ORDER, DATA, STOP, LOG, FAULT = "order", "data.h5", "stop", "log", "fault"
WORKER: Final = "hpcal.potentials.parallel_worker"
GRACE_S: Final = 20.0
"""Seconds that ranks have to write their checkpoint once they were told to stop."""
_AFTER_FAULT_S: Final = 10.0
"""Seconds after which ranks that outlive one of them are ended."""
_LOOK_EVERY_S: Final = 0.1
_FOLDER: Final = "ranks-"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be trained.

    Attributes:
        settings: of the kind, as JSON values.
        elements, seed: as the trainer was made with.
        fingerprint: names the training.
        every: seconds between checkpoints.
    """

    settings: Mapping[str, Any]
    elements: tuple[int, ...]
    seed: int
    members: tuple[MemberSpec, ...]
    fingerprint: str
    every: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a rank is given.

    Attributes:
        checkpoint: folder of the training.
        ranks: how many there should be.
        until: when to stop, in seconds since the epoch, or None. Clocks of nodes agree to well
            below the margin of a deadline; the worker asks for the stop by its own, too.
        steps: budget of steps, or None.
        host, pid, namespace: the worker, and where its process is seen (:func:`pid_namespace`).
    """

    order: Order
    dataset: Dataset
    checkpoint: Path
    ranks: int
    until: float | None
    steps: int | None
    host: str
    pid: int
    namespace: str


def train(
    launcher: RankLauncher, order: Order, dataset: Dataset, deadline: Deadline, checkpoint: Path
) -> list[MemberResult]:
    """Trains on the ranks of a launcher.

    Raises:
        FormatError: a file that the ranks go on from is damaged.
        InputError, TaskFailure: what else the ranks ended with. A lost rank is of class node; the
            next call goes on from the last checkpoint.
    """
    checkpoint.mkdir(parents=True, exist_ok=True)
    for earlier in checkpoint.glob(f"{_FOLDER}*"):
        shutil.rmtree(earlier, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER, dir=checkpoint)).resolve()
    try:
        _hand_over(folder, launcher, order, dataset, deadline)
        ending = _run(launcher.argv([sys.executable, "-P", "-m", WORKER, str(folder)]), folder, deadline)
        results = fitting.finished(checkpoint, order.fingerprint)
        if results is None:
            raise _failure(folder, launcher, ending)
        return results
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _hand_over(
    folder: Path, launcher: RankLauncher, order: Order, dataset: Dataset, deadline: Deadline
) -> None:
    needed = {name: getattr(dataset, name) for name in (*PER_STRUCTURE, *PER_ATOM)}
    digest = write_shard(folder / DATA, Dataset(offsets=dataset.offsets, **needed))
    remaining = deadline.remaining()
    files.write(
        folder / ORDER,
        {
            "kind": ORDER,
            "settings": order.settings,
            "elements": list(order.elements),
            "seed": order.seed,
            "members": [[m.index, m.seed, m.start_from] for m in order.members],
            "fingerprint": order.fingerprint,
            "every": order.every,
            "data": digest,
            "ranks": launcher.ranks,
            "until": None if remaining is None else time.time() + remaining,
            "steps": deadline.steps,
            "host": gethostname(),
            "pid": os.getpid(),
            "namespace": pid_namespace(),
        },
    )


def pid_namespace() -> str:
    """Name of the set of processes that this one sees; a container has one of its own (Linux)."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def read_run(folder: Path) -> Run:
    """What the worker handed over.

    Raises:
        FormatError: a file is missing, or not as it was written.
    """
    content = files.read(folder / ORDER, ORDER)
    order = Order(
        settings=content["settings"],
        elements=tuple(content["elements"]),
        seed=content["seed"],
        members=tuple(MemberSpec(index=i, seed=s, start_from=f) for i, s, f in content["members"]),
        fingerprint=content["fingerprint"],
        every=content["every"],
    )
    same = {name: content[name] for name in ("ranks", "until", "steps", "host", "pid", "namespace")}
    data = read_shard(folder / DATA, content["data"])
    return Run(order=order, dataset=data, checkpoint=folder.parent, **same)


# ── The ranks, while they run ────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class _Ending:
    """How the launcher ended: its exit status (negative for a signal), and why it was ended if it was."""

    status: int
    overran: bool = False


def _run(argv: Sequence[str], folder: Path, deadline: Deadline) -> _Ending:
    """Starts the ranks and waits for their end, which comes soon after the deadline at the latest."""
    with (folder / LOG).open("ab") as log:
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
                # A group of their own, which can be ended as one.
                start_new_session=True,
                # Ranks on other hosts do not see a worker that was killed; their launcher ends them.
                preexec_fn=ends_with_this_process(signal.SIGTERM),  # noqa: PLW1509
            )
        except OSError as error:
            raise TaskFailure(
                FailureClass.NODE,
                f"the launcher {argv[0]} cannot be started here: {error}; is its module loaded in the "
                "pool's worker_init?",
            ) from error
    try:
        return _watched(process, folder, replace(deadline, steps=None))
    finally:
        _end(process)


def _watched(process: subprocess.Popen[bytes], folder: Path, deadline: Deadline) -> _Ending:
    asked: float | None = None
    faulty: float | None = None
    while True:
        with suppress(subprocess.TimeoutExpired):
            return _Ending(status=process.wait(_LOOK_EVERY_S))
        now = time.monotonic()
        if asked is None and deadline.expired():
            (folder / STOP).touch()
            asked = now
        if faulty is None and any(folder.glob(f"{FAULT}-*")):
            faulty = now
        if asked is not None and now - asked > GRACE_S:
            return _Ending(status=_end(process), overran=True)
        # A launcher may leave the other ranks running, and these may wait for the one that is gone.
        if faulty is not None and now - faulty > _AFTER_FAULT_S:
            return _Ending(status=_end(process))


def _end(process: subprocess.Popen[bytes]) -> int:
    """Ends the launcher, which ends its ranks on other nodes, and all it started here."""
    with suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(5.0)
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def _environment() -> dict[str, str]:
    """The launcher's: without the worker's own rank; srun, too, ends all ranks when one fails."""
    own = {name: value for name, value in child_environment().items() if name not in OF_A_RANK}
    return {**own, "SLURM_KILL_BAD_EXIT": "1"}


# ── Why it failed ────────────────────────────────────────────────────────────────────────────


def _failure(folder: Path, launcher: RankLauncher, ending: _Ending) -> TaskFailure | InputError:
    """What to raise for a run without results."""
    faults = sorted(_faults(folder), key=lambda fault: (fault["lost"], fault["rank"]))
    if faults and not faults[0]["lost"]:
        first = faults[0]
        message = first["message"]
        if first["class"] == FailureClass.INPUT:
            return FormatError(message) if first["damaged"] else InputError(message)
        # The traceback of a bug is kept, as for any other task; its last line says what it was.
        text = f"{first['trace']}\n{message}" if first["class"] == FailureClass.BUG else message
        return TaskFailure(FailureClass(first["class"]), text)
    if ending.overran:
        return TaskFailure(
            FailureClass.RESOURCE,
            f"the ranks did not stop within {GRACE_S:.0f} s of being asked to and were ended; the same call "
            "goes on from their last checkpoint",
        )
    how = f"signal {-ending.status}" if ending.status < 0 else f"exit status {ending.status}"
    return TaskFailure(
        FailureClass.NODE,
        f"a rank of the {launcher.ranks} was lost in training ({launcher.command[0]} ended with {how}"
        f"{_last_line(folder / LOG)}): likely its node failed, or it was killed for its memory; the same "
        "call goes on from the last checkpoint",
    )


def _faults(folder: Path) -> list[dict[str, Any]]:
    found = []
    for path in folder.glob(f"{FAULT}-*"):
        with suppress(OSError, ValueError):
            found.append(json.loads(path.read_text(encoding="utf-8")))
    return found


def _last_line(log: Path) -> str:
    with suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        said = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"; its last word: {said[:200]}" if said else ""
    return ""

"""The child process in which a labeler runs: ``python -m hpcal.labeling.child PARENT_PID``.

It speaks over what were its standard input and output. Both are moved away before any library is
loaded, and descriptor 1 leads to the log, so that what a library prints cannot corrupt the
records. It imports nothing but the one labeler that it is asked for.

A failure that is the machine's (memory, disk) ends the child, and its reply says so by ``final``:
HDF5 crashes on files that it could not write, when they are closed, and PySCF's temporary files
lose writes in destructors, where Python only prints the error.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import signal
import sys
from typing import Any, Final, NoReturn

import numpy as np

from hpcal.core.codec import unpack
from hpcal.core.deadline import Deadline
from hpcal.core.errors import FailureClass, TaskFailure
from hpcal.core.plugins import Group, find
from hpcal.core.protocols import Labeler
from hpcal.labeling.audits import make_audit, offered_by
from hpcal.labeling.failures import NODE_ERRORS, as_failure
from hpcal.labeling.wire import LENGTH, failure_record, send, settings_of

PR_SET_PDEATHSIG: Final = 1
MEGABYTE: Final = 1_000_000
SHARE_OF_LIMIT: Final = 0.8
"""Part of a memory limit that a labeler is told of as its ``max_memory_MB``; PySCF takes that as advice."""
RESERVED_MB: Final = 3500
"""By thread. PySCF reserves 3.2 GB of addresses for exact exchange, libraries some; most stays untouched."""
_HDF5_ERRNO: Final = re.compile(r"\berrno = (\d+)")
_NO_THREAD: Final = "can't start new thread"
"""What Python says where there is no memory for a stack, or where the user has too many processes."""
_WARM: Final = 256
"""Rows of a matrix that every thread has a part of."""


def main(parent: int) -> None:
    """Serves labels until the parent closes the pipe."""
    requests, replies = _take_pipes()
    die_with(parent)
    first = _receive(requests)
    if first is None:
        return
    try:
        labeler = _build(first["labeler"], first["settings"], first["memory_MB"])
        take_buffers()
        limit_memory(first["memory_MB"])
        answer: dict[str, Any] = {
            "result": {
                "level": labeler.level,
                "periodic": labeler.periodic,
                "audits": list(offered_by(labeler)),
            }
        }
    except Exception as error:
        send(replies, failure_record(error))
        return
    send(replies, answer)
    sys.unraisablehook = lambda lost: _note_lost(replies, lost)
    while (request := _receive(requests)) is not None:
        try:
            answer = {"result": _answer(labeler, request)}
        except Exception as error:
            failure = machine_failure(error)
            if failure is not None:
                _leave(replies, failure)
            answer = failure_record(error)
        send(replies, answer)


def machine_failure(error: BaseException | None) -> TaskFailure | None:
    """The failure of an exception that speaks of memory or of the disk, or None.

    HDF5 names the system's error in its text, whatever exception h5py makes of it.
    """
    if isinstance(error, MemoryError):
        return as_failure(error)
    if isinstance(error, RuntimeError) and str(error).startswith(_NO_THREAD):
        return TaskFailure(FailureClass.RESOURCE, f"out of memory, or of processes: {error}; give it more")
    if not isinstance(error, OSError | RuntimeError) or isinstance(error, TaskFailure):
        return None
    told = _HDF5_ERRNO.search(str(error))
    number = int(told[1]) if told else getattr(error, "errno", None)
    if number not in NODE_ERRORS:
        return None
    return TaskFailure(FailureClass.NODE, f"the machine failed: {error}")


def _note_lost(replies: int, lost: sys.UnraisableHookArgs) -> None:
    """An exception that Python cannot raise; where a write was lost, no result can be trusted."""
    failure = machine_failure(lost.exc_value)
    if failure is None:
        sys.__unraisablehook__(lost)
    else:
        _leave(replies, failure)


def _leave(replies: int, failure: TaskFailure) -> NoReturn:
    """Ends this process with a reply, without a destructor of any library."""
    send(replies, {**failure_record(failure), "final": True})
    os._exit(1)


def _answer(labeler: Labeler, request: dict[str, Any]) -> Any:
    if "elements" in request:
        return list(labeler.missing_elements(request["elements"]))
    if "audit" in request:
        deadline = Deadline.after(request["seconds"])
        return make_audit(request["audit"], labeler, request["structure"], request["label"], deadline)
    return labeler.label(request["structure"], Deadline.after(request["seconds"]))


def _build(name: str, values: dict[str, Any], memory: float | None) -> Labeler:
    kind = find(Group.LABELERS, name)
    settings = dict(values)
    if memory is not None and "max_memory_MB" in kind.Settings.model_fields:
        most = max(1, int(SHARE_OF_LIMIT * memory))
        settings["max_memory_MB"] = min(settings.get("max_memory_MB") or most, most)
    labeler: Labeler = kind(settings_of(kind, name, settings))
    return labeler


def _take_pipes() -> tuple[int, int]:
    """Descriptors for requests and replies; 0 reads nothing, 1 goes where 2 goes."""
    requests, replies = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, replies


def _receive(fd: int) -> Any:
    """The next record, or None at the end of the pipe."""
    head = _read(fd, LENGTH.size)
    if head is None:
        return None
    body = _read(fd, LENGTH.unpack(head)[0])
    return None if body is None else unpack(body)


def _read(fd: int, size: int) -> bytes | None:
    parts: list[bytes] = []
    while size > 0:
        part = os.read(fd, min(size, 1 << 20))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def die_with(parent: int) -> None:
    """Has the kernel kill this process when its parent ends, however that ends (Linux).

    The signal comes when the *thread* that started the child ends. Elsewhere the child notices
    at the end of its calculation, when the pipe is closed.
    """
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def take_buffers() -> None:
    """Has each library of linear algebra take the buffer of its first call.

    OpenBLAS tries for ever, or exits, where it is refused one, so this comes before any limit.
    """
    # Full: SciPy looks for shapes that need no library.
    matrix = np.eye(_WARM) + 1 / _WARM
    np.linalg.solve(matrix, matrix @ matrix)
    scipy, pyscf = sys.modules.get("scipy.linalg"), sys.modules.get("pyscf.lib")
    if scipy is not None:
        scipy.solve(matrix, matrix)
    if pyscf is not None:
        pyscf.dot(matrix, matrix)


def limit_memory(megabytes: float | None) -> None:
    """Limits the data segment; private anonymous mappings count, mapped libraries do not.

    What PySCF only reserves comes on top of it: the parent looks at what is in use.
    """
    if megabytes is not None:
        threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
        reserved = RESERVED_MB * threads if "pyscf" in sys.modules else 0
        limit = int((megabytes + reserved) * MEGABYTE)
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


if __name__ == "__main__":
    main(int(sys.argv[1]))

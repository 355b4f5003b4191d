"""The child process in which a labeler runs: ``python -m hpcal.labeling.child PARENT_PID``.

It speaks over what were its standard input and output. Both are moved away before any library is
loaded, and descriptor 1 leads to the log, so that what a library prints cannot corrupt the
records. It imports nothing but the one labeler that it is asked for.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from typing import Any, Final

from hpcal.core.codec import unpack
from hpcal.core.deadline import Deadline
from hpcal.core.plugins import Group, find
from hpcal.core.protocols import Labeler
from hpcal.labeling.audits import make_audit, offered_by
from hpcal.labeling.wire import LENGTH, failure_record, send, settings_of

PR_SET_PDEATHSIG: Final = 1
MEGABYTE: Final = 1_000_000


def main(parent: int) -> None:
    """Serves labels until the parent closes the pipe."""
    requests, replies = _take_pipes()
    die_with(parent)
    first = _receive(requests)
    if first is None:
        return
    try:
        labeler = _build(first["labeler"], first["settings"])
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
    while (request := _receive(requests)) is not None:
        try:
            answer = {"result": _answer(labeler, request)}
        except Exception as error:
            answer = failure_record(error)
        send(replies, answer)


def _answer(labeler: Labeler, request: dict[str, Any]) -> Any:
    if "elements" in request:
        return list(labeler.missing_elements(request["elements"]))
    if "audit" in request:
        deadline = Deadline.after(request["seconds"])
        return make_audit(request["audit"], labeler, request["structure"], request["label"], deadline)
    return labeler.label(request["structure"], Deadline.after(request["seconds"]))


def _build(name: str, settings: dict[str, Any]) -> Labeler:
    kind = find(Group.LABELERS, name)
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


def limit_memory(megabytes: float | None) -> None:
    """Limits the data segment; private anonymous mappings count, mapped libraries do not."""
    if megabytes is not None:
        limit = int(megabytes * MEGABYTE)
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


if __name__ == "__main__":
    main(int(sys.argv[1]))

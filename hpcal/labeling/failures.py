"""Exceptions of labelers as failures with a class, and the check of the time that is left."""

from __future__ import annotations

import errno
import signal
import traceback
from typing import Final

from hpcal.core.deadline import Deadline
from hpcal.core.errors import FailureClass, HpcalError, InputError, TaskFailure

NODE_ERRORS: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE, errno.ENOTCONN}
)
"""Faults of the machine (disk full, quota, broken file system), not of the calculation."""
_SIGNALS: Final[dict[int, tuple[FailureClass, str]]] = {
    signal.SIGKILL: (FailureClass.RESOURCE, "most likely out of memory; give the pool more"),
    signal.SIGXCPU: (FailureClass.RESOURCE, "its limit of processor time was reached"),
    signal.SIGSEGV: (FailureClass.PHYSICS, "it crashed on this structure"),
    signal.SIGABRT: (FailureClass.PHYSICS, "it gave up on this structure"),
    signal.SIGFPE: (FailureClass.PHYSICS, "it failed in its arithmetic on this structure"),
}


def killed_by(number: int) -> tuple[FailureClass, str]:
    """The class of an ending by a signal, and its likely cause."""
    return _SIGNALS.get(number, (FailureClass.NODE, "it was ended from outside"))


def as_failure(error: BaseException) -> TaskFailure:
    """The failure that an exception inside a labeler stands for.

    A :class:`TaskFailure` keeps its class; other errors of the user's input are ``input``, lack of
    memory is ``resource``, a broken or full file system is ``node``. Anything else is a ``bug``,
    and its message is the traceback.
    """
    if isinstance(error, TaskFailure):
        return error
    if isinstance(error, InputError):
        return TaskFailure(FailureClass.INPUT, str(error))
    if isinstance(error, HpcalError):
        return TaskFailure(FailureClass.BUG, str(error))
    if isinstance(error, MemoryError):
        return TaskFailure(
            FailureClass.RESOURCE, f"out of memory: {str(error) or 'an allocation was refused'}; give it more"
        )
    if isinstance(error, OSError) and error.errno in NODE_ERRORS:
        return TaskFailure(FailureClass.NODE, f"the machine failed: {error}")
    return TaskFailure(FailureClass.BUG, "".join(traceback.format_exception(error)).rstrip())


def check_time(deadline: Deadline) -> None:
    """Ends a calculation whose time is up.

    Raises:
        TaskFailure: class ``resource``.
    """
    if deadline.remaining() == 0.0:
        raise TaskFailure(
            FailureClass.RESOURCE,
            "the time for this label is up; give the pool a longer walltime, or use a cheaper method",
        )

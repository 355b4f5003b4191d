"""Programs that end with the process that started them, however that ends (Linux)."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None, use_errno=True) if sys.platform.startswith("linux") else None


def ends_with_this_process(number: signal.Signals) -> Callable[[], None]:
    """What a new process does before it becomes a program: the ``preexec_fn`` of :mod:`subprocess`.

    It asks the kernel for a signal when the thread that started it goes away, and so also when the
    process does. Elsewhere than on Linux it does nothing.
    """
    parent = os.getpid()

    def prepare() -> None:
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, number)
            # The parent may have ended before the kernel was asked.
            if os.getppid() != parent:
                os._exit(1)

    return prepare

"""Starts Parsl's worker manager on a node of a batch job, so that it stops taking tasks in time.

Parsl counts from the manager's own start for how long it takes tasks; a batch job ends at a moment.
Between the job's shell and the manager an environment is unpacked or an image fetched, which may take
minutes. So this is given the moment, and tells the manager how far away it is.

Its text is copied to where the nodes see it and run there, by an interpreter that need not have this
hpcal: it needs the standard library and Parsl only.
"""

from __future__ import annotations

import importlib
import runpy
import sys
import time
from typing import Final

MANAGER: Final = "parsl.executors.high_throughput.process_worker_pool"
PERIOD: Final = "--drain_period="


def counted(words: list[str], now: float) -> list[str]:
    """The manager's options, with seconds from now in place of a moment, in s since the epoch.

    At least one second, as Parsl takes none for never.
    """
    return [_counted(word, now) for word in words]


def _counted(word: str, now: float) -> str:
    if not word.startswith(PERIOD):
        return word
    return f"{PERIOD}{max(1, int(float(word.removeprefix(PERIOD)) - now))}"


if __name__ == "__main__":
    importlib.import_module(MANAGER.rpartition(".")[0])  # which takes time as well
    sys.argv[1:] = counted(sys.argv[1:], time.time())
    # In place of this module, as its workers load their program by the name of the main one.
    runpy.run_module(MANAGER, run_name="__main__", alter_sys=True)

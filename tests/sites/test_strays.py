"""Strays of a run are ended, those of another are not."""

from __future__ import annotations

import os
import subprocess
import sys

from hpcal.sites.worker_init import RUN_VARIABLE
from hpcal.sites.strays import end_strays, strays

SLEEP = "import time; print('up', flush=True); time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP


def start(code: str, run_id: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, RUN_VARIABLE: run_id}, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.stdout.close()
    return process


def test_strays_of_one_run_are_ended() -> None:
    mine, other = f"mine-{os.getpid()}", f"other-{os.getpid()}"
    processes = [start(SLEEP, mine), start(STUBBORN, mine), start(SLEEP, other)]
    try:
        assert {p.pid for p in strays(mine)} == {p.pid for p in processes[:2]}
        assert end_strays(mine) == 2
        assert strays(mine) == []
        assert end_strays(mine) == 0
        assert processes[2].poll() is None
    finally:
        for process in processes:
            process.kill()
            process.wait()

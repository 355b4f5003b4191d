"""``hpcal --help`` answers in less than 0.3 s."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

LIMIT_S = 0.3


@pytest.mark.benchmark
@pytest.mark.parametrize("args", [["--help"], ["run", "--help"]])
def test_help_is_instant(args):
    command = Path(sys.executable).with_name("hpcal")
    start = [str(command)] if command.exists() else [sys.executable, "-m", "hpcal.cli.main"]
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        subprocess.run([*start, *args], capture_output=True, check=True)
        times.append(time.perf_counter() - begin)
    best = min(times)
    print(f"hpcal {' '.join(args)}: {1000 * best:.0f} ms (best of {len(times)})")
    assert best < LIMIT_S

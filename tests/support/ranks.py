"""A launcher for tests, in the place of ``mpirun``: starts ranks on this host and ends all when one fails.

::

    python tests/support/ranks.py -n 2 [--keep] [--pids FILE] [--names slurm] [--break K] PROGRAM …

``--keep`` leaves the others running when one fails, as some launchers do; ``--pids`` notes the process
ids; ``--names`` says whose variables name the ranks; ``--break K`` has rank K raise in its third step.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

NAMES = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "openmpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    "mpich": ("PMI_RANK", "PMI_SIZE", None),
    "slurm": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    "none": (None, None, None),
}
BROKEN = """
import itertools, runpy, sys
from hpcal.potentials import training
whole, calls = training.ANITrainer._gradients, itertools.count()
def gradients(*arguments):
    if next(calls) == 2:
        raise ValueError("a term that cannot be")
    return whole(*arguments)
training.ANITrainer._gradients = gradients
runpy.run_module("hpcal.potentials.parallel_worker", run_name="__main__")
"""


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("-n", type=int, required=True)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--pids", type=Path)
    parser.add_argument("--names", default="torchrun", choices=NAMES)
    parser.add_argument("--break", dest="broken", type=int)
    parser.add_argument("program", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    ranks = [start(k, given) for k in range(given.n)]
    if given.pids:
        scratch = given.pids.with_suffix(".part")
        scratch.write_text(json.dumps([rank.pid for rank in ranks]))
        scratch.replace(given.pids)
    while any(rank.poll() is None for rank in ranks):
        if not given.keep and any(rank.poll() for rank in ranks):
            for rank in ranks:
                rank.kill()
        time.sleep(0.02)
    return max((abs(rank.returncode) for rank in ranks), default=0)


def start(k: int, given: argparse.Namespace) -> subprocess.Popen[bytes]:
    values = (k, given.n, k)
    own = {name: str(value) for name, value in zip(NAMES[given.names], values, strict=True) if name}
    program = given.program
    if k == given.broken:
        program = [sys.executable, "-c", BROKEN, program[-1]]
    return subprocess.Popen(program, env={**os.environ, **own})


if __name__ == "__main__":
    sys.exit(main())

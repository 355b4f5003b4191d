"""Simulated histories: whole campaigns on virtual hosts under seeded faults.

``python -m hpcal.engine.simulate --seed 1234 --verbose`` plays one history and prints its steps;
``--count 100`` plays that many, beginning with the seed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from hpcal.engine.simulation.history import run_history
from hpcal.engine.simulation.outcome import Outcome
from hpcal.engine.simulation.violation import Violation

MEMORY = Path("/dev/shm")
"""A folder in memory, where there is one: what survives the machine is no part of a history."""


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for histories, in memory where that is possible."""
    usable = MEMORY.is_dir() and os.access(MEMORY, os.W_OK)
    return tempfile.TemporaryDirectory(prefix="hpcal-histories-", dir=MEMORY if usable else None)


def main(arguments: list[str] | None = None) -> int:
    """Plays histories; 1 if one of them shows a fault."""
    parser = argparse.ArgumentParser(prog="python -m hpcal.engine.simulate", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="seed of the first history")
    parser.add_argument("--count", type=int, default=1, help="how many, of consecutive seeds")
    parser.add_argument("--verbose", action="store_true", help="print the steps of each")
    options = parser.parse_args(arguments)
    failures = 0
    with scratch() as folder:
        for seed in range(options.seed, options.seed + options.count):
            failures += not _play(seed, Path(folder), verbose=options.verbose)
    return 1 if failures else 0


def _play(seed: int, folder: Path, *, verbose: bool) -> bool:
    outcome = Outcome(seed=seed)
    try:
        run_history(seed, folder, folder / "kinds", outcome)
    except Violation as violation:
        if verbose:
            print(*outcome.steps, sep="\n")
        print(f"history {seed}: {violation}", file=sys.stderr)
        return False
    if verbose:
        print(*outcome.steps, sep="\n")
    ends = ", ".join(f"{count} {end}" for end, count in outcome.ends.items())
    print(f"history {seed}: kept every promise over {outcome.commits} transactions; controllers: {ends}")
    return True


if __name__ == "__main__":
    sys.exit(main())

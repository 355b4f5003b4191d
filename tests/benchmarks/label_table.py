"""Time, memory and noise of the main levels, and the price of checks, on water, ethanol and glycine.

By hand: ``PYTHONPATH=tests OMP_NUM_THREADS=1 python tests/benchmarks/label_table.py``. The fine
references of the noise take most of its half hour. Each level and molecule has a process of its
own, so that its peak of memory is its own. Times are of the processor; a label comes with its state check.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys

from support.label_levels import LEVELS, SMILES, deviation, labelled, molecule, price, pyscf

from hpcal.labeling.xtb import XTB, XTBSettings

DISPLACED = 3


def peak_MB() -> float:  # noqa: N802
    """Most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)


def cost(level: str, name: str) -> tuple[float, float]:
    """Seconds and MB of the second label of a process; the first one also loads libraries."""
    source = pyscf(**LEVELS[level]) if level in LEVELS else XTB(XTBSettings())
    labelled(source, molecule(name))
    return labelled(source, molecule(name))[1], peak_MB()


def noise(level: str, name: str) -> str:
    """The measured noise beside the declared one, in meV/atom and meV/Å."""
    energy, force = deviation(LEVELS[level], molecule(name), DISPLACED)
    declared = pyscf(**LEVELS[level]).level.noise
    assert declared is not None
    return (
        f"{1e3 * energy:.3f} ({1e3 * declared.energy:.2f}) | {1e3 * force:.2f} ({1e3 * declared.force:.2f})"
    )


def main() -> None:
    for name in SMILES:
        found = price(name)
        shares = ", ".join(f"{part} {100 * share:.0f} %" for part, share in found.shares.items())
        print(
            f"{name}: {found.seconds:.2f} s, {shares}, by default {100 * found.by_default:.0f} %", flush=True
        )
    print("| level | molecule | s | MB | noise, meV/atom (declared) | noise, meV/Å (declared) |")
    print("| --- | --- | --- | --- | --- | --- |")
    for level in ("GFN2-xTB", *LEVELS):
        for name in SMILES:
            with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
                seconds, memory = pool.apply(cost, (level, name))
                seen = pool.apply(noise, (level, name)) if level in LEVELS else "- | -"
            print(f"| {level} | {name} | {seconds:.3g} | {memory:.0f} | {seen} |", flush=True)


if __name__ == "__main__":
    main()

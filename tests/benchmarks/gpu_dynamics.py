"""Batched UDD forces on a GPU beside the CPU, in one run: speed by number of replicas, and the same forces.

::

    python tests/benchmarks/gpu_dynamics.py MEMBER [MEMBER …]

Args are files of trained ANI members, such as those of a finished quickstart; structures are copies of
glycine with noise. Exits with 1 if GPU and CPU disagree.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import ase.io
import numpy as np
import torch

from hpcal.core.batch import Batch
from hpcal.core.structure import Structure
from hpcal.potentials.ani import ANI
from hpcal.sampling.bias import VarianceBias

TOLERANCE_EV_PER_A = 2e-3
REFERENCE = Path(__file__).resolve().parents[2] / "workflows" / "data" / "glycine_500K.extxyz"


def replicas(count: int) -> list[Structure]:
    """Copies of glycine with noise of 0.05 Å."""
    atoms, rng = ase.io.read(REFERENCE, index=0), np.random.default_rng(0)
    place = atoms.positions
    return [
        Structure(numbers=atoms.numbers, positions=place + rng.normal(0, 0.05, place.shape))
        for _ in range(count)
    ]


def forces(paths: list[Path], device: str, structures: list[Structure], dtype: str = "float32"):
    """A call that gives UDD forces of a batch, and synchronises."""
    potential = ANI.load(paths, device=device, dtype=dtype)
    batch = Batch.of(structures, device=potential.device, dtype=potential.dtype)
    zero = torch.zeros(len(structures), device=potential.device, dtype=potential.dtype)
    bias = VarianceBias(strength=1.0, width=zero + 0.05, share=zero + 1.0)

    def call() -> torch.Tensor:
        found = potential.biased(batch, bias, zero).forces
        if device == "cuda":
            torch.cuda.synchronize()
        return found

    return call


def rate(call, atoms: int, repeats: int) -> float:
    """Atom-steps a second, from the median time after warm-ups."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return atoms / statistics.median(times)


def main(paths: list[Path]) -> int:
    """Prints the table."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    name = torch.cuda.get_device_name() if len(devices) > 1 else "no GPU"
    print(f"UDD forces, {len(paths)} members, glycine; torch {torch.__version__}, {name}, "
          f"{torch.get_num_threads()} CPU threads")  # fmt: skip
    some = replicas(64)
    reference = forces(paths, "cpu", some, "float64")().cpu().numpy()
    worst = {
        d: float(np.abs(forces(paths, d, some)().double().cpu().numpy() - reference).max()) for d in devices
    }
    for count in (1, 64, 512, 4096, 16384):
        found = []
        for device in devices:
            if device == "cpu" and count > 4096:
                continue
            call = forces(paths, device, replicas(count))
            found.append((device, rate(call, count * 10, 5 if count > 512 else 20)))
        line = "  ".join(f"{device} {value:14,.0f}" for device, value in found)
        print(f"{count:6d} replicas, atom-steps/s: {line}")
    print(f"largest difference from float64 on the CPU, eV/Å: {worst}")
    return int(any(value > TOLERANCE_EV_PER_A for value in worst.values()))


if __name__ == "__main__":
    raise SystemExit(main([Path(word) for word in sys.argv[1:]]))

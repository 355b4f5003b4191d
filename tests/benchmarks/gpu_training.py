"""Training of ANI members on a GPU: speed against the CPU, exact continuation, and nccl.

::

    python tests/benchmarks/gpu_training.py [--structures 256] [--atoms 21] [--members 8] …

Needs torch (with CUDA for the GPU's part), numpy, scipy, h5py, pydantic, pyyaml, ase and torchani, and
hpcal on the path. Structures are made up: random compact molecules with labels of a smooth pair
function, as only time and exactness matter. Exits with 1 if a check fails.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
# Ranks are started with -P and see hpcal by this variable where it is not installed.
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
LAUNCHER = ROOT / "tests" / "support" / "ranks.py"

import torch  # noqa: E402

from hpcal.core.dataset import Dataset  # noqa: E402
from hpcal.core.deadline import Deadline  # noqa: E402
from hpcal.core.errors import TaskFailure  # noqa: E402
from hpcal.core.label import Label, LevelOfTheory  # noqa: E402
from hpcal.core.protocols import MemberResult, MemberSpec  # noqa: E402
from hpcal.core.structure import Structure  # noqa: E402
from hpcal.core.walker import Split  # noqa: E402
from hpcal.potentials import training  # noqa: E402
from hpcal.potentials.ani import ANI  # noqa: E402
from hpcal.potentials.member import Member  # noqa: E402

LEVEL = LevelOfTheory(code="made up", version="1", method="smooth pairs")
SAME = "the same to the bit"


@dataclass(frozen=True, kw_only=True)
class Case:
    """What all trainings of this run have in common."""

    dataset: Dataset
    members: int
    batch_size: int
    hidden: tuple[int, ...]
    folder: Path

    def kind(self, device: str, epochs: int, **more: object) -> ANI:
        settings = {"batch_size": self.batch_size, "hidden": self.hidden, "jacobian_memory_GB": 8.0, **more}
        return ANI(ANI.Settings(device=device, epochs=epochs, **settings))

    def train(self, kind: ANI, name: str, deadline: Deadline | None = None) -> list[MemberResult]:
        specs = [MemberSpec(index=i, seed=10 + i) for i in range(self.members)]
        trainer = kind.trainer(self.dataset.elements, seed=5)
        return list(trainer.fit(self.dataset, specs, deadline or Deadline(), self.folder / name))


def molecule(numbers: np.ndarray, rng: np.random.Generator) -> Structure:
    """Atoms on a jittered cubic lattice of 1.4 Å, which is as dense as a molecule."""
    side = int(np.ceil(len(numbers) ** (1 / 3)))
    grid = np.array(list(itertools.product(range(side), repeat=3)), dtype=float)[: len(numbers)]
    return Structure(numbers=rng.permutation(numbers), positions=1.4 * grid + rng.normal(0, 0.08, grid.shape))


def labelled(structure: Structure) -> Label:
    """E = Σ exp(-r/2 Å) eV over pairs, and its forces."""
    vectors = structure.positions[:, None] - structure.positions[None]
    r = np.linalg.norm(vectors, axis=2) + np.eye(len(structure)) * 1e9
    e = np.exp(-r / 2.0)
    forces = (0.5 * e / r)[:, :, None] * vectors
    return Label(energy=float(e.sum() / 2), forces=forces.sum(axis=1), level=LEVEL)


def made_up(count: int, numbers: np.ndarray) -> Dataset:
    rng = np.random.default_rng(0)
    structures = [molecule(numbers, rng) for _ in range(count)]
    splits = [Split.VALIDATION if i % 8 == 0 else Split.TRAIN for i in range(count)]
    return Dataset.of(structures, [labelled(s) for s in structures], splits=splits)


def largest_difference(one: list[MemberResult], two: list[MemberResult]) -> float:
    """Over all weights and biases."""
    members = [[Member.read(Path(r.path)) for r in results] for results in (one, two)]
    pairs = [
        pair
        for a, b in zip(*members, strict=True)
        for pair in zip(itertools.chain(*a.networks), itertools.chain(*b.networks), strict=True)
    ]
    return max(float(np.abs(v - w).max()) for p, q in pairs for v, w in zip(p, q, strict=True))


def compared(one: list[MemberResult], two: list[MemberResult]) -> str:
    if [r.sha256 for r in one] == [r.sha256 for r in two]:
        return SAME
    return f"weights differ by up to {largest_difference(one, two):.1e}"


# ── What is measured and checked ─────────────────────────────────────────────────────────────


def epoch_seconds(case: Case, device: str, name: str) -> tuple[float, float]:
    """Seconds of one epoch, and of what comes before the first: two trainings, three epochs apart."""
    took = []
    for epochs in (1, 4):
        began = time.perf_counter()
        case.train(case.kind(device, epochs), f"{name}-{epochs}")
        took.append(time.perf_counter() - began)
    each = (took[1] - took[0]) / 3
    return each, took[0] - each


def continuation(case: Case, device: str) -> str:
    """A training interrupted twice, in the middle of epochs, against one that was not."""
    kind = case.kind(device, 3)
    whole = case.train(kind, f"{device}-whole")
    steps = -(-len(case.dataset.where(Split.TRAIN)) // case.batch_size)
    for share in (0.5, 1.3):
        asked = itertools.count()
        limit = max(1, int(share * steps))
        stop = Deadline(stop=lambda asked=asked, limit=limit: next(asked) >= limit)
        try:
            case.train(kind, f"{device}-parts", stop)
        except TaskFailure:
            continue
        return "was not interrupted: give more structures"
    return compared(whole, case.train(kind, f"{device}-parts"))


def repeated(case: Case, device: str) -> str:
    """The same training twice."""
    one, two = (case.train(case.kind(device, 2), f"{device}-again-{k}") for k in (1, 2))
    return compared(one, two)


def one_rank(case: Case, device: str) -> str:
    """A rank of its own process, its sums by nccl (gloo on the CPU), against training in this one."""
    serial = case.train(case.kind(device, 2), f"{device}-serial")
    os.environ["HPCAL_MPI_COMMAND"] = shlex.join([sys.executable, str(LAUNCHER), "-n", "1"])
    os.environ["HPCAL_MPI_RANKS"] = "1"
    os.environ["OMP_NUM_THREADS"] = str(torch.get_num_threads())
    began = time.perf_counter()
    ranks = case.train(case.kind(device, 2, data_parallel=True), f"{device}-ranks")
    seconds = time.perf_counter() - began
    for name in ("HPCAL_MPI_COMMAND", "HPCAL_MPI_RANKS"):
        del os.environ[name]
    return f"{compared(serial, ranks)} ({seconds:.1f} s with its start)"


def one_member(case: Case, device: str) -> str:
    """The first member trained alone against the first of all."""
    together = case.train(case.kind(device, 2), f"{device}-together")
    alone = Case(**{**case.__dict__, "members": 1}).train(case.kind(device, 2), f"{device}-alone")
    return compared(together[:1], alone)


CHECKS: dict[str, tuple[Callable[[Case, str], str], bool]] = {
    "continued from checkpoints = uninterrupted": (continuation, True),
    "trained twice": (repeated, False),
    "one rank, {backend} = in this process": (one_rank, False),
    "a member alone = among others": (one_member, False),
}
"""Each with whether it must be exact; otherwise the difference is what is wanted."""


def run(case: Case, device: str) -> bool:
    """Prints the checks of a device; whether all came to an end, and those that must be exact were."""
    good = True
    for name, (check, exact) in CHECKS.items():
        try:
            said = check(case, device)
        except Exception:  # the other checks are wanted all the same
            said, good = f"FAILED\n{traceback.format_exc()}", False
        if exact and said != SAME:
            good = False
        title = name.format(backend="nccl" if device == "cuda" else "gloo")
        print(f"{device:5} {title:45} {said}", flush=True)
    return good


def times(case: Case, devices: list[str]) -> None:
    print(f"{'device':22} {'epoch, s':>10} {'before the first, s':>20}")
    for device in devices:
        case.train(case.kind(device, 1), f"{device}-warm-up")
        each, before = epoch_seconds(case, device, device)
        print(f"{device:22} {each:10.3f} {before:20.3f}", flush=True)
    if "cuda" in devices:
        fixed, training.deterministic = training.deterministic, lambda device: nullcontext()
        each, before = epoch_seconds(case, "cuda", "cuda-free")
        training.deterministic = fixed
        print(f"{'cuda, sums unordered':22} {each:10.3f} {before:20.3f}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="training of ANI members on a GPU and on the CPU")
    parser.add_argument("--structures", type=int, default=256)
    parser.add_argument("--atoms", type=int, default=21, help="of each structure")
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--hidden", type=int, nargs="+", default=[48, 32])
    parser.add_argument("--threads", type=int, default=min(8, os.cpu_count() or 1), help="of the CPU")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    gpu = torch.cuda.get_device_name() if "cuda" in devices else "no GPU here: only the CPU is measured"
    print(f"torch {torch.__version__}, {given.threads} threads, {gpu}")
    print(
        f"{given.structures} structures of {given.atoms} atoms, {given.members} members, hidden "
        f"{given.hidden}, batches of {given.batch_size}"
    )
    numbers = np.resize(np.array([6, 1, 1, 8, 1, 7]), given.atoms)
    with tempfile.TemporaryDirectory() as folder:
        case = Case(
            dataset=made_up(given.structures, numbers),
            members=given.members,
            batch_size=given.batch_size,
            hidden=tuple(given.hidden),
            folder=Path(folder),
        )
        times(case, devices)
        ends = [run(case, device) for device in devices[::-1]]
    good = all(ends)
    print("all checks passed" if good else "a check FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

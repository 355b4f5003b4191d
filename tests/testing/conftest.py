"""Small molecules and Morse ensembles on which parts are checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import molecule

from hpcal.core.batch import Batch
from hpcal.core.dataset import Dataset
from hpcal.core.deadline import Deadline
from hpcal.core.ensemble import EnsembleManifest, MemberFile, file_sha256, load_ensemble
from hpcal.core.plugins import Group, find
from hpcal.core.protocols import Metric, Potential
from hpcal.core.structure import Structure
from hpcal.core.walker import Scores, Split, Walker

STEPS = 24


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_rattled(name: str, count: int, *, width: float = 0.05, seed: int = 0) -> list[Structure]:
    """Copies of a molecule with every coordinate displaced."""
    atoms, rng = molecule(name), np.random.default_rng(seed)
    return [
        Structure(numbers=atoms.numbers, positions=atoms.positions + rng.normal(0, width, (len(atoms), 3)))
        for _ in range(count)
    ]


@pytest.fixture(scope="session")
def rattled() -> Callable[..., list[Structure]]:
    return make_rattled


@pytest.fixture(scope="session")
def waters() -> list[Structure]:
    return make_rattled("H2O", 3)


@pytest.fixture(scope="session")
def mixed() -> list[Structure]:
    """Molecules of two, three and four atoms."""
    return [*make_rattled("H2O", 1), *make_rattled("H2O2", 1), *make_rattled("H2", 1)]


@pytest.fixture(scope="session")
def ensemble_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three Morse potentials of hydrogen and oxygen that disagree."""
    folder, members = tmp_path_factory.mktemp("morse"), []
    for index, width in enumerate((1.7, 1.8, 1.9)):
        path = find(Group.POTENTIALS, "morse").write_member(
            folder / f"{index}.json", [1, 8], well_depth_eV=4.0 + 0.2 * index, width_per_A=width
        )
        members.append(MemberFile(path=str(path), sha256=file_sha256(path)))
    EnsembleManifest(kind="morse", members=tuple(members)).write(folder)
    return folder


@pytest.fixture(scope="session")
def ensemble(ensemble_folder: Path) -> Potential:
    return load_ensemble(EnsembleManifest.read(ensemble_folder), dtype="float64")


@pytest.fixture(scope="session")
def batch(mixed: list[Structure]) -> Batch:
    return Batch.of(mixed, dtype=torch.float64)


@pytest.fixture(scope="session")
def dataset(ensemble_folder: Path) -> Dataset:
    """Twelve water molecules labelled by the ensemble, three of them for validation."""
    labeler_class = find(Group.LABELERS, "teacher")
    teacher = labeler_class(labeler_class.Settings(model=ensemble_folder))
    structures = make_rattled("H2O", 12, seed=5)
    labels = [teacher.label(s, Deadline()) for s in structures]
    splits = [Split.VALIDATION if i % 4 == 0 else Split.TRAIN for i in range(12)]
    return Dataset.of(structures, labels, ids=range(100, 112), splits=splits)


@dataclass(frozen=True)
class ByMetric:
    """A scorer of one metric."""

    potential: Potential
    metric: Metric
    threshold: float

    def trigger(self, batch: Batch) -> torch.Tensor:
        return self.metric.score(batch, self.potential)

    def scores(self, batch: Batch) -> list[Scores]:
        energy, force = (
            find(Group.METRICS, name)().score(batch, self.potential).tolist()
            for name in ("energy_std", "force_std")
        )
        trigger = self.trigger(batch).tolist()
        return [
            Scores(energy_std=e, force_std=f, trigger=t)
            for e, f, t in zip(energy, force, trigger, strict=True)
        ]


@pytest.fixture(scope="session")
def scorer(ensemble: Potential) -> ByMetric:
    """Force disagreement with a threshold that some walkers cross and some do not."""
    return ByMetric(potential=ensemble, metric=find(Group.METRICS, "force_std")(), threshold=0.7)


def make_walkers(structures: list[Structure]) -> list[Walker]:
    """Walkers that offer candidates, from warm to hot, and two audit walkers."""
    offering = [
        Walker(
            id=10 + i,
            structure=structures[i % len(structures)],
            steps_full=STEPS,
            stream=500 + i,
            temperature=temperature,
            state={"bias_width": 0.05},
        )
        for i, temperature in enumerate((100.0, 300.0, 3000.0, 5000.0))
    ]
    audit = [
        Walker(
            id=20 + i,
            structure=structures[i],
            steps_full=STEPS,
            stream=600 + i,
            temperature=4000.0,
            offers_candidates=False,
            frames_at=(3, 11, STEPS),
            state={"bias_width": 0.05},
        )
        for i in range(2)
    ]
    return [*offering, *audit]


@pytest.fixture(scope="session")
def walkers(mixed: list[Structure]) -> list[Walker]:
    return make_walkers(mixed)

"""Data sets that tests of writers write."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hpcal.core.dataset import Dataset
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure
from hpcal.core.walker import Split

LEVEL = LevelOfTheory(code="pyscf", version="2.14", method="wb97x", settings={"basis": "6-31g*"})
KINDS = ([8, 1, 1], [7, 1, 1, 1], [1, 8, 1], [6, 1, 1, 1, 1], [6, 6, 1, 1])
"""Atoms of the molecules, all with an even number of electrons; two orders of water."""


def molecules(n: int, seed: int = 0) -> Dataset:
    """Neutral singlets in vacuum with energies and forces; ids from 100 on."""
    rng = np.random.default_rng(seed)
    structures, labels = [], []
    for i in range(n):
        numbers = KINDS[i % len(KINDS)]
        structures.append(Structure(numbers=numbers, positions=rng.normal(size=(len(numbers), 3))))
        forces = rng.normal(size=(len(numbers), 3))
        labels.append(Label(energy=-1000 * rng.uniform(1, 2), forces=forces, level=LEVEL))
    return known(Dataset.of(structures, labels, ids=range(100, 100 + n), splits=["train"] * n))


def made_up(n: int, seed: int = 0) -> Dataset:
    """Molecules and crystals, charged and not, whose labels have all that a label can have."""
    rng = np.random.default_rng(seed)
    structures, labels = [], []
    for i in range(n):
        numbers = KINDS[i % len(KINDS)]
        size, cell = len(numbers), 6 * np.eye(3) + rng.normal(size=(3, 3)) if i % 3 == 0 else None
        structures.append(
            Structure(
                numbers=numbers,
                positions=rng.normal(size=(size, 3)),
                cell=cell,
                pbc=(cell is not None,) * 3,
                charge=2 * (i % 2),
                multiplicity=1 + 2 * (i % 2),
                magnetic_moments=rng.normal(size=size) if i % 4 == 0 else None,
            )
        )
        stress = rng.normal(size=(3, 3)) / 100
        labels.append(
            Label(
                energy=-1000 * rng.uniform(1, 2),
                forces=rng.normal(size=(size, 3)) if i % 4 != 3 else None,
                stress=None if cell is None else (stress + stress.T) / 2,
                dipole=None if cell is not None else rng.normal(size=3),
                charges=rng.normal(size=size) if i % 2 else None,
                charge_scheme="mulliken" if i % 2 else None,
                level=LEVEL,
            )
        )
    splits = [tuple(Split)[i % len(Split)] for i in range(n)]
    return known(Dataset.of(structures, labels, ids=range(100, 100 + n), splits=splits))


def known(dataset: Dataset) -> Dataset:
    """The data set with what a store knows of structures."""
    n = len(dataset)
    return replace(
        dataset,
        origins=np.array([("bootstrap", "sample", "audit")[i % 3] for i in range(n)]),
        generations=np.arange(n) // 2,
        uncertainties=np.where(np.arange(n) % 3, np.arange(n) / 7, np.nan),
    )

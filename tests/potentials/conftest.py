"""Small molecules, labels from xTB, and trained members that several tests share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from hpcal.core.dataset import Dataset
from hpcal.core.deadline import Deadline
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.protocols import MemberSpec
from hpcal.core.structure import Structure
from hpcal.core.walker import Split

XTB = LevelOfTheory(code="tblite", version="test", method="GFN2-xTB")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_rattled(name: str, count: int, *, width: float = 0.06, seed: int = 0) -> list[Structure]:
    """Copies of a molecule of ASE's collection with Gaussian noise on every coordinate."""
    atoms, rng = molecule(name), np.random.default_rng(seed)
    return [
        Structure(numbers=atoms.numbers, positions=atoms.positions + rng.normal(0, width, (len(atoms), 3)))
        for _ in range(count)
    ]


def make_crystal(seed: int = 0) -> Structure:
    """Five atoms in a skew cell that is smaller than the cutoffs."""
    rng = np.random.default_rng(seed)
    cell = np.array([[4.1, 0.2, 0.0], [0.3, 4.6, 0.1], [-0.2, 0.4, 5.0]])
    fractional = np.array([[0, 0, 0], [0.5, 0.5, 0.1], [0.1, 0.5, 0.6], [0.6, 0.1, 0.5], [1.3, -0.4, 0.9]])
    positions = (fractional + rng.normal(0, 0.02, (5, 3))) @ cell
    return Structure(numbers=[8, 1, 1, 8, 1], positions=positions, cell=cell, pbc=(True, True, True))


@pytest.fixture(scope="session")
def water() -> Dataset:
    """60 water molecules labelled with GFN2-xTB, 12 of them for validation."""
    from tblite.ase import TBLite

    calculator = TBLite(method="GFN2-xTB", verbosity=0)
    structures, labels = make_rattled("H2O", 60), []
    for structure in structures:
        atoms = Atoms(structure.numbers, structure.positions, calculator=calculator)
        labels.append(Label(energy=atoms.get_potential_energy(), forces=atoms.get_forces(), level=XTB))
    splits = [Split.VALIDATION if i % 5 == 0 else Split.TRAIN for i in range(60)]
    return Dataset.of(structures, labels, ids=range(100, 160), splits=splits)


def make_mixed(seed: int = 0) -> Dataset:
    """Water, methanol and a periodic crystal with made-up labels; one of them without forces."""
    rng = np.random.default_rng(seed)
    structures = [*make_rattled("H2O", 3), *make_rattled("CH3OH", 3), make_crystal()]
    labels = [
        Label(
            energy=-100.0 * len(s) + rng.normal(),
            forces=None if k == 1 else rng.normal(size=(len(s), 3)),
            level=XTB,
        )
        for k, s in enumerate(structures)
    ]
    return Dataset.of(structures, labels)


def train(kind, dataset: Dataset, folder: Path, *, members: int = 3, elements=None, **more):
    specs = [MemberSpec(index=i, seed=10 + i, **more) for i in range(members)]
    return kind.trainer(elements or dataset.elements, seed=5).fit(dataset, specs, Deadline(), folder)


class UDDBias:
    """E_bias = A [exp(-ρ²/B²) - 1], ρ² the variance of the member energies per atom (ddof 0)."""

    def __init__(self, height: float, width: float) -> None:
        self.height, self.width = height, width

    def energy(self, at):
        mean = at.energies.mean(dim=0)
        rho2 = (at.energies - mean).square().mean(dim=0) / at.n_atoms
        return self.height * (torch.exp(-rho2 / self.width**2) - 1.0)


@pytest.fixture(scope="session")
def rattled():
    return make_rattled


@pytest.fixture(scope="session")
def crystal():
    return make_crystal


@pytest.fixture(scope="session")
def mixed_dataset():
    return make_mixed


@pytest.fixture(scope="session")
def trained():
    return train


@pytest.fixture(scope="session")
def udd_bias():
    return UDDBias

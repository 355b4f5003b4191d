"""The checks of potentials find what is wrong with a potential."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcal.core.ensemble import EnsembleManifest
from hpcal.core.protocols import Biased, BiasInput
from hpcal.potentials.morse import MorseEnsemble, MorseMember
from hpcal.testing import ConformanceError, Tolerances, check_potential


@pytest.fixture
def members(ensemble_folder):
    manifest = EnsembleManifest.read(ensemble_folder)
    return [MorseMember.read(Path(m.path)) for m in manifest.members]


def overridden(**methods):
    """Morse ensembles in which some methods give something else."""
    return type("Overridden", (MorseEnsemble,), methods)


def after(name, change):
    """A class whose method gives what ``change`` makes of its result and the batch."""

    def method(self, batch, *rest):
        return change(getattr(MorseEnsemble, name)(self, batch, *rest), batch)

    return overridden(**{name: method})


def counting(self, batch):
    self.calls = getattr(self, "calls", 0) + 1
    return MorseEnsemble.energies(self, batch) * (1.0 + 1e-15 * self.calls)


def writing(self, batch):
    forces = MorseEnsemble.forces(self, batch)
    batch.positions.add_(1e-9)
    return forces


class Careless(MorseEnsemble):
    """Gives numbers for elements that it does not know."""

    def energies(self, batch):
        known = torch.where((batch.numbers == 8) | (batch.numbers == 0), batch.numbers, 1)
        return super().energies(replace(batch, numbers=known))


class EnergyOfBias(MorseEnsemble):
    """Adds the bias energy, and forgets its force."""

    def biased(self, batch, bias, time_fs):
        found = super().biased(batch, bias, time_fs)
        return Biased(energies=found.energies, bias=found.bias, forces=self.forces(batch))


class AsksTwice(MorseEnsemble):
    def biased(self, batch, bias, time_fs):
        if bias is not None:
            energies = self.energies(batch)
            bias.energy(BiasInput(energies=energies, batch=batch, n_atoms=batch.n_atoms, time_fs=time_fs))
        return super().biased(batch, bias, time_fs)


class Timeless(MorseEnsemble):
    def biased(self, batch, bias, time_fs):
        return super().biased(batch, bias, 0.0 * time_fs)


CASES = {
    "single precision": (after("energies", lambda e, b: e.float()), "energies are float64.*float32"),
    "force sign": (after("forces", lambda f, b: -f), "mean of member_forces.*eV/Å, tolerance 1e-08"),
    "both signs": (
        overridden(
            forces=lambda s, b: -MorseEnsemble.forces(s, b),
            member_forces=lambda s, b: -MorseEnsemble.member_forces(s, b),
        ),
        r"forces\(\) is minus the gradient of the mean energy",
    ),
    "members swapped": (
        after("member_forces", lambda f, b: f.flip(0)),
        r"member_forces\(\) is minus the gradient of the energy of each member",
    ),
    "shape": (after("energies", lambda e, b: e.T[:, :2]), r"energies\(\) has shape"),
    "at padding": (after("forces", lambda f, b: f + 1e-12), r"is zero at padding.*1e-12; tolerance 0"),
    "features at padding": (after("features", lambda f, b: f + 1.0), r"features\(\) is zero at padding"),
    "not finite": (after("features", lambda f, b: f / 0.0), r"features\(\) is finite"),
    "gradients": (after("energies", lambda e, b: e.requires_grad_()), "carry no gradients"),
    "writes": (overridden(forces=writing), "batch is not written to"),
    "counts": (overridden(energies=counting), "whatever was asked before.*bit for bit"),
    "padding": (
        after("energies", lambda e, b: e + 1e-6 * b.positions.square().sum(dim=(1, 2))),
        r"padding does not matter \(energies\).*tolerance 1e-08 eV",
    ),
    "batch": (
        after("features", lambda f, b: f / f.abs().amax()),
        r"companions in the batch \(features\)",
    ),
    "copies": (
        after("energies", lambda e, b: e + 1e-3 * (len(b) > 8)),
        "each of 9 copies is as the structure alone",
    ),
    "in space": (
        after("energies", lambda e, b: e + 1e-6 * (b.positions[..., 0] * b.mask).sum(dim=1)),
        "translation does not matter",
    ),
    "orientation": (
        after("features", lambda f, b: f + (b.positions - b.positions[:, :1])[..., :1] * b.mask[..., None]),
        "rotation, energies and features do not",
    ),
    "order": (
        after("features", lambda f, b: f * (1.0 + torch.arange(f.shape[1]))[:, None]),
        "order of the atoms does not matter",
    ),
    "elements": (Careless, r"energies\(\) refuses Og.*it went through"),
    "stress sign": (after("stress", lambda s, b: -s), r"stress\(\) is dE/dε/V"),
    "stress shape": (after("stress", lambda s, b: s.flatten(1)), r"stress\(\) has shape"),
    "crystals": (
        after("energies", lambda e, b: e if b.cell is None else e + (b.cell.norm(dim=2).amax(dim=1) > 4.2)),
        "a cell of twice the length has twice the energy",
    ),
    "images": (
        after("energies", lambda e, b: e if b.cell is None else e + (np.ptp(b.positions.numpy()) > 3.5)),
        "an atom moved by lattice vectors",
    ),
    "bias force": (EnergyOfBias, "with a Gaussian of the variance as bias, forces are minus the gradient"),
    "bias twice": (AsksTwice, "a bias is evaluated once.*2 evaluations"),
    "bias time": (Timeless, "a bias gets the times"),
    "bias energy": (
        overridden(
            biased=lambda s, b, bias, t: replace(MorseEnsemble.biased(s, b, bias, t), bias=torch.ones(len(b)))
        ),
        "without a bias, its energy is zero",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_broken_promises(case, members, mixed):
    cls, message = CASES[case]
    potential = cls(members, device=torch.device("cpu"), dtype=torch.float64)
    with pytest.raises(ConformanceError, match=message):
        check_potential(potential, mixed)


def says_charge_aware(self):
    return replace(MorseEnsemble.capabilities(self), charge_aware=True)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (
            overridden(capabilities=says_charge_aware),
            "charge_aware tells the states of a geometry apart.*for both charge 0 multiplicity 1 and "
            "charge 2 multiplicity 3 of H2O",
        ),
        (
            after("energies", lambda e, b: e + 1e-3 * b.charges),
            "not charge_aware has one.*off by 0.002",
        ),
        (after("energies", lambda e, b: e + 1e-3 * b.multiplicities), "one energy.*off by 0.002"),
    ],
)
def test_states_of_a_geometry(cls, message, members, mixed):
    other = replace(mixed[0], charge=2, multiplicity=3)
    potential = cls(members, device=torch.device("cpu"), dtype=torch.float64)
    with pytest.raises(ConformanceError, match=message):
        check_potential(potential, [*mixed, other])


def test_a_potential_that_is_blind_to_states_and_says_so_passes(ensemble, mixed):
    check_potential(ensemble, [*mixed, replace(mixed[0], charge=2, multiplicity=3)])


def test_a_good_potential_passes(ensemble, mixed):
    check_potential(ensemble, mixed)


def test_tolerances_are_those_stated(members, mixed):
    """Energies a little off along one axis pass where that much is allowed."""
    cls = after("energies", lambda e, b: e + 1e-6 * (b.positions[..., 0] * b.mask).sum(dim=1))
    potential = cls(members, device=torch.device("cpu"), dtype=torch.float64)
    loose = Tolerances(energy=1e-4, difference=1e-4, stress=1e-5)
    check_potential(potential, mixed, tolerances=loose)


def test_single_precision_is_refused(members, mixed):
    potential = MorseEnsemble(members, device=torch.device("cpu"), dtype=torch.float32)
    with pytest.raises(ValueError, match="float64"):
        check_potential(potential, mixed)

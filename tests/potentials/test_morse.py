"""What Morse ensembles promise: the formula, its derivatives, and fits that find a known potential."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcal.core.batch import Batch
from hpcal.core.dataset import Dataset
from hpcal.core.deadline import Deadline
from hpcal.core.elements import COVALENT_RADII
from hpcal.core.ensemble import EnsembleManifest, MemberFile, file_sha256, load_ensemble
from hpcal.core.errors import FailureClass, FormatError, InputError, TaskFailure
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.plugins import Group, find
from hpcal.core.protocols import DifferentiablePotential, MemberSpec
from hpcal.core.structure import Structure
from hpcal.core.walker import Split
from hpcal.potentials import morse_fit
from hpcal.potentials.morse import Morse, MorseMember, pair_terms

LEVEL = LevelOfTheory(code="test", version="1", method="morse")


@pytest.fixture
def teacher(tmp_path):
    return Morse.write_member(
        tmp_path / "teacher.json",
        [1, 8],
        well_depth_eV=3.0,
        self_energies_eV={1: -13.0, 8: -430.0},
        pairs={(1, 1): (0.2, 1.5, 1.5)},
    )


@pytest.fixture
def dataset(teacher, rattled):
    """40 water molecules labelled by the teacher, 8 for validation."""
    potential = Morse.load([teacher], dtype="float64")
    structures = rattled("H2O", 40, width=0.08)
    batch = Batch.of(structures, dtype=torch.float64)
    energies, forces = potential.energies(batch)[0], potential.forces(batch)
    labels = [
        Label(energy=float(e), forces=f.numpy(), level=LEVEL) for e, f in zip(energies, forces, strict=True)
    ]
    splits = [Split.VALIDATION if i % 5 == 0 else Split.TRAIN for i in range(40)]
    return Dataset.of(structures, labels, ids=range(7, 47), splits=splits)


def test_is_found_by_name_and_keeps_the_protocol(teacher):
    assert find(Group.POTENTIALS, "morse") is Morse
    potential = Morse.load([teacher])
    assert isinstance(potential, DifferentiablePotential)
    assert Morse(Morse.Settings()).capabilities().elements is None
    assert potential.capabilities().elements == {1, 8}
    assert potential.capabilities().periodic


def test_two_atoms_have_the_energy_of_the_formula(teacher):
    potential = Morse.load([teacher], dtype="float64")
    bond = COVALENT_RADII[1] + COVALENT_RADII[8]
    for r, switch in ((0.8, 1.0), (bond, 1.0), (3.0, 1.0), (4.5, 1.0), (5.25, 0.5), (6.0, 0.0), (7.0, 0.0)):
        pair = Structure(numbers=[8, 1], positions=[[0, 0, 0], [0, 0, r]])
        expected = 3.0 * ((1 - math.exp(-1.8 * (r - bond))) ** 2 - 1) * switch
        batch = Batch.of([pair], dtype=torch.float64)
        assert float(potential.energies(batch)) == pytest.approx(-443.0 + expected, abs=1e-10)
    at_bond = Batch.of([Structure(numbers=[8, 1], positions=[[0, 0, 0], [0, 0, bond]])], dtype=torch.float64)
    assert float(potential.energies(at_bond)) == pytest.approx(-446.0)
    assert float(potential.forces(at_bond).abs().max()) < 1e-12


def test_written_out_slope_is_the_derivative():
    d = torch.linspace(0.5, 6.5, 200, dtype=torch.float64, requires_grad=True)
    pairs = torch.tensor([2.0, 1.7, 1.1], dtype=torch.float64).expand(200, 3)
    energy, slope = pair_terms(d, pairs, 6.0)
    (expected,) = torch.autograd.grad(energy.sum(), d)
    assert torch.allclose(slope, expected, atol=1e-12)


def test_forces_biased_forces_and_stress_are_derivatives(dataset, tmp_path, trained, crystal, udd_bias):
    results = trained(Morse(Morse.Settings(steps=5)), dataset, tmp_path, members=3)
    potential = Morse.load([Path(r.path) for r in results], dtype="float64")
    water = dataset.structure(0)
    batch = Batch.of([crystal(), water, dataset.structure(1)], dtype=torch.float64)
    spread = float((potential.energies(batch).var(dim=0, correction=0) / batch.n_atoms).sqrt().median())
    bias, times = udd_bias(20.0, spread), torch.zeros(3)
    plain, biased = potential.forces(batch), potential.biased(batch, bias, times).forces
    members = potential.member_forces(batch)
    for row, atom, axis in itertools.product(range(3), range(5), range(3)):
        ends, own = [], []
        for sign in (1.0, -1.0):
            moved = batch.positions.clone()
            moved[row, atom, axis] += sign * 1e-5
            result = potential.biased(batch.at(moved), bias, times)
            own.append(result.energies[:, row])
            ends.append(float(result.energies.mean(dim=0)[row] + result.bias[row]))
        slope = -(own[0] - own[1]) / 2e-5
        assert float(plain[row, atom, axis]) == pytest.approx(float(slope.mean()), abs=1e-6)
        assert members[:, row, atom, axis].tolist() == pytest.approx(slope.tolist(), abs=1e-6)
        assert float(biased[row, atom, axis]) == pytest.approx(-(ends[0] - ends[1]) / 2e-5, abs=1e-6)
    assert (plain[~batch.mask] == 0).all()
    cell = Batch.of([crystal()], dtype=torch.float64)
    stress = potential.stress(cell)
    for a, b in ((0, 0), (1, 2)):
        strain = torch.zeros((3, 3), dtype=torch.float64)
        strain[a, b] += 0.5e-5
        strain[b, a] += 0.5e-5
        up, down = (
            float(potential.energies(replace(cell, positions=cell.positions @ m, cell=cell.cell @ m)).mean())
            for m in (torch.eye(3, dtype=torch.float64) + s * strain for s in (1, -1))
        )
        expected = (up - down) / 2e-5 / float(torch.linalg.det(cell.cell[0]).abs())
        assert float(stress[0, a, b]) == pytest.approx(expected, abs=1e-6)


def test_padding_order_and_place_change_nothing(teacher, rattled):
    potential = Morse.load([teacher], dtype="float64")
    (small,), order = rattled("H2O", 1), [2, 0, 1]
    moved = Structure(numbers=small.numbers[order], positions=small.positions[order] + [1.0, 2.0, 3.0])
    big = Structure(numbers=[8, 8, 1, 1, 1], positions=np.random.default_rng(0).random((5, 3)) * 4)
    batch = Batch.of([small, moved, big], dtype=torch.float64)
    alone = Batch.of([small], dtype=torch.float64)
    energies = potential.energies(batch)[0]
    assert float(energies[0]) == pytest.approx(float(potential.energies(alone)), abs=1e-10)
    assert float(energies[1]) == pytest.approx(float(energies[0]), abs=1e-10)
    features = potential.features(batch)
    assert torch.allclose(features[1, :3], features[0, order], atol=1e-10)
    assert (features[0, 3:] == 0).all()
    assert float(features.abs().max()) > 0.1


def test_a_fit_finds_the_potential_that_made_the_labels(dataset, tmp_path, trained):
    results = trained(Morse(Morse.Settings(steps=600)), dataset, tmp_path, members=4)
    potential = Morse.load([Path(r.path) for r in results], dtype="float64")
    held_out = dataset.take(dataset.where(Split.VALIDATION))
    batch = Batch.of(held_out.structures(), dtype=torch.float64)
    error = potential.forces(batch).numpy().reshape(-1, 3) - held_out.forces
    assert np.sqrt((error**2).mean()) < 0.02 * held_out.forces.std()
    assert np.abs(potential.energies(batch).mean(dim=0).numpy() - held_out.energies).max() < 0.02
    for result in results:
        assert result.metrics["validation_force_rmse"] < 0.1
        assert len(result.trained_on) == round(0.9 * 32)
    assert len({r.sha256 for r in results}) == 4
    assert float(potential.energies(batch).std(dim=0).mean()) > 0


def test_same_inputs_give_the_same_files_also_after_interruptions(dataset, tmp_path, trained):
    kind = Morse(Morse.Settings(steps=20))
    expected = [r.sha256 for r in trained(kind, dataset, tmp_path / "one")]
    assert [r.sha256 for r in trained(kind, dataset, tmp_path / "two")] == expected
    specs = [MemberSpec(index=i, seed=10 + i) for i in range(3)]
    trainer = kind.trainer(dataset.elements, seed=5)
    for _ in range(2):
        with pytest.raises(TaskFailure) as caught:
            trainer.fit(dataset, specs, Deadline(steps=8), tmp_path / "parts")
        assert caught.value.failure_class is FailureClass.RESOURCE
    results = trainer.fit(dataset, specs, Deadline(steps=8), tmp_path / "parts")
    assert [r.sha256 for r in results] == expected
    assert trainer.fit(dataset, specs, Deadline(steps=0), tmp_path / "parts") == list(results)
    assert not (tmp_path / "parts" / morse_fit._STATE).exists()


def test_warm_start_begins_at_the_earlier_parameters(dataset, tmp_path, trained):
    (cold,) = trained(Morse(Morse.Settings()), dataset, tmp_path / "cold", members=1)
    still = Morse(Morse.Settings(warm_steps=1, learning_rate=1e-12))
    (warm,) = trained(still, dataset, tmp_path / "warm", members=1, start_from=cold.path)
    before, after = MorseMember.read(Path(cold.path)), MorseMember.read(Path(warm.path))
    assert np.allclose(before.pairs, after.pairs, rtol=1e-9)
    assert np.allclose(before.self_energies, after.self_energies, atol=1e-7)
    with pytest.raises(InputError, match="cutoff"):
        trained(Morse(Morse.Settings(cutoff_A=5.0)), dataset, tmp_path / "x", members=1, start_from=cold.path)


def test_a_teacher_is_an_ensemble_that_needs_no_training(teacher, tmp_path, rattled):
    member = MemberFile(path=str(teacher), sha256=file_sha256(teacher))
    EnsembleManifest(kind="morse", members=(member,)).write(tmp_path)
    potential = load_ensemble(EnsembleManifest.read(tmp_path), dtype="float64")
    assert potential.n_members == 1
    batch = Batch.of(rattled("H2O", 2), dtype=torch.float64)
    assert torch.isfinite(potential.forces(batch)).all()
    copy = Morse.write_member(
        tmp_path / "copy.json",
        [8, 1],
        well_depth_eV=3.0,
        self_energies_eV={1: -13.0, 8: -430.0},
        pairs={(1, 1): (0.2, 1.5, 1.5)},
    )
    assert copy.read_bytes() == teacher.read_bytes()


@pytest.mark.parametrize("damage", ["cut", "kind", "negative", "gone", "binary"])
def test_a_damaged_file_is_refused(teacher, tmp_path, damage):
    text, path = teacher.read_text(), tmp_path / "bad.json"
    content = json.loads(text)
    if damage == "cut":
        path.write_text(text[:200])
    elif damage == "kind":
        path.write_text(json.dumps({**content, "kind": "ani"}))
    elif damage == "negative":
        content["pairs"]["H-O"]["distance_A"] = -1.0
        path.write_text(json.dumps(content))
    elif damage == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FormatError, match=r"bad\.json"):
        Morse.load([path])


def test_an_unknown_element_is_refused_by_name(teacher, rattled):
    with pytest.raises(InputError, match=r"trained on H, O.*cannot treat N"):
        Morse.load([teacher]).forces(Batch.of(rattled("NH3", 1)))

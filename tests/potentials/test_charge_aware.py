"""ANI members that know charge and spin: what blind ones cannot do, and all that both must do."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms

from hpcal.core.batch import Batch
from hpcal.core.dataset import Dataset
from hpcal.core.deadline import Deadline
from hpcal.core.errors import FormatError, InputError, TaskFailure
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.protocols import MemberSpec
from hpcal.core.structure import Structure
from hpcal.core.walker import Split
from hpcal.potentials import ensemble, files, states, training
from hpcal.potentials.ani import ANI
from hpcal.potentials.constants import fit_self_energies, fit_state_energies
from hpcal.potentials.descriptors import AEVSettings
from hpcal.potentials.member import Frame, Member
from hpcal.testing import check_potential, check_potential_kind

XTB = LevelOfTheory(code="tblite", version="test", method="GFN2-xTB")
WATER = ((0, 1), (0, 3), (1, 2), (-1, 2))
"""Charges and multiplicities that GFN2-xTB tells apart in water; energies are 6 to 18 eV apart."""
SMALL = {"hidden": (16, 8), "device": "cpu", "batch_size": 8}


def kind(**more) -> ANI:
    return ANI(ANI.Settings(**{**SMALL, "charge_aware": True, **more}))


def in_states(structure: Structure, wanted=WATER) -> list[Structure]:
    return [replace(structure, charge=q, multiplicity=m) for q, m in wanted]


@pytest.fixture(scope="module")
def water_states(rattled) -> Dataset:
    """20 geometries of water in four states each, a fifth of the geometries for validation."""
    from tblite.ase import TBLite

    structures = [s for geometry in rattled("H2O", 20) for s in in_states(geometry)]
    labels = []
    for s in structures:
        calculator = TBLite(method="GFN2-xTB", charge=s.charge, multiplicity=s.multiplicity, verbosity=0)
        atoms = Atoms(s.numbers, s.positions, calculator=calculator)
        labels.append(Label(energy=atoms.get_potential_energy(), forces=atoms.get_forces(), level=XTB))
    splits = [Split.VALIDATION if (i // 4) % 5 == 0 else Split.TRAIN for i in range(len(structures))]
    return Dataset.of(structures, labels, splits=splits)


def singlet_and_cation(dataset: Dataset) -> Dataset:
    return dataset.take(np.flatnonzero((dataset.charges >= 0) & (dataset.multiplicities < 3)))


@pytest.fixture(scope="module")
def members(water_states, tmp_path_factory, trained):
    """Three members trained on the neutral singlet and the cation."""
    what, data = kind(epochs=8, dtype="float64"), singlet_and_cation(water_states)
    results = trained(what, data, tmp_path_factory.mktemp("members"))
    return [Path(r.path) for r in results]


@pytest.fixture(scope="module")
def potential(members):
    return ANI.load(members, dtype="float64")


@pytest.fixture(scope="module")
def batch(rattled, crystal):
    """Copies for the dense pass and others for lists, each in several states, one periodic."""
    dimer = np.concatenate([s.positions + np.array([4.0 * i, 0, 0]) for i, s in enumerate(rattled("H2O", 2))])
    pair = Structure(numbers=[8, 1, 1] * 2, positions=dimer, charge=1, multiplicity=2)
    monomers = [s for geometry in rattled("H2O", 2, seed=4) for s in in_states(geometry)]
    charged = replace(crystal(), charge=1, multiplicity=2)
    return Batch.of([monomers[0], pair, charged, *monomers[1:]], dtype=torch.float64)


def errors(potential, dataset: Dataset) -> tuple[float, float]:
    """RMSE of the mean energy (eV) and of its force components (eV/Å)."""
    batch = Batch.of(dataset.structures())
    energies = potential.energies(batch).mean(dim=0).numpy() - dataset.energies
    forces = potential.forces(batch).double().numpy().reshape(-1, 3) - dataset.forces
    return float(np.sqrt((energies**2).mean())), float(np.sqrt((forces**2).mean()))


@pytest.mark.slow
def test_states_of_one_geometry_are_told_apart_by_an_aware_model_only(water_states, tmp_path, trained):
    """A blind model can do no better than the mean over the states of each geometry."""
    unseen = water_states.take(water_states.where(Split.VALIDATION))
    energies, forces = unseen.energies.reshape(-1, 4), unseen.forces.reshape(-1, 4, 3, 3)
    least = float(np.sqrt(energies.var(axis=1).mean())), float(np.sqrt(forces.var(axis=1).mean()))
    found = {}
    for aware in (False, True):
        name = f"aware-{aware}"
        results = trained(
            kind(charge_aware=aware, hidden=(48, 32), epochs=100), water_states, tmp_path / name, members=2
        )
        found[name] = errors(ANI.load([Path(r.path) for r in results]), unseen)
    assert found["aware-False"][0] > 0.999 * least[0] > 6.0
    assert found["aware-False"][1] > 0.999 * least[1] > 4.0
    assert found["aware-True"][0] < 0.03 * least[0]
    assert found["aware-True"][1] < 0.15 * least[1]


def test_it_says_that_it_is_aware_and_of_which_states(potential, members):
    assert kind().capabilities().charge_aware
    assert not ANI(ANI.Settings()).capabilities().charge_aware
    assert potential.capabilities() == replace(kind().capabilities(), elements=frozenset({1, 8}))
    assert potential.states == {(0, 1), (1, 2)}
    assert Member.read(members[0]).frame.state.seen == ((0, 1), (1, 2))


def test_forces_are_minus_the_gradient_of_the_energy_of_each_state(potential, batch):
    plan = potential._plan(batch)
    assert len(plan.groups) == 1
    assert plan.by_lists
    forces, step = potential.member_forces(batch), 1e-4
    assert torch.allclose(forces.mean(dim=0), potential.forces(batch), atol=1e-12)
    for atom, axis in itertools.product(range(batch.numbers.shape[1]), range(3)):
        ends = []
        for sign in (1, -1):
            moved = batch.positions.clone()
            moved[:, atom, axis] += sign * step
            ends.append(potential.energies(batch.at(moved)))
        assert torch.allclose(forces[:, :, atom, axis], (ends[1] - ends[0]) / (2 * step), atol=1e-6)
    # Rows 0 and 3 to 5 are one geometry: other states, other energies and other forces.
    rows = [0, 3, 4, 5]
    apart = torch.cdist(forces[0, rows].flatten(1), forces[0, rows].flatten(1)) + torch.eye(4)
    assert float(apart.min()) > 0.05
    assert np.ptp(potential.energies(batch)[0, rows].numpy()) > 5.0


def test_a_mixed_batch_keeps_all_promises_of_a_potential(potential, rattled, crystal):
    """Order, companions, padding, motion, differences, crystals and the biased evaluation."""
    (geometry,) = rattled("H2O", 1, seed=4)
    check_potential(potential, [*in_states(geometry), crystal()])


def test_dense_pass_and_lists_agree_on_mixed_states(potential, members, batch, monkeypatch):
    energies, forces = potential.energies(batch), potential.member_forces(batch)
    monkeypatch.setattr(ensemble, "MAX_ATOMS", 2)
    other = ANI.load(members, dtype="float64")
    assert torch.allclose(other.energies(batch), energies, rtol=0, atol=1e-9)
    assert torch.allclose(other.member_forces(batch), forces, atol=1e-10)
    assert other._plan(batch).groups == ()


def test_features_tell_the_states_of_a_geometry_apart(potential, batch):
    features = potential.features(batch)
    assert features.shape[2] == potential.frame.widths[0]
    assert (features[~batch.mask] == 0).all()
    assert torch.equal(features[0, :, :-2], features[3, :, :-2])
    # An electron of one of three atoms, where all of the training had three.
    assert float((features[0, 0] - features[3, 0]).norm()) == pytest.approx(20.0)


def test_two_cells_with_twice_the_charge_have_twice_the_energy(potential, crystal):
    one = replace(crystal(), charge=1, multiplicity=2)
    shifted = one.positions + one.cell[0]
    two = Structure(
        numbers=np.tile(one.numbers, 2),
        positions=np.concatenate([one.positions, shifted]),
        cell=one.cell * [[2.0], [1.0], [1.0]],
        pbc=one.pbc,
        charge=2,
        multiplicity=3,
    )
    single, double = (potential.energies(Batch.of([s], dtype=torch.float64)) for s in (one, two))
    assert torch.allclose(2 * single, double, rtol=0, atol=1e-8)
    neutral = potential.energies(Batch.of([crystal()], dtype=torch.float64))
    assert float((single - neutral).abs().min()) > 1.0


@pytest.mark.slow
def test_members_differ_on_states_that_they_have_not_seen(water_states, tmp_path, trained):
    """The singlet and the cation are in the training, the triplet and the anion are not."""
    what, data = kind(hidden=(48, 32), epochs=80), singlet_and_cation(water_states)
    results = trained(what, data, tmp_path, members=5)
    potential = ANI.load([Path(r.path) for r in results])
    unseen = water_states.take(water_states.where(Split.VALIDATION)).structures()
    forces = potential.member_forces(Batch.of(unseen)).std(dim=0).flatten(1).norm(dim=1)
    singlet, triplet, cation, anion = (float(forces[k::4].median()) for k in range(4))
    assert min(triplet, anion) > 3.0 * max(singlet, cation)


# ── Constants ────────────────────────────────────────────────────────────────────────────────


def labelled(of: list[tuple[list[int], int, int]], energy) -> Dataset:
    structures = [
        Structure(numbers=z, positions=3.0 * np.eye(3)[: len(z)], charge=q, multiplicity=m) for z, q, m in of
    ]
    level = LevelOfTheory(code="t", version="0", method="m")
    return Dataset.of(structures, [Label(energy=energy(s), forces=None, level=level) for s in structures])


def test_constants_of_charge_and_spin_are_found_beside_those_of_elements():
    def energy(s: Structure) -> float:
        own = {1: -13.0, 8: -2040.0}
        return sum(own[int(z)] for z in s.numbers) + 9.0 * s.charge + 1.5 * (s.multiplicity - 1)

    of = [([8, 1, 1], q, m) for q, m in WATER] + [([8, 1], 0, 2), ([8, 1], 1, 1), ([1, 1], 0, 1)]
    dataset = labelled(of, energy)
    elements, state = fit_state_energies(dataset, (1, 8), np.arange(len(of)), {})
    assert elements == pytest.approx([-13.0, -2040.0], abs=1e-6)
    assert state == pytest.approx([9.0, 1.5], abs=1e-6)
    kept, state = fit_state_energies(dataset, (1, 8), np.arange(len(of)), {1: -13.0}, (9.0, None))
    assert kept[0] == -13.0
    assert state == pytest.approx([9.0, 1.5], abs=1e-6)
    assert state[0] == 9.0


def test_what_one_state_cannot_tell_goes_to_the_elements():
    dataset = labelled([([8, 1, 1], 1, 2)] * 3, lambda s: -2054.0)
    elements, state = fit_state_energies(dataset, (1, 8), np.arange(3), {})
    assert elements == pytest.approx(fit_self_energies(dataset, (1, 8), np.arange(3), {}), rel=1e-6)
    assert np.abs(state).max() < 1e-2
    neutral = labelled([([8, 1, 1], 0, 1)] * 3, lambda s: -2054.0)
    assert (fit_state_energies(neutral, (1, 8), np.arange(3), {})[1] == 0).all()


# ── Warm starts ──────────────────────────────────────────────────────────────────────────────


def test_a_member_in_another_frame_is_the_same_function_of_geometry_and_state(
    tmp_path, members, potential, batch
):
    member = Member.read(members[1])
    frame = replace(
        member.frame,
        centres=member.frame.centres + 0.3,
        scales=member.frame.scales * 1.7,
        self_energies=member.frame.self_energies - [3.0, 5.0],
        state=replace(member.frame.state, scale=0.4 * member.frame.state.scale),
    )
    path = tmp_path / "moved.ani"
    path.write_bytes(member.in_frame(frame).encode())
    both = ANI.load([members[0], path], dtype="float64")
    assert torch.allclose(both.energies(batch), potential.energies(batch)[:2], rtol=0, atol=1e-8)
    assert torch.allclose(both.member_forces(batch), potential.member_forces(batch)[:2], atol=1e-8)


def test_members_with_other_constants_of_charge_and_spin_go_together(tmp_path, members, potential, batch):
    member = Member.read(members[1])
    state = replace(member.frame.state, energies=member.frame.state.energies + np.array([2.0, -1.0]))
    path = tmp_path / "other.ani"
    path.write_bytes(replace(member, frame=replace(member.frame, state=state)).encode())
    both = ANI.load([members[0], path], dtype="float64")
    moved = both.energies(batch)[1] - potential.energies(batch)[1]
    expected = 2.0 * batch.charges - (batch.multiplicities - 1)
    assert torch.allclose(moved, expected.double(), rtol=0, atol=1e-9)
    assert torch.allclose(
        both.biased(batch, None, torch.zeros(len(batch))).energies, both.energies(batch), atol=1e-9
    )


def test_a_warm_start_begins_where_the_member_ended_and_takes_up_a_state(
    water_states, members, potential, tmp_path, trained
):
    still = kind(warm_epochs=1, warm_learning_rate=1e-9, dtype="float64")
    (result,) = trained(still, water_states, tmp_path / "still", members=1, start_from=str(members[0]))
    before, after = Member.read(members[0]).frame, Member.read(Path(result.path)).frame
    assert after.state.seen == tuple(sorted(WATER))
    assert after.state.scale == before.state.scale
    assert (after.state.energies == before.state.energies).all()
    seen = Batch.of(
        [s for s in water_states.structures() if (s.charge, s.multiplicity) in before.state.seen],
        dtype=torch.float64,
    )
    warm = ANI.load([Path(result.path)], dtype="float64")
    assert torch.allclose(warm.energies(seen)[0], potential.energies(seen)[0], rtol=0, atol=1e-4)


def test_charge_gets_its_constant_when_it_first_varies(water_states, tmp_path, trained):
    neutral = water_states.take(np.flatnonzero(water_states.multiplicities == 1))
    (cold,) = trained(kind(epochs=1), neutral, tmp_path / "cold", members=1)
    before = Member.read(Path(cold.path)).frame.state
    assert before.seen == ((0, 1),)
    assert before.known == (None, None)
    assert (before.energies == 0).all()
    ions = water_states.take(np.flatnonzero(water_states.multiplicities < 3))
    more = kind(warm_epochs=1)
    (warm,) = trained(more, ions, tmp_path / "warm", members=1, start_from=cold.path)
    after = Member.read(Path(warm.path)).frame.state
    assert after.scale == before.scale
    # Half the distance of cation and anion, and the mean of both over the neutral.
    assert after.energies == pytest.approx([7.0, 11.0], abs=2.0)
    assert None not in after.known


def test_aware_and_blind_members_do_not_go_together(members, water_states, tmp_path, trained):
    blind = kind(charge_aware=False, epochs=1)
    (other,) = trained(blind, water_states, tmp_path / "blind", members=1)
    with pytest.raises(FormatError, match=r"knows charge and spin.*must share"):
        ANI.load([members[0], Path(other.path)])
    with pytest.raises(InputError, match="charge_aware"):
        trained(blind, water_states, tmp_path / "start", members=1, start_from=str(members[0]))
    assert ANI.load([Path(other.path)]).states == frozenset()


# ── Trainings that go on, and their files ────────────────────────────────────────────────────


def test_an_interrupted_training_ends_as_an_uninterrupted_one(water_states, tmp_path, trained, monkeypatch):
    data = water_states.take(np.arange(20))
    expected = [r.sha256 for r in trained(kind(epochs=3), data, tmp_path / "whole", members=2)]
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    specs, trainer = [MemberSpec(index=i, seed=10 + i) for i in range(2)], kind(epochs=3).trainer((1, 8), 5)
    for steps in (1, 1):
        with pytest.raises(TaskFailure, match="of 3 epochs"):
            trainer.fit(data, specs, Deadline(steps=steps), tmp_path / "parts")
    results = trainer.fit(data, specs, Deadline(), tmp_path / "parts")
    assert [r.sha256 for r in results] == expected


def test_a_training_on_other_states_is_another_training(water_states, tmp_path, trained):
    """Blind members do not care, and go on."""
    data = water_states.take(np.arange(8))
    turned = Dataset(**{**data.__dict__, "charges": -data.charges})
    for aware in (True, False):
        what = kind(epochs=1, charge_aware=aware)
        hashes = [trained(what, d, tmp_path / str(aware), members=1)[0].sha256 for d in (data, turned)]
        assert (hashes[0] == hashes[1]) == (not aware)


def test_kept_and_recomputed_derivatives_train_alike(water_states, tmp_path, trained):
    data = water_states.take(np.arange(12))
    settings = {"epochs": 2, "dtype": "float64"}
    kept, recomputed = (
        trained(kind(**settings, jacobian_memory_GB=memory), data, tmp_path / str(memory), members=2)
        for memory in (2.0, 0.0)
    )
    for one, two in zip(kept, recomputed, strict=True):
        a, b = Member.read(Path(one.path)), Member.read(Path(two.path))
        for (w, _), (v, _) in zip(itertools.chain(*a.networks), itertools.chain(*b.networks), strict=True):
            assert np.allclose(w, v, rtol=0, atol=1e-8)


def test_files_of_blind_members_are_as_they_were_before_there_were_others(tmp_path):
    """The hash is that of the format before charge and spin: such files are read on, and written."""
    aev = AEVSettings(radial_count=2, angular_count=1, section_count=1)

    def numbers(*shape: int):
        return (np.arange(np.prod(shape)).reshape(shape) * 0.25 - 1.0).astype(np.float32)

    frame = Frame(
        elements=(1, 8),
        trained=(1,),
        aev=aev,
        hidden=(3,),
        activation="celu",
        centres=numbers(2, 7).astype(float),
        scales=np.array([0.5, 1.5]),
        self_energies=np.array([-13.0, -2000.0]),
    )
    layers = ((numbers(3, 7), numbers(3)), (numbers(1, 3), numbers(1)))
    data = Member(frame=frame, networks=(layers, layers), info={"index": 0}).encode()
    expected = "487a5584b44886df281a0e98dd41b0e6bdb7b4647a405fb0428cce59c4fee6ea"
    assert hashlib.sha256(data).hexdigest() == expected
    path = tmp_path / "member.ani"
    path.write_bytes(data)
    found = Member.read(path)
    assert found.frame.state is None
    assert found.encode() == data


def test_the_file_of_an_aware_member_holds_all_of_it(members, tmp_path):
    member = Member.read(members[0])
    assert member.encode() == members[0].read_bytes()
    content = files.read(members[0], "ani")
    path = tmp_path / "member.ani"
    for damage in ({"scale": 0.0}, {"energies": np.zeros(3)}, {"seen": 3}):
        files.write(path, {**content, "state": {**content["state"], **damage}})
        with pytest.raises(FormatError, match="incomplete"):
            Member.read(path)
    del content["state"]
    files.write(path, content)
    with pytest.raises(FormatError, match="layers have shapes"):
        Member.read(path)


def test_an_electron_more_is_the_same_input_whatever_the_number_of_structures():
    assert states.scale(np.array([3, 3, 3])) == pytest.approx(1.0 / 30.0)
    assert states.scale(np.array([1, 7])) == pytest.approx(np.sqrt((1 + 1 / 49) / 2) / 10)


@pytest.mark.slow
def test_the_kind_keeps_its_promises(water_states, tmp_path, rattled):
    settings = {**SMALL, "members": 2, "epochs": 3, "charge_aware": True}
    shown = in_states(*rattled("H2O", 1, seed=9))
    check_potential_kind("ani", settings, water_states, tmp_path, structures=shown)

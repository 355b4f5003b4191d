"""What training promises: it learns, it is the same every time, and it goes on where it stopped."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcal.core.batch import Batch
from hpcal.core.dataset import Dataset
from hpcal.core.deadline import Deadline
from hpcal.core.ensemble import file_sha256
from hpcal.core.errors import FailureClass, InputError, TaskFailure
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.protocols import MemberSpec
from hpcal.core.structure import Structure
from hpcal.core.walker import Split
from hpcal.potentials import training
from hpcal.potentials.ani import ANI
from hpcal.potentials.constants import fit_self_energies
from hpcal.potentials.determinism import deterministic
from hpcal.potentials.member import Member
from hpcal.potentials.networks import energies_and_slopes, initial, stacked

SMALL = {"hidden": (10, 6), "device": "cpu", "batch_size": 8}


def kind(**more) -> ANI:
    return ANI(ANI.Settings(**{**SMALL, **more}))


def force_error(potential, dataset: Dataset, index) -> float:
    part = dataset.take(index)
    forces = potential.forces(Batch.of(part.structures())).double().numpy().reshape(-1, 3)
    return float(np.sqrt(((forces - part.forces) ** 2).mean()))


def test_training_learns_xtb_forces_of_water(water, tmp_path, trained):
    results = trained(kind(epochs=60), water, tmp_path, members=3)
    held_out = water.where(Split.VALIDATION)
    spread = float(water.take(held_out).forces.std())
    potential = ANI.load([Path(r.path) for r in results])
    assert force_error(potential, water, held_out) < 0.15 * spread
    energies = potential.energies(Batch.of(water.take(held_out).structures())).mean(dim=0).numpy()
    assert np.abs(energies - water.energies[held_out]).max() < 0.15
    for k, result in enumerate(results):
        single = ANI.load([Path(result.path)])
        error = force_error(single, water, held_out)
        assert result.metrics["validation_force_rmse"] == pytest.approx(error, rel=1e-3)
        bag = [list(water.ids).index(i) for i in result.trained_on]
        assert result.metrics["train_force_rmse"] == pytest.approx(force_error(single, water, bag), rel=1e-3)
        assert result.index == k
        assert result.metrics["epochs"] == 60
        assert result.metrics["seconds"] > 0


def test_a_step_follows_the_gradient_whatever_its_layout_in_memory(mixed_dataset):
    """AdamW's first step moves a weight by the rate against the sign of its gradient.

    The gradients of layers between two hidden ones come transposed from autograd.
    """
    trainer = kind(dtype="float64", weight_decay=0.0, warmup=0.0).trainer(mixed_dataset().elements, 1)
    job = trainer._job(mixed_dataset(), [MemberSpec(index=0, seed=1), MemberSpec(index=1, seed=2)], "")
    state, index = trainer._begun(job), np.arange(4)
    before = [w.detach().clone() for w in state.weights]
    loss = trainer._losses(job, trainer._networks(state.weights), index, job.in_bag[:, index]).sum()
    gradients = torch.autograd.grad(loss, state.weights)
    assert not all(g.is_contiguous() for g in gradients)
    trainer._step(job, state, index, 100)
    for old, new, gradient in zip(before, state.weights, gradients, strict=True):
        clear = gradient.abs() > 1e-6
        expected = old - job.peak_rate * gradient.sign()
        assert torch.allclose(new.detach()[clear], expected[clear], rtol=0, atol=0.02 * job.peak_rate)


def test_sums_are_ordered_while_a_gpu_trains_and_only_then(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with deterministic(torch.device("cpu")):
        assert not torch.are_deterministic_algorithms_enabled()
    with deterministic(torch.device("cuda", 1)):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_bags_hold_the_stated_share_of_the_train_split(water, tmp_path, trained):
    results = trained(kind(epochs=1, bagging=0.75), water, tmp_path, members=3)
    train = {int(i) for i in water.ids[water.where(Split.TRAIN)]}
    bags = [set(r.trained_on) for r in results]
    assert all(len(bag) == round(0.75 * len(train)) and bag <= train for bag in bags)
    assert bags[0] != bags[1]


def test_structures_outside_the_bag_do_not_matter(water, tmp_path, trained):
    """A label that no bag holds may be anything: its member is the same to the bit."""
    settings = {"epochs": 3, "bagging": 0.5}
    (result,) = trained(kind(**settings), water, tmp_path / "a", members=1)
    train = water.where(Split.TRAIN)
    outside = [i for i in train if int(water.ids[i]) not in result.trained_on]
    forces = water.forces.copy()
    for i in outside:
        forces[water.offsets[i] : water.offsets[i + 1]] += 7.0
    changed = Dataset(**{**water.__dict__, "forces": forces})
    (other,) = trained(kind(**settings), changed, tmp_path / "b", members=1)
    one, two = Member.read(Path(result.path)), Member.read(Path(other.path))
    for a, b in zip(itertools.chain(*one.networks), itertools.chain(*two.networks), strict=True):
        assert (a[0] == b[0]).all()
    assert len(outside) == 24


def test_same_inputs_give_the_same_files(water, tmp_path, trained):
    hashes = [[r.sha256 for r in trained(kind(epochs=3), water, tmp_path / name)] for name in ("one", "two")]
    assert hashes[0] == hashes[1]
    assert len(set(hashes[0])) == 3
    for result in trained(kind(epochs=3), water, tmp_path / "three"):
        assert file_sha256(Path(result.path)) == result.sha256
        assert Path(result.path).name == f"member-{result.index}-{result.sha256[:12]}.ani"


def test_an_interrupted_training_ends_as_an_uninterrupted_one(water, tmp_path, trained, monkeypatch):
    expected = [r.sha256 for r in trained(kind(epochs=5), water, tmp_path / "whole")]
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    specs = [MemberSpec(index=i, seed=10 + i) for i in range(3)]
    trainer = kind(epochs=5).trainer(water.elements, seed=5)

    def three_steps():
        # The deadline comes in the middle of an epoch, after three steps.
        asked = itertools.count()
        return Deadline(stop=lambda: next(asked) >= 3)

    for _ in range(9):
        with pytest.raises(TaskFailure) as caught:
            trainer.fit(water, specs, three_steps(), tmp_path / "parts")
        assert caught.value.failure_class is FailureClass.RESOURCE
    results = trainer.fit(water, specs, three_steps(), tmp_path / "parts")
    assert [r.sha256 for r in results] == expected


def test_a_killed_training_goes_on_from_its_last_checkpoint(water, tmp_path, trained, monkeypatch):
    expected = [r.sha256 for r in trained(kind(epochs=4), water, tmp_path / "whole")]
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)

    class Killed(BaseException):
        pass

    asked = itertools.count()

    def kill() -> bool:
        if next(asked) == 13:
            raise Killed
        return False

    specs = [MemberSpec(index=i, seed=10 + i) for i in range(3)]
    with pytest.raises(Killed):
        kind(epochs=4).trainer(water.elements, 5).fit(water, specs, Deadline(stop=kill), tmp_path / "k")
    assert list((tmp_path / "k").iterdir())
    asked = itertools.count()
    counted = Deadline(stop=lambda: next(asked) < 0)
    results = kind(epochs=4).trainer(water.elements, 5).fit(water, specs, counted, tmp_path / "k")
    assert [r.sha256 for r in results] == expected
    assert next(asked) == 4 * 6 - 12


def test_a_budget_of_steps_counts_epochs(water, tmp_path):
    with pytest.raises(TaskFailure, match="after 2 of 5 epochs"):
        kind(epochs=5).trainer(water.elements, 5).fit(
            water, [MemberSpec(index=0, seed=1)], Deadline(steps=2), tmp_path
        )


def test_a_finished_training_is_not_repeated(water, tmp_path, trained):
    first = trained(kind(epochs=2), water, tmp_path)
    again = (
        kind(epochs=2)
        .trainer(water.elements, 5)
        .fit(water, [MemberSpec(index=i, seed=10 + i) for i in range(3)], Deadline(steps=0), tmp_path)
    )
    assert list(again) == list(first)
    Path(first[1].path).write_bytes(b"damaged")
    redone = trained(kind(epochs=2), water, tmp_path)
    assert [r.sha256 for r in redone] == [r.sha256 for r in first]
    assert file_sha256(Path(redone[1].path)) == first[1].sha256


def test_a_checkpoint_of_another_training_is_not_used(water, tmp_path, trained):
    expected = [r.sha256 for r in trained(kind(epochs=3), water, tmp_path / "clean")]
    specs = [MemberSpec(index=i, seed=10 + i) for i in range(3)]
    with pytest.raises(TaskFailure):
        kind(epochs=4).trainer(water.elements, 5).fit(water, specs, Deadline(steps=1), tmp_path / "used")
    assert [r.sha256 for r in trained(kind(epochs=3), water, tmp_path / "used")] == expected


def test_the_best_epoch_by_validation_is_kept(water, tmp_path, trained):
    """A rate that grows too high late makes the last epoch worse than an earlier one."""
    wild = kind(epochs=8, learning_rate=0.3, final_learning_rate=0.3, warmup=0.9)
    results = trained(wild, water, tmp_path)
    assert any(r.metrics["best_epoch"] < 8 for r in results)
    training_only = Dataset(**{**water.__dict__, "splits": np.array(["train"] * len(water))})
    last = trained(wild, training_only, tmp_path / "last", members=1)
    assert last[0].metrics["best_epoch"] == 8
    assert "validation_force_rmse" not in last[0].metrics


def test_warm_start_keeps_the_frame_and_begins_where_the_member_ended(water, tmp_path, trained):
    (cold,) = trained(kind(epochs=40), water, tmp_path / "cold", members=1)
    warm_kind = kind(warm_epochs=1, warm_learning_rate=1e-9)
    (warm,) = trained(warm_kind, water, tmp_path / "warm", members=1, start_from=cold.path)
    assert warm.metrics["epochs"] == 1
    before, after = Member.read(Path(cold.path)), Member.read(Path(warm.path))
    for name in ("centres", "scales", "self_energies"):
        assert (getattr(before.frame, name) == getattr(after.frame, name)).all()
    batch = Batch.of(water.structures())
    one, two = (ANI.load([Path(r.path)]).energies(batch) for r in (cold, warm))
    assert torch.allclose(one, two, rtol=0, atol=1e-4)
    better_kind = kind(warm_epochs=30)
    (better,) = trained(better_kind, water, tmp_path / "better", members=1, start_from=cold.path)
    assert better.metrics["train_force_rmse"] < cold.metrics["train_force_rmse"]


def test_warm_start_takes_up_a_new_element(water, mixed_dataset, tmp_path, trained):
    elements = (1, 6, 8)
    (cold,) = trained(kind(epochs=3), water, tmp_path / "cold", members=1, elements=elements)
    assert ANI.load([Path(cold.path)]).capabilities().elements == {1, 8}
    more = kind(warm_epochs=3)
    (warm,) = trained(
        more, mixed_dataset(), tmp_path / "w", members=1, elements=elements, start_from=cold.path
    )
    before, after = Member.read(Path(cold.path)).frame, Member.read(Path(warm.path)).frame
    assert after.trained == elements
    known = [0, 2]
    assert (before.centres[known] == after.centres[known]).all()
    assert after.scales[1] != 1.0
    assert after.self_energies[1] != 0.0


def test_warm_start_from_another_architecture_is_refused(water, tmp_path, trained):
    (cold,) = trained(kind(epochs=1), water, tmp_path / "cold", members=1)
    other = kind(hidden=(5,))
    with pytest.raises(InputError, match="cannot be gone on from"):
        trained(other, water, tmp_path / "other", members=1, start_from=cold.path)


def test_kept_and_recomputed_derivatives_train_alike(mixed_dataset, tmp_path, trained):
    """One step of both ways, in double precision, with periodic cells and a label without forces."""
    settings = {"epochs": 2, "dtype": "float64", "batch_size": 4}
    dataset = mixed_dataset()
    kept = trained(kind(**settings), dataset, tmp_path / "kept")
    recomputed = trained(kind(**settings, jacobian_memory_GB=0.0), dataset, tmp_path / "recomputed")
    for one, two in zip(kept, recomputed, strict=True):
        a, b = Member.read(Path(one.path)), Member.read(Path(two.path))
        for (w, _), (v, _) in zip(itertools.chain(*a.networks), itertools.chain(*b.networks), strict=True):
            assert np.allclose(w, v, rtol=0, atol=1e-8)
    start = Member.read(Path(kept[0].path)).networks[0][0][0]
    rng = training.stream(10, training.INITIAL)
    assert not np.allclose(start, initial([start.shape[1], 10, 6, 1], rng)[0][0], atol=1e-3)


def test_gradient_of_the_loss_is_that_of_finite_differences(mixed_dataset, tmp_path):
    dataset = mixed_dataset()
    trainer = kind(dtype="float64").trainer(dataset.elements, 1)
    for memory in (2.0, 0.0):
        trainer.settings = kind(dtype="float64", jacobian_memory_GB=memory).settings
        job = trainer._job(dataset, [MemberSpec(index=0, seed=1), MemberSpec(index=1, seed=2)], "")
        assert (job.data.cached is not None) == (memory > 0)
        weights = [w.requires_grad_() for w in trainer._initial_weights(job)]
        index, mask = np.arange(len(dataset)), torch.ones((2, len(dataset)), dtype=torch.float64)

        def loss(job=job, weights=weights, index=index, mask=mask):
            return trainer._losses(job, trainer._networks(weights), index, mask).sum()

        gradients = torch.autograd.grad(loss(), weights)
        rng = np.random.default_rng(0)
        for weight, gradient in zip(weights, gradients, strict=True):
            direction = torch.tensor(rng.normal(size=weight.shape))
            ends = []
            for sign in (1.0, -1.0):
                with torch.no_grad():
                    weight.add_(direction, alpha=sign * 1e-6)
                ends.append(float(loss().detach()))
                with torch.no_grad():
                    weight.sub_(direction, alpha=sign * 1e-6)
            assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(
                float((gradient * direction).sum()), rel=1e-5, abs=1e-6
            )


@pytest.mark.parametrize("activation", ["celu", "gelu", "silu"])
def test_slopes_of_the_networks_are_their_derivatives(activation):
    rng = np.random.default_rng(0)
    members = [[(torch.tensor(w), torch.tensor(b)) for w, b in initial([7, 5, 4, 1], rng)] for _ in range(3)]
    network = stacked(members)
    x = torch.tensor(rng.normal(size=(7, 6)), requires_grad=True)
    energies, slopes = energies_and_slopes(network, x, activation)
    for m in range(3):
        (expected,) = torch.autograd.grad(energies[m].sum(), x, retain_graph=True)
        assert torch.allclose(slopes[m].T, expected, atol=1e-12)


def test_labels_without_forces_train_on_energies(tmp_path, rattled, trained):
    level = LevelOfTheory(code="t", version="0", method="m")
    structures = rattled("H2O", 20)
    energies = [float(np.linalg.norm(s.positions[0] - s.positions[1])) for s in structures]
    labels = [Label(energy=e, forces=None, level=level) for e in energies]
    dataset = Dataset.of(structures, labels)
    (result,) = trained(kind(epochs=80, bagging=1.0), dataset, tmp_path, members=1)
    assert result.metrics["train_energy_rmse"] < 0.5 * np.std(energies)
    assert "train_force_rmse" not in result.metrics


def test_divergence_is_said_with_its_likely_cause(water, tmp_path, trained):
    with pytest.raises(TaskFailure, match="learning rate") as caught:
        trained(kind(epochs=5, learning_rate=1e25), water, tmp_path)
    assert caught.value.failure_class is FailureClass.PHYSICS


def test_data_that_cannot_train_are_refused(water, tmp_path, trained):
    with pytest.raises(InputError, match="holds H"):
        trained(kind(), water, tmp_path, elements=(8,))
    none = Dataset(**{**water.__dict__, "splits": np.array(["validation"] * len(water))})
    with pytest.raises(InputError, match="train split"):
        trained(kind(), none, tmp_path)
    energies = water.energies.copy()
    energies[3] = np.nan
    with pytest.raises(InputError, match="structure 103"):
        trained(kind(), Dataset(**{**water.__dict__, "energies": energies}), tmp_path)
    with pytest.raises(InputError, match="no members"):
        trained(kind(), water, tmp_path, members=0)


def test_self_energies_survive_one_composition_and_a_broken_structure():
    level = LevelOfTheory(code="t", version="0", method="m")
    water = Structure(numbers=[8, 1, 1], positions=np.eye(3))
    labels = [Label(energy=e, forces=None, level=level) for e in [-76.0] * 9 + [500.0]]
    dataset = Dataset.of([water] * 10, labels)
    energies = fit_self_energies(dataset, (1, 8), np.arange(10), {})
    assert energies @ [2, 1] == pytest.approx(-76.0)
    # Of all solutions the one of smallest norm, which is along the composition.
    assert energies == pytest.approx(-76.0 * np.array([2, 1]) / 5)
    kept = fit_self_energies(dataset, (1, 8), np.arange(10), {1: -0.5})
    assert kept == pytest.approx([-0.5, -75.0])


def test_trained_elements_are_those_of_the_data(water, tmp_path, trained):
    (result,) = trained(kind(epochs=1), water, tmp_path, members=1, elements=(1, 6, 7, 8))
    potential = ANI.load([Path(result.path)])
    assert potential.capabilities().elements == {1, 8}
    with pytest.raises(InputError, match="cannot treat C"):
        potential.energies(Batch.of([Structure(numbers=[6, 1], positions=np.eye(3)[:2])]))

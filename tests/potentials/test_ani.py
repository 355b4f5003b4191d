"""What a trained ANI ensemble promises, against finite differences, torchani and itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcal.core.batch import Batch
from hpcal.core.errors import FormatError, InputError
from hpcal.core.plugins import Group, find
from hpcal.core.protocols import DifferentiablePotential
from hpcal.core.structure import Structure
from hpcal.potentials.ani import ANI
from hpcal.potentials.descriptors import AEVSettings
from hpcal.potentials.member import Member

import torchani.arch  # isort: skip - after hpcal, which silences its warning
from torchani.nn import ANINetworks, AtomicNetwork, SpeciesConverter  # isort: skip
from torchani.sae import SelfEnergy  # isort: skip

from hpcal.potentials import dense, descriptors, ensemble


@pytest.fixture(scope="module")
def files(tmp_path_factory, mixed_dataset, trained):
    """Three members after two epochs: weights that are not random any more."""
    kind = ANI(ANI.Settings(epochs=2, hidden=(12, 8), device="cpu"))
    results = trained(kind, mixed_dataset(), tmp_path_factory.mktemp("members"))
    return [Path(r.path) for r in results]


@pytest.fixture(scope="module")
def potential(files):
    return ANI.load(files, dtype="float64")


@pytest.fixture(scope="module")
def batch(rattled, crystal):
    """Molecules for the dense pass, others for lists, one periodic."""
    many = rattled("CH3OH", 7, seed=3)
    return Batch.of([many[0], crystal(), *rattled("H2O", 2, seed=4), *many[1:]], dtype=torch.float64)


def numerical(energy, positions: torch.Tensor, step: float = 1e-4) -> torch.Tensor:
    """-dE/dr by central differences; energy takes (B, N, 3) and gives (B,)."""
    forces = torch.zeros_like(positions)
    for atom in range(positions.shape[1]):
        for axis in range(3):
            moved = positions.clone()
            moved[:, atom, axis] += step
            up = energy(moved)
            moved[:, atom, axis] -= 2 * step
            forces[:, atom, axis] = -(up - energy(moved)) / (2 * step)
    return forces


def test_is_found_by_name_and_keeps_the_protocol(potential):
    assert find(Group.POTENTIALS, "ani") is ANI
    assert isinstance(potential, DifferentiablePotential)
    assert ANI(ANI.Settings()).n_members == 8
    assert ANI(ANI.Settings()).capabilities().elements is None
    can = potential.capabilities()
    assert can.differentiable
    assert can.periodic
    assert not can.charge_aware
    assert can.elements == {1, 6, 8}
    assert can.provides == {"energies", "member_forces", "features"}


def test_batch_takes_all_paths(potential, batch):
    plan = potential._plan(batch)
    assert len(plan.groups) == 1
    assert plan.by_lists


def test_forces_are_minus_the_gradient_of_the_mean(potential, batch):
    expected = numerical(lambda r: potential.energies(batch.at(r)).mean(dim=0), batch.positions)
    forces = potential.forces(batch)
    assert torch.allclose(forces, expected, atol=1e-6)
    assert float(forces.abs().max()) > 0.1
    assert (forces[~batch.mask] == 0).all()


def test_member_forces_are_minus_the_gradients_of_the_members(potential, batch):
    forces = potential.member_forces(batch)
    assert torch.allclose(forces.mean(dim=0), potential.forces(batch), atol=1e-12)
    for m in range(3):
        expected = numerical(lambda r, m=m: potential.energies(batch.at(r))[m], batch.positions)
        assert torch.allclose(forces[m], expected, atol=1e-6)


def test_dominant_bias_drives_the_biased_forces(potential, batch, udd_bias):
    spread = float((potential.energies(batch).var(dim=0, correction=0) / batch.n_atoms).sqrt().median())
    bias, times = udd_bias(20.0, spread), torch.zeros(len(batch))

    def energy(positions):
        result = potential.biased(batch.at(positions), bias, times)
        return result.energies.mean(dim=0) + result.bias

    result = potential.biased(batch, bias, times)
    assert torch.allclose(result.forces, numerical(energy, batch.positions, 1e-5), atol=1e-6)
    pushed = (result.forces - potential.forces(batch)).norm() / potential.forces(batch).norm()
    assert float(pushed) > 1.0
    assert torch.allclose(result.energies, potential.energies(batch), rtol=0, atol=1e-9)
    variance = potential.energies(batch).var(dim=0, correction=0) / batch.n_atoms
    assert torch.allclose(result.bias, 20.0 * (torch.exp(-variance / spread**2) - 1.0), atol=1e-6)


def test_without_a_bias_forces_are_those_of_the_mean(potential, batch):
    result = potential.biased(batch, None, torch.zeros(len(batch)))
    assert torch.allclose(result.forces, potential.forces(batch), atol=1e-12)
    assert (result.bias == 0).all()


def test_stress_is_the_strain_derivative_of_the_energy_by_volume(potential, crystal):
    batch = Batch.of([crystal(), crystal(1)], dtype=torch.float64)
    stress = potential.stress(batch)
    assert torch.allclose(stress, stress.transpose(1, 2), atol=1e-12)
    for a, b in ((0, 0), (1, 1), (2, 2), (0, 1), (1, 2), (0, 2)):
        strain = torch.zeros((3, 3), dtype=torch.float64)
        strain[a, b] += 0.5e-4
        strain[b, a] += 0.5e-4
        energies = []
        for sign in (1, -1):
            move = torch.eye(3, dtype=torch.float64) + sign * strain
            moved = replace(batch, positions=batch.positions @ move, cell=batch.cell @ move)
            energies.append(potential.energies(moved).mean(dim=0))
        expected = (energies[0] - energies[1]) / 2e-4 / torch.linalg.det(batch.cell).abs()
        assert torch.allclose(stress[:, a, b], expected, atol=1e-7)
    assert float(stress.abs().max()) > 1e-4
    with pytest.raises(InputError, match="cell"):
        potential.stress(Batch.of([Structure(numbers=[1, 1], positions=np.eye(3)[:2])]))


def test_energy_does_not_change_with_frame_or_order(potential, rattled):
    (structure,) = rattled("CH3OH", 1)
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    order = rng.permutation(len(structure))
    moved = Structure(
        numbers=structure.numbers[order], positions=(structure.positions @ turn.T + [5.0, -3.0, 2.0])[order]
    )
    here, there = (Batch.of([s], dtype=torch.float64) for s in (structure, moved))
    assert torch.allclose(potential.energies(here), potential.energies(there), rtol=0, atol=1e-9)
    turned = potential.forces(here)[0][order] @ torch.tensor(turn.T)
    assert torch.allclose(potential.forces(there)[0], turned, atol=1e-9)
    features = potential.features(here)[0][order]
    assert torch.allclose(potential.features(there)[0], features, atol=1e-9)


def test_company_in_the_batch_changes_nothing(potential, batch):
    energies, forces, features = (
        potential.energies(batch),
        potential.forces(batch),
        potential.features(batch),
    )
    assert (features[~batch.mask] == 0).all()
    for row in range(len(batch)):
        n = int(batch.n_atoms[row])
        alone = batch.rows(torch.tensor([row]))
        alone = replace(alone, numbers=alone.numbers[:, :n], positions=alone.positions[:, :n])
        assert torch.allclose(potential.energies(alone)[:, 0], energies[:, row], rtol=0, atol=1e-9)
        assert torch.allclose(potential.forces(alone)[0], forces[row, :n], atol=1e-10)
        assert torch.allclose(potential.features(alone)[0], features[row, :n], atol=1e-10)


def test_padding_may_lie_between_atoms(potential, rattled):
    (structure,) = rattled("H2O", 1)
    plain = Batch.of([structure], dtype=torch.float64)
    numbers = torch.tensor([[8, 0, 1, 1]])
    positions = torch.zeros((1, 4, 3), dtype=torch.float64)
    positions[0, [0, 2, 3]] = plain.positions[0]
    spread = replace(plain, numbers=numbers, positions=positions)
    assert torch.allclose(potential.energies(spread), potential.energies(plain), rtol=0, atol=1e-9)
    assert torch.allclose(potential.forces(spread)[0, [0, 2, 3]], potential.forces(plain)[0], atol=1e-10)


def torchani_model(path: Path) -> torchani.arch.ANI:
    """A member as a model of torchani, its weights copied; energies in Hartree."""
    from ase.units import Hartree

    member = Member.read(path)
    frame, symbols, networks = member.frame, ("H", "C", "O"), {}
    for e, symbol in enumerate(symbols):
        network = AtomicNetwork(frame.widths, activation=torch.nn.SiLU(), bias=True).double()
        layers = [*network.layers, network.final_layer]
        for layer, (weight, bias) in zip(layers, member.networks[e], strict=True):
            layer.weight.data, layer.bias.data = torch.tensor(weight).double(), torch.tensor(bias).double()
        first = layers[0]
        first.weight.data /= frame.scales[e]
        first.bias.data -= first.weight.data @ torch.tensor(frame.centres[e])
        layers[-1].weight.data /= Hartree
        layers[-1].bias.data /= Hartree
        networks[symbol] = network
    constants = SelfEnergy(symbols, (frame.self_energies / Hartree).tolist())
    return torchani.arch.ANI(
        symbols, descriptors.computer(frame.aev, 3), ANINetworks(networks), constants
    ).double()


def test_members_equal_torchani_models_with_the_same_weights(potential, files, rattled):
    from ase.units import Hartree

    molecules = [rattled("CH3OH", 8, seed=1), rattled("H2O", 3, seed=2)]
    for structures in molecules:
        batch = Batch.of(structures, dtype=torch.float64)
        energies = potential.energies(batch)
        for m, path in enumerate(files):
            model = torchani_model(path)
            leaf = batch.positions.clone().requires_grad_()
            expected = model((batch.numbers, leaf)).energies * Hartree
            (gradient,) = torch.autograd.grad(expected.sum(), leaf)
            # torchani keeps its self energies in single precision: compare differences.
            difference = energies[m] - expected.detach()
            assert torch.allclose(difference, difference.mean().expand_as(difference), atol=1e-7)
            assert float(difference.abs().max()) < 1e-3
            assert torch.allclose(potential.member_forces(batch)[m], -gradient, atol=1e-8)
    assert SpeciesConverter(("H", "C", "O"))(torch.tensor([[8]])).item() == 2


def test_stacked_members_equal_members_one_by_one(potential, files, batch):
    energies = torch.cat([ANI.load([path], dtype="float64").energies(batch) for path in files])
    assert torch.allclose(potential.energies(batch), energies, rtol=0, atol=1e-9)
    assert float(energies.std(dim=0).min()) > 1e-4


def test_single_precision_is_close_to_double(potential, files, batch):
    single = ANI.load(files, dtype="float32")
    assert single.dtype == torch.float32
    assert single.energies(batch).dtype == torch.float64
    assert torch.allclose(single.energies(batch), potential.energies(batch), rtol=0, atol=2e-5)
    assert torch.allclose(single.forces(batch).double(), potential.forces(batch), atol=1e-4)


def test_members_of_different_standardisation_are_evaluated_together(tmp_path, files, potential, batch):
    """Members trained on different data have different centres, scales and constants."""
    first, second = Member.read(files[0]), Member.read(files[1])
    frame = replace(
        second.frame,
        centres=second.frame.centres + 0.3,
        scales=second.frame.scales * 1.7,
        self_energies=second.frame.self_energies - [3.0, 5.0, 7.0],
    )
    moved = replace(
        second,
        networks=tuple(
            tuple((w.astype(np.float64), b.astype(np.float64)) for w, b in layers)
            for layers in second.networks
        ),
    ).in_frame(frame)
    other = tmp_path / "moved.ani"
    other.write_bytes(moved.encode())
    both = ANI.load([files[0], other], dtype="float64")
    assert first.frame.centres is not frame.centres
    assert torch.allclose(both.energies(batch), potential.energies(batch)[:2], rtol=0, atol=1e-6)
    result = both.biased(batch, None, torch.zeros(len(batch)))
    assert torch.allclose(result.energies, both.energies(batch), rtol=0, atol=1e-9)


def test_an_unknown_element_is_refused_by_name(potential, rattled):
    with pytest.raises(InputError, match=r"trained on H, C, O.*cannot treat N"):
        potential.energies(Batch.of(rattled("NH3", 1)))
    with pytest.raises(InputError, match="cannot treat N"):
        potential.forces(Batch.of([*rattled("H2O", 1), *rattled("NH3", 1)]))


def test_an_atom_alone_has_energy_and_no_force(potential):
    batch = Batch.of([Structure(numbers=[8], positions=[[0, 0, 0]])], dtype=torch.float64)
    assert torch.isfinite(potential.energies(batch)).all()
    assert (potential.forces(batch) == 0).all()
    assert (potential.member_forces(batch) == 0).all()


def test_molecules_too_large_for_the_dense_pass_go_by_lists(potential, files, batch, monkeypatch):
    energies, forces = potential.energies(batch), potential.forces(batch)
    monkeypatch.setattr(ensemble, "MAX_ATOMS", 2)
    other = ANI.load(files, dtype="float64")
    assert torch.allclose(other.energies(batch), energies, rtol=0, atol=1e-9)
    assert torch.allclose(other.forces(batch), forces, atol=1e-10)
    assert other._plan(batch).groups == ()
    assert dense.MAX_ATOMS > 9


@pytest.mark.parametrize("damage", ["flip", "cut", "text", "kind", "missing"])
def test_a_damaged_file_is_refused(tmp_path, files, damage):
    data = files[0].read_bytes()
    path = tmp_path / "member.ani"
    if damage == "flip":
        path.write_bytes(data[:-100] + bytes([data[-100] ^ 1]) + data[-99:])
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "text":
        path.write_text("weights")
    elif damage == "kind":
        from hpcal.potentials import files as formats

        path.write_bytes(formats.encode({"kind": "other"}))
    with pytest.raises(FormatError, match=r"member\.ani"):
        ANI.load([path])


def test_members_that_do_not_belong_together_are_refused(tmp_path, files, mixed_dataset, trained):
    kind = ANI(ANI.Settings(epochs=1, hidden=(6,), device="cpu"))
    (other,) = trained(kind, mixed_dataset(), tmp_path, members=1)
    with pytest.raises(FormatError, match="must share"):
        ANI.load([files[0], Path(other.path)])
    with pytest.raises(InputError, match="at least one"):
        ANI.load([])
    with pytest.raises(InputError, match="float16"):
        ANI.load(files, dtype="float16")


def test_settings_name_what_is_wrong():
    with pytest.raises(ValueError, match="angular_cutoff"):
        AEVSettings(angular_cutoff=6.0)
    with pytest.raises(ValueError, match="extra"):
        ANI.Settings(epoch=3)

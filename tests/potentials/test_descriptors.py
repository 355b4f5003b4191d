import numpy as np
import pytest
import torch

from hpcal.core.batch import Batch
from hpcal.core.structure import Structure
from hpcal.potentials.dense import DenseAEV, feature_order, layout
from hpcal.potentials.descriptors import AEVSettings, Descriptor, standardisation
from hpcal.potentials.jacobian import derivative
from hpcal.potentials.neighbors import pairs_within

from torchani.aev import AEVComputer  # isort: skip - after hpcal, which silences its warning

CPU = torch.device("cpu")
ANI_1X = AEVSettings(angular_eta=8.0, angular_zeta=32.0, angular_count=4, section_count=8)
ELEMENTS = (1, 6, 7, 8)


def descriptor(settings=None, elements=ELEMENTS):
    return Descriptor(settings or AEVSettings(), elements, device=CPU, dtype=torch.float64)


def test_ani_1x_parameters_give_the_aevs_of_torchani(rattled):
    batch = Batch.of([*rattled("CH3OH", 2), *rattled("H2O", 1)], dtype=torch.float64)
    own = descriptor(ANI_1X)
    reference = AEVComputer.like_1x(4).double()(own.species(batch), batch.positions)
    # torchani keeps its shifts in single precision.
    assert torch.allclose(own(batch), reference, atol=2e-6)
    assert float(reference.max()) > 0.1


@pytest.mark.parametrize("settings", [ANI_1X, AEVSettings(), AEVSettings(angular_zeta=14.1)])
@pytest.mark.parametrize("name", ["H", "OH", "H2O", "CH3CH2OH", "CH3CONH2"])
def test_dense_pass_equals_lists_of_neighbours_in_value_and_derivative(settings, name, rattled):
    batch = Batch.of(rattled(name, 3, width=0.15), dtype=torch.float64)
    by_list, dense = descriptor(settings), DenseAEV(settings, 4, device=CPU, dtype=torch.float64)
    molecule = layout(by_list.species(batch)[0].tolist(), 4, device=CPU, dtype=torch.float64)
    order = feature_order(settings, 4)
    leaf = batch.positions.clone().requires_grad_()
    reference = by_list(batch.at(leaf))[:, molecule.order][:, :, order].permute(2, 1, 0)
    other = batch.positions[:, molecule.order].clone().requires_grad_()
    values = dense(other, molecule)
    assert torch.allclose(values, reference, atol=1e-12)
    if name == "H":
        return
    weights = torch.randn(values.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (expected,) = torch.autograd.grad((reference * weights).sum(), leaf)
    (found,) = torch.autograd.grad((values * weights).sum(), other)
    assert torch.allclose(found, expected[:, molecule.order], atol=1e-10)
    assert float(expected.abs().max()) > 0.1


def test_dense_pass_in_parts_equals_the_whole(monkeypatch, rattled):
    batch = Batch.of(rattled("CH3OH", 30), dtype=torch.float64)
    dense = DenseAEV(AEVSettings(), 4, device=CPU, dtype=torch.float64)
    molecule = layout(descriptor().species(batch)[0].tolist(), 4, device=CPU, dtype=torch.float64)
    positions = batch.positions[:, molecule.order]
    whole = dense(positions, molecule)
    monkeypatch.setattr("hpcal.potentials.dense._TRIPLES_AT_ONCE", 100)
    assert torch.allclose(dense(positions, molecule), whole, atol=1e-13)


def test_written_out_derivative_equals_autograd_also_in_cells(rattled, crystal):
    own = descriptor()
    batch = Batch.of([*rattled("CH3OH", 1), crystal(), *rattled("OH", 1)], dtype=torch.float64)
    full = derivative(own, batch)
    leaf = batch.positions.clone().requires_grad_()
    aevs = own(batch.at(leaf))
    weights = torch.randn(aevs.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (expected,) = torch.autograd.grad((aevs * weights).sum(), leaf)
    assert torch.allclose(torch.einsum("bif,bijfc->bjc", weights, full), expected, atol=1e-11)


def test_a_cell_equals_its_supercell_cut_out_of_space(crystal):
    """An atom's AEV in a cell is that of the middle one of 7 x 7 x 7 cells without periodicity."""
    small = crystal()
    shifts = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    shifts = shifts[np.argsort(np.abs(shifts).sum(axis=1), kind="stable")]
    copies = np.concatenate([small.positions + s @ small.cell for s in shifts])
    near = np.linalg.norm(copies[:, None] - small.positions[None], axis=2).min(axis=1) < 6.0
    big = Structure(numbers=np.tile(small.numbers, len(shifts))[near], positions=copies[near])
    own = descriptor()
    periodic = own(Batch.of([small], dtype=torch.float64))[0]
    open_ = own(Batch.of([big], dtype=torch.float64))[0, :5]
    assert (big.numbers[:5] == small.numbers).all()
    assert torch.allclose(periodic, open_, atol=1e-12)


@pytest.mark.parametrize("pbc", [(True, False, False), (True, True, False), (False, True, True)])
def test_pairs_of_slabs_and_wires_are_counted_once(pbc, crystal):
    full = crystal()
    structure = Structure(numbers=full.numbers, positions=full.positions, cell=full.cell, pbc=pbc)
    cutoff, steps = 5.2, [np.arange(-3, 4) if p else np.array([0]) for p in pbc]
    expected = 0
    for shift in np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 3):
        d = structure.positions[:, None] - structure.positions[None] + shift @ structure.cell
        distances = np.linalg.norm(d, axis=2)
        expected += int(((distances <= cutoff) & (distances > 1e-9)).sum())
    batch = Batch.of([structure], dtype=torch.float64)
    pairs = pairs_within(batch, cutoff)
    assert 2 * len(pairs.first) == expected
    assert float(pairs.vectors(batch).norm(dim=1).max()) <= cutoff


def test_standardisation_has_one_scale_an_element():
    rng = np.random.default_rng(0)
    values = rng.normal(3.0, [0.1, 2.0], (500, 2))
    centres, scales = standardisation([values, np.zeros((0, 2))])
    assert np.allclose(centres[0], values.mean(axis=0))
    assert scales[0] == pytest.approx(np.sqrt(values.var(axis=0).mean()))
    assert scales[1] == 1.0
    assert (centres[1] == 0).all()

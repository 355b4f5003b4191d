import numpy as np
import pytest
import torch

from hpcal.core import elements
from hpcal.core.batch import Batch
from hpcal.core.structure import Structure
from hpcal.core.units import ACCELERATION, HBAR, WAVENUMBER
from hpcal.sampling.hessian import curvature, hessian, normal_modes, rigid_motions


def force_function(driver):
    def forces(structure):
        batch = Batch.of([structure], dtype=torch.float64)
        return float(driver.energies(batch).mean()), driver.forces(batch)[0].numpy()

    return forces


def exact_hessian(driver, structure):
    batch = Batch.of([structure], dtype=torch.float64)

    def energy(positions):
        return driver.member_energies(batch.at(positions.reshape(batch.positions.shape))).mean()

    return torch.autograd.functional.hessian(energy, batch.positions.ravel()).numpy()


def test_differences_give_the_exact_second_derivatives(springs, water):
    driver = springs()
    found = hessian(water, force_function(driver), 0.005)
    assert driver.calls == 6 * len(water)
    np.testing.assert_allclose(found, exact_hessian(driver, water), atol=0.01)
    np.testing.assert_array_equal(found, found.T)
    # The error is of second order in the step.
    errors = [
        np.abs(hessian(water, force_function(driver), h) - exact_hessian(driver, water)).max()
        for h in (0.02, 0.01)
    ]
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.05)


def test_a_diatomic_vibrates_at_the_root_of_k_over_mu(springs):
    driver = springs(factors=(1.0,))
    hydroxyl = Structure(
        numbers=[8, 1], positions=[[0, 0, 0], [0.3, 0.4, np.sqrt(0.96**2 - 0.25)]], charge=-1
    )
    modes = normal_modes(hydroxyl, exact_hessian(driver, hydroxyl))
    stiffness = 2 * driver.depth * driver.width**2
    masses = elements.MASSES[[8, 1]]
    reduced = masses.prod() / masses.sum()
    omega = np.sqrt(stiffness / reduced * ACCELERATION)
    assert modes.wavenumbers == pytest.approx([omega * HBAR / WAVENUMBER], rel=1e-9)
    assert curvature(modes.wavenumbers[0]) == pytest.approx(modes.curvatures[0])
    # Each atom's share of the displacement is that of the other's mass; K belongs to its norm.
    direction = modes.directions[0] / np.linalg.norm(modes.directions[0])
    numeric = direction.ravel() @ exact_hessian(driver, hydroxyl) @ direction.ravel()
    assert modes.force_constants == pytest.approx([numeric])


@pytest.mark.parametrize(
    ("structure", "rigid"),
    [
        (Structure(numbers=[8, 1, 1], positions=[[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]), 6),
        (Structure(numbers=[8, 6, 8], positions=[[-1.16, 0, 0], [0, 1e-3, 0], [1.16, 0, 0]]), 5),
        (Structure(numbers=[8], positions=[[1, 2, 3]], multiplicity=3), 3),
        (Structure(numbers=[8, 8], positions=[[0, 0, 0], [2, 0, 0]], cell=5 * np.eye(3), pbc=(True,) * 3), 3),
    ],
)
def test_as_many_rigid_motions_as_there_are(structure, rigid):
    motions = rigid_motions(structure)
    assert motions.shape == (3 * len(structure), rigid)
    np.testing.assert_allclose(motions.T @ motions, np.eye(rigid), atol=1e-12)


def test_vibrations_neither_move_nor_turn_the_molecule(springs, water):
    modes = normal_modes(water, exact_hessian(springs(), water))
    masses = elements.masses(water.numbers)[:, None]
    assert len(modes.curvatures) == 3
    for direction in modes.directions:
        np.testing.assert_allclose((masses * direction).sum(axis=0), 0, atol=1e-12)
        centred = water.positions - (masses * water.positions).sum(axis=0) / masses.sum()
        np.testing.assert_allclose((masses * np.cross(centred, direction)).sum(axis=0), 0, atol=1e-12)
        assert (masses * direction**2).sum() == pytest.approx(1.0)


def test_imaginary_modes_have_negative_wavenumbers(springs):
    # Bonds held short push the oxygen off the axis: both bends of the straight molecule are maxima.
    driver = springs()
    straight = Structure(numbers=[1, 8, 1], positions=[[-0.9, 0, 0], [0, 0, 0], [0.9, 0, 0]])
    modes = normal_modes(straight, exact_hessian(driver, straight))
    assert len(modes.wavenumbers) == 4
    assert modes.wavenumbers[0] == pytest.approx(modes.wavenumbers[1], rel=1e-6)
    assert (modes.wavenumbers < -100).tolist() == [True, True, False, False]
    assert modes.wavenumbers[2] > 1000

import numpy as np
import pytest

from hpcal.core import elements
from hpcal.core.structure import Structure
from hpcal.core.units import ACCELERATION, BOLTZMANN
from hpcal.sampling.velocities import maxwell_boltzmann

CO2 = Structure(numbers=np.array([8, 6, 8]), positions=np.array([[-1.16, 0, 0], [0, 0, 0], [1.16, 0, 0.0]]))


def momenta(structure, velocities):
    masses = elements.masses(structure.numbers)[:, None]
    r = structure.positions - (masses * structure.positions).sum(0) / masses.sum()
    return (masses * velocities).sum(0), (masses * np.cross(r, velocities)).sum(0)


@pytest.mark.parametrize("name", ["water", "co2"])
def test_a_molecule_is_at_rest_as_a_whole(water, name):
    structure = water if name == "water" else CO2
    velocities = maxwell_boltzmann(structure, 500.0, np.random.default_rng(0))
    linear, angular = momenta(structure, velocities)
    assert np.abs(velocities).max() > 1e-3
    np.testing.assert_allclose(linear, 0, atol=1e-14)
    np.testing.assert_allclose(angular, 0, atol=1e-13)


def test_a_periodic_structure_keeps_its_angular_momentum(water):
    periodic = Structure(
        numbers=water.numbers, positions=water.positions, cell=10 * np.eye(3), pbc=(True, True, True)
    )
    linear, angular = momenta(periodic, maxwell_boltzmann(periodic, 500.0, np.random.default_rng(0)))
    np.testing.assert_allclose(linear, 0, atol=1e-14)
    assert np.abs(angular).max() > 1e-3


@pytest.mark.parametrize(("name", "freedoms"), [("water", 3), ("co2", 4)])
def test_each_degree_of_freedom_left_holds_half_a_kt(water, name, freedoms):
    structure = water if name == "water" else CO2
    rng, temperature, draws = np.random.default_rng(1), 400.0, 4000
    masses = elements.masses(structure.numbers)[:, None]
    energies = np.array(
        [
            0.5 * (masses * maxwell_boltzmann(structure, temperature, rng) ** 2).sum() / ACCELERATION
            for _ in range(draws)
        ]
    )
    # 2E/kT is chi-squared: mean f, variance 2f. Five standard errors.
    reduced = 2 * energies / (BOLTZMANN * temperature)
    assert abs(reduced.mean() - freedoms) < 5 * np.sqrt(2 * freedoms / draws)

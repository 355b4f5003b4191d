import numpy as np
import pytest
import torch
from scipy import stats

from hpcal.core.units import ACCELERATION, BOLTZMANN
from hpcal.sampling.integrators import PhasePoint, baoab, kinetic_energy, velocity_verlet

MASS, STIFFNESS = 12.0, 30.0
OMEGA = np.sqrt(STIFFNESS / MASS * ACCELERATION)


def well(x):
    return -STIFFNESS * x


def quartic(x):
    return -STIFFNESS * x - 20.0 * x**3


def start(shape=(1, 1, 3), seed=0):
    rng = np.random.default_rng(seed)
    x = torch.tensor(rng.normal(0, 0.1, shape))
    v = torch.tensor(rng.normal(0, 0.005, shape))
    return x, v, torch.full((*shape[:2], 1), MASS, dtype=torch.float64)


def verlet(x, v, masses, h, steps, field):
    point = PhasePoint(positions=x, velocities=v, forces=field(x))
    energies = []
    for _ in range(steps):
        point = velocity_verlet(point, field, masses=masses, timestep_fs=h)
        energies.append(float(kinetic_energy(point.velocities, masses)) + potential(point.positions, field))
    return point, np.array(energies)


def potential(x, field):
    quartic_part = 5.0 * (x**4).sum() if field is quartic else 0.0
    return float(0.5 * STIFFNESS * (x**2).sum() + quartic_part)


def test_verlet_follows_the_exact_oscillation():
    x, v, masses = start()
    h, steps = 0.05, 400
    point, _ = verlet(x, v, masses, h, steps, well)
    t = h * steps
    exact = x * np.cos(OMEGA * t) + v / OMEGA * np.sin(OMEGA * t)
    torch.testing.assert_close(point.positions, exact, rtol=0, atol=1e-6)


def test_verlet_runs_backward_along_its_path():
    x, v, masses = start()
    there, _ = verlet(x, v, masses, 0.5, 200, quartic)
    back, _ = verlet(there.positions, -there.velocities, masses, 0.5, 200, quartic)
    torch.testing.assert_close(back.positions, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(-back.velocities, v, rtol=0, atol=1e-13)


def test_verlet_energy_error_is_second_order():
    x, v, masses = start()
    spread = [np.ptp(verlet(x, v, masses, h, round(200 / h), quartic)[1]) for h in (1.0, 0.5, 0.25)]
    orders = np.log2(np.array(spread[:-1]) / spread[1:])
    np.testing.assert_allclose(orders, 2.0, atol=0.05)


def test_verlet_energy_does_not_drift():
    x, v, masses = start()
    _, energies = verlet(x, v, masses, 0.5, 20_000, quartic)
    first, last = energies[:5000].mean(), energies[-5000:].mean()
    assert np.ptp(energies) > 0
    assert abs(last - first) < 1e-3 * np.ptp(energies)


def test_baoab_without_friction_is_verlet():
    x, v, masses = start()
    one = PhasePoint(positions=x, velocities=v, forces=quartic(x))
    other = one
    for _ in range(100):
        one = velocity_verlet(one, quartic, masses=masses, timestep_fs=0.5)
        other = baoab(
            other,
            quartic,
            masses=masses,
            thermal_energy=torch.full((1, 1, 1), 0.03, dtype=torch.float64),
            noise=torch.ones_like(x),
            timestep_fs=0.5,
            friction_per_fs=0.0,
        )
    torch.testing.assert_close(one.positions, other.positions, rtol=0, atol=1e-12)


@pytest.mark.physics
@pytest.mark.parametrize("omega_h", [0.2, 1.0])
def test_baoab_positions_in_a_well_have_the_canonical_variance(omega_h):
    """Exact for BAOAB at any stable step: k_B T / k, even where a period has only 6 steps."""
    h, temperature, walkers = omega_h / OMEGA, 350.0, 2000
    x, v, masses = start((walkers, 1, 3))
    energy = torch.full((walkers, 1, 1), BOLTZMANN * temperature, dtype=torch.float64)
    noise = torch.Generator().manual_seed(3)
    point = PhasePoint(positions=x, velocities=v, forces=well(x))
    samples = []
    for step in range(800):
        point = baoab(
            point,
            well,
            masses=masses,
            thermal_energy=energy,
            noise=torch.randn(x.shape, generator=noise, dtype=torch.float64),
            timestep_fs=h,
            friction_per_fs=0.3 / h,
        )
        if step >= 200 and step % 100 == 99:
            samples.append(point.positions.numpy().ravel())
    values = np.concatenate(samples)
    reduced = (values**2).sum() * STIFFNESS / (BOLTZMANN * temperature)
    low, high = stats.chi2.interval(1 - 1e-5, len(values))
    assert low < reduced < high
    assert stats.kstest(values * np.sqrt(STIFFNESS / (BOLTZMANN * temperature)), "norm").pvalue > 1e-5

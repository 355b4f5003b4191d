import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hpcal.core import elements
from hpcal.core.errors import FailureClass, TaskFailure
from hpcal.core.structure import Structure
from hpcal.core.units import BOLTZMANN
from hpcal.sampling.guards import overlap_problem
from hpcal.sampling.hessian import hessian, normal_modes, rigid_motions
from hpcal.sampling.normal_modes import NormalModes

MINIMUM = Structure(
    numbers=np.array([6, 8, 1, 1]),
    positions=np.array([[0, 0, 0], [1.2, 0, 0], [-0.55, 0.94, 0.0], [-0.55, -0.94, 0.3]]),
)


def harmonic(seed=0, soft=0.0, minimum=MINIMUM):
    """A quadratic energy about a minimum that is blind to rigid motions, and its Hessian."""
    rng = np.random.default_rng(seed)
    size = 3 * len(minimum)
    root = rng.normal(size=(size, size))
    roots = np.sqrt(np.repeat(elements.masses(minimum.numbers), 3))
    rigid = rigid_motions(minimum)
    project = np.eye(size) - rigid @ rigid.T
    values, vectors = np.linalg.eigh(project @ (root @ root.T + 10 * np.eye(size)) @ project)
    if soft:
        values[rigid.shape[1]] = soft
    matrix = roots[:, None] * ((vectors * values) @ vectors.T) * roots[None, :]
    calls = []

    def forces(structure):
        calls.append(1)
        away = (structure.positions - minimum.positions).ravel()
        return float(0.5 * away @ matrix @ away), (-matrix @ away).reshape(-1, 3)

    return forces, calls


@pytest.mark.physics
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 100), temperature=st.floats(50, 2000))
def test_energy_identity(seed, temperature):
    """The harmonic energy is (3/2) N k_B T Σ c, with the very shares that were drawn."""
    forces, _ = harmonic(seed)
    sampler = NormalModes(NormalModes.Settings(temperature_K=temperature, min_wavenumber_per_cm=0.0))
    modes = normal_modes(MINIMUM, hessian(MINIMUM, forces))
    for k in range(5):
        rng, twin = np.random.default_rng([seed, k]), np.random.default_rng([seed, k])
        energy = forces(sampler.displaced(MINIMUM, modes, rng))[0]
        shares = twin.uniform() * twin.dirichlet(np.ones(6))
        assert 0 <= shares.sum() <= 1
        assert energy == pytest.approx(1.5 * 4 * BOLTZMANN * temperature * shares.sum(), rel=1e-6)


def test_each_mode_holds_its_share_of_the_energy():
    """R_i = sqrt(3 c_i N k_B T / K_i) along directions normalised in Å."""
    forces, _ = harmonic()
    modes = normal_modes(MINIMUM, hessian(MINIMUM, forces))
    sampler = NormalModes(NormalModes.Settings(temperature_K=500.0, min_wavenumber_per_cm=0.0))
    away = sampler.displaced(MINIMUM, modes, np.random.default_rng(3)).positions - MINIMUM.positions
    twin = np.random.default_rng(3)
    shares = twin.uniform() * twin.dirichlet(np.ones(6))
    signs = twin.choice((-1.0, 1.0), size=6)
    norms = np.sqrt((modes.directions**2).sum(axis=(1, 2)))
    amplitudes = signs * np.sqrt(3 * shares * 4 * BOLTZMANN * 500.0 / modes.force_constants)
    expected = np.einsum("m,mij->ij", amplitudes, modes.directions / norms[:, None, None])
    np.testing.assert_allclose(away, expected, atol=1e-9)


def test_generation_costs_one_hessian_and_is_bounded():
    forces, calls = harmonic()
    made = NormalModes(NormalModes.Settings(temperature_K=600.0)).generate(
        MINIMUM, 200, forces, np.random.default_rng(0)
    )
    assert len(made) == 200
    assert len(calls) == 6 * 4
    energies = np.array([forces(s)[0] for s in made])
    bound = 1.5 * 4 * BOLTZMANN * 600.0
    assert energies.max() <= bound * (1 + 1e-6)
    assert energies.max() > 0.8 * bound
    assert len({s.content_hash for s in made}) == 200


def test_the_same_generator_gives_the_same_structures():
    forces, _ = harmonic()
    sampler = NormalModes(NormalModes.Settings())
    one, other = (sampler.generate(MINIMUM, 5, forces, np.random.default_rng(4)) for _ in range(2))
    assert list(one) == list(other)


def test_the_floor_takes_energy_from_soft_modes_only():
    forces, _ = harmonic(soft=0.02)
    modes = normal_modes(MINIMUM, hessian(MINIMUM, forces))
    assert modes.wavenumbers[0] < 100 < 200 < modes.wavenumbers[1]
    free, floored = (
        NormalModes(NormalModes.Settings(min_wavenumber_per_cm=w)).displaced(
            MINIMUM, modes, np.random.default_rng(1)
        )
        for w in (0.0, 200.0)
    )
    along = [
        np.einsum("mij,ij->m", modes.directions, _weighted(s.positions - MINIMUM.positions))
        for s in (free, floored)
    ]
    np.testing.assert_allclose(along[0][1:], along[1][1:], atol=1e-10)
    assert along[1][0] / along[0][0] == pytest.approx(modes.wavenumbers[0] / 200.0, rel=1e-6)


def _weighted(displacement):
    return elements.masses(MINIMUM.numbers)[:, None] * displacement


@pytest.mark.physics
def test_the_thermal_variant_is_canonical():
    forces, _ = harmonic()
    sampler = NormalModes(
        NormalModes.Settings(
            temperature_K=300.0, thermal=True, min_wavenumber_per_cm=0.0, min_distance_factor=0
        )
    )
    made = sampler.generate(MINIMUM, 2000, forces, np.random.default_rng(0))
    reduced = 2 * np.array([forces(s)[0] for s in made]) / (BOLTZMANN * 300.0)
    # Six harmonic modes: chi-squared with six degrees of freedom; false alarm once in 100,000 seeds.
    assert stats.kstest(reduced, stats.chi2(6).cdf).pvalue > 1e-5


def test_a_saddle_is_refused_with_its_wavenumber():
    forces, _ = harmonic(soft=-1.0)
    with pytest.raises(TaskFailure, match=r"no minimum.*\d+i cm⁻¹.*relax") as caught:
        NormalModes(NormalModes.Settings()).generate(MINIMUM, 1, forces, np.random.default_rng(0))
    assert caught.value.failure_class is FailureClass.PHYSICS


def test_a_small_imaginary_mode_is_left_out():
    forces, _ = harmonic(soft=-0.005)
    modes = normal_modes(MINIMUM, hessian(MINIMUM, forces))
    assert -100 < modes.wavenumbers[0] < 0
    made = NormalModes(NormalModes.Settings()).generate(MINIMUM, 3, forces, np.random.default_rng(0))
    for structure in made:
        along = (modes.directions[0] * _weighted(structure.positions - MINIMUM.positions)).sum()
        assert abs(along) < 1e-6


def test_a_single_atom_has_no_modes():
    atom = Structure(numbers=[2], positions=[[0, 0, 0]])
    with pytest.raises(TaskFailure, match="single atom"):
        NormalModes(NormalModes.Settings()).generate(
            atom, 1, lambda s: (0.0, np.zeros((1, 3))), np.random.default_rng(0)
        )


def test_overlapping_structures_are_drawn_again_and_given_up_in_the_end():
    soft, _ = harmonic()
    hot = NormalModes(NormalModes.Settings(temperature_K=40_000.0))
    rng = np.random.default_rng(0)
    modes = normal_modes(MINIMUM, hessian(MINIMUM, soft))
    raw = [hot.displaced(MINIMUM, modes, rng) for _ in range(100)]
    assert any(overlap_problem(s, 0.6) for s in raw)
    made = hot.generate(MINIMUM, 50, soft, rng)
    assert not any(overlap_problem(s, 0.6) for s in made)
    hopeless = NormalModes(NormalModes.Settings(min_distance_factor=3.0))
    with pytest.raises(TaskFailure, match=r"100 structures.*overlapping.*lower temperature_K"):
        hopeless.generate(MINIMUM, 1, soft, rng)

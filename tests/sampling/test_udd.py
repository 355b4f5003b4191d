import numpy as np
import pytest
import torch
from scipy import stats

from hpcal.core.batch import Batch
from hpcal.core.deadline import Deadline
from hpcal.core.errors import InputError
from hpcal.core.protocols import BiasInput
from hpcal.core.walker import WalkerEnd
from hpcal.sampling.bias import VarianceBias, smooth_ramp
from hpcal.sampling.md import Langevin
from hpcal.sampling.udd import UDD

RNG = np.random.default_rng(0)
NOW = {"delay_fs": 0.0, "ramp_fs": 0.0, "unbiased_share": 0.0}


def run(sampler, walkers, driver, scorer):
    return sampler.sample(walkers, driver, scorer, Deadline(), RNG)


def bias(batch, strength=1.0, width=0.01, **changes):
    ones = torch.ones(batch, dtype=torch.float64)
    return VarianceBias(strength=strength, width=width * ones, share=ones, **changes)


def bias_energy(energies, n_atoms, **settings):
    members = torch.tensor(energies, dtype=torch.float64)[:, None]
    at = BiasInput(
        energies=members,
        batch=None,
        n_atoms=torch.tensor([float(n_atoms)], dtype=torch.float64),
        time_fs=torch.tensor([100.0], dtype=torch.float64),
    )
    return float(bias(1, **settings).energy(at))


def test_the_bias_is_that_of_the_equation():
    energies, n_atoms, strength, width = [1.0, 1.2, 1.7, 0.9], 10, 1.3, 0.12
    variance = np.var(energies)
    expected = strength * (np.exp(-variance / n_atoms / width**2) - 1)
    assert bias_energy(energies, n_atoms, strength=strength, width=width) == pytest.approx(
        expected, rel=1e-12
    )
    # The published form sums over members, with B² times their number in the exponent's denominator.
    summed = ((np.array(energies) - np.mean(energies)) ** 2).sum()
    published = strength * (np.exp(-summed / (len(energies) * n_atoms * width**2)) - 1)
    assert bias_energy(energies, n_atoms, strength=strength, width=width) == pytest.approx(
        published, rel=1e-12
    )


def test_the_bias_is_bounded_and_zero_where_members_agree():
    assert bias_energy([2.0, 2.0, 2.0], 4) == 0.0
    assert bias_energy([-50.0, 50.0], 4, strength=1.5) == pytest.approx(-1.5)
    # At ρ = B it has 1 − 1/e of its depth.
    assert bias_energy([-0.02, 0.02], 4, width=0.01) == pytest.approx(np.exp(-1) - 1)


def test_small_variances_keep_their_digits():
    """A variance 10⁻¹² of the squared energy is not lost to cancellation."""
    found = bias_energy([1000.0 - 1e-3, 1000.0 + 1e-3], 1, width=1.0)
    assert found == pytest.approx(-1e-6, rel=1e-6)


def test_the_ramp_is_smooth_and_monotone():
    time = torch.linspace(0, 100, 401, dtype=torch.float64)
    ramp = smooth_ramp(time, delay_fs=20.0, ramp_fs=40.0)
    assert (ramp[time <= 20] == 0).all()
    assert (ramp[time >= 60] == 1).all()
    assert (ramp.diff() >= 0).all()
    # Its slope begins and ends at zero, so the bias force has no kink.
    steepest = float(ramp.diff().max())
    assert float(ramp.diff()[80]) < 0.02 * steepest
    assert float(ramp.diff()[239]) < 0.02 * steepest
    assert smooth_ramp(time, delay_fs=20.0, ramp_fs=0.0).tolist() == (time >= 20).double().tolist()


def test_the_biased_force_is_the_derivative_of_the_biased_energy(springs, water):
    driver = springs(factors=(0.8, 1.0, 1.3))
    rng = np.random.default_rng(1)
    here = water.with_positions(water.positions + rng.normal(0, 0.08, (3, 3)))
    variance_bias, time = bias(1, strength=1.0, width=0.05), torch.tensor([1e3], dtype=torch.float64)

    def total(structure):
        result = driver.biased(Batch.of([structure], dtype=torch.float64), variance_bias, time)
        return float(result.energies.mean() + result.bias), result.forces[0].numpy()

    energy_mean_only = driver.forces(Batch.of([here], dtype=torch.float64))[0].numpy()
    forces = total(here)[1]
    assert np.abs(forces - energy_mean_only).max() > 0.05
    for coordinate in range(9):
        shift = np.zeros(9)
        shift[coordinate] = 1e-5
        up = total(here.with_positions(here.positions + shift.reshape(3, 3)))[0]
        down = total(here.with_positions(here.positions - shift.reshape(3, 3)))[0]
        assert forces.ravel()[coordinate] == pytest.approx(-(up - down) / 2e-5, abs=1e-6)


@pytest.mark.physics
def test_strength_zero_is_plain_langevin_to_the_bit(springs, std_scorer, walker, water):
    driver = springs()
    walkers = [walker(water, k) for k in range(4)]
    one = run(UDD(UDD.Settings(strength_eV=0.0)), walkers, driver, std_scorer(driver))
    other = run(Langevin(Langevin.Settings()), walkers, driver, std_scorer(driver))
    for a, b in zip(one.segments, other.segments, strict=True):
        assert a.walker.structure == b.walker.structure
        assert a.walker.velocities.tobytes() == b.walker.velocities.tobytes()
        assert a.bias_ratio is None


def test_before_the_delay_a_walker_is_unbiased(springs, std_scorer, walker, water):
    driver = springs()
    walkers = [walker(water, k, steps_full=40) for k in range(3)]
    late = UDD.Settings(delay_fs=20.0, ramp_fs=10.0, unbiased_share=0.0, width_eV_per_sqrt_atom=0.003)
    early = UDD.Settings(**NOW, width_eV_per_sqrt_atom=0.003)
    plain = run(Langevin(Langevin.Settings()), walkers, driver, std_scorer(driver)).segments
    for settings, same in ((late, True), (early, False)):
        found = run(UDD(settings), walkers, driver, std_scorer(driver)).segments
        away = [
            np.abs(a.walker.structure.positions - b.walker.structure.positions).max()
            for a, b in zip(found, plain, strict=True)
        ]
        assert (max(away) < 1e-9) == same
        assert all((s.bias_ratio is None) == same for s in found)


def test_the_width_comes_from_the_walker(springs, std_scorer, walker, water):
    driver = springs()
    auto, stated = UDD.Settings(**NOW), UDD.Settings(**NOW, width_eV_per_sqrt_atom=0.004)
    widths = [0.004, 0.004, 0.02]
    walkers = [walker(water, k, state={"bias_width": width}) for k, width in enumerate(widths)]
    one = run(UDD(auto), walkers, driver, std_scorer(driver)).segments
    other = run(UDD(stated), walkers, driver, std_scorer(driver)).segments
    same = [a.walker.structure == b.walker.structure for a, b in zip(one, other, strict=True)]
    assert same == [True, True, False]
    assert one[0].walker.state == {"bias_width": 0.004}


@pytest.mark.parametrize("state", [{}, {"bias_width": 0.0}, {"bias_width": float("nan")}])
def test_a_walker_without_a_width_is_refused(state, springs, std_scorer, walker, water):
    driver = springs()
    with pytest.raises(InputError, match=r"bias width.*width_eV_per_sqrt_atom"):
        run(UDD(UDD.Settings()), [walker(water, state=state)], driver, std_scorer(driver))


def test_a_driver_that_cannot_be_biased_is_refused(springs, std_scorer, walker, water):
    single = springs(factors=(1.0,))
    with pytest.raises(InputError, match="one member"):
        run(UDD(UDD.Settings()), [walker(water)], single, std_scorer(single))


def test_the_unbiased_share_is_decided_by_the_stream(walker, water):
    sampler = UDD(UDD.Settings(unbiased_share=0.3))
    walkers = [walker(water, k) for k in range(2000)]
    biased = [sampler.is_biased(w) for w in walkers]
    assert biased == [sampler.is_biased(w) for w in walkers]
    low, high = stats.binom.interval(1 - 1e-6, len(walkers), 0.7)
    assert low <= sum(biased) <= high
    assert all(UDD(UDD.Settings(unbiased_share=0.0)).is_biased(w) for w in walkers[:50])
    assert not any(UDD(UDD.Settings(unbiased_share=1.0)).is_biased(w) for w in walkers[:50])


def test_unbiased_walkers_move_as_in_plain_dynamics(springs, std_scorer, walker, water):
    driver = springs()
    sampler = UDD(UDD.Settings(**{**NOW, "unbiased_share": 0.5}, width_eV_per_sqrt_atom=0.003))
    walkers = [walker(water, k) for k in range(8)]
    mixed = run(sampler, walkers, driver, std_scorer(driver)).segments
    plain = run(Langevin(Langevin.Settings()), walkers, driver, std_scorer(driver)).segments
    biased = [sampler.is_biased(w) for w in walkers]
    assert any(biased)
    assert not all(biased)
    for flag, a, b in zip(biased, mixed, plain, strict=True):
        away = np.abs(a.walker.structure.positions - b.walker.structure.positions).max()
        assert (away > 1e-4) if flag else (away < 1e-10)
        assert (a.bias_ratio is not None) == flag


def test_the_bias_ratio_is_that_of_the_forces(springs, std_scorer, walker, water):
    driver = springs()
    settings = UDD.Settings(**NOW, width_eV_per_sqrt_atom=0.003, stride=10, burn_in=10)
    (segment,) = run(UDD(settings), [walker(water, steps_full=10)], driver, std_scorer(driver)).segments
    batch = Batch.of([segment.walker.structure], dtype=torch.float64)
    mean = driver.forces(batch)
    total = driver.biased(
        batch, bias(1, strength=1.0, width=0.003), torch.tensor([5.0], dtype=torch.float64)
    ).forces
    expected = float((total - mean).norm(dim=2).sum() / mean.norm(dim=2).sum())
    assert segment.end is WalkerEnd.QUIET
    assert segment.bias_ratio == pytest.approx(expected, rel=1e-9)
    assert expected > 0


@pytest.mark.physics
def test_the_bias_raises_the_uncertainty_that_walkers_see(springs, std_scorer, walker, water):
    """Paired by noise: in 60 pairs a sign test with a false alarm in 100,000 (47 of 60 wins)."""
    driver = springs(factors=(0.9, 1.0, 1.1))
    walkers = [walker(water, k, steps_full=200) for k in range(60)]
    settings = UDD.Settings(**NOW, width_eV_per_sqrt_atom=0.01)
    pushed = run(UDD(settings), walkers, driver, std_scorer(driver)).segments
    plain = run(Langevin(Langevin.Settings()), walkers, driver, std_scorer(driver)).segments
    wins = sum(a.max_trigger > b.max_trigger for a, b in zip(pushed, plain, strict=True))
    assert wins >= 47

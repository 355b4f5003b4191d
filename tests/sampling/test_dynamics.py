from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from hpcal.core import elements
from hpcal.core.batch import Batch
from hpcal.core.codec import pack, unpack
from hpcal.core.deadline import Deadline
from hpcal.core.structure import Structure
from hpcal.core.units import ACCELERATION, BOLTZMANN
from hpcal.core.walker import SampleResult, Walker, WalkerEnd
from hpcal.sampling.md import NVE, Langevin

RNG = np.random.default_rng(0)
NO_LIMITS = {"min_distance_factor": 0.0, "max_nearest_A": None}


def run(sampler, walkers, driver, scorer, steps=None) -> SampleResult:
    return sampler.sample(walkers, driver, scorer, Deadline(steps=steps), RNG)


def run_in_tasks(sampler, walkers, driver, scorer, budgets) -> dict[int, list]:
    """Runs to the end in tasks of the given step budgets; segments by walker, through the codec."""
    segments: dict[int, list] = {w.id: [] for w in walkers}
    candidates = []
    waiting, task = list(walkers), 0
    while waiting:
        result = run(sampler, waiting, driver, scorer, budgets[task % len(budgets)])
        result = unpack(pack(result))
        task += 1
        assert task < 1000
        candidates += result.candidates
        for segment in result.segments:
            segments[segment.walker.id].append(segment)
        waiting = [s.walker for s in result.segments if s.end is None]
    return {"segments": segments, "candidates": candidates}


def assert_same_ends(one, other):
    for key in one["segments"]:
        a, b = one["segments"][key][-1], other["segments"][key][-1]
        assert (a.end, a.walker.step) == (b.end, b.walker.step)
        assert a.walker.structure.positions.tobytes() == b.walker.structure.positions.tobytes()
        assert a.walker.velocities.tobytes() == b.walker.velocities.tobytes()
    found = [{(c.walker_id, c.step, c.structure.content_hash) for c in r["candidates"]} for r in (one, other)]
    assert found[0] == found[1]
    assert found[0]


@pytest.mark.parametrize("kind", [NVE, Langevin])
@pytest.mark.parametrize("budgets", [[1], [7], [13, 2, 40], [31, 32, 33]])
def test_cutting_into_tasks_changes_no_bit(kind, budgets, springs, std_scorer, walker, water):
    """Ends, crossings and refilling included, for molecules of different sizes."""
    driver = springs()
    scorer = std_scorer(driver, threshold=0.0018)
    hydroxyl = Structure(numbers=np.array([8, 1]), positions=[[0, 0, 0], [0, 0, 1.0]], charge=-1)
    walkers = [
        walker(water if k % 2 else hydroxyl, k, steps_full=60 + k, temperature=600.0) for k in range(7)
    ]
    walkers[3] = replace(walkers[3], offers_candidates=False, frames_at=(11, 33))
    sampler = kind(kind.Settings(batch=3, stride=5))
    whole = run_in_tasks(sampler, walkers, driver, scorer, [10_000])
    ends = {s[-1].end for s in whole["segments"].values()}
    assert ends >= {WalkerEnd.CROSSED, WalkerEnd.QUIET, WalkerEnd.FULL_TIME}
    assert_same_ends(whole, run_in_tasks(sampler, walkers, driver, scorer, budgets))


def test_batching_changes_trajectories_by_rounding_only(springs, std_scorer, walker, water):
    driver = springs()
    walkers = [walker(water, k) for k in range(6)]
    results = [
        run(Langevin(Langevin.Settings(batch=batch)), walkers, driver, std_scorer(driver)).segments
        for batch in (1, 4, 6)
    ]
    for segments in results[1:]:
        for a, b in zip(results[0], segments, strict=True):
            np.testing.assert_allclose(
                a.walker.structure.positions, b.walker.structure.positions, rtol=0, atol=1e-10
            )


def test_walkers_move_and_differ(springs, std_scorer, walker, water):
    driver = springs()
    result = run(
        Langevin(Langevin.Settings()), [walker(water, k) for k in range(3)], driver, std_scorer(driver)
    )
    ends = [s.walker.structure.positions for s in result.segments]
    assert np.abs(ends[0] - water.positions).max() > 0.01
    assert np.abs(ends[0] - ends[1]).max() > 0.01


def test_padding_does_not_disturb(springs, std_scorer, walker, water):
    driver = springs()
    hydroxyl = Structure(numbers=np.array([8, 1]), positions=[[0, 0, 0], [0, 0, 1.0]], charge=-1)
    sampler = Langevin(Langevin.Settings())
    alone = run(sampler, [walker(hydroxyl, 1)], driver, std_scorer(driver)).segments[0].walker
    beside = (
        run(sampler, [walker(water, 0), walker(hydroxyl, 1)], driver, std_scorer(driver)).segments[1].walker
    )
    assert len(beside.structure) == 2
    np.testing.assert_allclose(alone.structure.positions, beside.structure.positions, rtol=0, atol=1e-11)


def test_every_walker_comes_back_with_the_untouched_reserve(springs, std_scorer, walker, water):
    driver = springs()
    walkers = [walker(water, k) for k in range(5)]
    result = run(Langevin(Langevin.Settings(batch=2)), walkers, driver, std_scorer(driver), steps=7)
    assert [s.walker.id for s in result.segments] == [0, 1, 2, 3, 4]
    assert [s.walker.step for s in result.segments] == [7, 7, 0, 0, 0]
    assert all(s.end is None and s.start_step == 0 for s in result.segments)
    assert result.segments[4].walker is walkers[4]
    # One evaluation before the first step, one for each of the seven, of two walkers of three atoms.
    assert result.atom_steps == (1 + 7) * 2 * 3


def test_a_deadline_that_has_come_leaves_all_as_they_were(springs, std_scorer, walker, water):
    driver = springs()
    result = run(Langevin(Langevin.Settings()), [walker(water)], driver, std_scorer(driver), steps=0)
    assert result.segments[0].walker.step == 0
    assert driver.calls == 0


def test_a_stop_request_is_heard_within_a_step(springs, std_scorer, walker, water):
    driver = springs()
    deadline = Deadline(stop=lambda: driver.calls >= 5)
    result = Langevin(Langevin.Settings()).sample([walker(water)], driver, std_scorer(driver), deadline, RNG)
    assert result.segments[0].walker.step == 4


def test_crossing_ends_a_walker_with_its_frame(springs, std_scorer, walker, water):
    driver = springs()
    scorer = std_scorer(driver, threshold=0.004)
    walkers = [walker(water, k, steps_full=400, temperature=900.0) for k in range(4)]
    result = run(Langevin(Langevin.Settings(stride=5, burn_in=20)), walkers, driver, scorer)
    crossed = {s.walker.id: s for s in result.segments if s.end is WalkerEnd.CROSSED}
    assert crossed
    for candidate in result.candidates:
        segment = crossed[candidate.walker_id]
        assert candidate.reason == "crossed"
        assert candidate.step == segment.walker.step >= 20
        assert candidate.step % 5 == 0
        assert candidate.time_fs == pytest.approx(0.5 * candidate.step)
        assert candidate.structure == segment.walker.structure
        assert candidate.scores.trigger > 0.004
        assert candidate.scores.trigger == segment.max_trigger
        batch = Batch.of([candidate.structure], dtype=torch.float64)
        assert candidate.scores.trigger == pytest.approx(float(scorer.trigger(batch)), rel=1e-9)
        assert "crossed the threshold of 0.004" in segment.detail
    assert len(result.candidates) == len(crossed)


def test_nothing_is_scored_during_burn_in(springs, std_scorer, walker, water):
    driver = springs()
    scorer = std_scorer(driver, threshold=-1.0)
    result = run(Langevin(Langevin.Settings(stride=10, burn_in=25)), [walker(water)], driver, scorer)
    assert result.segments[0].walker.step == 30
    assert scorer.batches == [1]


def test_a_walker_without_crossing_is_quiet_and_scored_at_its_last_step(springs, std_scorer, walker, water):
    driver = springs()
    scorer = std_scorer(driver)
    (segment,) = run(
        Langevin(Langevin.Settings(stride=10, burn_in=20)), [walker(water, steps_full=43)], driver, scorer
    ).segments
    assert segment.end is WalkerEnd.QUIET
    assert segment.walker.step == 43
    assert len(scorer.batches) == 4
    assert segment.max_trigger > 0
    assert "0.021 ps" in segment.detail or "0.022 ps" in segment.detail


def test_audit_walkers_run_on_and_keep_their_frames(springs, std_scorer, walker, water):
    driver = springs()
    audit = walker(water, 3, offers_candidates=False, frames_at=(1, 17, 40), steps_full=40)
    result = run(Langevin(Langevin.Settings(burn_in=20)), [audit], driver, std_scorer(driver, threshold=-1.0))
    assert result.segments[0].end is WalkerEnd.FULL_TIME
    assert [c.step for c in result.candidates] == [1, 17, 40]
    assert {c.reason for c in result.candidates} == {"audit"}
    assert result.candidates[2].structure == result.segments[0].walker.structure
    assert result.segments[0].max_trigger >= max(c.scores.trigger for c in result.candidates)


def test_a_walker_that_comes_finished_ends_at_once(springs, std_scorer, walker, water):
    driver = springs()
    result = run(Langevin(Langevin.Settings()), [walker(water, step=40)], driver, std_scorer(driver))
    assert result.segments[0].end is WalkerEnd.QUIET
    assert driver.calls == 0


def broken_by(
    positions: list, springs: Callable, std_scorer: Callable, walker: Walker, **changes: object
) -> SampleResult:
    driver = springs(width=0.02, depth=1e-3)
    given_guards = changes.pop("guards", {})
    sampler = NVE(NVE.Settings(guards=given_guards, burn_in=0, stride=1))
    structure = Structure(numbers=np.array([8, 1, 1]), positions=np.array(positions, dtype=float))
    bad = walker(structure, 0, steps_full=200, **{"velocities": np.zeros((3, 3)), **changes})
    good = walker(Structure(numbers=[8, 1], positions=[[0, 0, 0], [0, 0, 1.0]], charge=-1), 1, steps_full=30)
    return run(sampler, [bad, good], driver, std_scorer(driver, threshold=1e9))


def test_overlap_ends_a_walker_without_a_candidate(springs, std_scorer, walker):
    push = np.array([[0, 0, 0], [-0.05, 0, 0], [0, 0, 0.0]])
    result = broken_by(
        [[0, 0, 0], [1, 0, 0], [-0.3, 0.9, 0]],
        springs,
        std_scorer,
        walker,
        velocities=push,
        guards={"max_temperature_K": 1e9},
    )
    bad, good = result.segments
    assert bad.end is WalkerEnd.OVERLAP
    assert "closer than 0.6 ×" in bad.detail
    # It falls from 1.0 Å through the limit of 0.6 × 0.97 Å at 0.05 Å/fs and is looked at in every step.
    assert 16 <= bad.walker.step <= 18
    assert good.end is WalkerEnd.QUIET
    assert result.candidates == ()


def test_an_atom_that_leaves_ends_a_walker(springs, std_scorer, walker):
    pull = np.array([[0, 0, 0], [0.05, 0, 0], [0, 0, 0.0]])
    result = broken_by(
        [[0, 0, 0], [1, 0, 0], [-0.3, 0.9, 0]],
        springs,
        std_scorer,
        walker,
        velocities=pull,
        guards={"max_temperature_K": 1e9},
    )
    assert result.segments[0].end is WalkerEnd.DISSOCIATED
    assert "atom 1 (H)" in result.segments[0].detail


def test_temperature_and_force_guards(springs, std_scorer, walker):
    fast = np.array([[0, 0, 0], [0.05, 0, 0], [0, 0, 0.0]])
    place = [[0, 0, 0], [1, 0, 0], [-0.3, 0.9, 0]]
    hot = broken_by(place, springs, std_scorer, walker, velocities=fast, guards={"max_temperature_K": 200.0})
    assert hot.segments[0].end is WalkerEnd.TEMPERATURE
    assert "200 K" in hot.segments[0].detail
    strong = broken_by(place, springs, std_scorer, walker, guards={"max_force_eV_per_A": 1e-9})
    assert strong.segments[0].end is WalkerEnd.FORCE
    assert "eV/Å" in strong.segments[0].detail


def test_numbers_that_are_not_finite_give_back_the_last_good_state(springs, std_scorer, walker, water):
    driver = springs()
    plain = driver.forces

    def failing(batch):
        forces = plain(batch)
        if driver.calls > 10:
            forces[0] = torch.nan
        return forces

    driver.forces = failing
    result = run(
        Langevin(Langevin.Settings(burn_in=0, stride=1)),
        [walker(water, 0), walker(water, 1)],
        driver,
        std_scorer(driver),
        steps=12,
    )
    bad, good = result.segments
    assert bad.end is WalkerEnd.NOT_FINITE
    assert bad.walker.step == 9
    assert np.isfinite(bad.walker.structure.positions).all()
    assert np.isfinite(bad.walker.velocities).all()
    assert good.end is None or good.end is WalkerEnd.NOT_FINITE


def test_single_precision_drivers_move_walkers_kept_in_double(springs, std_scorer, walker, water):
    exact, rounded = springs(), springs(dtype=torch.float32)
    walkers = [walker(water, k) for k in range(3)]
    sampler = Langevin(Langevin.Settings())
    one = run(sampler, walkers, exact, std_scorer(exact)).segments
    other = run(sampler, walkers, rounded, std_scorer(rounded)).segments
    for a, b in zip(one, other, strict=True):
        difference = np.abs(a.walker.structure.positions - b.walker.structure.positions).max()
        assert 0 < difference < 1e-4
        assert b.walker.structure.positions.dtype == np.float64


def test_settings_state_the_full_time():
    assert Langevin(Langevin.Settings(time_ps=5, timestep_fs=0.5)).steps_full() == 10_000
    assert NVE(NVE.Settings(time_ps=0.1, timestep_fs=0.3)).steps_full() == 333
    assert NVE.pins_ensemble
    assert not Langevin.pins_ensemble


@pytest.mark.physics
def test_nve_conserves_energy_through_tasks(springs, std_scorer, walker, water):
    driver = springs()
    sampler = NVE(NVE.Settings(timestep_fs=0.2))
    first = run(sampler, [walker(water, steps_full=1000)], driver, std_scorer(driver), steps=1)
    outcome = run_in_tasks(sampler, [first.segments[0].walker], driver, std_scorer(driver), [170])

    def energy(state: Walker) -> float:
        masses = elements.masses(state.structure.numbers)[:, None]
        kinetic = 0.5 * (masses * state.velocities**2).sum() / ACCELERATION
        return kinetic + float(driver.energies(Batch.of([state.structure], dtype=torch.float64)).mean())

    assert np.abs(energy(outcome["segments"][0][-1].walker) - energy(first.segments[0].walker)) < 1e-3


@pytest.mark.physics
def test_langevin_kinetic_energy_is_that_of_the_canonical_ensemble(wells, std_scorer, walker, sites):
    """Many walkers, one instant: 2 E_kin / k_B T is chi-squared with 3N degrees of freedom."""
    driver, temperature, n_atoms = wells(stiffness=2.0), 400.0, 3
    settings_ = Langevin.Settings(batch=600, friction_per_fs=0.05, timestep_fs=0.5, guards=NO_LIMITS)
    walkers = [walker(sites(n_atoms), k, temperature=temperature, steps_full=400) for k in range(600)]
    result = run(Langevin(settings_), walkers, driver, std_scorer(driver))
    masses = elements.MASSES[7]
    energies = np.array(
        [0.5 * masses * (s.walker.velocities**2).sum() / ACCELERATION for s in result.segments]
    )
    reduced = 2 * energies / (BOLTZMANN * temperature)
    freedoms, count = 3 * n_atoms, len(reduced)
    # False alarm in one of 100,000 seeds for each of the three.
    low, high = stats.chi2.interval(1 - 1e-5, freedoms * count)
    assert low < reduced.sum() < high
    variance_error = np.sqrt((2 * freedoms) ** 2 * (2 + 12 / freedoms) / count)
    assert abs(reduced.var(ddof=1) - 2 * freedoms) < 4.4 * variance_error
    assert stats.kstest(reduced, stats.chi2(freedoms).cdf).pvalue > 1e-5


@pytest.mark.physics
def test_langevin_positions_have_the_canonical_variance(wells, std_scorer, walker, sites):
    driver, temperature = wells(stiffness=5.0), 300.0
    settings_ = Langevin.Settings(batch=600, friction_per_fs=0.05, timestep_fs=2.0, guards=NO_LIMITS)
    walkers = [walker(sites(2), k, temperature=temperature, steps_full=300) for k in range(600)]
    result = run(Langevin(settings_), walkers, driver, std_scorer(driver))
    away = np.array([s.walker.structure.positions - sites(2).positions for s in result.segments])
    reduced = (away**2).sum() * 5.0 / (BOLTZMANN * temperature)
    low, high = stats.chi2.interval(1 - 1e-5, away.size)
    assert low < reduced < high

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hpcal.core.errors import InputError
from hpcal.uncertainty.calibration import (
    CalibrationSettings,
    calibrate,
    energy_error,
    force_rmse,
    recall_bound,
)

EMPTY = np.zeros(0)


def pool(n, rng, spread=0.5):
    """Frames whose trigger is the error times log-normal noise, and an energy spread along with it."""
    error = rng.lognormal(np.log(0.2), 0.6, n)
    trigger = 0.5 * error * rng.lognormal(0, spread, n)
    return trigger, error, 0.02 * trigger * rng.lognormal(0, 0.2, n)


def test_the_stated_recall_is_reached_with_the_largest_threshold_that_does():
    trigger, error, energy = pool(500, np.random.default_rng(0))
    made = calibrate(trigger, error, energy, CalibrationSettings(error=0.5, recall=0.9))
    failed = error > 0.5
    assert made.rule == "recall"
    assert (made.n, made.failures) == (500, failed.sum())
    assert made.recall == (trigger[failed] > made.threshold).mean() >= 0.9
    # At the next trigger of a failure one more would be lost, and the recall with it.
    following = trigger[failed][trigger[failed] > made.threshold].min()
    assert (trigger[failed] > following).mean() < 0.9
    assert made.selected_share == (trigger > made.threshold).mean()
    assert "90%" in made.sentence
    assert f"{made.failures} of 500" in made.sentence


@settings(max_examples=60, deadline=None)
@given(failures=st.integers(20, 200), recall=st.floats(0.5, 1.0), seed=st.integers(0, 10))
def test_the_recall_is_never_below_the_stated_one(failures, recall, seed):
    trigger = np.random.default_rng(seed).uniform(size=failures * 3)
    error = np.where(np.arange(len(trigger)) < failures, 1.0, 0.0)
    made = calibrate(trigger, error, trigger, CalibrationSettings(recall=recall, max_selected_share=0.999))
    if made.rule == "recall":
        assert made.recall >= recall - 1e-9
    else:
        assert made.selected_share <= 0.999


def test_the_known_recall_of_the_population_is_recovered():
    """400 pools of 600 frames: the recall on the whole population, by which the pools were made.

    The threshold is the k-th largest of f failures, so the population's recall has mean
    k / (f + 1), within 1/f of the stated one. Its mean over the pools is known to about 0.002.
    """
    rng = np.random.default_rng(1)
    trigger, error, _ = pool(400_000, rng)
    truth = np.sort(trigger[error > 0.5])
    settings_ = CalibrationSettings(error=0.5, recall=0.9, max_selected_share=0.9)
    found, covered = [], 0
    for _ in range(400):
        pick = rng.integers(0, len(trigger), 600)
        made = calibrate(trigger[pick], error[pick], trigger[pick], settings_)
        assert made.rule == "recall"
        found.append(1 - np.searchsorted(truth, made.threshold) / len(truth))
        covered += found[-1] >= made.recall_bound
    assert np.mean(found) == pytest.approx(0.9, abs=0.015)
    # The bound holds for 95 % of the pools: fewer than the binomial allows happens once in 100,000.
    assert covered >= stats.binom.ppf(1e-5, 400, 0.95)


def test_the_bound_is_that_of_clopper_and_pearson():
    for caught, failures in ((1, 20), (19, 20), (20, 20), (45, 50)):
        exact = stats.binomtest(caught, failures, alternative="greater").proportion_ci(0.95, "exact").low
        assert recall_bound(caught, failures) == pytest.approx(exact, rel=1e-9)
    assert recall_bound(0, 20) == 0.0


def test_a_recall_that_would_select_too_much_is_capped_and_says_so():
    trigger, error, energy = pool(500, np.random.default_rng(0), spread=2.0)
    settings_ = CalibrationSettings(error=0.5, recall=0.98, max_selected_share=0.3)
    made = calibrate(trigger, error, energy, settings_)
    assert made.rule == "capped"
    assert made.selected_share == pytest.approx(0.3)
    assert made.recall < 0.98
    assert "largest selected share of 30%" in made.sentence


def test_few_failures_fall_back_to_the_quantile():
    trigger, error, energy = pool(200, np.random.default_rng(0))
    settings_ = CalibrationSettings(error=float(np.sort(error)[-20]), quantile=0.9, recall=0.8)
    made = calibrate(trigger, error, energy, settings_)
    assert (made.failures, made.rule) == (19, "quantile")
    assert made.threshold == pytest.approx(np.quantile(trigger, 0.9))
    assert made.selected_share == pytest.approx(0.1)
    assert "fewer than 20 failures" in made.sentence
    more = calibrate(
        trigger, error, energy, settings_.model_copy(update={"error": float(np.sort(error)[-21])})
    )
    assert (more.failures, more.rule) == (20, "recall")


@pytest.mark.parametrize(("floor", "metric_floor", "expected"), [(0.7, 0.1, 0.7), (None, 0.6, 0.6)])
def test_the_floor_holds_where_triggers_are_small(floor, metric_floor, expected):
    trigger, error, energy = pool(100, np.random.default_rng(0))
    made = calibrate(trigger, error * 0, energy, CalibrationSettings(floor=floor), metric_floor=metric_floor)
    assert (made.rule, made.threshold) == ("floor", expected)
    assert made.recall is None
    assert made.recall_bound is None


def test_inflated_uncertainties_do_not_raise_the_threshold():
    trigger, error, energy = pool(100, np.random.default_rng(0))
    settings_ = CalibrationSettings(max_increase=1.2)
    quantile = calibrate(trigger, error * 0, energy, settings_).threshold
    inflated = calibrate(10 * trigger, error * 0, energy, settings_, previous=quantile)
    assert (inflated.rule, inflated.threshold) == ("limited", pytest.approx(1.2 * quantile))
    lower = calibrate(0.5 * trigger, error * 0, energy, settings_, previous=quantile)
    assert (lower.rule, lower.threshold) == ("quantile", pytest.approx(0.5 * quantile))


def test_without_frames_the_previous_threshold_or_the_floor_stands():
    first = calibrate(EMPTY, EMPTY, EMPTY, CalibrationSettings(), metric_floor=0.05)
    assert (first.rule, first.threshold, first.selected_share) == ("floor", 0.05, None)
    assert first.bias_width == CalibrationSettings().start_bias_width_eV
    later = calibrate(EMPTY, EMPTY, EMPTY, CalibrationSettings(), previous=0.3, metric_floor=0.05)
    assert (later.rule, later.threshold) == ("previous", 0.3)
    assert "no audit frames" in later.sentence


def test_the_bias_width_is_exceeded_by_the_same_share():
    trigger, error, energy = pool(1000, np.random.default_rng(0))
    made = calibrate(trigger, error, energy, CalibrationSettings(error=0.5, recall=0.9))
    assert (energy > made.bias_width).mean() == pytest.approx(made.selected_share, abs=2e-3)
    flat = calibrate(trigger, error, energy * 0, CalibrationSettings(min_bias_width_eV=0.004))
    assert flat.bias_width == 0.004


def test_ties_are_caught():
    """All failures share one value: a threshold at that value would catch none of them."""
    trigger = np.concatenate([np.full(30, 2.0), np.full(70, 1.0)])
    error = np.concatenate([np.ones(30), np.zeros(70)])
    made = calibrate(trigger, error, trigger, CalibrationSettings())
    assert (made.recall, made.selected_share) == (1.0, 0.3)


def test_what_cannot_be_calibrated_is_refused():
    with pytest.raises(InputError, match="one trigger, error and energy"):
        calibrate(np.ones(3), np.ones(2), np.ones(3), CalibrationSettings())
    with pytest.raises(InputError, match="not finite"):
        calibrate(np.array([1.0, np.nan]), np.ones(2), np.ones(2), CalibrationSettings())


def test_errors_of_a_frame():
    reference = np.zeros((2, 3))
    assert force_rmse(np.full((2, 3), 0.3), reference) == pytest.approx(0.3)
    assert force_rmse(np.array([[0.6, 0, 0], [0, 0, 0.0]]), reference) == pytest.approx(0.6 / np.sqrt(6))
    assert energy_error(np.array([-1.0, 0.5, 2.0]), 0.25, 4) == pytest.approx(1.75 / 2)

"""Choosing the threshold of the uncertainty from frames drawn whatever their uncertainty.

A frame whose true error is above a stated one is a *failure*. The threshold is the largest that
catches the stated share of failures (recall). Frames that were selected for being uncertain cannot
tell this; the audit stream can. With few failures among them the recall is not known, and a stated
quantile stands in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from pydantic import Field
from scipy import stats

from hpcal.core.arrays import BoolArray, FloatArray
from hpcal.core.errors import InputError
from hpcal.core.settings import Settings

CONFIDENCE: Final = 0.95
"""One-sided confidence of the bound on the recall."""

Rule = Literal["recall", "capped", "quantile", "limited", "floor", "previous"]


class CalibrationSettings(Settings):
    """How the threshold is calibrated."""

    error_kind: Literal["force_rmse", "energy"] = Field(
        "force_rmse",
        description="what makes a frame a failure: force_rmse, of the components of the mean force, "
        "eV/Å; energy, largest error of a member per square root of the number of atoms, eV",
    )
    error: float = Field(
        0.3, gt=0, description="error above which a frame is a failure; eV/Å or eV/sqrt(atom) by kind"
    )
    recall: float = Field(0.98, gt=0, le=1, description="share of the failures that must be caught")
    min_failures: int = Field(
        20, ge=1, description="failures needed for a threshold by recall; with fewer, by quantile"
    )
    quantile: float = Field(
        0.9, ge=0, lt=1, description="quantile of the audit frames' uncertainty, where failures are few"
    )
    max_selected_share: float = Field(
        0.5, gt=0, lt=1, description="largest share of audit frames that may be over the threshold"
    )
    floor: float | None = Field(
        None, ge=0, description="lowest threshold by quantile, in the metric's unit; by default the metric's"
    )
    max_increase: float = Field(
        1.5,
        ge=1,
        description="a threshold by quantile is at most this times the one before, lest inflated "
        "uncertainties raise it",
    )
    min_bias_width_eV: float = Field(  # noqa: N815
        0.001, gt=0, description="lowest width for uncertainty-driven dynamics, eV/sqrt(atom)"
    )
    start_bias_width_eV: float = Field(  # noqa: N815
        0.01,
        gt=0,
        description="that width while there are no audit frames, eV/sqrt(atom); 0.01 is the published "
        "0.23 kcal/mol",
    )


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A threshold and why it is that.

    Attributes:
        threshold: an uncertainty above it is a crossing; in the metric's unit.
        rule: ``recall``; ``capped`` (a recall that had to give way to the largest selected share);
            ``quantile``; ``limited`` (a quantile that would have risen too far above the previous
            threshold); ``floor``; ``previous`` (no audit frames, so as before).
        n: audit frames.
        failures: those with an error above the stated one.
        recall: share of the failures that are over the threshold, or None without failures.
        recall_bound: lower bound of the recall on further frames, see :func:`recall_bound`.
        selected_share: share of all audit frames that are over the threshold, or None without any.
        bias_width: eV/sqrt(atom); energy standard deviation that the same share exceeds, for
            uncertainty-driven dynamics.
        sentence: all this in words.
    """

    threshold: float
    rule: Rule
    n: int
    failures: int
    recall: float | None
    recall_bound: float | None
    selected_share: float | None
    bias_width: float
    sentence: str


def calibrate(
    trigger: FloatArray,
    error: FloatArray,
    energy_std: FloatArray,
    settings: CalibrationSettings,
    previous: float | None = None,
    *,
    metric_floor: float = 0.0,
    frames: str = "audit frames",
) -> Calibration:
    """Calibrates the threshold on audit frames.

    Args:
        trigger: (n,) uncertainty of each frame by the campaign's metric.
        error: (n,) its true error, of the kind that the settings state.
        energy_std: (n,) energy standard deviation per square root of the number of atoms, eV.
        previous: threshold that was calibrated before on audit frames, or None: a floor that stood in
            for want of frames is nothing to hold on to.
        metric_floor: lowest threshold by quantile where the settings leave it open.
        frames: what the frames are, for the sentence.

    Raises:
        InputError: arrays of different lengths or with values that are not finite.
    """
    _check(trigger, error, energy_std)
    floor = metric_floor if settings.floor is None else settings.floor
    failed = error > settings.error
    if len(trigger) == 0:
        chosen = _without_frames(previous, floor)
    elif int(failed.sum()) >= settings.min_failures:
        chosen = _by_recall(trigger, failed, settings)
    else:
        chosen = _by_quantile(trigger, settings, previous, floor)
    return _described(trigger, failed, energy_std, settings, chosen, frames=frames)


def recall_bound(caught: int, failures: int) -> float:
    """Lower bound (Clopper–Pearson, one-sided, 95 %) of a recall seen as ``caught`` of ``failures``.

    Where the threshold is the k-th largest uncertainty of f failures, the share of all failures
    above it is Beta(k, f − k + 1) distributed, so the bound also holds for a threshold chosen on
    the same frames. It takes frames as independent, which frames of one walker are not quite.

    Source: Clopper and Pearson, Biometrika 1934, 10.1093/biomet/26.4.404.
    """
    if caught == 0:
        return 0.0
    return float(stats.beta.ppf(1.0 - CONFIDENCE, caught, failures - caught + 1))


def force_rmse(forces: FloatArray, reference: FloatArray) -> float:
    """Root mean square over the components of (N, 3) mean forces less reference forces, eV/Å."""
    return float(np.sqrt(np.mean((forces - reference) ** 2)))


def energy_error(energies: FloatArray, reference: float, n_atoms: int) -> float:
    """Largest error of (M,) member energies in eV, over sqrt(N).

    ::

        ε = max_m |E_m − E_ref| / sqrt(N)

    Source: Chem. Rev. 2024, 10.1021/acs.chemrev.4c00572, eq 12.
    """
    return float(np.abs(np.asarray(energies) - reference).max() / math.sqrt(n_atoms))


def _check(*arrays: FloatArray) -> None:
    lengths = {len(a) for a in arrays}
    if len(lengths) > 1:
        raise InputError(f"calibration needs one trigger, error and energy a frame, not {sorted(lengths)}")
    if not all(np.isfinite(a).all() for a in arrays):
        raise InputError(
            "calibration met an uncertainty or error that is not finite: leave such frames out, and "
            "look at how the ensemble was trained"
        )


def _without_frames(previous: float | None, floor: float) -> tuple[float, Rule]:
    return (floor, "floor") if previous is None else (previous, "previous")


def _by_recall(trigger: FloatArray, failed: BoolArray, settings: CalibrationSettings) -> tuple[float, Rule]:
    of_failures = np.sort(trigger[failed])[::-1]
    # The small number keeps a product such as 0.98 × 50 from being rounded up to 50.
    needed = math.ceil(settings.recall * len(of_failures) - 1e-9)
    # Crossing means to be above the threshold, so the last of the needed ones lies just above it.
    threshold = float(np.nextafter(of_failures[needed - 1], -np.inf))
    allowed = math.floor(settings.max_selected_share * len(trigger) + 1e-9)
    if int((trigger > threshold).sum()) <= allowed:
        return threshold, "recall"
    return float(np.sort(trigger)[::-1][allowed]), "capped"


def _by_quantile(
    trigger: FloatArray, settings: CalibrationSettings, previous: float | None, floor: float
) -> tuple[float, Rule]:
    threshold = float(np.quantile(trigger, settings.quantile))
    rule: Rule = "quantile"
    if previous is not None and threshold > settings.max_increase * previous:
        threshold, rule = settings.max_increase * previous, "limited"
    return (threshold, rule) if threshold >= floor else (floor, "floor")


def _described(
    trigger: FloatArray,
    failed: BoolArray,
    energy_std: FloatArray,
    settings: CalibrationSettings,
    chosen: tuple[float, Rule],
    *,
    frames: str,
) -> Calibration:
    threshold, rule = chosen
    n, failures = len(trigger), int(failed.sum())
    over = trigger > threshold
    caught = int((over & failed).sum())
    share = float(over.mean()) if n else None
    recall = caught / failures if failures else None
    bound = recall_bound(caught, failures) if failures else None
    return Calibration(
        threshold=threshold,
        rule=rule,
        n=n,
        failures=failures,
        recall=recall,
        recall_bound=bound,
        selected_share=share,
        bias_width=_bias_width(energy_std, share, settings),
        sentence=f"threshold {threshold:.4g} {_why(rule, settings)}: "
        + _seen(n, failures, int(over.sum()), caught, settings, frames=frames),
    )


def _bias_width(energy_std: FloatArray, share: float | None, settings: CalibrationSettings) -> float:
    """Energy standard deviation that the selected share, at most the largest one allowed, exceeds."""
    if share is None:
        return settings.start_bias_width_eV
    width = float(np.quantile(energy_std, 1.0 - min(share, settings.max_selected_share)))
    return max(width, settings.min_bias_width_eV)


def _seen(
    n: int, failures: int, over: int, caught: int, settings: CalibrationSettings, *, frames: str
) -> str:
    if n == 0:
        return f"there are no {frames} yet"
    text = f"{failures} of {n} {frames} have an error above {settings.error:g}"
    if failures:
        text += (
            f", {caught} of them over the threshold (recall {caught / failures:.3f}, at least "
            f"{recall_bound(caught, failures):.3f} with {CONFIDENCE:.0%} confidence)"
        )
    return text + f"; {over} frames ({over / n:.1%}) are over it"


def _why(rule: Rule, settings: CalibrationSettings) -> str:
    return {
        "recall": f"catches {settings.recall:.0%} of the failures",
        "capped": f"is as low as the largest selected share of {settings.max_selected_share:.0%} allows, "
        f"too high to catch {settings.recall:.0%} of the failures",
        "quantile": f"is the {settings.quantile:.0%} quantile, as fewer than {settings.min_failures} "
        "failures are too few to go by",
        "limited": f"is {settings.max_increase:g} times the previous one, which the "
        f"{settings.quantile:.0%} quantile would exceed",
        "floor": "is the floor",
        "previous": "is the previous one",
    }[rule]

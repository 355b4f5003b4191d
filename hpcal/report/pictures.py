"""The pictures of a report on accuracy: learning curves, parity, uncertainty against true error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from hpcal.core.arrays import BoolArray, FloatArray
from hpcal.core.walker import Split
from hpcal.report.canvas import (
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    INK,
    ORANGE,
    VERMILLION,
    Picture,
    drawn,
    panels,
    render,
    styled,
)
from hpcal.store.history import Counts
from hpcal.store.measurements import Evaluations

GROUPS: Final = {
    Split.TEST: ("audit test", BLUE, "o"),
    Split.CALIBRATION: ("audit calibration", ORANGE, "s"),
    Split.REFERENCE: ("reference", GREEN, "^"),
}
"""Name, colour and marker of each group of evaluated structures."""
QUANTITIES: Final = {
    "force": ("force_rmse_ev_per_ang", 1.0, "eV/Å"),
    "energy": ("energy_rmse_ev_per_atom", 1000.0, "meV/atom"),
}
"""Key in the status, factor and unit of what a learning curve can show."""
CURVES: Final = {"audit": ("audit test", BLUE), "reference": ("reference", GREEN)}
"""Groups of a learning curve with name and colour."""
LOG_RANGE: Final = 12.0
"""Ratio of largest to smallest value from which an axis is logarithmic."""

Entry = Mapping[str, Any]


def learning_curve(history: Sequence[Entry], quantity: str) -> Picture | None:
    """RMSE against labels and against node hours; None before any ensemble was evaluated.

    Args:
        history: the entries of the status.
        quantity: ``force`` (eV/Å) or ``energy`` (drawn in meV/atom).
    """
    key, _, unit = QUANTITIES[quantity]
    if not any(entry[group][key] is not None for entry in history for group in ("audit", "reference")):
        return None
    with styled():
        figure, axes = panels(2)
        for axis, x, name in zip(axes, ("labels", "node_hours"), ("labels", "node hours"), strict=True):
            for group in CURVES:
                _curve(axis, history, x, group, quantity)
            axis.set_xlabel(name)
            _positive_axis(axis)
        axes[0].set_ylabel(f"{quantity} RMSE ({unit})")
        axes[0].legend()
        return render(figure, _curve_alt(history, quantity))


def _curve(axis: Any, history: Sequence[Entry], x: str, group: str, quantity: str) -> None:
    key, factor, _ = QUANTITIES[quantity]
    label, colour = CURVES[group]
    known = [entry for entry in history if entry[group][key] is not None]
    if not known:
        return
    at = np.array([entry[x] for entry in known], dtype=np.float64)
    values = np.array([entry[group][key] for entry in known]) * factor
    refused = np.array([entry["state"] == "refused" for entry in known])
    axis.plot(at, values, color=colour, label=label, zorder=3)
    axis.plot(at[~refused], values[~refused], "o", color=colour, ms=5, zorder=4)
    if refused.any():
        axis.plot(
            at[refused], values[refused], "o", mfc="white", mec=colour, ms=7, mew=1.6, zorder=5,
            label=f"{label}, not promoted",
        )  # fmt: skip
    spans = [entry[group].get(f"{key}_interval") for entry in known]
    if any(spans):
        low, high = (
            np.array([np.nan if s is None else s[i] for s in spans], dtype=np.float64) for i in (0, 1)
        )
        if len(at) > 1:
            axis.fill_between(at, low * factor, high * factor, color=colour, alpha=0.13, lw=0, zorder=1)
        axis.vlines(at, low * factor, high * factor, color=colour, alpha=0.45, lw=1.2, zorder=2)


def _curve_alt(history: Sequence[Entry], quantity: str) -> str:
    key, factor, unit = QUANTITIES[quantity]
    points = [
        f"{entry['labels']} labels {entry['audit'][key] * factor:.3g}"
        for entry in history
        if entry["audit"][key] is not None
    ]
    return (
        f"Learning curve: {quantity} RMSE in {unit} on the audit test group: {'; '.join(points) or 'none'}."
    )


def _positive_axis(axis: Any) -> None:
    """Errors from zero; on a logarithmic axis where they span more than a decade."""
    low, high = axis.dataLim.y0, axis.dataLim.y1
    if low > 0 and high / low > LOG_RANGE:
        axis.set_yscale("log")
        plain_log(axis.yaxis)
    else:
        axis.set_ylim(bottom=0)
    axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.margins(x=0.04)


def plain_log(axis: Any) -> None:
    """Ticks 1, 2, 5, 10 … of a logarithmic axis as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def parity(found: Evaluations) -> Picture | None:
    """Predicted against labelled energy, and the spread of force errors over structures.

    Energies are per atom and relative to the mean label of their composition, meV/atom, so that
    compositions share one axis. None without evaluations.
    """
    known = found.where(np.isfinite(found.energy_error))
    if not len(known):
        return None
    label = 1000 * (known.label_energy - _composition_mean(known)) / known.n_atoms
    error = 1000 * known.energy_error / known.n_atoms
    with styled():
        figure, axes = panels(3, width=10.8)
        for split, (name, colour, marker) in GROUPS.items():
            mine = np.flatnonzero(known.split == str(split))
            mine = mine[drawn(error[mine])]
            if len(mine):
                look = {"s": 14, "alpha": 0.65, "c": colour, "marker": marker, "lw": 0, "rasterized": True}
                axes[0].scatter(label[mine], label[mine] + error[mine], label=name, **look)
                axes[1].scatter(label[mine], error[mine], label=name, **look)
        ends = np.array([label.min(), label.max()])
        axes[0].plot(ends, ends, color=INK, lw=1, ls="--", zorder=1)
        axes[1].axhline(0, color=INK, lw=1, ls="--", zorder=1)
        axes[0].set(xlabel="label (meV/atom)", ylabel="predicted (meV/atom)", title="Energy, relative")
        axes[1].set(xlabel="label (meV/atom)", ylabel="predicted − label (meV/atom)", title="Energy error")
        axes[0].legend(loc="upper left", handletextpad=0.2)
        _force_spread(axes[2], found)
        worst = float(np.abs(error).max())
        text = f"Parity of energies for {len(known)} structures, largest error {worst:.3g} meV/atom; "
        return render(figure, text + "histogram of force RMSE over structures.")


def _composition_mean(found: Evaluations) -> FloatArray:
    """(n,) mean label energy over the structures of the same formula, eV."""
    _, place = np.unique(found.formula, return_inverse=True)
    return (np.bincount(place, weights=found.label_energy) / np.bincount(place))[place]


def _force_spread(axis: Any, found: Evaluations) -> None:
    axis.set(xlabel="force RMSE of a structure (eV/Å)", ylabel="share of structures", title="Force error")
    values = {
        split: v[np.isfinite(v) & (v > 0)]
        for split in GROUPS
        if len(v := found.force_rmse[found.split == str(split)])
    }
    values = {split: v for split, v in values.items() if len(v)}
    if not values:
        axis.text(0.5, 0.5, "no labels with forces", ha="center", transform=axis.transAxes, color=GREY)
        return
    everything = np.concatenate(list(values.values()))
    bins = np.geomspace(everything.min() * 0.99, everything.max() * 1.01, 16)
    for split, v in values.items():
        name, colour, _ = GROUPS[split]
        weights = np.full(len(v), 1 / len(v))
        axis.hist(v, bins, weights=weights, color=colour, alpha=0.25)
        axis.hist(v, bins, weights=weights, color=colour, histtype="step", lw=1.6, label=name)
    axis.set_xscale("log")
    plain_log(axis.xaxis)


def true_error(found: Evaluations, kind: str) -> FloatArray:
    """(n,) error that the uncertainty is to foretell: ``force_rmse`` or ``energy``; NaN where unknown."""
    return found.force_rmse if kind == "force_rmse" else found.committee_error


def caught(found: Evaluations, threshold: float, kind: str, limit: float) -> dict[str, int]:
    """Structures by error above the limit or not, and uncertainty above the threshold or not."""
    error = true_error(found, kind)
    known = np.isfinite(error) & np.isfinite(found.value)
    failed, over = error[known] > limit, found.value[known] > threshold
    cells: dict[str, BoolArray] = {
        "caught": failed & over,
        "missed": failed & ~over,
        "false_alarm": ~failed & over,
        "certain": ~failed & ~over,
    }
    return {name: int(mask.sum()) for name, mask in cells.items()}


def uncertainty(
    found: Evaluations, *, metric: str, threshold: float | None, kind: str, limit: float
) -> Picture | None:
    """Uncertainty against true error on logarithmic axes, with the threshold; None without points.

    Args:
        found: evaluations of one ensemble on frames drawn regardless of their uncertainty.
        kind: see :func:`true_error`.
        limit: error above which a structure counts as a failure.
    """
    error = true_error(found, kind)
    known = np.isfinite(error) & np.isfinite(found.value) & (error > 0) & (found.value > 0)
    found, error = found.where(known), error[known]
    if not len(found):
        return None
    with styled():
        figure, (axis,) = panels(1, height=4.4, width=6.4)
        for split, (name, colour, marker) in GROUPS.items():
            mine = np.flatnonzero(found.split == str(split))
            mine = mine[drawn(error[mine])]
            if len(mine):
                axis.scatter(
                    found.value[mine], error[mine], s=18, alpha=0.65, c=colour, marker=marker, lw=0,
                    label=name, rasterized=True,
                )  # fmt: skip
        axis.set(xscale="log", yscale="log")
        low, high = min(error.min(), limit), max(error.max(), limit)
        # Room above and below for the counts in the corners.
        axis.set_ylim(low / 2.2, high * 2.2)
        plain_log(axis.xaxis)
        plain_log(axis.yaxis)
        axis.axhline(limit, color=GREY, lw=1.2, ls=":", label=f"failure above {limit:g}")
        if threshold is not None and threshold > 0:
            axis.axvline(threshold, color=VERMILLION, lw=1.6, label=f"threshold {threshold:.3g}")
            _quadrants(axis, caught(found, threshold, kind, limit))
        axis.set_xlabel(f"uncertainty: {metric} ({metric_unit(metric)})")
        axis.set_ylabel(
            "force RMSE of the structure (eV/Å)" if kind == "force_rmse" else "energy error (eV/√atom)"
        )
        figure.legend(loc="outside lower center", ncols=4, handletextpad=0.3, columnspacing=1.2)
        return render(figure, f"Uncertainty against true error for {len(found)} audit frames.")


def metric_unit(metric: str) -> str:
    """Unit of a metric of the uncertainty."""
    return "eV/√atom" if metric.startswith("energy") else "eV/Å" if metric.startswith("force") else "-"


def _quadrants(axis: Any, counts: Mapping[str, int]) -> None:
    corners = {
        "missed": (0.02, 0.98, "left", "top"),
        "caught": (0.98, 0.98, "right", "top"),
        "certain": (0.02, 0.02, "left", "bottom"),
        "false_alarm": (0.98, 0.02, "right", "bottom"),
    }
    for name, (x, y, ha, va) in corners.items():
        text = f"{counts[name]} {name.replace('_', ' ')}{'s' if name == 'false_alarm' else ''}"
        axis.text(
            x, y, text, ha=ha, va=va, transform=axis.transAxes, fontsize=9.5, weight="bold",
            color=VERMILLION if name == "missed" else INK,
            bbox={"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 2},
        )  # fmt: skip


def stacked_bars(counts: Counts, *, xlabel: str, ylabel: str, alt: str) -> Picture | None:
    """Bars over generations, stacked by a word; None without counts.

    Args:
        counts: by (generation, word).
    """
    if not counts:
        return None
    generations = sorted({key[0] for key in counts})
    totals: dict[str, int] = {}
    for (_, word), n in counts.items():
        totals[word] = totals.get(word, 0) + n
    words = sorted(totals, key=lambda word: (-totals[word], word))
    with styled():
        figure, (axis,) = panels(1, height=3.2, width=max(4.8, min(9.6, 2.6 + 0.55 * len(generations))))
        bottom = np.zeros(len(generations))
        for i, word in enumerate(words):
            heights = np.array([counts.get((g, word), 0) for g in generations], dtype=np.float64)
            axis.bar(
                range(len(generations)), heights, bottom=bottom, width=0.72, label=word.replace("_", " "),
                color=COLOURS[i % len(COLOURS)], edgecolor="white", lw=0.6,
                hatch="//" if i >= len(COLOURS) else None,
            )  # fmt: skip
            bottom += heights
        step = max(1, len(generations) // 20)
        axis.set_xticks(range(0, len(generations), step), [str(g) for g in generations[::step]])
        axis.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.grid(visible=False, axis="x")
        axis.set(xlabel=xlabel, ylabel=ylabel)
        figure.legend(loc="outside right upper")
        return render(figure, alt)

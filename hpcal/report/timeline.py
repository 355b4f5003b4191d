"""When each pool worked on what: lanes of single attempts, or the share of busy slots."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from hpcal.core.arrays import AnyArray, FloatArray, IntArray
from hpcal.report.canvas import COLOURS, GREY, INK, VERMILLION, Picture, render, styled
from hpcal.report.utilisation import active_intervals, on_active_clock
from hpcal.store.history import EnsembleRecord
from hpcal.store.measurements import Attempts

MAX_BARS: Final = 500
"""Attempts of a pool that are drawn one by one; more are drawn as busy slots over time."""
BINS: Final = 240
KINDS: Final = ("label", "sample", "train", "evaluate", "select", "rescore", "bootstrap", "relax")
"""Kinds of task in the order of their colours."""


def timeline(
    attempts: Attempts, pools: Mapping[str, Mapping[str, Any]], ensembles: Sequence[EnsembleRecord]
) -> Picture | None:
    """Attempts of each pool over the time that the campaign ran; None before any has ended.

    The clock stands still between two controllers. Dotted lines are restarts, triangles the moments
    when ensembles were promoted.
    """
    ended = np.isfinite(attempts.start) & np.isfinite(attempts.end)
    if not ended.any():
        return None
    intervals = active_intervals(attempts)
    clock = partial(on_active_clock, intervals=intervals)
    unit, seconds = _unit(float(clock(attempts.end[ended]).max()))
    work = _Work(
        executor=attempts.executor[ended],
        kind=attempts.kind[ended],
        start=clock(attempts.start[ended]) / seconds,
        end=clock(attempts.end[ended]) / seconds,
    )
    names = [*pools, *sorted(set(work.executor.tolist()) - set(pools))]
    names = [name for name in names if (work.executor == name).any()]
    moments = np.array([e.closed for e in ensembles if e.promoted], dtype=np.float64)
    restarts = np.array([stop for _, stop in intervals[:-1]], dtype=np.float64)
    with styled():
        figure = Figure(figsize=(10.2, 0.9 + 1.15 * len(names)), layout="constrained")
        axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
        for axis, name in zip(axes, names, strict=True):
            _pool(axis, work.of(name), pools.get(name, {}).get("slots"))
            axis.set_ylabel(name, rotation=0, ha="right", va="center", weight="bold")
            for at in clock(restarts) / seconds:
                axis.axvline(at, color=INK, lw=1, ls=":")
        above = axes[0].get_xaxis_transform()
        at = clock(moments) / seconds
        axes[0].plot(at, np.full(len(at), 1.04), "v", color=VERMILLION, ms=5, clip_on=False, transform=above)
        axes[-1].set_xlabel(f"time that the campaign ran ({unit})")
        handles = [Patch(color=_colour(k), label=k) for k in _kinds(work.kind)]
        figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), handlelength=1.0)
        return render(figure, f"Timeline of {int(ended.sum())} attempts in {len(names)} pools.")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Work:
    """Ended attempts: (n,) pools, kinds of task, starts and ends on the active clock."""

    executor: AnyArray
    kind: AnyArray
    start: FloatArray
    end: FloatArray

    def of(self, pool: str) -> _Work:
        mine = self.executor == pool
        return _Work(
            executor=self.executor[mine], kind=self.kind[mine], start=self.start[mine], end=self.end[mine]
        )


def _pool(axis: Any, work: _Work, slots: int | None) -> None:
    top = _bars(axis, work) if len(work.kind) <= MAX_BARS else _areas(axis, work, slots)
    top = max(top, float(slots or 1))
    axis.set_ylim(0, top * 1.02)
    axis.set_yticks([0, slots or round(top)])
    axis.grid(visible=False, axis="y")
    axis.margins(x=0.01)


def lanes(start: FloatArray, end: FloatArray) -> IntArray:
    """(n,) the lowest lane that is free when each attempt begins."""
    lane = np.zeros(len(start), dtype=np.int64)
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    used = 0
    for i in np.lexsort((end, start)):
        while busy and busy[0][0] <= start[i]:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if free:
            lane[i] = heapq.heappop(free)
        else:
            lane[i], used = used, used + 1
        heapq.heappush(busy, (float(end[i]), int(lane[i])))
    return lane


def busy_slots(start: FloatArray, end: FloatArray, edges: FloatArray) -> FloatArray:
    """(K,) mean number of attempts at work between each two of (K + 1,) times."""
    return np.diff(_worked(np.sort(start), edges) - _worked(np.sort(end), edges)) / np.diff(edges)


def _worked(since: FloatArray, at: FloatArray) -> FloatArray:
    """Σ_i max(0, t − s_i) at each time t, for ascending s_i."""
    count = np.searchsorted(since, at, side="right")
    total: FloatArray = count * at - np.concatenate([[0.0], np.cumsum(since)])[count]
    return total


def _bars(axis: Any, work: _Work) -> float:
    lane = lanes(work.start, work.end)
    low, high = lane + 0.08, lane + 0.92
    x = np.stack([work.start, work.end, work.end, work.start], axis=1)
    y = np.stack([low, low, high, high], axis=1)
    corners: Any = np.stack([x, y], axis=2)
    colours = [_colour(kind) for kind in work.kind]
    axis.add_collection(PolyCollection(corners, facecolors=colours, edgecolors="white", linewidths=0.3))
    axis.autoscale_view()
    return float(lane.max() + 1)


def _areas(axis: Any, work: _Work, slots: int | None) -> float:
    edges = np.linspace(0.0, float(work.end.max()), BINS + 1)
    bottom = np.zeros(BINS)
    for name in _kinds(work.kind):
        one = work.kind == name
        height = busy_slots(work.start[one], work.end[one], edges)
        axis.stairs(bottom + height, edges, baseline=bottom, fill=True, color=_colour(name), lw=0)
        bottom = bottom + height
    if slots is not None:
        axis.axhline(slots, color=GREY, lw=1)
    return float(bottom.max())


def _kinds(kind: AnyArray) -> list[str]:
    found = set(kind.tolist())
    return [k for k in KINDS if k in found] + sorted(found - set(KINDS))


def _colour(kind: str) -> str:
    return COLOURS[KINDS.index(kind)] if kind in KINDS else INK


def _unit(seconds: float) -> tuple[str, float]:
    if seconds > 2 * 86400:
        return "days", 86400.0
    if seconds > 2 * 3600:
        return "hours", 3600.0
    return ("minutes", 60.0) if seconds > 120 else ("s", 1.0)

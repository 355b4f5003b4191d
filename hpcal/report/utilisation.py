"""What the attempts cost: node hours, and how busy each pool was while the campaign ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hpcal.core.arrays import FloatArray
from hpcal.store.measurements import Attempts

SECONDS_PER_HOUR = 3600.0

Interval = tuple[float, float]


def active_intervals(attempts: Attempts) -> list[Interval]:
    """When the campaign ran, seconds since the epoch, ascending and apart from each other.

    One interval for each controller, from its first dispatch to the end of its last attempt; what
    lies between two controllers does not count. Intervals that overlap are one.
    """
    spans = []
    for epoch in np.unique(attempts.epoch):
        own = attempts.epoch == epoch
        moments = np.concatenate([attempts.dispatched[own], attempts.end[own]])
        moments = moments[np.isfinite(moments)]
        if len(moments):
            spans.append((float(moments.min()), float(moments.max())))
    return merged(spans)


def merged(spans: Sequence[Interval]) -> list[Interval]:
    """The union of intervals, ascending."""
    union: list[Interval] = []
    for low, high in sorted(spans):
        if union and low <= union[-1][1]:
            union[-1] = (union[-1][0], max(union[-1][1], high))
        else:
            union.append((low, high))
    return union


def active_seconds(intervals: Sequence[Interval]) -> float:
    """Total length of intervals that do not overlap."""
    return sum(high - low for low, high in intervals)


def on_active_clock(times: FloatArray, intervals: Sequence[Interval]) -> FloatArray:
    """Times on a clock that runs only while the campaign does, seconds since its first dispatch."""
    elapsed = np.zeros_like(times)
    for low, high in intervals:
        elapsed += np.clip(times, low, high) - low
    return np.where(np.isfinite(times), elapsed, np.nan)


def pool_use(
    attempts: Attempts, pools: Mapping[str, Mapping[str, Any]], intervals: Sequence[Interval]
) -> dict[str, dict[str, Any]]:
    """Slots and busy fraction of every pool of the site, and of pools that only attempts know.

    The busy fraction is the time in attempts over slots x active time, at most 1; None where
    nothing has run or the number of slots is not known.
    """
    active = active_seconds(intervals)
    names = [*pools, *sorted(set(attempts.executor.tolist()) - set(pools))]
    use: dict[str, dict[str, Any]] = {}
    for name in names:
        slots = pools.get(name, {}).get("slots")
        busy = float(attempts.seconds[attempts.executor == name].sum())
        capacity = (slots or 0) * active
        use[name] = {
            "slots": slots,
            # Clocks of two hosts may differ by a moment, which must not show as more than all.
            "busy_fraction": min(1.0, busy / capacity) if capacity > 0 else None,
            "busy_hours": busy / SECONDS_PER_HOUR,
        }
    return use


def node_hours(attempts: Attempts, pools: Mapping[str, Mapping[str, Any]], until: FloatArray) -> list[float]:
    """Node hours of all attempts that had ended at each of the given times.

    An attempt takes the share 1 / workers_per_node of a node for its wall time; a pool that the
    site does not describe counts whole nodes.
    """
    workers = np.array([pools.get(name, {}).get("workers_per_node") or 1 for name in attempts.executor])
    hours = attempts.seconds / SECONDS_PER_HOUR / workers if len(attempts) else np.zeros(0)
    ended = np.isfinite(attempts.end)
    order = np.argsort(attempts.end[ended], kind="stable")
    total = np.concatenate([[0.0], np.cumsum(hours[ended][order])])
    counts = np.searchsorted(attempts.end[ended][order], until, side="right")
    return [float(value) for value in total[counts]]

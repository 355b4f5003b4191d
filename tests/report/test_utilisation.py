from itertools import pairwise

import numpy as np
import pytest

from hpcal.report.timeline import busy_slots, lanes
from hpcal.report.utilisation import active_intervals, merged, node_hours, on_active_clock, pool_use
from hpcal.store.measurements import Attempts


def attempts(*entries: tuple[str, int, float, float, float]) -> Attempts:
    pool, epoch, dispatched, start, end = zip(*entries, strict=True)
    n = len(entries)
    return Attempts(
        executor=np.array(pool),
        kind=np.array(["label"] * n),
        state=np.array(["done"] * n),
        epoch=np.array(epoch),
        dispatched=np.array(dispatched),
        start=np.array(start),
        end=np.array(end),
        qm_calls=np.zeros(n, dtype=int),
    )


TWO_EPOCHS = attempts(
    ("a", 1, 0, 10, 110), ("a", 1, 0, 20, np.nan), ("b", 1, 50, 60, 100), ("a", 2, 1000, 1010, 1100)
)


def test_active_time_is_that_of_the_controllers():
    assert active_intervals(TWO_EPOCHS) == [(0, 110), (1000, 1100)]
    clock = on_active_clock(
        np.array([-5.0, 110.0, 500.0, 1000.0, 1050.0, 9999.0, np.nan]), [(0, 110), (1000, 1100)]
    )
    assert clock == pytest.approx([0, 110, 110, 110, 160, 210, np.nan], nan_ok=True)


def test_intervals_that_overlap_are_one():
    assert merged([(5, 9), (0, 3), (2, 4)]) == [(0, 4), (5, 9)]


def test_pool_use():
    use = pool_use(TWO_EPOCHS, {"a": {"slots": 2}}, active_intervals(TWO_EPOCHS))
    assert use["a"]["busy_fraction"] == pytest.approx((100 + 90) / (2 * 210))
    # A pool of an earlier site: its slots are not known any more.
    assert use["b"]["slots"] is None
    assert use["b"]["busy_fraction"] is None
    assert use["b"]["busy_hours"] == pytest.approx(40 / 3600)


def test_clocks_that_differ_do_not_make_more_than_all():
    late = attempts(("a", 1, 5, 0, 10))
    assert pool_use(late, {"a": {"slots": 1}}, active_intervals(late))["a"]["busy_fraction"] == 1.0


def test_node_hours():
    pools = {"a": {"slots": 4, "workers_per_node": 4}}
    hours = node_hours(TWO_EPOCHS, pools, np.array([99.0, 100.0, 110.0, 2000.0]))
    assert hours == pytest.approx(np.array([0, 40, 40 + 25, 40 + 25 + 90 / 4]) / 3600)


def test_lanes_are_reused_as_soon_as_they_are_free():
    start, end = np.array([0.0, 1.0, 3.0, 3.5]), np.array([3.0, 5.0, 4.0, 6.0])
    assert lanes(start, end).tolist() == [0, 1, 0, 2]


def test_busy_slots_against_counting_in_small_steps():
    rng = np.random.default_rng(0)
    start = rng.uniform(0, 80, 40)
    end = start + rng.uniform(0, 20, 40)
    edges = np.linspace(0, 100, 11)
    fine = np.linspace(0, 100, 100_001)
    running = ((start[:, None] <= fine) & (fine < end[:, None])).sum(axis=0)
    expected = [running[(fine >= a) & (fine < b)].mean() for a, b in pairwise(edges)]
    assert busy_slots(start, end, edges) == pytest.approx(expected, abs=0.01)

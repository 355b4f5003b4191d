"""The search for near-duplicates of `hpcal check` at size."""

from __future__ import annotations

import time

import numpy as np
import pytest

from hpcal.report.integrity.twins import close_pairs

pytestmark = pytest.mark.benchmark


def test_the_search_does_not_grow_as_the_square() -> None:
    """16 times the frames take far less than 256 times as long."""

    def seconds(count: int) -> float:
        rng = np.random.default_rng(2)
        points = rng.normal(size=(count, 12)) * 0.15
        start = time.perf_counter()
        for _ in close_pairs(points, 2e-3):
            pass
        return time.perf_counter() - start

    seconds(1000)
    assert seconds(80_000) < 60 * max(seconds(5_000), 2e-3)

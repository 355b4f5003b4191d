"""The checks of selectors find what is wrong with a selector."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from hpcal.core.protocols import Choice, Pool
from hpcal.core.settings import Settings
from hpcal.testing import ConformanceError, check_selector


class NoSettings(Settings):
    pass


class MostUncertain:
    """The candidates of highest uncertainty."""

    Settings: ClassVar[type[Settings]] = NoSettings

    def __init__(self, settings):
        self.settings = settings

    def order(self, pool, known, rng):
        return np.lexsort((pool.ids, -pool.values))

    def select(self, pool: Pool, known, budget, rng):
        ranks = {int(pool.ids[i]): rank for rank, i in enumerate(self.order(pool, known, rng)[:budget])}
        return [
            Choice(structure_id=i, chosen=i in ranks, reason="its uncertainty", rank=ranks.get(i))
            for i in pool.ids.tolist()
        ]


class TooMany(MostUncertain):
    def select(self, pool, known, budget, rng):
        return super().select(pool, known, budget + 1, rng)


class ForgetsOne(MostUncertain):
    def select(self, pool, known, budget, rng):
        return super().select(pool, known, budget, rng)[1:]


class AnswersTwice(MostUncertain):
    def select(self, pool, known, budget, rng):
        choices = super().select(pool, known, budget, rng)
        return [*choices, *choices[:1]]


def each(change):
    """A selector that answers otherwise for each candidate."""

    class Changed(MostUncertain):
        def select(self, pool, known, budget, rng):
            return [change(c) for c in super().select(pool, known, budget, rng)]

    return Changed


class TakesTheFirst(MostUncertain):
    def order(self, pool, known, rng):
        return np.arange(len(pool.ids))


class GlobalRandom(MostUncertain):
    def order(self, pool, known, rng):
        return np.random.permutation(np.argsort(pool.ids))


class NeedsKnown(MostUncertain):
    def order(self, pool, known, rng):
        return np.argsort(pool.features @ known[0])


class Scribbles(MostUncertain):
    def order(self, pool, known, rng):
        np.multiply(pool.values, 2.0, out=pool.values)
        return super().order(pool, known, rng)


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        (TooMany, "at most the budget is chosen.*1 of 24 candidates .* a budget of 0"),
        (ForgetsOne, "answered exactly once.*23 answers"),
        (AnswersTwice, "answered exactly once.*25 answers on 24"),
        (each(lambda c: replace(c, rank=c.rank and 1)), "the chosen have ranks 0 to k"),
        (each(lambda c: replace(c, rank=7 if c.rank is None else c.rank)), "passed over has no rank"),
        (each(lambda c: replace(c, reason=" ")), "every answer has a reason"),
        (each(lambda c: replace(c, distance=np.nan)), "finite number of at least 0"),
        (TakesTheFirst, "does not depend on the order of the candidates"),
        (GlobalRandom, "same candidates and random numbers"),
        (NeedsKnown, "it answers 24 candidates with 0 known.*IndexError"),
        (Scribbles, "not written to"),
    ],
)
def test_broken_promises(selector, message):
    with pytest.raises(ConformanceError, match=message):
        check_selector(selector)


def test_a_good_selector_passes():
    check_selector(MostUncertain)


def test_order_may_matter_where_that_is_documented():
    check_selector(TakesTheFirst, order_matters=True)

"""What every selector promises, see ``hpcal.core.protocols.Selector``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from hpcal.core.arrays import FloatArray
from hpcal.core.plugins import Group
from hpcal.core.protocols import Choice, Pool
from hpcal.core.settings import Settings
from hpcal.testing.conformance import Subject, other_global_state
from hpcal.testing.parts import Part, part_of

CANDIDATES: Final = 24
FEATURES: Final = 5


def check_selector(
    selector: type | str,
    settings: Settings | Mapping[str, Any] | None = None,
    *,
    order_matters: bool = False,
    seed: int = 0,
) -> None:
    """Checks the promises of a selector.

    Every candidate is answered exactly once; at most the budget is chosen, with ranks 0 to k − 1;
    each answer has a reason; nothing known, no candidates, no budget and duplicates are all
    allowed; the same random numbers give the same answer; what is chosen does not depend on the
    order of the candidates.

    Args:
        selector: a short name or class.
        settings: a block of its settings, or None for the defaults.
        order_matters: True for a selector that documents that the order of candidates decides.
        seed: of candidates and random numbers.

    Raises:
        ConformanceError: the first promise that is broken.
    """
    part = part_of(Group.SELECTORS, selector, settings)
    rng = np.random.default_rng(seed)
    pool = _pool(rng, CANDIDATES)
    known = rng.normal(size=(7, FEATURES))
    nothing = np.zeros((0, FEATURES))
    check = _SelectorCheck(part=part, seed=seed)
    for budget in (0, 1, CANDIDATES // 3, CANDIDATES, 2 * CANDIDATES):
        for what in (known, nothing):
            check.answers(pool, what, budget)
    check.answers(_pool(rng, 0), known, 5)
    check.answers(_pool(rng, 0), nothing, 5)
    check.answers(_with_duplicates(pool), known, CANDIDATES // 3)
    check.answers(_with_duplicates(pool), nothing, CANDIDATES)
    for what in (known, nothing):
        check.repeats(pool, what)
        if not order_matters:
            check.order(pool, what, rng)


def _pool(rng: np.random.Generator, n: int) -> Pool:
    """Candidates with ids that are neither sorted nor without gaps."""
    ids = rng.permutation(np.arange(100, 100 + 3 * n, 3)).astype(np.int64)
    return Pool(ids=ids, features=rng.normal(size=(n, FEATURES)), values=rng.uniform(size=n))


def _case(pool: Pool, known: FloatArray, budget: int) -> str:
    return f"{len(pool.ids)} candidates with {len(known)} known and a budget of {budget}"


def _with_duplicates(pool: Pool) -> Pool:
    features = pool.features.copy()
    features[1::2] = features[0]
    return Pool(ids=pool.ids, features=features, values=pool.values)


@dataclass(frozen=True, kw_only=True)
class _SelectorCheck:
    part: Part
    seed: int

    @property
    def subject(self) -> Subject:
        return self.part.subject

    def select(self, pool: Pool, known: FloatArray, budget: int) -> Sequence[Choice]:
        """What a new selector decides."""
        before = [a.tobytes() for a in (pool.ids, pool.features, pool.values, known)]
        rng = np.random.default_rng(self.seed)
        try:
            choices: Sequence[Choice] = self.part.build().select(pool, known, budget, rng)
        except Exception as error:
            raise self.subject.broken(
                f"it answers {_case(pool, known, budget)}", f"{type(error).__name__}: {error}"
            ) from error
        after = [a.tobytes() for a in (pool.ids, pool.features, pool.values, known)]
        self.subject.promises(
            "candidates and known descriptors are not written to", before == after, "they have changed"
        )
        return choices

    def answers(self, pool: Pool, known: FloatArray, budget: int) -> None:
        """One answer for every candidate, within the budget, with ranks and reasons."""
        choices = self.select(pool, known, budget)
        case = f"of {_case(pool, known, budget)}"
        promises = self.subject.promises
        answered = sorted(choice.structure_id for choice in choices)
        promises(
            "every candidate is answered exactly once",
            answered == sorted(pool.ids.tolist()),
            f"{len(answered)} answers on {len(set(answered))} structures {case}",
        )
        chosen = [choice for choice in choices if choice.chosen]
        promises("at most the budget is chosen", len(chosen) <= budget, f"{len(chosen)} {case}; tolerance 0")
        ranks = sorted(-1 if choice.rank is None else choice.rank for choice in chosen)
        promises(
            "the chosen have ranks 0 to k − 1, each once",
            ranks == list(range(len(chosen))),
            f"{ranks} {case}",
        )
        ranked = [choice.structure_id for choice in choices if not choice.chosen and choice.rank is not None]
        promises("who is passed over has no rank", not ranked, f"structures {ranked} {case}")
        silent = [choice.structure_id for choice in choices if not choice.reason.strip()]
        promises("every answer has a reason", not silent, f"none for structures {silent} {case}")
        for choice in choices:
            known_distance = choice.distance is None or (
                np.isfinite(choice.distance) and choice.distance >= 0
            )
            promises(
                "a distance is a finite number of at least 0, or None",
                bool(known_distance),
                f"{choice.distance} for structure {choice.structure_id} {case}",
            )

    def repeats(self, pool: Pool, known: FloatArray) -> None:
        """The same random numbers, the same answer."""
        budget = len(pool.ids) // 3
        with other_global_state(1):
            first = self.select(pool, known, budget)
        with other_global_state(2):
            second = self.select(pool, known, budget)
        differ = [a.structure_id for a, b in zip(first, second, strict=True) if a != b]
        self.subject.promises(
            "the same candidates and random numbers give the same answer",
            not differ,
            f"other answers on structures {differ}; tolerance: none",
        )

    def order(self, pool: Pool, known: FloatArray, rng: np.random.Generator) -> None:
        """Another order of the candidates, the same choice."""
        budget = len(pool.ids) // 3
        order = rng.permutation(len(pool.ids))
        shuffled = Pool(ids=pool.ids[order], features=pool.features[order], values=pool.values[order])
        first, second = (
            {c.structure_id: c.rank for c in self.select(p, known, budget) if c.chosen}
            for p in (pool, shuffled)
        )
        moved = sorted(i for i in first.keys() | second.keys() if first.get(i, -1) != second.get(i, -1))
        self.subject.promises(
            "what is chosen, and in which rank, does not depend on the order of the candidates",
            not moved,
            f"structures {moved} are chosen or ranked otherwise with {len(known)} known; tolerance: none",
        )

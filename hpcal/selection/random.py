"""Random selection: the baseline that any other has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from hpcal.core.arrays import FloatArray
from hpcal.core.protocols import Choice, Pool
from hpcal.core.settings import Settings


class RandomSettings(Settings):
    """Settings of random selection: there are none."""


class Random:
    """Uniformly random candidates, whatever is known; independent of the order of the pool."""

    Settings: ClassVar[type[Settings]] = RandomSettings

    def __init__(self, settings: RandomSettings) -> None:
        self.settings = settings

    def select(
        self,
        pool: Pool,
        known: FloatArray,  # noqa: ARG002 - a random choice does not look
        budget: int,
        rng: np.random.Generator,
    ) -> Sequence[Choice]:
        """One choice for every candidate in the pool's order, at most ``budget`` chosen."""
        n = len(pool.ids)
        count = max(0, min(budget, n))
        drawn = np.sort(pool.ids)[rng.permutation(n)[:count]]
        ranks = {int(structure_id): rank for rank, structure_id in enumerate(drawn)}
        return [_choice(int(i), ranks.get(int(i)), count, n) for i in pool.ids]


def _choice(structure_id: int, rank: int | None, count: int, n: int) -> Choice:
    if rank is None:
        return Choice(
            structure_id=structure_id,
            chosen=False,
            reason=f"not among the {count} drawn at random from {n} candidates",
        )
    return Choice(
        structure_id=structure_id,
        chosen=True,
        reason=f"number {rank + 1} of {count} drawn at random from {n} candidates",
        rank=rank,
    )

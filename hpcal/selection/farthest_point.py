"""Farthest point selection: each choice is the candidate least like what is there already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

import numpy as np
from pydantic import Field
from scipy.spatial.distance import cdist

from hpcal.core.arrays import FloatArray
from hpcal.core.errors import InputError
from hpcal.core.protocols import Choice, Pool
from hpcal.core.settings import Settings

CHUNK: Final = 2048
"""Known descriptors whose distances are held at once."""


class FarthestPointSettings(Settings):
    """Settings of farthest point selection."""

    min_distance: float = Field(
        0.0,
        ge=0,
        description="candidates not farther than this from a known or chosen one are passed over as "
        "near-duplicates; in units of the descriptor, 0: exact duplicates only",
    )


class FarthestPoint:
    """Greedy k-centre selection on descriptors, known structures included.

    Each round takes the candidate whose distance to the nearest known or already chosen one is
    largest. Its covering radius is at most twice the best possible (Gonzalez, Theor. Comput. Sci.
    1985, 10.1016/0304-3975(85)90224-5). Equal distances go to the higher uncertainty, then to the
    lower id; where nothing is known, the most uncertain candidate is first.

    Distances are computed from differences: the matrix-product shortcut |a|² + |b|² − 2ab loses
    the digits that tell near-duplicates apart.
    """

    Settings: ClassVar[type[Settings]] = FarthestPointSettings

    def __init__(self, settings: FarthestPointSettings) -> None:
        self.settings = settings

    def select(
        self,
        pool: Pool,
        known: FloatArray,
        budget: int,
        rng: np.random.Generator,  # noqa: ARG002 - nothing is random
    ) -> Sequence[Choice]:
        """One choice for every candidate in the pool's order, at most ``budget`` chosen.

        Raises:
            InputError: descriptors that are not finite, or of another length than the known ones.
        """
        _check(pool, known)
        distance = nearest_distance(pool.features, known)
        # Positions in ``order`` are ranked by uncertainty, then id: argmax takes the first of equals.
        order = np.lexsort((pool.ids, -pool.values))
        chosen: dict[int, Choice] = {}
        while len(chosen) < min(budget, len(order)):
            best = int(order[np.argmax(distance[order])])
            if distance[best] <= self.settings.min_distance:
                break
            chosen[best] = _chosen(pool, best, len(chosen), float(distance[best]), len(known))
            step = cdist(pool.features, pool.features[best : best + 1])[:, 0]
            distance = np.minimum(distance, step)
            distance[best] = -np.inf
        return [chosen.get(i) or self._passed_over(pool, i, distance[i], budget) for i in range(len(order))]

    def _passed_over(self, pool: Pool, i: int, distance: float, budget: int) -> Choice:
        if distance <= self.settings.min_distance:
            reason = (
                f"near-duplicate: {distance:.4g} from a known or chosen structure, not more than "
                f"{self.settings.min_distance:g}"
            )
        else:
            reason = f"the budget of {budget} went to candidates farther from what is known"
        return Choice(
            structure_id=int(pool.ids[i]),
            chosen=False,
            reason=reason,
            distance=float(distance) if np.isfinite(distance) else None,
        )


def nearest_distance(features: FloatArray, known: FloatArray) -> FloatArray:
    """(n,) Euclidean distance of (n, F) descriptors to the nearest of (k, F); infinite if k is 0."""
    nearest = np.full(len(features), np.inf)
    if len(features) == 0:
        return nearest
    for start in range(0, len(known), CHUNK):
        nearest = np.minimum(nearest, cdist(features, known[start : start + CHUNK]).min(axis=1))
    return nearest


def _chosen(pool: Pool, i: int, rank: int, distance: float, n_known: int) -> Choice:
    value = f"uncertainty {float(pool.values[i]):.4g}"
    if np.isfinite(distance):
        reason = f"farthest of all candidates from {n_known} known and {rank} chosen: {distance:.4g}; {value}"
    else:
        reason = f"first of all, as nothing is known: highest {value}"
    return Choice(
        structure_id=int(pool.ids[i]),
        chosen=True,
        reason=reason,
        rank=rank,
        distance=distance if np.isfinite(distance) else None,
    )


def _check(pool: Pool, known: FloatArray) -> None:
    for what, features in (("candidates", pool.features), ("known structures", known)):
        if not np.isfinite(features).all():
            row = int(np.flatnonzero(~np.isfinite(features).reshape(len(features), -1).all(axis=1))[0])
            name = f" (structure {int(pool.ids[row])})" if features is pool.features else ""
            raise InputError(
                f"descriptor {row} of the {what}{name} is not finite: a broken structure or a diverged "
                "model; leave it out"
            )
    if len(known) and len(pool.ids) and known.shape[1] != pool.features.shape[1]:
        raise InputError(
            f"candidates have descriptors of length {pool.features.shape[1]}, known structures of "
            f"{known.shape[1]}: both must come from the same ensemble"
        )

"""Drawing the split of walkers and structures, by seed, whatever their state."""

from __future__ import annotations

import numpy as np

from hpcal.core.walker import Split
from hpcal.engine.campaign_file import SplitsBlock


def walker_split(rng: np.random.Generator, shares: SplitsBlock, *, audit: bool = True) -> Split:
    """The split of a walker at its birth: half the audit share calibrates, half tests.

    Args:
        audit: whether one for the audit may be drawn at all.
    """
    draw = rng.random()
    if audit and draw < shares.audit_walkers / 2:
        return Split.CALIBRATION
    if audit and draw < shares.audit_walkers:
        return Split.TEST
    return learning_split(rng, shares)


def learning_split(rng: np.random.Generator, shares: SplitsBlock) -> Split:
    """Train or validation."""
    return Split.VALIDATION if rng.random() < shares.validation else Split.TRAIN


def audit_steps(rng: np.random.Generator, count: int, steps_full: int) -> tuple[int, ...]:
    """Steps at which an audit walker gives a frame: uniform over its full time."""
    count = min(count, steps_full)
    return tuple(sorted(int(step) for step in rng.choice(steps_full, size=count, replace=False) + 1))

"""The task that advances walkers."""

from __future__ import annotations

import numpy as np

from hpcal.core.plugins import Group
from hpcal.core.protocols import Sampler
from hpcal.engine.work.context import Work, WorkInterrupted, build, ensemble_of
from hpcal.engine.work.learning import scorer_of


def sample(work: Work) -> None:
    """Advances a batch of walkers with its reserve under one ensemble."""
    inputs = work.inputs
    sampler: Sampler = build(Group.SAMPLERS, inputs["sampler"])
    potential = ensemble_of(inputs["ensemble"])
    scorer = scorer_of(inputs["metric"], potential, inputs["threshold"])
    rng = np.random.default_rng(inputs["stream"])
    result = sampler.sample(inputs["walkers"], potential, scorer, work.deadline, rng)
    if work.virtual and work.deadline.interrupted():
        raise WorkInterrupted
    work.spool.append(result)

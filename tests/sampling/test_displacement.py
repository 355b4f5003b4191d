import numpy as np
import pytest

from hpcal.core.errors import TaskFailure
from hpcal.sampling.displacement import RandomDisplacement


def no_forces(structure):
    raise RuntimeError("random displacement needs no energies")


def test_displacements_have_the_stated_spread(water):
    sampler = RandomDisplacement(RandomDisplacement.Settings(amplitude_A=0.05))
    made = sampler.generate(water, 400, no_forces, np.random.default_rng(0))
    away = np.array([s.positions - water.positions for s in made])
    # 3,600 normal numbers: the spread is known to 1.2 %, five times that are allowed.
    assert away.std() == pytest.approx(0.05, rel=0.06)
    assert len({s.content_hash for s in made}) == 400
    assert all((s.numbers == water.numbers).all() for s in made)


def test_overlaps_are_not_handed_out(water):
    sampler = RandomDisplacement(RandomDisplacement.Settings(amplitude_A=0.3))
    made = sampler.generate(water, 100, no_forces, np.random.default_rng(0))
    bonds = np.array([np.linalg.norm(s.positions[1:] - s.positions[0], axis=1) for s in made])
    assert bonds.min() >= 0.6 * (0.66 + 0.31)
    assert bonds.min() < 0.7
    with pytest.raises(TaskFailure, match="lower amplitude_A"):
        RandomDisplacement(RandomDisplacement.Settings(min_distance_factor=5)).generate(
            water, 1, no_forces, np.random.default_rng(0)
        )

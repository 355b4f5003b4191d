import numpy as np
import pytest
import torch
from ase import Atoms

from hpcal.core.batch import Batch
from hpcal.core.structure import Structure, from_ase
from hpcal.core.walker import WalkerEnd
from hpcal.sampling.guards import (
    DistanceLimits,
    GuardSettings,
    broken_distances,
    distance_sentence,
    overlap_problem,
    pair_distances,
)


def flags(structures, **settings):
    batch = Batch.of(structures, dtype=torch.float64)
    limits = DistanceLimits.of(batch, GuardSettings(**settings))
    overlap, alone = broken_distances(pair_distances(batch.positions, batch.cell, batch.pbc), limits)
    return overlap.tolist(), alone.tolist()


def moved(water, shift):
    positions = np.array(water.positions)
    positions[1] += shift
    return water.with_positions(positions)


def test_distances_are_those_of_ase_with_its_images():
    rng = np.random.default_rng(0)
    cell = np.array([[6.0, 0, 0], [1.0, 7, 0], [0.5, -1, 8]])
    cases = [
        Atoms("C5", positions=rng.uniform(-5, 12, (5, 3)), cell=cell, pbc=pbc)
        for pbc in (True, (True, False, True), False)
    ]
    batch = Batch.of([from_ase(a) for a in cases], dtype=torch.float64)
    found = pair_distances(batch.positions, batch.cell, batch.pbc).numpy()
    for atoms, distances in zip(cases, found, strict=True):
        exact = atoms.get_all_distances(mic=True)
        # Rounding fractions is promised to be exact up to half the smallest height of the cell.
        near = exact < 2.9
        np.testing.assert_allclose(distances[near], exact[near], atol=1e-12)
        assert (distances >= exact - 1e-12).all()


def test_flags_stay_with_their_structure(water):
    atom = Structure(numbers=np.array([8]), positions=np.zeros((1, 3)), multiplicity=3)
    close, far = moved(water, [-0.6, 0, 0]), moved(water, [3.0, 0, 0])
    assert flags([water, close, far, atom]) == ([False, True, False, False], [False, False, True, False])


def test_dissociation_is_not_asked_of_crystals_or_where_switched_off(water):
    far = moved(water, [3.0, 0, 0])
    crystal = Structure(numbers=far.numbers, positions=far.positions, cell=20 * np.eye(3), pbc=(True,) * 3)
    assert flags([far], max_nearest_A=None)[1] == [False]
    assert flags([crystal])[1] == [False]


def test_heavy_atoms_may_be_farther_apart():
    iodine = Structure(numbers=np.array([53, 53]), positions=np.array([[0, 0, 0], [0, 0, 2.7]]))
    assert flags([iodine]) == ([False], [False])


def test_overlap_through_a_periodic_boundary_is_seen():
    pair = Structure(
        numbers=np.array([6, 6]),
        positions=np.array([[0.1, 0, 0], [9.9, 0, 0]]),
        cell=10 * np.eye(3),
        pbc=(True, True, True),
    )
    assert flags([pair])[0] == [True]
    assert "0.20 Å" in overlap_problem(pair, 0.6)


def test_sentences_name_atoms_and_numbers(water):
    close = distance_sentence(moved(water, [-0.6, 0, 0]), WalkerEnd.OVERLAP, GuardSettings())
    assert "atom 0 (O)" in close
    assert "atom 1 (H)" in close
    assert "0.36 Å" in close
    far = distance_sentence(moved(water, [3.0, 0, 0]), WalkerEnd.DISSOCIATED, GuardSettings())
    assert "atom 1 (H) is 3.96 Å" in far
    assert overlap_problem(water, 0.6) is None


@pytest.mark.parametrize("scale", [0.59, 0.61])
def test_the_factor_is_that_of_the_covalent_radii(scale):
    length = scale * (0.76 + 0.31)
    pair = Structure(
        numbers=np.array([6, 1]), positions=np.array([[0, 0, 0], [0, 0, length]]), multiplicity=2
    )
    assert (overlap_problem(pair, 0.6) is not None) == (scale < 0.6)

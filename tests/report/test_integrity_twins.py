"""The search for pairs misses none and does not compare all with all."""

from __future__ import annotations

import numpy as np
import pytest
from report.good_data import collected, frames
from scipy.spatial.distance import pdist, squareform

from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure
from hpcal.report.integrity.shapes import shapes
from hpcal.report.integrity.twins import close_pairs, find_twins


@pytest.mark.parametrize(("components", "radius"), [(1, 0.01), (3, 0.1), (8, 0.5), (12, 1.0)])
def test_close_pairs_are_those_of_a_full_comparison(components: int, radius: float) -> None:
    points = np.random.default_rng(components).normal(size=(1500, components))
    points[700:720] = points[:20] + radius * np.sign(points[:20]) * 0.999
    full = squareform(pdist(points, "chebyshev")) <= radius
    expected = {(i, j) for i, j in np.argwhere(full) if i < j}
    portions = [pairs for pairs, skipped in close_pairs(points, radius) if skipped == 0]
    got = [(int(i), int(j)) for pairs in portions for i, j in pairs]
    assert len(expected) >= 20
    assert set(got) == expected
    assert len(got) == len(expected)


def test_copies_among_many_are_found_and_grouped() -> None:
    rng = np.random.default_rng(1)
    pairs = frames(3000, seed=5, names=("CH3CH2OH",))
    planted = {}
    for k in range(50):
        structure, label = pairs[k]
        turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        order = rng.permutation(len(structure))
        copy = Structure(numbers=structure.numbers[order], positions=(structure.positions @ turn)[order])
        pairs[2000 + k] = (copy, label)
        planted[k] = 2000 + k
    pairs[2999] = pairs[3]
    found = find_twins(collected(pairs), near_A=0.01)
    groups = {group[0]: group[1:] for group in found.groups}
    assert groups.pop(3) == (2003, 2999)
    planted.pop(3)
    assert groups == {i: (j,) for i, j in planted.items()}
    assert found.skipped == 0
    assert found.near == ()


def test_single_atoms_are_all_alike() -> None:
    level = LevelOfTheory(code="a", version="1", method="b")
    pairs = [
        (
            Structure(numbers=[1], positions=[[x, 0.0, 0.0]], multiplicity=2),
            Label(energy=-13.6, forces=None, level=level),
        )
        for x in range(5)
    ]
    found = find_twins(collected(pairs), near_A=0.01)
    assert found.groups == ((0, 1, 2, 3, 4),)


def test_fragments_of_batches_are_those_of_each_alone() -> None:
    rng = np.random.default_rng(3)
    level = LevelOfTheory(code="a", version="1", method="b")
    water = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
    pairs = []
    for k in range(40):
        parts = [water + rng.normal(size=3) * 0.1 + [0, 0, 3.0 * i] for i in range(3)]
        if k % 2:
            parts[2] = parts[2] + [0, 0, 4.0]
        if k % 5 == 0:
            parts[0] = parts[0] + np.array([[0, 0, 0], [0, 0, 0], [-6.0, 0, 0]])  # an O–H bond is broken
        order = rng.permutation(9)
        structure = Structure(numbers=np.array([8, 1, 1] * 3)[order], positions=np.concatenate(parts)[order])
        pairs.append((structure, Label(energy=0.0, forces=None, level=level)))
    got = shapes(collected(pairs), cutoff=3.0)
    for k, pair in enumerate(pairs):
        alone = shapes(collected([pair]), cutoff=3.0)
        assert got.fragments[k] == alone.fragments[0] == 3 + (k % 5 == 0)
        assert got.gap[k] == alone.gap[0]
        a, b = got.closest[k]
        positions = pair[0].positions
        assert np.linalg.norm(positions[a] - positions[b]) == pytest.approx(got.distance[k])

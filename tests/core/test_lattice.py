"""Nearest images in skewed cells, against all images within reach."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from hpcal.core.lattice import nearest, nearest_distances, shortest_vectors
from hpcal.core.structure import Structure

SKEWED = np.array([[4.0, 0.0, 0.0], [3.6, 1.5, 0.0], [-3.0, 4.4, 2.5]])


@pytest.mark.parametrize("pbc", list(product((False, True), repeat=3)))
def test_the_nearest_image_is_the_nearest_of_all(pbc: tuple[bool, bool, bool]) -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(100, 3)) * 2
    shifts = np.array(list(product(*[range(-16, 17) if p else (0,) for p in pbc]))) @ SKEWED
    expected = np.linalg.norm(vectors[:, None] + shifts[None], axis=-1).min(axis=1)
    found = nearest(vectors, SKEWED, pbc)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), expected, atol=1e-9)
    steps = (found - vectors) @ np.linalg.inv(SKEWED)
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-9)  # moved by lattice vectors only


def test_cells_at_right_angles_take_the_short_way_to_the_same() -> None:
    rng = np.random.default_rng(2)
    cell = np.diag([3.0, 4.0, 5.0])
    vectors = rng.normal(size=(100, 3)) * 6
    expected = vectors - np.round(vectors / np.diag(cell)) * np.diag(cell)
    np.testing.assert_allclose(nearest(vectors, cell, (True,) * 3), expected, atol=1e-12)


def test_shortest_vectors_do_not_depend_on_the_choice_of_the_cell() -> None:
    positions = np.array([[0.1, 0.2, 0.3], [1.0, 2.0, 0.5]])
    one = Structure(numbers=[3, 9], positions=positions, cell=SKEWED, pbc=(True,) * 3)
    change = np.array([[1, 2, 0], [0, 1, -1], [0, 0, 1]])
    other = Structure(numbers=[3, 9], positions=positions, cell=change @ SKEWED, pbc=(True,) * 3)
    np.testing.assert_allclose(shortest_vectors(one), shortest_vectors(other), atol=1e-9)
    np.testing.assert_allclose(nearest_distances(one), nearest_distances(other), atol=1e-9)

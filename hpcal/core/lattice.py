"""Lattices: distances to the nearest image and the shortest vectors."""

from __future__ import annotations

from itertools import product
from typing import Final

import numpy as np
from ase.geometry import complete_cell, minkowski_reduce

from hpcal.core.arrays import FloatArray
from hpcal.core.structure import Structure

BLOCK: Final = 1 << 22
"""Pairs of atoms whose distances are held at a time."""


def whole_cell(structure: Structure) -> FloatArray:
    """(3, 3) cell, Å, with unit vectors at right angles where the structure has none."""
    return np.asarray(complete_cell(np.zeros((3, 3)) if structure.cell is None else structure.cell))


def shortest_vectors(structure: Structure) -> FloatArray:
    """(3,) lengths, Å, of the Minkowski-reduced lattice vectors, ascending; 0 where not periodic.

    They are the successive minima of the lattice, which do not depend on the choice of its vectors.
    """
    reduced, _ = minkowski_reduce(whole_cell(structure), structure.pbc)
    lengths = np.linalg.norm(reduced, axis=1) * np.asarray(structure.pbc)
    return np.asarray(np.sort(lengths))


def nearest(vectors: FloatArray, cell: FloatArray, pbc: tuple[bool, bool, bool]) -> FloatArray:
    """(n, 3) vectors, each replaced by its shortest image, Å.

    In a Minkowski-reduced basis the shortest image is among the 27 (fewer where a direction is not
    periodic) around the one in the unit cell about the origin.
    """
    periodic = np.asarray(pbc)
    # A vector's way along a direction that is not periodic must not count along one that is.
    reduced, _ = minkowski_reduce(complete_cell(cell * periodic[:, None]), pbc)
    wrapped = vectors - (np.round(vectors @ np.linalg.inv(reduced)) * periodic) @ reduced
    angles = reduced @ reduced.T
    if np.abs(angles - np.diag(np.diag(angles))).max() < 1e-12 * np.abs(angles).max():
        return np.asarray(wrapped)  # at right angles the nearest image is the one in the cell
    best, square = wrapped, np.einsum("ij,ij->i", wrapped, wrapped)
    for shift in product(*[(-1, 0, 1) if p else (0,) for p in pbc]):
        image = wrapped + np.asarray(shift) @ reduced
        other = np.einsum("ij,ij->i", image, image)
        closer = other < square
        best = np.where(closer[:, None], image, best)
        square = np.where(closer, other, square)
    return np.asarray(best)


def nearest_distances(structure: Structure) -> FloatArray:
    """(N, N) distances, Å, of each atom to the nearest image of each other one; 0 to itself."""
    cell, n = whole_cell(structure), len(structure)
    result = np.zeros((n, n))
    step = max(1, BLOCK // n)
    for start in range(0, n, step):
        rows = structure.positions[start : start + step]
        vectors = (structure.positions[None] - rows[:, None]).reshape(-1, 3)
        short = nearest(vectors, cell, structure.pbc)
        result[start : start + step] = np.linalg.norm(short, axis=1).reshape(len(rows), n)
    return result

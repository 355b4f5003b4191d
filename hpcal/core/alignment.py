"""Whether two structures have the same geometry, and how far apart their atoms are.

A mapping (orthogonal matrix, translation, permutation of equal atoms) is looked for that displaces no
atom by more than the tolerance. What is found is a proof; so "same" is never said wrongly. The search:

1. *Signatures* (:mod:`hpcal.core.fingerprint`) that differ by more than the mapping allows end it.
2. *Environments*: the sorted distances of an atom to those of each element change by at most 2 δ when
   no atom moves by more than δ. They say which atoms of one structure can be which of the other.
3. *Anchors*: three atoms far apart in one structure and every triple of the other that can be theirs,
   in both handednesses; each pair of triples proposes a motion, the Hungarian method an assignment.
4. *Alignment* of the assigned atoms in least squares (Kabsch, 10.1107/S0567739476001873), then, as
   the least sum of squares is not the least maximum, with weights that grow where the displacement is
   large (Lawson's iteration) until the largest displacement is within the tolerance or settles.

Step 4 settles within a few per cent of the least maximum, so that a pair whose least possible largest
displacement is within a few per cent of the tolerance may be called different. Step 3 can miss a
mapping only if the displacement is comparable to half the shortest distance between equal atoms.

In a periodic structure the lattices must agree first: the stretch that takes one cell to the other
moves no point of the cell by more than the tolerance. Its atoms are then mapped by a translation
and a permutation; what turns the lattice into itself (another choice of axes of a cubic cell, say, or
another cell of the same crystal) is not tried, and such structures are called different.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.optimize import linear_sum_assignment

from hpcal.core.arrays import BoolArray, FloatArray, IntArray
from hpcal.core.fingerprint import ROUNDING_A, TOLERANCE_A, half_window, signature
from hpcal.core.lattice import nearest, nearest_distances, whole_cell
from hpcal.core.structure import Structure

ROUNDS = 200
"""Rounds of the weighted alignment."""

COLUMNS = 48
"""Distances of an atom's environment that are compared, at most."""

REFINEMENTS = 4
"""How often atoms are assigned again after they were aligned."""


def same_geometry(a: Structure, b: Structure, tolerance_A: float = TOLERANCE_A) -> bool:  # noqa: N803
    """Whether a mapping takes ``a`` to ``b`` with no atom displaced by more than the tolerance.

    Mappings are rotations, reflections (a mirror image has the same energy), translations and
    permutations of equal atoms. Composition, charge, multiplicity, periodic directions and initial
    magnetic moments must be equal.

    Args:
        tolerance_A: Å; small against the distances between atoms.
    """
    return displacement(a, b, tolerance_A) is not None


def displacement(a: Structure, b: Structure, tolerance_A: float = TOLERANCE_A) -> float | None:  # noqa: N803
    """Largest displacement, Å, of an atom under a mapping as of :func:`same_geometry`.

    Returns:
        A displacement within the tolerance, near the least possible one; None if the structures
        differ by more, or in what must be equal.
    """
    if not _alike(a, b):
        return None
    bound = half_window(tolerance_A, periodic=a.periodic)
    if a.periodic and not _same_lattice(a, b, tolerance_A):
        return None
    if (np.abs(signature(a) - signature(b)) > bound).any():
        return None
    kinds = _kinds(a, b)
    if kinds is None:
        return None
    if a.periodic:
        return _periodic(a, b, kinds, tolerance_A)
    return _molecule(a.positions, b.positions, kinds, tolerance_A)


def _alike(a: Structure, b: Structure) -> bool:
    return (
        len(a) == len(b)
        and a.charge == b.charge
        and a.multiplicity == b.multiplicity
        and a.pbc == b.pbc
        and (a.magnetic_moments is None) == (b.magnetic_moments is None)
    )


def _kinds(a: Structure, b: Structure) -> tuple[IntArray, IntArray] | None:
    """(N,) kinds of atom (element and initial moment) of both, or None if they are not the same."""
    pairs = []
    for structure in (a, b):
        moments = structure.magnetic_moments
        moments = np.zeros(len(structure)) if moments is None else moments
        pairs.append(np.column_stack([structure.numbers, moments]))
    _, kinds = np.unique(np.concatenate(pairs), axis=0, return_inverse=True)
    first, second = kinds.reshape(-1)[: len(a)], kinds.reshape(-1)[len(a) :]
    if (np.sort(first) != np.sort(second)).any():
        return None
    return first.astype(np.int64), second.astype(np.int64)


def _environments(distances: FloatArray, kinds: IntArray) -> FloatArray:
    """(N, C) some of the sorted distances of each atom to those of each kind, in one order of kinds."""
    columns = [np.sort(distances[:, kinds == kind], axis=1) for kind in np.unique(kinds)]
    whole = np.concatenate(columns, axis=1)
    if whole.shape[1] > COLUMNS:
        whole = whole[:, np.linspace(0, whole.shape[1] - 1, COLUMNS).astype(int)]
    return whole


def _compatible(
    first: FloatArray, second: FloatArray, kinds: tuple[IntArray, IntArray], bound: float
) -> BoolArray | None:
    """(N, N) which atoms of ``second`` can be which of ``first``; None if one can be none."""
    one, two = _environments(first, kinds[0]), _environments(second, kinds[1])
    possible = kinds[0][:, None] == kinds[1][None]
    for i in range(len(one)):
        possible[i] &= (np.abs(two - one[i]) <= bound).all(axis=1)
    if not (possible.any(axis=0).all() and possible.any(axis=1).all()):
        return None
    return np.asarray(possible)


def _distances(positions: FloatArray) -> FloatArray:
    return np.asarray(np.linalg.norm(positions[:, None] - positions[None], axis=-1))


def _molecule(
    a: FloatArray, b: FloatArray, kinds: tuple[IntArray, IntArray], tolerance: float
) -> float | None:
    """Largest displacement of (N, 3) ``a`` and ``b``, or None if over the tolerance."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    bound = half_window(tolerance)
    first, second = _distances(a), _distances(b)
    if (kinds[0] == kinds[1]).all() and (np.abs(first - second) <= bound).all():
        found = _aligned(a, b, tolerance)
        if found is not None:
            return found
    possible = _compatible(first, second, kinds, bound)
    if possible is None:
        return None
    for guess in _motions(a, b, (first, second), possible, bound):
        found = _from_guess(a, b, guess, possible, tolerance)
        if found is not None:
            return found
    return None


def _motions(
    a: FloatArray, b: FloatArray, distances: tuple[FloatArray, FloatArray], possible: BoolArray, bound: float
) -> Iterator[FloatArray]:
    """(N, 3) positions of ``a`` moved onto ``b`` by each motion that its anchors allow."""
    first, second = distances
    i, j, k = _anchors(a)
    frame_a = _frame(a[i], a[j], a[k])
    for p in np.flatnonzero(possible[i]):
        near_p = np.abs(second[p] - first[i, j]) <= bound
        for q in np.flatnonzero(possible[j] & near_p):
            if q == p and j != i:
                continue
            fits = np.abs(second[p] - first[i, k]) <= bound
            fits &= np.abs(second[q] - first[j, k]) <= bound
            for r in np.flatnonzero(possible[k] & fits):
                frame_b = _frame(b[p], b[q], b[r])
                for hand in (1.0, -1.0):
                    turn = frame_a.T @ (frame_b * np.array([1.0, 1.0, hand])[:, None])
                    centre_a, centre_b = a[[i, j, k]].mean(axis=0), b[[p, q, r]].mean(axis=0)
                    yield (a - centre_a) @ turn + centre_b


def _anchors(a: FloatArray) -> tuple[int, int, int]:
    """Three atoms far apart: the farthest from the centre, the farthest from it, and from their line."""
    i = int(np.argmax(np.linalg.norm(a, axis=1)))
    j = int(np.argmax(np.linalg.norm(a - a[i], axis=1)))
    axis = a[j] - a[i]
    length = np.linalg.norm(axis)
    if length < ROUNDING_A:
        return i, j, i
    off = (a - a[i]) - ((a - a[i]) @ axis / length**2)[:, None] * axis
    return i, j, int(np.argmax(np.linalg.norm(off, axis=1)))


def _frame(p: FloatArray, q: FloatArray, r: FloatArray) -> FloatArray:
    """(3, 3) orthonormal rows: along p → q, towards r, and across; arbitrary where undefined."""
    basis: list[FloatArray] = []
    for vector in (q - p, r - p, *np.eye(3)):
        rest = vector - sum((vector @ e) * e for e in basis)
        length = float(np.linalg.norm(rest))
        if length > (1e-6 if len(basis) < 2 else 1e-3):
            basis.append(rest / length)
        if len(basis) == 2:
            return np.array([*basis, np.cross(basis[0], basis[1])])
    return np.eye(3)


def _from_guess(
    a: FloatArray, b: FloatArray, moved: FloatArray, possible: BoolArray, tolerance: float
) -> float | None:
    """Assigns the atoms of ``moved`` to those of ``b`` and aligns them."""
    previous: IntArray | None = None
    for _ in range(REFINEMENTS):
        order = _assigned(moved, b, possible)
        if order is None or (previous is not None and (order == previous).all()):
            return None
        found = _aligned(a, b[order], tolerance)
        if found is not None:
            return found
        moved = _superposed(a, b[order], np.ones(len(a)))
        previous = order
    return None


def _assigned(moved: FloatArray, b: FloatArray, possible: BoolArray) -> IntArray | None:
    """(N,) atom of ``b`` for each of ``moved``, with the least sum of squared distances."""
    square = ((moved[:, None] - b[None]) ** 2).sum(axis=-1)
    square = np.where(possible, square, np.inf)
    order = np.asarray(square.argmin(axis=1))
    if len(np.unique(order)) == len(order):
        return order
    impossible = 1e6 * (1.0 + float(square[possible].max()))
    rows, columns = linear_sum_assignment(np.where(possible, square, impossible))
    return np.asarray(columns) if possible[rows, columns].all() else None


def _superposed(a: FloatArray, b: FloatArray, weights: FloatArray) -> FloatArray:
    """``a`` moved onto ``b`` by the motion (reflections too) of least weighted sum of squares."""
    weights = weights / weights.sum()
    centre_a, centre_b = weights @ a, weights @ b
    u, _, v = np.linalg.svd((a - centre_a).T @ (weights[:, None] * (b - centre_b)))
    return np.asarray((a - centre_a) @ (u @ v) + centre_b)


def _aligned(a: FloatArray, b: FloatArray, tolerance: float) -> float | None:
    """Largest displacement of ``a`` aligned to ``b``, atom by atom, or None if over the tolerance."""
    weights, best = np.ones(len(a)), np.inf
    for number in range(ROUNDS):
        moved = np.linalg.norm(_superposed(a, b, weights) - b, axis=1)
        best = min(best, float(moved.max()))
        if best <= tolerance:
            return best
        # Over the least squares' root mean square no motion is better, whatever its maximum.
        if number == 0 and np.sqrt((moved**2).mean()) > tolerance:
            return None
        weights = weights * moved
        weights = np.maximum(weights / weights.sum(), 1e-12)
    return None


def _same_lattice(a: Structure, b: Structure, tolerance: float) -> bool:
    """Whether the stretch from one cell to the other moves no point of it by more than the tolerance.

    A_b = A_a U R with U symmetric positive and R orthogonal; U Uᵀ follows from the metric tensors, so
    that orientation and handedness do not matter. A vector of length r changes by at most ‖U − 1‖ r,
    and the distance r of two nearest images is at most half the sum of the edges, plus the atoms'
    extent where a direction is not periodic.
    """
    one, two = whole_cell(a), whole_cell(b)
    change = np.linalg.solve(one, two)
    stretch = np.linalg.svd(change, compute_uv=False)
    reach = 0.5 * np.linalg.norm(one, axis=1).sum()
    if not all(a.pbc):
        reach += np.linalg.norm(np.ptp(a.positions, axis=0))
    return bool(np.abs(stretch - 1.0).max() * reach <= tolerance + ROUNDING_A)


def _periodic(a: Structure, b: Structure, kinds: tuple[IntArray, IntArray], tolerance: float) -> float | None:
    """Largest displacement under translation and permutation, in the cell of ``a``."""
    possible = _compatible(
        nearest_distances(a), nearest_distances(b), kinds, half_window(tolerance, periodic=True)
    )
    if possible is None:
        return None
    cell = whole_cell(a)
    there = b.positions @ np.linalg.solve(whole_cell(b), cell)
    atom = int(possible.sum(axis=1).argmin())
    n = len(a)
    for other in np.flatnonzero(possible[atom]):
        moved = a.positions + (there[other] - a.positions[atom])
        vectors = nearest((there[None] - moved[:, None]).reshape(-1, 3), cell, a.pbc).reshape(n, n, 3)
        found = _translated(vectors, possible, tolerance)
        if found is not None:
            return found
    return None


def _translated(vectors: FloatArray, possible: BoolArray, tolerance: float) -> float | None:
    """Largest displacement after the best translation of atoms that are nearly in place.

    Args:
        vectors: (N, N, 3) Å, from each atom to (the nearest image of) each place.
    """
    n = len(vectors)
    square = np.where(possible, (vectors**2).sum(axis=-1), np.inf)
    order = np.asarray(square.argmin(axis=1))
    # One atom was put in place exactly, so that no other is off by more than twice the tolerance.
    if square.min(axis=1).max() > (2 * tolerance + ROUNDING_A) ** 2 or len(np.unique(order)) < n:
        return None
    away = vectors[np.arange(n), order]
    weights, best = np.ones(n) / n, np.inf
    for _ in range(ROUNDS):
        left = np.linalg.norm(away - weights @ away, axis=1)
        best = min(best, float(left.max()))
        if best <= tolerance:
            return best
        weights = np.maximum(weights * left / (weights @ left), 1e-12)
        weights = weights / weights.sum()
    return None

r"""Fingerprints: how a store finds the structures of one geometry without comparing all with all.

Two structures have the same geometry if, after the best rotation (proper or improper: the energy of
a mirror image is the same), translation and permutation of equal atoms, no atom is displaced by more
than a tolerance τ (:data:`TOLERANCE_A`). :func:`hpcal.core.alignment.same_geometry` decides that;
what is here names the few structures worth asking.

**Signature.** Chosen ranks of the sorted interatomic distances of each pair of elements, at most
:data:`COMPONENTS` of them: s_k is the k-th largest distance between, say, a C and an H. Rotations,
reflections, translations and permutations leave it as it is. If each atom moves by at most δ, each
distance changes by at most 2δ, and so does each order statistic of distances (|a_(k) − b_(k)| ≤
max|a − b| for sorted values). So

    max_k |s_k(a) − s_k(b)| ≤ 2 δ          molecules
    max_k |s_k(a) − s_k(b)| ≤ 2 δ + δ      periodic, where the lattices agree within δ as well

holds for *any* pair of structures within δ: a constant that is known, and no sum over atoms in it.
In a periodic structure distances are those of the nearest image (over all lattice vectors, so that
neither wrapping nor the origin matters), and the lengths of the shortest lattice vectors come first.

**Fingerprint.** No scalar that varies as slowly as the tolerance asks can tell frames of dynamics
apart: a function with |f(a) − f(b)| ≤ L δ takes values within 2 L D over structures that are all
within D of one, so that a range ± L τ returns n τ / D of n frames at the least: hundreds of 10⁵ for
D = 0.3 Å and τ = 10⁻³ Å. Several components at once can. The signature space of K components is cut
into boxes with edges of 4K/3 half-windows (the bound above at δ = τ), and the fingerprint is the
number of the box, hashed to 53 bits so that a float, and a column of floats, holds it exactly. A
structure near a wall is looked for on both sides of it: :func:`matching_fingerprints` gives *every*
value that a structure of the same geometry can have, (1 + 3/2K)^K < e^1.5 = 4.5 on average and 2^K at
the most. The store asks its index for ``fingerprint IN (...)`` and confirms what comes back.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations_with_replacement, product
from typing import Final

import numpy as np

from hpcal.core.arrays import AnyArray, FloatArray, IntArray
from hpcal.core.errors import StructureError
from hpcal.core.lattice import nearest_distances, shortest_vectors
from hpcal.core.structure import Structure

TOLERANCE_A: Final = 1e-3
"""τ, Å: structures with no atom displaced by more are the same geometry."""

COMPONENTS: Final = 12
"""Distances in a signature, at most (and three lattice vectors, of a periodic structure)."""

ROUNDING_A: Final = 1e-9
"""Å: what rotation and translation in floating point may change of a distance."""

CHUNK: Final = 1 << 18
"""Distances at a time: what fits into a processor's cache."""


def half_window(tolerance_A: float = TOLERANCE_A, *, periodic: bool = False) -> float:  # noqa: N803
    """Largest difference, Å, of any signature component between structures of the same geometry."""
    return (3.0 if periodic else 2.0) * float(tolerance_A) + ROUNDING_A


def _box(components: int, *, periodic: bool = False) -> float:
    """Edge of a box of signature space, Å."""
    return 4.0 / 3.0 * max(components, 1) * half_window(periodic=periodic)


def signature(structure: Structure) -> FloatArray:
    """(K,) signature of a structure, Å; K depends on its composition and periodicity alone."""
    if not structure.periodic:
        return np.asarray(signatures(structure.numbers[None], structure.positions[None])[0])
    plan = _plan(np.sort(structure.numbers).tobytes())
    order = np.argsort(structure.numbers, kind="stable")
    distances = nearest_distances(structure)[order][:, order]
    return np.concatenate(
        [shortest_vectors(structure), _components(distances[plan.i, plan.j][None], plan)[0]]
    )


def signatures(numbers: IntArray, positions: FloatArray) -> FloatArray:
    """(n, K) signatures, Å, of n molecules of one composition, bit for bit those of each alone.

    Args:
        numbers: (n, N) atomic numbers; each row the same but for its order.
        positions: (n, N, 3) Å.

    Raises:
        StructureError: wrong shapes, or more than one composition.
    """
    numbers, positions = _checked(numbers, positions)
    if not len(numbers):
        return np.zeros((0, 0))
    numbers, positions = _sorted_atoms(numbers, positions)
    if (numbers != numbers[0]).any():
        raise StructureError("signatures need molecules of one composition; group them by formula first")
    return _signatures(numbers[0], positions)


def fingerprint(structure: Structure) -> float:
    """The fingerprint of a structure: a whole number below 2^53."""
    found = signature(structure)
    width = _box(len(found), periodic=structure.periodic)
    boxes = np.floor(found / width).astype(np.int64)[None]
    return float(_hashed(np.sort(structure.numbers), boxes)[0])


def matching_fingerprints(structure: Structure) -> tuple[float, ...]:
    """Every fingerprint that a structure of the same geometry can have, its own first."""
    found = signature(structure)
    half = half_window(periodic=structure.periodic)
    width = _box(len(found), periodic=structure.periodic)
    low, own, high = (np.floor((found + s * half) / width).astype(np.int64) for s in (-1, 0, 1))
    choices = [dict.fromkeys((int(b), int(a), int(c))) for a, b, c in zip(low, own, high, strict=True)]
    boxes = np.array(list(product(*choices)), dtype=np.int64)
    return tuple(float(value) for value in _hashed(np.sort(structure.numbers), boxes))


def fingerprints(numbers: IntArray, positions: FloatArray) -> FloatArray:
    """(n,) fingerprints of n molecules of N atoms, bit for bit those of :func:`fingerprint`.

    Args:
        numbers: (n, N) atomic numbers; compositions may differ.
        positions: (n, N, 3) Å.

    Raises:
        StructureError: wrong shapes.
    """
    numbers, positions = _checked(numbers, positions)
    numbers, positions = _sorted_atoms(numbers, positions)
    result = np.zeros(len(numbers))
    for rows in _compositions(numbers):
        found = _signatures(numbers[rows[0]], positions[rows])
        boxes = np.floor(found / _box(found.shape[1])).astype(np.int64)
        result[rows] = _hashed(numbers[rows[0]], boxes)
    return result


def many_matching_fingerprints(numbers: IntArray, positions: FloatArray) -> tuple[IntArray, FloatArray]:
    """What :func:`matching_fingerprints` gives for each of n molecules of N atoms, at once.

    Args:
        numbers: (n, N) atomic numbers; compositions may differ.
        positions: (n, N, 3) Å.

    Returns:
        (k,) places of the molecules, ascending, and (k,) fingerprints to look for; each molecule has
        at least one.

    Raises:
        StructureError: wrong shapes.
    """
    numbers, positions = _checked(numbers, positions)
    numbers, positions = _sorted_atoms(numbers, positions)
    half = half_window()
    owners, values = [np.zeros(0, dtype=np.int64)], [np.zeros(0)]
    for rows in _compositions(numbers):
        found = _signatures(numbers[rows[0]], positions[rows])
        width = _box(found.shape[1])
        low = np.floor((found - half) / width).astype(np.int64)
        high = np.floor((found + half) / width).astype(np.int64)
        boxes, place = low, np.arange(len(rows))
        for k in range(found.shape[1]):
            other = np.flatnonzero(high[place, k] != low[place, k])
            more = boxes[other].copy()
            more[:, k] = high[place[other], k]
            boxes = np.concatenate([boxes, more])
            place = np.concatenate([place, place[other]])
        owners.append(rows[place])
        values.append(_hashed(numbers[rows[0]], boxes))
    owner, value = np.concatenate(owners), np.concatenate(values)
    order = np.argsort(owner, kind="stable")
    return owner[order], value[order]


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """Which distances make the signature of a composition (of sorted atoms).

    Attributes:
        i, j: (P,) pairs of atoms, those of one pair of elements together.
        blocks: for each pair of elements its first and last pair, and the ranks taken (0: shortest).
    """

    i: IntArray
    j: IntArray
    blocks: tuple[tuple[int, int, tuple[int, ...]], ...]


@lru_cache(maxsize=4096)
def _plan(numbers: bytes) -> _Plan:
    atoms = np.frombuffer(numbers, dtype=np.int64)
    where = {int(z): np.flatnonzero(atoms == z) for z in np.unique(atoms)}
    lists: list[tuple[AnyArray, AnyArray]] = []
    for a, b in combinations_with_replacement(where, 2):
        if a == b:
            first, second = np.triu_indices(len(where[a]), 1)
            i, j = where[a][first], where[a][second]
        else:
            i, j = (grid.ravel() for grid in np.meshgrid(where[a], where[b], indexing="ij"))
        if len(i):
            lists.append((i, j))
    lists.sort(key=lambda pair: -len(pair[0]))
    ranks = _ranks([len(i) for i, _ in lists])
    blocks, start = [], 0
    for (i, _), taken in zip(lists, ranks, strict=True):
        if taken:
            blocks.append((start, start + len(i), taken))
            start += len(i)
    kept = [pair for pair, taken in zip(lists, ranks, strict=True) if taken]
    empty = np.zeros(0, dtype=np.int64)
    return _Plan(
        i=np.concatenate([empty, *(i for i, _ in kept)]),
        j=np.concatenate([empty, *(j for _, j in kept)]),
        blocks=tuple(blocks),
    )


def _ranks(counts: list[int]) -> list[tuple[int, ...]]:
    """Ranks for lists of distances of these lengths, dealt out in turns.

    The largest distances between two elements vary most, those in the middle of a long list least.
    """
    taken: list[list[int]] = [[] for _ in counts]
    left = COMPONENTS
    for turn in range(COMPONENTS):
        for k, count in enumerate(counts):
            if left and turn < count:
                taken[k].append(count - 1 - turn)
                left -= 1
    return [tuple(sorted(ranks)) for ranks in taken]


def _components(distances: FloatArray, plan: _Plan) -> FloatArray:
    """(n, K) chosen ranks of (n, P) distances."""
    parts = [np.zeros((len(distances), 0))]
    for start, end, ranks in plan.blocks:
        block = distances[:, start:end]
        parts.append(np.partition(block, ranks, axis=1)[:, ranks])
    return np.concatenate(parts, axis=1)


def _signatures(numbers: IntArray, positions: FloatArray) -> FloatArray:
    """(n, K) signatures of (n, N, 3) positions of sorted atoms (N,)."""
    plan = _plan(np.ascontiguousarray(numbers).tobytes())
    step = max(1, CHUNK // max(1, len(plan.i)))
    parts = []
    for start in range(0, len(positions), step):
        coordinates = np.ascontiguousarray(positions[start : start + step].transpose(2, 0, 1))
        square = np.zeros((coordinates.shape[1], len(plan.i)))
        for axis in coordinates:  # in this order, so that a batch rounds as one molecule does
            difference = axis[:, plan.i] - axis[:, plan.j]
            square += difference * difference
        parts.append(_components(np.sqrt(square), plan))
    return np.concatenate(parts)


def _hashed(numbers: IntArray, boxes: IntArray) -> FloatArray:
    """(n,) floats below 2^53 of (n, K) boxes of one composition (splitmix64, 10.1145/2714064.2660195)."""
    state = np.full(len(boxes), len(numbers), dtype=np.uint64)
    values, counts = np.unique(numbers, return_counts=True)
    for value in (*values, *counts):
        state = _mixed(state ^ np.uint64(value))
    for column in boxes.T:
        state = _mixed(state ^ column.astype(np.uint64))
    return (state >> np.uint64(11)).astype(np.float64)


def _mixed(state: AnyArray) -> AnyArray:
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(state ^ (state >> np.uint64(31)))


def _checked(numbers: IntArray, positions: FloatArray) -> tuple[IntArray, FloatArray]:
    numbers = np.asarray(numbers, dtype=np.int64)
    positions = np.asarray(positions, dtype=np.float64)
    if numbers.ndim != 2 or positions.shape != (*numbers.shape, 3):
        raise StructureError(
            f"atomic numbers of shape {numbers.shape} and positions of shape {positions.shape} are not "
            "(n, N) and (n, N, 3)"
        )
    return numbers, positions


def _sorted_atoms(numbers: IntArray, positions: FloatArray) -> tuple[IntArray, FloatArray]:
    """Each row with its atoms in the order of their atomic numbers."""
    if len(numbers) and (numbers == numbers[0]).all():
        order = np.argsort(numbers[0], kind="stable")
        return numbers[:, order], positions[:, order]
    order = np.argsort(numbers, axis=1, kind="stable")
    return np.take_along_axis(numbers, order, 1), np.take_along_axis(positions, order[:, :, None], 1)


def _compositions(numbers: IntArray) -> list[IntArray]:
    """Rows of each composition, of (n, N) sorted atomic numbers."""
    if not len(numbers) or (numbers == numbers[0]).all():
        return [np.arange(len(numbers))] if len(numbers) else []
    rows: dict[bytes, list[int]] = {}
    for place, row in enumerate(numbers):
        rows.setdefault(row.tobytes(), []).append(place)
    return [np.array(places) for places in rows.values()]

"""Structures of one geometry, and those that are nearly so, among hundreds of thousands.

The signatures of :mod:`hpcal.core.fingerprint` are points of which those of one geometry lie within
a known window of each other in every component; boxes name the pairs, and the alignment confirms
them. No pair within the distance asked for is outside the window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from hpcal.core.alignment import displacement
from hpcal.core.arrays import AnyArray, FloatArray, IntArray
from hpcal.core.fingerprint import TOLERANCE_A, half_window, signature, signatures
from hpcal.report.integrity.collection import Collection, Composition

MOST_PAIRS: Final = 50_000
"""Candidates of a composition that are aligned, those with the nearest signatures first."""
MOST_COMPARED: Final = 400_000_000
"""Candidates of a composition whose signatures are compared."""
PORTION: Final = 1 << 21
"""Candidates at a time."""
BOXED: Final = 6
"""Components along which points are put into boxes."""
BOX: Final = 4.0
"""Edge of a box, in radii: a point asks 1.5 boxes along each component."""


@dataclass(frozen=True, kw_only=True)
class Twin:
    """Two structures (places in the collection, i < j) and the largest displacement of an atom, Å."""

    i: int
    j: int
    displacement: float


@dataclass(frozen=True, kw_only=True)
class Twins:
    """What was found.

    Attributes:
        groups: structures of one geometry, state and lattice, the first of each group first.
        same: pairs that connect each group.
        near: pairs of different splits that are apart by more than the tolerance, but by less than
            the distance asked for.
        skipped: candidates that were not looked at, as there were too many.
    """

    groups: tuple[tuple[int, ...], ...]
    same: tuple[Twin, ...]
    near: tuple[Twin, ...]
    skipped: int


@dataclass
class _Search:
    same: list[Twin] = field(default_factory=list)
    near: list[Twin] = field(default_factory=list)
    skipped: int = 0


def find_twins(collection: Collection, near_A: float) -> Twins:  # noqa: N803
    """All pairs of one geometry, and those of different splits within a distance.

    Args:
        near_A: Å, largest displacement of an atom in a near-duplicate.
    """
    search = _Search()
    firsts = _exact(collection, search)
    for group in collection.compositions:
        for periodic in (False, True):
            index = group.index[(collection.periodic[group.index] == periodic) & firsts[group.index]]
            if len(index) > 1:
                _of_composition(collection, group, index, near_A, search)
    n = len(collection)
    i, j = np.array([(t.i, t.j) for t in search.same], dtype=np.int64).reshape(-1, 2).T
    _, part = connected_components(coo_matrix((np.ones(len(i)), (i, j)), shape=(n, n)), directed=False)
    members: dict[int, list[int]] = {}
    for place in np.unique(np.concatenate([i, j])).tolist():
        members.setdefault(int(part[place]), []).append(place)
    return Twins(
        groups=tuple(tuple(group) for group in members.values()),
        same=tuple(search.same),
        near=tuple(search.near),
        skipped=search.skipped,
    )


def _exact(collection: Collection, search: _Search) -> AnyArray:
    """(n,) whether a structure is the first of its content; pairs it with the first otherwise."""
    known: dict[str, int] = {}
    first = np.ones(len(collection), dtype=bool)
    for place, structure in enumerate(collection.structures):
        other = known.setdefault(structure.content_hash, place)
        if other != place:
            first[place] = False
            search.same.append(Twin(i=other, j=place, displacement=0.0))
    return first


def _of_composition(
    collection: Collection, group: Composition, index: IntArray, near: float, search: _Search
) -> None:
    """Twins, and near ones of different splits, among structures of one composition and periodicity."""
    periodic = bool(collection.periodic[index[0]])
    points = _signatures(collection, group, index, periodic)
    pairs, skipped = _candidates(points, half_window(TOLERANCE_A, periodic=periodic))
    search.skipped += skipped
    known = set()
    for a, b in pairs:
        i, j = int(index[min(a, b)]), int(index[max(a, b)])
        moved = displacement(collection.structures[i], collection.structures[j])
        if moved is not None:
            known.add((i, j))
            search.same.append(Twin(i=i, j=j, displacement=moved))
    splits = collection.data.splits[index]
    if near <= TOLERANCE_A or (splits == splits[0]).all():
        return
    pairs, skipped = _candidates(points, half_window(near, periodic=periodic), splits)
    search.skipped += skipped
    for a, b in pairs:
        i, j = int(index[min(a, b)]), int(index[max(a, b)])
        if (i, j) not in known:
            moved = displacement(collection.structures[i], collection.structures[j], near)
            if moved is not None:
                search.near.append(Twin(i=i, j=j, displacement=moved))


def _signatures(collection: Collection, group: Composition, index: IntArray, periodic: bool) -> FloatArray:
    if periodic:
        return np.array([signature(collection.structures[int(i)]) for i in index])
    positions, _ = collection.atoms_of(group, index)
    return signatures(np.broadcast_to(group.numbers, positions.shape[:2]), positions)


def _candidates(points: FloatArray, radius: float, splits: AnyArray | None = None) -> tuple[IntArray, int]:
    """(k, 2) pairs of points within a radius in every component, and how many were left out.

    Where there are more than can be aligned, the nearest ones are kept. With splits, only pairs of
    different ones are looked for.
    """
    kept, distances, skipped = [np.zeros((0, 2), dtype=np.int64)], [np.zeros(0)], 0
    for pairs, missed in close_pairs(points, radius):
        skipped += missed
        if splits is not None:
            pairs = pairs[splits[pairs[:, 0]] != splits[pairs[:, 1]]]  # noqa: PLW2901
        kept.append(pairs)
        distances.append(np.abs(points[pairs[:, 0]] - points[pairs[:, 1]]).max(axis=1, initial=0.0))
        if sum(map(len, kept)) > 4 * MOST_PAIRS:
            nearest, distance, dropped = _nearest(kept, distances)
            kept, distances, skipped = [nearest], [distance], skipped + dropped
    nearest, _, dropped = _nearest(kept, distances)
    return nearest, skipped + dropped


def _nearest(kept: list[IntArray], distances: list[FloatArray]) -> tuple[IntArray, FloatArray, int]:
    pairs, distance = np.concatenate(kept), np.concatenate(distances)
    order = np.lexsort((pairs[:, 1], pairs[:, 0], distance))[:MOST_PAIRS]
    return pairs[order], distance[order], len(pairs) - len(order)


def close_pairs(points: FloatArray, radius: float) -> Iterator[tuple[IntArray, int]]:
    """All pairs of (n, K) points whose components all differ by at most a radius, in portions.

    Points are put into boxes along the components that vary most; each asks the boxes that its
    neighbourhood touches, and what is there is compared in all components.

    Yields:
        (k, 2) pairs i < j, and how many candidates of the portion were not compared (a number that is
        positive only where hundreds of millions of pairs share boxes).
    """
    spread = np.ptp(points, axis=0) if len(points) else np.zeros(points.shape[1])
    wide = np.argsort(-spread, kind="stable")[:BOXED]
    boxed = points[:, wide] / (BOX * radius)
    own = _keys(np.floor(boxed).astype(np.int64))
    order = np.argsort(own, kind="stable")
    stored = own[order]
    asking, boxes = _touched(boxed)
    keys = _keys(boxes)
    start = np.searchsorted(stored, keys, side="left")
    counts = np.searchsorted(stored, keys, side="right") - start
    share = max(1, MOST_COMPARED // len(keys))
    shown = np.minimum(counts, share) if counts.sum() > MOST_COMPARED else counts
    ends = np.cumsum(shown)
    first = 0
    while first < len(keys):
        last = int(np.searchsorted(ends, (ends[first - 1] if first else 0) + PORTION, side="right"))
        last = max(last, first + 1)
        part = slice(first, last)
        i = np.repeat(asking[part], shown[part])
        within = np.arange(len(i)) - np.repeat(np.cumsum(shown[part]) - shown[part], shown[part])
        j = order[np.repeat(start[part], shown[part]) + within]
        i, j = i[i < j], j[i < j]
        for k in wide:
            near = np.abs(points[i, k] - points[j, k]) <= radius
            i, j = i[near], j[near]
        near = (np.abs(points[i] - points[j]) <= radius).all(axis=1)
        yield np.column_stack([i[near], j[near]]), int((counts[part] - shown[part]).sum()) // 2
        first = last


def _touched(boxed: FloatArray) -> tuple[IntArray, IntArray]:
    """(q,) points and (q, m) boxes that a point's neighbourhood, of half a width 1 / BOX, touches."""
    low = np.floor(boxed - 1 / BOX).astype(np.int64)
    high = np.floor(boxed + 1 / BOX).astype(np.int64)
    asking, boxes = np.arange(len(boxed)), low
    for k in range(boxed.shape[1]):
        other = np.flatnonzero(high[asking, k] != low[asking, k])
        more = boxes[other].copy()
        more[:, k] = high[asking[other], k]
        asking, boxes = np.concatenate([asking, asking[other]]), np.concatenate([boxes, more])
    return asking, boxes


def _keys(boxes: IntArray) -> AnyArray:
    """(q,) numbers of boxes; different boxes may share one, which costs a comparison."""
    keys = np.zeros(len(boxes), dtype=np.uint64)
    for column in boxes.T:
        keys = (keys ^ column.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(32)
    return keys

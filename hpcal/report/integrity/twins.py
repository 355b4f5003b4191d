"""Structures of one geometry, and those that are nearly so, among hundreds of thousands.

The signatures of :mod:`hpcal.core.fingerprint` are points of which those of one geometry lie within
a known window of each other; a k-d tree in the largest difference of any component names the pairs,
and the alignment confirms them. No pair within the distance asked for is outside the window.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from hpcal.core.alignment import displacement
from hpcal.core.arrays import AnyArray, FloatArray, IntArray
from hpcal.core.fingerprint import TOLERANCE_A, half_window, signature, signatures
from hpcal.report.integrity.collection import Collection, Composition

MOST_PAIRS: Final = 50_000
"""Candidates of a composition that are aligned, those with the nearest signatures first."""
MOST_LISTED: Final = 5_000_000
"""Candidates of a composition that are listed at once."""
NEIGHBOURS: Final = 8
"""Candidates of a structure where there are more than can be listed."""


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
    """(k, 2) pairs of points within a radius in every component, the nearest first; and how many were
    left out. With splits, only pairs of different ones.
    """  # noqa: D205
    tree = cKDTree(points) if points.shape[1] else None
    if tree is None:  # single atoms: all alike
        pairs = np.column_stack([np.zeros(len(points) - 1, dtype=np.int64), np.arange(1, len(points))])
        total = len(pairs)
    else:
        total = (int(tree.count_neighbors(tree, radius, p=np.inf)) - len(points)) // 2
        if total <= MOST_LISTED:
            pairs = tree.query_pairs(radius, p=np.inf, output_type="ndarray")
        else:
            pairs = _nearest(tree, points, radius, splits)
    if splits is not None:
        different = splits[pairs[:, 0]] != splits[pairs[:, 1]]
        if total <= MOST_LISTED:
            total = int(different.sum())
        pairs = pairs[different]
    if len(pairs) > MOST_PAIRS:
        distance = np.abs(points[pairs[:, 0]] - points[pairs[:, 1]]).max(axis=1, initial=0.0)
        pairs = pairs[np.argsort(distance, kind="stable")[:MOST_PAIRS]]
    return pairs, max(0, total - len(pairs))


def _nearest(tree: cKDTree, points: FloatArray, radius: float, splits: AnyArray | None) -> IntArray:
    """(k, 2) pairs of each point with its nearest ones (of other splits, where given)."""
    found = []
    wholes = [(np.arange(len(points)), tree, np.arange(len(points)))]
    if splits is not None:
        wholes = []
        for split in np.unique(splits):
            inside, outside = np.flatnonzero(splits == split), np.flatnonzero(splits != split)
            wholes.append((inside, cKDTree(points[outside]), outside))
    for asking, among, names in wholes:
        places = np.asarray(
            among.query(points[asking], k=NEIGHBOURS, p=np.inf, distance_upper_bound=radius)[1]
        )
        row, column = np.nonzero(places < len(names))
        found.append(np.column_stack([asking[row], names[places[row, column]]]))
    pairs = np.sort(np.concatenate(found), axis=1)
    return np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)

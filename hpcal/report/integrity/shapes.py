"""One pass over all interatomic distances: contacts, sizes, fragments, pairs of elements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from ase.neighborlist import neighbor_list
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from hpcal.core.arrays import AnyArray, FloatArray, IntArray
from hpcal.core.elements import COVALENT_RADII
from hpcal.core.structure import Structure, to_ase
from hpcal.report.integrity.collection import Collection, Composition

BOND: Final = 1.3
"""Atoms nearer than this many times the sum of their covalent radii are taken as bound."""


@dataclass(frozen=True, kw_only=True)
class PairSeen:
    """A pair of elements within the cutoff: in how many frames, and the shortest distance, Å."""

    frames: int
    shortest: float


@dataclass(kw_only=True)
class Shapes:
    """What the distances of each of n structures say.

    Attributes:
        contact: (n,) smallest distance in sums of covalent radii; inf for a single atom.
        closest: (n, 2) the atoms of that contact.
        distance: (n,) their distance, Å.
        diameter: (n,) largest distance of two atoms, Å; NaN for periodic structures.
        fragments: (n,) sets of atoms that are not bound to each other.
        gap: (n,) smallest distance of two atoms of different fragments, Å; inf with one fragment.
        pairs: pairs of elements (smaller number first) that were seen within the cutoff.
    """

    contact: FloatArray
    closest: IntArray
    distance: FloatArray
    diameter: FloatArray
    fragments: IntArray
    gap: FloatArray
    pairs: dict[tuple[int, int], PairSeen] = field(default_factory=dict)

    def saw(self, found: Mapping[tuple[int, int], PairSeen]) -> None:
        """Adds pairs of elements that were seen."""
        for pair, seen in found.items():
            known = self.pairs.get(pair, PairSeen(frames=0, shortest=np.inf))
            self.pairs[pair] = PairSeen(
                frames=known.frames + seen.frames, shortest=min(known.shortest, seen.shortest)
            )


def shapes(collection: Collection, cutoff: float) -> Shapes:
    """Measures all structures.

    Args:
        cutoff: Å, within which pairs of elements count as seen.
    """
    n = len(collection)
    found = Shapes(
        contact=np.full(n, np.inf),
        closest=np.zeros((n, 2), dtype=np.int64),
        distance=np.full(n, np.inf),
        diameter=np.full(n, np.nan),
        fragments=np.ones(n, dtype=np.int64),
        gap=np.full(n, np.inf),
    )
    for group in collection.compositions:
        pairs = len(group.numbers) * (len(group.numbers) - 1) // 2
        for index in group.chunks(pairs + 1):
            free = index[~collection.periodic[index]]
            if len(free):
                _molecules(collection, group, free, cutoff, found)
            for i in index[collection.periodic[index]]:
                _crystal(collection.structures[int(i)], int(i), cutoff, found)
    return found


def _molecules(
    collection: Collection, group: Composition, index: IntArray, cutoff: float, found: Shapes
) -> None:
    positions, order = collection.atoms_of(group, index)
    if len(group.numbers) == 1:
        found.diameter[index] = 0.0
        return
    a, b = np.triu_indices(len(group.numbers), 1)
    coordinates = np.ascontiguousarray(positions.transpose(2, 0, 1))
    square = np.zeros((len(index), len(a)))
    for axis in coordinates:
        square += (axis[:, a] - axis[:, b]) ** 2
    distances = np.sqrt(square)
    radii = COVALENT_RADII[group.numbers]
    ratio = distances / (radii[a] + radii[b])
    row, best = np.arange(len(index)), ratio.argmin(axis=1)
    found.contact[index] = ratio[row, best]
    found.distance[index] = distances[row, best]
    found.closest[index] = np.sort(np.column_stack([order[row, a[best]], order[row, b[best]]]), axis=1)
    found.diameter[index] = distances.max(axis=1)
    found.fragments[index], found.gap[index] = _fragments(ratio < BOND, distances, a, b)
    found.saw(_pairs(group.numbers[a], group.numbers[b], distances, cutoff))


def _fragments(
    bound: AnyArray, distances: FloatArray, a: IntArray, b: IntArray
) -> tuple[IntArray, FloatArray]:
    """(m,) numbers of fragments and (m,) smallest distances between them.

    Structures that are bound in the same way, which is most frames of a molecule, are done once.
    """
    n_atoms = int(b.max()) + 1
    packed = np.packbits(bound, axis=1)
    kinds, kind = np.unique(packed, axis=0, return_inverse=True)
    kind = kind.reshape(-1)
    counts, gaps = np.ones(len(bound), dtype=np.int64), np.full(len(bound), np.inf)
    for k in range(len(kinds)):
        rows = np.flatnonzero(kind == k) if len(kinds) > 1 else np.arange(len(bound))
        bonds = bound[rows[0]]
        graph = coo_matrix((np.ones(bonds.sum()), (a[bonds], b[bonds])), shape=(n_atoms, n_atoms))
        count, part = connected_components(graph, directed=False)
        if count > 1:
            counts[rows] = count
            gaps[rows] = distances[np.ix_(rows, np.flatnonzero(part[a] != part[b]))].min(axis=1)
    return counts, gaps


def _pairs(
    first: IntArray, second: IntArray, distances: FloatArray, cutoff: float
) -> dict[tuple[int, int], PairSeen]:
    """Pairs of elements within the cutoff, of (m, P) distances of (P,) sorted pairs."""
    result = {}
    keys = first * 1000 + second
    for key in np.unique(keys):
        nearest = distances[:, keys == key].min(axis=1)
        frames = int((nearest <= cutoff).sum())
        if frames:
            pair = (int(key) // 1000, int(key) % 1000)
            result[pair] = PairSeen(frames=frames, shortest=float(nearest.min()))
    return result


def _crystal(structure: Structure, place: int, cutoff: float, found: Shapes) -> None:
    radii = COVALENT_RADII[structure.numbers]
    reach = max(cutoff, 2 * BOND * float(radii.max()))
    a, b, distances = neighbor_list("ijd", to_ase(structure), reach)
    once = a <= b
    a, b, distances = a[once], b[once], distances[once]
    if not len(a):
        found.fragments[place] = len(structure)
        return
    ratio = distances / (radii[a] + radii[b])
    best = int(ratio.argmin())
    found.contact[place], found.distance[place] = ratio[best], distances[best]
    found.closest[place] = (a[best], b[best])
    bound = ratio < BOND
    graph = coo_matrix((np.ones(bound.sum()), (a[bound], b[bound])), shape=(len(structure),) * 2)
    count, part = connected_components(graph, directed=False)
    found.fragments[place] = count
    apart = part[a] != part[b]
    if apart.any():
        found.gap[place] = float(distances[apart].min())
    low = np.minimum(structure.numbers[a], structure.numbers[b])
    high = np.maximum(structure.numbers[a], structure.numbers[b])
    found.saw(_pairs(low, high, distances[None], cutoff))

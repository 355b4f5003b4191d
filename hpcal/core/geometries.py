"""A collection of structures that knows which of them have one geometry."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Generic, TypeVar

import numpy as np

from hpcal.core.alignment import same_geometry
from hpcal.core.fingerprint import fingerprint, many_matching_fingerprints, matching_fingerprints
from hpcal.core.structure import Structure

Value = TypeVar("Value")


class Geometries(Generic[Value]):
    """Values by geometry: rotated, reflected, shifted or renumbered structures are one.

    Two structures are one geometry if they agree in composition, charge, multiplicity and
    periodicity, and no atom is displaced by more than :data:`hpcal.core.fingerprint.TOLERANCE_A`
    (:func:`hpcal.core.alignment.same_geometry`).
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, float], list[tuple[Structure, Value]]] = defaultdict(list)

    def add(self, structure: Structure, value: Value, print_: float | None = None) -> None:
        """Adds a structure; ``print_`` is its fingerprint where that is known already."""
        key = fingerprint(structure) if print_ is None else print_
        self._known[structure.formula, key].append((structure, value))

    def find(self, structure: Structure, keys: Sequence[float] | None = None) -> list[Value]:
        """Values of the structures of one geometry, in the order of their coming.

        Args:
            keys: its matching fingerprints, where they are known already.
        """
        formula = structure.formula
        return [
            value
            for key in (matching_fingerprints(structure) if keys is None else keys)
            for known, value in self._known.get((formula, key), ())
            if known == structure or same_geometry(known, structure)
        ]


def matching_keys(structures: Sequence[Structure]) -> list[Sequence[float]]:
    """Matching fingerprints of each structure; molecules of one size are asked together."""
    keys: list[Sequence[float]] = [()] * len(structures)
    groups: dict[int, list[int]] = defaultdict(list)
    for i, structure in enumerate(structures):
        if structure.periodic:
            keys[i] = matching_fingerprints(structure)
        else:
            groups[len(structure)].append(i)
    for group in groups.values():
        owner, value = many_matching_fingerprints(
            np.array([structures[i].numbers for i in group]),
            np.array([structures[i].positions for i in group]),
        )
        bounds = np.searchsorted(owner, np.arange(len(group) + 1))
        for i, (start, end) in zip(group, pairwise(bounds.tolist()), strict=True):
            keys[i] = value[start:end].tolist()
    return keys

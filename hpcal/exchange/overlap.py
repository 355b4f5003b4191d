"""Atoms that lie on top of each other."""

from __future__ import annotations

from typing import Final

import numpy as np
from ase.neighborlist import neighbor_list

from hpcal.core import elements
from hpcal.core.structure import Structure, to_ase

_ALL_PAIRS_BELOW: Final = 500
"""Atoms up to which the full table of distances is cheaper than a neighbour list."""


def overlap_problem(structure: Structure, factor: float) -> str | None:
    """Says which two atoms are nearer than ``factor`` times the sum of their covalent radii.

    Periodic images count, an atom's own among them.

    Returns:
        One sentence on the worst pair, or None if there is none.
    """
    reach = factor * elements.COVALENT_RADII[structure.numbers]
    if not structure.periodic and len(structure) < _ALL_PAIRS_BELOW:
        i, j = np.triu_indices(len(structure), k=1)
        d = np.linalg.norm(structure.positions[i] - structure.positions[j], axis=1)
    else:
        i, j, d = neighbor_list("ijd", to_ase(structure), reach)
    if not len(d):
        return None
    limit = reach[i] + reach[j]
    worst = int(np.argmin(d / limit))
    if d[worst] >= limit[worst]:
        return None
    first, second = int(i[worst]), int(j[worst])
    names = [elements.symbol(int(structure.numbers[k])) for k in (first, second)]
    return (
        f"atoms {first} ({names[0]}) and {second} ({names[1]}) overlap: {d[worst]:.3f} Å apart, "
        f"below {limit[worst]:.3f} Å ({factor:g} times the sum of their covalent radii)"
    )

"""Facts about elements: symbols, masses (amu) and covalent radii (Å), as ASE tabulates them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from ase.data import atomic_masses, atomic_numbers, chemical_symbols, covalent_radii

from hpcal.core.arrays import FloatArray, IntArray

MAX_ATOMIC_NUMBER: Final = 118

MASSES: Final[FloatArray] = np.asarray(atomic_masses, dtype=np.float64)
"""(119,) standard atomic masses, amu; index 0 is the placeholder X."""

COVALENT_RADII: Final[FloatArray] = np.asarray(covalent_radii, dtype=np.float64)
"""(119,) covalent radii, Å (Cordero et al., Dalton Trans. 2008, 10.1039/b801115j)."""


def symbol(number: int) -> str:
    """Chemical symbol of an atomic number."""
    return str(chemical_symbols[number])


def atomic_number(name: str) -> int:
    """Atomic number of a symbol. Raises KeyError for an unknown one."""
    return int(atomic_numbers[name])


def masses(numbers: IntArray) -> FloatArray:
    """(N,) masses in amu of (N,) atomic numbers."""
    return MASSES[numbers]


def formula(numbers: Iterable[int]) -> str:
    """Hill formula, such as ``C2H5NO2``."""
    counts: dict[str, int] = {}
    for number in numbers:
        name = symbol(int(number))
        counts[name] = counts.get(name, 0) + 1
    order = sorted(counts)
    if "C" in counts:
        order = [e for e in ("C", "H") if e in counts] + [e for e in order if e not in ("C", "H")]
    return "".join(e + (str(counts[e]) if counts[e] > 1 else "") for e in order)

"""Total energies of atoms from their charge alone: good enough to tell one unit of energy from another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from hpcal.core.arrays import FloatArray, IntArray
from hpcal.core.units import HARTREE
from hpcal.exchange.quantities import ENERGIES, Unit

_WITHIN: Final = 0.03
"""Binding, functional and the model's own error come to about 2 % in methane and less in most molecules."""
_HEAVIEST: Final = 36
"""Beyond krypton relativity and pseudopotentials make the comparison meaningless."""


def all_electron_energy(numbers: IntArray) -> float:
    """Total energy of the atoms apart, all electrons included, eV.

    Statistical model with the corrections of Scott and Schwinger,
    E(Z) = −0.76875 Z^(7/3) + ½ Z² − 0.26990 Z^(5/3) Hartree (Schwinger, Phys. Rev. A 24, 2353
    (1981), 10.1103/PhysRevA.24.2353); 0.6 % from carbon's exact energy, 8 % from hydrogen's.
    """
    z = np.asarray(numbers, dtype=np.float64)
    hartree = -0.76875 * z ** (7 / 3) + 0.5 * z**2 - 0.26990 * z ** (5 / 3)
    return float(np.where(z == 1, -0.5, hartree).sum()) * HARTREE


def unit_it_looks_like(
    compositions: Sequence[IntArray], energies: Sequence[float] | FloatArray
) -> Unit | None:
    """The one unit in which energies of whole molecules are total energies of all electrons.

    Args:
        compositions: atomic numbers of each structure.
        energies: of the same structures, in the unit that is asked for.

    Returns:
        None where no unit fits, as for valence or atomisation energies, or elements are too heavy.
    """
    if not len(compositions) or any(int(z.max()) > _HEAVIEST for z in compositions):
        return None
    expected = np.array([all_electron_energy(z) for z in compositions])
    ratios = np.asarray(energies, dtype=np.float64) / expected
    for unit in ENERGIES:
        if abs(float(np.median(ratios)) * unit.factor - 1.0) < _WITHIN:
            return unit
    return None

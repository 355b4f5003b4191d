"""Charge Model 5: Hirshfeld charges mapped so that they give dipole moments of small molecules.

    q_k(CM5) = q_k(Hirshfeld) + Σ_k' T_kk' exp(−α (r_kk' − R_k − R_k'))

    T_kk' = D_ZZ' = −D_Z'Z for pairs of H, C, N, O, and D_Z − D_Z' for all others; 0 if Z = Z'

Source: Marenich, Jerome, Cramer, Truhlar, J. Chem. Theory Comput. 2012, 8, 527, 10.1021/ct200866d. The values
are those of the authors' program CM5PAC (2015), heavier elements included.

===========  ======================  ====
equation     here                    unit
===========  ======================  ====
α            ``ALPHA``               1/Å
R_k          ``RADII``               Å
D_Z          ``D_Z``                 e
D_ZZ'        ``D_PAIR``              e
===========  ======================  ====
"""

from __future__ import annotations

from typing import Final

import numpy as np

from hpcal.core.arrays import FloatArray, IntArray

ALPHA: Final = 2.474

# fmt: off
RADII: Final[FloatArray] = np.array([
    0.00,
    0.32, 0.37,
    1.30, 0.99, 0.84, 0.75, 0.71, 0.64, 0.60, 0.62,
    1.60, 1.40, 1.24, 1.14, 1.09, 1.04, 1.00, 1.01,
    2.00, 1.74, 1.59, 1.48, 1.44, 1.30, 1.29, 1.24, 1.18,
    1.17, 1.22, 1.20, 1.23, 1.20, 1.20, 1.18, 1.17, 1.16,
    2.15, 1.90, 1.76, 1.64, 1.56, 1.46, 1.38, 1.36, 1.34,
    1.30, 1.36, 1.40, 1.42, 1.40, 1.40, 1.37, 1.36, 1.36,
    2.38, 2.06, 1.94, 1.84, 1.90, 1.88, 1.86, 1.85, 1.83, 1.82, 1.81, 1.80, 1.79, 1.77, 1.77, 1.78,
    1.74, 1.64, 1.58, 1.50, 1.41, 1.36, 1.32, 1.30, 1.30, 1.32, 1.44, 1.45, 1.50, 1.42, 1.48, 1.46,
    2.42, 2.11, 2.01, 1.90, 1.84, 1.83, 1.80, 1.80, 1.73, 1.68, 1.68, 1.68, 1.65, 1.67, 1.73, 1.76,
    1.61, 1.57, 1.49, 1.43, 1.41, 1.34, 1.29, 1.28, 1.21, 1.22, 1.36, 1.43, 1.62, 1.75, 1.65, 1.57,
])
"""(119,) covalent radii of the model (Mantina et al., CRC Handbook, 91st edition); none at 0."""

_D_BY_NUMBER: Final = {
    1: 0.0056, 2: -0.1543,
    4: 0.0333, 5: -0.1030, 6: -0.0446, 7: -0.1072, 8: -0.0802, 9: -0.0629, 10: -0.1088,
    11: 0.0184, 13: -0.0726, 14: -0.0790, 15: -0.0756, 16: -0.0565, 17: -0.0444, 18: -0.0767,
    19: 0.0130, 31: -0.0512, 32: -0.0557, 33: -0.0533, 34: -0.0399, 35: -0.0313, 36: -0.0541,
    37: 0.0092, 49: -0.0361, 50: -0.0393, 51: -0.0376, 52: -0.0281, 53: -0.0220, 54: -0.0381,
    55: 0.0065, 81: -0.0255, 82: -0.0277, 83: -0.0265, 84: -0.0198, 85: -0.0155, 86: -0.0269,
    87: 0.0046, 113: -0.0179, 114: -0.0195, 115: -0.0187, 116: -0.0140, 117: -0.0110, 118: -0.0189,
}
# fmt: on

D_Z: Final[FloatArray] = np.array([_D_BY_NUMBER.get(z, 0.0) for z in range(len(RADII))])
"""(119,) parameters of the elements; 0 for those that the model leaves alone."""

D_PAIR: Final = {
    (1, 6): 0.0502,
    (1, 7): 0.1747,
    (1, 8): 0.1671,
    (6, 7): 0.0556,
    (6, 8): 0.0234,
    (7, 8): -0.0346,
}
"""Parameters of the pairs of elements that have their own."""


def cm5(numbers: IntArray, positions: FloatArray, hirshfeld: FloatArray) -> FloatArray:
    """(N,) CM5 charges, e; their sum is that of the Hirshfeld charges.

    Args:
        numbers: (N,) atomic numbers.
        positions: (N, 3) Å.
        hirshfeld: (N,) Hirshfeld charges, e.
    """
    strength = _strengths()[numbers[:, None], numbers[None, :]]
    distance = np.linalg.norm(positions[:, None, :] - positions[None, :, :], axis=-1)
    touching = RADII[numbers][:, None] + RADII[numbers][None, :]
    moved: FloatArray = hirshfeld + (strength * np.exp(-ALPHA * (distance - touching))).sum(axis=1)
    return moved


def _strengths() -> FloatArray:
    """(119, 119) T of all pairs of elements."""
    strength: FloatArray = D_Z[:, None] - D_Z[None, :]
    for (first, second), value in D_PAIR.items():
        strength[first, second], strength[second, first] = value, -value
    return strength

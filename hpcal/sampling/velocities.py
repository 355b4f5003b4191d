"""Initial velocities of walkers."""

from __future__ import annotations

import numpy as np

from hpcal.core import elements
from hpcal.core.arrays import FloatArray
from hpcal.core.structure import Structure
from hpcal.core.units import ACCELERATION, BOLTZMANN


def maxwell_boltzmann(structure: Structure, temperature: float, rng: np.random.Generator) -> FloatArray:
    """(N, 3) velocities in Å/fs, Maxwell–Boltzmann at a temperature in K, at rest as a whole.

    Momentum is taken out, and angular momentum where nothing is periodic. Both are orthogonal
    projections under the mass metric, so what remains is Maxwell–Boltzmann distributed in the
    3N − 3 (3N − 6, linear 3N − 5) degrees of freedom left, each with k_B T / 2; nothing is rescaled.
    """
    masses = elements.masses(structure.numbers)[:, None]
    spread = np.sqrt(BOLTZMANN * temperature * ACCELERATION / masses)
    velocities = spread * rng.standard_normal((len(structure), 3))
    velocities = velocities - (masses * velocities).sum(axis=0) / masses.sum()
    if not structure.periodic:
        velocities = _without_rotation(structure.positions, velocities, masses)
    return np.asarray(velocities, dtype=np.float64)


def _without_rotation(positions: FloatArray, velocities: FloatArray, masses: FloatArray) -> FloatArray:
    """Velocities less ω × r, where ω solves I ω = L about the centre of mass."""
    r = positions - (masses * positions).sum(axis=0) / masses.sum()
    momentum = (masses * np.cross(r, velocities)).sum(axis=0)
    inertia = (masses * r**2).sum() * np.eye(3) - (masses * r).T @ r
    # A linear molecule has no inertia about its axis: the pseudo-inverse leaves that direction out.
    omega = np.linalg.pinv(inertia, rcond=1e-10, hermitian=True) @ momentum
    return velocities - np.cross(omega, r)

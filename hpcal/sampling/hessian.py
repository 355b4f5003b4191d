"""Hessians by finite differences, and the normal modes of a molecule."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpcal.core import elements
from hpcal.core.arrays import FloatArray
from hpcal.core.protocols import ForceFunction
from hpcal.core.structure import Structure
from hpcal.core.units import ACCELERATION, HBAR, WAVENUMBER

RANK_TOLERANCE = 0.02
"""Singular value, of rigid motions scaled to about one, below which a rotation is none: a linear
molecule relaxed to a finite force is slightly bent."""


def hessian(structure: Structure, forces: ForceFunction, step: float = 0.01) -> FloatArray:
    """(3N, 3N) second derivatives of the energy, eV/Å², by central differences of the forces.

    Calls ``forces`` 6N times. The two triangles, which differ by the error of the differences, are
    averaged.

    Args:
        step: displacement, Å.
    """
    size = 3 * len(structure)
    rows = np.zeros((size, size))
    for coordinate in range(size):
        shift = np.zeros(size)
        shift[coordinate] = step
        _, ahead = forces(structure.with_positions(structure.positions + shift.reshape(-1, 3)))
        _, behind = forces(structure.with_positions(structure.positions - shift.reshape(-1, 3)))
        rows[coordinate] = (behind - ahead).ravel() / (2.0 * step)
    return np.asarray(0.5 * (rows + rows.T))


@dataclass(frozen=True, kw_only=True, eq=False)
class Modes:
    """The n vibrations of a structure, softest first (imaginary ones before those).

    Attributes:
        curvatures: (n,) eigenvalues λ = ω² of the mass-weighted Hessian, eV/(Å² amu); negative
            where the mode is imaginary.
        directions: (n, N, 3) Cartesian displacement of each mode for a mass-weighted coordinate of
            1 Å amu^½, in Å.
    """

    curvatures: FloatArray
    directions: FloatArray

    @property
    def wavenumbers(self) -> FloatArray:
        """(n,) cm⁻¹; negative for imaginary modes."""
        omega = np.sqrt(np.abs(self.curvatures) * ACCELERATION)
        return np.asarray(np.sign(self.curvatures) * omega * HBAR / WAVENUMBER)

    @property
    def force_constants(self) -> FloatArray:
        """(n,) K = λ μ, eV/Å², for displacements along directions normalised in Å."""
        return np.asarray(self.curvatures / (self.directions**2).sum(axis=(1, 2)))


def curvature(wavenumber: float) -> float:
    """λ = ω² in eV/(Å² amu) of a wavenumber in cm⁻¹."""
    return (wavenumber * WAVENUMBER / HBAR) ** 2 / ACCELERATION


def normal_modes(structure: Structure, second_derivatives: FloatArray) -> Modes:
    """The vibrations of a structure; translations and rotations are projected out.

    Three translations are, and as many rotations as there are: three, two for a linear molecule,
    none for an atom or a periodic structure.

    Args:
        second_derivatives: (3N, 3N) eV/Å².

    Source: Wilson, Decius and Cross, Molecular Vibrations, 1955.
    """
    weights = np.repeat(1.0 / np.sqrt(elements.masses(structure.numbers)), 3)
    rigid = rigid_motions(structure)
    # An orthonormal basis of what is no rigid motion: the Hessian is diagonalised within it.
    vibrations = np.linalg.svd(rigid, full_matrices=True)[0][:, rigid.shape[1] :]
    weighted = weights[:, None] * second_derivatives * weights[None, :]
    values, vectors = np.linalg.eigh(vibrations.T @ weighted @ vibrations)
    directions = (vibrations @ vectors).T * weights
    return Modes(curvatures=values, directions=directions.reshape(len(values), -1, 3))


def rigid_motions(structure: Structure) -> FloatArray:
    """(3N, r) orthonormal mass-weighted translations and rotations."""
    masses = elements.masses(structure.numbers)
    roots = np.sqrt(masses)[:, None]
    axes = np.eye(3)
    motions = [(roots * axis).ravel() for axis in axes]
    if not structure.periodic:
        centred = structure.positions - (masses[:, None] * structure.positions).sum(axis=0) / masses.sum()
        reach = max(float(np.abs(centred).max()), 1e-12)
        motions += [(roots * np.cross(axis, centred / reach)).ravel() for axis in axes]
    columns = np.array(motions).T / np.sqrt(masses.sum())
    left, singular, _ = np.linalg.svd(columns, full_matrices=False)
    return np.asarray(left[:, singular > RANK_TOLERANCE])

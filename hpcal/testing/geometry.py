"""What must not matter to an energy, and central differences of what does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from hpcal.core import elements
from hpcal.core.arrays import FloatArray, IntArray
from hpcal.core.structure import Structure

Energy = Callable[[Structure], float]
"""Energy of a structure, eV."""


def random_rotation(rng: np.random.Generator) -> FloatArray:
    """(3, 3) proper rotation R, uniform; a row vector x turns to ``x @ R``."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return np.asarray(q if np.linalg.det(q) > 0 else -q)


def rotated(structure: Structure, rotation: FloatArray) -> Structure:
    """Positions and cell turned."""
    cell = None if structure.cell is None else structure.cell @ rotation
    return replace(structure, positions=structure.positions @ rotation, cell=cell)


def translated(structure: Structure, shift: FloatArray) -> Structure:
    """All atoms moved by a (3,) vector, Å."""
    return structure.with_positions(structure.positions + shift)


def permuted(structure: Structure, order: IntArray) -> Structure:
    """The atoms in another order."""
    moments = structure.magnetic_moments
    return replace(
        structure,
        numbers=structure.numbers[order],
        positions=structure.positions[order],
        magnetic_moments=None if moments is None else moments[order],
    )


def same_atoms(a: Structure, b: Structure) -> bool:
    """Whether two structures differ at most in positions, shape of the cell and moments."""
    return (a.numbers.tolist(), a.charge, a.multiplicity, a.pbc) == (
        b.numbers.tolist(),
        b.charge,
        b.multiplicity,
        b.pbc,
    )


def strained(structure: Structure, strain: FloatArray) -> Structure:
    """Positions and cell under a (3, 3) strain: x → x + x ε."""
    cell = structure.cell if structure.cell is None else structure.cell @ (np.eye(3) + strain)
    return replace(structure, positions=structure.positions @ (np.eye(3) + strain), cell=cell)


def unit_directions(count: int, n_atoms: int, rng: np.random.Generator) -> FloatArray:
    """(count, N, 3) directions of unit length in all 3N coordinates together."""
    drawn = rng.normal(size=(count, n_atoms, 3))
    return np.asarray(drawn / np.linalg.norm(drawn, axis=(1, 2), keepdims=True))


def slope_along(energy: Energy, structure: Structure, direction: FloatArray, step: float) -> float:
    """Slope of the energy along a (N, 3) direction by central differences, eV/Å."""
    ahead = energy(structure.with_positions(structure.positions + step * direction))
    behind = energy(structure.with_positions(structure.positions - step * direction))
    return (ahead - behind) / (2 * step)


def slope_under(energy: Energy, structure: Structure, strain: FloatArray, step: float) -> float:
    """Slope of the energy under a symmetric strain by central differences, eV."""
    ahead, behind = energy(strained(structure, step * strain)), energy(strained(structure, -step * strain))
    return (ahead - behind) / (2 * step)


def unit_strains() -> FloatArray:
    """(6, 3, 3) symmetric strains: three along the axes, three shears."""
    strains = np.zeros((6, 3, 3))
    for k, (i, j) in enumerate([(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]):
        strains[k, i, j] += 0.5
        strains[k, j, i] += 0.5
    return strains


def volume(structure: Structure) -> float:
    """Volume of the cell, Å³."""
    return abs(float(np.linalg.det(np.eye(3) if structure.cell is None else structure.cell)))


def closest_contact(structure: Structure) -> float:
    """Smallest distance of two atoms in sums of their covalent radii, nearest images included."""
    shifts = _image_shifts(structure)
    gaps = structure.positions[:, None, None] - structure.positions[None, :, None] - shifts
    distances = np.linalg.norm(gaps, axis=-1)
    itself = ~shifts.any(axis=1)
    distances[np.arange(len(structure)), np.arange(len(structure)), itself] = np.inf
    radii = elements.COVALENT_RADII[structure.numbers]
    return float((distances.min(axis=2) / (radii[:, None] + radii[None, :])).min())


def _image_shifts(structure: Structure) -> FloatArray:
    """(K, 3) vectors to the neighbouring cells along periodic directions, the cell itself included."""
    if structure.cell is None:
        return np.zeros((1, 3))
    ranges = [(-1, 0, 1) if periodic else (0,) for periodic in structure.pbc]
    grid = np.array(np.meshgrid(*ranges, indexing="ij")).reshape(3, -1).T
    return np.asarray(grid @ structure.cell, dtype=np.float64)

"""Steps of molecular dynamics as pure functions on batches of walkers.

Shapes: B walkers, N atoms (padded). Units: Å, fs, eV/Å, amu. An equation's acceleration is
``forces / masses * ACCELERATION``, as forces are in eV/Å and masses in amu.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from hpcal.core.units import ACCELERATION, BOLTZMANN

ForceField: TypeAlias = Callable[[Tensor], Tensor]
"""(B, N, 3) float64 forces in eV/Å at (B, N, 3) positions in Å."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PhasePoint:
    """Where B walkers are, and the forces on them there.

    Attributes:
        positions: (B, N, 3) Å, float64.
        velocities: (B, N, 3) Å/fs, float64; zero at padding.
        forces: (B, N, 3) eV/Å, float64; zero at padding.
    """

    positions: Tensor
    velocities: Tensor
    forces: Tensor


def velocity_verlet(at: PhasePoint, forces: ForceField, *, masses: Tensor, timestep_fs: float) -> PhasePoint:
    """One step of velocity Verlet (NVE).

    ::

        v' = v + (h/2) F(x)/m;   x₁ = x + h v';   v₁ = v' + (h/2) F(x₁)/m

    Args:
        masses: (B, N, 1) m, amu; any positive number at padding.
        timestep_fs: h.

    Source: Swope et al., J. Chem. Phys. 1982, 10.1063/1.442716.
    """
    half_kick = (0.5 * timestep_fs * ACCELERATION) / masses
    half = at.velocities + half_kick * at.forces
    positions = at.positions + timestep_fs * half
    new_forces = forces(positions)
    return PhasePoint(positions=positions, velocities=half + half_kick * new_forces, forces=new_forces)


def baoab(
    at: PhasePoint,
    forces: ForceField,
    *,
    masses: Tensor,
    thermal_energy: Tensor,
    noise: Tensor,
    timestep_fs: float,
    friction_per_fs: float,
) -> PhasePoint:
    """One step of Langevin dynamics in the BAOAB splitting (NVT).

    ::

        B: v += (h/2) F/m    A: x += (h/2) v    O: v = c v + sqrt((1 − c²) k_B T / m) ξ,
        c = exp(−γ h)        A                  B

    In a harmonic well its positions have the exact canonical variance at any stable time step.

    Args:
        masses: (B, N, 1) m, amu.
        thermal_energy: (B, 1, 1) k_B T, eV.
        noise: (B, N, 3) ξ, standard normal; zero at padding.
        timestep_fs: h.
        friction_per_fs: γ.

    Source: Leimkuhler and Matthews, Appl. Math. Res. Express 2013, 10.1093/amrx/abs010.
    """
    half_step = 0.5 * timestep_fs
    half_kick = (half_step * ACCELERATION) / masses
    keep = math.exp(-friction_per_fs * timestep_fs)
    spread = torch.sqrt(
        (-math.expm1(-2.0 * friction_per_fs * timestep_fs) * ACCELERATION) * thermal_energy / masses
    )
    velocities = at.velocities + half_kick * at.forces
    positions = at.positions + half_step * velocities
    velocities = keep * velocities + spread * noise
    positions = positions + half_step * velocities
    new_forces = forces(positions)
    return PhasePoint(positions=positions, velocities=velocities + half_kick * new_forces, forces=new_forces)


def kinetic_energy(velocities: Tensor, masses: Tensor) -> Tensor:
    """(B,) Σ m v² / 2 in eV of (B, N, 3) velocities in Å/fs and (B, N, 1) masses in amu."""
    return (0.5 / ACCELERATION) * (masses * velocities**2).sum(dim=(1, 2))


def kinetic_temperature(velocities: Tensor, masses: Tensor, n_atoms: Tensor) -> Tensor:
    """(B,) 2 E_kin / (3 N k_B) in K, all 3N degrees of freedom counted."""
    return kinetic_energy(velocities, masses) * (2.0 / (3.0 * BOLTZMANN)) / n_atoms

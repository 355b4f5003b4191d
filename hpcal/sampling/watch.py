"""Watches the walkers of a batch for what breaks them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcal.core import elements
from hpcal.core.arrays import BoolArray, FloatArray, IntArray
from hpcal.core.walker import WalkerEnd
from hpcal.sampling.guards import (
    DistanceLimits,
    GuardSettings,
    broken_distances,
    distance_sentence,
    pair_distances,
)
from hpcal.sampling.integrators import PhasePoint, kinetic_temperature
from hpcal.sampling.packing import Packed, moved


@dataclass(frozen=True, kw_only=True, eq=False)
class Watch:
    """The guards on one batch.

    Forces, temperature and finiteness are looked at after every step, distances every
    ``check_every`` steps of a walker and before a frame of it is looked at.
    """

    packed: Packed
    limits: DistanceLimits
    settings: GuardSettings

    @classmethod
    def of(cls, packed: Packed, settings: GuardSettings) -> Watch:
        """The guards for packed walkers."""
        return cls(packed=packed, limits=DistanceLimits.of(packed.batch, settings), settings=settings)

    def broken(self, point: PhasePoint, steps: IntArray, looked_at: BoolArray) -> BoolArray:
        """(B,) which walkers are broken at a point, reached at (B,) steps.

        Args:
            looked_at: (B,) walkers whose frame is about to be scored.
        """
        largest = (point.forces**2).sum(dim=2).amax(dim=1)
        temperature = self._temperature(point)
        # Comparisons with what is not a number are false: such walkers are not fine either.
        fine = (largest <= self.settings.max_force_eV_per_A**2) & (
            temperature <= self.settings.max_temperature_K
        )
        broken: BoolArray = ~fine.cpu().numpy()
        due = (steps % self.settings.check_every == 0) | looked_at
        if due.any():
            overlap, alone = self._distances(point)
            broken = broken | ((overlap | alone).cpu().numpy() & due)
        return broken

    def reason(self, point: PhasePoint, place: int) -> tuple[WalkerEnd, str]:
        """Why the walker in a place is broken, in one sentence with numbers."""
        walker = self.packed.rows[place].walker
        names = [elements.symbol(int(z)) for z in walker.structure.numbers]
        if not finite(point)[place]:
            return WalkerEnd.NOT_FINITE, "a position, velocity or force is not a finite number"
        overlap, alone = (flags[place].item() for flags in self._distances(point))
        if overlap or alone:
            end = WalkerEnd.OVERLAP if overlap else WalkerEnd.DISSOCIATED
            here = moved(walker, *_arrays(point, place), walker.step)
            return end, distance_sentence(here.structure, end, self.settings)
        norms = point.forces[place].norm(dim=1)
        atom = int(norms.argmax())
        if float(norms[atom]) > self.settings.max_force_eV_per_A:
            return WalkerEnd.FORCE, (
                f"the force on atom {atom} ({names[atom]}) is {float(norms[atom]):.1f} eV/Å, more "
                f"than {self.settings.max_force_eV_per_A:g} eV/Å"
            )
        return WalkerEnd.TEMPERATURE, (
            f"its kinetic temperature is {float(self._temperature(point)[place]):.0f} K, more than "
            f"{self.settings.max_temperature_K:g} K"
        )

    def _temperature(self, point: PhasePoint) -> Tensor:
        return kinetic_temperature(point.velocities, self.packed.masses, self.packed.n_atoms)

    def _distances(self, point: PhasePoint) -> tuple[Tensor, Tensor]:
        batch = self.packed.batch
        return broken_distances(pair_distances(point.positions, batch.cell, batch.pbc), self.limits)


def finite(point: PhasePoint) -> BoolArray:
    """(B,) whether all numbers of each walker are finite."""
    parts = (point.positions, point.velocities, point.forces)
    flags: BoolArray = (
        torch.stack([p.isfinite().flatten(1).all(dim=1) for p in parts]).all(dim=0).cpu().numpy()
    )
    return flags


def where_finite(point: PhasePoint, before: PhasePoint) -> PhasePoint:
    """A point, with walkers that are not finite put back to where they were a step before."""
    keep = torch.as_tensor(finite(point), device=point.positions.device)[:, None, None]
    return PhasePoint(
        positions=torch.where(keep, point.positions, before.positions),
        velocities=torch.where(keep, point.velocities, before.velocities),
        forces=torch.where(keep, point.forces, before.forces),
    )


def _arrays(point: PhasePoint, place: int) -> tuple[FloatArray, FloatArray]:
    return point.positions[place].cpu().numpy(), point.velocities[place].cpu().numpy()

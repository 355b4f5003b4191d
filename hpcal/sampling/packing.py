"""Walkers packed side by side into tensors, and taken out again.

A task always continues from packed walkers, whether they come from the store or shared the batch
with one that has just ended. So a trajectory does not depend on where it is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from hpcal.core import elements
from hpcal.core.arrays import BoolArray, FloatArray, IntArray
from hpcal.core.batch import Batch
from hpcal.core.units import BOLTZMANN
from hpcal.core.walker import Segment, Walker, WalkerEnd
from hpcal.sampling.integrators import PhasePoint
from hpcal.sampling.streams import Purpose, generator
from hpcal.sampling.velocities import maxwell_boltzmann


@dataclass(eq=False)
class Row:
    """What a task knows of one walker while it runs."""

    walker: Walker
    start_step: int
    end: WalkerEnd | None = None
    detail: str = ""
    last_trigger: float = float("nan")
    max_trigger: float | None = None
    bias_ratios: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, walker: Walker) -> Row:
        """A row at the start of a task."""
        return cls(walker=walker, start_step=walker.step)

    def saw(self, trigger: float) -> None:
        """Remembers a value of the trigger metric."""
        self.last_trigger = trigger
        if self.max_trigger is None or trigger > self.max_trigger:
            self.max_trigger = trigger

    def finish(self, end: WalkerEnd, detail: str) -> None:
        """Ends the walker; the first reason counts."""
        if self.end is None:
            self.end, self.detail = end, detail

    def segment(self) -> Segment:
        """What the task did with the walker."""
        return Segment(
            walker=self.walker,
            start_step=self.start_step,
            end=self.end,
            detail=self.detail,
            max_trigger=self.max_trigger,
            bias_ratio=float(np.mean(self.bias_ratios)) if self.bias_ratios else None,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Packed:
    """B walkers side by side, padded to N atoms.

    Attributes:
        rows: the walkers.
        batch: their structures for the driver, in its precision; positions at packing.
        positions: (B, N, 3) at packing, Å, float64.
        velocities: (B, N, 3) at packing, Å/fs, float64; zero at padding.
        masses: (B, N, 1) amu, 1 at padding.
        thermal_energy: (B, 1, 1) k_B T of each walker, eV.
        n_atoms: (B,) float64.
        steps_full: (B,) step at which each walker has reached its full time.
    """

    rows: tuple[Row, ...]
    batch: Batch
    positions: Tensor
    velocities: Tensor
    masses: Tensor
    thermal_energy: Tensor
    n_atoms: Tensor
    steps_full: IntArray

    @classmethod
    def of(cls, rows: Sequence[Row], device: torch.device, dtype: torch.dtype) -> Packed:
        """Packs walkers; those without velocities are given some from their own stream."""
        for row in rows:
            if row.walker.velocities is None:
                row.walker = _set_in_motion(row.walker)
        exact = Batch.of([row.walker.structure for row in rows], device=device, dtype=torch.float64)
        velocities = torch.zeros(exact.positions.shape, dtype=torch.float64)
        for place, row in enumerate(rows):
            velocities[place, : len(row.walker.structure)] = torch.tensor(row.walker.velocities)
        masses = torch.tensor(elements.MASSES)[exact.numbers.cpu()]
        masses = torch.where(exact.mask.cpu(), masses, 1.0)
        temperatures = torch.tensor([row.walker.temperature for row in rows], dtype=torch.float64)
        return cls(
            rows=tuple(rows),
            batch=replace(
                exact,
                positions=exact.positions.to(dtype),
                cell=None if exact.cell is None else exact.cell.to(dtype),
            ),
            positions=exact.positions,
            velocities=velocities.to(device),
            masses=masses[:, :, None].to(device),
            thermal_energy=(BOLTZMANN * temperatures)[:, None, None].to(device),
            n_atoms=exact.n_atoms.to(torch.float64),
            steps_full=np.array([row.walker.steps_full for row in rows], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def atoms(self) -> int:
        """Number of atoms in all."""
        return sum(len(row.walker.structure) for row in self.rows)

    @property
    def steps(self) -> IntArray:
        """(B,) steps of the walkers at packing."""
        return np.array([row.walker.step for row in self.rows], dtype=np.int64)

    @property
    def ended(self) -> BoolArray:
        """(B,) walkers that have ended."""
        return np.array([row.end is not None for row in self.rows])

    def at(self, positions: Tensor) -> Batch:
        """The batch for the driver at (B, N, 3) float64 positions."""
        return self.batch.at(positions.to(self.batch.positions.dtype))

    def unpack(self, point: PhasePoint, steps: IntArray) -> None:
        """Writes positions, velocities and steps back to the walkers."""
        positions = point.positions.cpu().numpy()
        velocities = point.velocities.cpu().numpy()
        for place, row in enumerate(self.rows):
            row.walker = moved(row.walker, positions[place], velocities[place], int(steps[place]))


def moved(walker: Walker, positions: FloatArray, velocities: FloatArray, step: int) -> Walker:
    """The walker at (N, 3) other positions and velocities, which may be padded, and another step."""
    size = len(walker.structure)
    return replace(
        walker,
        structure=walker.structure.with_positions(positions[:size]),
        velocities=np.array(velocities[:size]),
        step=step,
    )


def _set_in_motion(walker: Walker) -> Walker:
    rng = generator(walker.stream, Purpose.VELOCITIES)
    return replace(walker, velocities=maxwell_boltzmann(walker.structure, walker.temperature, rng))

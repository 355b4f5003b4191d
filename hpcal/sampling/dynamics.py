"""The one loop in which all dynamical samplers move their walkers.

An active batch of walkers advances together on the driver's device. A walker that ends leaves its
place to the next one in reserve. At the deadline all unfinished ones are returned with their state.

Forces are computed afresh whenever the walkers of the batch change, and at the start of a task,
and the batch is always the first unfinished walkers in the order given. So the same walkers end at
the same bits whether they run in one task or in several.

Positions and velocities are float64 also where the driver is float32: only what the driver is
given is rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, Protocol, TypeAlias

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from hpcal.core.arrays import BoolArray, IntArray
from hpcal.core.deadline import Deadline
from hpcal.core.errors import InputError
from hpcal.core.protocols import DifferentiablePotential, Potential, Scorer
from hpcal.core.settings import Drawn, Settings
from hpcal.core.units import FEMTOSECONDS_PER_PICOSECOND
from hpcal.core.walker import Candidate, SampleResult, Walker, WalkerEnd
from hpcal.sampling.bias import WalkerBias
from hpcal.sampling.guards import GuardSettings
from hpcal.sampling.integrators import ForceField, PhasePoint
from hpcal.sampling.packing import Packed, Row
from hpcal.sampling.recorder import Recorder, walker_time
from hpcal.sampling.streams import Noise
from hpcal.sampling.watch import Watch, finite, where_finite


class DynamicsSettings(Settings):
    """What all dynamical samplers share."""

    timestep_fs: float = Field(0.5, gt=0, description="time step, fs")
    time_ps: float = Field(2.0, gt=0, description="full time of a walker, ps")
    temperature_K: Drawn = Field(  # noqa: N815
        600.0,
        description="temperature of a walker, K, drawn at its birth: a number or "
        "{uniform: [low, high]}; for NVE that of its initial velocities",
    )
    stride: int = Field(10, ge=1, description="steps between looks at the uncertainty")
    burn_in: int = Field(
        20,
        ge=0,
        description="steps after a walker's birth without looking, as its frames are still "
        "near-duplicates of its start",
    )
    batch: int = Field(64, ge=1, description="walkers that advance together")
    guards: GuardSettings = Field(default_factory=GuardSettings, description="when a walker is broken")

    def steps_full(self) -> int:
        """Steps that a walker of full time makes."""
        return max(1, round(self.time_ps * FEMTOSECONDS_PER_PICOSECOND / self.timestep_fs))


class Motion(Protocol):
    """An integrator with its settings."""

    stochastic: ClassVar[bool]

    def step(self, at: PhasePoint, forces: ForceField, packed: Packed, noise: Tensor | None) -> PhasePoint:
        """One step of all walkers."""
        ...


Drive: TypeAlias = Callable[[IntArray, Tensor], Tensor]
"""(B, N, 3) float64 forces on walkers that have made (B,) steps, at (B, N, 3) positions."""
BiasOf: TypeAlias = Callable[[Sequence[Walker], torch.device], WalkerBias | None]
"""The bias of a batch of walkers, or None where none has one."""


def unbiased(walkers: Sequence[Walker], device: torch.device) -> WalkerBias | None:  # noqa: ARG001
    """No bias at all."""
    return None


def advance(
    walkers: Sequence[Walker],
    *,
    settings: DynamicsSettings,
    motion: Motion,
    driver: Potential,
    scorer: Scorer,
    deadline: Deadline,
    bias_of: BiasOf = unbiased,
) -> SampleResult:
    """Advances walkers until all have ended or the deadline has come.

    Args:
        walkers: the first ``settings.batch`` unfinished ones are active, the others reserve.
        deadline: asked before every step, with the number of steps made in this call.

    Returns:
        One segment for each walker in the order given, and the candidates in the order found.

    Raises:
        InputError: a bias on a driver that is not differentiable.
    """
    task = _Task(
        settings=settings, motion=motion, driver=driver, scorer=scorer, deadline=deadline, bias_of=bias_of
    )
    return task.run(walkers)


class _Task:
    """State of one call of :func:`advance`."""

    def __init__(
        self,
        *,
        settings: DynamicsSettings,
        motion: Motion,
        driver: Potential,
        scorer: Scorer,
        deadline: Deadline,
        bias_of: BiasOf,
    ) -> None:
        self._settings = settings
        self._motion = motion
        self._driver = driver
        self._scorer = scorer
        self._deadline = deadline
        self._bias_of = bias_of
        self._candidates: list[Candidate] = []
        self._steps_done = 0
        self._atom_steps = 0

    def run(self, walkers: Sequence[Walker]) -> SampleResult:
        rows = [Row.of(walker) for walker in walkers]
        for row in rows:
            self._end_at_full_time(row)
        unfinished = [row for row in rows if row.end is None]
        while unfinished and not self._deadline.expired(self._steps_done):
            self._run_batch(unfinished[: self._settings.batch])
            unfinished = [row for row in unfinished if row.end is None]
        return SampleResult(
            candidates=tuple(self._candidates),
            segments=tuple(row.segment() for row in rows),
            atom_steps=self._atom_steps,
        )

    def _run_batch(self, rows: Sequence[Row]) -> None:
        """Moves the rows until one of them ends or the deadline has come."""
        device = self._driver.device
        packed = Packed.of(rows, device, self._driver.dtype)
        bias = self._bias_of([row.walker for row in rows], device)
        recorder = self._recorder(packed, bias)
        watch = Watch.of(packed, self._settings.guards)
        noise = _noise(packed, device) if self._motion.stochastic else None
        steps = packed.steps
        drive = self._drive(packed, bias)
        point = PhasePoint(
            positions=packed.positions,
            velocities=packed.velocities,
            forces=drive(steps, packed.positions),
        )
        while True:
            before = point
            numbers = None if noise is None else noise.at(steps)
            steps = steps + 1
            point = self._motion.step(point, partial(drive, steps), packed, numbers)
            self._steps_done += 1
            due = recorder.due(steps)
            broken = watch.broken(point, steps, due.any)
            if due.any.any():
                self._candidates += recorder.look(point, steps, due.less(broken))
            ended = broken | (steps >= packed.steps_full) | packed.ended
            if ended.any():
                _settle_broken(packed, watch, point, broken)
                kept = finite(point)
                packed.unpack(where_finite(point, before), np.where(kept, steps, steps - 1))
                for row in rows:
                    self._end_at_full_time(row)
                return
            if self._deadline.expired(self._steps_done):
                packed.unpack(point, steps)
                return

    def _drive(self, packed: Packed, bias: WalkerBias | None) -> Drive:
        """What moves the walkers of a batch: the driver, with the bias where there is one."""
        driver, timestep_fs = self._driver, self._settings.timestep_fs

        def plain(steps: IntArray, positions: Tensor) -> Tensor:  # noqa: ARG001
            self._atom_steps += packed.atoms
            return driver.forces(packed.at(positions)).to(torch.float64)

        if bias is None:
            return plain
        if not isinstance(driver, DifferentiablePotential):
            raise InputError(f"a bias needs a differentiable driver, which {type(driver).__name__} is not")

        def biased(steps: IntArray, positions: Tensor) -> Tensor:
            self._atom_steps += packed.atoms
            time_fs = walker_time(steps, timestep_fs, positions.device)
            return driver.biased(packed.at(positions), bias, time_fs).forces.to(torch.float64)

        return biased

    def _recorder(self, packed: Packed, bias: WalkerBias | None) -> Recorder:
        return Recorder(
            packed=packed,
            scorer=self._scorer,
            driver=self._driver,
            bias=bias,
            stride=self._settings.stride,
            burn_in=self._settings.burn_in,
            timestep_fs=self._settings.timestep_fs,
            frames_at=tuple(
                frozenset(() if row.walker.offers_candidates else row.walker.frames_at) for row in packed.rows
            ),
        )

    def _end_at_full_time(self, row: Row) -> None:
        """Ends a walker that has reached its full time and did not end otherwise."""
        walker = row.walker
        if walker.step < walker.steps_full:
            return
        time_ps = walker.step * self._settings.timestep_fs / FEMTOSECONDS_PER_PICOSECOND
        seen = (
            ""
            if row.max_trigger is None
            else f"; largest uncertainty of its last segment {row.max_trigger:.4g}"
        )
        if walker.offers_candidates:
            threshold = self._scorer.threshold
            row.finish(
                WalkerEnd.QUIET,
                f"ran its {time_ps:.3f} ps without crossing the threshold of {threshold:.4g}{seen}",
            )
        else:
            row.finish(WalkerEnd.FULL_TIME, f"ran its {time_ps:.3f} ps{seen}")


def _settle_broken(packed: Packed, watch: Watch, point: PhasePoint, broken: BoolArray) -> None:
    for place in np.flatnonzero(broken):
        packed.rows[place].finish(*watch.reason(point, int(place)))


def _noise(packed: Packed, device: torch.device) -> Noise:
    return Noise(
        streams=[row.walker.stream for row in packed.rows],
        sizes=[len(row.walker.structure) for row in packed.rows],
        width=packed.positions.shape[1],
        device=device,
    )

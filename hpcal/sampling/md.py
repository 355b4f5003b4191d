"""Molecular dynamics: NVE and Langevin NVT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from hpcal.core.deadline import Deadline
from hpcal.core.protocols import Potential, Scorer
from hpcal.core.settings import Settings
from hpcal.core.walker import SampleResult, Walker
from hpcal.sampling.dynamics import DynamicsSettings, advance
from hpcal.sampling.integrators import ForceField, PhasePoint, baoab, velocity_verlet
from hpcal.sampling.packing import Packed


@dataclass(frozen=True, kw_only=True)
class VerletMotion:
    """Velocity Verlet."""

    timestep_fs: float
    stochastic: ClassVar[bool] = False

    def step(
        self,
        at: PhasePoint,
        forces: ForceField,
        packed: Packed,
        noise: Tensor | None,  # noqa: ARG002
    ) -> PhasePoint:
        """One step of all walkers; there is no noise."""
        return velocity_verlet(at, forces, masses=packed.masses, timestep_fs=self.timestep_fs)


@dataclass(frozen=True, kw_only=True)
class LangevinMotion:
    """Langevin dynamics by BAOAB, each walker at its own temperature."""

    timestep_fs: float
    friction_per_fs: float
    stochastic: ClassVar[bool] = True

    def step(self, at: PhasePoint, forces: ForceField, packed: Packed, noise: Tensor | None) -> PhasePoint:
        """One step of all walkers."""
        if noise is None:
            raise ValueError("Langevin dynamics needs noise")
        return baoab(
            at,
            forces,
            masses=packed.masses,
            thermal_energy=packed.thermal_energy,
            noise=noise,
            timestep_fs=self.timestep_fs,
            friction_per_fs=self.friction_per_fs,
        )


class NVE:
    """Constant energy. A walker keeps the ensemble it was born under: another has another energy."""

    Settings: ClassVar[type[Settings]] = DynamicsSettings
    stage: ClassVar[Literal["sampling"]] = "sampling"
    requires: ClassVar[frozenset[str]] = frozenset()
    pins_ensemble: ClassVar[bool] = True

    def __init__(self, settings: DynamicsSettings) -> None:
        self.settings = settings

    def steps_full(self) -> int:
        """Steps after which a walker has reached its full time."""
        return self.settings.steps_full()

    def sample(
        self,
        walkers: Sequence[Walker],
        driver: Potential,
        scorer: Scorer,
        deadline: Deadline,
        rng: np.random.Generator,  # noqa: ARG002 - every walker has a stream of its own
    ) -> SampleResult:
        """Advances the walkers until the deadline."""
        return advance(
            walkers,
            settings=self.settings,
            motion=VerletMotion(timestep_fs=self.settings.timestep_fs),
            driver=driver,
            scorer=scorer,
            deadline=deadline,
        )


class LangevinSettings(DynamicsSettings):
    """Settings of Langevin dynamics."""

    friction_per_fs: float = Field(0.02, ge=0, description="friction γ of the thermostat, 1/fs")

    def motion(self) -> LangevinMotion:
        """The integrator of these settings."""
        return LangevinMotion(timestep_fs=self.timestep_fs, friction_per_fs=self.friction_per_fs)


class Langevin:
    """Constant temperature by Langevin dynamics; takes the newest ensemble at task boundaries."""

    Settings: ClassVar[type[Settings]] = LangevinSettings
    stage: ClassVar[Literal["sampling"]] = "sampling"
    requires: ClassVar[frozenset[str]] = frozenset()
    pins_ensemble: ClassVar[bool] = False

    def __init__(self, settings: LangevinSettings) -> None:
        self.settings = settings

    def steps_full(self) -> int:
        """Steps after which a walker has reached its full time."""
        return self.settings.steps_full()

    def sample(
        self,
        walkers: Sequence[Walker],
        driver: Potential,
        scorer: Scorer,
        deadline: Deadline,
        rng: np.random.Generator,  # noqa: ARG002 - every walker has a stream of its own
    ) -> SampleResult:
        """Advances the walkers until the deadline."""
        return advance(
            walkers,
            settings=self.settings,
            motion=self.settings.motion(),
            driver=driver,
            scorer=scorer,
            deadline=deadline,
        )

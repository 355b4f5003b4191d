"""Random displacement of all atoms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from hpcal.core.protocols import ForceFunction
from hpcal.core.settings import Settings
from hpcal.core.structure import Structure
from hpcal.sampling.overlap import draw_without_overlap


class RandomDisplacementSettings(Settings):
    """Settings of random displacement."""

    amplitude_A: float = Field(0.05, gt=0, description="standard deviation of each Cartesian coordinate, Å")  # noqa: N815
    min_distance_factor: float = Field(
        0.6,
        ge=0,
        description="structures with atoms closer than this times the sum of their covalent radii "
        "are drawn again",
    )


class RandomDisplacement:
    """Every coordinate displaced by a normal number of the same spread."""

    Settings: ClassVar[type[Settings]] = RandomDisplacementSettings
    stage: ClassVar[Literal["bootstrap"]] = "bootstrap"
    needs_minimum: ClassVar[bool] = False

    def __init__(self, settings: RandomDisplacementSettings) -> None:
        self.settings = settings

    def generate(
        self,
        seed: Structure,
        count: int,
        forces: ForceFunction,  # noqa: ARG002 - no energies are needed
        rng: np.random.Generator,
    ) -> Sequence[Structure]:
        """``count`` displaced structures.

        Raises:
            TaskFailure: of class ``physics``, if every draw has overlapping atoms.
        """

        def draw() -> Structure:
            shift = self.settings.amplitude_A * rng.standard_normal(seed.positions.shape)
            return seed.with_positions(seed.positions + shift)

        factor = self.settings.min_distance_factor
        return [draw_without_overlap(draw, factor, "lower amplitude_A") for _ in range(count)]

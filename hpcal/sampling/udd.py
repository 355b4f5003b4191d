"""Uncertainty-driven dynamics: Langevin dynamics pushed to where the ensemble disagrees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from hpcal.core.deadline import Deadline
from hpcal.core.errors import InputError
from hpcal.core.protocols import Potential, Scorer
from hpcal.core.settings import Settings
from hpcal.core.walker import SampleResult, Walker
from hpcal.sampling.bias import VarianceBias
from hpcal.sampling.dynamics import advance, unbiased
from hpcal.sampling.md import LangevinSettings
from hpcal.sampling.streams import Purpose, generator

BIAS_WIDTH = "bias_width"
"""Key of ``Walker.state``: B for this walker, eV per square root of the number of atoms."""


class UDDSettings(LangevinSettings):
    """Settings of uncertainty-driven dynamics."""

    strength_eV: float = Field(  # noqa: N815
        1.0, ge=0, description="A: depth of the bias, eV; 0 is plain Langevin dynamics"
    )
    width_eV_per_sqrt_atom: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(  # noqa: N815
        "auto",
        description="B: energy standard deviation per square root of the number of atoms at which "
        "the bias has reached 1 − 1/e of its depth, eV; auto: from the calibrated threshold",
    )
    delay_fs: float = Field(50.0, ge=0, description="time of a walker before the bias begins, fs")
    ramp_fs: float = Field(50.0, ge=0, description="time over which the bias is then turned on, fs")
    unbiased_share: float = Field(0.2, ge=0, le=1, description="share of the walkers that run without bias")


class UDD:
    """Langevin dynamics on ⟨E⟩ + A [exp(−ρ²/B²) − 1], see :class:`~hpcal.sampling.bias.VarianceBias`.

    The bias finds stretched bonds within 10–20 fs unless it is delayed; a share of the walkers
    runs without it, so that the thermal region is represented too.
    """

    Settings: ClassVar[type[Settings]] = UDDSettings
    stage: ClassVar[Literal["sampling"]] = "sampling"
    requires: ClassVar[frozenset[str]] = frozenset({"differentiable"})
    pins_ensemble: ClassVar[bool] = False

    def __init__(self, settings: UDDSettings) -> None:
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
        """Advances the walkers until the deadline.

        Raises:
            InputError: a driver that is not differentiable or has one member only, or a walker
                without a bias width where the settings leave it to the campaign.
        """
        no_bias = self.settings.strength_eV == 0.0
        if not no_bias:
            _check_driver(driver)
        return advance(
            walkers,
            settings=self.settings,
            motion=self.settings.motion(),
            driver=driver,
            scorer=scorer,
            deadline=deadline,
            bias_of=unbiased if no_bias else self.bias,
        )

    def bias(self, walkers: Sequence[Walker], device: torch.device) -> VarianceBias:
        """The bias of a batch of walkers. Raises InputError as :meth:`sample`."""
        share = [float(self.is_biased(walker)) for walker in walkers]
        width = [self._width(walker) for walker in walkers]
        return VarianceBias(
            strength=self.settings.strength_eV,
            width=torch.tensor(width, dtype=torch.float64, device=device),
            share=torch.tensor(share, dtype=torch.float64, device=device),
            delay_fs=self.settings.delay_fs,
            ramp_fs=self.settings.ramp_fs,
        )

    def is_biased(self, walker: Walker) -> bool:
        """Whether a walker is one of those that run with bias; its stream alone decides."""
        drawn = generator(walker.stream, Purpose.BIAS).uniform()
        return bool(drawn >= self.settings.unbiased_share)

    def _width(self, walker: Walker) -> float:
        stated = self.settings.width_eV_per_sqrt_atom
        width = walker.state.get(BIAS_WIDTH) if stated == "auto" else stated
        if not isinstance(width, float | int) or not width > 0:
            raise InputError(
                f"walker {walker.id} has no bias width (state[{BIAS_WIDTH!r}] is {width!r}): with "
                "`width_eV_per_sqrt_atom: auto` it comes from the calibration of the threshold; state "
                "a number, such as 0.01, where there is none"
            )
        return float(width)


def _check_driver(driver: Potential) -> None:
    if not driver.capabilities().differentiable or not hasattr(driver, "biased"):
        raise InputError(
            "uncertainty-driven dynamics needs a differentiable driver, which "
            f"{type(driver).__name__} is not; use sampler langevin, or drive with the ensemble"
        )
    if driver.n_members < 2:
        raise InputError(
            "uncertainty-driven dynamics needs an ensemble: the driver has one member, whose energy "
            "has no variance; set `members` to 2 or more, or use sampler langevin"
        )

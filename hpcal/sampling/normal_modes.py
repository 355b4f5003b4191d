"""Normal mode sampling: structures around a minimum, displaced along its vibrations."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from hpcal.core.arrays import FloatArray
from hpcal.core.errors import FailureClass, TaskFailure
from hpcal.core.protocols import ForceFunction
from hpcal.core.settings import Settings
from hpcal.core.structure import Structure
from hpcal.core.units import BOLTZMANN
from hpcal.sampling.hessian import Modes, curvature, hessian, normal_modes
from hpcal.sampling.overlap import draw_without_overlap


class NormalModesSettings(Settings):
    """Settings of normal mode sampling."""

    temperature_K: float = Field(600.0, gt=0, description="temperature T, K")  # noqa: N815
    min_wavenumber_per_cm: float = Field(
        200.0,
        ge=0,
        description="softer modes are displaced as if they had this wavenumber, cm⁻¹; 0: as they are",
    )
    thermal: bool = Field(
        False, description="draw each mode from its Boltzmann distribution instead of bounding the energy"
    )
    max_imaginary_per_cm: float = Field(
        100.0,
        ge=0,
        description="seeds with a larger imaginary wavenumber, cm⁻¹, are refused as no minimum; "
        "smaller imaginary modes are left out",
    )
    hessian_step_A: float = Field(0.01, gt=0, description="step of the finite differences, Å")  # noqa: N815
    min_distance_factor: float = Field(
        0.6,
        ge=0,
        description="structures with atoms closer than this times the sum of their covalent radii "
        "are drawn again",
    )


class NormalModes:
    """Normal mode sampling as in ANI-1, and a thermal variant.

    For modes i with force constants K_i and directions q_i (normalised in Å), N_a atoms and
    random c_i with Σ c_i in [0, 1]::

        R_i = ± sqrt(3 c_i N_a k_B T / K_i),   x = x_min + Σ_i R_i q_i

    so that the harmonic energy ½ Σ K_i R_i² is (3/2) N_a k_B T Σ c_i: bounded by the classical
    kinetic energy of the molecule, and no Boltzmann distribution. The sum is uniform in [0, 1] and
    its shares are uniform on the simplex. The thermal variant draws each mode from its classical
    Boltzmann distribution, R_i ~ N(0, k_B T / K_i).

    Modes below the floor are displaced as if they were at the floor, so they hold less energy than
    the formula says: harmonic soft modes go far along straight lines, where torsions are not.
    Imaginary modes are left out.

    Source: Smith, Isayev and Roitberg, Chem. Sci. 2017, 10.1039/C6SC05720A.
    """

    Settings: ClassVar[type[Settings]] = NormalModesSettings
    stage: ClassVar[Literal["bootstrap"]] = "bootstrap"
    needs_minimum: ClassVar[bool] = True

    def __init__(self, settings: NormalModesSettings) -> None:
        self.settings = settings

    def generate(
        self, seed: Structure, count: int, forces: ForceFunction, rng: np.random.Generator
    ) -> Sequence[Structure]:
        """``count`` structures around a minimum, for 6N gradients in all.

        Raises:
            TaskFailure: of class ``physics``: the seed is no minimum, has no vibrations, or every
                draw has overlapping atoms.
        """
        if len(seed) < 2:
            raise TaskFailure(
                FailureClass.PHYSICS,
                f"{seed.formula} is a single atom and has no normal modes; leave it out of the bootstrap",
            )
        modes = normal_modes(seed, hessian(seed, forces, self.settings.hessian_step_A))
        modes = self.usable(seed, modes)
        draw = partial(self.displaced, seed, modes, rng)
        factor = self.settings.min_distance_factor
        return [draw_without_overlap(draw, factor, "lower temperature_K") for _ in range(count)]

    def usable(self, seed: Structure, modes: Modes) -> Modes:
        """The real modes of a seed that is a minimum. Raises TaskFailure if it is none."""
        lowest = float(modes.wavenumbers[0])
        if lowest < -self.settings.max_imaginary_per_cm:
            raise TaskFailure(
                FailureClass.PHYSICS,
                f"{seed.formula} is no minimum: its Hessian has an imaginary wavenumber of "
                f"{-lowest:.0f}i cm⁻¹, more than {self.settings.max_imaginary_per_cm:g}i; relax it with a "
                "tighter criterion, or begin from another geometry",
            )
        real = modes.curvatures > 0.0
        if not real.any():
            raise TaskFailure(
                FailureClass.PHYSICS, f"{seed.formula} has no real vibration to displace it along"
            )
        return Modes(curvatures=modes.curvatures[real], directions=modes.directions[real])

    def displaced(self, seed: Structure, modes: Modes, rng: np.random.Generator) -> Structure:
        """One structure displaced along all modes."""
        coordinates = self._amplitudes(len(seed), modes, rng)
        return seed.with_positions(seed.positions + np.einsum("m,mij->ij", coordinates, modes.directions))

    def _amplitudes(self, n_atoms: int, modes: Modes, rng: np.random.Generator) -> FloatArray:
        """(n,) mass-weighted coordinates, Å amu^½; λ Q² = K R² for each mode."""
        thermal_energy = BOLTZMANN * self.settings.temperature_K
        stiffness = np.maximum(modes.curvatures, curvature(self.settings.min_wavenumber_per_cm))
        if self.settings.thermal:
            return np.sqrt(thermal_energy / stiffness) * rng.standard_normal(len(stiffness))
        shares = rng.uniform() * rng.dirichlet(np.ones(len(stiffness)))
        signs = rng.choice((-1.0, 1.0), size=len(stiffness))
        return np.asarray(signs * np.sqrt(3.0 * shares * n_atoms * thermal_energy / stiffness))

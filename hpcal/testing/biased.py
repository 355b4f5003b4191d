"""What a potential promises that says it is differentiable: mean plus bias in one evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, cast

import numpy as np
import torch
from torch import Tensor

from hpcal.core.arrays import FloatArray
from hpcal.core.batch import Batch
from hpcal.core.protocols import Bias, Biased, BiasInput, DifferentiablePotential, Potential
from hpcal.testing import batches, geometry
from hpcal.testing.conformance import Subject
from hpcal.testing.potentials import Tolerances

STIFFNESS: Final = 0.7
"""eV/Å², of the harmonic bias."""


def check_biased(
    subject: Subject, potential: Potential, batch: Batch, limits: Tolerances, rng: np.random.Generator
) -> None:
    """Checks ``biased`` without a bias, with one in the members' variance, and with one in positions.

    Raises:
        ConformanceError: the first promise that is broken.
    """
    check = _BiasedCheck(
        subject=subject, potential=cast(DifferentiablePotential, potential), batch=batch, limits=limits
    )
    check.without()
    check.variance(rng)
    check.harmonic()


@dataclass(frozen=True, kw_only=True)
class GaussianOfVariance:
    """E = A [exp(−ρ²/B²) − 1] with ρ² = (1/N) (1/M) Σ_m (E_m − ⟨E⟩)².

    Attributes:
        height: A, eV.
        width: B, eV per square root of the number of atoms.
        seen: what it was given, one entry a call.
    """

    height: float
    width: float
    seen: list[BiasInput] = field(default_factory=list)

    def energy(self, at: BiasInput) -> Tensor:
        """(B,) eV."""
        self.seen.append(at)
        deviation = at.energies - at.energies.mean(dim=0)
        rho_squared = deviation.square().mean(dim=0) / at.n_atoms
        return self.height * torch.expm1(-rho_squared / self.width**2)


class Harmonic:
    """E = ½ k Σ_i |x_i|² over the atoms of each structure."""

    def energy(self, at: BiasInput) -> Tensor:
        """(B,) eV."""
        squared = at.batch.positions.square().sum(dim=2) * at.batch.mask
        return 0.5 * STIFFNESS * squared.sum(dim=1).double()


@dataclass(frozen=True, kw_only=True)
class _BiasedCheck:
    subject: Subject
    potential: DifferentiablePotential
    batch: Batch
    limits: Tolerances

    def _biased(self, bias: Bias | None, batch: Batch | None = None) -> Biased:
        batch = self.batch if batch is None else batch
        time_fs = torch.arange(len(batch), dtype=torch.float64, device=self.potential.device)
        found = self.potential.biased(batch, bias, time_fs)
        tensors = (found.energies, found.bias, found.forces)
        self.subject.promises(
            "biased() gives detached tensors", not any(t.requires_grad for t in tensors), "one requires_grad"
        )
        return found

    def without(self) -> None:
        """Without a bias it is the mean."""
        found, expected = self._biased(None), batches.array(self.potential.energies(self.batch))
        agrees, limits = self.subject.agrees, self.limits
        agrees(
            "biased() gives the energies of all members",
            batches.array(found.energies),
            expected,
            within=limits.energy,
            unit="eV",
        )
        agrees(
            "without a bias, forces of biased() are forces()",
            batches.array(found.forces),
            batches.array(self.potential.forces(self.batch)),
            within=limits.force,
            unit="eV/Å",
        )
        agrees(
            "without a bias, its energy is zero",
            batches.array(found.bias),
            np.zeros(len(self.batch)),
            within=0.0,
            unit="eV",
        )

    def variance(self, rng: np.random.Generator) -> None:
        """With a bias in the members' energies, forces are minus the slope of mean plus bias."""
        energies = batches.array(self.potential.energies(self.batch))
        sizes = batches.array(self.batch.n_atoms)
        deviation = energies - energies.mean(axis=0)
        rho_squared = (deviation**2).mean(axis=0) / sizes
        # A width of the size of the disagreement puts the Gaussian where it is steep.
        width = float(np.sqrt(rho_squared.mean())) or 1.0
        bias = GaussianOfVariance(height=0.5, width=width)
        found = self._biased(bias)
        self._given(bias, deviation)
        self.subject.agrees(
            "the bias energy of biased() is that of the bias",
            batches.array(found.bias),
            0.5 * np.expm1(-rho_squared / width**2),
            within=self.limits.energy,
            unit="eV",
        )
        shape = batches.array(self.batch.positions).shape
        for row in range(len(self.batch)):
            direction = np.zeros(shape)
            n = int(sizes[row])
            direction[row, :n] = geometry.unit_directions(1, n, rng)[0]
            self._follows(bias, found, direction, row)

    def _given(self, bias: GaussianOfVariance, deviation: FloatArray) -> None:
        """A bias is called once, and sees energies, sizes and times of its structures."""
        promises, count = self.subject.promises, len(self.batch)
        promises("a bias is evaluated once", len(bias.seen) == 1, f"{len(bias.seen)} evaluations")
        at = bias.seen[0]
        promises(
            "n_atoms of a bias is floating point",
            at.n_atoms.is_floating_point() and at.n_atoms.tolist() == self.batch.n_atoms.tolist(),
            f"{at.n_atoms}",
        )
        promises(
            "a bias gets the times that biased() was given",
            at.time_fs.tolist() == list(range(count)),
            f"{at.time_fs.tolist()}",
        )
        shown = batches.array(at.energies)
        self.subject.agrees(
            "a bias sees member energies less a constant that the members share",
            shown - shown.mean(axis=0),
            deviation,
            within=self.limits.energy,
            unit="eV",
        )

    def _follows(self, bias: Bias, found: Biased, direction: FloatArray, row: int) -> None:
        step = self.limits.step
        shift = torch.as_tensor(direction, device=self.potential.device, dtype=self.potential.dtype)
        totals = []
        for sign in (1.0, -1.0):
            there = self._biased(bias, self.batch.at(self.batch.positions + sign * step * shift))
            totals.append(batches.array(there.energies).mean(axis=0) + batches.array(there.bias))
        slope = (totals[0] - totals[1])[row] / (2 * step)
        self.subject.agrees(
            "with a Gaussian of the variance as bias, forces are minus the gradient of mean plus bias "
            f"(central differences of {step:g} Å)",
            float((batches.array(found.forces) * direction).sum()),
            -slope,
            within=self.limits.difference,
            unit="eV/Å",
        )

    def harmonic(self) -> None:
        """With a bias in positions, its force is added; nothing is at padding."""
        found = batches.array(self._biased(Harmonic()).forces)
        positions = batches.array(self.batch.positions) * batches.array(self.batch.mask)[:, :, None]
        self.subject.agrees(
            "a bias is differentiable in positions: a harmonic one adds −k x",
            found,
            batches.array(self.potential.forces(self.batch)) - STIFFNESS * positions,
            within=self.limits.force,
            unit="eV/Å",
        )

"""What every potential promises, see ``hpcal.core.protocols.Potential``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import numpy as np
import torch
from torch import Tensor

from hpcal.core.arrays import FloatArray, IntArray
from hpcal.core.batch import Batch
from hpcal.core.elements import MAX_ATOMIC_NUMBER, symbol
from hpcal.core.errors import HpcalError
from hpcal.core.protocols import Capabilities, Potential
from hpcal.core.structure import Structure
from hpcal.testing import batches, geometry
from hpcal.testing.conformance import Subject
from hpcal.testing.metrics import QUANTITIES

COPIES: Final = 9
"""Copies of one structure in a batch, as potentials may take another path for many of a kind."""


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """How closely a potential in float64 has to keep its promises.

    Attributes:
        energy: eV, of rounding.
        force: eV/Å, of rounding.
        stress: eV/Å³, of rounding and of central differences.
        features: of rounding, in units of the descriptor.
        difference: eV/Å, of central differences.
        step: of central differences, Å; of the strain without unit.
    """

    energy: float = 1e-8
    force: float = 1e-8
    stress: float = 1e-6
    features: float = 1e-8
    difference: float = 1e-5
    step: float = 1e-4


def check_potential(
    potential: Potential,
    structures: Sequence[Structure],
    *,
    tolerances: Tolerances | None = None,
    seed: int = 0,
    name: str | None = None,
) -> None:
    """Checks the promises of a potential that is loaded in float64.

    Energies (M, B) in float64; forces are the mean of the members' and minus the gradient of the
    mean energy; neither padding, companions in the batch, what was asked before, translation,
    rotation nor the order of the atoms matters; features are finite and zero at padding; unknown
    elements are refused; states of one geometry have energies of their own if it is charge_aware, and
    one energy if not; where it says so, stress and crystals, and the biased evaluation.

    Args:
        potential: one or more members, in float64.
        structures: two or more structures of its elements, of small molecules or crystals; among
            them one geometry in several charges or multiplicities, to have ``charge_aware`` checked.
        tolerances: the defaults if None.
        seed: of directions and rotations.
        name: how messages call it; by default its class.

    Raises:
        ConformanceError: the first promise that is broken.
    """
    from hpcal.testing.biased import check_biased
    from hpcal.testing.crystals import check_crystals
    from hpcal.testing.states import check_states

    if len(structures) < 2 or potential.dtype != torch.float64:
        raise ValueError("check_potential needs two or more structures and a potential in float64")
    subject = Subject(name=name or f"potential {type(potential).__qualname__}")
    limits = Tolerances() if tolerances is None else tolerances
    check = _PotentialCheck(subject=subject, potential=potential, tolerances=limits)
    rng = np.random.default_rng(seed)
    capabilities = check.capabilities(structures)
    batch = check.batch(structures)
    values = check.evaluated(batch)
    check.shapes(batch, values)
    check.history(batch, values)
    check.padding(batch, values)
    check.companions(batch, values)
    check.motion(batch, values, rng)
    check.differences(structures, values, rng)
    check_states(subject, potential, structures, limits)
    if capabilities.periodic:
        check_crystals(subject, potential, structures, limits)
    if capabilities.differentiable:
        check_biased(subject, potential, batch, limits, rng)


@dataclass(frozen=True, kw_only=True, eq=False)
class Values:
    """All that a potential says of a batch; None for what it does not provide."""

    energies: FloatArray
    forces: FloatArray
    member_forces: FloatArray | None
    features: FloatArray | None

    def rows(self, index: Sequence[int]) -> Values:
        """Of some structures."""
        return Values(
            energies=self.energies[:, index],
            forces=self.forces[index],
            member_forces=None if self.member_forces is None else self.member_forces[:, index],
            features=None if self.features is None else self.features[index],
        )

    def places(self, index: IntArray) -> Values:
        """Of (B, K) places of the atoms of each structure."""
        rows = np.arange(len(index))[:, None]
        return Values(
            energies=self.energies,
            forces=self.forces[rows, index],
            member_forces=None if self.member_forces is None else self.member_forces[:, rows, index],
            features=None if self.features is None else self.features[rows, index],
        )

    def turned(self, rotation: FloatArray) -> Values:
        """As a rotation of the structures turns them."""
        members = None if self.member_forces is None else self.member_forces @ rotation
        return replace(self, forces=self.forces @ rotation, member_forces=members)


@dataclass(frozen=True, kw_only=True)
class _PotentialCheck:
    subject: Subject
    potential: Potential
    tolerances: Tolerances

    def batch(self, structures: Sequence[Structure]) -> Batch:
        return Batch.of(structures, device=self.potential.device, dtype=self.potential.dtype)

    def capabilities(self, structures: Sequence[Structure]) -> Capabilities:
        """What it says that it can do fits what it is given, and other elements are refused."""
        found = self.potential.capabilities()
        promises = self.subject.promises
        promises("capabilities() gives Capabilities", isinstance(found, Capabilities), repr(found))
        promises(
            f"it provides some of {', '.join(sorted(QUANTITIES))}",
            found.provides <= QUANTITIES,
            f"{', '.join(sorted(found.provides))}",
        )
        promises(
            "a differentiable potential has biased()",
            not found.differentiable or callable(getattr(self.potential, "biased", None)),
            "differentiable without biased()",
        )
        promises("it has one member or more", self.potential.n_members >= 1, str(self.potential.n_members))
        present = {int(z) for s in structures for z in s.numbers}
        if found.elements is not None:
            promises(
                "its elements hold all that it was trained on",
                present <= found.elements,
                f"{_names(present - found.elements)} missing from {_names(set(found.elements))}",
            )
            self._refuses(structures[0], set(range(1, MAX_ATOMIC_NUMBER + 1)) - found.elements)
        return found

    def _refuses(self, structure: Structure, others: set[int]) -> None:
        if not others:
            return
        numbers = structure.numbers.copy()
        numbers[-1] = max(others)
        strange = self.batch([replace(structure, numbers=numbers)])
        for what in (self.potential.energies, self.potential.forces):
            self.subject.refuses(
                f"{what.__name__}() refuses {symbol(max(others))}, which is not among its elements",
                partial(what, strange),
                HpcalError,
            )

    def evaluated(self, batch: Batch) -> Values:
        """All that it provides; the batch is not written to, nor are gradients left."""
        provides, before = self.potential.capabilities().provides, batch.positions.clone()
        energies, forces = self.potential.energies(batch), self.potential.forces(batch)
        members = self.potential.member_forces(batch) if "member_forces" in provides else None
        features = self.potential.features(batch) if "features" in provides else None
        given = [t for t in (energies, forces, members, features) if t is not None]
        promises = self.subject.promises
        promises("energies are float64", energies.dtype == torch.float64, str(energies.dtype))
        promises("results carry no gradients", not any(t.requires_grad for t in given), "one requires_grad")
        promises(
            "a batch is not written to",
            torch.equal(before, batch.positions) and not batch.positions.requires_grad,
            "its positions have changed, or require gradients",
        )
        return Values(
            energies=batches.array(energies),
            forces=batches.array(forces),
            member_forces=None if members is None else batches.array(members),
            features=None if features is None else batches.array(features),
        )

    def shapes(self, batch: Batch, values: Values) -> None:
        """Shapes, finite numbers, zeros at padding, and the mean of members."""
        members, (count, width) = self.potential.n_members, batch.numbers.shape
        shapes = {
            "energies": (members, count),
            "forces": (count, width, 3),
            "member_forces": (members, count, width, 3),
        }
        padding = ~batch.mask.cpu().numpy()
        promises = self.subject.promises
        for name in ("energies", "forces", "member_forces", "features"):
            found: FloatArray | None = getattr(values, name)
            if found is None:
                continue
            expected = shapes.get(name, (count, width, found.shape[-1]))
            promises(f"{name}() has shape {expected}", found.shape == expected, f"{found.shape}")
            promises(f"{name}() is finite", bool(np.isfinite(found).all()), "a number that is not finite")
            if name != "energies":
                at_padding = np.abs(found[..., padding, :])
                largest = float(at_padding.max()) if at_padding.size else 0.0
                promises(f"{name}() is zero at padding", largest == 0.0, f"{largest:.3g}; tolerance 0")
        if values.member_forces is not None:
            self.subject.agrees(
                "forces() is the mean of member_forces()",
                values.forces,
                values.member_forces.mean(axis=0),
                within=self.tolerances.force,
                unit="eV/Å",
            )

    def same(self, promise: str, found: Values, expected: Values) -> None:
        """Two evaluations agree within rounding."""
        limits = self.tolerances
        for name, within, unit in (
            ("energies", limits.energy, "eV"),
            ("forces", limits.force, "eV/Å"),
            ("member_forces", limits.force, "eV/Å"),
            ("features", limits.features, ""),
        ):
            a, b = getattr(found, name), getattr(expected, name)
            if a is not None and b is not None:
                self.subject.agrees(f"{promise} ({name})", a, b, within=within, unit=unit)

    def history(self, batch: Batch, values: Values) -> None:
        """The same bits whatever was asked in between."""
        self.evaluated(batch.rows(torch.tensor([len(batch) - 1, 0])))
        again = self.evaluated(replace(batch, positions=batch.positions.clone()))
        for name in ("energies", "forces", "member_forces", "features"):
            a, b = getattr(again, name), getattr(values, name)
            if a is not None:
                self.subject.repeats(
                    f"{name}() of a batch is the same whatever was asked before",
                    a.tobytes(),
                    b.tobytes(),
                    f"off by {np.abs(a - b).max():.3g}",
                )

    def padding(self, batch: Batch, values: Values) -> None:
        """More padding changes nothing, wherever its places are."""
        places = np.tile(np.arange(batch.numbers.shape[1]), (len(batch), 1))
        wider = self.evaluated(batches.padded(batch, 2))
        self.shapes(batches.padded(batch, 2), wider)
        self.same("padding does not matter", wider.places(places), values)

    def companions(self, batch: Batch, values: Values) -> None:
        """Neither the other structures of a batch nor their order count."""
        backwards = list(range(len(batch)))[::-1]
        self.same(
            "the order of a batch does not matter",
            self.evaluated(batch.rows(torch.tensor(backwards))),
            values.rows(backwards),
        )
        for row in range(len(batch)):
            alone = self.evaluated(batch.rows(torch.tensor([row])))
            self.same("a structure does not depend on its companions in the batch", alone, values.rows([row]))
        copies = self.evaluated(batch.rows(torch.zeros(COPIES, dtype=torch.int64)))
        self.same(f"each of {COPIES} copies is as the structure alone", copies, values.rows([0] * COPIES))

    def motion(self, batch: Batch, values: Values, rng: np.random.Generator) -> None:
        """Translation, rotation, and the order of the atoms."""
        rotation, (turned_round, order) = geometry.random_rotation(rng), batches.backwards(batch)
        moved = self.evaluated(batches.translated(batch, rng.uniform(-2, 2, 3)))
        self.same("translation does not matter", moved, values)
        turned = self.evaluated(batches.rotated(batch, rotation))
        self.same(
            "forces turn with a rotation, energies and features do not", turned, values.turned(rotation)
        )
        self.same(
            "the order of the atoms does not matter", self.evaluated(turned_round), values.places(order)
        )

    def differences(self, structures: Sequence[Structure], values: Values, rng: np.random.Generator) -> None:
        """Forces are minus the slope of the energies: the mean's, and each member's."""
        step = self.tolerances.step
        for row, structure in enumerate(structures):
            (direction,) = geometry.unit_directions(1, len(structure), rng)
            ends = [
                structure.with_positions(structure.positions + sign * step * direction) for sign in (1, -1)
            ]
            ahead, behind = batches.array(self.potential.energies(self.batch(ends))).T
            slopes = (ahead - behind) / (2 * step)
            n = len(structure)
            self._is_slope("forces()", (values.forces[row, :n] * direction).sum(), slopes.mean())
            if values.member_forces is not None:
                own = (values.member_forces[:, row, :n] * direction).sum(axis=(1, 2))
                self._is_slope("member_forces()", own, slopes)

    def _is_slope(self, name: str, found: FloatArray, slopes: FloatArray) -> None:
        energies = "mean energy" if name == "forces()" else "energy of each member"
        self.subject.agrees(
            f"{name} is minus the gradient of the {energies} (central differences of "
            f"{self.tolerances.step:g} Å)",
            found,
            -slopes,
            within=self.tolerances.difference,
            unit="eV/Å",
        )


def mean_energy(potential: Potential, structure: Structure) -> float:
    """Mean energy of the members, eV."""
    batch = Batch.of([structure], device=potential.device, dtype=potential.dtype)
    energies: Tensor = potential.energies(batch)
    return float(energies[:, 0].mean())


def _names(numbers: set[int]) -> str:
    return ", ".join(symbol(z) for z in sorted(numbers)) or "none"

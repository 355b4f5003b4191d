"""What every metric promises, see ``hpcal.core.protocols.Metric``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from hpcal.core.arrays import FloatArray
from hpcal.core.batch import Batch
from hpcal.core.plugins import Group, find
from hpcal.core.protocols import Capabilities, Metric, Potential
from hpcal.testing import batches
from hpcal.testing.conformance import Subject
from hpcal.testing.geometry import random_rotation
from hpcal.testing.parts import subject_of

QUANTITIES: Final = frozenset({"energies", "member_forces", "features"})
OF_MEMBERS: Final = frozenset({"energies", "member_forces"})
"""Quantities by which members can disagree."""


def check_metric(
    metric: Metric | type | str,
    potential: Potential,
    batch: Batch,
    *,
    tolerance: float = 1e-8,
    seed: int = 0,
) -> None:
    """Checks the promises of a metric.

    One finite number of at least zero for each structure, which depends neither on the other
    structures of the batch nor on padding, position, orientation or the order of members; zero
    where all members are the same, and not zero everywhere where they disagree; no other quantities
    of the potential than it says; a unit and a floor.

    Args:
        metric: a short name, a class that takes no arguments, or a metric.
        potential: an ensemble in float64 whose members disagree.
        batch: at least two structures, best of different sizes, in the potential's precision.
        tolerance: in the metric's unit; of rounding.
        seed: of the rotation.

    Raises:
        ConformanceError: the first promise that is broken.
    """
    if len(batch) < 2 or potential.n_members < 2:
        raise ValueError("check_metric needs two or more structures and an ensemble of two or more members")
    subject = subject_of(Group.METRICS, metric)
    cls: Any = find(Group.METRICS, metric) if isinstance(metric, str) else metric
    made: Metric = cls() if isinstance(cls, type) else cls
    check = _MetricCheck(subject=subject, metric=made, potential=potential, tolerance=tolerance)
    check.description()
    values = check.values(batch)
    check.composition(batch, values)
    check.motion(batch, values, np.random.default_rng(seed))
    check.members(batch, values)


@dataclass(frozen=True, kw_only=True)
class _MetricCheck:
    subject: Subject
    metric: Metric
    potential: Potential
    tolerance: float

    def description(self) -> None:
        """What it says of itself."""
        requires, unit, floor = self.metric.requires, self.metric.unit, self.metric.floor
        self.subject.promises(
            f"requires is a frozenset of {', '.join(sorted(QUANTITIES))}",
            isinstance(requires, frozenset) and bool(requires) and requires <= QUANTITIES,
            repr(requires),
        )
        self.subject.promises("unit is text", isinstance(unit, str) and bool(unit.strip()), repr(unit))
        self.subject.promises(
            "floor is a finite number of at least 0",
            isinstance(floor, float | int) and np.isfinite(floor) and floor >= 0,
            repr(floor),
        )
        lacking = requires - self.potential.capabilities().provides
        if lacking:
            raise ValueError(f"this potential does not give {', '.join(sorted(lacking))}; check with another")

    def score(self, batch: Batch, potential: Potential) -> FloatArray:
        """(B,) values, right in shape, finite and not negative."""
        limited = _Limited(potential, self.metric.requires, self.subject)
        values = self.metric.score(batch, limited)
        promises = self.subject.promises
        promises("score() gives a tensor", isinstance(values, Tensor), f"a {type(values).__name__}")
        shape = tuple(values.shape)
        promises(f"score() has shape (B,) = ({len(batch)},)", shape == (len(batch),), f"{shape}")
        found: FloatArray = values.detach().cpu().double().numpy()
        promises("uncertainties are finite", bool(np.isfinite(found).all()), f"{found.tolist()}")
        promises("uncertainties are not negative", bool((found >= 0).all()), f"smallest {found.min():.6g}")
        return found

    def values(self, batch: Batch) -> FloatArray:
        """The values of the batch, not all of them zero."""
        values = self.score(batch, self.potential)
        self.subject.promises(
            "where members disagree there is uncertainty",
            bool(values.any()),
            "all values are 0",
        )
        return values

    def _same(self, promise: str, found: FloatArray, expected: FloatArray) -> None:
        self.subject.agrees(promise, found, expected, within=self.tolerance, unit=self.metric.unit)

    def composition(self, batch: Batch, values: FloatArray) -> None:
        """Neither companions nor padding count."""
        last_first = torch.arange(len(batch)).flip(0)
        self._same(
            "the order of a batch does not matter",
            self.score(batch.rows(last_first), self.potential),
            values[::-1],
        )
        for row in range(len(batch)):
            self._same(
                "the uncertainty of a structure does not depend on its companions in the batch",
                self.score(batches.alone(batch, row), self.potential),
                values[row : row + 1],
            )
        self._same("padding does not matter", self.score(batches.padded(batch, 3), self.potential), values)

    def motion(self, batch: Batch, values: FloatArray, rng: np.random.Generator) -> None:
        """Neither position nor orientation counts."""
        turned = batches.rotated(batch, random_rotation(rng))
        self._same("rotation does not matter", self.score(turned, self.potential), values)
        moved = batches.translated(batch, rng.uniform(-1, 1, 3))
        self._same("translation does not matter", self.score(moved, self.potential), values)

    def members(self, batch: Batch, values: FloatArray) -> None:
        """Members have no order, and an ensemble of equals is sure."""
        count = self.potential.n_members
        backwards = _Rearranged(self.potential, list(range(count))[::-1])
        self._same("the order of members does not matter", self.score(batch, backwards), values)
        if self.metric.requires <= OF_MEMBERS:
            equals = _Rearranged(self.potential, [0] * count)
            self._same(
                "uncertainty is zero where all members are the same",
                self.score(batch, equals),
                np.zeros(len(batch)),
            )


class _Rearranged:
    """An ensemble of some of the members of another, in a given order, repeated where asked."""

    def __init__(self, potential: Potential, members: list[int]) -> None:
        self._potential = potential
        self._members = torch.tensor(members, device=potential.device)

    @property
    def device(self) -> torch.device:
        return self._potential.device

    @property
    def dtype(self) -> torch.dtype:
        return self._potential.dtype

    @property
    def n_members(self) -> int:
        return len(self._members)

    def capabilities(self) -> Capabilities:
        return replace(self._potential.capabilities(), differentiable=False)

    def energies(self, batch: Batch) -> Tensor:
        return self._potential.energies(batch)[self._members]

    def forces(self, batch: Batch) -> Tensor:
        return self.member_forces(batch).mean(dim=0)

    def member_forces(self, batch: Batch) -> Tensor:
        return self._potential.member_forces(batch)[self._members]

    def stress(self, batch: Batch) -> Tensor:
        return self._potential.stress(batch)

    def features(self, batch: Batch) -> Tensor:
        return self._potential.features(batch)


class _Limited(_Rearranged):
    """A potential that gives only what a metric says it requires."""

    def __init__(self, potential: Potential, allowed: frozenset[str], subject: Subject) -> None:
        super().__init__(potential, list(range(potential.n_members)))
        self._allowed = allowed
        self._subject = subject

    def energies(self, batch: Batch) -> Tensor:
        self._asked("energies")
        return self._potential.energies(batch)

    def forces(self, batch: Batch) -> Tensor:
        if "member_forces" not in self._allowed:
            self._asked("forces")
        return self._potential.forces(batch)

    def member_forces(self, batch: Batch) -> Tensor:
        self._asked("member_forces")
        return self._potential.member_forces(batch)

    def stress(self, batch: Batch) -> Tensor:
        self._asked("stress")
        return self._potential.stress(batch)

    def features(self, batch: Batch) -> Tensor:
        self._asked("features")
        return self._potential.features(batch)

    def _asked(self, quantity: str) -> None:
        if quantity not in self._allowed:
            raise self._subject.broken(
                f"it asks the potential only for what `requires` says ({', '.join(sorted(self._allowed))})",
                f"it asks for {quantity}",
            )

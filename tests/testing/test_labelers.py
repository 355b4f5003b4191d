"""The checks of labelers find what is wrong with a labeler."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
from pydantic import ConfigDict, Field

from hpcal.core.deadline import Deadline
from hpcal.core.errors import FailureClass, TaskFailure
from hpcal.core.label import Label, LevelOfTheory, Rejection
from hpcal.core.settings import Settings
from hpcal.core.structure import Structure
from hpcal.testing import ConformanceError, check_labeler

STIFFNESS, LENGTH = 3.0, 1.4


class SpringSettings(Settings):
    stiffness: float = Field(STIFFNESS, gt=0, description="of springs between all atoms, eV/Å²")


class Springs:
    """Springs between all pairs of hydrogen and oxygen, and between an atom and its own images along x."""

    Settings: ClassVar[type[Settings]] = SpringSettings
    isolate: ClassVar[bool] = False
    periodic: ClassVar[bool] = True

    def __init__(self, settings):
        self.settings = settings

    @property
    def level(self):
        return LevelOfTheory(
            code="springs", version="1", method="pairs", settings=self.settings.model_dump(mode="json")
        )

    def missing_elements(self, numbers):
        return tuple(z for z in numbers if z not in (1, 8))

    def label(self, structure: Structure, deadline: Deadline) -> Label | Rejection:
        if deadline.expired():
            raise TaskFailure(FailureClass.RESOURCE, "no time")
        if self.missing_elements(structure.numbers.tolist()):
            return Rejection(
                failure_class=FailureClass.INPUT, code="element", message="hydrogen and oxygen only"
            )
        return self.calculate(structure)

    def calculate(self, structure: Structure) -> Label:
        gaps = structure.positions[:, None] - structure.positions[None]
        lengths = np.linalg.norm(gaps, axis=2) + np.eye(len(structure))
        stretch = np.where(np.eye(len(structure)) > 0, 0.0, lengths - LENGTH)
        forces = -self.settings.stiffness * (stretch / lengths)[:, :, None] * gaps
        energy, stress = 0.25 * self.settings.stiffness * (stretch**2).sum(), None
        if structure.cell is not None:
            height = np.linalg.norm(structure.cell[0])
            energy += 0.5 * self.settings.stiffness * (height - LENGTH) ** 2
            tension = self.settings.stiffness * (height - LENGTH) / height
            outer = tension * np.outer(structure.cell[0], structure.cell[0])
            pairs = -0.5 * np.einsum("ijk,ijl->kl", gaps, self.pair_forces(gaps, stretch, lengths))
            stress = (outer + pairs) / abs(np.linalg.det(structure.cell))
        return Label(energy=energy, forces=forces.sum(axis=1), stress=stress, level=self.level)

    def pair_forces(self, gaps, stretch, lengths):
        return -self.settings.stiffness * (stretch / lengths)[:, :, None] * gaps


@pytest.fixture
def structures(mixed):
    crystal = replace(mixed[0], cell=np.diag([3.0, 3.5, 4.0]) + 0.1, pbc=(True, True, True))
    return [*mixed, crystal]


def check(labeler, structures, **changes):
    exact = {"step": 1e-4, "force_tolerance": 1e-6, "energy_tolerance": 1e-9, "stress_tolerance": 1e-6}
    check_labeler(labeler, structures, **{**exact, **changes})


def altered(**changes):
    """A labeler whose labels have other values."""

    class Altered(Springs):
        def calculate(self, structure):
            label = super().calculate(structure)
            return replace(label, **{name: change(structure, label) for name, change in changes.items()})

    return Altered


def test_a_good_labeler_passes(structures):
    check(Springs, structures)
    check(Springs(SpringSettings(stiffness=1.0)), structures)


WRONG_VALUES = {
    "force sign": ({"forces": lambda s, x: -x.forces}, "are −dE/dx.*off by .* eV/Å, tolerance 1e-06"),
    "forces a little off": ({"forces": lambda s, x: 1.0001 * x.forces}, "are −dE/dx"),
    "stress sign": ({"stress": lambda s, x: None if x.stress is None else -x.stress}, "stress of .* is dE"),
    "shape of forces": ({"forces": lambda s, x: x.forces[:-1]}, r"forces have shape \(3, 3\).*\(2, 3\)"),
    "infinite force": ({"forces": lambda s, x: x.forces * np.inf}, "forces are finite"),
    "energy not a number": ({"energy": lambda s, x: np.nan}, "energy is finite"),
    "fixed in space": ({"energy": lambda s, x: x.energy + 1e-6 * s.positions.sum()}, "translation does not"),
    "fixed orientation": (
        {"energy": lambda s, x: x.energy + 1e-6 * np.ptp(s.positions, axis=0)[0]},
        "rotation does not change the energy",
    ),
    "order of atoms": (
        {"energy": lambda s, x: x.energy + 1e-3 * float(np.linalg.norm(s.positions[0] - s.positions[-1]))
         * (s.numbers[0] == 8)},
        "order of the atoms",
    ),
    "another level": (
        {"level": lambda s, x: LevelOfTheory(code="x", version="1", method="y")},
        "level of a label is the labeler's",
    ),
    "diagnostics": ({"diagnostics": lambda s, x: {"when": {1, 2}}}, "JSON values only"),
    "charges of no scheme": ({"charges": lambda s, x: np.zeros(len(s))}, "name of their scheme"),
    "a dipole about nowhere": ({"dipole": lambda s, x: np.zeros(3)}, "with its origin"),
    "global random numbers": (
        {"energy": lambda s, x: x.energy + 1e-12 * np.random.random()},
        "does not depend on what was labelled before",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_VALUES)
def test_wrong_values(case, structures):
    changes, message = WRONG_VALUES[case]
    with pytest.raises(ConformanceError, match=message):
        check(altered(**changes), structures)


class Remembers(Springs):
    """Starts from the structure before, as an SCF would from its density."""

    last = 0.0

    def calculate(self, structure):
        label = super().calculate(structure)
        energy, self.last = label.energy + 1e-13 * self.last, label.energy
        return replace(label, energy=energy)


class CountsInstances(Springs):
    made = 0

    def __init__(self, settings):
        super().__init__(settings)
        CountsInstances.made += 1
        self.number = CountsInstances.made

    @property
    def level(self):
        return LevelOfTheory(code="springs", version=str(self.number), method="pairs")


class OddLevel(Springs):
    @property
    def level(self):
        return LevelOfTheory(code="springs", version="1", method="pairs", settings={"list": np.zeros(2)})


class LacksOxygen(Springs):
    def missing_elements(self, numbers):
        return tuple(z for z in numbers if z != 1)


class LabelsAnything(Springs):
    def label(self, structure, deadline):
        if deadline.expired():
            raise TaskFailure(FailureClass.RESOURCE, "no time")
        return self.calculate(structure)


class NoneAtAll(Springs):
    def label(self, structure, deadline):
        return None


class Rejects(Springs):
    def label(self, structure, deadline):
        return Rejection(failure_class=FailureClass.PHYSICS, code="bad_mood", message="not today")


class OpenSettings(SpringSettings):
    model_config = ConfigDict(extra="ignore")


class Open(Springs):
    Settings = OpenSettings


class SilentSettings(Settings):
    stiffness: float = STIFFNESS


class Silent(Springs):
    Settings = SilentSettings


class NoFlags(Springs):
    periodic = None


@pytest.mark.parametrize(
    ("labeler", "message"),
    [
        (Remembers, "does not depend on what was labelled before.*tolerance 0"),
        (CountsInstances, "hash of a level of theory is stable"),
        (OddLevel, "level of theory holds JSON values"),
        (LacksOxygen, "names no element of structures that it labels"),
        (LabelsAnything, "an element of missing_elements gets no label"),
        (NoneAtAll, "an element of missing_elements gets no label"),
        (Rejects, "it labels H2O. Found: a rejection, bad_mood: not today"),
        (Open, "refuse unknown keys"),
        (Silent, "every setting has a description.*stiffness"),
        (NoFlags, "the class says periodic"),
    ],
)
def test_broken_promises(labeler, message, structures):
    with pytest.raises(ConformanceError, match=message):
        check(labeler, structures)


class Unhurried(Springs):
    def label(self, structure, deadline):
        return super().label(structure, Deadline())


class Asleep(Springs):
    def label(self, structure, deadline):
        if deadline.expired():
            time.sleep(2.0)
        return super().label(structure, deadline)


class BlamesTheNode(Springs):
    def label(self, structure, deadline):
        if deadline.expired():
            raise TaskFailure(FailureClass.NODE, "no time")
        return super().label(structure, deadline)


class Crashes(Springs):
    def label(self, structure, deadline):
        if deadline.expired():
            raise RuntimeError("negative time")
        return super().label(structure, deadline)


@pytest.mark.parametrize(
    ("labeler", "found"),
    [
        (Unhurried, "Found: a Label"),
        (Asleep, "still busy after 0.3 s"),
        (BlamesTheNode, "a TaskFailure of class node"),
        (Crashes, "RuntimeError: negative time"),
    ],
)
def test_deadlines_that_are_not_honoured(labeler, found, structures):
    with pytest.raises(ConformanceError, match=f"an expired deadline.*{found}"):
        check(labeler, structures, time_limit=0.3)


class Shelf(Springs):
    """Knows only what it was given first."""

    code = "not_here"

    def calculate(self, structure):
        if np.linalg.norm(structure.positions[0] - structure.positions[1]) > 1e3:
            return Rejection(failure_class=FailureClass.INPUT, code=self.code, message="not on the shelf")
        return super().calculate(structure)


class Mumbles(Shelf):
    code = "not on the shelf"


def far_apart(structure):
    positions = structure.positions.copy()
    positions[0] += 1e4
    return structure.with_positions(positions)


def test_structures_that_have_to_be_refused(structures):
    refused = [far_apart(structures[0])]
    check(Shelf, structures, refused=refused)
    with pytest.raises(ConformanceError, match=r"it rejects H2O.*a label of"):
        check(Springs, structures, refused=refused)
    with pytest.raises(ConformanceError, match="code that is one word"):
        check(Mumbles, structures, refused=refused)


def test_a_labeler_that_knows_given_structures_only_has_to_say_so(structures):
    with pytest.raises(ConformanceError, match="it rejects"):
        check(Springs, structures, labels_anything=False)


def test_one_structure_is_too_few(structures):
    with pytest.raises(ValueError, match="two or more different"):
        check(Springs, [structures[0], structures[0]])

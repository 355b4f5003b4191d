"""What every labeler promises, see ``hpcal.core.protocols.Labeler``."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcal.core.arrays import FloatArray
from hpcal.core.codec import pack, unpack
from hpcal.core.deadline import Deadline
from hpcal.core.elements import MAX_ATOMIC_NUMBER, symbol
from hpcal.core.errors import FailureClass, HpcalError, StructureError, TaskFailure
from hpcal.core.label import Label, LevelOfTheory, Rejection
from hpcal.core.plugins import Group
from hpcal.core.protocols import Labeler
from hpcal.core.settings import Settings
from hpcal.core.structure import Structure
from hpcal.testing import geometry
from hpcal.testing.conformance import Subject, other_global_state
from hpcal.testing.parts import part_of, subject_of


def check_labeler(
    labeler: Labeler | type | str,
    structures: Sequence[Structure],
    *,
    settings: Settings | Mapping[str, Any] | None = None,
    refused: Sequence[Structure] = (),
    labels_anything: bool = True,
    step: float = 2e-3,
    force_tolerance: float = 5e-3,
    energy_tolerance: float = 1e-4,
    stress_tolerance: float = 2e-4,
    directions: int = 2,
    time_limit: float = 60.0,
    seed: int = 0,
) -> None:
    """Checks the promises of a labeler.

    Level of theory with a stable hash; labels of right shapes and finite numbers that cross a
    process boundary unchanged; forces −dE/dx and stress by central differences; energies that no
    translation, rotation or order of the atoms changes; the same label of a structure to the bit
    whatever was labelled in between; an expired deadline honoured; settings that refuse unknown keys.

    Args:
        labeler: a short name or class, built from ``settings``, or a labeler that is ready.
        structures: two or more small structures that it labels; off their minima, so that forces are
            not zero.
        refused: structures that it must answer with a rejection.
        labels_anything: False for a labeler that knows given structures only, such as ``lookup``:
            differences and invariances are left out, and a structure that it does not know must be
            rejected.
        step: of the central differences, Å; of the strain without unit.
        force_tolerance: eV/Å; the default leaves room for the noise of an SCF and a DFT grid.
        energy_tolerance: eV, for invariances; a DFT grid turns with difficulty.
        stress_tolerance: eV/Å³.
        directions: random directions of the central differences for each structure.
        time_limit: seconds that a label under an expired deadline may take before it counts as hung.
        seed: of directions and rotations.

    Raises:
        ConformanceError: the first promise that is broken.
    """
    if len(set(structures)) < 2:
        raise ValueError("check_labeler needs two or more different structures")
    subject, make = _maker(labeler, settings)
    check = _LabelerCheck(subject=subject, labeler=make(), energy_tolerance=energy_tolerance)
    check.level(make())
    check.elements(structures)
    labels = [check.label_of(s) for s in structures]
    for structure, label in zip(structures, labels, strict=True):
        check.shapes(structure, label)
    for structure in refused:
        check.refuses(structure)
    check.history(structures, labels, make())
    check.deadline(structures[0], time_limit)
    rng = np.random.default_rng(seed)
    if not labels_anything:
        check.refuses(geometry.rotated(structures[0], geometry.random_rotation(rng)))
        return
    for structure, label in zip(structures, labels, strict=True):
        check.invariances(structure, label, rng, force_tolerance)
        along = geometry.unit_directions(directions, len(structure), rng)
        check.forces(structure, label, along, step=step, tolerance=force_tolerance)
        check.stress(structure, label, step, stress_tolerance)


def _maker(
    labeler: Labeler | type | str, settings: Settings | Mapping[str, Any] | None
) -> tuple[Subject, Callable[[], Labeler]]:
    if not isinstance(labeler, str | type):
        ready: Labeler = labeler
        return subject_of(Group.LABELERS, labeler), lambda: ready
    part = part_of(Group.LABELERS, labeler, settings)
    for name in ("isolate", "periodic"):
        value = getattr(part.cls, name, None)
        part.subject.promises(f"the class says {name}: True or False", isinstance(value, bool), repr(value))
    return part.subject, part.build


@dataclass(frozen=True, kw_only=True)
class _LabelerCheck:
    subject: Subject
    labeler: Labeler
    energy_tolerance: float

    def level(self, another: Labeler) -> None:
        """A level of theory whose hash names it, here and in another process."""
        try:
            level = self.labeler.level
        except StructureError as error:
            raise self.subject.broken("a level of theory holds JSON values only", str(error)) from error
        self.subject.promises(
            "level is a LevelOfTheory", isinstance(level, LevelOfTheory), f"a {type(level).__name__}"
        )
        try:
            record = json.loads(json.dumps(level.as_dict()))
        except (TypeError, ValueError) as error:
            raise self.subject.broken("a level of theory holds JSON values only", str(error)) from error
        for found, what in ((LevelOfTheory.of(record), "its JSON values"), (another.level, "a second one")):
            self.subject.promises(
                "the hash of a level of theory is stable",
                found.hash == level.hash,
                f"{found.hash[:12]} from {what}, {level.hash[:12]} at first",
            )

    def elements(self, structures: Sequence[Structure]) -> None:
        """``missing_elements`` agrees with what is labelled."""
        present = sorted({int(z) for s in structures for z in s.numbers})
        missing = self.labeler.missing_elements(present)
        self.subject.promises(
            "missing_elements names no element of structures that it labels",
            isinstance(missing, tuple) and not missing,
            f"{missing!r} of {present}",
        )
        everything = range(1, MAX_ATOMIC_NUMBER + 1)
        beyond = self.labeler.missing_elements(everything)
        self.subject.promises(
            "missing_elements are some of those asked about", set(beyond) <= set(everything), repr(beyond)
        )
        if not beyond:
            return
        number = max(beyond)
        atom = Structure(numbers=np.array([number]), positions=np.zeros((1, 3)), multiplicity=1 + number % 2)
        try:
            result = self.labeler.label(atom, Deadline())
        except HpcalError:
            return
        self.subject.promises(
            "an element of missing_elements gets no label",
            isinstance(result, Rejection),
            f"a {type(result).__name__} of {symbol(number)}",
        )

    def label_of(self, structure: Structure) -> Label:
        """The label of a structure that has to get one."""
        before = structure.content_hash
        result: Label | Rejection = self.labeler.label(structure, Deadline())
        kind = type(result).__name__
        self.subject.promises(
            "label() returns a Label or a Rejection", isinstance(result, Label | Rejection), kind
        )
        if isinstance(result, Rejection):
            raise self.subject.broken(
                f"it labels {structure.formula}", f"a rejection, {result.code}: {result.message}"
            )
        fresh = Structure(**{f: getattr(structure, f) for f in Structure.__dataclass_fields__})
        self.subject.promises(
            "a structure is not written to", fresh.content_hash == before, f"{structure.formula} has changed"
        )
        return result

    def shapes(self, structure: Structure, label: Label) -> None:
        """Shapes, finite numbers, the level of theory, and the way over a process boundary."""
        n, promises = len(structure), self.subject.promises
        promises("the level of a label is the labeler's", label.level == self.labeler.level, str(label.level))
        shapes = {"forces": (n, 3), "stress": (3, 3), "dipole": (3,), "dipole_origin": (3,), "charges": (n,)}
        promises("an energy is finite", bool(np.isfinite(label.energy)), f"{label.energy} eV")
        for name, shape in shapes.items():
            value: FloatArray | None = getattr(label, name)
            if value is None:
                continue
            promises(f"{name} have shape {shape}", value.shape == shape, f"{value.shape}")
            promises(f"{name} are finite", bool(np.isfinite(value).all()), f"{value.tolist()}")
        promises(
            "charges come with the name of their scheme",
            label.charges is None or bool(label.charge_scheme),
            f"charge_scheme {label.charge_scheme!r}",
        )
        promises(
            "a dipole comes with its origin",
            label.dipole is None or label.dipole_origin is not None,
            "dipole_origin is None",
        )
        self._crosses(label)

    def _crosses(self, result: Label | Rejection) -> None:
        try:
            data = pack(result)
        except TypeError as error:
            raise self.subject.broken(
                "diagnostics hold JSON values only, as results cross process boundaries", str(error)
            ) from error
        self.subject.repeats(
            "a result crosses a process boundary unchanged", pack(unpack(data)), data, "another record"
        )

    def refuses(self, structure: Structure) -> None:
        """A rejection with a class, a short stable name and a sentence."""
        result: Label | Rejection = self.labeler.label(structure, Deadline())
        if not isinstance(result, Rejection):
            raise self.subject.broken(
                f"it rejects {structure.formula} (charge {structure.charge}, multiplicity "
                f"{structure.multiplicity})",
                f"a label of {result.energy:.6g} eV",
            )
        seen = f"class {result.failure_class!r}, code {result.code!r}, message {result.message!r}"
        self.subject.promises(
            "a rejection has a failure class, a code that is one word, and a message",
            isinstance(result.failure_class, FailureClass)
            and result.code.isidentifier()
            and bool(result.message.strip()),
            seen,
        )
        self._crosses(result)

    def history(self, structures: Sequence[Structure], labels: Sequence[Label], fresh: Labeler) -> None:
        """The same label of a structure, whatever came before."""
        orders = [("after the others", self.labeler, reversed(range(len(structures))))]
        orders.append(("by a new labeler", fresh, reversed(range(len(structures)))))
        orders.append(("again", self.labeler, iter(range(len(structures)))))
        for when, labeler, order in orders:
            for i in order:
                with other_global_state(100 + i):
                    found = labeler.label(structures[i], Deadline())
                self._same(found, labels[i], f"{structures[i].formula} labelled {when}")

    def _same(self, found: Label | Rejection, first: Label, what: str) -> None:
        promise = "the label of a structure does not depend on what was labelled before, to the bit"
        if isinstance(found, Rejection):
            raise self.subject.broken(promise, f"{what} is rejected: {found.message}")
        for name in ("energy", "forces", "stress", "dipole", "charges"):
            a, b = getattr(found, name), getattr(first, name)
            kept = (a is None) == (b is None) and (a is None or np.array_equal(a, b))
            largest = 0.0 if a is None or b is None else float(np.abs(np.subtract(a, b)).max())
            self.subject.promises(
                promise, kept, f"{name} of {what} differs by {largest:.3g} from the first one; tolerance 0"
            )

    def deadline(self, structure: Structure, time_limit: float) -> None:
        """No time left: a failure of class ``resource``, or a rejection; never a hang."""
        outcome: list[Any] = []
        thread = threading.Thread(target=self._labels_late, args=(structure, outcome), daemon=True)
        thread.start()
        thread.join(time_limit)
        promise = "an expired deadline ends in a TaskFailure of class resource or a Rejection"
        self.subject.promises(promise, bool(outcome), f"still busy after {time_limit:g} s, the time limit")
        result = outcome[0]
        if isinstance(result, BaseException) and not isinstance(result, TaskFailure):
            raise self.subject.broken(promise, f"{type(result).__name__}: {result}") from result
        kept = isinstance(result, Rejection) or (
            isinstance(result, TaskFailure) and result.failure_class is FailureClass.RESOURCE
        )
        failure = f" of class {result.failure_class}" if isinstance(result, TaskFailure) else ""
        self.subject.promises(promise, kept, f"a {type(result).__name__}{failure}")

    def _labels_late(self, structure: Structure, outcome: list[Any]) -> None:
        try:
            outcome.append(self.labeler.label(structure, Deadline(at=time.monotonic() - 1.0)))
        except BaseException as error:
            outcome.append(error)

    def _energy(self, structure: Structure) -> float:
        return self.label_of(structure).energy

    def invariances(
        self, structure: Structure, label: Label, rng: np.random.Generator, force_tolerance: float
    ) -> None:
        """Translation, rotation and the order of atoms."""
        rotation, order = geometry.random_rotation(rng), np.arange(len(structure))[::-1]
        forces = label.forces if label.forces is not None else np.zeros((len(structure), 3))
        moved = {
            "translation": (geometry.translated(structure, rng.uniform(-2, 2, 3)), forces),
            "rotation": (geometry.rotated(structure, rotation), forces @ rotation),
            "another order of the atoms": (geometry.permuted(structure, order), forces[order]),
        }
        for what, (other, expected) in moved.items():
            found = self.label_of(other)
            self.subject.agrees(
                f"{what} does not change the energy of {structure.formula}",
                found.energy,
                label.energy,
                within=self.energy_tolerance,
                unit="eV",
            )
            if label.forces is not None and found.forces is not None:
                self.subject.agrees(
                    f"forces on {structure.formula} follow {what}",
                    found.forces,
                    expected,
                    within=force_tolerance,
                    unit="eV/Å",
                )

    def forces(
        self,
        structure: Structure,
        label: Label,
        directions: FloatArray,
        *,
        step: float,
        tolerance: float,
    ) -> None:
        """Forces are minus the slope of the energy."""
        if label.forces is None:
            return
        for direction in directions:
            slope = geometry.slope_along(self._energy, structure, direction, step)
            self.subject.agrees(
                f"forces on {structure.formula} are −dE/dx (central differences of {step:g} Å along a random "
                "direction)",
                float((label.forces * direction).sum()),
                -slope,
                within=tolerance,
                unit="eV/Å",
            )

    def stress(self, structure: Structure, label: Label, step: float, tolerance: float) -> None:
        """Stress is the slope of the energy under strain over the volume, positive in tension."""
        if label.stress is None or structure.cell is None:
            return
        for strain in geometry.unit_strains():
            slope = geometry.slope_under(self._energy, structure, strain, step)
            self.subject.agrees(
                f"stress of {structure.formula} is dE/dε/V (central differences of {step:g})",
                float((label.stress * strain).sum()),
                slope / geometry.volume(structure),
                within=tolerance,
                unit="eV/Å³",
            )

"""Every check lets good ones pass and can fail; what a label keeps of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from hpcal.core.deadline import Deadline
from hpcal.core.errors import FailureClass, StructureError, TaskFailure
from hpcal.core.label import Label, LevelOfTheory, Rejection
from hpcal.core.structure import Structure
from hpcal.labeling.checks import CheckedLabeler, ChecksSettings, closest_contact, gate, precheck

LEVEL = LevelOfTheory(code="test", version="1", method="none")
SETTINGS = ChecksSettings()
WATER = Structure(numbers=[8, 1, 1], positions=[[0, 0, 0], [0, 0, 0.96], [0.93, 0, -0.24]])
FORCES = np.array([[0.5, 0.0, -1.0], [-0.2, 0.0, 0.6], [-0.3, 0.0, 0.4]])
LABEL = Label(energy=-100.0, forces=FORCES, level=LEVEL, charges=[-0.6, 0.3, 0.3], charge_scheme="mulliken")


class Source:
    """A labeler that gives, or raises, what it is told to."""

    level = LEVEL
    closed = False

    def __init__(self, result: object = LABEL, periodic: bool = False) -> None:
        self.result = result
        self.periodic = periodic
        self.calls = 0

    def missing_elements(self, numbers: Sequence[int]) -> tuple[int, ...]:
        return tuple(z for z in numbers if z > 10)

    def label(self, structure: Structure, deadline: Deadline) -> Label | Rejection:
        self.calls += 1
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    def close(self) -> None:
        self.closed = True


def test_a_good_structure_passes() -> None:
    assert precheck(WATER, Source(), SETTINGS) is None


CUBE = {"cell": np.eye(3) * 10, "pbc": (True, True, True)}


@pytest.mark.parametrize(
    ("structure", "code"),
    [
        (replace(WATER, **CUBE), "periodic"),
        (replace(WATER, numbers=[16, 1, 1]), "element"),
        (replace(WATER, charge=1), "parity"),
        (replace(WATER, multiplicity=2), "parity"),
        (Structure(numbers=[1], positions=[[0, 0, 0]], charge=1), "no_electrons"),
        (Structure(numbers=[1], positions=[[0, 0, 0]], multiplicity=4), "parity"),
        (WATER.with_positions([[0, 0, 0], [0, 0, 0.5], [0.93, 0, -0.24]]), "overlap"),
    ],
)
def test_inputs_that_cannot_be_labelled(structure: Structure, code: str) -> None:
    source = Source()
    rejection = precheck(structure, source, SETTINGS)
    assert rejection is not None
    assert rejection.code == code
    assert rejection.failure_class is FailureClass.INPUT
    assert rejection.message
    through = CheckedLabeler(source, SETTINGS).label(structure, Deadline())
    assert isinstance(through, Rejection)
    assert through.code == code
    assert source.calls == 0


def test_overlap_names_the_atoms_and_obeys_the_policy() -> None:
    # 0.6 × (0.66 + 0.31) Å = 0.582 Å
    near = WATER.with_positions([[0, 0, 0], [0, 0, 0.96], [0.57, 0, 0]])
    rejection = precheck(near, Source(), SETTINGS)
    assert rejection is not None
    assert "O0 and H2" in rejection.message
    assert precheck(near, Source(), ChecksSettings(overlap="allow")) is None
    assert precheck(near, Source(), ChecksSettings(min_distance_factor=0.5)) is None
    assert precheck(near.with_positions([[0, 0, 0], [0, 0, 0.96], [0.59, 0, 0]]), Source(), SETTINGS) is None


def test_overlap_through_the_periodic_boundary() -> None:
    apart = Structure(numbers=[6, 6], positions=[[0.1, 5, 5], [9.8, 5, 5]])
    assert precheck(apart, Source(), SETTINGS) is None
    periodic = replace(apart, **CUBE)
    rejection = precheck(periodic, Source(periodic=True), SETTINGS)
    assert rejection is not None
    assert rejection.code == "overlap"
    # 0.3 Å over twice carbon's 0.76 Å
    assert closest_contact(periodic)[0] == pytest.approx(0.3 / 1.52)


def test_overlap_of_an_atom_with_its_own_image() -> None:
    lone = Structure(numbers=[6], positions=[[0, 0, 0]], cell=np.diag([0.5, 9, 9]), pbc=(True, True, True))
    assert closest_contact(lone)[0] == pytest.approx(0.5 / 1.52)


def test_a_good_label_passes() -> None:
    assert gate(WATER, LABEL, SETTINGS) is None


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"energy": np.nan}, "not_finite"),
        ({"forces": np.where(np.eye(3) > 0, np.inf, 0.0)}, "not_finite"),
        ({"dipole": [0, np.nan, 0]}, "not_finite"),
        ({"forces": FORCES[:2]}, "shape"),
        ({"charges": [0.0, 0.0]}, "shape"),
        ({"diagnostics": {"converged": False}}, "not_converged"),
        ({"forces": FORCES + np.array([0.0, 0.0, 0.004])}, "net_force"),
        ({"forces": FORCES * 60}, "force_limit"),
        ({"charges": [-0.6, 0.3, 0.302]}, "charge_sum"),
    ],
)
def test_labels_that_must_not_be_accepted(change: dict[str, object], code: str) -> None:
    bad = replace(LABEL, **change)
    rejection = gate(WATER, bad, SETTINGS)
    assert rejection is not None
    assert rejection.code == code
    assert rejection.failure_class is FailureClass.PHYSICS
    through = CheckedLabeler(Source(bad), SETTINGS).label(WATER, Deadline())
    assert isinstance(through, Rejection)
    assert through.code == code
    assert through.qm_calls == 1
    assert through.diagnostics["checks"][code]["passed"] is False


def test_the_net_force_is_compared_with_its_limit() -> None:
    for size, passes in ((0.0099, True), (0.0101, False)):
        pushed = replace(LABEL, forces=FORCES + np.array([size / 3, 0, 0]))
        assert (gate(WATER, pushed, SETTINGS) is None) is passes
    loose = ChecksSettings(max_net_force_eV_per_A=0.05)
    assert gate(WATER, pushed, loose) is None


def test_charges_of_an_ion_add_up_to_its_charge() -> None:
    ion = replace(WATER, charge=-2)
    assert gate(ion, LABEL, SETTINGS) is not None
    assert gate(ion, replace(LABEL, charges=[-1.6, -0.2, -0.2]), SETTINGS) is None


def test_a_label_without_forces_passes() -> None:
    assert gate(WATER, replace(LABEL, forces=None), SETTINGS) is None


def test_diagnostics_say_what_was_checked() -> None:
    source = Source(replace(LABEL, diagnostics={"rung": "diis"}))
    label = CheckedLabeler(source, SETTINGS).label(WATER, Deadline())
    assert isinstance(label, Label)
    checks = label.diagnostics["checks"]
    assert checks["net_force"] == {"value": pytest.approx(0, abs=1e-12), "limit": 0.01, "passed": True}
    assert checks["force_limit"]["value"] == pytest.approx(np.sqrt(1.25))
    assert checks["overlap"]["value"] == pytest.approx(0.96 / 0.97, abs=0.01)
    assert all(check["passed"] for check in checks.values())
    assert label.diagnostics["rung"] == "diis"
    assert 0 <= label.diagnostics["seconds"] < 1


def test_a_rejection_of_the_labeler_is_passed_on() -> None:
    given = Rejection(failure_class=FailureClass.PHYSICS, code="scf_not_converged", message="no", qm_calls=3)
    through = CheckedLabeler(Source(given), SETTINGS).label(WATER, Deadline())
    assert isinstance(through, Rejection)
    assert (through.code, through.qm_calls) == ("scf_not_converged", 3)


def test_an_unexpected_exception_is_a_bug_with_its_traceback() -> None:
    with pytest.raises(TaskFailure) as failure:
        CheckedLabeler(Source(KeyError("strange")), SETTINGS).label(WATER, Deadline())
    assert failure.value.failure_class is FailureClass.BUG
    assert "Traceback" in str(failure.value)
    assert "KeyError: 'strange'" in str(failure.value)


@pytest.mark.parametrize(
    ("error", "failure_class"),
    [
        (TaskFailure(FailureClass.NODE, "disk"), FailureClass.NODE),
        (MemoryError(), FailureClass.RESOURCE),
        (OSError(28, "No space left on device"), FailureClass.NODE),
        (OSError(2, "No such file or directory"), FailureClass.BUG),
        (StructureError("no structure"), FailureClass.INPUT),
    ],
)
def test_failures_have_a_class(error: Exception, failure_class: FailureClass) -> None:
    with pytest.raises(TaskFailure) as failure:
        CheckedLabeler(Source(error), SETTINGS).label(WATER, Deadline())
    assert failure.value.failure_class is failure_class


def test_closing_closes_the_labeler() -> None:
    source = Source()
    with CheckedLabeler(source, SETTINGS) as labeler:
        assert labeler.level == LEVEL
        assert not source.closed
    assert source.closed

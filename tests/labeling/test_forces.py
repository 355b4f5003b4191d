"""A labeler as a force function."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import molecule

from hpcal.core.deadline import Deadline
from hpcal.core.errors import FailureClass, TaskFailure
from hpcal.core.structure import from_ase
from hpcal.labeling.checks import CheckedLabeler, ChecksSettings
from hpcal.labeling.forces import as_forces
from hpcal.labeling.xtb import XTB, XTBSettings


def test_energy_and_forces_of_the_labeler_and_a_count() -> None:
    structure = from_ase(molecule("CH3OH"))
    labeler = XTB(XTBSettings())
    forces = as_forces(labeler)
    for _ in range(3):
        energy, found = forces(structure)
    label = labeler.label(structure, Deadline())
    assert energy == label.energy
    assert np.array_equal(found, label.forces)
    assert forces.calls == 3


def test_no_label_is_a_failure_of_class_physics_and_is_counted() -> None:
    forces = as_forces(XTB(XTBSettings(max_iterations=1)))
    with pytest.raises(TaskFailure, match="scf_not_converged") as failure:
        forces(from_ase(molecule("CH3OH")))
    assert failure.value.failure_class is FailureClass.PHYSICS
    assert forces.calls == 1


def test_a_structure_refused_before_the_calculation_costs_nothing() -> None:
    forces = as_forces(CheckedLabeler(XTB(XTBSettings()), ChecksSettings()))
    with pytest.raises(TaskFailure, match="parity"):
        forces(from_ase(molecule("OH")))
    assert forces.calls == 0


def test_the_deadline_holds() -> None:
    with pytest.raises(TaskFailure) as failure:
        as_forces(XTB(XTBSettings()), Deadline.after(0.0))(from_ase(molecule("CH3OH")))
    assert failure.value.failure_class is FailureClass.RESOURCE

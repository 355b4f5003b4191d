"""Wrong results that come without a word, or in words of their own, by real calculations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ase.build import molecule

from hpcal.core.deadline import Deadline
from hpcal.core.errors import FailureClass, TaskFailure
from hpcal.core.label import Label, Rejection
from hpcal.core.structure import Structure, from_ase
from hpcal.labeling.checks import CheckedLabeler, ChecksSettings
from hpcal.labeling.pyscf import PySCF
from hpcal.labeling.pyscf_settings import PySCFSettings
from hpcal.labeling.xtb import XTB, XTBSettings

WATER = Structure(numbers=[8, 1, 1], positions=[[0, 0, 0.1], [0, 0.02, 1.07], [0.94, 0, -0.2]])


def checked(structure: Structure, checks: dict[str, Any] | None = None, **settings: Any) -> Label | Rejection:
    source = PySCF(PySCFSettings(**{"method": "hf", "basis": "sto-3g", **settings}))
    policy = ChecksSettings(**{"audit_share": 0.0, **(checks or {})})
    return CheckedLabeler(source, policy).label(structure, Deadline())


def atom(number: int, charge: int = 0, multiplicity: int = 1) -> Structure:
    return Structure(numbers=[number], positions=[[0, 0, 0]], charge=charge, multiplicity=multiplicity)


def test_forces_of_a_grid_that_is_too_coarse_are_found_out() -> None:
    """Such a calculation converges like any other; what its forces add up to tells of it."""
    coarse = checked(WATER, method="pbe", grid_level=0)
    assert isinstance(coarse, Rejection)
    assert (coarse.code, coarse.failure_class) == ("net_force", FailureClass.PHYSICS)
    assert coarse.diagnostics["converged"]
    fine = checked(WATER, method="pbe", grid_level=3)
    assert isinstance(fine, Label)
    error = checked(WATER, {"max_net_force_eV_per_A": 10.0}, method="pbe", grid_level=0)
    assert isinstance(error, Label)
    assert np.abs(error.forces - fine.forces).max() > 0.01


def test_charges_of_atoms_are_not_the_charge_of_a_structure() -> None:
    """tblite's calculator takes the sum of ASE's initial charges for the total charge unless told."""
    atoms = molecule("H2O")
    plain = XTB(XTBSettings()).label(from_ase(atoms), Deadline())
    atoms.set_initial_charges([1.0, 0.0, 0.0])
    charged = XTB(XTBSettings()).label(from_ase(atoms), Deadline())
    assert isinstance(plain, Label)
    assert isinstance(charged, Label)
    assert charged.energy == plain.energy
    assert charged.charges.sum() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("structure", "code"),
    [
        (Structure(numbers=[1, 1], positions=[[0, 0, 0], [0, 0, 0]]), "overlap"),
        (atom(1, charge=1), "no_electrons"),
        (atom(2, charge=3), "parity"),
        (atom(2, multiplicity=5), "parity"),
        (atom(1), "parity"),
        (atom(92), "element"),
        (atom(118), "element"),
    ],
)
def test_what_pyscf_has_exceptions_of_its_own_for_is_one_kind_of_refusal(
    structure: Structure, code: str
) -> None:
    refused = checked(structure)
    assert isinstance(refused, Rejection)
    assert (refused.code, refused.failure_class, refused.qm_calls) == (code, FailureClass.INPUT, 0)


def test_atoms_in_one_place_give_no_label_where_overlaps_are_allowed() -> None:
    one_place = Structure(numbers=[1, 1], positions=[[0, 0, 0], [0, 0, 0]])
    refused = checked(one_place, {"overlap": "allow", "max_force_eV_per_A": 1e9})
    assert isinstance(refused, Rejection)
    assert refused.failure_class is FailureClass.PHYSICS


@pytest.mark.parametrize(
    "structure",
    [
        atom(2, multiplicity=3),
        atom(2, charge=-2),
        Structure(numbers=[1, 1], positions=[[0, 0, 0], [0, 0, 1e-6]]),
        Structure(numbers=[8, 8], positions=[[0, 0, 0], [0, 0, 1e-4]], multiplicity=3),
    ],
)
def test_electrons_without_orbitals_turn_a_structure_away_and_stop_no_stage(structure: Structure) -> None:
    refused = checked(structure, {"overlap": "allow"})
    assert isinstance(refused, Rejection)
    assert (refused.code, refused.failure_class) == ("no_orbitals", FailureClass.INPUT)


def test_what_cannot_fit_into_memory_is_refused_before_it_begins() -> None:
    source = PySCF(PySCFSettings(method="ccsd", basis="cc-pvtz", max_memory_MB=300))
    with pytest.raises(TaskFailure, match="300 MB may be used") as failure:
        source.label(from_ase(molecule("C6H6")), Deadline.after(20))
    assert failure.value.failure_class is FailureClass.RESOURCE

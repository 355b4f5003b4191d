"""Auxiliary basis sets of density fitting: labels with it are those without it, or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hpcal.core.deadline import Deadline
from hpcal.core.errors import FailureClass
from hpcal.core.label import Label, Rejection
from hpcal.core.structure import Structure
from hpcal.labeling.fitting import auxiliary
from hpcal.labeling.pyscf import PySCF, PySCFSettings


def pair(first: int, second: int, distance: float) -> Structure:
    return Structure(numbers=[first, second], positions=[[0, 0, 0], [0, 0, distance]])


def source(**settings: Any) -> PySCF:
    return PySCF(PySCFSettings(**{"method": "hf", **settings}))


def label(structure: Structure, **settings: Any) -> Label:
    found = source(**settings).label(structure, Deadline())
    assert isinstance(found, Label), found
    return found


@pytest.mark.slow
def test_bromine_is_fitted_where_the_usual_set_cannot() -> None:
    """The set that PySCF takes for 6-31G* puts HBr 18 eV too high in Hartree–Fock."""
    molecule = pair(35, 1, 1.5)
    exact, fitted = (label(molecule, basis="6-31g*", density_fit=fit) for fit in (False, True))
    assert fitted.energy == pytest.approx(exact.energy, abs=0.01)
    assert np.abs(fitted.forces - exact.forces).max() < 0.005


def test_amplitudes_are_fitted_where_the_usual_set_cannot() -> None:
    """In LANL2DZ the set that PySCF makes for zinc puts MP2 of ZnH2 1.2 eV off, and its field 30 eV."""
    molecule = Structure(numbers=[30, 1, 1], positions=[[0, 0, 0], [0, 0, 1.6], [0, 0, -1.6]])
    settings = {"method": "mp2", "basis": "lanl2dz", "forces": False, "reference": "rks_unchecked"}
    exact, fitted = (label(molecule, density_fit=fit, **settings) for fit in (False, True))
    assert fitted.energy == pytest.approx(exact.energy, abs=0.01)


@pytest.mark.parametrize("density_fit", [False, True])
def test_elements_that_the_usual_set_lacks(density_fit: bool) -> None:
    """There is none for lithium in cc-pVDZ, and the search for the state is density-fitted always."""
    found = label(pair(3, 1, 1.6), basis="cc-pvdz", density_fit=density_fit)
    assert found.diagnostics["state_check"]
    exact = label(pair(3, 1, 1.6), basis="cc-pvdz", reference="rks_unchecked")
    assert found.energy == pytest.approx(exact.energy, abs=0.005)


def test_an_element_that_no_set_fits_is_refused_with_fitting_only() -> None:
    """HBr in LANL2DZ is 0.05 eV off by even-tempered functions, and AutoAux has none for bromine."""
    molecule = pair(35, 1, 1.4)
    fitted = source(basis="lanl2dz", density_fit=True)
    assert fitted.missing_elements([1, 35]) == (35,)
    refused = fitted.label(molecule, Deadline())
    assert isinstance(refused, Rejection)
    assert (refused.code, refused.failure_class) == ("element", FailureClass.INPUT)
    assert "density_fit: false" in refused.message
    assert label(molecule, basis="lanl2dz").forces is not None
    assert source(basis="lanl2dz").missing_elements([1, 35]) == ()


@pytest.mark.parametrize("basis", ["6-31g*", "def2-svp", "def2-tzvp", "cc-pvdz", "sto-3g"])
def test_what_pyscf_chooses_stays_where_it_is_right(basis: str) -> None:
    assert auxiliary(basis, [1, 6, 7, 8], "wb97x") is None


def test_exchange_counts_only_where_there_is_some() -> None:
    assert auxiliary("6-31g*", [35], "pbe") is None
    assert auxiliary("6-31g*", [35], "pbe0") is not None

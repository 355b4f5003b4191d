"""xTB labels against ASE's tblite calculator and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk, molecule
from tblite.ase import TBLite

from hpcal.core.deadline import Deadline
from hpcal.core.errors import FailureClass, TaskFailure
from hpcal.core.label import Label, Rejection
from hpcal.core.structure import Structure, from_ase, to_ase
from hpcal.labeling.xtb import XTB, XTBSettings

STEP = 2e-4
"""Å, or strain; small, as the lists of neighbours of a crystal change with the cell."""


def label(structure: Structure, **settings: object) -> Label:
    result = XTB(XTBSettings(**settings)).label(structure, Deadline())
    assert isinstance(result, Label), result
    return result


def shaken(name: str, **kwargs: object) -> Structure:
    atoms = molecule(name)
    atoms.rattle(0.05, seed=3)
    return from_ase(atoms, **kwargs)


def crystal() -> Structure:
    atoms = bulk("Si")
    atoms.set_cell(atoms.cell @ np.array([[1.01, 0.004, 0], [0, 0.98, 0], [0, 0.003, 1.015]]), True)
    atoms.rattle(0.05, seed=1)
    return from_ase(atoms)


@pytest.mark.parametrize("method", ["GFN2-xTB", "GFN1-xTB"])
def test_agrees_with_the_ase_calculator(method: str) -> None:
    structure = shaken("CH3CONH2")
    atoms = to_ase(structure)
    atoms.calc = TBLite(method=method, charge=0, multiplicity=1, verbosity=0)
    ours = label(structure, method=method)
    # ASE's factors are CODATA 2014, ours 2018: relative differences up to 1e-8.
    assert ours.energy == pytest.approx(atoms.get_potential_energy(), rel=2e-8)
    assert ours.forces == pytest.approx(atoms.get_forces(), rel=1e-7, abs=1e-7)
    assert ours.dipole == pytest.approx(atoms.get_dipole_moment(), rel=1e-7, abs=1e-8)
    assert ours.charges == pytest.approx(atoms.get_charges(), abs=1e-8)
    assert ours.level.method == method
    assert ours.level.code == "tblite"


def test_forces_are_the_negative_gradient() -> None:
    structure = shaken("CH3OH")
    labeler = XTB(XTBSettings(accuracy=0.001))
    forces = labeler.label(structure, Deadline()).forces
    for atom, axis in [(0, 0), (1, 2), (4, 1)]:
        shift = np.zeros((len(structure), 3))
        shift[atom, axis] = STEP
        ahead = labeler.label(structure.with_positions(structure.positions + shift), Deadline()).energy
        behind = labeler.label(structure.with_positions(structure.positions - shift), Deadline()).energy
        assert forces[atom, axis] == pytest.approx((behind - ahead) / (2 * STEP), abs=1e-5)


def test_stress_is_the_strain_derivative_of_the_energy_per_volume() -> None:
    structure = crystal()
    labeler = XTB(XTBSettings(accuracy=0.01))
    stress = labeler.label(structure, Deadline()).stress
    volume = abs(np.linalg.det(structure.cell))

    def energy(strain: np.ndarray) -> float:
        deformation = np.eye(3) + strain
        moved = Structure(
            numbers=structure.numbers,
            positions=structure.positions @ deformation,
            cell=structure.cell @ deformation,
            pbc=structure.pbc,
        )
        return labeler.label(moved, Deadline()).energy

    for i, j in [(0, 0), (2, 2), (0, 1)]:
        strain = np.zeros((3, 3))
        strain[i, j] += STEP / 2
        strain[j, i] += STEP / 2
        slope = (energy(strain) - energy(-strain)) / (2 * STEP * volume)
        assert stress[i, j] == pytest.approx(slope, abs=5e-6)
    assert np.abs(stress).max() > 1e-3


def test_a_stretched_crystal_is_in_tension() -> None:
    atoms = bulk("Si", cubic=True)
    atoms.set_cell(atoms.cell * 1.12, scale_atoms=True)
    assert np.trace(label(from_ase(atoms)).stress) > 0.01


def test_dipole_of_an_ion_is_about_its_centre_of_mass_wherever_it_is() -> None:
    structure = shaken("OH", charge=-1, multiplicity=1)
    moved = structure.with_positions(structure.positions + np.array([10.0, -5.0, 3.0]))
    here, there = label(structure), label(moved)
    assert there.dipole == pytest.approx(here.dipole, abs=1e-6)
    assert there.dipole_origin == pytest.approx(
        moved.positions.T @ to_ase(moved).get_masses() / 17.007, abs=1e-4
    )
    assert here.charges.sum() == pytest.approx(-1, abs=1e-6)
    # What is printed for the origin of coordinates differs by charge times shift.
    atoms = to_ase(moved)
    atoms.calc = TBLite(charge=-1, multiplicity=1, verbosity=0)
    assert atoms.get_dipole_moment() + moved.charge * -1 * there.dipole_origin == pytest.approx(
        there.dipole, abs=1e-6
    )


def test_charge_is_passed_explicitly() -> None:
    neutral = label(shaken("NH3", charge=0, multiplicity=1))
    cation = label(shaken("NH3", charge=1, multiplicity=2))
    assert cation.energy - neutral.energy > 5.0


def test_a_label_depends_on_its_structure_alone() -> None:
    """The calculator kept in memory carries nothing over from the structure before."""
    structure, other = shaken("CH3CHO"), crystal()
    labeler = XTB(XTBSettings())
    fresh = labeler.label(structure, Deadline())
    labeler.label(other, Deadline())
    labeler.label(structure.with_positions(structure.positions * 1.1), Deadline())
    again = labeler.label(structure, Deadline())
    assert again.energy == fresh.energy
    assert np.array_equal(again.forces, fresh.forces)


def test_no_convergence_is_a_rejection_and_the_next_label_is_right() -> None:
    structure = shaken("CH3OH")
    labeler = XTB(XTBSettings(max_iterations=2))
    for _ in range(2):
        result = labeler.label(structure, Deadline())
        assert isinstance(result, Rejection)
        assert result.code == "scf_not_converged"
        assert result.failure_class is FailureClass.PHYSICS
        assert result.qm_calls == 1
        assert "max_iterations is 2" in result.message
    water = shaken("H2")
    assert XTB(XTBSettings()).label(water, Deadline()).energy < 0


def test_parity_that_xtb_would_ignore_is_refused() -> None:
    """tblite gives OH one energy for every multiplicity, without a word."""
    result = XTB(XTBSettings()).label(shaken("OH", multiplicity=1), Deadline())
    assert isinstance(result, Rejection)
    assert (result.code, result.failure_class) == ("parity", FailureClass.INPUT)
    assert isinstance(XTB(XTBSettings()).label(shaken("OH", multiplicity=2), Deadline()), Label)


def test_slabs_are_refused() -> None:
    structure = crystal()
    slab = Structure(
        numbers=structure.numbers,
        positions=structure.positions,
        cell=structure.cell,
        pbc=(True, True, False),
    )
    result = XTB(XTBSettings()).label(slab, Deadline())
    assert isinstance(result, Rejection)
    assert result.code == "partly_periodic"


def test_a_cell_without_periodicity_does_not_matter() -> None:
    structure = shaken("H2O")
    boxed = Structure(numbers=structure.numbers, positions=structure.positions, cell=np.eye(3) * 3)
    assert label(boxed).energy == label(structure).energy
    assert label(boxed).stress is None


def test_elements() -> None:
    assert XTB(XTBSettings()).missing_elements([1, 57, 86, 87, 92]) == (87, 92)


def test_level_of_theory_tells_settings_apart() -> None:
    default = XTB(XTBSettings()).level
    assert default == XTB(XTBSettings(max_iterations=99)).level
    assert default != XTB(XTBSettings(electronic_temperature_K=1000)).level
    assert default != XTB(XTBSettings(method="GFN1-xTB")).level


def test_electronic_temperature_is_in_kelvin() -> None:
    """At 20 000 K, k_B T is 1.7 eV: the entropy of stretched H2 lowers its energy."""
    structure = Structure(numbers=[1, 1], positions=[[0, 0, 0], [0, 0, 2.0]])
    atoms = to_ase(structure)
    atoms.calc = TBLite(electronic_temperature=20000.0, charge=0, multiplicity=1, verbosity=0)
    hot = label(structure, electronic_temperature_K=20000.0).energy
    assert hot == pytest.approx(atoms.get_potential_energy(), rel=1e-7)
    assert hot < label(structure).energy - 0.1


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    label(shaken("H2O"))
    assert capfd.readouterr().out == ""


def test_no_time_left() -> None:
    with pytest.raises(TaskFailure) as failure:
        XTB(XTBSettings()).label(shaken("H2O"), Deadline.after(0.0))
    assert failure.value.failure_class is FailureClass.RESOURCE

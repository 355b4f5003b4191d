"""An ensemble in ASE: the numbers are those of the ensemble, and relaxation and dynamics run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.optimize import BFGS

from hpcal.ase import EnsembleCalculator
from hpcal.core.batch import Batch
from hpcal.core.ensemble import EnsembleManifest, MemberFile, file_sha256
from hpcal.core.errors import FormatError, InputError
from hpcal.core.structure import from_ase
from hpcal.potentials.morse import Morse


@pytest.fixture
def folder(tmp_path):
    members = []
    for k in range(3):
        path = Morse.write_member(tmp_path / f"m{k}.json", [1, 8], well_depth_eV=3.0 + 0.2 * k)
        members.append(MemberFile(path=str(path), sha256=file_sha256(path)))
    EnsembleManifest(kind="morse", members=tuple(members), info={"threshold": 0.4}).write(tmp_path)
    return tmp_path


def stretched() -> Atoms:
    atoms = molecule("H2O")
    atoms.rattle(0.1, seed=1)
    return atoms


def test_results_are_those_of_the_ensemble(folder):
    atoms = stretched()
    atoms.calc = EnsembleCalculator(folder)
    members = [Morse.load([folder / f"m{k}.json"], dtype="float64") for k in range(3)]
    batch = Batch.of([from_ase(atoms)], dtype=torch.float64)
    energies = np.array([float(m.energies(batch)) for m in members])
    forces = np.array([m.forces(batch)[0].numpy() for m in members])
    assert atoms.get_potential_energy() == pytest.approx(energies.mean())
    assert atoms.calc.results["member_energies"] == pytest.approx(energies)
    assert atoms.calc.results["energy_std"] == pytest.approx(energies.std() / np.sqrt(3))
    assert "force_std" not in atoms.calc.results
    assert atoms.get_forces() == pytest.approx(forces.mean(axis=0))
    spread = np.sqrt(forces.var(axis=0).sum(axis=1)).max()
    assert atoms.calc.results["force_std"] == pytest.approx(spread)
    assert spread > 0.01
    assert atoms.calc.info == {"threshold": 0.4}


def test_force_std_can_be_asked_for_alone(folder):
    atoms = stretched()
    calculator = EnsembleCalculator(folder / "ensemble.json")
    alone = calculator.get_property("force_std", atoms)
    atoms.calc = calculator
    atoms.get_forces()
    assert alone == pytest.approx(calculator.results["force_std"])


def test_relaxation_ends_at_a_minimum(folder):
    atoms = stretched()
    atoms.calc = EnsembleCalculator(folder)
    before = atoms.get_potential_energy()
    assert BFGS(atoms, logfile=None).run(fmax=1e-4, steps=200)
    assert atoms.get_potential_energy() < before
    assert np.abs(atoms.get_forces()).max() < 1e-4


def test_stress_of_a_cell_is_the_derivative_by_strain(folder):
    atoms = Atoms(
        "OH2", positions=[[0, 0, 0], [1, 0.2, 0], [-0.3, 1, 0.4]], cell=np.diag([4.0, 4.5, 5]), pbc=True
    )
    atoms.calc = EnsembleCalculator(folder)
    stress = atoms.get_stress(voigt=False)
    for axis in range(3):
        energies = []
        for sign in (1, -1):
            strained, change = atoms.copy(), np.eye(3)
            change[axis, axis] += sign * 1e-5
            strained.set_cell(atoms.cell @ change, scale_atoms=True)
            strained.calc = atoms.calc
            energies.append(strained.get_potential_energy())
        expected = (energies[0] - energies[1]) / 2e-5 / atoms.get_volume()
        assert stress[axis, axis] == pytest.approx(expected, abs=1e-7)


def test_what_cannot_be_used_is_refused(folder, tmp_path_factory):
    with pytest.raises(InputError, match="no ensemble"):
        EnsembleCalculator(tmp_path_factory.mktemp("empty"))
    atoms = molecule("NH3")
    atoms.calc = EnsembleCalculator(folder)
    with pytest.raises(InputError, match="cannot treat N"):
        atoms.get_potential_energy()
    free = stretched()
    free.calc = atoms.calc
    with pytest.raises(InputError, match="cell"):
        free.get_stress()
    (folder / "m1.json").write_text("{}")
    from hpcal.core import ensemble

    ensemble._loaded.clear()
    with pytest.raises(FormatError, match="damaged or was replaced"):
        EnsembleCalculator(folder)

"""The espresso labeler with the real pw.x: against ASE, finite differences, and over two ranks.

Debian's ``quantum-espresso`` and ``quantum-espresso-data`` bring the program and the
pseudopotentials, which are good for tests only.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.espresso import Espresso as AseEspresso
from ase.calculators.espresso import EspressoProfile

from hpcal.core.deadline import Deadline
from hpcal.core.errors import FailureClass, TaskFailure
from hpcal.core.label import Label, Rejection
from hpcal.core.launch import MPI_COMMAND, MPI_RANKS
from hpcal.core.structure import Structure, from_ase, to_ase
from hpcal.core.units import HARTREE
from hpcal.labeling.espresso import Espresso, EspressoSettings
from hpcal.labeling.espresso_settings import RYDBERG
from hpcal.labeling.make import make_labeler

PSEUDO = Path("/usr/share/espresso/pseudo")
SILICON_UPF = PSEUDO / "Si.pz-vbc.UPF"
IRON_UPF = PSEUDO / "Fe.pbe-nd-rrkjus.UPF"
MPIRUN = "mpirun --allow-run-as-root --oversubscribe -n 2"
NOISE_ENERGY = 1e-6
"""eV; what the order of sums over ranks may change at convergence_eV 1e-9."""
NOISE_FORCE = 1e-4
"""eV/Å; the printed SCF correction at that convergence is below it."""

pytestmark = [
    pytest.mark.extras,
    pytest.mark.skipif(shutil.which("pw.x") is None, reason="no pw.x (Debian: quantum-espresso)"),
    pytest.mark.skipif(not SILICON_UPF.exists(), reason=f"no {SILICON_UPF} (Debian: quantum-espresso-data)"),
]
needs_mpirun = pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun (Debian: openmpi-bin)")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MPI_COMMAND, raising=False)


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MPI_COMMAND, MPIRUN)
    monkeypatch.setenv(MPI_RANKS, "2")


def silicon() -> Structure:
    atoms = bulk("Si")
    atoms.rattle(0.08, seed=1)
    atoms.set_cell(atoms.cell @ np.array([[1.01, 0.004, 0], [0, 0.98, 0], [0, 0.003, 1.015]]), True)
    return from_ase(atoms)


def settings(**changes: object) -> EspressoSettings:
    values = {
        "pseudopotentials": {"Si": SILICON_UPF},
        "ecutwfc_eV": 180.0,
        "kpoints": (2, 2, 2),
        "smearing": "gaussian",
        "smearing_width_eV": 0.1,
        "convergence_eV": 1e-9,
    }
    return EspressoSettings.model_validate(values | changes)


def label(structure: Structure, **changes: object) -> Label:
    result = Espresso(settings(**changes)).label(structure, Deadline.after(300.0))
    assert isinstance(result, Label), result
    return result


def test_agrees_with_the_calculator_of_ase(tmp_path: Path) -> None:
    structure = silicon()
    ours = label(structure)
    atoms = to_ase(structure)
    system = {
        "ecutwfc": 180.0 / RYDBERG,
        "occupations": "smearing",
        "smearing": "gaussian",
        "degauss": 0.1 / RYDBERG,
    }
    atoms.calc = AseEspresso(
        profile=EspressoProfile(command="pw.x", pseudo_dir=str(PSEUDO)),
        directory=str(tmp_path),
        pseudopotentials={"Si": SILICON_UPF.name},
        kpts=(2, 2, 2),
        input_data={
            "control": {"tprnfor": True, "tstress": True},
            "system": system,
            "electrons": {"conv_thr": 1e-9 / RYDBERG},
        },
    )
    # ASE's factors are CODATA 2006, ours 2018: relative differences up to 1e-7.
    assert ours.energy == pytest.approx(atoms.get_potential_energy(), rel=2e-7)
    assert ours.forces == pytest.approx(atoms.get_forces(), abs=1e-6)
    assert ours.stress == pytest.approx(atoms.get_stress(voigt=False), abs=1e-7)
    assert ours.level.method == "LDA"
    assert ours.level.version.startswith(("6.", "7."))
    assert pytest.approx(HARTREE / 2) == RYDBERG


def test_forces_are_the_negative_gradient() -> None:
    structure, step = silicon(), 2e-3
    labeler = Espresso(settings())
    forces = labeler.label(structure, Deadline()).forces
    for atom, axis in [(0, 0), (1, 2)]:
        shift = np.zeros((2, 3))
        shift[atom, axis] = step
        ahead = labeler.label(structure.with_positions(structure.positions + shift), Deadline()).energy
        behind = labeler.label(structure.with_positions(structure.positions - shift), Deadline()).energy
        assert forces[atom, axis] == pytest.approx((behind - ahead) / (2 * step), abs=2e-4)
    assert np.abs(forces).max() > 0.5


@pytest.mark.slow
def test_stress_is_the_strain_derivative_of_the_energy_per_volume() -> None:
    """At 800 eV: the plane waves change with the cell, and at 180 eV they give 0.015 eV/Å³ by themselves."""
    structure, step = silicon(), 2e-3
    labeler = Espresso(settings(ecutwfc_eV=800.0))
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

    for i, j in [(0, 0), (2, 2), (1, 2)]:
        strain = np.zeros((3, 3))
        strain[i, j] += step / 2
        strain[j, i] += step / 2
        slope = (energy(strain) - energy(-strain)) / (2 * step * volume)
        assert stress[i, j] == pytest.approx(slope, abs=1e-4)
    assert np.abs(stress).max() > 1e-2


def test_a_stretched_crystal_is_in_tension() -> None:
    atoms = bulk("Si")
    atoms.set_cell(atoms.cell * 1.08, scale_atoms=True)
    assert np.trace(label(from_ase(atoms), ecutwfc_eV=400.0).stress) / 3 > 0.01


def test_an_scf_that_was_stopped_early_makes_no_label() -> None:
    result = Espresso(settings(max_iterations=2)).label(silicon(), Deadline())
    assert isinstance(result, Rejection)
    assert (result.code, result.failure_class) == ("scf_not_converged", FailureClass.PHYSICS)


def test_an_error_of_the_program_is_a_rejection_with_its_words() -> None:
    result = Espresso(settings(namelists={"system": {"nbnd": 2}})).label(silicon(), Deadline())
    assert isinstance(result, Rejection)
    assert "too few bands" in result.message


def test_fixed_occupations_give_a_gap() -> None:
    structure = from_ase(bulk("Si"))
    found = label(structure, smearing="none", smearing_width_eV=None, namelists={"system": {"nbnd": 5}})
    assert 0.2 < found.diagnostics["gap_eV"] < 3.0
    assert "smearing_energy_eV" not in found.diagnostics


@pytest.mark.slow
@pytest.mark.skipif(not IRON_UPF.exists(), reason=f"no {IRON_UPF}")
def test_iron_keeps_the_magnetisation_of_its_moments_or_of_its_multiplicity() -> None:
    atoms = bulk("Fe", cubic=False)
    atoms.set_initial_magnetic_moments([2.0])
    common = {
        "pseudopotentials": {"Fe": IRON_UPF},
        "ecutwfc_eV": 340.0,
        "ecutrho_eV": 2700.0,
        "kpoints": (4, 4, 4),
        "smearing": "marzari-vanderbilt",
        "smearing_width_eV": 0.2,
        "convergence_eV": 1e-7,
        "spin_polarised": True,
    }
    free = label(from_ase(atoms), **common)
    assert free.diagnostics["magnetisation"] == pytest.approx(2.2, abs=0.4)
    fixed = label(from_ase(atoms, multiplicity=2), **common)
    assert fixed.diagnostics["magnetisation"] == pytest.approx(1.0, abs=0.01)
    assert fixed.energy > free.energy + 0.01


# ── Two ranks ────────────────────────────────────────────────────────────────────────────────


@needs_mpirun
def test_two_ranks_agree_with_one(two_ranks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    structure = silicon()
    both = label(structure)
    monkeypatch.delenv(MPI_COMMAND)
    alone = label(structure)
    assert (both.diagnostics["processes"], alone.diagnostics["processes"]) == (2, 1)
    assert both.level == alone.level
    assert both.energy == pytest.approx(alone.energy, abs=NOISE_ENERGY)
    assert both.forces == pytest.approx(alone.forces, abs=NOISE_FORCE)
    assert both.stress == pytest.approx(alone.stress, abs=1e-5)


@pytest.mark.slow
@needs_mpirun
def test_two_ranks_from_a_child_process_with_checks(two_ranks: None) -> None:
    with make_labeler("espresso", settings()) as labeler:
        found = labeler.label(silicon(), Deadline.after(120.0))
    assert isinstance(found, Label), found
    assert found.diagnostics["processes"] == 2


def test_a_launcher_that_starts_singletons_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = tmp_path / "launch"
    launcher.write_text('#!/bin/sh\n"$@" &\n"$@"\nwait\n')
    launcher.chmod(0o755)
    monkeypatch.setenv(MPI_COMMAND, str(launcher))
    monkeypatch.setenv(MPI_RANKS, "2")
    with pytest.raises(TaskFailure, match="runs as a program of its own") as failure:
        Espresso(settings())
    assert failure.value.failure_class is FailureClass.BUG


LARGE = """
import sys
from ase.build import bulk
from hpcal.core.deadline import Deadline
from hpcal.core.structure import from_ase
from hpcal.labeling.make import make_labeler

atoms = bulk("Si", cubic=True) * (2, 2, 2)
atoms.rattle(0.05, seed=1)
settings = {
    "pseudopotentials": {"Si": sys.argv[1]}, "ecutwfc_eV": 400, "kpoints": [4, 4, 4], "scratch": sys.argv[2]
}
make_labeler("espresso", settings).label(from_ase(atoms), Deadline())
"""


def ranks_in(folder: Path) -> list[str]:
    """Processes of pw.x whose working directory is below a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            inside = str((process / "cwd").readlink()).startswith(str(folder))
            if inside and (process / "comm").read_text().strip() == "pw.x":
                found.append(process.name)
        except OSError:
            continue
    return found


@pytest.mark.slow
@needs_mpirun
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize("how", ["SIGKILL of the worker", "deadline"])
def test_no_rank_outlives_its_worker_or_its_deadline(how: str, two_ranks: None, tmp_path: Path) -> None:
    code = LARGE if how != "deadline" else LARGE.replace("Deadline()", "Deadline.after(8.0)")
    worker = subprocess.Popen(
        [sys.executable, "-c", code, str(SILICON_UPF), str(tmp_path)], stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 60.0
    while len(ranks_in(tmp_path)) < 2 and time.monotonic() < end:
        time.sleep(0.1)
    assert len(ranks_in(tmp_path)) == 2
    if how == "deadline":
        _, said = worker.communicate(timeout=60.0)
        assert "its time is up" in said
        assert list(tmp_path.iterdir()) == []
    else:
        worker.kill()
        worker.communicate()
    end = time.monotonic() + 10.0
    while ranks_in(tmp_path) and time.monotonic() < end:
        time.sleep(0.1)
    assert ranks_in(tmp_path) == []


# ── A real Slurm ─────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["pmix", "pmi2"])
def srun(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Two ranks; Debian's pw.x is built with OpenMPI, which speaks PMIx."""
    if (
        shutil.which("sinfo") is None
        or subprocess.run(["sinfo"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no Slurm")
    monkeypatch.setenv(MPI_COMMAND, f"srun --mpi={request.param} --nodes=1 --ntasks=2 --time=2")
    monkeypatch.setenv(MPI_RANKS, "2")
    return str(request.param)


@pytest.mark.slurm
def test_srun_starts_two_ranks_or_is_told_that_its_pmi_is_wrong(srun: str, tmp_path: Path) -> None:
    if srun == "pmix":
        found = label(silicon(), scratch=tmp_path)
        assert found.diagnostics["processes"] == 2
        return
    with pytest.raises(TaskFailure, match="srun --mpi=pmix for OpenMPI") as failure:
        label(silicon(), scratch=tmp_path)
    assert failure.value.failure_class is FailureClass.BUG

"""Silicon's equation of state by the espresso labeler, against runs of pw.x that hpcal has no part in."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from ase.eos import EquationOfState
from ase.units import Bohr, GPa, Rydberg

from hpcal.core.deadline import Deadline
from hpcal.core.label import Label
from hpcal.core.launch import MPI_COMMAND
from hpcal.core.structure import from_ase
from hpcal.labeling.espresso import EspressoSettings
from hpcal.labeling.make import make_labeler

SILICON_UPF = Path("/usr/share/espresso/pseudo/Si.pz-vbc.UPF")
LATTICE_CONSTANTS = np.linspace(5.26, 5.54, 7)
"""Å; cells of 7.8 % less to 7.9 % more volume."""
SAME_LATTICE = 2e-4
"""Of the lattice constant. The labels' cutoff and k-points move it by 3e-5 each."""
SAME_MODULUS = 5e-3
"""Of the bulk modulus. The labels' k-points (4³ instead of 6³) move it by 1.3e-3."""
PULAY = 0.15
"""GPa. The stress is that of a fixed set of plane waves, which changes along the curve: 0.10 at 40 Ry."""

DIRECT_INPUT = """
&control
  calculation = 'scf', outdir = './out', pseudo_dir = '{folder}', disk_io = 'none'
/
&system
  ibrav = 2, celldm(1) = {bohr:.10f}, nat = 2, ntyp = 1, ecutwfc = 50.0
/
&electrons
  conv_thr = 1.0d-10
/
ATOMIC_SPECIES
  Si 28.085 {file}
ATOMIC_POSITIONS alat
  Si 0.00 0.00 0.00
  Si 0.25 0.25 0.25
K_POINTS automatic
  6 6 6 1 1 1
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("pw.x") is None, reason="no pw.x (Debian: quantum-espresso)"),
    pytest.mark.skipif(not SILICON_UPF.exists(), reason=f"no {SILICON_UPF} (Debian: quantum-espresso-data)"),
]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A fit of Birch and Murnaghan: lattice constant (Å), bulk modulus (GPa), −dE/dV there (GPa)."""

    lattice: float
    modulus: float
    pressures: np.ndarray


def fit(energies: list[float]) -> Curve:
    """The equation of state of energies (eV) of cells of two atoms."""
    volumes = LATTICE_CONSTANTS**3 / 4
    state = EquationOfState(volumes, energies, eos="birchmurnaghan")
    volume, _, modulus = state.fit()
    slopes = [
        (state.func(v + 1e-3, *state.eos_parameters) - state.func(v - 1e-3, *state.eos_parameters)) / 2e-3
        for v in volumes
    ]
    return Curve(lattice=(4 * volume) ** (1 / 3), modulus=modulus / GPa, pressures=-np.array(slopes) / GPa)


def direct_energy(lattice: float, folder: Path) -> float:
    """eV, of the primitive cell: a plain input file, the printed total energy."""
    text = DIRECT_INPUT.format(folder=SILICON_UPF.parent, file=SILICON_UPF.name, bohr=lattice / Bohr)
    done = subprocess.run(["pw.x"], input=text, capture_output=True, text=True, check=True, cwd=folder)
    assert "convergence has been achieved" in done.stdout
    (found,) = re.findall(r"^!\s+total energy\s+=\s+(\S+) Ry", done.stdout, re.MULTILINE)
    return float(found) * Rydberg


def test_lattice_constant_and_bulk_modulus_of_silicon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(MPI_COMMAND, raising=False)
    settings = EspressoSettings(
        pseudopotentials={"Si": SILICON_UPF},
        ecutwfc_eV=40 * Rydberg,
        kpoints=(4, 4, 4),
        kpoints_shift=(1, 1, 1),
        convergence_eV=1e-8,
    )
    with make_labeler("espresso", settings) as labeler:
        labels = [
            labeler.label(from_ase(bulk("Si", a=float(a))), Deadline.after(120)) for a in LATTICE_CONSTANTS
        ]
    assert all(isinstance(label, Label) for label in labels), labels
    ours = fit([label.energy for label in labels])
    direct = fit([direct_energy(a, tmp_path) for a in LATTICE_CONSTANTS])

    assert ours.lattice == pytest.approx(direct.lattice, rel=SAME_LATTICE)
    assert ours.modulus == pytest.approx(direct.modulus, rel=SAME_MODULUS)

    # Positive in tension: the pressure is minus a third of the trace.
    pressures = np.array([-np.trace(label.stress) / 3 / GPa for label in labels])
    assert pressures[0] > 8
    assert pressures[-1] < -5
    assert pressures == pytest.approx(ours.pressures, abs=PULAY)
    assert pressures == pytest.approx(direct.pressures, abs=PULAY)

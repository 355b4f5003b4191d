"""The espresso labeler around a stand-in for pw.x: every way to end has its class, and leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from hpcal.core.deadline import Deadline
from hpcal.core.errors import ConfigurationError, FailureClass, TaskFailure
from hpcal.core.label import Label, Rejection
from hpcal.core.launch import MPI_COMMAND, MPI_RANKS
from hpcal.core.settings import parse_yaml
from hpcal.core.structure import Structure
from hpcal.core.units import BOHR, HARTREE
from hpcal.engine.campaign import label_spec
from hpcal.labeling.espresso import Espresso, EspressoSettings
from hpcal.labeling.espresso_input import grid
from hpcal.labeling.espresso_output import converged, read_head, read_numbers
from hpcal.labeling.make import make_labeler

CELL = np.array([[0, 2.7, 2.7], [2.7, 0, 2.7], [2.7, 2.7, 0]])
SILICON = Structure(
    numbers=[14, 14], positions=[[0, 0, 0], [1.42, 1.33, 1.36]], cell=CELL, pbc=(True, True, True)
)
UPF = (
    '<UPF version="2.0.1">\n<PP_HEADER element="{}" z_valence="{}" functional=" SLA  PW   PBX  PBC"/>\n</UPF>'
)
BANNER = """
     Program PWSCF v.7.2 starts on 28Nov2026 at  4: 5:55

     Parallel version (MPI & OpenMP), running on       1 processor cores
     Number of MPI processes:                 {processes}
     Threads/MPI process:                     1
"""
SET_UP = """
     number of atoms/cell      =            2
     number of electrons       =         8.00

     iteration #  1     ecut=    12.00 Ry     beta= 0.70
     total energy              =     -15.61434007 Ry
"""
RESULT = """
     highest occupied, lowest unoccupied level (ev):     5.0312    5.5312

!    total energy              =     -15.61482670 Ry
     estimated scf accuracy    <          3.6E-10 Ry

     convergence has been achieved in   8 iterations

     Forces acting on atoms (cartesian axes, Ry/au):

     atom    1 type  1   force =     0.02345483   -0.01145343    0.00803570
     atom    2 type  1   force =    -0.02345483    0.01145343   -0.00803570
     The non-local contrib.  to forces
     atom    1 type  1   force =     9.00000000    9.00000000    9.00000000

     Total force =     0.038623     Total SCF correction =     0.000012


     Computing stress (Cartesian axis) and pressure

          total   stress  (Ry/bohr**3)                   (kbar)     P=       22.34
   0.00013174  -0.00002003   0.00011410           19.38       -2.95       16.79
  -0.00002003   0.00015878  -0.00028472           -2.95       23.36      -41.88
   0.00011410  -0.00028472   0.00016510           16.79      -41.88       24.29
"""
DONE = """
=------------------------------------------------------------------------------=
   JOB DONE.
=------------------------------------------------------------------------------=
"""
UNCONVERGED = """
     End of self-consistent calculation

     convergence NOT achieved after   2 iterations: stopping
"""
ERROR = """
 %%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%
     Error in routine {} (1):
     {}
 %%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%%

     stopping ...
"""
HEAD = BANNER.format(processes=1)
GOOD = HEAD + SET_UP + RESULT + DONE


class Stand:
    """A stand-in for pw.x: says its version to an empty input, and what a test wants to any other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scratch = folder / "scratch"
        self.program = folder / "pw.x"
        for element, valence in (("Si", 4), ("Fe", 16)):
            (folder / f"{element}.UPF").write_text(UPF.format(element, valence))
        self.says(GOOD)

    def says(self, output: str, then: str = "exit 0", processes: int = 1) -> None:
        (self.folder / "said").write_text(output)
        (self.folder / "banner").write_text(BANNER.format(processes=processes))
        self.program.write_text(
            f"#!/bin/sh\n[ -s pw.in ] || {{ cat {self.folder}/banner; exit 2; }}\n"
            f"cp pw.in {self.folder}/input\nls -A > {self.folder}/listing\ncat {self.folder}/said\n{then}\n"
        )
        self.program.chmod(0o755)

    def settings(self, **changes: object) -> EspressoSettings:
        values = {
            "program": str(self.program),
            "pseudopotentials": {"Si": "Si.UPF", "Fe": "Fe.UPF"},
            "pseudo_dir": self.folder,
            "scratch": self.scratch,
            "ecutwfc_eV": 100.0,
            "kpoints": (2, 2, 2),
        }
        return EspressoSettings.model_validate(values | changes)

    def label(self, structure: Structure = SILICON, **changes: object) -> Label | Rejection:
        try:
            return Espresso(self.settings(**changes)).label(structure, Deadline.after(30.0))
        finally:
            assert list(self.scratch.iterdir()) == []

    def input(self) -> dict[str, str]:
        """Keys of the namelists of the last input."""
        pairs = [line.split("=") for line in (self.folder / "input").read_text().splitlines() if "=" in line]
        return {key.strip().lower(): value.strip() for key, value in pairs}


@pytest.fixture
def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stand:
    monkeypatch.delenv(MPI_COMMAND, raising=False)
    return Stand(tmp_path)


def failure_of(stand: Stand, **changes: object) -> TaskFailure:
    with pytest.raises(TaskFailure) as failure:
        stand.label(**changes)
    return failure.value


# ── A calculation that goes well ─────────────────────────────────────────────────────────────


def test_numbers_come_in_the_units_and_signs_of_hpcal(stand: Stand) -> None:
    label = stand.label()
    assert isinstance(label, Label)
    rydberg = HARTREE / 2
    assert label.energy == pytest.approx(-15.61482670 * rydberg, rel=1e-12)
    assert label.forces == pytest.approx(
        np.array([[1], [-1]]) * [[0.02345483, -0.01145343, 0.00803570]] * rydberg / BOHR, rel=1e-12
    )
    # A pressure of 22 kbar is compression: negative here.
    assert np.trace(label.stress) / 3 == pytest.approx(-22.34 * 1e8 / 1.602176634e11, rel=1e-3)
    assert label.stress[0, 1] == pytest.approx(0.00002003 * rydberg / BOHR**3, rel=1e-12)
    assert label.diagnostics["gap_eV"] == pytest.approx(0.5)
    assert label.diagnostics["iterations"] == 8
    assert label.diagnostics["processes"] == 1


def test_level_says_what_decides_the_value(stand: Stand) -> None:
    level = Espresso(stand.settings()).level
    assert (level.code, level.version, level.method) == ("quantum-espresso", "7.2", "PBE")
    assert level.settings["ecutrho_eV"] == 400.0
    assert len(level.settings["pseudopotentials"]["Si"]) == 64
    assert Espresso(stand.settings(timeout_s=5.0, max_iterations=7)).level == level
    assert Espresso(stand.settings(ecutwfc_eV=120.0)).level != level
    (stand.folder / "Si.UPF").write_text(UPF.format("Si", 4) + "\n")
    assert Espresso(stand.settings()).level != level


def test_input_is_in_rydberg_and_the_directory_is_fresh(stand: Stand) -> None:
    stand.label(smearing="gaussian", smearing_width_eV=0.1, namelists={"system": {"nbnd": 12}})
    keys = stand.input()
    assert float(keys["ecutwfc"]) == pytest.approx(100.0 / (HARTREE / 2))
    assert float(keys["degauss"]) == pytest.approx(0.1 / (HARTREE / 2))
    assert float(keys["conv_thr"]) == pytest.approx(1e-7 / (HARTREE / 2))
    assert (keys["tprnfor"], keys["tstress"], keys["nbnd"]) == (".true.", ".true.", "12")
    assert sorted((stand.folder / "listing").read_text().split()) == ["Si.UPF", "errors", "output", "pw.in"]


def test_moments_are_given_as_shares_of_the_valence_electrons(stand: Stand) -> None:
    iron = Structure(
        numbers=[26, 26],
        positions=[[0, 0, 0], [1.4, 1.4, 1.4]],
        cell=np.eye(3) * 2.8,
        pbc=(True, True, True),
        magnetic_moments=[4.0, -4.0],
    )
    stand.says((HEAD + SET_UP + RESULT + DONE).replace("8.00", "32.00"))
    label = stand.label(iron, spin_polarised=True, smearing="gaussian", smearing_width_eV=0.1)
    assert isinstance(label, Label)
    keys = stand.input()
    assert keys["nspin"] == "2"
    assert float(keys["starting_magnetization(1)"]) == pytest.approx(0.25)
    assert float(keys["starting_magnetization(2)"]) == pytest.approx(-0.25)
    assert "tot_magnetization" not in keys


def test_spacing_gives_a_finer_grid_along_shorter_vectors(stand: Stand) -> None:
    box = Structure(numbers=[14], positions=[[0, 0, 0]], cell=np.diag([4.0, 8.0, 40.0]), pbc=(True,) * 3)
    settings = stand.settings(kpoints=None, kspacing_per_A=2 * np.pi / 16)
    assert grid(box, settings) == (4, 2, 1)
    assert grid(SILICON, stand.settings()) == (2, 2, 2)


def test_paths_are_relative_to_the_file_and_the_settings_go_through_a_child(stand: Stand) -> None:
    document = parse_yaml(
        f"labeler: espresso\nprogram: {stand.program}\npseudopotentials: {{Si: Si.UPF}}\n"
        "ecutwfc_eV: 100\nkpoints: [2, 2, 2]\n",
        "label.yaml",
    )
    spec = label_spec(document, (), stand.folder)
    with make_labeler(spec.part.name, spec.part.settings, spec.checks) as labeler:
        label = labeler.label(SILICON, Deadline.after(30.0))
    assert isinstance(label, Label), label
    assert label.diagnostics["checks"]["net_force"]["passed"]


# ── What is refused before it runs ───────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"pbc": (True, True, False)}, "not_periodic"),
        ({"pbc": (False, False, False), "cell": None}, "not_periodic"),
        ({"numbers": [14, 8]}, "element"),
        ({"multiplicity": 3}, "spin"),
        ({"magnetic_moments": [1.0, 0.0]}, "spin"),
        ({"charge": 1}, "odd_electrons"),
    ],
)
def test_structures_that_it_would_get_wrong_are_refused(stand: Stand, changes: dict, code: str) -> None:
    fields = {name: getattr(SILICON, name) for name in Structure.__dataclass_fields__}
    result = stand.label(Structure(**{**fields, **changes}))
    assert isinstance(result, Rejection)
    assert (result.code, result.failure_class, result.qm_calls) == (code, FailureClass.INPUT, 0)
    assert not (stand.folder / "input").exists()


def test_a_metal_with_spin_needs_moments_to_start_from(stand: Stand) -> None:
    result = stand.label(spin_polarised=True, smearing="gaussian", smearing_width_eV=0.1)
    assert isinstance(result, Rejection)
    assert result.code == "no_moments"


def test_elements_are_those_with_a_pseudopotential(stand: Stand) -> None:
    assert Espresso(stand.settings()).missing_elements([8, 14, 26]) == (8,)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kpoints": None}, "either kpoints or kspacing_per_A"),
        ({"kspacing_per_A": 0.2}, "either kpoints or kspacing_per_A"),
        ({"smearing": "gaussian"}, "go together"),
        ({"pseudopotentials": {"Xy": "a"}}, "not the symbol of an element"),
        ({"ecutrho_eV": 50.0}, "below ecutwfc_eV"),
        ({"namelists": {"system": {"ECUTWFC": 3.0}}}, "set by the structure or a setting"),
        ({"namelists": {"control": {"calculation": "relax"}}}, "set by the structure or a setting"),
        ({"kpoints": (0, 1, 1)}, "1 or more"),
    ],
)
def test_settings_that_do_not_fit_are_refused(stand: Stand, changes: dict, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        stand.settings(**changes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("<PP_INFO/>", "not in UPF format"),
        (UPF.format("Ge", 4), "is one of Ge"),
        (UPF.format("Si", 4).replace("PBX  PBC", "PSX  PSC"), "different functionals"),
    ],
)
def test_pseudopotentials_that_cannot_be_used_are_refused(stand: Stand, text: str | None, words: str) -> None:
    (stand.folder / "Si.UPF").unlink()
    if text is not None:
        (stand.folder / "Si.UPF").write_text(text)
    with pytest.raises(ConfigurationError, match=words):
        Espresso(stand.settings())


def test_a_header_of_the_first_version_of_the_format_is_read(stand: Stand) -> None:
    (stand.folder / "Si.UPF").write_text(
        "<PP_HEADER>\n   0   Version Number\n  Si   Element\n   NC   Norm - Conserving\n"
        " SLA  PW   PBE  PBE     PBE  Exchange-Correlation functional\n    4.00000000000   Z valence\n"
        "</PP_HEADER>\n"
    )
    assert Espresso(stand.settings()).level.method == "PBE"


@pytest.mark.parametrize(
    "kind",
    ['pseudo_type="US"', 'pseudo_type="USPP"', ' pseudo_type="PAW"', 'is_ultrasoft="T"', 'is_paw=".true."'],
)
def test_ultrasoft_and_paw_need_a_cutoff_of_the_density(stand: Stand, kind: str) -> None:
    """At four times the other cutoff the forces of N2 are off by 17 meV/Å (500 eV, PAW)."""
    text = UPF.format("Si", 4)
    (stand.folder / "Si.UPF").write_text(text.replace("<PP_HEADER", f"<PP_HEADER {kind}"))
    with pytest.raises(ConfigurationError, match=r"Si: it is ultrasoft or PAW.*state ecutrho_eV"):
        Espresso(stand.settings())
    assert Espresso(stand.settings(ecutrho_eV=800.0)).level.settings["ecutrho_eV"] == 800.0
    (stand.folder / "Si.UPF").write_text(
        text.replace("<PP_HEADER", '<PP_HEADER pseudo_type="NC" is_ultrasoft="F" is_paw="F"')
    )
    assert Espresso(stand.settings()).level.settings["ecutrho_eV"] == 400.0


# ── What it makes of bad ends ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", [0, 2])
def test_no_convergence_is_a_rejection_although_the_job_is_done(stand: Stand, status: int) -> None:
    stand.says(HEAD + SET_UP + UNCONVERGED + DONE, f"exit {status}")
    result = stand.label(max_iterations=2)
    assert isinstance(result, Rejection)
    assert (result.code, result.failure_class) == ("scf_not_converged", FailureClass.PHYSICS)
    assert "max_iterations is 2" in result.message
    assert result.qm_calls == 1


def test_numbers_with_a_word_of_no_convergence_make_no_label(stand: Stand) -> None:
    stand.says(HEAD + SET_UP + RESULT + UNCONVERGED + DONE)
    assert isinstance(stand.label(), Rejection)
    assert not converged(HEAD + SET_UP + RESULT)
    assert not converged(HEAD + SET_UP + DONE)
    assert converged(GOOD)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "-0.01145343    0.00803570\n     atom    2",
            "**********    0.00803570\n     atom    2",
            "no number",
        ),
        ("0.02345483", "0.02345999", "amount to"),
        ("!    total energy", "     total energy", "no total energy"),
        ("   stress  (Ry", "   strain  (Ry", "no stress"),
    ],
)
def test_numbers_that_cannot_be_read_make_no_label(stand: Stand, old: str, new: str, words: str) -> None:
    stand.says(GOOD.replace(old, new))
    result = stand.label()
    assert isinstance(result, Rejection)
    assert (result.code, result.failure_class) == ("unreadable", FailureClass.PHYSICS)
    assert words in result.message


def test_wide_numbers_that_touch_are_told_apart() -> None:
    text = GOOD.replace(
        "0.02345483   -0.01145343    0.00803570", "-1000.00000000-2000.00000000    0.00000000"
    )
    text = text.replace(
        "-0.02345483    0.01145343   -0.00803570", "1000.00000000 2000.00000000    0.00000000"
    )
    numbers = read_numbers(text.replace("0.038623", "3162.277660"))
    assert numbers.forces[0] / numbers.forces[1, 0] == pytest.approx(np.array([-1.0, -2.0, 0.0]))


def test_forces_that_the_scf_leaves_open_are_rejected(stand: Stand) -> None:
    stand.says(GOOD.replace("0.000012", "0.001200"))
    result = stand.label()
    assert isinstance(result, Rejection)
    assert (result.code, result.failure_class) == ("forces_not_converged", FailureClass.PHYSICS)
    assert isinstance(stand.label(max_scf_correction_eV_per_A=0.03), Label)


@pytest.mark.parametrize(
    ("output", "then", "expected"),
    [
        (ERROR.format("cdiaghg", "S matrix not positive definite"), "exit 1", FailureClass.PHYSICS),
        (ERROR.format("davcio", "error writing file ./hpcal.wfc1"), "exit 1", FailureClass.NODE),
        ("", "echo 'forrtl: No space left on device' >&2; exit 24", FailureClass.NODE),
        ("", "echo 'Error allocating 800000000 bytes' >&2; exit 1", FailureClass.RESOURCE),
        ("", "kill -9 $$", FailureClass.RESOURCE),
        ("", "kill -11 $$", FailureClass.PHYSICS),
        ("", "kill -15 $$", FailureClass.NODE),
        ("", "exit 0", FailureClass.BUG),
        (RESULT, "exit 3", FailureClass.BUG),
        (RESULT, "exit 0", FailureClass.BUG),
    ],
)
def test_every_bad_end_has_its_class(stand: Stand, output: str, then: str, expected: FailureClass) -> None:
    stand.says(HEAD + SET_UP + output, then)
    if expected is FailureClass.PHYSICS:
        result = stand.label()
        assert isinstance(result, Rejection)
        assert (result.code, result.failure_class) == ("espresso_failed", expected)
    else:
        assert failure_of(stand).failure_class is expected
    stand.says(GOOD)
    assert isinstance(stand.label(), Label)


def test_garbage_and_silence_are_no_labels(stand: Stand) -> None:
    stand.says(HEAD, "head -c 300000 /dev/urandom; exit 0")
    assert failure_of(stand).failure_class is FailureClass.BUG
    stand.says("")
    failure = failure_of(stand)
    assert failure.failure_class is FailureClass.BUG
    assert "it wrote nothing" in str(failure)


def test_an_input_that_it_refuses_is_the_settings_fault(stand: Stand) -> None:
    stand.says(HEAD + ERROR.format("read_namelists", "bad line in namelist &system"), "exit 1")
    with pytest.raises(ConfigurationError, match="bad line in namelist &system"):
        stand.label()


def test_a_calculation_of_something_else_is_no_label(stand: Stand) -> None:
    stand.says(GOOD.replace("8.00", "7.00"))
    assert "7.0 electrons" in str(failure_of(stand))
    labeler = Espresso(stand.settings())
    stand.says(GOOD.replace("v.7.2", "v.7.3"))
    with pytest.raises(TaskFailure, match=r"on this host is 7\.3, and 7\.2") as failure:
        labeler.label(SILICON, Deadline())
    assert failure.value.failure_class is FailureClass.NODE


def test_a_program_that_is_not_there_is_the_hosts_fault(stand: Stand) -> None:
    failure = failure_of(stand, program="no-such-pw.x")
    assert failure.failure_class is FailureClass.NODE
    assert "cannot be started on this host" in str(failure)
    failure = failure_of(stand, program="/bin/echo")
    assert failure.failure_class is FailureClass.NODE
    assert "does not say on this host which version" in str(failure)


# ── Time, memory and processes ───────────────────────────────────────────────────────────────


def hangs(stand: Stand) -> Path:
    """Has the stand-in hang with a process of its own; the file holds both ids."""
    pids = stand.folder / "pids"
    stand.says(HEAD, f"sleep 60 & echo $$ $! > {pids}.new; mv {pids}.new {pids}; wait")
    return pids


def gone(pids: Path, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(running(int(pid)) for pid in pids.read_text().split()):
            return True
        time.sleep(0.05)
    return False


def running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_timeout_and_deadline_end_the_program_and_what_it_started(stand: Stand) -> None:
    pids = hangs(stand)
    failure = failure_of(stand, timeout_s=0.5)
    assert failure.failure_class is FailureClass.RESOURCE
    assert "timeout_s 0.5 is over" in str(failure)
    assert gone(pids)
    labeler = Espresso(stand.settings())
    start = time.monotonic()
    with pytest.raises(TaskFailure, match="its time is up") as raised:
        labeler.label(SILICON, Deadline.after(1.0))
    assert time.monotonic() - start < 1.4
    assert raised.value.failure_class is FailureClass.RESOURCE
    assert gone(pids)
    assert list(stand.scratch.iterdir()) == []


def test_a_program_that_ignores_the_request_to_end_is_killed(stand: Stand) -> None:
    stand.says(HEAD, "trap '' TERM; while :; do sleep 0.1; done")
    labeler = Espresso(stand.settings())
    start = time.monotonic()
    with pytest.raises(TaskFailure, match="its time is up"):
        labeler.label(SILICON, Deadline.after(1.0))
    assert time.monotonic() - start < 2.0


def test_no_time_left(stand: Stand) -> None:
    with pytest.raises(TaskFailure) as failure:
        Espresso(stand.settings()).label(SILICON, Deadline.after(0.0))
    assert failure.value.failure_class is FailureClass.RESOURCE


def test_memory_is_limited_in_the_program_alone(stand: Stand) -> None:
    stand.says(HEAD + SET_UP, f"{sys.executable} -c 'bytearray(400_000_000)' && cat {stand.folder}/rest")
    (stand.folder / "rest").write_text(RESULT + DONE)
    assert isinstance(stand.label(), Label)
    failure = failure_of(stand, memory_MB=200.0)
    assert failure.failure_class in (FailureClass.BUG, FailureClass.RESOURCE)
    assert "MemoryError" in str(failure)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's signal to orphans is Linux's")
def test_a_killed_worker_leaves_no_program(stand: Stand) -> None:
    pids = hangs(stand)
    stand.program.write_text(
        stand.program.read_text()
        .replace("sleep 60 & echo $$ $!", "echo $$")
        .replace("; wait", "; exec sleep 60")
    )
    code = (
        "import sys; from labeling.test_espresso import *\n"
        "stand = Stand.__new__(Stand); stand.folder = Path(sys.argv[1]); "
        "stand.scratch = stand.folder / 'scratch'; stand.program = stand.folder / 'pw.x'\n"
        "make_labeler('espresso', stand.settings()).label(SILICON, Deadline())"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    worker = subprocess.Popen([sys.executable, "-c", code, str(stand.folder)], env=environment)
    try:
        end = time.monotonic() + 30.0
        while not pids.exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert running(int(pids.read_text()))
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    assert gone(pids)


# ── Several ranks ────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch, stand: Stand) -> Path:
    """A launcher that starts its program once, with the number of its ranks as first argument."""
    launcher = stand.folder / "launch"
    launcher.write_text('#!/bin/sh\nshift 2\n"$@"\n')
    launcher.chmod(0o755)
    monkeypatch.setenv(MPI_COMMAND, f"{launcher} -n 2")
    monkeypatch.setenv(MPI_RANKS, "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    return launcher


def test_a_pool_of_ranks_has_its_launcher_used(
    stand: Stand, two_ranks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(stand.folder))
    stand.says(
        GOOD.replace("MPI processes:                 1", "MPI processes:                 2"),
        f"env > {stand.folder}/environment",
        processes=2,
    )
    label = stand.label()
    assert isinstance(label, Label)
    assert label.diagnostics["processes"] == 2
    given = (stand.folder / "environment").read_text()
    assert "OMPI_COMM_WORLD_RANK=" not in given
    assert "TMPDIR=" not in given
    monkeypatch.delenv(MPI_COMMAND)
    stand.says(GOOD, f"env > {stand.folder}/environment")
    assert isinstance(stand.label(), Label)
    assert f"TMPDIR={stand.folder}\n" in (stand.folder / "environment").read_text()


def test_singletons_are_a_bug_that_names_the_pmi(stand: Stand, two_ranks: Path) -> None:
    stand.says(GOOD)
    failure = failure_of(stand)
    assert failure.failure_class is FailureClass.BUG
    for words in ("each of the 2 ranks", "-n 2", "--mpi=pmix for OpenMPI", "--mpi=pmi2 for MPICH"):
        assert words in str(failure)


def test_singletons_are_ended_while_they_run(stand: Stand, two_ranks: Path) -> None:
    stand.says(HEAD, "sleep 30", processes=2)
    start = time.monotonic()
    failure = failure_of(stand)
    assert time.monotonic() - start < 5.0
    assert "runs as a program of its own" in str(failure)


def test_ranks_that_do_not_find_each_other_are_a_bug_that_names_the_pmi(
    stand: Stand, two_ranks: Path
) -> None:
    """What OpenMPI 4.1 under `srun --mpi=pmi2` writes."""
    stand.program.write_text(
        '#!/bin/sh\necho "but OMPI was not built with SLURM\'s PMI support and therefore" >&2\nexit 1\n'
    )
    failure = failure_of(stand)
    assert failure.failure_class is FailureClass.BUG
    assert "--mpi=pmix for OpenMPI" in str(failure)


def test_a_serial_build_under_a_launcher_is_told(stand: Stand, two_ranks: Path) -> None:
    (stand.folder / "banner").write_text("     Program PWSCF v.7.2 starts on x\n     Serial version\n")
    failure = failure_of(stand)
    assert failure.failure_class is FailureClass.BUG
    assert "built without MPI" in str(failure)


def test_a_rank_that_was_killed_is_read_from_the_launchers_status(stand: Stand, two_ranks: Path) -> None:
    head = BANNER.format(processes=2)
    stand.says(head + SET_UP, "exit 137", processes=2)
    assert failure_of(stand).failure_class is FailureClass.RESOURCE
    stand.says(head + SET_UP, "exit 139", processes=2)
    assert isinstance(stand.label(), Rejection)


def test_processes_are_read_from_old_and_new_banners() -> None:
    old = "     Program PWSCF v.6.7MaX starts on\n     Parallel version (MPI), running on    16 processors\n"
    head = read_head(old)
    assert (head.version, head.starts, head.processes) == ("6.7MaX", 1, 16)
    new = read_head(BANNER.format(processes=8))
    assert (new.version, new.processes) == ("7.2", 8)
    assert read_head("").processes is None

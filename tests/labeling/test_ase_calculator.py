"""The labeler ``ase`` around calculators in closed form, and around a program that fails in every way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from click.testing import CliRunner
from pydantic import ValidationError

from hpcal.cli.main import cli
from hpcal.core.deadline import Deadline
from hpcal.core.errors import ConfigurationError, FailureClass, TaskFailure
from hpcal.core.label import Label, Rejection
from hpcal.core.launch import MPI_COMMAND, MPI_RANKS
from hpcal.core.settings import parse_yaml
from hpcal.core.structure import Structure, from_ase
from hpcal.core.units import BOHR, HARTREE
from hpcal.engine.campaign import label_spec
from hpcal.labeling import ase_keeper
from hpcal.labeling.ase_calculator import PREFIX, AseCalculator, full_stress, refusal
from hpcal.labeling.ase_outcome import Finished, check_said, judged
from hpcal.labeling.ase_recipes import RECIPES, CannotTell, by_keys
from hpcal.labeling.ase_settings import AseSettings
from hpcal.labeling.isolated import IsolatedLabeler
from hpcal.testing import check_labeler

WATER = from_ase(molecule("H2O"))
HYDROXIDE = Structure(numbers=[8, 1], positions=[[0, 0, 0], [0, 0, 0.97]], charge=-1)
HYDROXYL = Structure(numbers=[8, 1], positions=[[0, 0, 0], [0, 0, 0.97]], multiplicity=2)
ORCA = """
                       Program Version 5.0.4 -  RELEASE  -
 Total Charge           Charge          ....    {charge}
 Multiplicity           Mult            ....    {multiplicity}
Number of atoms                             ...      3
---------------------------------
CARTESIAN COORDINATES (ANGSTROEM)
---------------------------------
  O      0.000000    0.000000    0.119262
  H      0.000000    0.763239   -0.477047
  H      0.000000   -0.763239   -0.477047
"""
CONVERGED = """
               *                     SUCCESS                       *
               *           SCF CONVERGED AFTER  10 CYCLES          *
Sum of atomic charges:    0.0000000
FINAL SINGLE POINT ENERGY       -76.321044610000
Total Dipole Moment    :     -0.00000      -0.00000      -0.79452
"""
END = """
                             ****ORCA TERMINATED NORMALLY****
"""
UNCONVERGED = """
               *              SCF NOT CONVERGED AFTER 125 CYCLES    *
FINAL SINGLE POINT ENERGY (Wavefunction not fully converged!)      -76.32104461
"""
GRADIENT = """
# The current gradient in Eh/bohr
       0.000000000000
       0.000000000000
       0.020000000000
       0.000000000000
       0.005000000000
      -0.010000000000
       0.000000000000
      -0.005000000000
      -0.010000000000
# The atomic numbers and current coordinates in Bohr
"""
HEAD = ORCA.format(charge=0, multiplicity=1)
GOOD = HEAD + CONVERGED + END


# ── Calculators in closed form ───────────────────────────────────────────────────────────────


def copper() -> Structure:
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=3)
    atoms.set_cell(atoms.cell @ np.array([[1.02, 0.01, 0], [0, 0.99, 0.02], [0, 0, 1.0]]), True)
    return from_ase(atoms)


def test_is_what_ase_calculates() -> None:
    structure = copper()
    label = AseCalculator(AseSettings(calculator="emt")).label(structure, Deadline())
    assert isinstance(label, Label)
    from hpcal.core.structure import to_ase

    atoms = to_ase(structure)
    atoms.calc = EMT()
    assert label.energy == atoms.get_potential_energy()
    assert label.forces == pytest.approx(atoms.get_forces(), abs=1e-15)
    assert label.stress == pytest.approx(atoms.get_stress(voigt=False), abs=1e-15)
    assert abs(label.stress[0, 1]) > 1e-3
    assert label.dipole is None
    assert (label.level.code, label.level.method) == ("ase", "emt")


def test_parameters_reach_the_calculator_and_decide_the_level() -> None:
    argon = Structure(numbers=[18, 18], positions=[[0, 0, 0], [0, 0, 3.9]])
    settings = AseSettings(calculator="lj", parameters={"sigma": 3.4, "epsilon": 0.01, "rc": 12.0})
    labeler = AseCalculator(settings)
    atoms = molecule("H2")
    atoms.numbers, atoms.positions = argon.numbers, argon.positions
    atoms.calc = LennardJones(sigma=3.4, epsilon=0.01, rc=12.0)
    assert labeler.label(argon, Deadline()).energy == atoms.get_potential_energy()
    assert labeler.level != AseCalculator(AseSettings(calculator="lj")).level


def test_a_calculator_in_closed_form_keeps_the_promises_of_labelers() -> None:
    first = copper()
    second = first.with_positions(first.positions + 0.1 * np.eye(4, 3))
    settings = AseSettings(calculator="emt")
    check_labeler(AseCalculator, [first, second], settings=settings, refused=[HYDROXYL])


def test_elements_without_parameters_are_known() -> None:
    assert AseCalculator(AseSettings(calculator="emt")).missing_elements([29, 26, 79]) == (26,)


def test_stress_of_ase_has_six_components() -> None:
    full = full_stress([1, 2, 3, 4, 5, 6])
    assert full.tolist() == [[1, 6, 5], [6, 2, 4], [5, 4, 3]]
    assert full_stress(full) is not None


def test_labels_a_file(tmp_path: Path) -> None:
    from ase.io import read, write

    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=1)
    write(tmp_path / "in.extxyz", [atoms])
    (tmp_path / "label.yaml").write_text("labeler: ase\ncalculator: emt\n")
    arguments = ["label", str(tmp_path / "in.extxyz"), str(tmp_path / "out.extxyz")]
    result = CliRunner().invoke(cli, [*arguments, "--config", str(tmp_path / "label.yaml")])
    assert result.exit_code == 0, result.output
    labelled = read(tmp_path / "out.extxyz")
    atoms.calc = EMT()
    assert labelled.info["REF_energy"] == pytest.approx(atoms.get_potential_energy(), abs=1e-7)
    assert labelled.arrays["REF_forces"] == pytest.approx(atoms.get_forces(), abs=1e-7)


# ── What is refused when the file is read ────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"calculator": "emd"}, "did you mean 'emt'"),
        ({"calculator": "espresso"}, "labeler: espresso"),
        ({"calculator": "tblite"}, "labeler: xtb"),
        ({"calculator": "gaussian"}, "converged_when"),
        ({"calculator": "some.package.Calculator"}, "converged_when"),
        ({"calculator": "gaussian", "converged_when": ["Normal"]}, "as `version`"),
        ({"calculator": "vasp"}, "POTCAR"),
        ({"calculator": "vasp", "files": {"POTCAR": "x"}}, "as `version`"),
        ({"calculator": "nwchem", "parameters": {"charge": 1}}, "charge is given by the structure"),
        ({"calculator": "orca", "parameters": {"mult": 2}}, "mult is given by the structure"),
        ({"calculator": "vasp", "parameters": {"nsw": 5}, "files": {"P": "x"}}, "nsw is given"),
        ({"calculator": "nwchem", "parameters": {"restart": "old"}}, "restart is given"),
        ({"calculator": "nwchem", "command": "nwchem PREFIX.nwi"}, "the program alone"),
        ({"calculator": "emt", "command": "emt"}, "no program"),
        ({"calculator": "emt", "files": {"../x": "x"}}, "no name within"),
        ({"calculator": "emt", "converged_when": ["("]}, "no regular expression"),
        ({"calculator": "emt", "parameters": {"a": float("nan")}}, "only numbers"),
    ],
)
def test_refused_with_a_sentence(values: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        AseSettings.model_validate(values)


def test_paths_are_relative_to_the_file_and_checksums_are_in_the_level(tmp_path: Path) -> None:
    text = "labeler: ase\ncalculator: emt\nfiles: {a/b.txt: here.txt}\n"
    (tmp_path / "here.txt").write_text("one")
    settings = label_spec(parse_yaml(text, "label.yaml"), (), tmp_path).part.settings
    assert isinstance(settings, AseSettings)
    assert settings.found_files() == {"a/b.txt": tmp_path / "here.txt"}
    level = AseCalculator(settings).level
    (tmp_path / "here.txt").write_text("two")
    assert AseCalculator(settings).level != level
    (tmp_path / "here.txt").unlink()
    with pytest.raises(ConfigurationError, match="cannot be read"):
        AseCalculator(settings)


# ── Charge and multiplicity ──────────────────────────────────────────────────────────────────


def test_charge_and_multiplicity_go_where_the_program_takes_them() -> None:
    state = {name: recipe.state for name, recipe in RECIPES.items() if recipe.state is not None}
    assert state["orca"]({}, -1, 2) == {"charge": -1, "mult": 2}
    assert state["cp2k"]({}, 1, 3) == {"charge": 1, "multiplicity": 3, "uks": True}
    assert state["cp2k"]({}, 0, None) == {"charge": 0}
    assert state["vasp"]({}, 1, 3) == {"charge": 1, "nupdown": 2, "ispin": 2}
    assert state["xtb"]({}, 0, 2) == {"charge": 0, "unpaired": 1}
    assert state["psi4"]({}, 0, 2) == {"charge": 0, "multiplicity": 2, "reference": "uhf"}
    assert state["psi4"]({"reference": "cuhf"}, 0, 2)["reference"] == "cuhf"
    assert state["nwchem"]({"xc": "pbe0"}, 0, 2) == {"xc": "pbe0", "charge": 0, "dft": {"mult": 2}}
    scf = state["nwchem"]({"theory": "scf"}, 1, 2)
    assert scf == {"theory": "scf", "charge": 1, "scf": {"nopen": 1, "uhf": None}}
    given = {"a": {"b": 1}}
    assert by_keys("a.q", "a.m")(given, 2, 1) == {"a": {"b": 1, "q": 2, "m": 1}}
    assert given == {"a": {"b": 1}}
    with pytest.raises(CannotTell, match="multiplicity 3"):
        by_keys("charge", None)({}, 0, 3)


def test_who_cannot_be_told_of_it_gets_no_such_structure() -> None:
    labeler = AseCalculator(AseSettings(calculator="emt"))
    for structure in (HYDROXIDE, HYDROXYL):
        result = labeler.label(structure, Deadline())
        assert isinstance(result, Rejection)
        assert (result.code, result.failure_class) == ("charge", FailureClass.INPUT)


@pytest.mark.parametrize(
    ("name", "structure", "code"),
    [
        ("orca", copper(), "periodic"),
        ("vasp", WATER, "not_periodic"),
        ("cp2k", WATER, "no_cell"),
        ("emt", Structure(**{**vars(copper()), "magnetic_moments": [1, 0, 0, 0]}), "moments"),
    ],
)
def test_structures_that_a_program_would_not_take_as_they_are(
    name: str, structure: Structure, code: str
) -> None:
    result = refusal(structure, RECIPES[name], name)
    assert result is not None
    assert result.code == code


def test_ranks_of_a_program_that_starts_them_itself() -> None:
    start = RECIPES["orca"].start_ranks
    assert start is not None
    assert start({"orcablocks": "%scf end"}, 4)["orcablocks"] == "%scf end\n%pal nprocs 4 end"
    assert start({"orcablocks": "%PAL nprocs 2 end"}, 4)["orcablocks"] == "%PAL nprocs 2 end"


def test_a_profile_that_nothing_takes_is_refused() -> None:
    copper = Structure(numbers=[29, 29], positions=[[0, 0, 0], [0, 0, 2.4]])
    source = AseCalculator(AseSettings(calculator="emt", profile={"pseudo_dir": "here"}))
    with pytest.raises(ConfigurationError, match="EMT has no profile that could take pseudo_dir"):
        source.label(copper, Deadline())


# ── What is made of an ending ────────────────────────────────────────────────────────────────


def finished(output: str, **changes: object) -> Finished:
    values = {
        "name": "orca of H2O",
        "answer": {"results": {"energy": -1.0}},
        "statuses": (0,),
        "signal": None,
        "status": 0,
        "output": output,
        "log": "",
        "seconds": 1.0,
    }
    return Finished(**(values | changes))


ERROR = {"error": {"stage": "calculate", "types": ["ParseError"], "message": "bad", "traceback": "Traceback"}}


def test_results_hold_only_with_all_proofs() -> None:
    recipe = RECIPES["orca"]
    assert judged(finished(GOOD), recipe) is None
    assert judged(finished(HEAD + CONVERGED), recipe).code == "not_converged"
    assert judged(finished(HEAD + UNCONVERGED + END), recipe).code == "scf_not_converged"
    assert judged(finished(GOOD + UNCONVERGED), recipe).code == "scf_not_converged"
    assert judged(finished(GOOD, answer=ERROR), recipe).code == "unreadable"


@pytest.mark.parametrize(
    ("changes", "failure_class"),
    [
        ({"statuses": (137,)}, FailureClass.RESOURCE),
        ({"signal": 9}, FailureClass.RESOURCE),
        ({"statuses": (143,)}, FailureClass.NODE),
        ({"statuses": (127,)}, FailureClass.NODE),
        ({"log": "write: No space left on device"}, FailureClass.NODE),
        ({"log": "std::bad_alloc"}, FailureClass.RESOURCE),
        ({"answer": {"error": {**ERROR["error"], "types": ["MemoryError"]}}}, FailureClass.RESOURCE),
        ({"answer": {"error": {**ERROR["error"], "errno": 28}}}, FailureClass.NODE),
        ({"output": "\x00 garbage"}, FailureClass.BUG),
        ({"output": ""}, FailureClass.BUG),
        ({"statuses": (1,)}, FailureClass.BUG),
    ],
)
def test_class_of_a_failure(changes: dict[str, object], failure_class: FailureClass) -> None:
    with pytest.raises(TaskFailure) as failure:
        judged(finished(**{"output": HEAD, "answer": ERROR, **changes}), RECIPES["orca"])
    assert failure.value.failure_class is failure_class


def test_the_programs_own_words() -> None:
    recipe = RECIPES["orca"]
    crashed = finished(HEAD + "ORCA finished by error termination in SCF", answer=ERROR, statuses=(25,))
    assert judged(crashed, recipe).code == "ase_failed"
    assert judged(finished(HEAD, answer=ERROR, statuses=(139,)), recipe).code == "ase_failed"
    with pytest.raises(ConfigurationError, match="UNRECOGNIZED"):
        judged(finished("UNRECOGNIZED OR DUPLICATED KEYWORD(S)", answer=ERROR, statuses=(1,)), recipe)
    ignored = finished(
        "-1- Unknown option '--x' provided\nconvergence criteria satisfied after\n* finished run on"
    )
    with pytest.raises(ConfigurationError, match="--x"):
        judged(ignored, RECIPES["xtb"])


def test_psi4_without_a_right_energy() -> None:
    """ASE reads double hybrids without their perturbative part; amplitudes fail in words of their own."""
    recipe, scf = RECIPES["psi4"], "  Energy and wave function converged.\n"
    assert judged(finished(scf), recipe) is None
    with pytest.raises(ConfigurationError, match="B2PLYP Double Hybrid"):
        judged(finished(f"    B2PLYP Double Hybrid Exchange-Correlation Functional\n{scf}"), recipe)
    stopped = finished(f"{scf}     ** Wave function not converged to 1.0e-07 **", answer=ERROR)
    assert judged(stopped, recipe).code == "scf_not_converged"


def test_what_was_calculated_is_what_was_asked_for() -> None:
    recipe, asked = RECIPES["orca"], {"charge": 0, "multiplicity": 1, "ranks": None}
    check_said(finished(GOOD), recipe, asked, "5.0.4")
    with pytest.raises(TaskFailure, match="charge 1, not 0"):
        check_said(finished(ORCA.format(charge=1, multiplicity=1)), recipe, asked, "5.0.4")
    with pytest.raises(TaskFailure, match=r"orca on this host is 5\.0\.4, and 6\.0"):
        check_said(finished(GOOD), recipe, asked, "6.0")
    with pytest.raises(TaskFailure, match="ranks 1, not 4"):
        check_said(finished("nproc           =        1"), RECIPES["nwchem"], {}, "7") or check_said(
            finished("    nproc           =        1"), RECIPES["nwchem"], {"ranks": 4}, "7"
        )


# ── A program in a process of its own ────────────────────────────────────────────────────────


class Stand:
    """A stand-in for ORCA: does what a test writes into a file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.scratch, self.program = folder, folder / "scratch", folder / "orca"
        self.program.write_text(
            f'#!/bin/sh\n[ -s "$1" ] || {{ cat {folder}/head; exit 2; }}\n. {folder}/acts\n'
        )
        self.program.chmod(0o755)
        (folder / "head").write_text(HEAD)
        (folder / "gradient").write_text(GRADIENT)
        self.labeler = AseCalculator(self.settings())
        self.says(GOOD)

    def settings(self, **changes: object) -> AseSettings:
        values = {
            "calculator": "orca",
            "command": str(self.program),
            "parameters": {"orcasimpleinput": "PBE0 def2-SVP EnGrad"},
            "scratch": self.scratch,
        }
        return AseSettings.model_validate(values | changes)

    def says(self, output: str, then: str = "exit 0", first: str = "") -> None:
        (self.folder / "said").write_text(output)
        self.acts(f"{first}\ncp {self.folder}/gradient orca.engrad\ncat {self.folder}/said\n{then}")

    def acts(self, script: str) -> None:
        (self.folder / "acts").write_text(
            f"cp orca.inp {self.folder}/input\nls -A > {self.folder}/listing\n{script}\n"
        )

    def label(self, structure: Structure = WATER, **changes: object) -> Label | Rejection:
        labeler = AseCalculator(self.settings(**changes)) if changes else self.labeler
        try:
            return labeler.label(structure, Deadline.after(60.0))
        finally:
            assert list(self.scratch.iterdir()) == []

    def failure(self, **changes: object) -> TaskFailure:
        with pytest.raises(TaskFailure) as failure:
            self.label(**changes)
        return failure.value


@pytest.fixture(scope="module")
def only_stand(tmp_path_factory: pytest.TempPathFactory) -> Stand:
    return Stand(tmp_path_factory.mktemp("stand"))


@pytest.fixture
def stand(only_stand: Stand, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    monkeypatch.delenv(MPI_COMMAND, raising=False)
    only_stand.says(GOOD)
    yield only_stand
    (only_stand.folder / "pid").unlink(missing_ok=True)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def pid_in(path: Path) -> int:
    wait_for(lambda: path.exists() and path.read_text().strip() != "")
    return int(path.read_text())


def wait_for(what: Callable[[], bool], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_good_calculation_in_a_fresh_directory(stand: Stand) -> None:
    label = stand.label()
    assert isinstance(label, Label)
    assert label.energy == pytest.approx(-76.32104461 * HARTREE, rel=1e-6)
    assert label.forces[0, 2] == pytest.approx(-0.02 * HARTREE / BOHR, rel=1e-6)
    assert label.dipole[2] == pytest.approx(-0.79452 * BOHR, rel=1e-6)
    assert label.dipole_origin is not None
    assert (label.level.code, label.level.version) == ("orca", "5.0.4")
    assert label.level.method == "PBE0 def2-SVP EnGrad"
    assert "%pal nprocs 1 end" in (stand.folder / "input").read_text()
    assert sorted((stand.folder / "listing").read_text().split()) == ["orca.err", "orca.inp", "orca.out"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "failure_class", "words"),
    [
        ("kill -9 $$", FailureClass.RESOURCE, "SIGKILL"),
        ("kill -TERM $$", FailureClass.NODE, "SIGTERM"),
        ("/bin/echo x > /dev/full", FailureClass.NODE, "No space left"),
        (
            "echo 'cannot allocate memory' >&2; echo 'std::bad_alloc'; exit 134",
            FailureClass.RESOURCE,
            "alloc",
        ),
        ("head -c 3000 /dev/urandom", FailureClass.BUG, "without results"),
        (":", FailureClass.BUG, "without results"),
        ("exec /no/such/program", FailureClass.NODE, "is not found"),
        ("cat {folder}/head", FailureClass.BUG, "Multiplicity"),
        ("cat {folder}/said; cp {folder}/gradient orca.engrad; exit 1", FailureClass.BUG, "status 1"),
    ],
)
def test_ways_to_fail(stand: Stand, script: str, failure_class: FailureClass, words: str) -> None:
    stand.acts(script.format(folder=stand.folder))
    failure = stand.failure()
    assert failure.failure_class is failure_class, failure
    assert words in str(failure)
    stand.says(GOOD)
    assert isinstance(stand.label(), Label)


@pytest.mark.slow
def test_unconverged_with_status_0_is_no_label(stand: Stand) -> None:
    stand.says(HEAD + UNCONVERGED + END)
    result = stand.label()
    assert isinstance(result, Rejection)
    assert (result.code, result.failure_class) == ("scf_not_converged", FailureClass.PHYSICS)
    assert "125 CYCLES" in result.message


@pytest.mark.slow
def test_what_another_calculation_left_is_not_read(stand: Stand, tmp_path: Path) -> None:
    """A good output and a gradient lie where the labeler was started and in the scratch folder."""
    for folder in (tmp_path, stand.scratch):
        (folder / "orca.out").write_text(GOOD)
        (folder / "orca.engrad").write_text(GRADIENT)
    here = Path.cwd()
    os.chdir(tmp_path)
    stand.acts(":")
    try:
        with pytest.raises(TaskFailure) as failure:
            stand.labeler.label(WATER, Deadline.after(60.0))
    finally:
        os.chdir(here)
        for name in ("orca.out", "orca.engrad"):
            (stand.scratch / name).unlink()
    assert failure.value.failure_class is FailureClass.BUG
    assert list(stand.scratch.iterdir()) == []


@pytest.mark.slow
def test_energy_only_where_there_are_no_forces(stand: Stand) -> None:
    stand.acts(f"cat {stand.folder}/said")
    label = stand.label()
    assert isinstance(label, Label)
    assert label.forces is None


@pytest.mark.slow
@pytest.mark.parametrize("session", ["", "setsid "])
def test_out_of_time_ends_what_the_program_started(stand: Stand, session: str) -> None:
    stand.acts(f"cat {stand.folder}/head\n{session}sh -c 'echo $$ > {stand.folder}/pid; sleep 600' &\nwait")
    failure = stand.failure(timeout_s=4.0)
    assert failure.failure_class is FailureClass.RESOURCE
    assert "timeout_s 4 is over" in str(failure)
    assert "Multiplicity" in str(failure)
    assert not alive(pid_in(stand.folder / "pid"))


@pytest.mark.slow
def test_a_process_left_behind_in_good_order_is_ended(stand: Stand) -> None:
    stand.says(GOOD, first=f"setsid sh -c 'echo $$ > {stand.folder}/pid; sleep 600' > /dev/null 2>&1 &")
    assert isinstance(stand.label(), Label)
    assert not alive(pid_in(stand.folder / "pid"))


@pytest.mark.slow
def test_out_of_memory(stand: Stand) -> None:
    hungry = f"{sys.executable} -c 'x = bytearray(2_000_000_000)' || exit 1"
    stand.acts(hungry)
    # Python says MemoryError, as other programs have words of their own.
    stand.says("", then=f"({hungry}) 2>&1 | sed s/MemoryError/std::bad_alloc/")
    failure = stand.failure(memory_MB=1000.0)
    assert failure.failure_class is FailureClass.RESOURCE, failure


@pytest.mark.slow
def test_a_killed_child_leaves_nothing(stand: Stand) -> None:
    """The worker's child is killed in the middle: program, its own session and its directory go."""
    stand.acts(f"setsid sh -c 'echo $$ > {stand.folder}/pid; sleep 600' &\nwait")
    values = stand.settings().model_dump(mode="json")
    with IsolatedLabeler("ase", values) as labeler:
        assert labeler.level == stand.labeler.level
        killer = subprocess.Popen(
            [
                "/bin/sh",
                "-c",
                f"while ! [ -s {stand.folder}/pid ]; do sleep 0.05; done; kill -9 {labeler.pid}",
            ]
        )
        with pytest.raises(TaskFailure) as failure:
            labeler.label(WATER, Deadline.after(60.0))
        killer.wait()
        assert failure.value.failure_class is FailureClass.RESOURCE
        pid = pid_in(stand.folder / "pid")
        wait_for(lambda: not alive(pid), 10.0)
        wait_for(lambda: list(stand.scratch.iterdir()) == [], 10.0)
        stand.says(GOOD)
        assert isinstance(labeler.label(WATER, Deadline.after(60.0)), Label)


@pytest.mark.slow
def test_at_the_deadline_of_the_worker_nothing_is_left(stand: Stand) -> None:
    stand.acts(f"setsid sh -c 'echo $$ > {stand.folder}/pid; sleep 600' &\nwait")
    values = stand.settings(scratch=None).model_dump(mode="json")
    with IsolatedLabeler("ase", values) as labeler:
        assert labeler.level is not None
        with pytest.raises(TaskFailure) as failure:
            labeler.label(WATER, Deadline.after(5.0))
    assert failure.value.failure_class is FailureClass.RESOURCE
    assert not alive(pid_in(stand.folder / "pid"))


@pytest.mark.slow
def test_ranks_of_the_pool(stand: Stand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """ORCA starts its ranks itself; a program without a recipe is started by the launcher."""
    monkeypatch.setenv(MPI_COMMAND, "/no/such/launcher -n 4")
    monkeypatch.setenv(MPI_RANKS, "4")
    assert isinstance(stand.label(timeout_s=60.0), Label)
    assert "%pal nprocs 4 end" in (stand.folder / "input").read_text()
    launcher = tmp_path / "launcher"
    launcher.write_text(f'#!/bin/sh\nprintf "%s " "$@" > {tmp_path}/arguments\nexit 3\n')
    launcher.chmod(0o755)
    monkeypatch.setenv(MPI_COMMAND, f"{launcher} -n 4")
    values = {
        "calculator": "gaussian",
        "command": "g16 < PREFIX.com > PREFIX.log",
        "output": "*.log",
        "converged_when": ["Normal termination"],
        "version": "16",
        "charge_key": "charge",
        "multiplicity_key": "mult",
        "parameters": {"method": "pbe1pbe", "basis": "sto-3g", "extra": "force"},
        "scratch": stand.scratch,
    }
    labeler = AseCalculator(AseSettings.model_validate(values))
    with pytest.raises(TaskFailure) as failure:
        labeler.label(WATER, Deadline.after(60.0))
    assert failure.value.failure_class is FailureClass.BUG
    assert (tmp_path / "arguments").read_text() == "-n 4 g16 "


VASP = """#!/bin/sh
cp INCAR POTCAR {folder}/
cat > vasprun.xml <<'X'
<?xml version="1.0" encoding="ISO-8859-1"?>
<modeling>
 <incar/>
 <kpoints>
  <varray name="kpointlist"><v>0 0 0</v></varray><varray name="weights"><v>1.0</v></varray>
 </kpoints>
 <parameters/>
 <atominfo><array name="atoms"><set>
  <rc><c>Si</c><c>1</c></rc><rc><c>Si</c><c>1</c></rc>
 </set></array></atominfo>
 <structure name="initialpos">
  <crystal><varray name="basis"><v>0 2.7 2.7</v><v>2.7 0 2.7</v><v>2.7 2.7 0</v></varray></crystal>
  <varray name="positions"><v>0 0 0</v><v>0.26 0.25 0.24</v></varray>
 </structure>
 <calculation>
  <scstep>{energy}</scstep>
  <structure>
   <crystal><varray name="basis"><v>0 2.7 2.7</v><v>2.7 0 2.7</v><v>2.7 2.7 0</v></varray></crystal>
   <varray name="positions"><v>0 0 0</v><v>0.26 0.25 0.24</v></varray>
  </structure>
  <varray name="forces"><v>0.1 0.2 0.3</v><v>-0.1 -0.2 -0.3</v></varray>
  <varray name="stress"><v>10 1 2</v><v>1 20 3</v><v>2 3 30</v></varray>
  {energy}
  <dos><i name="efermi">5.0</i></dos>
 </calculation>
</modeling>
X
cp POSCAR CONTCAR
cat > OUTCAR <<'X'
 vasp.6.4.2 20Jul23 (build ...) complex
 running on    1 total cores
   ISPIN  =      1    spin polarized calculation?
   k-points           NKPTS =      1   k-points in BZ     NKDIM =      1   number of bands    NBANDS=      8
{ending}
X
"""
ENERGY = """<energy>
 <i name="e_fr_energy">-10.5</i><i name="e_wo_entrp">-10.3</i><i name="e_0_energy">-10.4</i>
</energy>"""
POTCAR = """  PAW_PBE Si 05Jan2001
   4.00000000000000
   TITEL  = PAW_PBE Si 05Jan2001
   LULTRA =        F    use ultrasoft PP ?
   IUNSCR =        1    unscreen: 0-lin 1-nonlin 2-no
   RPACOR =    1.500    partial core radius
   POMASS =   28.085; ZVAL   =    4.000    mass and valenz
"""
REACHED = """----------------------- aborting loop because EDIFF is reached ------------------------
 General timing and accounting informations for this job:"""


@pytest.mark.slow
def test_vasp_by_a_stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Potentials reach it from `files`; the free energy is the label's; convergence is read."""
    monkeypatch.delenv(MPI_COMMAND, raising=False)
    silicon = Structure(
        numbers=[14, 14],
        positions=np.array([[0, 0, 0], [0.26, 0.25, 0.24]]) @ (np.ones((3, 3)) - np.eye(3)) * 2.7,
        cell=(np.ones((3, 3)) - np.eye(3)) * 2.7,
        pbc=(True, True, True),
        charge=1,
    )
    (tmp_path / "Si").write_text(POTCAR)
    program = tmp_path / "vasp_std"
    script = VASP.replace("{folder}", str(tmp_path)).replace("{energy}", ENERGY)
    program.write_text(script.replace("{ending}", REACHED))
    program.chmod(0o755)
    values = {
        "calculator": "vasp",
        "command": str(program),
        "version": "6.4.2",
        "files": {"potpaw_PBE/Si/POTCAR": tmp_path / "Si"},
        "parameters": {"xc": "PBE", "encut": 300, "kpts": [1, 1, 1]},
    }
    labeler = AseCalculator(AseSettings.model_validate(values))
    label = labeler.label(silicon, Deadline.after(60.0))
    assert isinstance(label, Label), label
    assert label.energy == -10.5
    assert label.diagnostics["energy_without_entropy_eV"] == -10.4
    assert label.forces[1].tolist() == [-0.1, -0.2, -0.3]
    # VASP prints the pressure's sign, in kbar.
    assert label.stress[0, 1] == pytest.approx(-1e8 / 1.602176634e11, rel=1e-6)
    assert label.diagnostics["inputs"]["POTCAR"] == labeler.level.settings["files"]["potpaw_PBE/Si/POTCAR"]
    assert "NELECT = 7.0" in " ".join((tmp_path / "INCAR").read_text().split())
    for ending, code in [
        ("aborting loop EDIFF was not reached (unconverged)", "scf_not_converged"),
        ("aborting loop because EDIFF is reached", "not_converged"),
    ]:
        program.write_text(script.replace("{ending}", ending))
        assert labeler.label(silicon, Deadline.after(60.0)).code == code


def test_marked_processes_are_found_and_ended(tmp_path: Path) -> None:
    environment = {**os.environ, ase_keeper.MARK: str(tmp_path)}
    process = subprocess.Popen(["sleep", "600"], env=environment, start_new_session=True)
    other = subprocess.Popen(["sleep", "600"], env={**environment, ase_keeper.MARK: f"{tmp_path}x"})
    try:
        wait_for(lambda: ase_keeper.marked(tmp_path) == [process.pid])
        ase_keeper.end_all(tmp_path)
        assert process.wait() == -signal.SIGKILL
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
    assert PREFIX.startswith("hpcal-")

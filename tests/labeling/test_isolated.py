"""A labeler in a child process: the same labels, and a known cause for every way to end badly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule

from hpcal.core.deadline import Deadline
from hpcal.core.errors import ConfigurationError, FailureClass, PluginError, TaskFailure
from hpcal.core.label import Label, Rejection
from hpcal.core.structure import Structure, from_ase
from hpcal.labeling.checks import ChecksSettings
from hpcal.labeling.isolated import IsolatedLabeler
from hpcal.labeling.make import make_labeler
from hpcal.labeling.xtb import XTB, XTBSettings

GOOD = Structure(numbers=[2], positions=[[0, 0, 0]])
BAD = Structure(numbers=[2], positions=[[0, 0, 0]], charge=2)
"""The labeler of these tests misbehaves for charged structures only."""

PLUGIN = """
import ctypes, os, pathlib, signal, sys, time
import numpy as np
from hpcal.core.errors import FailureClass, TaskFailure
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.settings import Settings

class OddSettings(Settings):
    does: str = "nothing"
    folder: str = ""

class Odd:
    Settings = OddSettings
    isolate = True
    periodic = False

    def __init__(self, settings):
        self.settings = settings
        if settings.does == "fail at start":
            raise OSError(28, "No space left on device")

    level = LevelOfTheory(code="odd", version="1", method="none")

    def missing_elements(self, numbers):
        return tuple(z for z in numbers if z == 99)

    def label(self, structure, deadline):
        if structure.charge:
            getattr(self, self.settings.does.replace(" ", "_"))(deadline)
        threads = os.environ["OMP_NUM_THREADS"]
        return Label(energy=-float(os.getpid()), forces=np.zeros((len(structure), 3)), level=self.level,
                     diagnostics={"cwd": os.getcwd(), "threads": threads, "tmp": os.environ["PYSCF_TMPDIR"]})

    def nothing(self, deadline): pass
    def hang(self, deadline): time.sleep(60)
    def wait(self, deadline):
        while not deadline.remaining() == 0.0: time.sleep(0.01)
        raise TaskFailure(FailureClass.RESOURCE, "stopped by itself")
    def print(self, deadline):
        print("garbage" * 1000, flush=True)
        os.write(1, b"\\x00\\x01garbage")
        ctypes.CDLL(None).puts(b"garbage from C")
        sys.stdin.read()
    def crash(self, deadline): os.kill(os.getpid(), signal.SIGSEGV)
    def abort(self, deadline): os.abort()
    def bus(self, deadline): os.kill(os.getpid(), signal.SIGBUS)
    def leave(self, deadline):
        print("last words", flush=True)
        os._exit(3)
    def bug(self, deadline): raise KeyError("strange")
    def eat(self, deadline): self.hoard = np.empty(200_000_000)
    def write(self, deadline): pathlib.Path("left_behind").write_bytes(bytes(1000))
"""


@pytest.fixture(autouse=True)
def _plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package with a labeler of its own, as a third party would ship it."""
    folder = tmp_path / "site"
    info = folder / "odd_labeler-0.1.dist-info"
    info.mkdir(parents=True)
    (folder / "odd_labeler.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-labeler\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[hpcal.labelers]\nodd = odd_labeler:Odd\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def odd() -> Iterator[object]:
    opened = []

    def make(does: str, **kwargs: object) -> IsolatedLabeler:
        opened.append(IsolatedLabeler("odd", {"does": does}, **kwargs))
        return opened[-1]

    yield make
    for labeler in opened:
        labeler.close()


def failure_of(labeler: IsolatedLabeler, deadline: Deadline | None = None) -> TaskFailure:
    with pytest.raises(TaskFailure) as failure:
        labeler.label(BAD, deadline or Deadline())
    return failure.value


def assert_works(labeler: IsolatedLabeler) -> None:
    assert isinstance(labeler.label(GOOD, Deadline()), Label)


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def test_the_label_is_the_same_as_in_this_process() -> None:
    atoms = molecule("CH3CONH2")
    atoms.rattle(0.05, seed=1)
    structure = from_ase(atoms)
    here = XTB(XTBSettings()).label(structure, Deadline())
    with IsolatedLabeler("xtb", {"method": "GFN2-xTB"}) as labeler:
        there = labeler.label(structure, Deadline())
        assert labeler.level == XTB(XTBSettings()).level
        assert labeler.periodic
        assert labeler.missing_elements([6, 92]) == (92,)
    assert isinstance(there, Label)
    assert there.energy == here.energy
    assert np.array_equal(there.forces, here.forces)
    assert np.array_equal(there.charges, here.charges)
    assert np.array_equal(there.dipole, here.dipole)
    assert there.level == here.level


def test_rejections_cross_too() -> None:
    with IsolatedLabeler("xtb", {"max_iterations": 1}) as labeler:
        result = labeler.label(from_ase(molecule("CH3OH")), Deadline())
    assert isinstance(result, Rejection)
    assert (result.code, result.failure_class) == ("scf_not_converged", FailureClass.PHYSICS)


def test_pyscf_in_a_child_with_checks() -> None:
    settings = {"method": "hf", "basis": "sto-3g"}
    with make_labeler("pyscf", settings, ChecksSettings(), memory_MB=1000) as labeler:
        label = labeler.label(from_ase(molecule("H2O")), Deadline.after(60))
        assert labeler.level.method == "hf"
        assert labeler.label(from_ase(molecule("OH")), Deadline()).code == "parity"
    assert isinstance(label, Label)
    assert label.energy == pytest.approx(-2039.8, abs=1.0)
    assert label.diagnostics["checks"]["net_force"]["passed"]


def test_no_heavy_library_is_loaded_in_the_worker() -> None:
    script = """
import sys
from hpcal.labeling.make import make_labeler
with make_labeler("pyscf", {"method": "hf", "basis": "sto-3g"}) as p, make_labeler("xtb", {}) as x:
    assert p.level.code == "pyscf" and x.level.code == "tblite"
loaded = {"pyscf", "tblite", "torch", "scipy"} & set(sys.modules)
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_one_child_serves_many_labels(odd: object) -> None:
    labeler = odd("nothing")
    energies = {labeler.label(GOOD, Deadline()).energy for _ in range(3)}
    assert energies == {-float(labeler.pid)}
    assert labeler.pid != os.getpid()


def test_garbage_on_standard_output_does_no_harm(odd: object, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "label.log"
    labeler = odd("print", log=log)
    assert isinstance(labeler.label(BAD, Deadline()), Label)
    assert_works(labeler)
    labeler.close()
    text = log.read_text(errors="replace")
    assert text.count("garbage") > 1000
    assert "garbage from C" in text


def test_killed_from_outside_during_a_label(odd: object) -> None:
    labeler = odd("hang")
    assert_works(labeler)
    before = labeler.pid
    threading.Timer(0.3, os.kill, (before, signal.SIGKILL)).start()
    failure = failure_of(labeler)
    assert failure.failure_class is FailureClass.RESOURCE
    assert "killed by signal 9 (SIGKILL: most likely out of memory" in str(failure)
    assert_works(labeler)
    assert labeler.pid != before


def test_killed_between_labels(odd: object) -> None:
    labeler = odd("nothing")
    assert_works(labeler)
    os.kill(labeler.pid, signal.SIGKILL)
    time.sleep(0.2)
    assert_works(labeler)


@pytest.mark.parametrize(
    ("does", "failure_class", "told"),
    [
        ("crash", FailureClass.PHYSICS, "SIGSEGV"),
        ("abort", FailureClass.PHYSICS, "SIGABRT"),
        ("bus", FailureClass.NODE, "SIGBUS"),
        ("leave", FailureClass.BUG, "last words"),
        ("bug", FailureClass.BUG, "KeyError: 'strange'"),
    ],
)
def test_bad_endings_have_a_class_and_the_next_label_works(
    odd: object, does: str, failure_class: FailureClass, told: str
) -> None:
    labeler = odd(does)
    failure = failure_of(labeler)
    assert failure.failure_class is failure_class
    assert told in str(failure)
    assert_works(labeler)


def test_an_exception_keeps_its_traceback_and_the_child(odd: object) -> None:
    labeler = odd("bug")
    assert_works(labeler)
    before = labeler.pid
    assert "odd_labeler.py" in str(failure_of(labeler))
    assert labeler.pid == before


def test_a_hanging_label_is_ended_at_the_deadline(odd: object) -> None:
    labeler = odd("hang")
    assert_works(labeler)
    child, start = labeler.pid, time.monotonic()
    failure = failure_of(labeler, Deadline.after(0.3))
    assert failure.failure_class is FailureClass.RESOURCE
    assert 0.3 <= time.monotonic() - start < 5
    assert gone(child)
    assert_works(labeler)


def test_a_label_that_minds_the_deadline_keeps_its_child(odd: object) -> None:
    labeler = odd("wait")
    assert_works(labeler)
    child = labeler.pid
    failure = failure_of(labeler, Deadline.after(0.2))
    assert str(failure) == "stopped by itself"
    assert labeler.pid == child


def test_no_time_left_does_not_start_a_child(odd: object) -> None:
    labeler = odd("nothing")
    assert failure_of(labeler, Deadline.after(0.0)).failure_class is FailureClass.RESOURCE
    assert labeler.pid is None


def test_the_memory_limit_is_a_lack_of_resources(odd: object) -> None:
    labeler = odd("eat", memory_MB=1000)
    failure = failure_of(labeler)
    assert failure.failure_class is FailureClass.RESOURCE
    assert "memory" in str(failure)
    assert_works(labeler)
    roomy = odd("eat", memory_MB=4000)
    assert isinstance(roomy.label(BAD, Deadline()), Label)


def test_scratch_and_threads(odd: object, scratch: Path) -> None:
    labeler = odd("write", threads=3)
    label = labeler.label(BAD, Deadline())
    (folder,) = scratch.iterdir()
    assert label.diagnostics["cwd"] == label.diagnostics["tmp"] == str(folder)
    assert (folder / "left_behind").exists()
    assert label.diagnostics["threads"] == "3"
    labeler.close()
    assert not any(scratch.iterdir())


@pytest.mark.parametrize("does", ["crash", "hang"])
def test_scratch_is_removed_after_a_bad_ending(odd: object, scratch: Path, does: str) -> None:
    labeler = odd(does)
    assert_works(labeler)
    failure_of(labeler, Deadline.after(0.2))
    assert not any(scratch.iterdir())


def test_the_child_ends_with_its_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = """
import time
from hpcal.core.deadline import Deadline
from hpcal.core.structure import Structure
from hpcal.labeling.isolated import IsolatedLabeler
labeler = IsolatedLabeler("odd", {"does": "hang"})
labeler.level
print(labeler.pid, flush=True)
labeler.label(Structure(numbers=[2], positions=[[0, 0, 0]], charge=2), Deadline())
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    worker = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment
    )
    with worker:
        child = int(worker.stdout.readline())
        assert not gone(child)
        worker.kill()
    end = time.monotonic() + 10
    while not gone(child) and time.monotonic() < end:
        time.sleep(0.02)
    assert gone(child)
    # Nobody was left to remove its scratch directory: the next labeler does.
    assert len(list(tmp_path.glob("hpcal-label-*"))) == 1
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with IsolatedLabeler("odd", {}) as one, IsolatedLabeler("odd", {}) as other:
        assert_works(one)
        assert_works(other)
        assert len(list(tmp_path.glob("hpcal-label-*"))) == 2
    assert not list(tmp_path.glob("hpcal-label-*"))


def test_settings_that_do_not_fit() -> None:
    for settings in ({"method": "hf"}, {"method": "wb97x-d4", "basis": "sto-3g"}):
        with (
            IsolatedLabeler("pyscf", settings) as labeler,
            pytest.raises(ConfigurationError, match=r"basis|wb97x-d4"),
        ):
            labeler.label(GOOD, Deadline())


def test_an_unknown_labeler() -> None:
    with pytest.raises(PluginError, match="did you mean 'pyscf'"):
        make_labeler("pyscff", {})
    with IsolatedLabeler("pyscff", {}) as labeler, pytest.raises(PluginError, match="did you mean 'pyscf'"):
        labeler.label(GOOD, Deadline())


def test_a_machine_that_fails_at_the_start(odd: object, scratch: Path) -> None:
    labeler = odd("fail at start")
    for _ in range(2):
        assert failure_of(labeler).failure_class is FailureClass.NODE
    assert not any(scratch.iterdir())

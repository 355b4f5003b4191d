"""Faults of real calculations of PySCF in their child process: killed, no memory, no time, no room on disk.

After each: the right class, nothing left in scratch, and the next label is what it would have been.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ase.build import molecule

from hpcal.core.deadline import Deadline
from hpcal.core.errors import FailureClass, TaskFailure
from hpcal.core.label import Label, Rejection
from hpcal.core.structure import Structure, from_ase
from hpcal.labeling.isolated import IsolatedLabeler
from hpcal.labeling.pyscf import PySCF
from hpcal.labeling.pyscf_settings import PySCFSettings
from hpcal.labeling.scf import Rung

WATER = from_ase(molecule("H2O"))
HYDROGEN = from_ase(molecule("H2"))
ETHANOL = from_ase(molecule("CH3CH2OH"))
HYDROXYL = from_ase(molecule("OH"), multiplicity=2)
STRETCHED = Structure(numbers=[1, 1], positions=[[0, 0, 0], [0, 0, 1.6]])
ON_DISK = {"method": "hf", "basis": "6-31g*", "density_fit": True, "max_memory_MB": 100}
"""With less memory than PySCF itself takes, it keeps its integrals in files."""
CORRELATED = {"method": "mp2", "basis": "6-31g*", "max_memory_MB": 100}
TRIPLE_ZETA = {"method": "ccsd", "basis": "cc-pvtz", "forces": False}
SAME_ENERGY = 1e-8
"""eV; one calculation made twice: blocks, and so the order of sums, follow the memory that is free."""
SAME_FORCE = 1e-6
"""eV/Å."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sets limits of another process"),
]


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Path]]:
    """The temporary space on a file system in memory of so many kB; called again it has another size."""
    if not shutil.which("mount") or os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted: list[Path] = []

    def mount(kilobytes: int) -> Path:
        options = f"size={kilobytes}k" + (",remount" if mounted else "")
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"mounting a tmpfs is not permitted here: {done.stderr.strip()}")
        mounted.append(disk)
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        return disk

    yield mount
    if mounted:
        subprocess.run(["umount", "-l", str(disk)], check=True)


_UNDISTURBED: dict[str, Label] = {}


def undisturbed(settings: dict[str, object], structure: Structure = WATER) -> Label:
    """The label of a labeler to which nothing happens."""
    key = repr((settings, structure.formula))
    if key not in _UNDISTURBED:
        with IsolatedLabeler("pyscf", settings) as labeler:
            found = labeler.label(structure, Deadline())
        assert isinstance(found, Label)
        _UNDISTURBED[key] = found
    return _UNDISTURBED[key]


def assert_same(found: object, expected: Label) -> None:
    assert isinstance(found, Label), found
    assert found.energy == pytest.approx(expected.energy, abs=SAME_ENERGY)
    if expected.forces is not None:
        assert found.forces == pytest.approx(expected.forces, abs=SAME_FORCE)


def outcome(
    labeler: IsolatedLabeler, deadline: Deadline | None = None, structure: Structure = WATER
) -> Label | Rejection | TaskFailure:
    try:
        return labeler.label(structure, deadline or Deadline())
    except TaskFailure as failure:
        return failure


def left_in(folder: Path) -> list[str]:
    """Files of calculations: of a living child, all but a lock and a log."""
    names = [file.name for file in folder.rglob("*") if file.is_file()]
    return [name for name in names if name not in ("lock", "child.log")]


def running(labeler: IsolatedLabeler, about: int) -> int:
    """The process id of the child, which is started where none runs; asks it about a new element."""
    assert not labeler.missing_elements([about])
    assert labeler.pid is not None
    return labeler.pid


# ── Killed ───────────────────────────────────────────────────────────────────────────────────


def strike(pid: int, number: signal.Signals, folder: Path) -> None:
    """Sends a signal once a calculation has its integrals on disk, and so is in its iterations."""
    end = time.monotonic() + 60
    while sum(f.stat().st_size for f in folder.rglob("tmp*")) < 4_000_000 and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.3)
    os.kill(pid, number)


@pytest.mark.parametrize(
    ("number", "failure_class"),
    [
        (signal.SIGKILL, FailureClass.RESOURCE),
        (signal.SIGABRT, FailureClass.PHYSICS),
    ],
)
def test_killed_during_an_scf(number: signal.Signals, failure_class: FailureClass, scratch: Path) -> None:
    with IsolatedLabeler("pyscf", ON_DISK) as labeler:
        hand = threading.Thread(target=strike, args=(running(labeler, 1), number, scratch))
        hand.start()
        failure = outcome(labeler, structure=ETHANOL)
        hand.join()
        assert isinstance(failure, TaskFailure), failure
        assert failure.failure_class is failure_class
        assert number.name in str(failure)
        if number is signal.SIGABRT:
            # Only here the child can still say where it was.
            assert "scf/hf.py" in str(failure)
        assert not any(scratch.iterdir())
        assert_same(labeler.label(WATER, Deadline()), undisturbed(ON_DISK))
    assert not any(scratch.iterdir())


# ── Out of time ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("settings", [ON_DISK, CORRELATED], ids=["scf", "mp2"])
def test_a_deadline_anywhere_gives_the_label_or_no_time(settings: dict[str, object], scratch: Path) -> None:
    expected = undisturbed(settings)
    with IsolatedLabeler("pyscf", settings) as labeler:
        start = time.monotonic()
        assert_same(labeler.label(WATER, Deadline()), expected)
        whole = time.monotonic() - start
        late = 0
        for element, share in enumerate((0.02, 0.3, 0.6, 0.9), start=1):
            running(labeler, element)
            found = outcome(labeler, Deadline.after(share * whole))
            assert not left_in(scratch)
            if isinstance(found, TaskFailure):
                late += 1
                assert found.failure_class is FailureClass.RESOURCE
                assert "time" in str(found)
            else:
                assert_same(found, expected)
        assert late >= 2
        assert_same(labeler.label(WATER, Deadline()), expected)
    assert not any(scratch.iterdir())


def test_a_stretch_that_does_not_look_at_the_clock_is_ended(scratch: Path) -> None:
    """An iteration with integrals on disk takes seconds here."""
    with IsolatedLabeler("pyscf", ON_DISK) as labeler:
        assert labeler.level.method == "hf"
        start = time.monotonic()
        failure = outcome(labeler, Deadline.after(1.5), ETHANOL)
        assert time.monotonic() - start < 10
        assert isinstance(failure, TaskFailure), failure
        assert failure.failure_class is FailureClass.RESOURCE
        assert not left_in(scratch)
        assert_same(labeler.label(WATER, Deadline()), undisturbed(ON_DISK))


# ── Out of memory ────────────────────────────────────────────────────────────────────────────


def memory_of_child(pid: int) -> int:
    """Bytes of the data segment of a child."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (data,) = [line for line in lines if line.startswith("VmData")]
    return int(data.split()[1]) * 1024


def test_memory_refused_at_any_moment_is_too_little_memory(scratch: Path) -> None:
    """Also where compiled code does not look whether it got its memory, and crashes."""
    expected, short = undisturbed(TRIPLE_ZETA), 0
    with IsolatedLabeler("pyscf", TRIPLE_ZETA, memory_MB=500) as labeler:
        for element, more in enumerate((5, 40, 60, 80, 120, 4000), start=1):
            child = running(labeler, element)
            most = memory_of_child(child) + more * 1_000_000
            resource.prlimit(child, resource.RLIMIT_DATA, (most, most))
            found = outcome(labeler, Deadline.after(60))
            if isinstance(found, TaskFailure):
                short += 1
                assert found.failure_class is FailureClass.RESOURCE, found
                assert "memory" in str(found)
            else:
                assert_same(found, expected)
            assert not left_in(scratch)
    assert short >= 4
    assert isinstance(found, Label), found


def test_more_memory_than_there_is_ends_a_calculation_and_the_next_is_made(scratch: Path) -> None:
    """Amplitudes are in memory whatever PySCF is told: 140 MB for water, 83 MB for hydrogen."""
    expected = undisturbed(TRIPLE_ZETA, HYDROGEN)
    with IsolatedLabeler("pyscf", TRIPLE_ZETA, memory_MB=105) as labeler:
        failure = outcome(labeler, Deadline.after(60))
        assert isinstance(failure, TaskFailure), failure
        assert failure.failure_class is FailureClass.RESOURCE
        assert "and has 105" in str(failure)
        assert not any(scratch.iterdir())
        assert_same(labeler.label(HYDROGEN, Deadline()), expected)


def test_addresses_that_are_only_reserved_are_no_memory() -> None:
    """PySCF reserves 3.2 GB a thread wherever it calculates exact exchange without a fit."""
    settings = {"method": "hf", "basis": "6-31g"}
    with IsolatedLabeler("pyscf", settings, threads=2, memory_MB=600) as labeler:
        assert_same(labeler.label(WATER, Deadline()), undisturbed(settings))


def test_the_limit_of_the_child_counts_where_labels_are_refused_before_they_begin() -> None:
    settings = {**TRIPLE_ZETA, "max_memory_MB": 4000}
    with IsolatedLabeler("pyscf", settings, memory_MB=500) as labeler:
        failure = outcome(labeler, Deadline.after(20), from_ase(molecule("C6H6")))
    assert isinstance(failure, TaskFailure), failure
    assert failure.failure_class is FailureClass.RESOURCE
    assert "400 MB may be used" in str(failure)


# ── No room on disk ──────────────────────────────────────────────────────────────────────────


def test_any_limit_on_files_gives_the_label_or_a_fault_of_the_node(scratch: Path) -> None:
    """HDF5 crashes where it closes a file that it could not write."""
    expected, full = undisturbed(CORRELATED), 0
    with IsolatedLabeler("pyscf", CORRELATED) as labeler:
        for element, kilobytes in enumerate((1, 50, 80, 110, 140, 170), start=1):
            resource.prlimit(running(labeler, element), resource.RLIMIT_FSIZE, (kilobytes * 1000, -1))
            found = outcome(labeler)
            if isinstance(found, TaskFailure):
                full += 1
                assert found.failure_class is FailureClass.NODE, found
                assert not any(scratch.iterdir())
            else:
                assert_same(found, expected)
        assert full >= 4
        resource.prlimit(running(labeler, 7), resource.RLIMIT_FSIZE, (-1, -1))
        assert_same(labeler.label(WATER, Deadline()), expected)
    assert not any(scratch.iterdir())


@pytest.mark.parametrize("kilobytes", [8, 60, 200])
def test_a_full_scratch_is_a_fault_of_the_node(kilobytes: int, small_disk: Callable[[int], Path]) -> None:
    expected = undisturbed(CORRELATED)
    disk = small_disk(kilobytes)
    with IsolatedLabeler("pyscf", CORRELATED) as labeler:
        failure = outcome(labeler)
        assert isinstance(failure, TaskFailure), failure
        assert failure.failure_class is FailureClass.NODE, failure
        assert not any(disk.iterdir())
        small_disk(100_000)
        assert_same(labeler.label(WATER, Deadline()), expected)
    assert not any(disk.iterdir())


def test_files_in_scratch_need_no_locks_which_network_file_systems_may_lack() -> None:
    with IsolatedLabeler("pyscf", ON_DISK) as labeler:
        environment = Path(f"/proc/{running(labeler, 1)}/environ").read_bytes().split(b"\0")
    assert b"HDF5_USE_FILE_LOCKING=FALSE" in environment


# ── Stopped early ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("structure", "settings"),
    [
        (WATER, {"method": "hf", "basis": "6-31g", "reference": "rks_unchecked"}),
        (HYDROXYL, {"method": "pbe0", "basis": "6-31g", "grid_level": 2, "conv_tol": 1e-11}),
        (STRETCHED, {"method": "hf", "basis": "6-31g**", "conv_tol": 1e-12}),
    ],
    ids=["restricted", "unrestricted", "broken symmetry"],
)
@pytest.mark.parametrize("rung", ["diis", "shift", "newton"])
def test_an_scf_that_is_stopped_early_never_gives_a_label(
    structure: Structure, settings: dict[str, object], rung: Rung
) -> None:
    """Whatever number of iterations there is: the converged label, or a typed rejection."""
    expected = PySCF(PySCFSettings(**settings)).label(structure, Deadline())
    assert isinstance(expected, Label)
    rejected = 0
    for cycles in (1, 2, 3, 5, 8):
        limited = PySCFSettings(**settings, max_cycle=cycles, ladder=(rung,))
        found = PySCF(limited).label(structure, Deadline())
        if isinstance(found, Rejection):
            rejected += 1
            assert (found.code, found.failure_class) == ("scf_not_converged", FailureClass.PHYSICS)
        else:
            # Converged to 1e-9 Hartree both, from different sides.
            assert found.energy == pytest.approx(expected.energy, abs=1e-6)
            assert found.forces == pytest.approx(expected.forces, abs=1e-3)
    assert rejected >= 1 or rung == "newton", "the first iteration converges; ask for more"

"""What a worker reports of an attempt that fails."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hpcal.core.codec import pack
from hpcal.core.errors import FailureClass, FormatError, InputError
from hpcal.engine import tasks
from hpcal.engine.dispatch import Assignment, Report
from hpcal.engine.work.context import Work
from hpcal.labeling.scratch import Scratch


def too_much() -> Exception:
    """What PyTorch raises on the host."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    return caught.value


def attempt(folder: Path, error: Exception, patch: pytest.MonkeyPatch) -> Report:
    """The report of an attempt in which this is raised."""

    def fail(_work: object) -> None:
        raise error

    return carried_out(folder, fail, patch)


def carried_out(
    folder: Path, work: Callable[[Work], None], patch: pytest.MonkeyPatch, **slot: object
) -> Report:
    """The report of an attempt at this work."""
    patch.setattr(tasks, "_function", lambda _kind, _threads: work)
    (folder / "inputs").write_bytes(pack({}))
    return tasks.run_attempt(
        Assignment(
            attempt_id=1,
            task_id=1,
            epoch=1,
            kind="train",
            pool="train",
            priority=0,
            payload=str(folder / "inputs"),
            spool=str(folder / "spool"),
            log=str(folder / "log"),
            scratch=str(folder / "scratch"),
            stop_file=str(folder / "stop"),
            **slot,
        )
    )


def test_temporary_files_of_a_labeler_go_to_the_scratch_space_of_its_pool(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "node"))
    made: list[Path] = []

    def work(_work: Work) -> None:
        scratch = Scratch()
        made.append(scratch.path)
        scratch.remove()

    for folder in (tmp_path / "1", tmp_path / "2"):  # the second finds the variable as it was
        folder.mkdir()
        report = carried_out(folder, work, monkeypatch, temporary="$TMPDIR/hpcal-run")
        assert (report.failure, report.message) == (None, "")
    assert {path.parent for path in made} == {tmp_path / "node" / "hpcal-run" / socket.gethostname()}


def test_where_a_pool_names_no_scratch_the_system_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    found: list[str] = []
    carried_out(tmp_path, lambda _: found.append(tempfile.gettempdir()), monkeypatch)
    assert found == [str(tmp_path)]


def test_a_scratch_space_that_cannot_be_made_is_a_fault_of_the_node(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "file").touch()
    report = carried_out(tmp_path, lambda _: None, monkeypatch, temporary=str(tmp_path / "file"))
    assert report.failure is FailureClass.NODE


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), too_much()],
    ids=lambda e: type(e).__name__,
)
def test_too_little_memory_asks_for_a_larger_slot_and_is_no_fault_of_the_program(
    tmp_path, monkeypatch, error
):
    report = attempt(tmp_path, error, monkeypatch)
    assert report.failure is FailureClass.RESOURCE
    assert report.message == "out of memory; give the pool's workers more of it"


@pytest.mark.parametrize(("error", "damaged"), [(FormatError("cut short"), True), (InputError("H"), False)])
def test_a_damaged_file_is_said_apart_from_other_bad_input(tmp_path, monkeypatch, error, damaged):
    report = attempt(tmp_path, error, monkeypatch)
    assert (report.failure, report.damaged) == (FailureClass.INPUT, damaged)


def test_any_other_fault_keeps_its_traceback(tmp_path, monkeypatch):
    report = attempt(tmp_path, RuntimeError("shapes do not match"), monkeypatch)
    assert report.failure is FailureClass.BUG
    assert "Traceback" in report.message
    assert (tmp_path / "log").read_text() == report.message

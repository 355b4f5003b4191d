"""What a worker reports of an attempt that fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hpcal.core.codec import pack
from hpcal.core.errors import FailureClass, FormatError, InputError
from hpcal.engine import tasks
from hpcal.engine.dispatch import Assignment, Report


def too_much() -> Exception:
    """What PyTorch raises on the host."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    return caught.value


def attempt(folder: Path, error: Exception, patch: pytest.MonkeyPatch) -> Report:
    """The report of an attempt in which this is raised."""

    def fail(_work: object) -> None:
        raise error

    patch.setattr(tasks, "_function", lambda _kind, _threads: fail)
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
        )
    )


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

"""What the ending of a labelling child, and an exception in it, say of the machine."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hpcal.core.errors import FailureClass, TaskFailure
from hpcal.labeling.child import machine_failure
from hpcal.labeling.isolated_end import Ending, has_no_room, wait_for, written_since

HDF5 = (
    "Unable to flush file (file write failed: time = Sat Nov 28 12:54:55 2026\n, filename = '/tmp/tmpov', "
    "file descriptor = 7, errno = {}, error message = '{}', buf = 0x562bac9e3d28, total write size = 1320)"
)


def ending(code: int, output: str = "", **changes: object) -> TaskFailure:
    values = {"code": code, "output": output, "peak_MB": 150.0, "limit_MB": None, "full": False}
    return Ending(**(values | changes)).failure()


@pytest.mark.parametrize("crash", [signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_is_the_structure_unless_the_machine_had_no_more(crash: signal.Signals) -> None:
    assert ending(-crash).failure_class is FailureClass.PHYSICS
    assert ending(-crash, limit_MB=4000.0).failure_class is FailureClass.PHYSICS
    short = ending(-crash, peak_MB=2100.0, limit_MB=4000.0)
    assert short.failure_class is FailureClass.RESOURCE
    assert "2100 of 4000 MB" in str(short)
    assert ending(-crash, full=True).failure_class is FailureClass.NODE
    assert ending(-crash, "write: No space left on device").failure_class is FailureClass.NODE
    said = ending(-crash, "terminate called after throwing an instance of 'std::bad_alloc'")
    assert said.failure_class is FailureClass.RESOURCE


def test_an_exit_without_a_reply_is_a_bug_unless_its_words_say_otherwise() -> None:
    assert ending(3, "last words").failure_class is FailureClass.BUG
    assert "status 3" in str(ending(3, "last words"))
    assert ending(1, "Error: deallocation of mol failed").failure_class is FailureClass.BUG
    assert ending(1, "Disk quota exceeded").failure_class is FailureClass.NODE
    # What was in use when it left by itself says nothing.
    assert ending(1, peak_MB=3900.0, limit_MB=4000.0).failure_class is FailureClass.BUG


@pytest.mark.parametrize(
    "words",
    [
        "OpenBLAS error: Memory allocation still failed after 10 retries, giving up.",
        "malloc(1600082088) failed in CVHFallocate_JKArray",
        "libgomp: Thread creation failed: Resource temporarily unavailable",
        "Error allocating 80000 bytes",
        "OpenBLAS: Cannot allocate memory",
    ],
)
def test_an_exit_of_compiled_code_that_got_no_memory_asks_for_a_larger_slot(words: str) -> None:
    refused = ending(1, f"some lines\n{words}\n")
    assert refused.failure_class is FailureClass.RESOURCE
    assert words in str(refused)


def test_signals_from_outside_stay_what_they_are() -> None:
    assert ending(-signal.SIGTERM, peak_MB=3900.0, limit_MB=4000.0).failure_class is FailureClass.NODE
    assert ending(-signal.SIGKILL, "No space left on device").failure_class is FailureClass.RESOURCE


def test_the_cause_is_at_the_end_of_the_message(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "of another label\nSegmentation fault\n  in flush\n\nExtension modules: " + "numpy, " * 900
    )
    output = written_since(log, len("of another label\n"))
    assert output.strip() == "Segmentation fault\n  in flush"
    assert str(ending(-signal.SIGSEGV, output)).endswith("in flush")


def test_the_memory_of_a_child_is_that_of_this_child() -> None:
    def peak(megabytes: int) -> float:
        code = f"x = bytearray({megabytes} * 10**6); import os; os.kill(os.getpid(), 11)"
        process = subprocess.Popen([sys.executable, "-S", "-c", code])
        process.returncode, found = wait_for(process.pid)
        assert process.returncode == -signal.SIGSEGV
        return found

    # What this process held when it started the child counts too.
    own = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)
    large, small = peak(own + 200), peak(1)
    assert own + 200 < large < own + 300
    assert small < own + 50


def test_a_file_system_with_room_is_not_full(tmp_path: Path) -> None:
    assert not has_no_room(tmp_path)


@pytest.mark.parametrize(
    ("error", "failure_class"),
    [
        (MemoryError(), FailureClass.RESOURCE),
        (RuntimeError("can't start new thread"), FailureClass.RESOURCE),
        (OSError(28, "No space left on device"), FailureClass.NODE),
        (OSError(27, "File too large"), FailureClass.NODE),
        (RuntimeError(HDF5.format(28, "No space left on device")), FailureClass.NODE),
        (OSError(HDF5.format(122, "Disk quota exceeded")), FailureClass.NODE),
    ],
)
def test_exceptions_that_speak_of_the_machine(error: Exception, failure_class: FailureClass) -> None:
    failure = machine_failure(error)
    assert failure is not None
    assert failure.failure_class is failure_class


@pytest.mark.parametrize(
    "error",
    [
        KeyError("strange"),
        RuntimeError("the code is in a bad state"),
        OSError(2, "No such file or directory"),
        RuntimeError(HDF5.format(2, "No such file or directory")),
        TaskFailure(FailureClass.RESOURCE, "the time for this label is up"),
    ],
)
def test_exceptions_that_do_not(error: Exception) -> None:
    assert machine_failure(error) is None

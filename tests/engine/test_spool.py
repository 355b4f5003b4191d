"""Spools: what was finished is there after any kill; what was torn is not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hpcal.core.errors import FailureClass, FormatError, TaskFailure
from hpcal.core.label import Label, LevelOfTheory
from hpcal.engine.spool import SpoolWriter, read_spool

WRITER = """
import sys
from pathlib import Path
import numpy as np
from hpcal.engine.spool import SpoolWriter
with SpoolWriter(Path(sys.argv[1]), attempt=5, epoch=2) as spool:
    for i in range(10**6):
        spool.append({"i": i, "data": np.full(100 + i % 400, float(i))})
        if i % 3 == 0:
            spool.flush()
            print(i, flush=True)
"""


def test_values_come_back_with_who_wrote_them(tmp_path: Path) -> None:
    level = LevelOfTheory(code="tblite", version="0.8", method="GFN2-xTB")
    label = Label(energy=-1.5, forces=np.eye(3), level=level)
    path = tmp_path / "17.spool"
    with SpoolWriter(path, attempt=17, epoch=4) as spool:
        for value in ({"structure": 3, "label": label}, [1, "zwei", None], np.arange(3)):
            spool.append(value)
    found = read_spool(path)
    assert (found.attempt, found.epoch, found.ignored_bytes) == (17, 4, 0)
    assert found.values[0]["label"].energy == -1.5
    assert found.values[0]["label"].level == level
    assert found.values[1] == [1, "zwei", None]
    np.testing.assert_array_equal(found.values[2], np.arange(3))


def test_a_file_cut_at_any_byte_gives_the_first_records(tmp_path: Path) -> None:
    path = tmp_path / "a.spool"
    written = [{"i": i, "data": np.arange(i + 1.0)} for i in range(5)]
    ends = []
    with SpoolWriter(path, attempt=1, epoch=1) as spool:
        for value in written:
            spool.append(value)
            ends.append(path.stat().st_size)
    data = path.read_bytes()
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        found = read_spool(path)
        assert [v["i"] for v in found.values] == list(range(sum(end <= length for end in ends)))
        assert all(np.array_equal(v["data"], w["data"]) for v, w in zip(found.values, written, strict=False))
        whole = [0, *[e for e in ends if e <= length]]
        assert found.ignored_bytes <= length - whole[-1]
        assert found.attempt in (None, 1)
        if found.values:
            assert (found.attempt, found.ignored_bytes) == (1, length - whole[-1])


def test_a_damaged_record_ends_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.spool"
    with SpoolWriter(path, attempt=1, epoch=1) as spool:
        for i in range(4):
            spool.append({"i": i, "data": np.arange(20.0)})
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(data), 60):
        damaged = bytearray(data)
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        if at == 7 and damaged[7] > data[7]:
            continue  # the byte of the format's version says "newer"
        found = read_spool(path)
        assert [v["i"] for v in found.values] == list(range(len(found.values)))
        assert len(found.values) < 4
        assert found.ignored_bytes > 0


@pytest.mark.parametrize("tail", [bytes(1), bytes(4096), b"\xff" * 100, random.Random(1).randbytes(50)])
def test_a_tail_that_is_no_record_is_ignored(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "a.spool"
    with SpoolWriter(path, attempt=1, epoch=1) as spool:
        spool.append("whole")
    path.write_bytes(path.read_bytes() + tail)
    found = read_spool(path)
    assert found.values == ["whole"]
    assert found.ignored_bytes == len(tail)


def test_nothing_written_is_nothing_finished(tmp_path: Path) -> None:
    assert read_spool(tmp_path / "none").values == []
    (tmp_path / "text").write_text("not a spool at all")
    found = read_spool(tmp_path / "text")
    assert (found.attempt, found.values, found.ignored_bytes) == (None, [], 18)
    (tmp_path / "new").write_bytes(b"hpcalsp\x63 and so on")
    with pytest.raises(FormatError, match="newer hpcal"):
        read_spool(tmp_path / "new")


def test_two_processes_do_not_share_a_spool(tmp_path: Path) -> None:
    with SpoolWriter(tmp_path / "a", attempt=1, epoch=1) as spool:
        spool.append(1)
        with pytest.raises(TaskFailure, match="another process") as caught:
            SpoolWriter(tmp_path / "a", attempt=1, epoch=1)
    assert caught.value.failure_class is FailureClass.BUG
    assert read_spool(tmp_path / "a").values == [1]


@pytest.mark.slow
def test_appended_records_reach_the_disk_within_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when nothing more is appended, as in a label that takes minutes."""
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (real(fd), synced.append(time.monotonic()))[0])
    with SpoolWriter(tmp_path / "a", attempt=1, epoch=1) as spool:
        synced.clear()
        start = time.monotonic()
        spool.append(1)
        while not synced and time.monotonic() < start + 5:
            time.sleep(0.01)
        assert synced
        assert synced[0] - start < 1.5
        time.sleep(1.2)
        assert len(synced) == 1  # nothing new, nothing to flush
    assert len(synced) == 2


def test_a_full_disk_is_a_failure_of_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    real = os.write
    room = 600

    def write(fd: int, data: memoryview) -> int:
        nonlocal room
        if room <= 0:
            raise OSError(28, "No space left on device")
        taken = real(fd, data[: min(len(data), room)])
        room -= taken
        return taken

    monkeypatch.setattr(os, "write", write)
    with SpoolWriter(path, attempt=1, epoch=1) as spool:
        spool.append("fits")
        with pytest.raises(TaskFailure, match="the disk is full") as caught:
            spool.append(np.zeros(1000))
        assert caught.value.failure_class is FailureClass.NODE
        room = 10**6
        spool.append("after")
    found = read_spool(path)
    assert found.values == ["fits", "after"]
    assert found.ignored_bytes == 0


def test_a_failed_fsync_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = SpoolWriter(tmp_path / "a", attempt=1, epoch=1, flush_interval_s=60)
    real = os.fsync

    def fsync(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    spool.append(1)
    with pytest.raises(TaskFailure, match="Input/output error"):
        spool.flush()
    monkeypatch.setattr(os, "fsync", real)
    with pytest.raises(TaskFailure, match="Input/output error"):
        spool.append(2)
    with pytest.raises(TaskFailure, match="Input/output error"):
        spool.close()


@pytest.mark.parametrize("seed", range(3))
def test_kill_9_loses_nothing_that_was_flushed(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "a.spool"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    first = writer.stdout.readline()
    time.sleep(float(np.random.default_rng(seed).uniform(0.0, 0.4)))
    writer.send_signal(signal.SIGKILL)
    rest = writer.stdout.read()
    writer.stdout.close()
    assert writer.wait() == -signal.SIGKILL
    flushed = [int(line) for line in (first + rest).splitlines(keepends=True) if line.endswith(b"\n")]
    found = read_spool(path)
    assert found.attempt == 5
    assert [v["i"] for v in found.values] == list(range(len(found.values)))
    assert len(found.values) > flushed[-1]
    assert all((v["data"] == v["i"]).all() for v in found.values)

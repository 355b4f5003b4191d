"""Real faults: processes killed at any moment, disks that fill, limits, files that are cut or changed."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from support.campaigns import content, query

from hpcal.core.ensemble import file_sha256

ZYGOTE = """
import os, sys
import hpcal.cli.run, hpcal.potentials.morse_fit, hpcal.engine.work.learning, hpcal.engine.work.sampling
import hpcal.labeling.teacher, hpcal.sampling.md
from hpcal.cli.main import cli
from hpcal.engine import spool

log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
append = spool.SpoolWriter.append

def noted(self, value):
    append(self, value)
    if isinstance(value, dict) and "result" in value:
        os.write(log, b"%d\\n" % value["structure_id"])

spool.SpoolWriter.append = noted
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        sys.stdin = open(os.devnull)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os._exit(cli.main(args=line.split(), prog_name="hpcal", standalone_mode=False) or 0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""
"""Starts the controller again and again as a process of its own, without the seconds of its imports.

Notes each label as soon as it is finished, that is, in its spool.
"""


class Zygote:
    """Starts controllers."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-c", ZYGOTE, str(log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def start(self, *words: str) -> int:
        self.process.stdin.write(" ".join(words) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def status(self) -> int:
        return int(self.process.stdout.readline())

    def finished(self) -> list[int]:
        return [int(line) for line in self.log.read_text().split()] if self.log.exists() else []

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


@pytest.fixture
def zygote(tmp_path: Path) -> Iterator[Zygote]:
    started = Zygote(tmp_path / "labels.log")
    yield started
    started.close()


def controller(*words: str, limit: int | None = None) -> subprocess.Popen:
    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [sys.executable, "-m", "hpcal.cli.main", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=limited,  # noqa: PLW1509  (no threads are under way in these tests)
    )


def finish(process: subprocess.Popen, seconds: float = 170) -> tuple[int, str]:
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, errors


def uninterrupted(file: Path, root: Path) -> None:
    code, errors = finish(controller("run", str(file), "--dir", str(root), "--inline"))
    assert code == 0, errors


def one(root: Path, sql: str) -> int:
    try:
        return int(query(root, sql)[0][0] or 0)
    except Exception:  # not there yet, or being written
        return 0


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the campaign did not come that far"
        time.sleep(0.05)


def check_whole(root: Path) -> None:
    """Finished, nothing left claimed, one label for a structure, every file what was recorded."""
    assert query(root, "SELECT state FROM campaign") == [("finished",)]
    assert one(root, "SELECT count(*) FROM structure WHERE state = 'claimed'") == 0
    assert one(root, "SELECT count(*) FROM walker WHERE state = 'claimed'") == 0
    assert query(root, "SELECT 1 FROM label GROUP BY structure_id HAVING count(*) > 1") == []
    seqs = [seq for (seq,) in query(root, "SELECT seq FROM label WHERE seq IS NOT NULL ORDER BY seq")]
    assert seqs == list(range(1, len(seqs) + 1))
    recorded = query(root, "SELECT path, sha256 FROM shard")
    recorded += query(root, "SELECT path, sha256 FROM model WHERE path IS NOT NULL")
    assert all(file_sha256(root / path) == digest for path, digest in recorded)


@pytest.fixture
def longer(campaign_file) -> Path:
    """The tiny campaign with more of everything, to be hit in its middle."""
    file = campaign_file(stop="{labels: 60, generations: 4}", threshold="0.01")
    file.write_text(file.read_text().replace("walkers: 8, batch: 8", "walkers: 16, batch: 8"))
    return file


KILLS = 30
ENDED = "SELECT count(*) FROM attempt WHERE state != 'dispatched'"


@pytest.mark.slow
def test_a_controller_killed_thirty_times_ends_like_one_that_was_never_killed(longer, tmp_path, zygote):
    root, rng = tmp_path / "cut", np.random.default_rng(20)
    uninterrupted(longer, tmp_path / "whole")
    attempts = one(tmp_path / "whole", "SELECT count(*) FROM attempt")
    kills = 0
    while True:
        before = one(root, "SELECT lease_epoch FROM campaign")
        ended = one(root, ENDED)
        pid = zygote.start("run", str(longer), "--dir", str(root), "--inline")
        # Somewhere within the first moments of its life, or the next few attempts.
        wait_until(lambda b=before, p=pid: one(root, "SELECT lease_epoch FROM campaign") > b or gone(p))
        share = attempts / KILLS
        target = ended + int(rng.integers(0, max(1, round(2 * share))))
        if kills < KILLS:
            wait_until(lambda t=target, p=pid: one(root, ENDED) >= t or gone(p))
            time.sleep(float(rng.uniform(0, 0.1)))
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)
        status = zygote.status()
        if status == 0:
            break
        assert os.WIFSIGNALED(status), f"the controller ended by itself with status {status}"
        kills += 1
    assert kills >= KILLS
    check_whole(root)
    assert content(root) == content(tmp_path / "whole")
    finished = zygote.finished()
    assert len(finished) == len(set(finished)), "a finished label was computed again"


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_controller_killed_as_it_starts_and_as_it_works(longer, tmp_path, seed):
    """With the real command, its imports included."""
    root, rng = tmp_path / "cut", np.random.default_rng(seed)
    uninterrupted(longer, tmp_path / "whole")
    for _ in range(3):
        process = controller("run", str(longer), "--dir", str(root), "--inline")
        time.sleep(float(rng.uniform(0.2, 6.0)))
        process.kill()
        process.communicate()
    code, errors = finish(controller("run", str(longer), "--dir", str(root), "--inline"))
    assert code == 0, errors
    check_whole(root)
    assert content(root) == content(tmp_path / "whole")


@pytest.mark.parsl
def test_a_parsl_campaign_whose_controller_is_killed_again_and_again(longer, tmp_path):
    root, rng = tmp_path / "run", np.random.default_rng(5)
    kills, labels = 0, "SELECT count(*) FROM label"
    for _ in range(8):
        process = controller("run", str(longer), "--dir", str(root))
        target = one(root, labels) + int(rng.integers(1, 5))
        wait_until(lambda t=target, p=process: one(root, labels) >= t or p.poll() is not None)
        time.sleep(float(rng.uniform(0, 0.3)))
        if process.poll() is not None:
            code, errors = finish(process)
            assert code == 0, errors
            break
        process.kill()
        process.communicate()
        kills += 1
    code, errors = finish(controller("run", str(longer), "--dir", str(root)))
    assert code == 0, errors
    assert kills >= 3
    check_whole(root)
    assert one(root, "SELECT count(*) FROM event WHERE kind = 'duplicate_label'") == 0


@pytest.mark.parsl
def test_parsl_workers_killed_at_random_cost_attempts_and_no_label(longer, tmp_path):
    root, rng = tmp_path / "run", np.random.default_rng(6)
    process = controller("run", str(longer), "--dir", str(root))
    labels = "SELECT count(*) FROM label"
    for number in range(3):
        wait_until(lambda n=number, p=process: one(root, labels) >= 8 * (n + 1) or p.poll() is not None)
        pids = {pid for (pid,) in query(root, "SELECT DISTINCT pid FROM attempt WHERE state = 'done'")}
        alive = sorted(pid for pid in pids if pid is not None and not gone(pid))
        if alive and process.poll() is None:
            os.kill(alive[int(rng.integers(len(alive)))], signal.SIGKILL)
    # A worker that takes a lock or a result with it is found after a minute.
    code, errors = finish(process, 400)
    assert code == 0, errors
    check_whole(root)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system in memory of so many kB; called again it is given another size."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted: list[Path] = []

    def mount(kilobytes: int) -> Path:
        options = f"size={kilobytes}k" + (",remount" if mounted else "")
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            pytest.skip(f"mounting a tmpfs is not permitted here: {done.stderr.strip()}")
        mounted.append(disk)
        return disk

    yield mount
    if mounted:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def size_of(folder: Path) -> int:
    """kB on disk, in pages as a tmpfs counts them."""
    return sum(-(-f.stat().st_size // 4096) * 4 for f in folder.rglob("*") if f.is_file())


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.25, 0.7, 0.85])
def test_a_disk_that_fills_stops_with_a_sentence_and_goes_on_when_there_is_room(
    longer, tmp_path, small_disk, share
):
    if not shutil.which("mount") or os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    uninterrupted(longer, tmp_path / "whole")
    root = small_disk(int(share * size_of(tmp_path / "whole"))) / "run"
    words = ("run", str(longer), "--dir", str(root), "--inline")
    code, errors = finish(controller(*words))
    assert code == 1, errors
    said = [line for line in errors.splitlines() if line.startswith("hpcal: ")]
    assert len(said) == 1, errors
    assert "Traceback" not in errors
    assert "space" in said[0] or "full" in said[0]
    # The smallest disk is too small for a campaign to begin.
    begun = one(root, "SELECT count(*) FROM campaign") == 1
    kept = query(root, "SELECT seq, structure_id, energy FROM label ORDER BY seq") if begun else []
    assert kept or share == 0.25
    small_disk(64_000)
    code, errors = finish(controller(*words))
    assert code == 0, errors
    check_whole(root)
    assert query(root, "SELECT seq, structure_id, energy FROM label ORDER BY seq")[: len(kept)] == kept
    assert content(root) == content(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.7, 0.9])
def test_a_limit_on_the_size_of_files_stops_with_a_sentence(longer, tmp_path, share):
    uninterrupted(longer, tmp_path / "whole")
    largest = max(f.stat().st_size for f in (tmp_path / "whole").rglob("*") if f.is_file())
    root = tmp_path / "run"
    words = ("run", str(longer), "--dir", str(root), "--inline")
    code, errors = finish(controller(*words, limit=int(share * largest)))
    assert code == 1, errors
    said = [line for line in errors.splitlines() if line.startswith("hpcal: ")]
    assert len(said) == 1, errors
    assert "nothing of this step was kept" in said[0]
    code, errors = finish(controller(*words))
    assert code == 0, errors
    check_whole(root)
    assert content(root) == content(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_files_damaged_while_no_controller_looks_are_redone(longer, tmp_path, zygote, seed):
    """After a kill: a cut model file, a shard with a changed byte and a torn spool at once."""
    root, rng = tmp_path / "run", np.random.default_rng(seed)
    pid = zygote.start("run", str(longer), "--dir", str(root), "--inline")
    wait_until(lambda: one(root, "SELECT count(*) FROM ensemble WHERE state = 'promoted'") >= 2)
    os.kill(pid, signal.SIGKILL)
    zygote.status()
    kept = query(root, "SELECT seq, structure_id, energy FROM label ORDER BY seq")
    models = query(root, "SELECT path FROM model WHERE path IS NOT NULL ORDER BY id")
    model = root / models[int(rng.integers(len(models)))][0]
    os.truncate(model, int(rng.integers(model.stat().st_size)))
    shards = query(root, "SELECT path FROM shard ORDER BY id")
    shard = root / shards[int(rng.integers(len(shards)))][0]
    data = bytearray(shard.read_bytes())
    data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    shard.write_bytes(data)
    for spool in (root / "tasks").glob("*.spool"):
        os.truncate(spool, int(rng.integers(spool.stat().st_size + 1)))
    code, errors = finish(controller("resume", str(root), "--inline"))
    assert code == 0, errors
    events = {kind for (kind,) in query(root, "SELECT DISTINCT kind FROM event")}
    assert {"shard_rewritten", "model_damaged", "model_restored"} <= events
    assert query(root, "SELECT seq, structure_id, energy FROM label ORDER BY seq")[: len(kept)] == kept
    check_whole(root)

"""``hpcal score --mpi``: the result of one process, by ranks that read their own parts; none hangs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cli.helpers import WATER, hpcal

from hpcal.core.dataset import Dataset
from hpcal.core.ensemble import EnsembleManifest, MemberFile, file_sha256
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure
from hpcal.engine.work.context import CHUNK
from hpcal.exchange.hdf5 import write_shard
from hpcal.potentials.morse import Morse

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("mpi4py") is None, reason="no mpi4py: hpcal[mpi]"),
    pytest.mark.skipif(shutil.which("mpirun") is None, reason="no mpirun (Debian: openmpi-bin)"),
]
LEVEL = LevelOfTheory(code="none", version="1", method="none")
FRAMES = 5 * CHUNK + 17


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    files = [Morse.write_member(folder / f"{i}.json", [1, 8], well_depth_eV=4.0 + i) for i in range(3)]
    members = tuple(MemberFile(path=str(f), sha256=file_sha256(f)) for f in files)
    EnsembleManifest(kind="morse", members=members).write(folder)
    return folder


def write_pool(path: Path, last: Structure | None = None) -> Path:
    rng = np.random.default_rng(1)
    structures = [
        Structure(
            numbers=[8, 1, 1][: 2 + i % 2],
            positions=(WATER + rng.normal(scale=0.1, size=(3, 3)))[: 2 + i % 2],
            multiplicity=2 - i % 2,
        )
        for i in range(FRAMES)
    ]
    if last is not None:
        structures[-1] = last
    labels = [Label(energy=-1.0, forces=np.zeros((len(s), 3)), level=LEVEL) for s in structures]
    write_shard(path, Dataset.of(structures, labels))
    return path


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write_pool(tmp_path / "pool.h5")


def start(ranks: int, *arguments: object, code: str = "") -> subprocess.Popen[str]:
    program = f"{code}\nfrom hpcal.cli.main import main\nmain()"
    command = [
        "mpirun",
        "--allow-run-as-root",
        "--oversubscribe",
        "-n",
        str(ranks),
        sys.executable,
        "-c",
        program,
    ]
    return subprocess.Popen(
        [*command, "score", *map(str, arguments), "--mpi"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str], seconds: float = 90.0) -> tuple[int, str, str]:
    """Exit code, output and errors; fails where the ranks hang."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.communicate()
        pytest.fail("the ranks hang")
    return process.returncode, out, err


@pytest.mark.parametrize("ranks", [1, 4])
def test_ranks_write_what_one_process_writes(ranks: int, pool: Path, model: Path, tmp_path: Path) -> None:
    serial, parallel = tmp_path / "serial.extxyz", tmp_path / "parallel.extxyz"
    assert hpcal("score", pool, serial, "--model", model, "--metric", "force_std").exit_code == 0
    code, out, err = ended(start(ranks, pool, parallel, "--model", model, "--metric", "force_std"))
    assert code == 0, err
    assert out.count(f"{FRAMES} structures, largest force_std") == 1
    assert parallel.read_bytes() == serial.read_bytes()
    assert parallel.with_suffix(".json").read_text() == serial.with_suffix(".json").read_text()


def test_bad_input_is_one_sentence_and_2(pool: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.extxyz"
    code, _, err = ended(start(3, tmp_path / "none.h5", out, "--model", model, "--metric", "force_std"))
    assert code == 2
    assert err.count("no such file") == err.count("hpcal: ") == 1
    code, _, err = ended(start(3, pool, out, "--model", tmp_path / "none", "--metric", "force_std"))
    assert code == 2
    assert err.count("hpcal: ") == 1
    assert not out.exists()


def test_bad_input_in_the_part_of_one_rank_ends_all(model: Path, tmp_path: Path) -> None:
    neon = Structure(numbers=[10], positions=[[0, 0, 0]])
    pool = write_pool(tmp_path / "neon.h5", last=neon)
    code, _, err = ended(start(3, pool, tmp_path / "out.extxyz", "--model", model, "--metric", "force_std"))
    assert code == 2
    assert f"to {FRAMES} of" in err
    assert "does not cover Ne" in err


@pytest.mark.parametrize(
    ("error", "expected"),
    [("hpcal.core.errors.InputError('the metric failed')", 2), ("ZeroDivisionError('the metric failed')", 1)],
)
def test_a_rank_that_fails_in_its_scores_ends_all(
    error: str, expected: int, pool: Path, model: Path, tmp_path: Path
) -> None:
    code = (
        "import hpcal.core.errors, time\nfrom mpi4py import MPI\nfrom hpcal.cli import score\n"
        "def fails(*_):\n    if MPI.COMM_WORLD.rank == 2:\n"
        f"        raise {error}\n    time.sleep(300)\n"
        "score._scores = fails\n"
    )
    process = start(3, pool, tmp_path / "out.extxyz", "--model", model, "--metric", "force_std", code=code)
    status, _, err = ended(process)
    assert status == expected
    assert "hpcal: rank 2 of 3: the metric failed" in err
    assert not (tmp_path / "out.extxyz").exists()


def test_a_rank_that_is_killed_ends_all(pool: Path, model: Path, tmp_path: Path) -> None:
    code = (
        "import os, time, signal\nfrom mpi4py import MPI\nfrom hpcal.cli import score\n"
        "def fails(*_):\n    if MPI.COMM_WORLD.rank == 1:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    time.sleep(300)\nscore._scores = fails\n"
    )
    process = start(3, pool, tmp_path / "out.extxyz", "--model", model, "--metric", "force_std", code=code)
    begin = time.monotonic()
    status, _, _ = ended(process)
    assert status != 0
    assert time.monotonic() - begin < 60.0


def test_ranks_that_are_alone_are_told(pool: Path, model: Path, tmp_path: Path) -> None:
    """What a launcher with the wrong PMI makes of ranks."""
    command = [sys.executable, "-m", "hpcal", "score", str(pool), str(tmp_path / "out.extxyz"), "--model"]
    done = subprocess.run(
        [*command, str(model), "--metric", "force_std", "--mpi"],
        env={**os.environ, "SLURM_STEP_NUM_TASKS": "4"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "4 ranks were started, and each runs alone" in done.stderr
    assert not (tmp_path / "out.extxyz").exists()


def test_mpi_is_not_loaded_where_nobody_asks_for_it() -> None:
    """A worker that starts programs of several ranks must not be a rank itself."""
    modules = "hpcal.cli.score, hpcal.cli.ranks, hpcal.labeling.espresso"
    code = f"import sys, {modules}; print('mpi4py' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"

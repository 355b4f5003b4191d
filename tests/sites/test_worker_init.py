"""What the shell of a block does before its workers start, run by a real shell."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from hpcal.core.launch import MPI_COMMAND, MPI_RANKS, rank_launcher
from hpcal.sites import devices
from hpcal.sites.block_end import BLOCK_END
from hpcal.sites.pool import Container, Pool
from hpcal.sites.worker_init import (
    DRAIN,
    POOL_VARIABLE,
    RUN_VARIABLE,
    container_words,
    interpreter,
    worker_init,
)


def environment(pool: Pool, *, batch: bool = False, **given: str) -> dict[str, str]:
    """What workers find in their environment."""
    script = worker_init(pool, "label", "run-1", batch=batch) + "\nenv -0"
    done = subprocess.run(
        ["bash", "-c", script],
        env={"PATH": os.environ["PATH"], **given},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(entry.partition("=")[::2] for entry in done.stdout.split("\0") if entry)


def test_a_block_takes_no_tasks_in_its_last_two_margins() -> None:
    pool = Pool(walltime="00:10:00", walltime_margin=60)
    assert environment(pool, batch=True, SLURM_JOB_END_TIME="10000")[DRAIN] == str(10000 - 120)
    pool = Pool(walltime="00:10:00", walltime_margin=60, worker_init=f"export {BLOCK_END}=5000")
    assert environment(pool, batch=True)[DRAIN] == str(5000 - 120)


def test_threads_pool_and_run() -> None:
    found = environment(Pool(cores_per_worker=3, max_workers_per_node=5))
    assert {found[n] for n in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")} == {"3"}
    assert (found[RUN_VARIABLE], found[POOL_VARIABLE], found["PARSL_CORES"]) == ("run-1", "label", "15")
    assert BLOCK_END not in found
    assert devices.COUNT not in found


def test_what_the_user_sets_comes_last() -> None:
    pool = Pool(
        environment={"OMP_NUM_THREADS": "7", "WORDS": "it's $me {x}"},
        worker_init="export MKL_NUM_THREADS=$OMP_NUM_THREADS",
    )
    found = environment(pool)
    assert (found["OMP_NUM_THREADS"], found["MKL_NUM_THREADS"]) == ("7", "7")
    assert found["WORDS"] == "it's $me {x}"


def test_modules_are_loaded_before_the_users_own_lines() -> None:
    pool = Pool(modules=["gcc/12", "a b"], worker_init="echo then $LOADED >&2; export SEEN=$LOADED")
    script = 'module() { export LOADED="$LOADED[$2]"; }\n' + worker_init(pool, "x", "r", batch=True)
    done = subprocess.run(["bash", "-c", f"{script}\necho $SEEN"], capture_output=True, text=True, check=True)
    assert done.stdout == "[gcc/12][a b]\n"


def test_a_batch_job_knows_its_end() -> None:
    pool = Pool(walltime="00:10:00")
    before = int(time.time())
    found = environment(pool, batch=True)
    assert before + 600 <= int(found[BLOCK_END]) <= time.time() + 600
    assert environment(pool, batch=True, SLURM_JOB_END_TIME="1234")[BLOCK_END] == "1234"
    assert BLOCK_END not in environment(pool, batch=False)


def test_gpus_and_ranks_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(
        nodes_per_block=2,
        available_accelerators=["0.0", "0.1"],
        gpu_vendor="intel",
        gpus_per_worker=2,
        mpi={"command": "srun --mpi=pmix --nodes={nodes} --ntasks={ranks}", "ranks": 16},
    )
    found = environment(pool)
    assert (found[devices.COUNT], found[devices.SHARE], found[devices.VENDOR]) == ("2", "2", "intel")
    assert found[devices.NAMES] == "0.0 0.1"
    for name in (MPI_COMMAND, MPI_RANKS):
        monkeypatch.setenv(name, found[name])
    launcher = rank_launcher()
    assert launcher is not None
    assert launcher.argv(["pw.x"]) == ["srun", "--mpi=pmix", "--nodes=2", "--ntasks=16", "pw.x"]
    assert launcher.ranks == 16


def test_the_interpreter_of_a_pool(tmp_path: Path) -> None:
    assert interpreter(Pool(), tmp_path) == [sys.executable]
    assert interpreter(Pool(python="/opt/x/bin/python"), tmp_path) == ["/opt/x/bin/python"]


@pytest.mark.parametrize(("gpu", "flags"), [("none", []), ("nvidia", ["--nv"]), ("amd", ["--rocm"])])
def test_a_container(tmp_path: Path, gpu: Any, flags: list[str]) -> None:
    container = Container(image="/x/h.sif", gpu=gpu, binds=["/scratch", "/a:/b"], options="--cleanenv -e")
    words = container_words(container)
    binds = ["--bind", "/scratch", "--bind", "/a:/b"]
    assert words == ["apptainer", "exec", *flags, *binds, "--cleanenv", "-e", "/x/h.sif"]
    assert interpreter(Pool(container=container), tmp_path) == [*words, "python3"]


def test_an_archive_that_was_made_anew_is_unpacked_anew_where_the_old_one_is_still_there(
    tmp_path: Path,
) -> None:
    archive, said = tmp_path / "env.tar", []
    for version in ("old", "newer"):
        program = tmp_path / version / "python"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\necho {version}\n")
        program.chmod(0o755)
        with tarfile.open(archive, "w") as tar:
            tar.add(program, arcname="bin/python")
        os.utime(archive, (1e9 + len(version),) * 2)
        words = interpreter(Pool(staged_environment=str(archive)), tmp_path)
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        said.append(subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout)
    assert said == ["old\n", "newer\n"]
    homes = [path for path in tmp_path.glob("hpcal-environment-*") if path.is_dir()]
    assert {path.stat().st_mode & 0o777 for path in homes} == {0o700}


def test_a_staged_environment_is_unpacked_once_by_all_workers_of_a_node(tmp_path: Path) -> None:
    made = tmp_path / "made" / "bin"
    made.mkdir(parents=True)
    (made / "python").write_text('#!/bin/sh\necho ran "$@" with "$(command -v python)"\n')
    (made / "conda-unpack").write_text(f"#!/bin/sh\necho once >> {tmp_path}/unpacked\n")
    for program in made.iterdir():
        program.chmod(0o755)
    archive = tmp_path / "env.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(made, arcname="bin")
    words = interpreter(Pool(staged_environment=str(archive)), tmp_path)
    node = tmp_path / "node"
    node.mkdir()
    started = [
        subprocess.Popen(
            [*words, "-m", "x"], env={**os.environ, "TMPDIR": str(node)}, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    said = [process.communicate(timeout=60)[0] for process in started]
    assert all(text.startswith("ran -m x with ") and str(node) in text for text in said), said
    assert (tmp_path / "unpacked").read_text() == "once\n"

"""Parsl as a site asks for it: every pool works, and nothing outlives its controller."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import parsl
import psutil
import pytest
from parsl.executors.high_throughput.errors import ManagerLost
from support.slurm import Commands, eventually

from hpcal.core.errors import ConfigurationError
from hpcal.sites.block_errors import block_error_handler
from hpcal.sites.parsl_config import end_parsl, parsl_config, parsl_log
from hpcal.sites.render import rendered
from hpcal.sites.schema import Site
from hpcal.sites.strays import end_strays, strays
from hpcal.sites.worker_init import RUN_VARIABLE
from hpcal.sites.worker_manager import counted

CONTROLLER = """
import os, subprocess, sys, time
from pathlib import Path
import parsl
from hpcal.sites.parsl_config import parsl_config
from hpcal.sites.schema import Site
if __name__ == "__main__":
    site = Site(pools={"label": {"max_workers_per_node": 2}, "sample": {}, "train": {}})
    parsl.load(parsl_config(site, Path(sys.argv[1]), sys.argv[2]))
    print("loaded", flush=True)
    pools = list(site.pools)
    for future in [parsl.python_app(os.getpid, executors=[p], cache=False)() for p in pools]:
        future.result()
    for pool in pools:
        parsl.python_app(subprocess.call, executors=[pool], cache=False)(["sleep", "600"])
    time.sleep(1)
    print("busy", flush=True)
    time.sleep(600)
"""


def slurm_site(**pool: Any) -> Site:
    return Site.model_validate(
        {"kind": "slurm", "walltime": "01:00:00", "pools": {"label": pool, "sample": {}, "train": {}}}
    )


def small_site(**pool: Any) -> Site:
    return Site(
        pools={
            "label": {"max_workers_per_node": 2, "cores_per_worker": 3, **pool},
            "sample": {"environment": {"OMP_NUM_THREADS": "7", "GREETING": "it's me {x}"}},
            "train": {"worker_init": "export FROM_SHELL=$((6*7))"},
        }
    )


@contextmanager
def running(site: Site, folder: Path, run_id: str) -> Iterator[Callable[..., Future[Any]]]:
    """Submits to a pool: ``submit(pool, function, *arguments)``."""
    with parsl.load(parsl_config(site, folder, run_id)) as kernel:

        def submit(pool: str, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
            app = parsl.python_app(function, data_flow_kernel=kernel, executors=[pool], cache=False)
            return app(*arguments)

        yield submit


def gone_after(processes: list[psutil.Process], limit_s: float) -> float:
    start = time.monotonic()
    while time.monotonic() - start < limit_s:
        if not any(alive(process) for process in processes):
            return time.monotonic() - start
        time.sleep(0.05)
    raise AssertionError(f"still there after {limit_s} s: {[p.cmdline() for p in processes if alive(p)]}")


def alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_what_parsl_is_told(tmp_path: Path) -> None:
    site = small_site(walltime="01:00:00", heartbeat_period=3, heartbeat_threshold=30)
    config = parsl_config(site, tmp_path / "parsl", "run")
    label = config.executors[0]
    assert [executor.label for executor in config.executors] == ["label", "sample", "train"]
    assert all(executor.encrypted for executor in config.executors)
    assert all(executor.prefetch_capacity == 0 for executor in config.executors)
    assert (label.heartbeat_period, label.heartbeat_threshold, label.drain_period) == (3, 30, 3600)
    assert label.workers_per_node == 2
    assert (config.retries, config.usage_tracking, config.monitoring) == (0, 0, None)
    assert config.run_dir == str((tmp_path / "parsl").resolve())
    assert label.interchange_launch_cmd[0] == sys.executable


def test_blocks_of_a_scheduler_drain_before_they_end(tmp_path: Path) -> None:
    site = slurm_site(walltime_margin=100, worker_init="date() { echo 0; }  # minutes of modules")
    label = parsl_config(site, tmp_path / "p", "run").executors[0]
    block = re.sub(
        r"\S+/worker_manager.py", "-c 'import sys; print(sys.argv)'", rendered(site, "label")["label"]
    )
    said = subprocess.run(["bash", "-c", block], capture_output=True, text=True, check=True).stdout
    started = time.time()
    (word,) = re.findall(r"--drain_period=\d+", said)
    # An environment was unpacked for ten minutes before the manager starts.
    assert counted(["-p", word], started + 600) in (
        ["-p", f"--drain_period={3600 - 600 - 2 * 100 - late}"] for late in range(30)
    )
    # Parsl takes 0 for never.
    assert counted([word], started + 3600) == ["--drain_period=1"]
    assert (label.heartbeat_period, label.heartbeat_threshold) == (15, 90)
    assert label.block_error_handler is block_error_handler
    assert label.provider.poll_seconds == 30


def test_pools_of_this_machine_keep_parsls_rule_for_broken_blocks(tmp_path: Path) -> None:
    label = parsl_config(small_site(), tmp_path / "p", "run").executors[0]
    label.block_error_handler(label, {})  # ours would ask a provider for what only a scheduler's has
    assert not label.bad_state_is_set


@pytest.mark.parametrize(
    ("keys", "launcher"),
    [
        ({}, "SimpleLauncher"),
        ({"nodes_per_block": 2}, "SrunLauncher"),
        ({"nodes_per_block": 2, "launcher": "mpirun"}, "MpiRunLauncher"),
        ({"nodes_per_block": 2, "launcher": "mpiexec"}, "MpiExecLauncher"),
        ({"nodes_per_block": 2, "mpi": {"command": "srun", "ranks": 4}}, "SimpleLauncher"),
    ],
)
def test_managers_are_started_on_every_node_unless_tasks_start_their_own_ranks(
    tmp_path: Path, keys: dict[str, Any], launcher: str
) -> None:
    label = parsl_config(slurm_site(**keys), tmp_path / "p", "run").executors[0]
    assert type(label.provider.launcher).__name__ == launcher


@pytest.mark.parametrize("name", ["my campaign", "a{b}", "it's", "$HOME"])
def test_a_folder_that_a_shell_takes_apart_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="choose another folder"):
        parsl_config(small_site(), tmp_path / name, "run")


@pytest.mark.parsl
def test_every_pool_works_without_the_environment_on_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    # A file that lies about must not be taken for a package.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parsl.py").write_text("raise RuntimeError('the wrong parsl')")
    (tmp_path / "numpy.py").write_text("raise RuntimeError('the wrong numpy')")
    run_id = f"test-{uuid.uuid4().hex}"
    site = small_site()
    start = time.monotonic()
    with parsl_log(tmp_path / "parsl.log"), running(site, tmp_path / "run", run_id) as submit:
        first = submit("label", os.getpid)
        first.result(timeout=120)
        print(f"first result after {time.monotonic() - start:.1f} s")
        for pool in site.pools:
            pids = [submit(pool, os.getpid) for _ in range(3)]
            assert os.getpid() not in {future.result(timeout=120) for future in pids}
            assert submit(pool, os.getenv, RUN_VARIABLE).result(timeout=60) == run_id
            workers = submit(pool, os.getenv, "PARSL_WORKER_COUNT").result(timeout=60)
            assert int(workers) == site.slots(pool)  # more cores are asked for than the machine may have
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "GREETING", "FROM_SHELL")
        found = {p: [submit(p, os.getenv, n).result(timeout=60) for n in names] for p in site.pools}
        assert found["label"] == ["3", "3", None, None]
        assert found["sample"] == ["7", "1", "it's me {x}", None]
        assert found["train"] == ["1", "1", None, "42"]
        started = strays(run_id)
        assert len(started) >= 4
    gone_after(started, 20)
    assert "Starting DataFlowKernel" in (tmp_path / "parsl.log").read_text()
    assert not list((tmp_path / "run").rglob("*.pkl"))


@pytest.mark.parsl
@pytest.mark.parametrize("moment", ["busy", "loaded"])
def test_kill_9_of_the_controller_leaves_nothing(tmp_path: Path, moment: str) -> None:
    run_id = f"test-{uuid.uuid4().hex}"
    controller = subprocess.Popen(
        [sys.executable, "-c", CONTROLLER, str(tmp_path / "parsl"), run_id], stdout=subprocess.PIPE, text=True
    )
    try:
        assert controller.stdout is not None
        while (line := controller.stdout.readline().strip()) != moment:
            assert line, "the controller ended before it was killed"
        if moment == "loaded":  # blocks are just being started
            time.sleep(0.7)
        children = psutil.Process(controller.pid).children(recursive=True)
        processes = children + strays(run_id)
        commands = [" ".join(process.cmdline()) for process in processes if alive(process)]
        assert sum("interchange" in command for command in commands) == 3
        if moment == "busy":
            assert sum("process_worker_pool" in command for command in commands) >= 3
            assert commands.count("sleep 600") == 3  # what tasks started, too
        controller.send_signal(signal.SIGKILL)
        seconds = gone_after(processes, 20)
        while strays(run_id) and seconds < 20:
            time.sleep(0.1)
            seconds += 0.1
        print(f"{moment}: {len(processes)} processes gone {seconds:.1f} s after kill -9")
        assert not strays(run_id)
    finally:
        controller.kill()
        controller.wait()
        controller.stdout.close()
        end_strays(run_id)


@pytest.mark.parsl
def test_jobs_that_a_silent_scheduler_does_not_end_are_named_after_one_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    commands = Commands(tmp_path / "bin", monkeypatch)
    commands.says("sbatch", "7\n")
    commands.says("squeue", after_s=20)
    commands.says("scancel", after_s=20)
    config = parsl_config(slurm_site(), tmp_path / "p", "run")
    providers = [each.provider for each in config.executors]
    for provider in providers:
        provider.scheduler.timeout_s = 3.0
    kernel = parsl.load(config)
    try:
        assert eventually(lambda: all(provider.blocks for provider in providers))
    finally:
        start = time.monotonic()
        end_parsl(kernel)
    assert time.monotonic() - start < 15  # and not three times for each of three pools
    assert len(commands.calls("scancel")) == 3
    assert "batch jobs 7, 7, 7 could not be cancelled" in caplog.text


@pytest.mark.parsl
def test_a_lost_block_fails_its_task_and_is_replaced(tmp_path: Path) -> None:
    run_id = f"test-{uuid.uuid4().hex}"
    with running(small_site(heartbeat_period=1, heartbeat_threshold=5), tmp_path / "p", run_id) as submit:
        worker = submit("label", os.getpid).result(timeout=120)
        lost = submit("label", subprocess.call, ["sleep", "600"])
        time.sleep(1)
        manager = psutil.Process(worker).parent()
        of_the_block = manager.children(recursive=True)
        manager.kill()
        assert gone_after(of_the_block, 10) < 3
        with pytest.raises(ManagerLost):
            lost.result(timeout=60)
        assert submit("label", os.getpid).result(timeout=120) != worker
    end_strays(run_id)


@pytest.mark.parsl
def test_a_block_drains_at_its_walltime_and_the_next_one_goes_on(tmp_path: Path) -> None:
    run_id = f"test-{uuid.uuid4().hex}"
    with running(small_site(walltime="00:00:06"), tmp_path / "p", run_id) as submit:
        blocks = set()
        deadline = time.monotonic() + 60
        while len(blocks) < 2 and time.monotonic() < deadline:
            blocks.add(submit("label", os.getenv, "PARSL_WORKER_BLOCK_ID").result(timeout=60))
            time.sleep(0.3)
        assert len(blocks) == 2
    end_strays(run_id)

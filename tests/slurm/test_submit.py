"""Controllers as a chain of jobs on a real Slurm, in a partition with a limit of two minutes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.campaigns import query
from support.processes import check_whole, finish, labels, left_behind, run_id, start, wait_until
from support.sleepy import computed
from support.slurm import eventually

from hpcal.sites.chain import Chain

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]

SITE = """
kind: slurm
walltime: "00:10:00"
status_polling_interval: 1
pools:
  label:  {partition: cpu, max_workers_per_node: 2, walltime_margin: 10, heartbeat_period: 2,
           heartbeat_threshold: 8}
  sample: {kind: local, walltime_margin: 10}
  train:  {kind: local, walltime_margin: 10}
controller: {partition: short, walltime: "00:02:00", walltime_margin: 50, cores: 2}
"""


def jobs(prefix: str) -> dict[str, str]:
    """Comments of jobs that have not ended, by id."""
    words = ["squeue", "--noheader", "--format=%i %k"]
    out = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
    found = dict(line.split(maxsplit=1) for line in out.splitlines() if len(line.split()) > 1)
    return {job: mark.strip() for job, mark in found.items() if mark.startswith(prefix)}


@pytest.fixture
def submitted(scene) -> Iterator:
    """A campaign whose first controller job waits or runs."""
    one = scene(seconds=2.0, labels=130)
    one.site.write_text(SITE)
    words = ["submit", str(one.campaign), "--site", str(one.site), "--dir", str(one.root)]
    code, errors = finish(start(*words, env=one.env))
    assert code == 0, errors
    yield one
    mine = list(jobs(f"hpcal:{run_id(one.root)}:"))
    if mine:
        subprocess.run(["scancel", *mine], check=False, timeout=60)


def chain_of(root: Path) -> Chain:
    found = Chain.of(root)
    assert found is not None
    return found


def began(root: Path, number: int) -> bool:
    """Whether a controller job of a number has taken the campaign up."""
    return f"campaign sleepy in {root} goes on" in output(root, number)


def output(root: Path, number: int) -> str:
    path = root / "controller" / f"{number}.out"
    return path.read_text() if path.exists() else ""


def controller_pid(root: Path) -> int:
    (pid,) = query(root, "SELECT lease_pid FROM campaign WHERE lease_pid IS NOT NULL")[0]
    return int(pid)


def all_output(root: Path) -> str:
    return "\n".join(f"--- {n.name}\n{n.read_text()}" for n in sorted((root / "controller").glob("*.out")))


def test_three_controller_jobs_one_of_them_killed_carry_a_campaign_to_its_end(submitted):
    root, run = submitted.root, run_id(submitted.root)
    wait_until(lambda: began(root, 2), 300, "the second controller job")
    assert '"in_order": true' in (root / "controller" / "1.ended").read_text(), all_output(root)
    before = labels(root)
    assert before > 0
    wait_until(lambda: labels(root) >= before + 6, 100, "labels of the second controller job")
    kept = labels(root)
    blocks = {job for job, mark in jobs(f"hpcal:{run}:").items() if mark.startswith(f"hpcal:{run}:label.")}
    assert blocks
    os.kill(controller_pid(root), signal.SIGKILL)
    wait_until(lambda: began(root, 3), 120, "the third controller job")
    wait_until(lambda: chain_of(root).end_reason is not None, 600, "the campaign")
    assert chain_of(root).end_reason == "the campaign is finished", all_output(root)
    assert not (root / "controller" / "2.ended").exists()
    assert len(chain_of(root).links()) >= 4  # the last one was cancelled
    assert not blocks & set(jobs(f"hpcal:{run}:"))
    check_whole(root)
    assert labels(root) > kept
    sampled = query(root, "SELECT hash FROM structure WHERE origin IN ('bootstrap', 'sample')")
    times = computed(submitted.log)
    assert [digest for (digest,) in sampled if times[digest] > 1] == [], "finished labels were computed again"
    assert eventually(lambda: not jobs(f"hpcal:{run}:"), 30), jobs(f"hpcal:{run}:")
    assert eventually(lambda: not left_behind(run), 30), left_behind(run)
    code, errors = finish(start("clean", str(root), "--dry-run"))
    assert (code, errors) == (0, "")


def test_stop_from_the_login_node_ends_the_controller_and_its_successor(submitted):
    root, run = submitted.root, run_id(submitted.root)
    wait_until(lambda: labels(root) >= 4, 120, "the first labels")
    shown = subprocess.run(
        ["hpcal", "status", str(root), "--json"], capture_output=True, text=True, check=True, timeout=60
    )
    controller = json.loads(shown.stdout)["controller"]
    assert controller["state"] == "running"
    assert {controller["job"], controller["next"]} <= set(jobs(f"hpcal:{run}:controller."))
    code, errors = finish(start("stop", str(root)))
    assert code == 0, errors
    assert query(root, "SELECT state FROM campaign") == [("stopped",)]
    assert eventually(lambda: not jobs(f"hpcal:{run}:"), 60), jobs(f"hpcal:{run}:")
    assert eventually(lambda: not left_behind(run), 30), left_behind(run)
    assert chain_of(root).end_reason == "stopped by `hpcal stop`"

"""``hpcal site check`` on a real Slurm: good pools, and each fault in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli.helpers import hpcal
from support.slurm import eventually, needs_slurm

from hpcal.sites.scheduler import MARK
from hpcal.sites.slurm_commands import Slurm

pytestmark = pytest.mark.slurm

HEAD = """
kind: slurm
walltime: "00:10:00"
pools:
"""
FAULTS = {
    "label": ("{partition: nope}", "partition 'nope' is not known to Slurm, which has all, cpu, gpu, short"),
    "sample": ("{partition: cpu, scratch: /proc/nowhere}", "scratch /proc/nowhere cannot be written on "),
    "train": ("{partition: cpu, modules: [gcc/99]}", "module"),
    "shell": ('{partition: cpu, worker_init: "cd /nowhere/at/all"}', "a command before the workers fails"),
    "ends": ("{partition: cpu, worker_init: exit 3}", "its block ended before a worker answered: FAILED"),
    "python": ("{partition: cpu, python: /nowhere/bin/python}", "the interpreter is not on the node"),
    "memory": ("{partition: cpu, mem_per_node: 1000000}", "the scheduler does not take the job: "),
    "older": ("{{partition: cpu, environment: {{PYTHONPATH: {old}}}}}", "hpcal 0.0.9 on "),
    "alone": ("{{partition: cpu, python: {alone}}}", "the node does not reach the controller: "),
    "large": ("{partition: short, walltime: '10:00:00'}", "its block still waits in the queue after "),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    needs_slurm()
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    slurm = Slurm(30)
    assert eventually(lambda: not slurm.marked(f"{MARK}check-"))
    assert not list(tmp_path.glob("hpcal-site-check-*"))


def checked(text: str, *words: str) -> tuple[int, dict[str, Any]]:
    Path("s.yaml").write_text(text)
    result = hpcal("site", "check", "s.yaml", "--json", *words)
    assert result.exit_code in (0, 1), result.stderr
    return result.exit_code, json.loads(result.stdout)["pools"]


def test_a_pool_of_two_nodes_is_good() -> None:
    text = f"""{HEAD}
  label: {{partition: cpu, nodes_per_block: 2, max_workers_per_node: 2, cores_per_worker: 2}}
  sample: {{partition: cpu}}
  train: {{partition: cpu}}
"""
    code, pools = checked(text, "--pool", "label")
    label = pools["label"]
    assert code == 0, label["faults"]
    assert len({(answer["manager"], answer["worker"]) for answer in label["answers"]}) == 4
    assert len({answer["manager"] for answer in label["answers"]}) == 2
    assert label["queued_s"] is not None
    assert label["started_s"] is not None
    assert "no `account` is given" in label["notes"][0]


def test_each_worker_has_a_gpu_of_its_own() -> None:
    text = f"""{HEAD}
  label: {{partition: cpu}}
  sample: {{partition: gpu, gpus_per_node: 2, max_workers_per_node: 2}}
  train: {{partition: cpu}}
"""
    _, pools = checked(text, "--pool", "sample")
    sample = pools["sample"]
    assert sorted(answer["gpus"]["own"] for answer in sample["answers"]) == [["0"], ["1"]]
    # They are fake, which is what a build of PyTorch without GPUs would look like.
    assert all("sees no GPU" in fault for fault in sample["faults"])
    assert sample["faults"]


def test_each_fault_is_named_in_one_line(here: Path) -> None:
    other = here / "old" / "hpcal-0.0.9.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: hpcal\nVersion: 0.0.9\n")
    alone = here / "alone"
    alone.write_text(f'#!/bin/bash\nexec unshare --net {sys.executable} "$@"\n')
    alone.chmod(0o755)
    cases = dict(FAULTS)
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode != 0:
        del cases["alone"]  # needs a right that not everybody has
    names = {"old": other.parent, "alone": alone}
    pools = "".join(
        f"  {pool}: {keys.format(**names) if keys.startswith('{{') else keys}\n"
        for pool, (keys, _) in cases.items()
    )
    code, found = checked(HEAD + pools, "--timeout", "90")
    assert code == 1
    for pool, (_, told) in cases.items():
        (fault,) = found[pool]["faults"]
        assert told in fault, pool
        assert "\n" not in fault
    assert not found["label"]["submitted"]


def test_an_interface_that_is_not_here_needs_no_job() -> None:
    code, found = checked(f"interface: ib7\n{HEAD}  label: {{}}\n  sample: {{}}\n  train: {{}}\n")
    assert code == 1
    for pool in found.values():
        assert "interface 'ib7': this host has no such network interface" in pool["faults"][0]
        assert not pool["submitted"]

"""The quickstart on a real Slurm: labels on the CPU partition, the rest on GPUs (which are fakes)."""

from __future__ import annotations

import pytest
from support.quickstart import gpus_seen, run_quickstart
from support.slurm import needs_slurm

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

SITE = """
kind: slurm
walltime: "00:20:00"
status_polling_interval: 2
pools:
  label:  {{partition: cpu, max_workers_per_node: 2, {beats}}}
  sample: {{partition: gpu, gpus_per_node: {sample}, max_workers_per_node: {sample}, {beats}}}
  train:  {{partition: gpu, gpus_per_node: 1, {beats}}}
"""
BEATS = "heartbeat_period: 2, heartbeat_threshold: 20"


@pytest.fixture(autouse=True)
def _slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_slurm()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_the_quickstart_ends_as_on_a_laptop(tmp_path):
    site = tmp_path / "site.yaml"
    site.write_text(SITE.format(sample=1, beats=BEATS))
    run_quickstart(site, tmp_path / "run")


def test_two_blocks_of_one_gpu_share_a_node_and_no_gpu(tmp_path):
    site = tmp_path / "site.yaml"
    site.write_text(SITE.format(sample=1, beats=BEATS))
    found = gpus_seen(site, tmp_path / "run", {"label": 2, "sample": 1, "train": 1})
    assert found["label"] == ["none", "none"]
    assert sorted(found["sample"] + found["train"]) == ["0", "1"]


def test_each_worker_of_a_whole_node_has_a_gpu_of_its_own(tmp_path):
    site = tmp_path / "site.yaml"
    site.write_text(SITE.format(sample=2, beats=BEATS).replace("gpus_per_node: 1,", ""))
    assert gpus_seen(site, tmp_path / "run", {"sample": 2})["sample"] == ["0", "1"]

"""The quickstart on the PBS stand-in: labels on CPU nodes, the rest on a node with GPUs (which are fakes)."""

from __future__ import annotations

import pytest
from support.pbs_standin import running_pbs
from support.quickstart import gpus_seen, run_quickstart

pytestmark = [pytest.mark.pbs, pytest.mark.timeout(900)]

SITE = """
kind: pbs
queue: workq
walltime: "00:20:00"
status_polling_interval: 2
pools:
  label:  {{max_workers_per_node: 2, {beats}}}
  sample: {{gpus_per_node: {sample}, max_workers_per_node: {sample}, {beats}}}
  train:  {{gpus_per_node: 1, {beats}}}
"""
BEATS = "heartbeat_period: 2, heartbeat_threshold: 20"
NODES = {"cpu1": {"ncpus": 8, "ngpus": 0}, "gpu1": {"ncpus": 8, "ngpus": 2}}


@pytest.fixture(autouse=True)
def _pbs(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with running_pbs(tmp_path / "pbs", monkeypatch, nodes=NODES):
        yield


def test_the_quickstart_ends_as_on_a_laptop(tmp_path):
    site = tmp_path / "site.yaml"
    site.write_text(SITE.format(sample=1, beats=BEATS))
    run_quickstart(site, tmp_path / "run")


def test_two_blocks_of_one_gpu_share_a_node_and_no_gpu(tmp_path):
    site = tmp_path / "site.yaml"
    site.write_text(SITE.format(sample=1, beats=BEATS))
    found = gpus_seen(site, tmp_path / "run", {"sample": 1, "train": 1})
    assert sorted(found["sample"] + found["train"]) == ["0", "1"]


def test_each_worker_of_a_whole_node_has_a_gpu_of_its_own(tmp_path):
    site = tmp_path / "site.yaml"
    site.write_text(SITE.format(sample=2, beats=BEATS).replace("gpus_per_node: 1,", ""))
    assert gpus_seen(site, tmp_path / "run", {"sample": 2})["sample"] == ["0", "1"]

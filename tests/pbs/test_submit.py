"""Controllers as a chain of jobs on the PBS stand-in: the first is ended, the second ends the campaign."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.campaigns import query
from support.pbs_standin import StandIn, running_pbs
from support.processes import check_whole, finish, labels, left_behind, run_id, start, wait_until
from support.sleepy import computed, install

from hpcal.core.ensemble import EnsembleManifest, MemberFile, file_sha256
from hpcal.potentials.morse import Morse
from hpcal.sites.chain import Chain

pytestmark = [pytest.mark.pbs, pytest.mark.timeout(600)]

SITE = """
kind: pbs
queue: workq
walltime: "00:10:00"
status_polling_interval: 1
environment: {PYTHONPATH: "${PLUGIN}"}
pools:
  label:  {heartbeat_period: 2, heartbeat_threshold: 8}
  sample: {kind: local}
  train:  {kind: local}
controller: {queue: short, walltime: "00:10:00", cores: 2}
"""
CAMPAIGN = """
name: sleepy
seed: 3
structures: {{smiles: "O"}}
label: {{labeler: sleepy, model: {teacher}, seconds: 0.3, log: {log}}}
potential: {{kind: morse, members: 2}}
bootstrap:
  - {{sampler: random_displacement, count: 16, amplitude_A: 0.08}}
sampling:
  - {{sampler: langevin, walkers: 8, batch: 8, time_ps: 0.05, temperature_K: 900, stride: 5}}
uncertainty: {{metric: force_std, threshold: 0.01}}
selection: {{batch: 8, audit_share: 0.2}}
splits: {{audit_walkers: 0.4}}
stop: {{labels: 45, generations: 6}}
tasks: {{max_label_chunk: 4}}
"""


@pytest.fixture
def pbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with running_pbs(tmp_path / "pbs", monkeypatch, nodes={"cpu1": {"ncpus": 8, "ngpus": 0}}) as found:
        yield found


def alive(pbs: StandIn) -> list[str]:
    return [job["name"] for job in pbs.jobs().values() if job["state"] != "F"]


def test_a_chain_of_two_jobs_ends_the_campaign(pbs: StandIn, tmp_path: Path):
    member = Morse.write_member(tmp_path / "member.json", [1, 8])
    manifest = EnsembleManifest(
        kind="morse", members=(MemberFile(path=str(member), sha256=file_sha256(member)),)
    )
    manifest.write(tmp_path)
    log, root, plugin = tmp_path / "labels.log", tmp_path / "run", tmp_path / "plugin"
    env = install(plugin)
    (tmp_path / "sleepy.yaml").write_text(CAMPAIGN.format(teacher=tmp_path, log=log))
    (tmp_path / "site.yaml").write_text(SITE)
    words = ["--site", str(tmp_path / "site.yaml"), "--set", f"PLUGIN={plugin}", "--dir", str(root)]
    code, errors = finish(start("submit", str(tmp_path / "sleepy.yaml"), *words, env=env))
    assert code == 0, errors

    wait_until(lambda: labels(root) >= 8, 120, "the first labels")
    chain = Chain.of(root)
    assert chain is not None
    first, second = chain.jobs()
    chain.scheduler.cancel([first.id])
    wait_until(lambda: chain.end_reason is not None, 240, "the campaign")

    outputs = [path.read_text() for path in sorted((root / "controller").glob("*.out"))]
    assert chain.end_reason == "the campaign is finished", outputs
    assert f"controller job 2 (job {second.id})" in outputs[1]
    check_whole(root)
    sampled = query(root, "SELECT hash FROM structure WHERE origin IN ('bootstrap', 'sample')")
    times = computed(log)
    assert [digest for (digest,) in sampled if times[digest] > 1] == []
    run = run_id(root)
    wait_until(lambda: not alive(pbs), 60, "the last job")
    wait_until(lambda: not left_behind(run), 60, "the last process")

"""Campaigns on a real Slurm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.sleepy import install
from support.slurm import needs_slurm

from hpcal.core.ensemble import EnsembleManifest, MemberFile, file_sha256
from hpcal.potentials.morse import Morse

SITE = """
kind: slurm
status_polling_interval: 1
walltime: "{walltime}"
pools:
  label:  {{partition: cpu, max_workers_per_node: 2, walltime_margin: {margin}, {beats}}}
  sample: {{partition: gpu, gpus_per_node: 1, walltime_margin: {margin}, {beats}}}
  train:  {{partition: gpu, gpus_per_node: 1, walltime_margin: {margin}, {beats}}}
"""
BEATS = "heartbeat_period: 2, heartbeat_threshold: 8"

CAMPAIGN = """
name: sleepy
seed: 3
structures: {{smiles: "O"}}
label: {{labeler: sleepy, model: {teacher}, seconds: {seconds}, log: {log}}}
potential: {potential}
bootstrap:
  - {{sampler: random_displacement, count: 16, amplitude_A: 0.08}}
sampling:
  - {{sampler: langevin, walkers: 16, batch: 16, time_ps: {time_ps}, temperature_K: 900, stride: 5}}
uncertainty: {{metric: force_std, threshold: 0.01}}
selection: {{batch: 8, audit_share: 0.2}}
splits: {{audit_walkers: 0.4}}
stop: {{labels: {labels}, generations: {generations}}}
tasks: {{max_label_chunk: {chunk}, sample_seconds: {sample_seconds}}}
"""


@dataclass(frozen=True)
class Scene:
    """A campaign file, a site file, an environment that has the sleepy labeler, and its log."""

    campaign: Path
    site: Path
    root: Path
    env: Mapping[str, str]
    log: Path

    @property
    def words(self) -> tuple[str, ...]:
        """``run`` with its arguments."""
        return ("run", str(self.campaign), "--site", str(self.site), "--dir", str(self.root))


@pytest.fixture
def scene(tmp_path: Path) -> Callable[..., Scene]:
    """Writes a campaign of water whose labels sleep; parts of it can be replaced."""
    needs_slurm()

    def write(
        *,
        seconds: float = 0.5,
        labels: int = 60,
        generations: int = 6,
        chunk: int = 4,
        walltime: str = "00:10:00",
        margin: int = 10,
        potential: str = "{kind: morse, members: 4}",
        time_ps: float = 0.05,
        sample_seconds: float = 5,
    ) -> Scene:
        (tmp_path / "teacher").mkdir()
        member = Morse.write_member(tmp_path / "teacher" / "member.json", [1, 8])
        manifest = EnsembleManifest(
            kind="morse", members=(MemberFile(path=str(member), sha256=file_sha256(member)),)
        )
        manifest.write(tmp_path / "teacher")
        log = tmp_path / "labels.log"
        campaign, site = tmp_path / "sleepy.yaml", tmp_path / "site.yaml"
        campaign.write_text(
            CAMPAIGN.format(
                teacher=tmp_path / "teacher",
                seconds=seconds,
                log=log,
                labels=labels,
                generations=generations,
                chunk=chunk,
                potential=potential,
                time_ps=time_ps,
                sample_seconds=sample_seconds,
            )
        )
        site.write_text(SITE.format(walltime=walltime, margin=margin, beats=BEATS))
        return Scene(
            campaign=campaign, site=site, root=tmp_path / "run", env=install(tmp_path / "plugin"), log=log
        )

    return write

"""Blocks of several nodes, labels and trainings of several ranks, on a real Slurm."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import ase.build
import numpy as np
import parsl
import pytest
from ase.io import read, write
from support.campaigns import query
from support.processes import check_whole, finish, start
from support.slurm import needs_slurm

from hpcal.sites.parsl_config import parsl_config
from hpcal.sites.schema import load_site

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

PSEUDO = Path("/usr/share/espresso/pseudo/Si.pz-vbc.UPF")
SITE = """
kind: slurm
partition: cpu
walltime: "00:20:00"
status_polling_interval: 2
pools:
  label:  {label}
  sample: {{}}
  train:  {train}
"""
TWO_NODES = "{nodes_per_block: 2, max_workers_per_node: 2}"
TWO_RANKS = (
    '{{nodes_per_block: {nodes}, mpi: {{ranks: 2, command: "srun --mpi={pmi} --nodes={{nodes}} '
    '--ntasks={{ranks}} {noted}"}}}}'
)


@pytest.fixture(autouse=True)
def _slurm() -> None:
    needs_slurm()


def site_file(folder: Path, *, label: str = "{}", train: str = "{}") -> Path:
    path = folder / "site.yaml"
    path.write_text(SITE.format(label=label, train=train))
    return path


def noted(folder: Path) -> Path:
    """A script that notes where each rank runs, and becomes the rank."""
    script = folder / "noted.sh"
    script.write_text(f'#!/bin/bash\necho "$SLURM_PROCID $SLURMD_NODENAME" >> {folder}/places\nexec "$@"\n')
    script.chmod(0o755)
    return script


def places(folder: Path) -> list[str]:
    """Rank and node of each rank that was started, without repetitions."""
    return sorted(set((folder / "places").read_text().splitlines()))


def test_a_block_of_two_nodes_has_workers_on_both(tmp_path):
    site = load_site(site_file(tmp_path, label=TWO_NODES))
    assert site.slots("label") == 4
    with parsl.load(parsl_config(site, tmp_path / "parsl", "two-nodes")) as kernel:
        app = parsl.python_app(
            subprocess.check_output, data_flow_kernel=kernel, executors=["label"], cache=False
        )
        asked = [app(["bash", "-c", "sleep 1; echo $SLURMD_NODENAME $PPID"], text=True) for _ in range(24)]
        found = {tuple(future.result(timeout=120).split()) for future in asked}
    nodes = [node for node, _ in found]
    assert sorted(nodes) == ["cpu1", "cpu1", "cpu2", "cpu2"]


def silicon(path: Path) -> None:
    frames = []
    for seed in range(2):
        atoms = ase.build.bulk("Si")
        atoms.rattle(0.05, seed=seed)
        frames.append(atoms)
    write(path, frames)


@pytest.mark.skipif(
    not PSEUDO.exists() or not shutil.which("pw.x"), reason="there is no Quantum ESPRESSO here"
)
def test_a_label_of_two_ranks_is_that_of_one(tmp_path):
    """By the pool's own launcher, from a worker. Both on one node: slurmstepds of one host share a socket."""
    silicon(tmp_path / "si.extxyz")
    config = tmp_path / "label.yaml"
    config.write_text(
        f"labeler: espresso\npseudopotentials: {{Si: {PSEUDO}}}\necutwfc_eV: 180\nkpoints: [2, 2, 2]\n"
    )
    words = [sys.executable, "-m", "hpcal", "label", str(tmp_path / "si.extxyz")]
    serial = [*words, str(tmp_path / "one.extxyz"), "--config", str(config)]
    subprocess.run(serial, check=True, capture_output=True, timeout=300)
    site = load_site(site_file(tmp_path, label=TWO_RANKS.format(pmi="pmix", nodes=1, noted=noted(tmp_path))))
    with parsl.load(parsl_config(site, tmp_path / "parsl", "two-ranks")) as kernel:
        app = parsl.python_app(
            subprocess.check_output, data_flow_kernel=kernel, executors=["label"], cache=False
        )
        app([*words, str(tmp_path / "two.extxyz"), "--config", str(config)]).result(timeout=300)
    one, two = (read(tmp_path / f"{name}.extxyz", ":") for name in ("one", "two"))
    assert len(one) == len(two) == 2
    for a, b in zip(one, two, strict=True):
        assert abs(a.info["REF_energy"] - b.info["REF_energy"]) < 1e-5
        assert np.allclose(a.arrays["REF_forces"], b.arrays["REF_forces"], atol=1e-4)
    assert places(tmp_path) == ["0 cpu1", "1 cpu1"]


CAMPAIGN = """
name: ranks
seed: 3
structures: {{smiles: "O"}}
label: {{labeler: xtb, method: GFN2-xTB}}
potential: {{kind: ani, members: 2, hidden: [16, 12], epochs: 20, data_parallel: true}}
bootstrap: [{{sampler: random_displacement, count: 24, amplitude_A: 0.08}}]
sampling: [{{sampler: langevin, walkers: 4, batch: 4, time_ps: 0.02, temperature_K: 600}}]
stop: {{generations: 1}}
"""


def test_a_training_of_two_ranks_over_two_nodes(tmp_path):
    campaign, root = tmp_path / "ranks.yaml", tmp_path / "run"
    campaign.write_text(CAMPAIGN.format())
    site = site_file(tmp_path, train=TWO_RANKS.format(pmi="none", nodes=2, noted=noted(tmp_path)))
    process = start("run", str(campaign), "--site", str(site), "--dir", str(root), env=dict(os.environ))
    code, errors = finish(process, 600)
    assert code == 0, errors
    check_whole(root)
    assert len(query(root, "SELECT id FROM model WHERE path IS NOT NULL")) == 2
    assert places(tmp_path) == ["0 cpu1", "1 cpu2"]

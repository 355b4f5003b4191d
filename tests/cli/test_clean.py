"""``hpcal clean``: what a dead controller left behind, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli.helpers import hpcal
from support.campaigns import content, query
from support.fake_slurm import FakeSlurm

from hpcal.cli import leftovers
from hpcal.sites.worker_init import RUN_VARIABLE
from hpcal.store.database import Store

SITE = """
kind: slurm
walltime: "01:00:00"
scratch: {scratch}
pools: {{label: {{}}, sample: {{}}, train: {{scratch: $NOWHERE_IN_PARTICULAR}}}}
controller: {{}}
"""


@pytest.fixture
def slurm(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "slurm", monkeypatch)
    (here / "cluster.yaml").write_text(SITE.format(scratch=tmp_path / "scratch"))
    assert hpcal("submit", "tiny.yaml", "--site", "cluster.yaml").exit_code == 0
    assert hpcal("stop", "tiny").exit_code == 0
    return fake


@pytest.fixture
def run_id(slurm: FakeSlurm) -> str:
    return str(query(Path("tiny"), "SELECT run_id FROM campaign")[0][0])


@pytest.fixture
def stray(run_id: str) -> Iterator[subprocess.Popen]:
    """A process that a dead controller of the campaign has left."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"],
        env={**os.environ, RUN_VARIABLE: run_id},
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"up\n"
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def scratch(run_id: str, tmp_path: Path) -> tuple[Path, Path, Path]:
    """Scratch of the campaign on the nodes and in its folder, and that of another campaign."""
    mine, other = tmp_path / "scratch" / f"hpcal-{run_id}", tmp_path / "scratch" / "hpcal-ffff"
    for folder in (mine / "00000001-1", other, Path("tiny/scratch/00000001-1")):
        folder.mkdir(parents=True)
        (folder / "file").touch()
    return mine, Path("tiny/scratch/00000001-1"), other


def test_everything_of_this_campaign_goes_and_nothing_else(slurm, run_id, stray, scratch):
    jobs = [slurm.add(f"hpcal:{run_id}:label.0.aa"), slurm.add(f"hpcal:{run_id}:controller.7")]
    other = slurm.add("hpcal:ffff:label.0.aa")
    before = content(Path("tiny"))
    result = hpcal("clean", "tiny")
    assert result.exit_code == 0, result.stderr
    assert f"cancelled 2 jobs of this campaign in Slurm: {', '.join(jobs)}" in result.stdout
    assert "ended 1 processes" in result.stdout
    assert list(slurm.marks()) == [other]
    assert stray.poll() is not None
    mine, inside, others = scratch
    assert (mine.exists(), inside.exists(), others.exists()) == (False, False, True)
    assert f"removed {mine}" in result.stdout
    assert "$NOWHERE_IN_PARTICULAR" in result.stderr
    assert content(Path("tiny")) == before
    assert Path("tiny/scratch").is_dir()
    assert "nothing is left" in hpcal("clean", "tiny").stdout


def test_a_dry_run_says_the_same_and_does_nothing(slurm, run_id, stray, scratch):
    job = slurm.add(f"hpcal:{run_id}:label.0.aa")
    result = hpcal("clean", "tiny", "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert f"would cancel job {job} in Slurm (hpcal:{run_id}:label.0.aa, running)" in result.stdout
    assert f"would end process {stray.pid}" in result.stdout
    for folder in scratch[:2]:
        assert f"would remove {folder}" in result.stdout
        assert folder.is_dir()
    assert list(slurm.marks()) == [job]
    assert stray.poll() is None


def test_a_campaign_that_runs_is_left_alone(slurm, run_id, scratch):
    job = slurm.add(f"hpcal:{run_id}:label.0.aa")
    store = Store.open(Path("tiny"))
    store.acquire()
    try:
        result = hpcal("clean", "tiny")
    finally:
        store.release()
        store.close()
    assert result.exit_code == 3
    assert "is run by process" in result.stderr
    assert list(slurm.marks()) == [job]
    assert scratch[0].is_dir()


def test_a_campaign_whose_controller_waits_is_left_alone(slurm):
    assert hpcal("submit", "tiny.yaml", "--site", "cluster.yaml").exit_code == 0
    before = slurm.marks()
    result = hpcal("clean", "tiny")
    assert result.exit_code == 3
    assert "hpcal stop tiny" in result.stderr
    assert slurm.marks() == before


def test_a_scheduler_that_does_not_answer_is_said(slurm, monkeypatch, scratch):
    slurm.is_silent()
    monkeypatch.setattr(leftovers, "JOBS_GONE_S", 1.0)
    result = hpcal("clean", "tiny")
    assert result.exit_code == 0
    assert "Slurm could not be asked" in result.stdout
    assert not scratch[0].exists()
    assert "Slurm could not be asked" in hpcal("clean", "tiny", "--dry-run").stdout


def test_a_job_that_does_not_end_is_said(slurm, run_id, monkeypatch):
    job = slurm.add(f"hpcal:{run_id}:label.0.aa")
    slurm.is_stuck()
    monkeypatch.setattr(leftovers, "JOBS_GONE_S", 1.0)
    result = hpcal("clean", "tiny")
    assert result.exit_code == 0
    assert f"jobs {job} of this campaign were cancelled and are still in Slurm" in result.stdout


def test_a_site_that_is_gone_is_said_and_the_rest_is_done(slurm, run_id, scratch):
    Path("cluster.yaml").unlink()
    job = slurm.add(f"hpcal:{run_id}:label.0.aa")
    result = hpcal("clean", "tiny")
    assert result.exit_code == 0
    assert "scratch of the site is not looked at" in result.stderr
    assert f"cancelled 1 jobs of this campaign in Slurm: {job}" in result.stdout
    assert scratch[0].exists()


def test_a_folder_without_a_campaign_is_an_error(here):
    result = hpcal("clean", "nowhere")
    assert result.exit_code == 2
    assert "no campaign in nowhere" in result.stderr

"""What can be told without a job: partitions, modules, files, job history."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.slurm import Commands

from hpcal.sites.prechecks import precheck
from hpcal.sites.schema import Site


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    monkeypatch.setenv("HOME", str(tmp_path))  # for the login shell
    return Commands(tmp_path / "bin", monkeypatch)


def site(kind: str = "slurm", **pool: Any) -> Site:
    keys = {"account": "abc", "walltime": "01:00:00", **pool}
    return Site.model_validate({"kind": kind, "pools": {"label": keys, "sample": keys, "train": keys}})


def test_a_partition_that_slurm_has(commands: Commands) -> None:
    commands.says("sinfo", "cpu\ngpu\n")
    assert precheck(site(partition="gpu"), "label").faults == ()
    assert precheck(site(partition="cpu,gpu"), "label").faults == ()
    assert precheck(site(), "label").faults == ()


def test_a_partition_that_it_has_not(commands: Commands) -> None:
    commands.says("sinfo", "cpu\ngpu\n")
    found = precheck(site(partition="cpu,big"), "label").faults
    assert found == ("partition 'big' is not known to Slurm, which has cpu, gpu; correct it",)


def test_a_scheduler_that_does_not_answer(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    commands.says("sinfo", err="slurm_load_partitions: Unable to contact slurm controller", exit_code=1)
    (found,) = precheck(site(), "label").faults
    assert "the scheduler does not answer: sinfo failed with exit code 1: slurm_load" in found
    monkeypatch.setenv("PATH", "/nowhere")
    (found,) = precheck(site(), "label").faults
    assert "there is no command sinfo here: is this a node of the cluster?" in found


def test_no_account_is_a_note(commands: Commands) -> None:
    commands.says("sinfo", "cpu\n")
    assert "no `account` is given" in precheck(site(account=None), "label").notes[0]
    assert precheck(site(), "label").notes == ()


@pytest.mark.parametrize(("history", "noted"), [(True, False), (False, True)])
def test_pbs_without_job_history_is_a_note(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, history: bool, noted: bool
) -> None:
    monkeypatch.setattr("hpcal.sites.pbs_commands.PBS.history", lambda _: history)
    found = precheck(site("pbs"), "label")
    assert found.faults == ()
    assert any("keeps no history of jobs" in note for note in found.notes) == noted


def test_modules_where_there_is_a_command_for_them(commands: Commands, tmp_path: Path) -> None:
    commands.says("sinfo", "cpu\n")
    pool = site(modules=["gcc/12", "gcc/99"])
    assert precheck(pool, "label").faults == ()
    (tmp_path / ".bash_profile").write_text('module() { echo "gcc/12  gcc/11" >&2; }\n')
    (found,) = precheck(pool, "label").faults
    assert "module 'gcc/99' is not among those of `module avail`" in found


def test_files_that_are_not_here(tmp_path: Path) -> None:
    there = tmp_path / "h.sif"
    there.touch()
    assert precheck(site("local", container={"image": str(there)}), "label").faults == ()
    assert precheck(site("local", container={"image": "docker://x"}), "label").faults == ()
    (found,) = precheck(site("local", container={"image": "/no/h.sif"}), "label").faults
    assert "container image /no/h.sif does not exist here" in found
    (found,) = precheck(site("local", staged_environment="/no/e.tar"), "label").faults
    assert "staged_environment /no/e.tar does not exist here" in found

"""``hpcal site``: scripts without a scheduler, and probes of pools of this machine."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import psutil
import pytest
from cli.helpers import hpcal, write_inputs

from hpcal.cli.folders import reading
from hpcal.sites.worker_init import RUN_VARIABLE
from hpcal.store import campaigns

MARK = "HPCAL_TEST_FOLDER"
LOCAL = """
kind: local
pools:
  label: {{max_workers_per_node: 2, {label}}}
  sample: {{}}
  train: {{}}
"""
SLURM = """
kind: slurm
account: ${ACCOUNT}
walltime: "01:00:00"
pools:
  label: {partition: cpu}
  sample: {partition: gpu, gpus_per_node: 1}
  train: {kind: local}
controller: {walltime: "05:00:00"}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ACCOUNT", raising=False)
    monkeypatch.setenv(MARK, str(tmp_path))  # each process of a local pool inherits it
    return tmp_path


def checked(*words: str) -> tuple[int, dict[str, Any]]:
    result = hpcal("site", "check", *words, "--json", "--timeout", "120")
    assert result.exit_code in (0, 1), result.stderr
    return result.exit_code, json.loads(result.stdout)


def left_of_a_probe(folder: Path) -> list[str]:
    """Folders and processes of a probe that was run in ``folder``; other suites may probe meanwhile."""
    found = [str(path) for path in folder.glob("hpcal-site-check-*")]
    for process in psutil.process_iter():
        try:
            names = process.environ()
            if names.get(MARK) == str(folder) and names.get(RUN_VARIABLE, "").startswith("check-"):
                found.append(f"{process.pid} {process.status()} {shlex.join(process.cmdline())}")
        except psutil.Error:
            continue
    return found


# ── render ───────────────────────────────────────────────────────────────────────────────────


def test_render_prints_each_pool_and_the_controller(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "s.yaml").write_text(SLURM)
    monkeypatch.setenv("PATH", "/nowhere")  # no scheduler is asked
    result = hpcal("site", "render", "s.yaml", "--set", "ACCOUNT=m12")
    assert result.exit_code == 0, result.stderr
    titles = [line for line in result.stdout.splitlines() if line.startswith("=====")]
    assert titles == [
        f"===== {name} =====" for name in ("pool label", "pool sample", "pool train", "controller")
    ]
    assert result.stdout.count("#SBATCH --account=m12") == 3
    assert "/CAMPAIGN/parsl/000/submit_scripts/parsl.label.block-0.stderr" in result.stdout
    assert "--port=PORT" in result.stdout
    assert "leash.py block CONTROLLER" in result.stdout
    assert str(os.getpid()) not in result.stdout
    assert sorted(path.name for path in here.iterdir()) == ["s.yaml"]


def test_render_of_one_pool_is_a_script(here: Path) -> None:
    (here / "s.yaml").write_text(SLURM)
    result = hpcal("site", "render", "s.yaml", "--pool", "sample", "--set", "ACCOUNT=m12")
    assert result.stdout.startswith("#!/bin/bash\n#SBATCH ")
    assert "=====" not in result.stdout
    assert "#SBATCH --gpus-per-node=1" in result.stdout


def test_render_is_the_same_each_time(here: Path) -> None:
    (here / "s.yaml").write_text(SLURM)
    words = ("site", "render", "s.yaml", "--set", "ACCOUNT=m12")
    assert hpcal(*words).stdout == hpcal(*words).stdout


def test_render_shows_an_address_that_this_host_has_not(here: Path) -> None:
    for line, shown in (("interface: ib7", "-a ADDRESS "), ("address: 203.0.113.9", "-a 203.0.113.9 ")):
        (here / "s.yaml").write_text(f"{line}\n{LOCAL.format(label='')}")
        result = hpcal("site", "render", "s.yaml", "--pool", "label")
        assert shown in result.stdout, result.stderr


@pytest.mark.parametrize("command", ["render", "check"])
@pytest.mark.parametrize(
    ("text", "words", "told"),
    [
        (SLURM, (), "${ACCOUNT} has no value"),
        (SLURM, ("--set", "ACCOUNT"), "must be NAME=VALUE"),
        (
            LOCAL.format(label=""),
            ("--pool", "lable"),
            "the site has no pool 'lable'; it has label, sample, train",
        ),
        ("pools: 3", (), "pools"),
        (None, (), "no such file"),
    ],
)
def test_what_cannot_be_read(
    here: Path, command: str, text: str | None, words: tuple[str, ...], told: str
) -> None:
    if text is not None:
        (here / "s.yaml").write_text(text)
    result = hpcal("site", command, "s.yaml", *words)
    assert result.exit_code == 2
    assert told in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_time_limit_that_is_no_number(here: Path) -> None:
    (here / "s.yaml").write_text(LOCAL.format(label=""))
    result = hpcal("site", "check", "s.yaml", "--timeout", "nan")
    assert (result.exit_code, result.stderr) == (
        2,
        "hpcal: --timeout nan is no time: give a number of seconds\n",
    )


# ── check ────────────────────────────────────────────────────────────────────────────────────


def test_a_fault_that_needs_no_job_is_told_without_one(here: Path) -> None:
    (here / "s.yaml").write_text(f"interface: ib7\n{LOCAL.format(label='')}")
    code, report = checked("s.yaml")
    assert code == 1
    for pool in report["pools"].values():
        assert not pool["submitted"]
        assert "interface 'ib7': this host has no such network interface" in pool["faults"][0]
    (here / "s.yaml").write_text(LOCAL.format(label="container: {image: /no/h.sif}"))
    code, report = checked("s.yaml", "--pool", "label")
    assert (code, report["pools"]["label"]["submitted"]) == (1, False)
    assert "container image /no/h.sif does not exist here" in report["pools"]["label"]["faults"][0]


@pytest.mark.parsl
def test_a_good_site(here: Path) -> None:
    (here / "s.yaml").write_text(LOCAL.format(label="cores_per_worker: 1"))
    code, report = checked("s.yaml")
    assert code == 0, report
    assert report["ok"]
    label = report["pools"]["label"]
    assert [answer["worker"] for answer in label["answers"]] == ["0", "1"]
    assert label["answers"][0]["versions"]["hpcal"] == report["controller"]["hpcal"]
    assert label["queued_s"] >= 0
    assert left_of_a_probe(here) == []
    shown = hpcal("site", "check", "s.yaml", "--pool", "train")
    assert shown.exit_code == 0
    assert shown.stdout.startswith("pool train (local): ok\n")
    assert "imports" in shown.stdout


@pytest.mark.parsl
@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ("scratch: /proc/nowhere", "scratch /proc/nowhere cannot be written"),
        ("python: /nowhere/bin/python", "the interpreter is not on the node"),
        ("worker_init: exit 3", "its block ended before a worker answered"),
        ("worker_init: no-such-command", "a command before the workers fails: it wrote '"),
        ("modules: [gcc/99]", "module"),
        ("gpus_per_node: 4, environment: {CUDA_VISIBLE_DEVICES: '0'}", "worker 1 of this node has no GPU"),
    ],
)
def test_each_fault_is_named_in_one_line(here: Path, keys: str, told: str) -> None:
    (here / "s.yaml").write_text(LOCAL.format(label=keys))
    code, report = checked("s.yaml", "--pool", "label")
    assert code == 1
    faults = report["pools"]["label"]["faults"]
    assert any(told in fault for fault in faults), faults
    assert not any("\n" in fault for fault in faults)
    assert left_of_a_probe(here) == []


@pytest.mark.parsl
def test_another_hpcal_on_the_worker(here: Path) -> None:
    other = here / "old" / "hpcal-0.0.9.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: hpcal\nVersion: 0.0.9\n")
    (here / "s.yaml").write_text(LOCAL.format(label=f"environment: {{PYTHONPATH: {here}/old}}"))
    code, report = checked("s.yaml", "--pool", "label")
    assert code == 1
    (fault,) = report["pools"]["label"]["faults"]
    assert fault.startswith("hpcal 0.0.9 on ")
    assert f"{report['controller']['hpcal']} here: install the same version" in fault


# ── values ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_campaign_remembers_its_values(here: Path) -> None:
    file = write_inputs(here)
    (here / "s.yaml").write_text(LOCAL.format(label='environment: {WHERE: "${WHERE}"}'))
    run = ("run", file, "--dir", "run", "--inline", "--site", "s.yaml")
    assert "${WHERE} has no value" in hpcal(*run).stderr
    result = hpcal(*run, "--set", "WHERE=there")
    assert result.exit_code == 0, result.stderr
    with reading(here / "run") as store, store.session() as session:
        assert campaigns.campaign(session).site["values"] == {"WHERE": "there"}
    assert (
        hpcal("extend", "run", "--labels", "+3", "--generations", "+1", "--no-run", "--inline").exit_code == 0
    )
    assert hpcal("resume", "run", "--inline", "--site", "local").exit_code == 0
    with reading(here / "run") as store, store.session() as session:
        assert campaigns.campaign(session).site["values"] == {}  # they were another site's


def test_a_changed_environment_counts_on_resume_and_an_empty_one_does_not(tmp_path, monkeypatch):
    from hpcal.cli.run import Machine

    file = tmp_path / "mine.yaml"
    file.write_text(
        "kind: slurm\naccount: ${ACCOUNT}\nqos: ${QOS}\nwalltime: '01:00:00'\n"
        "pools: {label: {}, sample: {}, train: {}}\n"
    )
    monkeypatch.setenv("ACCOUNT", "old")
    monkeypatch.setenv("QOS", "of_the_environment")
    record = Machine.of(str(file), inline=False, values={"QOS": "set"}).record()
    for now, account in (("new", "new"), ("", "old")):
        monkeypatch.setenv("ACCOUNT", now)
        machine = Machine.again(record, None, inline=False)
        label = machine.site.pools["label"]
        assert (label.account, label.qos) == (account, "set")
        assert (machine.values, machine.environment) == ({"QOS": "set"}, {"ACCOUNT": account})

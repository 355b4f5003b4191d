"""Looking at a campaign: status, trace, report, plan."""

from __future__ import annotations

import dataclasses
import json
import socket
import sqlite3
from pathlib import Path
from typing import get_args

import pytest
from cli.helpers import hpcal

from hpcal.cli.dryrun import _steps
from hpcal.engine.campaign import read_campaign
from hpcal.engine.steps import Action
from hpcal.store.database import Store

PROMISED = (
    "state", "generation", "structures", "labels", "tasks", "ensemble", "qm_calls", "history", "pools",
    "stop_reason",
)  # fmt: skip
ERRORS = (
    "energy_mae_ev_per_atom", "energy_rmse_ev_per_atom", "force_mae_ev_per_ang", "force_rmse_ev_per_ang",
)  # fmt: skip


def as_json(*args: object) -> dict:
    result = hpcal(*args, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def files(root: Path) -> dict[str, bytes]:
    """Content of a campaign's folder, the scratch of readers aside."""
    return {
        str(p): p.read_bytes()
        for p in sorted(root.rglob("*"))
        if p.is_file() and not p.name.endswith(("-shm", "-wal"))
    }


def test_status_has_the_promised_keys(finished):
    status = as_json("status", finished)
    assert set(PROMISED) <= status.keys()
    assert {"accepted", "rejected", "failed", "pending"} <= status["labels"].keys()
    assert set(ERRORS) <= status["ensemble"].keys()
    for entry in status["history"]:
        assert {"generation", "labels", "node_hours", "audit", "reference"} <= entry.keys()
    assert {"slots", "busy_fraction"} <= status["pools"]["label"].keys()
    assert status["state"] == "finished"


def test_status_for_a_person(finished):
    result = hpcal("status", finished)
    assert result.exit_code == 0
    assert result.stdout.startswith("tiny on local, finished")
    assert "resume" not in result.stdout


def test_watching_ends_with_the_campaign(finished):
    result = hpcal("status", finished, "--watch")
    assert result.exit_code == 0
    assert "finished" in result.stdout


class Clock:
    """Sleeps by moving a campaign on: it runs for a while, then it is finished."""

    def __init__(self, root: Path, looks: int, state: str = "finished") -> None:
        self.root, self.left, self.state = root, looks, state

    def __call__(self, seconds: float) -> None:
        assert 1 <= seconds <= 10
        self.left -= 1
        if self.left == 0:
            put(self.root, f"state = '{self.state}'")


def put(root: Path, what: str) -> None:
    """Changes the row of the campaign."""
    connection = sqlite3.connect(root / "store.db")
    connection.execute(f"UPDATE campaign SET {what}")
    connection.commit()
    connection.close()


def run_elsewhere(root: Path) -> None:
    """Makes a campaign look as if a controller of another host ran it."""
    put(root, "state = 'running', lease_host = 'elsewhere', lease_pid = 1, lease_process_start = 0")


def test_watching_looks_again_until_the_campaign_ends(own_copy, monkeypatch):
    run_elsewhere(own_copy)
    monkeypatch.setattr("hpcal.cli.look.time.sleep", Clock(own_copy, 3))
    result = hpcal("status", own_copy, "--watch")
    assert result.exit_code == 0
    # What has not changed is not printed again.
    assert result.stdout.count("tiny on local, running") == 1
    assert result.stdout.rstrip().count("tiny on local, finished") == 1


def test_watching_as_json_is_a_line_a_look(own_copy, monkeypatch):
    run_elsewhere(own_copy)
    monkeypatch.setattr("hpcal.cli.look.time.sleep", Clock(own_copy, 2))
    lines = hpcal("status", own_copy, "--watch", "--json").stdout.splitlines()
    assert [json.loads(line)["state"] for line in lines] == ["running", "finished"]


def test_watching_ends_when_the_controller_is_dead(own_copy, monkeypatch):
    put(
        own_copy,
        f"state = 'running', lease_host = '{socket.gethostname()}', lease_pid = 2147483000, "
        "lease_process_start = 1.0",
    )
    monkeypatch.setattr("hpcal.cli.look.time.sleep", lambda _: pytest.fail("it would wait for ever"))
    result = hpcal("status", own_copy, "--watch")
    assert result.exit_code == 0
    assert f"its controller is dead: go on with `hpcal resume {own_copy}`" in result.stdout
    assert as_json("status", own_copy)["next"] == f"hpcal resume {own_copy}"


def test_ctrl_c_ends_watching(own_copy, monkeypatch):
    def interrupted(_seconds: float) -> None:
        raise KeyboardInterrupt

    run_elsewhere(own_copy)
    monkeypatch.setattr("hpcal.cli.look.time.sleep", interrupted)
    assert hpcal("status", own_copy, "--watch").exit_code == 0


@pytest.mark.slow
def test_accepted_changes_are_shown(own_copy, edited):
    file = edited(("labels: 32", "labels: 36"), ("generations: 2", "generations: 9"))
    result = hpcal("run", file, "--dir", own_copy, "--accept-changes", "--inline")
    assert result.exit_code == 0, result.stderr
    (change,) = as_json("status", own_copy)["changes"]
    assert change["lines"] == ["-  generations: 2", "-  labels: 32", "+  generations: 9", "+  labels: 36"]
    line = hpcal("status", own_copy).stdout.partition("changes of the campaign file\n")[2].splitlines()[0]
    assert line.endswith("- generations: 2; - labels: 32; + generations: 9; + labels: 36")
    html = (own_copy / "report.html").read_text()
    assert "Changes of the campaign file" in html
    assert "+ labels: 36" in html


def test_trace_of_a_labelled_structure(finished):
    trace = as_json("trace", finished, "2")
    promised = {"structure", "origin", "scores", "selection", "attempts", "label", "datasets", "models"}
    assert promised <= trace.keys()
    assert trace["label"]["energy"] < 0.0
    assert "selection" in hpcal("trace", finished, "2").stdout


@pytest.mark.parametrize("what", ["ensemble:1", "model:1", "dataset:1", "task:1"])
def test_trace_of_other_things(finished, what):
    assert as_json("trace", finished, what)["kind"] == what.partition(":")[0]


@pytest.mark.parametrize("what", ["99999", "nonsense:1", "abc"])
def test_trace_of_what_is_not_there(finished, what):
    result = hpcal("trace", finished, what)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


def test_report_goes_where_it_is_asked_to(finished, here):
    result = hpcal("report", finished, "--out", here / "r.html")
    assert result.exit_code == 0
    assert (here / "r.html").read_text().lower().startswith("<!doctype html>")


def test_plan_of_a_campaign_file_says_what_comes_first_and_its_cost(here):
    plan = as_json("plan", "tiny.yaml")
    assert plan["seeds"] == 1
    assert plan["bootstrap"] == [{"sampler": "random_displacement", "count": 16}]
    steps = {step["action"]: step["units"] for step in plan["next"]}
    assert steps == {"Bootstrap": 16, "LabelChunk": 1}
    # 17 first structures and one batch of 5, over 0.8 as a fifth of all labels audits.
    assert plan["estimate"]["labels"] == round(22 / 0.8)
    assert plan["estimate"]["qm_calls"]["total"] == round(22 / 0.8)
    assert not (here / "tiny").exists()


def test_plan_counts_relaxations_and_hessians(edited, here):
    file = edited(
        ("{file: water.xyz}", "{file: water.xyz, relax: true}"),
        ("sampler: random_displacement", "sampler: normal_modes"),
    )
    plan = as_json("plan", file)
    assert [step["action"] for step in plan["next"]] == ["Relax"]
    calls = plan["estimate"]["qm_calls"]
    # One to see that the relaxed structure is a minimum, one for its modes; 6N gradients each.
    assert calls["hessians"] == 2 * 6 * 3
    assert calls["relaxations"] > 0
    assert calls["total"] == calls["labels"] + calls["hessians"] + calls["relaxations"]


def test_plan_of_a_finished_campaign(finished):
    plan = as_json("plan", finished)
    assert [step["action"] for step in plan["next"]] == ["Finish"]
    assert plan["estimate"]["labels"] == 0


def test_plan_of_a_stopped_campaign_changes_nothing(own_copy, edited):
    store = Store.open(own_copy)
    with store.write() as session:
        row = session.connection().exec_driver_sql("SELECT spec FROM campaign").scalar_one()
        spec = json.loads(row) | {"stop": {"labels": 1000}}
        session.connection().exec_driver_sql(
            "UPDATE campaign SET state = 'stopped', spec = ?", (json.dumps(spec),)
        )
    store.close()
    before = files(own_copy)
    plan = as_json("plan", own_copy)
    assert files(own_copy) == before
    accepted = plan["labels"]["accepted"]
    assert plan["estimate"]["labels"] == 1000 - accepted
    assert plan["estimate"]["qm_calls"]["total"] == 1000 - accepted
    assert {step["action"] for step in plan["next"]} & {"Sample", "Spawn", "LabelChunk", "Select", "Train"}
    assert "advance" in hpcal("plan", own_copy).stdout or "label" in hpcal("plan", own_copy).stdout


def test_every_action_of_the_planner_has_a_sentence(here):
    spec = read_campaign(here / "tiny.yaml")
    values = {"structure_ids": (1, 2), "walker_ids": (1, 2), "pairs": ((1, (2,)), (2, (2,))), "reason": "why"}
    for kind in get_args(Action):
        fields = {f.name: values.get(f.name, 0 if f.name == "entry" else 2) for f in dataclasses.fields(kind)}
        (step,) = _steps([kind(**fields)], spec)
        assert step["action"] == kind.__name__
        assert "{" not in step["sentence"]
        assert len(step["sentence"]) > 5

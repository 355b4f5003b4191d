"""What happened to a task: ``hpcal why``, on campaigns in which things were made to go wrong."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from cli.helpers import hpcal, write_inputs
from support.campaigns import run_inline

from hpcal.core.errors import CampaignFailed, FailureClass
from hpcal.engine.dispatch import Assignment, Report
from hpcal.engine.failures import POLICIES, Answer
from hpcal.engine.tasks import run_attempt
from hpcal.report.why import policy, scheduler_word, tail

TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 3, in f\nKeyError: "made up"\n'


def query(root: Path, sql: str) -> list[tuple]:
    connection = sqlite3.connect(root / "store.db")
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


class Trouble:
    """The second labelling is lost once, the first training always fails with a traceback in its log."""

    def __init__(self) -> None:
        self.lost: int | None = None

    def __call__(self, assignment: Assignment) -> Report:
        if assignment.kind == "label" and self.lost is None:
            self.lost = assignment.task_id
            return Report(
                attempt_id=assignment.attempt_id, lost=True, host="node03", pid=77, block="1",
                message="the manager on node03 is gone",
            )  # fmt: skip
        if assignment.kind == "train":
            lines = "".join(f"step {n}\n" for n in range(100))
            Path(assignment.log).write_text(lines + TRACEBACK, encoding="utf-8")
            return Report(
                attempt_id=assignment.attempt_id, failure=FailureClass.BUG, message=TRACEBACK, host="node01"
            )
        return run_attempt(assignment)


@pytest.fixture(scope="session")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a campaign that failed in its training; not to be changed."""
    folder = tmp_path_factory.mktemp("broken")
    file = write_inputs(folder)
    with pytest.raises(CampaignFailed, match="stage train"):
        run_inline(file, folder / "run", Trouble())
    return folder / "run"


def why(root: Path, what: object) -> dict:
    result = hpcal("why", root, what, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def last_training(root: Path) -> int:
    return query(root, "SELECT max(id) FROM task WHERE kind = 'train'")[0][0]


def test_a_bug_shows_the_end_of_its_log_and_what_to_do(broken):
    task = last_training(broken)
    found = why(broken, task)
    assert found == why(broken, f"task:{task}")
    assert found["task"]["state"] == "failed"
    assert found["does"].startswith("train members 0, 1 of ensemble")
    assert (found["failure"]["class"], found["failure"]["cause"]) == ("bug", 'KeyError: "made up"')
    assert found["log"]["lines"][-1] == 'KeyError: "made up"'
    assert len(found["log"]["lines"]) == 20
    assert Path(found["log"]["path"]).read_text().endswith(TRACEBACK)
    numbers = [a["number"] for a in found["attempts"]]
    assert numbers == list(range(1, len(numbers) + 1))
    assert {a["host"] for a in found["attempts"]} == {"node01"}
    assert any(f"hpcal resume {broken}" in step for step in found["next"])
    text = hpcal("why", broken, task).stdout
    assert text.startswith(f"task {task} (train): failed\n")
    for words in ("1. failed in pool train on node01", "end of the log", "what to do", "its stage stops"):
        assert words in text


def test_a_lost_attempt_says_where_and_that_a_later_one_was_successful(broken):
    ((task,),) = query(broken, "SELECT task_id FROM attempt WHERE state = 'lost'")
    found = why(broken, task)
    first, second = found["attempts"]
    assert (first["state"], first["class"], first["host"], first["pid"], first["block"]) == (
        "lost", "node", "node03", 77, "1",
    )  # fmt: skip
    assert first["reason"] == "lost with its worker: the manager on node03 is gone"
    assert (second["state"], second["reason"], second["class"]) == ("done", "done", None)
    assert found["failure"]["class"] == "node"
    assert found["next"] == ["nothing: a later attempt was successful"]
    assert [s["state"] for s in found["structures"]].count("labelled") == len(found["structures"])
    assert "node03, process 77, block 1" in hpcal("why", broken, task).stdout


def test_what_status_says_next_really_runs(broken):
    status = json.loads(hpcal("status", broken, "--json").stdout)
    stages = {(f["stage"], f["class"], f["answer"]) for f in status["failures"]}
    assert {("train", "bug", "stage stopped"), ("label", "node", "retried")} <= stages
    for entry in status["failures"]:
        command = entry["next"].split()
        assert command[:2] == ["hpcal", "why"]
        assert hpcal(*command[1:]).exit_code == 0
    assert status["next"] == f"hpcal resume {broken}"
    text = hpcal("status", broken).stdout
    assert "the manager on node03 is gone (node), retried" in text
    assert f"mend what stopped it, then go on with `hpcal resume {broken}`" in text


def test_a_structure_leads_to_its_last_task(broken):
    ((structure, task),) = query(
        broken,
        "SELECT l.structure_id, a.task_id FROM label l JOIN attempt a ON a.id = l.attempt_id "
        "ORDER BY l.id DESC LIMIT 1",
    )
    assert why(broken, f"structure:{structure}")["task"]["id"] == task


def test_a_task_that_went_well(finished):
    ((task,),) = query(finished, "SELECT max(id) FROM task WHERE kind = 'sample'")
    found = why(finished, task)
    assert found["does"].startswith("advance ")
    assert found["failure"] is None
    assert found["next"] == ["nothing: it is done"]


def test_every_kind_of_task_has_words(finished):
    for kind, task in query(finished, "SELECT kind, max(id) FROM task GROUP BY kind"):
        words = why(finished, task)["does"]
        assert words != kind
        assert len(words) > 10


def test_a_structure_that_was_turned_away(own_copy):
    ((structure, attempt, task),) = query(
        own_copy,
        "SELECT l.structure_id, l.attempt_id, a.task_id FROM label l JOIN attempt a ON a.id = l.attempt_id "
        "ORDER BY l.id LIMIT 1",
    )
    connection = sqlite3.connect(own_copy / "store.db")
    connection.execute(
        "INSERT INTO rejection (structure_id, level_of_theory_id, attempt_id, failure_class, code, message, "
        f"diagnostics, qm_calls, created) VALUES ({structure}, 1, {attempt}, 'physics', 'net_force', "
        "'net force 0.3 eV/Å', '{}', 1, 0)"
    )
    connection.execute(f"UPDATE structure SET state = 'rejected' WHERE id = {structure}")
    connection.commit()
    connection.close()
    found = why(own_copy, f"structure:{structure}")
    assert found["task"]["id"] == task
    assert [r["code"] for r in found["rejections"]] == ["net_force"]
    assert any(f"hpcal trace {own_copy} {structure}" in step for step in found["next"])
    assert any("temperature_K" in step for step in found["next"])
    assert f"{structure} rejected: net_force: net force 0.3 eV/Å" in hpcal("why", own_copy, task).stdout


def test_why_a_structure_was_set_aside_before_it_came_to_be_labelled(own_copy):
    reason = "a label of H2O takes about 9000 s, which fits into no batch job"
    connection = sqlite3.connect(own_copy / "store.db")
    connection.execute("CREATE TEMP TABLE one AS SELECT * FROM structure WHERE task_id IS NOT NULL LIMIT 1")
    connection.execute(f"UPDATE one SET id = 9999, state = 'quarantined', reason = '{reason}', hash = 'x'")
    connection.execute("INSERT INTO structure SELECT * FROM one")
    connection.commit()
    connection.close()
    found = why(own_copy, "structure:9999")
    assert {"id": 9999, "state": "quarantined", "reason": reason} in found["structures"]
    assert any("for you to look at" in step for step in found["next"])
    assert f"9999 quarantined: {reason}" in hpcal("why", own_copy, "structure:9999").stdout


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("99999", "there is no task 99999: this campaign has"),
        ("structure:99999", "there is no structure 99999"),
        ("abc", "is no id"),
        ("task:", "is no id"),
        ("-1", ""),
        ("tsak:3", "did you mean"),
        ("model:1", "is nothing that runs"),
    ],
)
def test_bad_ids_are_one_sentence(finished, what, words):
    result = hpcal("why", finished, "--", what)
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_there_must_be_a_campaign(tmp_path):
    assert hpcal("why", tmp_path, "1").exit_code == 2


# The parts


def test_the_end_of_a_log_is_found_however_long_it_is(tmp_path):
    path = tmp_path / "long.log"
    path.write_bytes(b"".join(b"line %d \xff\n\n" % n for n in range(300_000)))
    lines = tail(path)
    assert len(lines) == 20
    assert lines[-1].startswith("line 299999")
    assert tail(tmp_path / "missing.log") == []


def test_the_batch_systems_word_is_that_of_the_block_in_its_time(tmp_path):
    scripts = tmp_path / "parsl" / "000" / "submit_scripts"
    scripts.mkdir(parents=True)
    for moment, text in (
        (100.5, "old"),
        (200.5, "*** JOB 12 CANCELLED DUE TO TIME LIMIT ***"),
        (900.5, "new"),
    ):
        (scripts / f"parsl.label.block-0.{moment}.submit.stderr").write_text(f"{text}\n\n")
        (scripts / f"parsl.label.block-0.{moment}.submit").write_text("#!/bin/bash\n")
    (scripts / "parsl.label.block-1.200.5.submit.stderr").write_text("another block\n")
    (scripts / "parsl.train.block-0.200.5.submit.stderr").write_text("another pool\n")
    row = {"block": "0", "executor": "label", "start": 300.0, "dispatched": 250.0}
    assert scheduler_word(tmp_path, row) == ["*** JOB 12 CANCELLED DUE TO TIME LIMIT ***"]
    assert scheduler_word(tmp_path, {**row, "block": None}) == []
    assert scheduler_word(tmp_path, {**row, "start": 50.0}) == []


def test_the_batch_systems_word_is_that_of_the_controller_of_its_time(tmp_path):
    """Each controller counts its blocks from 0 in a folder of its own."""
    for number, moment in (("000", 100.0), ("001", 500.0)):
        scripts = tmp_path / "parsl" / number / "submit_scripts"
        scripts.mkdir(parents=True)
        (scripts / "parsl.label.block-0.slurm").write_text("#!/bin/bash\n")
        os.utime(scripts / "parsl.label.block-0.slurm", (moment, moment))
        (scripts / "parsl.label.block-0.stderr").write_text(f"slurmstepd: error: of controller {number}\n")
    row = {"block": "0", "executor": "label", "start": 300.0, "dispatched": 250.0}
    assert scheduler_word(tmp_path, row) == ["slurmstepd: error: of controller 000"]
    assert scheduler_word(tmp_path, {**row, "start": 600.0}) == ["slurmstepd: error: of controller 001"]


def test_how_the_job_of_a_lost_attempt_ended_is_told(broken, tmp_path):
    """From the event, also where the attempt was found lost before the scheduler was heard."""
    root = tmp_path / "run"
    shutil.copytree(broken, root)
    ((task, epoch, pool),) = query(root, "SELECT task_id, epoch, executor FROM attempt WHERE block = '1'")
    with sqlite3.connect(root / "store.db") as connection:
        for block in ("1", "2"):
            connection.execute(
                "INSERT INTO event (time, epoch, kind, message, data) VALUES (0, ?, 'block_ended', ?, ?)",
                (epoch, f"job 7{block} ended: NODE_FAIL", json.dumps({"pool": pool, "block": block})),
            )
    connection.close()
    lost = next(a for a in why(root, task)["attempts"] if a["block"] == "1")
    assert lost["scheduler"] == ["job 71 ended: NODE_FAIL"]
    assert "batch system: job 71 ended: NODE_FAIL" in hpcal("why", root, task).stdout


@pytest.mark.parametrize("failure", list(FailureClass))
def test_what_hpcal_does_is_said_as_the_policies_have_it(failure):
    text, found = policy(failure), POLICIES[failure]
    assert ("is not tried again" in text) == (found.retry is None)
    assert ("rejected" in text) == (found.structure is Answer.REJECT)
    assert ("its stage stops" in text) == (found.task is Answer.STOP)


@pytest.mark.parametrize("words", [("why", "task:99999999999999999999"), ("trace", "99999999999999999999")])
def test_ids_that_no_column_holds_are_not_there(broken: Path, words: tuple[str, str]) -> None:
    result = hpcal(words[0], broken, words[1])
    assert result.exit_code == 2
    assert "no such" in result.stderr
    assert len(result.stderr.splitlines()) == 1

"""Failures by cause: what meets, what does not, what is shown of it and which command comes next."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report.conftest import LEVEL, START, Author

from hpcal.core.errors import FailureClass
from hpcal.core.walker import Split
from hpcal.report.failures import cause_of, common, failure_lines, normalised
from hpcal.report.status import campaign_status, status_text
from hpcal.store.database import Store, add_event
from hpcal.store.rows import level_id
from hpcal.store.tables import SCHEMA_VERSION, Campaign, RejectionRow
from hpcal.store.transitions import CampaignState, StructureState, TaskState

TRACEBACK = """Traceback (most recent call last):
  File "/opt/venv/lib/python3.11/site-packages/thing/{n}.py", line {n}, in label
    raise ValueError
ValueError: shape ({n}, 3) does not fit
"""


# Texts


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("net force 0.213 eV/Å above 0.1 eV/Å", "net force 1.9e+02 eV/Å above 0.1 eV/Å"),
        ("structure 12: atoms 3 (H) and 17 (H) overlap", "structure 9: atoms 1 (H) and 2 (H) overlap"),
        ("no space left on device: /scratch/a/b.tmp", "no space left on device: /local/x.tmp"),
        ("the worker on node03 was killed", "the worker on node117 was killed"),
        ("killed by job 00ff12ab", "killed by job 7e13a9"),
        ("modes at [1.0, 2.0, 3.0] are soft", "modes at [1.0, 2.0] are soft"),
        ("cannot read tasks/00000031-1.spool: torn", "cannot read tasks/00000007-2.spool: torn"),
    ],
)
def test_equal_causes_meet(one, other):
    assert normalised(one) == normalised(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("SCF not converged after 4 rungs", "SCF not stable after 4 rungs"),
        ("net force 0.2 eV/Å", "net force 0.2 eV/bohr"),
        ("out of memory", "out of time"),
        ("unknown element He", "unknown element Ne"),
    ],
)
def test_other_causes_do_not(one, other):
    assert normalised(one) != normalised(other)


def test_hosts_without_numbers_meet_where_they_are_known():
    one, other = "manager on alpha.cluster lost", "manager on beta lost"
    assert normalised(one) != normalised(other)
    assert normalised(one, ["alpha.cluster", "beta"]) == normalised(other, ["alpha.cluster", "beta"])


@given(st.text(max_size=200), st.integers(0, 10**9), st.integers(0, 10**9))
def test_any_number_anywhere_changes_nothing(text, a, b):
    assert normalised(f"{text} {a} {text}") == normalised(f"{text} {b} {text}")
    assert normalised(normalised(text)) == normalised(text)


def test_the_cause_of_a_traceback_is_its_last_line():
    text = TRACEBACK.format(n=7)
    assert cause_of(text) == "ValueError: shape (7, 3) does not fit"
    assert cause_of("\n  SCF not converged\n  iteration 250\n") == "SCF not converged"
    assert cause_of(" \n") == "no cause was recorded"


def test_what_texts_have_in_common_is_kept():
    assert common(["net force 0.2, limit 0.1", "net force 0.3, limit 0.1"]) == "net force …, limit 0.1"
    assert common(["SCF not converged after 4 rungs"] * 3) == "SCF not converged after 4 rungs"
    assert common(["modes at [1.0, 2.0]", "modes at [1.0]"]) == "modes at […]"


# A store


@pytest.fixture
def author(tmp_path: Path):
    """A writer of rows in a campaign that has failed."""
    store = Store.create(tmp_path)
    with store.write() as session:
        author = Author(session=session, rng=np.random.default_rng(2))
        author.level = level_id(session, LEVEL)
        session.add(
            Campaign(
                name="water", run_id="r", schema_version=SCHEMA_VERSION, hpcal_version="0", created=START,
                spec={}, spec_folder="/", site={}, state=CampaignState.FAILED,
                stop_reason="stage train: the last 3 tasks failed: no GPU",
            )
        )  # fmt: skip
        yield SimpleNamespace(write=author, store=store, folder=tmp_path)
    store.close()


def rejected(write: Author, message: str, code: str = "scf_not_converged", **how: object) -> tuple[int, int]:
    """A rejected structure with its task; their ids."""
    row = write.structure("sample", how.get("state", StructureState.REJECTED), Split.TRAIN)
    task = write.task("label", "label", inputs={"structure_ids": [row.id]})
    attempt = write.attempt(task)
    write.add(
        RejectionRow(
            structure_id=row.id, level_of_theory_id=write.level, attempt_id=attempt.id, code=code,
            failure_class=how.get("failure_class", FailureClass.PHYSICS), message=message, diagnostics={},
            qm_calls=1, created=write.clock,
        )
    )  # fmt: skip
    return row.id, task.id


def failures(author: SimpleNamespace) -> list[dict]:
    author.write.session.commit()
    return campaign_status(author.store, Path("run"))["failures"]


def test_rejections_of_one_cause_are_one_line_with_the_newest_example(author):
    for n in range(12):
        newest = rejected(author.write, f"SCF not converged after {n + 3} rungs")
    (found,) = failures(author)
    assert (found["stage"], found["class"], found["count"], found["structures"]) == (
        "label", "physics", 12, 12,
    )  # fmt: skip
    assert found["cause"] == "scf_not_converged: SCF not converged after … rungs"
    assert (found["last_structure"], found["last_task"]) == newest
    assert found["answer"] == "rejected"
    assert found["next"] == f"hpcal why run task:{newest[1]}"
    (line,) = failure_lines([found], 8)[1:]
    assert line.split(maxsplit=3)[:3] == ["label", "12", "×"]
    assert "  SCF not converged after … rungs (physics), rejected  hpcal why run task:" in line


@pytest.mark.parametrize(
    ("states", "answer"),
    [
        ([StructureState.QUARANTINED] * 2, "set aside"),
        ([StructureState.QUARANTINED, StructureState.REJECTED], "rejected or set aside"),
        ([StructureState.REJECTED] * 2, "rejected"),
    ],
)
@pytest.mark.parametrize("values", [(0.2, 0.2), (0.2, 0.4)])
def test_what_is_set_aside_for_a_person_is_told_from_what_is_rejected(author, states, answer, values):
    rejected(author.write, "SCF not converged")
    for state, value in zip(states, values, strict=True):
        rejected(author.write, f"<S²> is off by {value}", "spin", state=state)
    assert {f["code"]: f["answer"] for f in failures(author)} == {
        "scf_not_converged": "rejected",
        "spin": answer,
    }


def test_two_causes_under_one_code_are_two_lines(author):
    aside = {"failure_class": FailureClass.RESOURCE, "state": StructureState.QUARANTINED}
    for n in range(5):
        rejected(author.write, f"the child died by signal {n}", "failed", **aside)
    for n in range(3):
        rejected(author.write, f"no reply in {n} s", "failed", **aside)
    found = failures(author)
    assert [(f["count"], f["cause"], f["answer"]) for f in found] == [
        (5, "failed: the child died by signal …", "set aside"),
        (3, "failed: no reply in … s", "set aside"),
    ]


def test_attempts_that_were_tried_again_tell_where(author):
    for host in ("node03", "node03", "node07"):
        task = author.write.task("sample", "sample")
        author.write.attempt(
            task, TaskState.LOST, host=host, exit_reason=f"node: the worker on {host} is gone"
        )
        author.write.attempt(task, number=2)
    (found,) = failures(author)
    assert (found["what"], found["class"], found["answer"], found["count"]) == (
        "retried", "node", "retried", 3,
    )  # fmt: skip
    assert found["hosts"] == ["node03", "node07"]
    assert found["cause"] == "the worker on … is gone"
    assert "on 2 hosts (node), retried" in status_text(campaign_status(author.store))


def test_a_stop_is_no_failure(author):
    for reason in ("its controller ended", "stopped as asked"):
        task = author.write.task("sample", "sample")
        author.write.attempt(task, TaskState.LOST, exit_reason=reason)
    assert failures(author) == []


def test_a_task_that_was_given_up_counts_once_and_its_traceback_ends_in_the_cause(author):
    for n in (11, 12):
        text = TRACEBACK.format(n=n)
        task = author.write.task(
            "train", "train", TaskState.FAILED, failure_class=FailureClass.BUG, error="padding\n" * 0 + text
        )
        for number in (1, 2):
            author.write.attempt(task, TaskState.FAILED, number=number, exit_reason=f"bug: {text}")
    (found,) = failures(author)
    assert (found["what"], found["count"], found["class"]) == ("task", 2, "bug")
    assert found["cause"] == "ValueError: shape …, 3) does not fit"
    assert found["last_task"] == task.id
    assert found["answer"] == "stage stopped"


def test_long_tracebacks_keep_their_last_line(author):
    frames = "".join(f'  File "/x/{n}.py", line {n}, in f{n}\n' for n in range(200))
    text = f"Traceback (most recent call last):\n{frames}OSError: disk quota exceeded\n"
    author.write.task("select", "sample", TaskState.FAILED, failure_class=FailureClass.NODE, error=text)
    (found,) = failures(author)
    assert found["cause"] == "OSError: disk quota exceeded"
    assert found["answer"] == "given up"


def test_a_structure_that_broke_and_came_through_is_retried_and_one_that_did_not_is_counted_once(author):
    row = author.write.labelled("sample", Split.TRAIN, 1)[0]
    add_event(
        author.write.session, 1, "label_failed", "the child ran out of memory", structure_id=row.id,
        task_id=1, failure_class="resource",
    )  # fmt: skip
    bad, task = rejected(
        author.write, "the child crashed", "failed", failure_class=FailureClass.BUG,
        state=StructureState.QUARANTINED,
    )  # fmt: skip
    for _ in range(2):
        add_event(
            author.write.session, 1, "label_failed", "the child crashed", structure_id=bad, task_id=task,
            failure_class="bug",
        )  # fmt: skip
    found = {f["what"]: f for f in failures(author)}
    assert set(found) == {"retried", "rejection"}
    assert (found["retried"]["count"], found["retried"]["class"]) == (1, "resource")
    assert found["retried"]["last_structure"] == row.id
    assert (found["rejection"]["count"], found["rejection"]["answer"]) == (1, "set aside")


def test_seeds_that_were_set_aside_are_asked_for_by_structure(author):
    for n in range(2):
        seed = author.write.structure(
            "seed", StructureState.QUARANTINED, Split.TRAIN, reason=f"physics: no minimum in {200 + n} steps"
        )
    (found,) = failures(author)
    assert (found["stage"], found["class"], found["count"]) == ("relax", "physics", 2)
    assert found["next"] == f"hpcal why run structure:{seed.id}"


def test_hosts_set_aside_are_listed_with_the_reason(author):
    for host, count in (("node03", 3), ("node09", 4), ("node03", 5)):
        add_event(
            author.write.session, 1, "host_set_aside", f"{host} is set aside: {count} in a row", host=host,
            count=count, reason="disk full",
        )  # fmt: skip
    author.write.session.commit()
    status = campaign_status(author.store)
    assert {(h["host"], h["message"]) for h in status["hosts_set_aside"]} == {
        ("node03", "node03 is set aside: 5 in a row"),
        ("node09", "node09 is set aside: 4 in a row"),
    }
    assert "hosts set aside\n  node03 is set aside: 5 in a row" in status_text(status)


def test_more_causes_than_fit_are_counted(author):
    words = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    for word in words:
        rejected(author.write, f"cause {word}", word)
    lines = failure_lines(failures(author), 8)
    assert len(lines) == 1 + 8 + 1
    assert lines[-1].strip().startswith("and 2 more causes")


@pytest.fixture
def statements(author) -> list[str]:
    """Every SELECT that a status sends about failures, as plain SQL with its values."""
    from sqlalchemy import event

    from hpcal.report.failures import changes, hosts_set_aside
    from hpcal.report.failures import failures as grouped

    rejected(author.write, "a"), rejected(author.write, "b")
    author.write.session.commit()
    seen: list[str] = []
    with author.store.session() as session:
        engine = session.get_bind()

        def note(_connection, _cursor, sql, values, *_):
            for value in values:
                sql = sql.replace("?", repr(str(value)) if isinstance(value, str) else str(value), 1)
            seen.append(sql)

        event.listen(engine, "before_cursor_execute", note)
        grouped(session, ["label", "sample"], None, "run"), hosts_set_aside(session), changes(session)
        event.remove(engine, "before_cursor_execute", note)
    return [sql for sql in seen if sql.startswith("SELECT")]


def test_no_query_of_failures_reads_the_history(author, statements):
    """Tables that grow with success are never scanned: structures, scores, labels, tasks, events."""
    connection = sqlite3.connect(author.folder / "store.db")
    scans = [
        (step[3], sql)
        for sql in statements
        for step in connection.execute(f"EXPLAIN QUERY PLAN {sql}")
        if step[3].startswith("SCAN ") and "USING COVERING INDEX" not in step[3]
    ]
    connection.close()
    assert len(statements) >= 8
    allowed = ("SCAN rejection", "SCAN anon_1", "SCAN attempt")
    assert [scan for scan in scans if not scan[0].startswith(allowed)] == []


def test_counts_stay_whole_where_texts_are_too_many_to_be_read(author, monkeypatch):
    monkeypatch.setattr("hpcal.store.reasons.GROUPS", 4)
    for n in range(9):
        rejected(author.write, f"net force {n} eV/Å")
        author.write.structure("seed", StructureState.QUARANTINED, Split.TRAIN, reason=f"physics: no {n} {n}")
        task = author.write.task("sample", "sample")
        author.write.attempt(task, TaskState.LOST, exit_reason=f"node: worker {n} is gone")
        author.write.task(
            "select", "sample", TaskState.FAILED, failure_class=FailureClass.BUG, error=f"no {n} there"
        )
        row = author.write.structure("sample", StructureState.CLAIMED, Split.TRAIN)
        add_event(
            author.write.session, 1, "label_failed", f"child {n} died", structure_id=row.id,
            task_id=task.id, failure_class="resource",
        )  # fmt: skip
    found = failures(author)
    assert {(f["what"], f["stage"]) for f in found} == {
        ("rejection", "label"), ("quarantine", "relax"), ("retried", "sample"), ("task", "select"),
        ("retried", "label"),
    }  # fmt: skip
    assert {f["count"] for f in found} == {9}


def test_what_is_only_counted_joins_no_cause_where_there_are_several(author, monkeypatch):
    monkeypatch.setattr("hpcal.store.reasons.GROUPS", 2)
    for word in ("one", "two", "three", "four", "five"):
        rejected(author.write, f"cause {word}", "failed")
    found = {f["cause"]: f["count"] for f in failures(author)}
    assert found == {"failed: cause four": 1, "failed: cause five": 1, "failed: others, not told apart": 3}

"""Results of attempts that count as lost, reports that come twice, and spools that are torn."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.campaigns import SLOTS, content, query, run_inline

from hpcal.core.errors import Interrupted, StoreError
from hpcal.engine import completions, late
from hpcal.engine.completions import Completions
from hpcal.engine.dispatch import Assignment, InlineDispatcher, Report
from hpcal.engine.endings import read_results
from hpcal.engine.late import KeptSpools, mark_of
from hpcal.engine.spool import SpoolWriter
from hpcal.engine.start import take_up
from hpcal.engine.tasks import run_attempt
from hpcal.engine.work import quantum


class Stray:
    """The n-th attempt at a kind of task is reported as lost; it is carried out when asked."""

    def __init__(self, kind: str, nth: int = 1, *, stop: bool) -> None:
        self.kind, self.left, self.stop = kind, nth, stop
        self.lost: Assignment | None = None
        self.payload = b""

    def __call__(self, assignment: Assignment) -> Report:
        self.left -= assignment.kind == self.kind
        if self.left == 0 and self.lost is None:
            self.lost = assignment
            self.payload = Path(assignment.payload).read_bytes()
            if self.stop:
                Path(assignment.stop_file).touch()
            return Report(attempt_id=assignment.attempt_id, lost=True, message="silent", host="n1")
        return run_attempt(assignment)

    def carry_out(self) -> Report:
        """The worker was only cut off: it goes on."""
        assert self.lost is not None
        Path(self.lost.stop_file).unlink(missing_ok=True)
        Path(self.lost.payload).write_bytes(self.payload)
        return run_attempt(self.lost)


@contextmanager
def taken_up(root: Path):
    context = take_up(root, InlineDispatcher(SLOTS, run_attempt))
    try:
        yield context
    finally:
        context.store.release()
        context.store.close()


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """Structures in the order in which their labels are computed."""
    made: list[int] = []
    real = quantum._one_label

    def one(labeler, structure, work):
        made.append(next(i["id"] for i in work.inputs["structures"] if i["structure"] is structure))
        return real(labeler, structure, work)

    monkeypatch.setattr(quantum, "_one_label", one)
    return made


SLOW = [
    pytest.param(kind, marks=pytest.mark.slow)
    for kind in ("sample", "train", "bootstrap", "evaluate", "select")
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["label", *SLOW])
def test_an_attempt_that_comes_to_its_end_late_finishes_its_task(campaign_file, tmp_path, calls, kind):
    file, root = campaign_file(), tmp_path / "run"
    stray = Stray(kind, stop=True)
    with pytest.raises(Interrupted):
        run_inline(file, root, stray)
    stray.carry_out()
    run_inline(file, root)
    attempt, task = stray.lost.attempt_id, stray.lost.task_id
    assert query(root, f"SELECT id, state FROM attempt WHERE task_id = {task}") == [(attempt, "done")]
    assert query(root, f"SELECT state FROM task WHERE id = {task}") == [("done",)]
    assert query(root, "SELECT count(*) FROM event WHERE kind = 'late_result'") == [(1,)]
    assert query(root, "SELECT count(*) FROM event WHERE kind = 'duplicate_label'") == [(0,)]
    assert len(calls) == len(set(calls))
    assert not list((root / "tasks").glob("*.spool"))
    run_inline(file, tmp_path / "whole")
    assert content(root) == content(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("look_seconds", [0.0, pytest.param(1e6, marks=pytest.mark.slow)])
def test_a_second_label_is_recorded_as_a_duplicate_with_both_attempts(
    campaign_file, tmp_path, monkeypatch, look_seconds
):
    """The lost attempt goes on beside the one that replaces it; whichever is read first counts."""
    monkeypatch.setattr(late, "LOOK_SECONDS", look_seconds)
    file, root = campaign_file(), tmp_path / "run"

    class Beside(Stray):
        def __call__(self, assignment: Assignment) -> Report:
            first = self.lost
            report = super().__call__(assignment)
            if first is not None and assignment.task_id == first.task_id:
                self.carry_out()
            return report

    stray = Beside("label", 2, stop=False)
    run_inline(file, root, stray)
    task = stray.lost.task_id
    (ids,) = query(root, f"SELECT inputs FROM task WHERE id = {task}")[0]
    ids = json.loads(ids)["structure_ids"]
    ((second,),) = query(root, f"SELECT id FROM attempt WHERE task_id = {task} AND number = 2")
    with taken_up(root) as context:
        Completions(context).recover()
    both = [stray.lost.attempt_id, second]
    winner = both[0] if look_seconds == 0.0 else both[1]
    events = query(root, "SELECT structure_id, data FROM event WHERE kind = 'duplicate_label' ORDER BY 1")
    assert [i for i, _ in events] == sorted(ids)
    assert all(json.loads(data)["attempts"] == [winner, *(set(both) - {winner})] for _, data in events)
    winners = query(
        root, f"SELECT DISTINCT attempt_id FROM label WHERE structure_id IN ({','.join(map(str, ids))})"
    )
    assert winners == [(winner,)]
    assert query(root, "SELECT 1 FROM label GROUP BY structure_id HAVING count(*) > 1") == []
    # What has been read is not told again, whoever looks at it next.
    with taken_up(root) as context:
        Completions(context).recover()
    assert len(query(root, "SELECT 1 FROM event WHERE kind = 'duplicate_label'")) == len(ids)


@pytest.mark.slow
def test_a_late_label_of_a_task_that_was_given_up_is_kept(campaign_file, tmp_path, calls):
    file, root = campaign_file(), tmp_path / "run"
    file.write_text(file.read_text().replace("tasks: {", "tasks: {max_losses: 1, "))
    stray = Stray("label", stop=True)
    with pytest.raises(Interrupted):
        run_inline(file, root, stray)
    assert query(root, f"SELECT state FROM task WHERE id = {stray.lost.task_id}") == [("failed",)]
    stray.carry_out()
    done = set(calls)
    run_inline(file, root)
    assert len(calls) == len(set(calls))
    found = query(root, f"SELECT structure_id FROM label WHERE attempt_id = {stray.lost.attempt_id}")
    assert {i for (i,) in found} == done


@pytest.mark.slow
def test_a_late_sampling_whose_task_is_being_tried_again_waits_for_that(campaign_file, tmp_path):
    """Its end counts only if the other attempt is lost too."""
    file, root = campaign_file(), tmp_path / "run"

    class Twice(Stray):
        def __call__(self, assignment: Assignment) -> Report:
            if self.lost is not None and assignment.task_id == self.lost.task_id:
                self.carry_out()
                return Report(attempt_id=assignment.attempt_id, lost=True, message="silent too")
            return super().__call__(assignment)

    stray = Twice("sample", stop=False)
    run_inline(file, root, stray)
    states = query(root, f"SELECT state FROM attempt WHERE task_id = {stray.lost.task_id} ORDER BY number")
    assert states == [("done",), ("lost",)]
    run_inline(file, tmp_path / "whole")
    assert content(root) == content(tmp_path / "whole")


@pytest.mark.slow
def test_reports_that_come_twice_or_of_attempts_unknown_change_nothing(campaign_file, tmp_path):
    root = tmp_path / "run"
    run_inline(campaign_file(), root)
    before = content(root)
    with taken_up(root) as context:
        recorder = Completions(context)
        for report in (Report(attempt_id=1), Report(attempt_id=2, lost=True), Report(attempt_id=3)):
            recorder.record([report, report])
        (message,) = recorder.record([Report(attempt_id=10**6)])
    assert "1000000" in message
    assert content(root) == before
    assert query(root, "SELECT count(*) FROM attempt WHERE state != 'done'") == [(0,)]


def stopped_at(campaign_file, root: Path, kind: str) -> Stray:
    """A campaign whose controller has gone while an attempt was under way on another machine."""
    stray = Stray(kind, 2, stop=True)

    def dies(assignment: Assignment) -> Report:
        report = stray(assignment)
        if stray.lost is not None:
            raise KeyboardInterrupt
        return report

    with pytest.raises(KeyboardInterrupt):
        run_inline(campaign_file(), root, dies)
    Path(stray.lost.stop_file).unlink()
    return stray


@pytest.mark.slow
def test_no_spool_is_removed_before_its_records_are_durable(campaign_file, tmp_path, monkeypatch):
    root = tmp_path / "run"
    stray = stopped_at(campaign_file, root, "label")
    run_attempt(stray.lost)
    spool = Path(stray.lost.spool)
    with taken_up(root) as context:
        real = context.store.write

        @contextmanager
        def full():
            with real() as session:
                yield session
                session.rollback()
                raise StoreError("database or disk is full")

        monkeypatch.setattr(context.store, "write", full)
        with pytest.raises(StoreError):
            Completions(context).recover()
        assert spool.exists()
        monkeypatch.undo()
        Completions(context).recover()
    assert not spool.exists()
    assert len(query(root, f"SELECT 1 FROM label WHERE attempt_id = {stray.lost.attempt_id}")) == 4


@pytest.mark.slow
def test_a_real_spool_torn_at_any_byte_gives_the_labels_before(campaign_file, tmp_path):
    root = tmp_path / "run"
    stray = stopped_at(campaign_file, root, "label")
    run_attempt(stray.lost)
    data = Path(stray.lost.spool).read_bytes()
    torn = tmp_path / "torn"
    before = -1
    for length in range(len(data) + 1):
        torn.write_bytes(data[:length])
        found = read_results(torn, stray.lost.attempt_id)
        assert found.problem == ""
        assert len(found.values) >= before
        assert found.complete == (length == len(data))
        before = len(found.values)
    assert before == 4


@pytest.mark.slow
def test_after_a_tear_what_was_whole_is_kept_and_the_rest_is_labelled_once_more(campaign_file, tmp_path):
    root, copies = tmp_path / "run", tmp_path / "copies"
    stray = stopped_at(campaign_file, root, "label")
    run_attempt(stray.lost)
    data = Path(stray.lost.spool).read_bytes()
    for number, length in enumerate(np.random.default_rng(3).integers(0, len(data), 6)):
        copy = copies / str(number)
        shutil.copytree(root, copy)
        spool = copy / "tasks" / Path(stray.lost.spool).name
        spool.write_bytes(data[:length])
        whole = len(read_results(spool, stray.lost.attempt_id).values)
        with taken_up(copy) as context:
            Completions(context).recover()
        kept = query(copy, "SELECT structure_id, attempt_id FROM label ORDER BY seq")
        assert [attempt for _, attempt in kept].count(stray.lost.attempt_id) == whole
        run_inline(campaign_file(), copy)
        assert query(copy, "SELECT 1 FROM label GROUP BY structure_id HAVING count(*) > 1") == []
        assert query(copy, "SELECT structure_id, attempt_id FROM label ORDER BY seq")[: len(kept)] == kept


@pytest.mark.slow
@pytest.mark.parametrize("how", ["unreadable", "another attempt's", "folder"])
def test_a_spool_that_cannot_be_read_is_redone(campaign_file, tmp_path, how):
    root = tmp_path / "run"
    hit: list[Path] = []

    def spoils(assignment: Assignment) -> Report:
        report = run_attempt(assignment)
        if assignment.kind == "label" and not hit:
            spool = Path(assignment.spool)
            hit.append(spool)
            if how == "unreadable":
                spool.write_bytes(b"hpcalsp\x63 of a newer version")
            elif how == "folder":
                spool.unlink()
                spool.mkdir()
            else:
                spool.unlink()
                with SpoolWriter(spool, attempt=assignment.attempt_id + 1, epoch=1) as writer:
                    writer.append({"end": True})
        return replace(report, host="n1")

    run_inline(campaign_file(), root, spoils)
    assert query(root, "SELECT state FROM campaign") == [("finished",)]
    ((reason,),) = query(root, "SELECT exit_reason FROM attempt WHERE state = 'lost'")
    assert reason.startswith("node: its results did not arrive")
    problems = query(root, "SELECT count(*) FROM event WHERE kind = 'spool_unreadable'")
    assert problems == [(0 if how == "another attempt's" else 1,)]
    assert hit[0].exists()


def test_kept_spools_are_looked_at_only_when_they_have_changed(tmp_path):
    path, kept = tmp_path / "a.spool", KeptSpools()
    kept.keep(7, path)
    assert kept.due(now=True) == {}
    path.write_bytes(b"one")
    assert kept.due(now=True) == {7: True}
    assert kept.due() == {}  # looked a moment ago
    kept.keep(7, path, mark=mark_of(path))
    assert kept.due(now=True) == {}
    path.write_bytes(b"other")
    os.utime(path, (1, 1))
    assert kept.due(now=True) == {7: True}
    kept.keep(7, path, mark=mark_of(path), ready=True)
    assert kept.due(now=True) == {7: False}
    kept.forget(7)
    assert kept.due(now=True) == {}


@pytest.mark.slow
def test_the_spool_of_a_lost_attempt_goes_a_while_after_its_task(campaign_file, tmp_path, monkeypatch):
    root = tmp_path / "run"
    stray = Stray("label", 2, stop=False)
    run_inline(campaign_file(), root, stray)
    stray.carry_out()
    spool = Path(stray.lost.spool)
    with taken_up(root) as context:
        Completions(context).recover()
        assert spool.exists()
        for module in (completions, late):
            monkeypatch.setattr(module, "KEPT_SECONDS", 0.0)
        Completions(context).recover()
        assert not spool.exists()
    assert len(query(root, "SELECT 1 FROM event WHERE kind = 'duplicate_label'")) == 4

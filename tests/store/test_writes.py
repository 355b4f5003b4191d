"""Writing: ids, commit numbers, what a database refuses, and who shows himself beside a store."""

from __future__ import annotations

import json
import os

import pytest

from hpcal.core.errors import StoreError
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure
from hpcal.core.walker import Split
from hpcal.store import campaigns, labels, location, structures, tasks
from hpcal.store.database import Store, add_event
from hpcal.store.labels import NewLabel
from hpcal.store.lease_file import HolderRecord
from hpcal.store.rows import level_id
from hpcal.store.tables import EventRow
from hpcal.store.transitions import StructureState

LEVEL = LevelOfTheory(code="test", version="1", method="made up")


@pytest.fixture
def store(tmp_path):
    made = Store.create(tmp_path)
    with made.write() as session:
        campaigns.add_campaign(session, name="x", spec={}, spec_folder=".", site={})
        campaigns.campaign(session).level_of_theory_id = level_id(session, LEVEL)
    made.acquire()
    yield made
    made.release()
    made.close()


def add(session, x: float, split: Split = Split.TRAIN) -> NewLabel:
    row = structures.add_structure(
        session, Structure(numbers=[2], positions=[[x, 0, 0]]), origin="bootstrap",
        state=StructureState.CLAIMED, split=split,
    )  # fmt: skip
    return NewLabel(structure_id=row.id, split=split, label=Label(energy=-1.0, forces=None, level=LEVEL))


@pytest.mark.stores
def test_commit_numbers_have_no_gaps_and_the_first_label_of_a_structure_wins(store):
    with store.write() as session:
        new = [add(session, x, split) for x, split in enumerate((Split.TRAIN, Split.TEST, Split.TRAIN))]
        assert labels.add_labels(session, [*new, new[0]], level_id=1) == [True, True, True, False]
        assert labels.add_labels(session, new, level_id=1) == [False] * 3
        assert labels.add_labels(session, [], level_id=1) == []
        assert labels.add_labels(session, [add(session, 9.0)], level_id=1) == [True]
    with store.session() as session:
        found = labels.labelled(session, LEVEL, 1)
        assert [row.split for row, _, _ in found] == ["train", "test", "train", "train"]


@pytest.mark.stores
def test_a_transaction_that_failed_leaves_no_gap_in_the_ids_of_the_next_controller(store):
    """Random streams are keyed by ids: an interrupted campaign draws what it would have drawn."""

    def killed() -> None:
        with store.write() as session:
            tasks.add_task(session, "label", "label", {}, units=1)
            raise RuntimeError

    for _ in range(3):
        with pytest.raises(RuntimeError):
            killed()
    store.release()
    store.acquire()
    with store.write() as session:
        assert tasks.add_task(session, "label", "label", {}, units=1).id == 1
    with store.session() as session:
        assert tasks.ended(session) == 0


@pytest.mark.stores
def test_numbers_that_are_not_finite_are_null_in_json(store):
    with store.write() as session:
        add_event(session, store.epoch, "odd", "text", gap=float("nan"), more=[1.0, float("inf")])
    with store.session() as session:
        assert session.query(EventRow).one().data == {"gap": None, "more": [1.0, None]}


@pytest.fixture
def shared(tmp_path, monkeypatch):
    monkeypatch.setenv(location.FILESYSTEM_VARIABLE, "network")
    made = Store.create(tmp_path)
    with made.write() as session:
        campaigns.add_campaign(session, name="x", spec={}, spec_folder=".", site={})
    made.acquire()
    yield made
    made.close()


def test_a_holder_that_was_taken_over_leaves_the_record_of_its_successor(shared):
    folder = shared.location.folder
    shown = json.loads((folder / "lease.json").read_text())
    (folder / "lease.json").write_text(json.dumps(shown | {"host": "elsewhere", "pid": 1}))
    shared.release()
    assert HolderRecord.read(folder).host == "elsewhere"


def test_a_heart_goes_on_beating_after_the_disk_was_full(shared, monkeypatch):
    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StoreError, match="No space left"):  # which the heartbeat waits out
        shared.beat()
    monkeypatch.undo()
    before = HolderRecord.read(shared.location.folder).counter
    shared.beat()
    assert HolderRecord.read(shared.location.folder).counter > before

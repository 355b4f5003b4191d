"""Damaged files of a campaign: found by hash, made again, and never used as they are."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select, text
from support.campaigns import SLOTS, StopAfter, content, query, run_inline

from hpcal.core.ensemble import file_sha256
from hpcal.core.errors import CampaignFailed, Interrupted, StoreError
from hpcal.engine import repair
from hpcal.engine.dispatch import Assignment, InlineDispatcher, Report
from hpcal.engine.payloads import payload
from hpcal.engine.start import take_up
from hpcal.engine.tasks import run_attempt
from hpcal.store import ensembles, tasks
from hpcal.store.tables import EnsembleRow
from hpcal.store.transitions import EnsembleState


def flip(path: Path, seed: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[int(np.random.default_rng(seed).integers(len(data)))] ^= 0x10
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def remove(path: Path) -> None:
    path.unlink()


DAMAGES = [pytest.param(damage, marks=pytest.mark.slow) for damage in (flip, cut, remove)]


@contextmanager
def taken_up(root: Path):
    context = take_up(root, InlineDispatcher(SLOTS, run_attempt))
    try:
        yield context
    finally:
        context.store.release()
        context.store.close()


def stopped(campaign_file, root: Path, after: int = 14) -> Path:
    """A campaign stopped after its first ensemble was promoted."""
    file = campaign_file()
    with pytest.raises(Interrupted):
        run_inline(file, root, StopAfter(after))
    assert query(root, "SELECT state FROM ensemble") == [("promoted",)]
    return file


def files(root: Path, sql: str) -> list[tuple[Path, str]]:
    return [(root / path, digest) for path, digest in query(root, sql)]


SHARDS = "SELECT path, sha256 FROM shard ORDER BY id"
MODELS = "SELECT path, sha256 FROM model WHERE path IS NOT NULL ORDER BY id"
USED = (
    "SELECT path, sha256 FROM model WHERE path IS NOT NULL "
    "AND ensemble_id IN (SELECT id FROM ensemble WHERE state != 'failed')"
)


def damaged(root: Path) -> list[Path]:
    """Files that the campaign may still use and that are not what was written."""
    recorded = [*files(root, SHARDS), *files(root, USED)]
    return [path for path, digest in recorded if not path.exists() or file_sha256(path) != digest]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_written_again_with_the_recorded_hash(campaign_file, tmp_path, damage):
    root = tmp_path / "run"
    file = stopped(campaign_file, root)
    damage(files(root, SHARDS)[0][0])
    run_inline(file, root)
    assert damaged(root) == []
    assert query(root, "SELECT count(*) FROM event WHERE kind = 'shard_rewritten'") == [(1,)]
    run_inline(file, tmp_path / "whole")
    assert content(root) == content(tmp_path / "whole")


@pytest.mark.slow
def test_a_shard_that_does_not_come_out_again_stops_the_campaign(campaign_file, tmp_path):
    root = tmp_path / "run"
    stopped(campaign_file, root)
    ((path, _),) = files(root, SHARDS)
    cut(path)
    before = path.read_bytes()
    with taken_up(root) as context:
        with context.store.write() as session:
            session.execute(text("UPDATE label SET retracted = 'wrong' WHERE seq = 2"))
        with pytest.raises(CampaignFailed, match=r"shards/.* is damaged, .*another hash.*copy"):
            repair.mend(context)
    assert path.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name]


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_member_is_trained_again_and_comes_out_the_same(campaign_file, tmp_path, damage):
    root = tmp_path / "run"
    file = stopped(campaign_file, root)
    members = files(root, MODELS)
    damage(members[1][0])
    damage(members[2][0])
    used: list[Path] = []

    def watched(assignment: Assignment) -> Report:
        if assignment.kind in ("sample", "evaluate", "select", "rescore"):
            used.extend(damaged(root))
        return run_attempt(assignment)

    run_inline(file, root, watched)
    assert damaged(root) == []
    # Nothing was given to a worker that could have used the ensemble while it was damaged.
    assert used == []
    assert query(root, "SELECT count(*) FROM ensemble WHERE state = 'failed'") == [(0,)]
    kinds = query(root, "SELECT kind FROM event WHERE kind LIKE 'model_%' ORDER BY id")
    assert kinds == [("model_damaged",), ("model_restored",)]
    run_inline(file, tmp_path / "whole")
    first = "SELECT hash, threshold, decision FROM ensemble WHERE id = 1"
    assert query(root, first) == query(tmp_path / "whole", first)


@pytest.mark.slow
def test_an_ensemble_that_cannot_be_made_again_gives_way_to_a_new_one(campaign_file, tmp_path, monkeypatch):
    root = tmp_path / "run"
    file = stopped(campaign_file, root)
    cut(files(root, MODELS)[0][0])
    from hpcal.potentials.morse_fit import MorseTrainer

    real = MorseTrainer._results
    calls = []

    def on_another_machine(self, fit, state, dataset):
        calls.append(1)
        if len(calls) == 1:
            state.parameters = state.parameters * (1 + 1e-9)
        return real(self, fit, state, dataset)

    monkeypatch.setattr(MorseTrainer, "_results", on_another_machine)
    run_inline(file, root)
    first, *others = query(root, "SELECT generation, revision, state, decision FROM ensemble ORDER BY id")
    assert first[:3] == (1, 0, "failed")
    assert "another hash" in first[3]
    assert others[0][:3] == (1, 1, "promoted")
    assert query(root, "SELECT state FROM campaign") == [("finished",)]
    assert query(root, "SELECT count(*) FROM structure WHERE state = 'claimed'") == [(0,)]
    assert damaged(root) == []


@pytest.mark.slow
def test_no_training_starts_from_an_ensemble_that_was_given_up(campaign_file, tmp_path):
    root = tmp_path / "run"
    stopped(campaign_file, root)
    with taken_up(root) as context, context.store.write() as session:
        (first,) = session.scalars(select(EnsembleRow))
        session.expunge(first)
        columns = {c.key: getattr(first, c.key) for c in EnsembleRow.__table__.columns}
        second = EnsembleRow(
            **columns
            | {"id": None, "revision": 1, "state": EnsembleState.TRAINING, "predecessor_id": first.id}
        )
        session.add(second)
        session.flush()
        inputs = {"ensemble_id": second.id, "members": [{"index": 0, "seed": 1}, {"index": 1, "seed": 2}]}
        task = tasks.add_task(session, "train", "train", inputs, units=2)
        made = payload(session, context, task)
        paths = [str(path) for path, _ in files(root, MODELS)]
        assert [m["start_from"] for m in made["members"]] == paths[:2]
        assert [start["path"] for start in made["starts"]] == paths[:2]
        ensembles.move(ensembles.get(session, first.id), EnsembleState.FAILED)
        given_up = payload(session, context, task)
        assert given_up["starts"] == []
        assert given_up["members"] == inputs["members"]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["shard", "model"])
def test_damage_during_a_run_is_found_by_the_task_that_reads_the_file(campaign_file, tmp_path, what):
    """The worker's cache keeps what it has verified: a fresh worker reads the file again."""
    from hpcal.core import ensemble

    root = tmp_path / "run"
    hit: list[Path] = []
    kind = {"shard": "select", "model": "sample"}[what]

    def spoils(assignment: Assignment) -> Report:
        if assignment.kind == kind and not hit:
            hit.append(files(root, SHARDS if what == "shard" else MODELS)[0][0])
            cut(hit[0])
            ensemble._loaded.clear()
        return run_attempt(assignment)

    run_inline(campaign_file(), root, spoils)
    assert damaged(root) == []
    assert query(root, "SELECT state FROM campaign") == [("finished",)]
    assert query(root, "SELECT count(*) FROM task WHERE state = 'failed'") == [(0,)]
    reasons = [r for (r,) in query(root, "SELECT exit_reason FROM attempt WHERE state = 'failed'")]
    assert len(reasons) == 1
    assert hit[0].name in reasons[0]
    assert reasons[0].startswith("node: ")


@pytest.mark.slow
def test_a_missing_or_torn_payload_costs_one_attempt(campaign_file, tmp_path):
    root = tmp_path / "run"
    hits: list[str] = []

    def spoils(assignment: Assignment) -> Report:
        if assignment.kind == "label" and len(hits) < 2:
            hits.append(assignment.payload)
            Path(assignment.payload).unlink() if len(hits) == 1 else cut(Path(assignment.payload))
        return run_attempt(assignment)

    run_inline(campaign_file(), root, spoils)
    assert query(root, "SELECT state FROM campaign") == [("finished",)]
    reasons = query(root, "SELECT exit_reason FROM attempt WHERE state = 'failed' ORDER BY id")
    assert [reason.startswith("node: the inputs ") for (reason,) in reasons] == [True, True]


def test_what_the_disk_refuses_is_said_in_one_sentence(tmp_path):
    sentence = r"no space left on device.*nothing of this step.*hpcal resume"
    with pytest.raises(StoreError, match=sentence), repair.disk_told(tmp_path):
        raise OSError(28, "No space left on device", "tasks/1.task")
    sentence = r"^the store is full\. Free space.*hpcal resume"
    with pytest.raises(StoreError, match=sentence), repair.disk_told(tmp_path):
        raise StoreError("the store is full")

"""Taking files into a campaign: what counts, what is left out, and what never trains."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from support.campaigns import CAMPAIGN, SLOTS, query, run_inline

from hpcal.core.errors import CampaignHeld, InputError
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure
from hpcal.engine.adopt import import_found
from hpcal.engine.campaign import read_campaign
from hpcal.engine.dispatch import InlineDispatcher
from hpcal.engine.loop import Controller
from hpcal.engine.start import take_up
from hpcal.engine.tasks import run_attempt
from hpcal.exchange.found import Found, FoundFrame, UnitsRead
from hpcal.store import campaigns, labels
from hpcal.store.database import Store

pytestmark = pytest.mark.stores
UNITS = UnitsRead(energy="eV", length="Å", force="eV/Å", source="given")


@pytest.fixture(scope="module")
def finished(teacher, tmp_path_factory) -> Path:
    """A finished campaign in SQLite, to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    file = folder / "tiny.yaml"
    file.write_text(CAMPAIGN.format(teacher=teacher, stop="{labels: 24, generations: 2}", threshold="0.02"))
    run_inline(file, folder / "run")
    return folder / "run"


@pytest.fixture
def root(database, finished, campaign_file, tmp_path) -> Path:
    if database == "sqlite":
        return Path(shutil.copytree(finished, tmp_path / "run"))
    run_inline(campaign_file(stop="{labels: 24, generations: 2}"), tmp_path / "run")
    return tmp_path / "run"


def labelled(root: Path) -> list[tuple[Structure, Label]]:
    store = Store.read(root)
    with store.session() as session:
        level_id = campaigns.campaign(session).level_of_theory_id
        level = labels.level_by_id(session, level_id)
        found = [(s, label) for _, s, label in labels.labelled(session, level, level_id)]
    store.close()
    return found


def turned(structure: Structure, label: Label, seed: int) -> tuple[Structure, Label]:
    """The same geometry and label in another orientation, its atoms in another order."""
    turn, order = Rotation.random(random_state=seed).as_matrix(), np.random.default_rng(seed).permutation(3)
    positions, forces = structure.positions[order] @ turn.T, label.forces[order] @ turn.T
    return (
        replace(structure, numbers=structure.numbers[order], positions=positions),
        replace(label, forces=forces),
    )


def displaced(structure: Structure, seed: int) -> Structure:
    noise = np.random.default_rng(seed).normal(scale=0.05, size=structure.positions.shape)
    return structure.with_positions(structure.positions + noise)


def found(frames, **info) -> Found:
    return Found(
        path=Path("given.h5"), format="hpcal", units=UNITS, level_source="given",
        frames=[FoundFrame(structure=s, label=label, info=info) for s, label in frames],
    )  # fmt: skip


def test_what_is_there_in_another_orientation_is_left_out(root):
    before = query(root, "SELECT count(*) FROM structure")
    frames = [turned(s, label, seed) for seed, (s, label) in enumerate(labelled(root))]
    result = import_found(root, [found(frames)], accept_unlabelled=False)
    assert (result.labelled, result.duplicates) == (0, len(frames))
    assert query(root, "SELECT count(*) FROM structure") == before


def test_new_labels_count_and_train(root):
    pairs = labelled(root)
    frames = [(displaced(s, seed), label) for seed, (s, label) in enumerate(pairs[:10])]
    before = query(root, "SELECT max(seq) FROM label")[0][0]
    # The first of two equal structures of a file counts.
    result = import_found(root, [found([*frames, frames[0]], split="train")], accept_unlabelled=False)
    assert (result.labelled, result.duplicates) == (10, 1)
    rows = query(root, "SELECT seq, split_seq, split FROM label WHERE seq IS NOT NULL ORDER BY seq")
    assert [seq for seq, _, _ in rows] == list(range(1, before + 11))
    train = [number for _, number, split in rows if split == "train"]
    assert train == list(range(1, len(train) + 1))
    assert query(root, "SELECT count(*) FROM event WHERE kind = 'imported'") == [(1,)]


def test_audit_labels_of_a_file_stay_audit_labels(root):
    frames = [(displaced(s, 50 + i), label) for i, (s, label) in enumerate(labelled(root)[:6])]
    import_found(root, [found(frames, split="test")], accept_unlabelled=False)
    splits = query(root, "SELECT DISTINCT s.split, l.split FROM structure s JOIN label l "
                   "ON l.structure_id = s.id WHERE s.origin = 'file'")  # fmt: skip
    assert splits == [("test", "test")]


def test_another_level_is_kept_apart(root):
    other = LevelOfTheory(code="another", version="1", method="better")
    frames = [(displaced(s, i), replace(label, level=other)) for i, (s, label) in enumerate(labelled(root))]
    before = query(root, "SELECT max(seq) FROM label")
    result = import_found(root, [found(frames)], accept_unlabelled=False)
    assert (result.labelled, result.other_level) == (0, len(frames))
    assert query(root, "SELECT max(seq) FROM label") == before
    assert len(query(root, "SELECT DISTINCT level_of_theory_id FROM label")) == 2


@pytest.mark.slow
def test_unlabelled_ones_wait_for_a_label_and_get_it(root, campaign_file):
    fresh = [(displaced(s, 100 + i), None) for i, (s, _) in enumerate(labelled(root)[:4])]
    result = import_found(root, [found(fresh)], accept_unlabelled=True)
    assert result.unlabelled == 4
    more = campaign_file(stop="{labels: 40, generations: 4}")
    dispatcher = InlineDispatcher(SLOTS, run_attempt)
    context = take_up(root, dispatcher, spec=read_campaign(more), accept_changes=True)
    try:
        Controller(context).run()
    finally:
        context.store.release()
        context.store.close()
    states = query(root, "SELECT DISTINCT state FROM structure WHERE origin = 'file'")
    assert states == [("labelled",)]


def test_a_label_for_what_waits_is_taken_as_it_stands(root):
    fresh = displaced(labelled(root)[0][0], 7)
    import_found(root, [found([(fresh, None)])], accept_unlabelled=True)
    label = replace(labelled(root)[0][1], diagnostics={"converged": True}, qm_calls=3)
    assert import_found(root, [found([(fresh, label)])], accept_unlabelled=False).labelled == 1
    assert query(root, "SELECT state FROM structure WHERE origin = 'file'") == [("labelled",)]
    assert query(root, "SELECT qm_calls FROM label ORDER BY id DESC LIMIT 1") == [(3,)]


def test_a_label_in_another_orientation_replaces_what_waits(root):
    fresh = displaced(labelled(root)[0][0], 7)
    import_found(root, [found([(fresh, None)])], accept_unlabelled=True)
    pair = turned(fresh, labelled(root)[0][1], 3)
    assert import_found(root, [found([pair])], accept_unlabelled=False).labelled == 1
    states = query(root, "SELECT state FROM structure WHERE origin = 'file' ORDER BY id")
    assert states == [("dropped",), ("labelled",)]


def test_labels_of_another_level_are_nobodys_twins(root):
    other = LevelOfTheory(code="another", version="1", method="better")
    fresh, label = displaced(labelled(root)[0][0], 9), labelled(root)[0][1]
    import_found(root, [found([(fresh, None)])], accept_unlabelled=True)
    apart = found([(fresh, replace(label, level=other))])
    assert import_found(root, [apart], accept_unlabelled=False).other_level == 1
    assert import_found(root, [apart], accept_unlabelled=False).duplicates == 1
    # What waits goes on waiting for the campaign's own level, and can be given it.
    assert query(root, "SELECT state FROM structure WHERE origin = 'file'") == [("waiting",)]
    assert import_found(root, [found([(fresh, label)])], accept_unlabelled=False).labelled == 1


def test_imported_labels_say_how_they_were_checked(root):
    fresh, label = displaced(labelled(root)[0][0], 11), labelled(root)[0][1]
    checked = replace(label, diagnostics={"converged": True, "gap": float("nan")})
    import_found(root, [found([(fresh, checked)])], accept_unlabelled=False)
    store = Store.read(root)
    with store.session() as session:
        level_id = campaigns.campaign(session).level_of_theory_id
        level = labels.level_by_id(session, level_id)
        newest = labels.labelled(session, level, level_id)[-1][2]
    store.close()
    assert newest.diagnostics == {"converged": True, "gap": None}


def test_what_a_campaign_cannot_take_changes_nothing(root):
    before = query(root, "SELECT count(*) FROM structure")
    helium = Structure(numbers=[2], positions=[[0, 0, 0]])
    with pytest.raises(InputError):
        import_found(root, [found([(helium, None)])], accept_unlabelled=True)
    holder = Store.open(root)
    holder.acquire()
    with pytest.raises(CampaignHeld):
        import_found(root, [found(labelled(root)[:1])], accept_unlabelled=False)
    holder.release()
    holder.close()
    assert query(root, "SELECT count(*) FROM structure") == before

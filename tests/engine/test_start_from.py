"""Starting from the labels of another campaign, or of a file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from support.campaigns import SITE, SLOTS, query, run_inline

from hpcal.core.errors import ConfigurationError, InputError
from hpcal.core.label import Label
from hpcal.core.structure import Structure
from hpcal.core.walker import Split
from hpcal.engine.campaign import read_campaign
from hpcal.engine.dispatch import InlineDispatcher
from hpcal.engine.seeds import distinct
from hpcal.engine.start import begin, check
from hpcal.engine.taken import Given
from hpcal.engine.tasks import run_attempt
from hpcal.exchange.extxyz import LabelledFrame, write_labelled
from hpcal.potentials.morse import Morse
from hpcal.store import labels
from hpcal.store.database import Store

RANDOM = "  - {sampler: random_displacement, count: 16, amplitude_A: 0.08}\n"


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, teacher: Path) -> Path:
    """Folder of a finished campaign of 40 labels in four splits."""
    from engine.conftest import CAMPAIGN

    folder = tmp_path_factory.mktemp("other")
    file = folder / "other.yaml"
    text = CAMPAIGN.format(teacher=teacher, stop="{labels: 40, generations: 3}", threshold="0.02")
    file.write_text(text.replace("name: tiny", "name: other"))
    run_inline(file, folder / "run")
    splits = dict(query(folder / "run", "SELECT split, count(*) FROM label GROUP BY split"))
    assert set(splits) == {"train", "validation", "calibration", "test"}
    return folder / "run"


@pytest.fixture
def write(campaign_file, tmp_path):
    """Writes a campaign file whose bootstrap is the given entries, in YAML."""

    def one(*entries: str, seeds: str = '{smiles: "O"}', stop: str = "{labels: 60, generations: 6}") -> Path:
        file = campaign_file(name="new.yaml", stop=stop)
        text = file.read_text().replace('{smiles: "O"}', seeds)
        assert RANDOM in text
        file.write_text(text.replace(RANDOM, "".join(f"  - {entry}\n" for entry in entries)))
        return file

    return one


def started(file: Path, root: Path) -> tuple[str, ...]:
    """Begins a campaign and lets it go at once; returns its notes."""
    context, notes = begin(read_campaign(file), root, InlineDispatcher(SLOTS, run_attempt), SITE)
    context.store.release()
    context.store.close()
    return notes


def labelled(root: Path, *splits: str) -> dict[str, tuple]:
    """Energy, forces and split of the labels of some splits, by the hash of the structure."""
    wanted = ", ".join(f"'{split}'" for split in splits)
    rows = query(
        root,
        "SELECT s.hash, l.energy, l.forces, l.split, s.split FROM label l "
        f"JOIN structure s ON s.id = l.structure_id WHERE l.split IN ({wanted}) AND l.seq IS NOT NULL",
    )
    return {row[0]: row[1:] for row in rows}


def test_labels_are_taken_with_their_splits_and_their_origin(write, other, tmp_path):
    root = tmp_path / "new"
    digest = hashlib.sha256((other / "store.db").read_bytes()).hexdigest()
    (note,) = (n for n in started(write(f"{{campaign: {other}}}"), root) if "campaign other" in n)

    expected = labelled(other, "train", "validation")
    assert labelled(root, "train", "validation") == expected
    assert labelled(root, "calibration", "test") == {}
    # The other campaign was read and not touched.
    assert hashlib.sha256((other / "store.db").read_bytes()).hexdigest() == digest
    ((run_id,),) = query(other, "SELECT run_id FROM campaign")
    assert f"{len(expected)} labels taken from campaign other (run {run_id})" in note
    ((message, data),) = query(root, "SELECT message, data FROM event WHERE kind = 'labels_taken'")
    record = json.loads(data)
    assert message in note
    assert (record["campaign"], record["run_id"], record["count"]) == ("other", run_id, len(expected))
    assert sum(record["splits"].values()) == len(expected)
    for origin, reason, diagnostics, content in query(
        root,
        "SELECT s.origin, s.reason, l.diagnostics, s.hash FROM structure s "
        "JOIN label l ON l.structure_id = s.id",
    ):
        source = json.loads(diagnostics)["taken_from"]
        assert origin == "file"
        assert reason == f"structure {source['structure_id']} of campaign other, run {run_id}"
        there = query(other, f"SELECT hash FROM structure WHERE id = {source['structure_id']}")
        assert there == [(content,)]


@pytest.mark.slow
def test_a_campaign_that_starts_from_another_runs_to_its_end(write, other, tmp_path):
    root = tmp_path / "new"
    taken = labelled(other, "train", "validation")
    file = write(f"{{campaign: {other}}}", stop=f"{{labels: {len(taken) + 12}}}")
    assert run_inline(file, root).startswith("label budget")
    ((first, train, validation),) = query(root, "SELECT last_seq, n_train, n_validation FROM dataset LIMIT 1")
    assert train + validation >= len(taken)
    assert first >= len(taken)
    assert query(root, "SELECT count(*) FROM label WHERE seq IS NOT NULL") == [(len(taken) + 12,)]
    # Nothing that was taken was labelled again by sampling or bootstrap.
    again = (
        "SELECT count(*) FROM structure "
        "WHERE state = 'labelled' AND origin IN ('bootstrap', 'sample', 'audit') "
        "AND hash IN (SELECT hash FROM structure WHERE origin = 'file')"
    )
    assert query(root, again) == [(0,)]


def test_labels_of_one_generation_only(write, other, tmp_path):
    ((last_seq,),) = query(
        other, "SELECT d.last_seq FROM dataset d WHERE d.generation = 1 ORDER BY d.id DESC LIMIT 1"
    )
    started(write(f"{{campaign: {other}, generation: 1}}"), tmp_path / "new")
    found = query(
        other, f"SELECT count(*) FROM label WHERE seq <= {last_seq} AND split IN ('train', 'validation')"
    )
    assert query(tmp_path / "new", "SELECT count(*) FROM label") == found
    with pytest.raises(InputError, match=r"bootstrap\.0\.campaign: .* no trained ensemble of generation 99"):
        check(read_campaign(write(f"{{campaign: {other}, generation: 99}}")))


def test_audit_labels_come_only_if_asked_for_and_never_train(write, other, tmp_path):
    root = tmp_path / "new"
    splits = "splits: [train, validation, calibration, test]"
    file = write(f"{{campaign: {other}, {splits}}}", stop="{labels: 60, generations: 1}")
    run_inline(file, root)
    theirs = labelled(other, "calibration", "test")
    ours = labelled(root, "calibration", "test")
    assert theirs.items() <= ours.items()
    # What a training reads: neither the data sets' counts nor the shards' ids hold an audit frame.
    audit = {i for (i,) in query(root, "SELECT id FROM structure WHERE split IN ('calibration', 'test')")}
    import h5py

    shards = [root / path for (path,) in query(root, "SELECT path FROM shard")]
    assert shards
    for path in shards:
        with h5py.File(path) as file_:
            assert not audit & set(file_["ids"][()].tolist())


def test_only_what_was_asked_for(write, other, tmp_path):
    started(write(f"{{campaign: {other}, splits: [validation]}}", RANDOM.strip()[2:]), tmp_path / "new")
    assert labelled(tmp_path / "new", *map(str, Split)) == labelled(other, "validation")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("{campaign: nowhere}", r"bootstrap\.0\.campaign: no campaign in .*nowhere"),
        ("{campaign: OTHER, splits: [reference]}", "labels of a reference set are for evaluation alone"),
        ("{campaign: OTHER, splits: [tset]}", r"bootstrap\.0\.splits\.0"),
        ("{campaign: OTHER, splits: []}", r"bootstrap\.0\.splits"),
        ("{campaign: OTHER, count: 5}", "unknown key"),
        ("{campaign: OTHER, generation: 0}", "greater than 0"),
    ],
)
def test_what_cannot_be_taken_is_refused_with_its_place(write, other, entry, words):
    with pytest.raises(InputError, match=words):
        check(read_campaign(write(entry.replace("OTHER", str(other)))))


def test_another_level_of_theory_is_refused_with_both_named(write, other, tmp_path):
    # Another teacher is another level: its member, and so its hash, differs.
    folder = tmp_path / "teacher2"
    from hpcal.core.ensemble import EnsembleManifest, MemberFile, file_sha256

    folder.mkdir()
    member = Morse.write_member(folder / "member.json", [1, 8], well_depth_eV=3.3)
    EnsembleManifest(kind="morse", members=(MemberFile(path=str(member), sha256=file_sha256(member)),)).write(
        folder
    )
    file = write(f"{{campaign: {other}}}")
    text = file.read_text()
    old = next(line for line in text.splitlines() if line.startswith("label:"))
    file.write_text(text.replace(old, f"label: {{labeler: teacher, model: {folder}}}"))
    with pytest.raises(ConfigurationError, match=r"bootstrap\.0\.campaign: the labels of .* are ") as error:
        check(read_campaign(file))
    message = str(error.value)
    assert "those of this campaign" in message
    assert "two levels of theory are never mixed" in message
    assert "different: " in message


def exported(root: Path, path: Path) -> list[tuple[Structure, Label]]:
    """Learning labels of a campaign in an extended XYZ file."""
    store = Store.read(root)
    with store.session() as session:
        level = labels.level_by_id(session, 1)
        found = labels.labelled(session, level, 1, splits=(Split.TRAIN, Split.VALIDATION))
    store.close()
    write_labelled(path, (LabelledFrame(structure=s, label=label) for _, s, label in found))
    return [(s, label) for _, s, label in found]


def test_a_file_of_the_same_labels_adds_nothing_and_that_is_said(write, other, tmp_path):
    items = exported(other, tmp_path / "same.extxyz")
    entries = (f"{{campaign: {other}}}", "{file: same.extxyz}")
    notes = started(write(*entries), tmp_path / "new")
    assert query(tmp_path / "new", "SELECT count(*) FROM label") == [(len(items),)]
    given = f"{len(items)} of {2 * len(items)} given labels are of structures given before"
    assert f"{given}: the first one counts" in notes


def test_a_file_that_states_another_level_is_refused(write, other, tmp_path):
    path = tmp_path / "same.extxyz"
    exported(other, path)
    load = read_campaign(write("{file: same.extxyz}"))
    assert check(load)[0].given
    text = path.read_text()
    assert '\\"version\\"' in text or '"version"' in text
    for quote in ('\\"', '"'):
        text = text.replace(f"{quote}version{quote}:{quote}", f"{quote}version{quote}:{quote}9.")
        text = text.replace(f"{quote}version{quote}: {quote}", f"{quote}version{quote}: {quote}9.")
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"bootstrap\.0\.file: .*different: version"):
        check(load)


def test_seeds_that_have_a_label_are_not_labelled_again(write, other, tmp_path):
    items = exported(other, tmp_path / "known.extxyz")
    write_labelled(
        tmp_path / "seeds.extxyz", (LabelledFrame(structure=s, label=label) for s, label in items[:3])
    )
    file = write("{file: known.extxyz}", RANDOM.strip()[2:], seeds="{file: seeds.extxyz, relax: false}")
    root = tmp_path / "new"
    started(file, root)
    assert query(root, "SELECT count(*) FROM structure WHERE state = 'waiting'") == [(0,)]
    assert query(root, "SELECT origin, state, count(*) FROM structure GROUP BY origin, state") == [
        ("file", "labelled", len(items) - 3),
        ("given", "labelled", 3),
    ]
    run_inline(file, root)
    # They are what the bootstrap and the walkers start from.
    parents = query(root, "SELECT DISTINCT parent_id FROM structure WHERE origin = 'bootstrap'")
    given = query(root, "SELECT id FROM structure WHERE origin = 'given'")
    assert sorted(parents) == sorted(given)


# The rule for duplicates


def water(shift: float) -> Structure:
    positions = np.array([[0.0, 0.0, shift], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
    return Structure(numbers=np.array([8, 1, 1]), positions=positions)


def item(shift: float, split: Split | None = None) -> Given:
    from hpcal.core.label import LevelOfTheory

    level = LevelOfTheory(code="a", version="1", method="b")
    return Given(structure=water(shift), label=Label(energy=shift, forces=None, level=level), split=split)


def test_a_structure_that_audits_anywhere_trains_nowhere():
    for order in ((Split.TRAIN, Split.TEST), (Split.TEST, Split.TRAIN), (None, Split.TEST)):
        kept, notes = distinct([item(0.1, split) for split in order], [])
        assert [one.split for one in kept] == [Split.TEST]
        assert len(notes) == 1
    kept, _ = distinct([item(0.1, Split.VALIDATION), item(0.1, Split.TRAIN)], [])
    assert [one.split for one in kept] == [Split.VALIDATION]


def test_the_reference_set_is_not_learned_from():
    kept, notes = distinct([item(0.1), item(0.2)], [water(0.2)])
    assert [one.label.energy for one in kept] == [0.1]
    assert notes == ["1 given labels are left out: their structures are in the reference set"]


def test_nothing_is_said_of_what_is_not_there():
    kept, notes = distinct([item(0.1), item(0.2)], [])
    assert (len(kept), notes) == (2, [])

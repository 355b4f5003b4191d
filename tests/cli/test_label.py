"""``hpcal label``: checks, records, and going on where it stopped."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli.helpers import WATER, hpcal, xyz

from hpcal.core.batch import Batch
from hpcal.core.ensemble import EnsembleManifest, load_ensemble
from hpcal.core.errors import FailureClass, TaskFailure
from hpcal.core.label import Label, Rejection
from hpcal.exchange.extxyz import read_labelled_frames, read_structures
from hpcal.labeling.checks import CheckedLabeler

ORIGINAL = CheckedLabeler.label


@pytest.fixture
def config(here: Path) -> Path:
    path = here / "label.yaml"
    path.write_text("{labeler: teacher, model: teacher}\n")
    return path


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """Structures that were given to the labeler, by hash."""
    seen: list[str] = []

    def counted(self, structure, deadline):
        seen.append(structure.content_hash)
        return ORIGINAL(self, structure, deadline)

    monkeypatch.setattr(CheckedLabeler, "label", counted)
    return seen


def test_labels_are_the_teachers_and_rejections_say_why(many, here, config):
    result = hpcal("label", many, "out.extxyz", "--config", config)
    assert result.exit_code == 0
    assert "11 labelled, 1 rejected" in result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith("frame 5: rejected (input, overlap): ")
    structures = read_structures(many)
    frames = read_labelled_frames(here / "out.extxyz")
    assert [f.info["frame"] for f in frames] == [str(n) for n in range(1, 13) if n != 5]
    teacher = load_ensemble(EnsembleManifest.read(here / "teacher"), dtype="float64")
    for frame in frames:
        structure = structures[int(frame.info["frame"]) - 1]
        assert frame.structure == structure
        batch = Batch.of([structure], dtype=teacher.dtype)
        assert frame.label.energy == float(teacher.energies(batch).mean())
        np.testing.assert_allclose(frame.label.forces, teacher.forces(batch)[0].numpy(), atol=1e-12)


def test_records_hold_every_structure_with_its_checks(many, here, config):
    hpcal("label", many, "out.extxyz", "--config", config)
    record = json.loads((here / "out.json").read_text())
    assert record["counts"] == {"labelled": 11, "rejected": 1, "failed": 0}
    assert [r["frame"] for r in record["results"]] == list(range(1, 13))
    rejected = record["results"][4]
    assert (rejected["status"], rejected["failure_class"], rejected["code"]) == (
        "rejected",
        "input",
        "overlap",
    )
    assert record["results"][0]["diagnostics"]["checks"]["net_force"]["passed"] is True
    assert record["level"]["code"] == "hpcal-teacher"
    assert record["qm_calls"] == 11


def test_a_second_call_computes_nothing_and_changes_nothing(many, here, config, calls):
    hpcal("label", many, "out.extxyz", "--config", config)
    assert len(calls) == 12
    before = (here / "out.extxyz").read_bytes(), (here / "out.json").read_bytes()
    assert hpcal("label", many, "out.extxyz", "--config", config).exit_code == 0
    assert len(calls) == 12
    assert ((here / "out.extxyz").read_bytes(), (here / "out.json").read_bytes()) == before


def test_what_is_set_aside_for_a_person_stays_so_when_the_command_goes_on(many, here, config, monkeypatch):
    doubted = []

    def doubting(self, structure, deadline):
        result = ORIGINAL(self, structure, deadline)
        doubted.append(structure.content_hash)
        if len(doubted) in (2, 3):
            doubt = {"code": "made_up", "message": "made up", "quarantine": len(doubted) == 2}
            return Rejection(failure_class=FailureClass.PHYSICS, **doubt)
        if len(doubted) == 12:
            raise TaskFailure(FailureClass.NODE, "made up")
        return result

    monkeypatch.setattr(CheckedLabeler, "label", doubting)
    hpcal("label", many, "out.extxyz", "--config", config)
    for failed in (1, 0):  # its own records, then those of a call that adopted them
        record = json.loads((here / "out.json").read_text())
        assert record["counts"] == {"labelled": 9 - failed, "rejected": 3, "failed": failed}
        asides = {r["frame"]: r["quarantine"] for r in record["results"] if r["status"] == "rejected"}
        assert asides == {2: True, 3: False, 5: True}  # frame 5 has atoms on top of each other
        hpcal("label", many, "out.extxyz", "--config", config)


def test_an_interrupted_call_keeps_what_it_has_and_the_next_does_the_rest(many, here, config, monkeypatch):
    seen: list[str] = []

    def interrupting(self, structure, deadline):
        seen.append(structure.content_hash)
        if len(seen) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return ORIGINAL(self, structure, deadline)

    monkeypatch.setattr(CheckedLabeler, "label", interrupting)
    result = hpcal("label", many, "out.extxyz", "--config", config)
    assert result.exit_code == 130
    assert len(read_labelled_frames(here / "out.extxyz")) in (3, 4)
    assert hpcal("label", many, "out.extxyz", "--config", config).exit_code == 0
    assert len(seen) in (12, 13)
    assert hpcal("label", many, "whole.extxyz", "--config", config).exit_code == 0
    assert (here / "whole.extxyz").read_bytes() == (here / "out.extxyz").read_bytes()


def test_what_a_killed_process_had_finished_is_not_computed_again(many, here, config, monkeypatch):
    pid = os.fork()
    if pid == 0:  # a child that dies without a farewell after six structures
        count = 0

        def dying(self, structure, deadline):
            nonlocal count
            count += 1
            if count > 6:
                os.kill(os.getpid(), signal.SIGKILL)
            return ORIGINAL(self, structure, deadline)

        CheckedLabeler.label = dying
        hpcal("label", many, "out.extxyz", "--config", config)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    assert not (here / "out.extxyz").exists()
    seen: list[str] = []

    def counted(self, structure, deadline):
        seen.append(structure.content_hash)
        return ORIGINAL(self, structure, deadline)

    monkeypatch.setattr(CheckedLabeler, "label", counted)
    assert hpcal("label", many, "out.extxyz", "--config", config).exit_code == 0
    assert len(seen) == 6
    assert len(read_labelled_frames(here / "out.extxyz")) == 11
    assert not list(here.glob("*.spool*"))


def test_a_calculation_that_breaks_is_told_and_tried_again(many, here, config, monkeypatch):
    broken = read_structures(many)[2].content_hash

    def breaking(self, structure, deadline):
        if structure.content_hash == broken:
            raise TaskFailure(FailureClass.RESOURCE, "out of memory")
        return ORIGINAL(self, structure, deadline)

    monkeypatch.setattr(CheckedLabeler, "label", breaking)
    result = hpcal("label", many, "out.extxyz", "--config", config)
    assert result.exit_code == 0
    assert "frame 3: failed (resource): out of memory" in result.stderr
    assert json.loads((here / "out.json").read_text())["counts"]["failed"] == 1
    monkeypatch.setattr(CheckedLabeler, "label", ORIGINAL)
    hpcal("label", many, "out.extxyz", "--config", config)
    assert json.loads((here / "out.json").read_text())["counts"] == {
        "labelled": 11,
        "rejected": 1,
        "failed": 0,
    }


def test_nothing_labelled_exits_1(here, config):
    positions = WATER.copy()
    positions[1] = [0.1, 0.0, 0.0]
    (here / "bad.xyz").write_text(xyz(positions))
    result = hpcal("label", "bad.xyz", "out.extxyz", "--config", config)
    assert result.exit_code == 1
    assert "frame 1: rejected (input, overlap)" in result.stderr
    assert not (here / "out.extxyz").exists()
    assert json.loads((here / "out.json").read_text())["results"][0]["code"] == "overlap"


@pytest.mark.parametrize("content", ["", "3\nnonsense\n", None])
def test_a_file_that_cannot_be_read_exits_2(here, config, content):
    if content is not None:
        (here / "bad.xyz").write_text(content)
    result = hpcal("label", "bad.xyz", "out.extxyz", "--config", config)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert not list(here.glob("out*"))


def test_labels_of_two_levels_never_share_a_file(many, here, config):
    hpcal("label", many, "out.extxyz", "--config", config)
    config.write_text("{labeler: teacher, model: teacher, checks: {max_force_eV_per_A: 0.5}}\n")
    result = hpcal("label", many, "out.extxyz", "--config", config)
    assert result.exit_code == 2
    assert "give another OUT" in result.stderr


def test_labels_of_other_structures_are_not_lost(many, here, config):
    hpcal("label", many, "out.extxyz", "--config", config)
    before = (here / "out.extxyz").read_bytes()
    result = hpcal("label", "water.xyz", "out.extxyz", "--config", config)
    assert result.exit_code == 2
    assert "12 structures that are not in the file" in result.stderr
    assert (here / "out.extxyz").read_bytes() == before


def test_a_file_that_is_not_ours_is_not_overwritten(many, here, config):
    (here / "out.extxyz").write_text(xyz(WATER))
    result = hpcal("label", many, "out.extxyz", "--config", config)
    assert result.exit_code == 2
    assert (here / "out.extxyz").read_text() == xyz(WATER)


def test_an_unknown_key_of_the_block_names_its_line(many, here, config):
    config.write_text("labeler: teacher\nmodel: teacher\nmodl: teacher\n")
    result = hpcal("label", many, "out.extxyz", "--config", config)
    assert result.exit_code == 2
    assert f"{config}:3: modl: unknown key; did you mean 'model'?" in result.stderr


def test_a_list_is_no_block(many, here, config):
    config.write_text("- {labeler: teacher}\n")
    result = hpcal("label", many, "out.extxyz", "--config", config)
    assert result.exit_code == 2
    assert "give one entry of it" in result.stderr


def test_a_split_stays_with_its_structure(here, config):
    (here / "split.xyz").write_text(xyz(WATER, keys="split=validation"))
    hpcal("label", "split.xyz", "out.extxyz", "--config", config)
    assert read_labelled_frames(here / "out.extxyz")[0].info["split"] == "validation"


def test_every_frame_is_labelled_in_each_of_its_states(many, here, config, calls):
    config.write_text("{labeler: teacher, model: teacher, states: {charges: [-1, 0, 1]}}\n")
    result = hpcal("label", many, "out.extxyz", "--config", config)
    assert result.exit_code == 0
    assert "36 structures: 33 labelled, 3 rejected" in result.stdout
    assert "frame 5 with charge -1 multiplicity 2: rejected (input, overlap)" in result.stderr
    frames = read_labelled_frames(here / "out.extxyz")
    states = [(int(f.info["frame"]), f.structure.charge, f.structure.multiplicity) for f in frames]
    assert sorted(states) == [
        (n, charge, 1 + abs(charge)) for n in range(1, 13) if n != 5 for charge in (-1, 0, 1)
    ]
    calls.clear()
    assert hpcal("label", many, "out.extxyz", "--config", config).exit_code == 0
    assert calls == []


def test_of_multiplicities_the_lowest_is_written_and_the_others_are_told(many, here, config, monkeypatch):
    config.write_text("{labeler: teacher, model: teacher, states: {multiplicities: [1, 3], keep: lowest}}\n")
    broken = True

    def shifted(self, structure, deadline):
        if broken and structure.multiplicity == 3 and structure.content_hash[0] in "0123":
            raise TaskFailure(FailureClass.NODE, "made up")
        result = ORIGINAL(self, structure, deadline)
        shift = 0.1 if structure.content_hash[-1] in "01234567" else -0.1
        return replace(result, energy=result.energy + shift) if isinstance(result, Label) else result

    monkeypatch.setattr(CheckedLabeler, "label", shifted)
    hpcal("label", many, "out.extxyz", "--config", config)
    before = json.loads((here / "out.json").read_text())["counts"]
    assert before["failed"] >= before["held"] > 0
    broken = False
    assert hpcal("label", many, "out.extxyz", "--config", config).exit_code == 0
    record = json.loads((here / "out.json").read_text())
    assert record["counts"] == {"labelled": 11, "rejected": 2, "failed": 0, "not_kept": 11}
    energies = {(r["frame"], r["multiplicity"]): r["energy_ev"] for r in record["results"] if r["frame"] != 5}
    frames = read_labelled_frames(here / "out.extxyz")
    assert len(frames) == 11
    assert {f.structure.multiplicity for f in frames} == {1, 3}
    for frame in frames:
        number, multiplicity = int(frame.info["frame"]), frame.structure.multiplicity
        assert frame.label.forces is not None
        assert energies[number, multiplicity] <= energies[number, 4 - multiplicity]
    told = next(r for r in record["results"] if r["status"] == "not_kept")
    assert told["message"].startswith(f"not the lowest at charge 0: multiplicity {4 - told['multiplicity']} ")
    assert not list(here.glob("out.extxyz.spool-*"))

"""``hpcal train``, ``sample`` and ``score`` on files alone."""

from __future__ import annotations

import json
import os
import signal
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from cli.helpers import WATER, hpcal, xyz

from hpcal.cli import sample as sampling
from hpcal.core import ensemble
from hpcal.core.batch import Batch
from hpcal.core.ensemble import EnsembleManifest, load_ensemble
from hpcal.core.errors import FailureClass, TaskFailure
from hpcal.exchange.extxyz import LabelledFrame, read_labelled_frames, read_structures, write_labelled
from hpcal.potentials.morse_fit import MorseTrainer
from hpcal.uncertainty.force import ForceStd

POTENTIAL = "{kind: morse, members: 3, steps: 40}\n"
SAMPLER = "{sampler: langevin, walkers: 6, time_ps: 0.05, temperature_K: 3000, threshold: 0.05, seed: 4}\n"


@pytest.fixture
def potential(here: Path) -> Path:
    path = here / "potential.yaml"
    path.write_text(POTENTIAL)
    return path


@pytest.fixture
def model(labelled, potential, here: Path) -> Path:
    assert hpcal("train", labelled, here / "model", "--config", potential).exit_code == 0
    return here / "model"


@pytest.fixture
def sampler(here: Path) -> Path:
    path = here / "sampler.yaml"
    path.write_text(SAMPLER)
    return path


def test_training_makes_an_ensemble_and_says_its_errors(labelled, potential, here):
    result = hpcal("train", labelled, "model", "--config", potential)
    assert result.exit_code == 0, result.stderr
    assert "3 members trained on 10 structures" in result.stdout
    manifest = EnsembleManifest.read(here / "model")
    assert len(manifest.members) == 3
    assert manifest.info["level"]["code"] == "hpcal-teacher"
    assert (manifest.info["n_train"], manifest.info["n_validation"]) == (10, 1)
    record = json.loads((here / "model.json").read_text())
    assert record["validation"]["count"] == 1
    assert len(record["members"]) == 3
    assert sorted(p.name for p in here.iterdir() if "model" in p.name) == ["model", "model.json"]
    found = json.loads(hpcal("evaluate", "model", labelled, "--json").stdout)
    assert found["count"] == 11
    assert found["force_rmse_ev_per_ang"] < 1.0


def test_training_is_the_same_to_the_bit_and_depends_on_the_seed(labelled, potential, here):
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert hpcal("train", labelled, out, "--config", potential, "--seed", seed).exit_code == 0
    hashes = {out: EnsembleManifest.read(here / out).hash for out in "abc"}
    assert hashes["a"] == hashes["b"] != hashes["c"]


def test_splits_of_the_data_are_kept_and_audit_never_trains(labelled, potential, here):
    frames = read_labelled_frames(labelled)
    splits = ["train"] * 6 + ["validation"] * 2 + ["test", "calibration", "reference"]
    write_labelled(
        here / "split.extxyz",
        [
            LabelledFrame(structure=f.structure, label=f.label, info={"split": s})
            for f, s in zip(frames, splits, strict=True)
        ],
    )
    assert hpcal("train", "split.extxyz", "model", "--config", potential).exit_code == 0
    info = EnsembleManifest.read(here / "model").info
    assert (info["n_train"], info["n_validation"]) == (6, 2)


def test_a_training_that_was_stopped_goes_on_and_ends_the_same(labelled, potential, here, monkeypatch):
    original = MorseTrainer.fit

    def interrupted(self, dataset, members, deadline, checkpoint):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, dataset, members, deadline, checkpoint)

    monkeypatch.setattr(MorseTrainer, "fit", interrupted)
    result = hpcal("train", labelled, "model", "--config", potential)
    assert result.exit_code == 130
    assert "the same command goes on" in result.stderr
    monkeypatch.setattr(MorseTrainer, "fit", original)
    assert hpcal("train", labelled, "model", "--config", potential).exit_code == 0
    assert hpcal("train", labelled, "other", "--config", potential).exit_code == 0
    assert EnsembleManifest.read(here / "model").hash == EnsembleManifest.read(here / "other").hash


def test_a_training_that_fails_exits_1_with_the_cause(labelled, potential, here, monkeypatch):
    def diverges(self, *_args):
        raise TaskFailure(FailureClass.PHYSICS, "training diverged")

    monkeypatch.setattr(MorseTrainer, "fit", diverges)
    result = hpcal("train", labelled, "model", "--config", potential)
    assert result.exit_code == 1
    assert result.stderr == "hpcal: training diverged\n"


def test_an_ensemble_is_not_overwritten(model, labelled, potential):
    before = EnsembleManifest.read(model).hash
    result = hpcal("train", labelled, model, "--config", potential, "--seed", 9)
    assert result.exit_code == 2
    assert "not overwritten" in result.stderr
    assert EnsembleManifest.read(model).hash == before


def test_data_without_labels(many, potential, here):
    result = hpcal("train", many, "model", "--config", potential)
    assert result.exit_code == 2
    assert "no label" in result.stderr
    assert not (here / "model").exists()


def test_sampling_writes_the_frames_that_crossed(model, sampler, here):
    result = hpcal("sample", "water.xyz", "frames.extxyz", "--model", model, "--config", sampler)
    assert result.exit_code == 0, result.stderr
    record = json.loads((here / "frames.json").read_text())
    assert sum(record["ends"].values()) == 6 == len(record["walkers"])
    assert record["ends"]["crossed"] == record["frames"] > 0
    assert all(w["end"] is not None and w["steps"] <= 100 for w in record["walkers"])
    frames = read_structures(here / "frames.extxyz")
    assert len(frames) == record["frames"]
    potential = load_ensemble(EnsembleManifest.read(model))
    scores = ForceStd().score(Batch.of(frames, dtype=potential.dtype), potential)
    assert float(scores.min()) > 0.05


def test_sampling_is_the_same_to_the_bit_and_depends_on_the_seed(model, sampler, here):
    for out in ("a", "b"):
        hpcal("sample", "water.xyz", f"{out}.extxyz", "--model", model, "--config", sampler)
    sampler.write_text(SAMPLER.replace("seed: 4", "seed: 5"))
    hpcal("sample", "water.xyz", "c.extxyz", "--model", model, "--config", sampler)
    a, b, c = ((here / f"{out}.extxyz").read_bytes() for out in "abc")
    assert a == b != c


def test_records_of_walkers_do_not_depend_on_how_often_they_are_looked_at(model, sampler, here, monkeypatch):
    sampler.write_text(SAMPLER.replace("threshold: 0.05", "threshold: 1000"))
    records = []
    for seconds in (600.0, 1e-4):
        monkeypatch.setattr(sampling, "LOOK_SECONDS", seconds)
        result = hpcal("sample", "water.xyz", "f.extxyz", "--model", model, "--config", sampler)
        assert result.exit_code == 0, result.stderr
        walkers = json.loads((here / "f.json").read_text())["walkers"]
        records.append([(w["max_uncertainty"], w["steps"]) for w in walkers])
    assert result.stderr.count("walkers have ended") > 5
    assert records[0] == records[1]


def test_sampling_where_nothing_crosses(model, sampler, here):
    """No frame is written, and frames of an earlier call do not stand beside the records of this one."""
    command = ("sample", "water.xyz", "frames.extxyz", "--model", model, "--config", sampler)
    assert hpcal(*command).exit_code == 0
    assert (here / "frames.extxyz").exists()
    sampler.write_text(SAMPLER.replace("threshold: 0.05", "threshold: 1000"))
    result = hpcal(*command)
    assert result.exit_code == 0
    assert "no frame crossed" in result.stdout
    assert not (here / "frames.extxyz").exists()
    assert json.loads((here / "frames.json").read_text())["frames"] == 0


def test_the_threshold_of_a_campaigns_ensemble_is_its_own(finished, sampler, here):
    sampler.write_text(SAMPLER.replace("threshold: 0.05, ", ""))
    result = hpcal("sample", "water.xyz", "f.extxyz", "--model", f"{finished}@1", "--config", sampler)
    assert result.exit_code == 0, result.stderr
    calibrated = EnsembleManifest.read(finished / "ensemble").info["metric"]
    record = json.loads((here / "f.json").read_text())
    assert record["metric"] == calibrated == "force_std"
    assert record["threshold"] > 0.0


def test_an_ensemble_without_a_threshold_needs_one(model, sampler, here):
    sampler.write_text(SAMPLER.replace("threshold: 0.05, ", ""))
    result = hpcal("sample", "water.xyz", "f.extxyz", "--model", model, "--config", sampler)
    assert result.exit_code == 2
    assert "state `threshold`" in result.stderr
    assert "eV/Å" in result.stderr


def test_a_generator_of_structures_moves_no_walkers(model, sampler, here):
    sampler.write_text("{sampler: normal_modes}\n")
    result = hpcal("sample", "water.xyz", "f.extxyz", "--model", model, "--config", sampler)
    assert result.exit_code == 2
    assert "langevin" in result.stderr


def test_scores_are_the_metrics(model, many, here):
    result = hpcal("score", many, "scored.extxyz", "--model", model, "--metric", "force_std")
    assert result.exit_code == 0, result.stderr
    record = json.loads((here / "scored.json").read_text())
    assert (record["metric"], record["unit"]) == ("force_std", "eV/Å")
    potential = load_ensemble(EnsembleManifest.read(model))
    structures = read_structures(many)
    expected = ForceStd().score(Batch.of(structures, dtype=potential.dtype), potential).tolist()
    np.testing.assert_allclose([s["uncertainty"] for s in record["scores"]], expected, rtol=1e-5)
    assert read_structures(here / "scored.extxyz") == structures


def test_an_unknown_metric_names_the_nearest(model, many):
    result = hpcal("score", many, "s.extxyz", "--model", model, "--metric", "force_sdt")
    assert result.exit_code == 2
    assert "did you mean 'force_std'?" in result.stderr


def test_structures_that_the_model_does_not_know(model, here):
    (here / "n2.xyz").write_text(xyz(WATER[:2], symbols="NN"))
    result = hpcal("score", "n2.xyz", "s.extxyz", "--model", model, "--metric", "force_std")
    assert result.exit_code == 2
    assert "does not cover N" in result.stderr


def test_a_damaged_model_is_refused(model, many, monkeypatch):
    monkeypatch.setattr(ensemble, "_loaded", OrderedDict())  # as in a process of its own
    member = next(model.glob("member*"))
    member.write_text(member.read_text() + " ")
    result = hpcal("score", many, "s.extxyz", "--model", model, "--metric", "force_std")
    assert result.exit_code == 2
    assert "SHA-256" in result.stderr

"""MODEL: an ensemble or one model by its path, by its id, or by the campaign and generation."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from cli.helpers import hpcal
from support.campaigns import query


@pytest.fixture
def audit(finished: Path, here: Path) -> Path:
    """The audit test labels of the finished campaign."""
    out = here / "audit.extxyz"
    assert hpcal("export", finished, out, "--split", "test").exit_code == 0
    return out


def errors(model: object, data: Path) -> dict[str, float]:
    result = hpcal("evaluate", model, data, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_an_ensemble_by_its_id_is_that_of_its_generation(finished, audit):
    for row, generation in query(finished, "SELECT id, generation FROM ensemble"):
        assert errors(f"{finished}@ensemble:{row}", audit) == errors(f"{finished}@{generation}", audit)


def test_a_model_by_its_id_or_its_file_is_that_member_alone(finished, audit):
    """By its id, by the path that `hpcal trace` tells, and by its file in an exported ensemble."""
    hpcal("export", finished, audit.with_name("apart"), "--ensemble")
    models = query(
        finished,
        "SELECT model.id, model.path FROM model JOIN ensemble ON ensemble.id = ensemble_id "
        "WHERE generation = 2",
    )
    alone = [errors(f"{finished}@model:{row}", audit) for row, _ in models]
    assert alone[0] != alone[1]
    assert alone == [errors(finished / path, audit) for _, path in models]
    assert alone == [errors(audit.with_name("apart") / Path(path).name, audit) for _, path in models]
    # The error of a mean is never above the mean of the errors.
    whole = errors(finished, audit)["force_rmse_ev_per_ang"]
    assert whole <= np.mean([found["force_rmse_ev_per_ang"] for found in alone])


def test_an_id_alone_is_of_the_campaign_here(finished, audit, monkeypatch):
    result = hpcal("evaluate", "model:1", audit)
    assert result.exit_code == 2
    assert "the current folder holds no campaign" in result.stderr
    assert "DIR@model:1" in result.stderr
    expected = errors(f"{finished}@model:1", audit)
    monkeypatch.chdir(finished)
    assert errors("model:1", audit) == expected


def test_an_id_that_is_not_there_says_which_are(finished, audit):
    result = hpcal("evaluate", f"{finished}@model:99", audit)
    assert (result.exit_code, result.stderr) == (
        2,
        "hpcal: there is no model 99: this campaign has 4, numbered 1 to 4\n",
    )


def test_an_ensemble_that_is_not_trained_is_refused(own_copy, audit):
    with sqlite3.connect(own_copy / "store.db") as store:
        store.execute("UPDATE model SET path = NULL, sha256 = NULL WHERE id = 4")
        store.execute("UPDATE ensemble SET state = 'training' WHERE id = 2")
    store.close()
    for name in ("ensemble:2", "model:4"):
        result = hpcal("evaluate", f"{own_copy}@{name}", audit)
        assert result.exit_code == 2
        assert f"{name} of {own_copy} is not trained" in result.stderr


def test_one_model_has_no_uncertainty(finished, audit, here):
    result = hpcal(
        "score", audit, here / "s.extxyz", "--model", f"{finished}@model:1", "--metric", "force_std"
    )
    assert result.exit_code == 2
    assert "has one member" in result.stderr
    assert not (here / "s.extxyz").exists()

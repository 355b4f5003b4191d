import json

import pytest

from hpcal.core.errors import InputError
from hpcal.report.lineage import parse_id, trace
from hpcal.report.lineage_text import trace_text

pytestmark = pytest.mark.stores

KEYS = {"structure", "origin", "scores", "selection", "attempts", "label", "datasets", "models"}


@pytest.fixture
def of(campaign):
    def traced(name, kind="structure"):
        number = getattr(campaign.ids, name)
        found = trace(campaign.store, f"{kind}:{number}" if kind != "structure" else str(number))
        json.dumps(found, allow_nan=False)
        return found, trace_text(found)

    return traced


def test_sampled_structure(of, campaign):
    found, text = of("sample")
    assert set(found) >= KEYS
    assert found["structure"]["split"] == "train"
    assert len(found["structure"]["positions"]) == found["structure"]["n_atoms"]
    walker, segment = found["origin"]["walker"], found["origin"]["segment"]
    assert (walker["id"], walker["sampler"], walker["temperature"]) == (campaign.ids.walker, "udd", 350.0)
    assert walker["seed_structure_id"] == campaign.ids.minimum
    assert (segment["start_step"], segment["end_step"], segment["end_reason"]) == (0, 400, "crossed")
    assert found["origin"]["time_fs"] == 200.0
    assert found["origin"]["task"]["id"] == campaign.ids.sample_task
    (score,) = found["scores"]
    assert score["generation"] == 3
    assert score["above_threshold"]
    (choice,) = found["selection"]
    assert (choice["decision"], choice["rule"], choice["rank"]) == ("chosen", "farthest_point", 5)
    (attempt,) = found["attempts"]
    assert (attempt["host"], attempt["pid"], attempt["state"]) == ("node7", 4242, "done")
    assert attempt["seconds"] == pytest.approx(60)
    assert found["label"]["level"]["method"] == "GFN2-xTB"
    assert found["label"]["diagnostics"] == {"checks": ["net_force"]}
    # Generation 3 was trained before this one was found; the next ensemble is still in training.
    assert [d["generation"] for d in found["datasets"]] == [4]
    assert found["models"] == []
    assert "no model has been trained on it yet" in text
    assert "chosen by farthest_point, rank 5" in text


def test_training_structure_is_in_all_later_data_sets_and_models(of, campaign):
    found, text = of("bootstrap")
    assert [(d["generation"], d["split"]) for d in found["datasets"]] == [(g, "train") for g in (1, 2, 3, 4)]
    members = [(m["generation"], m["member"]) for m in found["models"]]
    assert members == [(g, m) for g in (1, 2, 3) for m in (0, 1)]
    assert found["origin"]["parent"]["id"] == campaign.ids.minimum
    assert "generation 2, ensemble 2: models 3, 4" in text


def test_bag_decides_who_was_trained_on_it(campaign):
    # The second member of generation 3 has a bag of its own, without this structure.
    inside, outside = campaign.ids.bootstrap, campaign.ids.bootstrap + 1
    assert campaign.ids.bag_model in [m["id"] for m in trace(campaign.store, str(inside))["models"]]
    assert campaign.ids.bag_model not in [m["id"] for m in trace(campaign.store, str(outside))["models"]]


def test_validation_structure_trains_no_model(of):
    found, text = of("validation")
    # Its commit number is the last one of the first data set.
    assert [(d["generation"], d["split"]) for d in found["datasets"]] == [
        (g, "validation") for g in (1, 2, 3, 4)
    ]
    assert found["models"] == []
    assert "validation:" in text


def test_audit_structure_is_evaluated_and_never_trains(of):
    found, text = of("audit")
    assert found["structure"]["split"] == "test"
    assert found["datasets"] == found["models"] == []
    assert [(s["purpose"], s["generation"]) for s in found["scores"]] == [("evaluate", g) for g in (1, 2, 3)]
    assert all(s["force_rmse"] > 0 and s["energy_error"] is not None for s in found["scores"])
    assert found["selection"][0]["decision"] == "audit"
    assert found["label"]["seq"] is not None
    assert "it never trains" in text


def test_reference_structure(of):
    found, text = of("reference")
    assert found["label"]["seq"] is None
    assert found["label"]["attempt_id"] is None
    assert found["attempts"] == found["datasets"] == found["models"] == []
    assert len(found["scores"]) == 3
    assert "given, not computed here" in text


def test_rejected_structure(of, campaign):
    found, text = of("rejected")
    assert found["label"] is None
    (rejection,) = found["rejections"]
    assert (rejection["code"], rejection["failure_class"]) == ("scf_not_converged", "physics")
    # The lost attempt too, which left neither label nor rejection.
    assert [(a["number"], a["state"]) for a in found["attempts"]] == [(1, "lost"), (2, "done")]
    assert found["attempts"][0]["seconds"] is None
    assert found["events"][0]["task_id"] == campaign.ids.rejected_task
    assert "scf_not_converged (physics): <b>no convergence</b> & more" in text


def test_quarantined_structure_shows_the_attempts_that_broke_on_it(of, campaign):
    found, text = of("quarantined")
    # Neither label nor rejection came of them: only the frozen inputs of the tasks name the structure.
    assert [a["exit_reason"] for a in found["attempts"]] == ["KeyError: 'x'"] * 2
    assert found["attempts"][-1]["task_id"] == campaign.ids.failed_task
    assert "quarantined: input: odd electrons; it has no label" in text


def test_dropped_structures(of):
    found, text = of("saved")
    assert [(s["decision"], s["rule"]) for s in found["selection"]] == [
        ("chosen", "farthest_point"),
        ("dropped", "rescore"),
    ]
    assert not found["scores"][0]["above_threshold"]
    assert "dropped: certain now; it has no label" in text
    passed, _ = of("passed")
    assert passed["selection"][0]["decision"] == "passed_over"
    assert passed["structure"]["reason"] == "too close"


def test_seed_leads_to_its_minimum(of, campaign):
    found, text = of("seed")
    assert [c["id"] for c in found["origin"]["children"]] == [campaign.ids.minimum]
    assert found["label"] is None
    assert f"gave structure {campaign.ids.minimum} (minimum)" in text


def test_label_taken_back(of):
    found, text = of("retracted")
    assert found["label"]["retracted"] == "wrong spin"
    assert "its label was taken back: wrong spin" in text


def test_walker(of, campaign):
    found, text = of("walker", "walker")
    assert found["seed"]["id"] == campaign.ids.minimum
    assert [s["end_step"] for s in found["segments"]] == [400]
    assert [s["id"] for s in found["structures"]] == [campaign.ids.sample]
    assert "ended: crossed" in text


def test_task(of, campaign):
    found, text = of("rejected_task", "task")
    assert found["products"]["rejected"] == [
        {"structure_id": campaign.ids.rejected, "code": "scf_not_converged"}
    ]
    assert found["task"]["inputs"] == {"structure_ids": [campaign.ids.rejected]}
    assert len(found["attempts"]) == 2
    assert "lost" in text
    sampling, _ = of("sample_task", "task")
    assert len(sampling["segments"]) == 6 + 3 + 1
    failed, failure = of("failed_task", "task")
    assert failed["task"]["failure_class"] == "bug"
    assert "bug" in failure


def test_model(of, campaign):
    found, text = of("bag_model", "model")
    assert found["trained_on"]["recorded_bag"]
    assert found["trained_on"]["structure_ids"] == sorted([campaign.ids.minimum, campaign.ids.bootstrap])
    assert found["ensemble"]["generation"] == 3
    assert found["attempts"][0]["seconds"] == pytest.approx(300)
    assert "its own bag: 2 structures" in text
    whole = trace(campaign.store, "model:1")["trained_on"]
    assert (whole["recorded_bag"], whole["count"]) == (False, 7)


def test_ensemble(campaign):
    found = trace(campaign.store, "ensemble:3")
    assert found["ensemble"]["state"] == "promoted"
    # Generation 2 was refused, so the comparison was with generation 1.
    assert found["predecessor"]["id"] == 1
    assert trace(campaign.store, "ensemble:1")["successors"] == [2, 3]
    assert [m["member"] for m in found["members"]] == [0, 1]
    assert found["uses"]["scores"]["evaluate"] == found["errors"]["test"]["count"] * 2 + 6
    assert "generation 3 was promoted" in trace_text(found)


def test_dataset(campaign):
    found = trace(campaign.store, "dataset:2")
    assert found["composition"] == {
        "train": {"bootstrap": 6, "minimum": 1, "sample": 6},
        "validation": {"bootstrap": 1},
    }
    assert (found["dataset"]["n_train"], found["dataset"]["n_validation"]) == (13, 1)
    assert [e["id"] for e in found["ensembles"]] == [2]
    assert "up to commit 26" in trace_text(found)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("99999", r"there is no structure 99999: this campaign has \d+, numbered 1 to \d+"),
        ("model:77", "this campaign has 8, numbered 1 to 8"),
        ("modle:1", "did you mean 'model'"),
        ("model:x", "is no id"),
        ("", "is no id"),
        ("-3", "is no id"),
        ("level_of_theory:1", "unknown"),
    ],
)
def test_ids_that_name_nothing(campaign, name, message):
    with pytest.raises(InputError, match=message):
        trace(campaign.store, name)


def test_nothing_of_a_kind_yet(begun):
    with pytest.raises(InputError, match="this campaign has no ensemble yet"):
        trace(begun, "ensemble:1")


def test_typed_structure():
    assert parse_id("structure:12") == parse_id(" 12 ") == ("structure", 12)

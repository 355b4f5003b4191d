import json
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
from sqlalchemy import text as sql
from support.campaigns import query

from hpcal.core.errors import InputError
from hpcal.report.status import campaign_status, status_text
from hpcal.store.database import Store, add_event
from hpcal.store.error_summary import error_summary, force_interval
from hpcal.store.measurements import Evaluations, FamilyErrors

pytestmark = pytest.mark.stores

CONTRACT = {
    "state",
    "generation",
    "structures",
    "labels",
    "tasks",
    "ensemble",
    "qm_calls",
    "history",
    "pools",
    "stop_reason",
}
ERRORS = (
    "energy_mae_ev_per_atom",
    "energy_rmse_ev_per_atom",
    "force_mae_ev_per_ang",
    "force_rmse_ev_per_ang",
)


def evaluations(**columns: object) -> Evaluations:
    n = len(columns["force_rmse"])  # type: ignore[arg-type]
    defaults = {f.name: np.ones(n) for f in fields(Evaluations)} | {"family": np.arange(n)}
    return Evaluations(**{k: np.asarray(v) for k, v in (defaults | columns).items()})


def rows(campaign: SimpleNamespace, statement: str, **values: object) -> list[tuple]:
    return query(campaign.folder, statement, **values)


def errors_by_hand(campaign: SimpleNamespace, generation: int, split: str) -> dict[str, float]:
    found = rows(
        campaign,
        "select s.n_atoms, c.energy_error, c.force_mae, c.force_rmse from score c "
        "join structure s on s.id = c.structure_id join ensemble e on e.id = c.ensemble_id "
        "where c.purpose = 'evaluate' and e.generation = :generation and s.split = :split",
        generation=generation,
        split=split,
    )
    n, energy, mae, rmse = np.array(found, dtype=float).T
    # Every component of every atom once: the mean over a structure, repeated for its 3 n components.
    squares = np.concatenate([np.full(int(3 * k), r**2) for k, r in zip(n, rmse, strict=True)])
    absolute = np.concatenate([np.full(int(3 * k), m) for k, m in zip(n, mae, strict=True)])
    return {
        "energy_mae_ev_per_atom": np.abs(energy / n).mean(),
        "energy_rmse_ev_per_atom": np.sqrt(np.mean((energy / n) ** 2)),
        "force_mae_ev_per_ang": absolute.mean(),
        "force_rmse_ev_per_ang": np.sqrt(squares.mean()),
        "count": len(found),
    }


def test_contract_keys(campaign):
    status = campaign_status(campaign.store)
    assert set(status) >= CONTRACT
    assert set(status["labels"]) >= {"accepted", "rejected", "failed", "pending"}
    assert set(status["ensemble"]) >= set(ERRORS)
    for entry in status["history"]:
        assert set(entry) >= {"generation", "labels", "node_hours", "audit", "reference"}
        assert set(entry["audit"]) >= {*ERRORS, "count"}
        assert set(entry["reference"]) >= {*ERRORS, "count"}
    for pool in status["pools"].values():
        assert set(pool) >= {"slots", "busy_fraction"}
    assert json.loads(json.dumps(status, allow_nan=False)) == status


def test_counts(campaign):
    status = campaign_status(campaign.store)
    # 1 minimum, 7 bootstrap, and in each of 3 generations 6 sampled and 12 audit labels.
    assert status["labels"] == {
        "accepted": 62, "rejected": 1, "failed": 1, "pending": 2, "retracted": 1, "held": 0,
    }  # fmt: skip
    assert status["labels_by_origin"] == {"minimum": 1, "bootstrap": 7, "sample": 18, "audit": 36}
    assert status["audit_share"] == pytest.approx(36 / 62)
    (total,) = rows(campaign, "select count(*) from structure")[0]
    assert status["structures"]["total"] == total
    assert status["structures"]["rejected"] == 1
    assert sum(n for state, n in status["structures"].items() if state != "total") == total
    assert status["qm_calls"] == rows(campaign, "select sum(qm_calls) from attempt")[0][0]
    assert status["tasks"]["label"]["failed"] == 2
    assert status["walkers"]["ended"] == {"crossed": 18, "overlap": 3, "quiet": 1 + 2 + 3}
    assert status["walkers"]["alive"] == 18
    assert status["generation"] == 3
    # One in each generation had been chosen before; the other one was only a candidate.
    assert status["labels_saved"] == 3
    assert status["attempts"]["lost"] == 1


def test_a_seed_waits_for_its_relaxation_not_for_a_label(campaign):
    waiting = rows(campaign, "select origin, count(*) from structure where state = 'waiting' group by origin")
    assert dict(waiting) == {"seed": 1, "sample": 1}
    assert campaign_status(campaign.store)["labels"]["pending"] == 2


@pytest.mark.parametrize("generation", [1, 2, 3])
def test_history_errors_against_a_sum_over_components(campaign, generation):
    entry = campaign_status(campaign.store)["history"][generation - 1]
    assert entry["generation"] == generation
    for group, split in (("audit", "test"), ("reference", "reference")):
        expected = errors_by_hand(campaign, generation, split)
        assert {k: entry[group][k] for k in expected} == pytest.approx(expected)


def test_current_ensemble_is_the_one_promoted_last(campaign):
    status = campaign_status(campaign.store)
    assert [e["state"] for e in status["history"]] == ["promoted", "refused", "promoted"]
    expected = errors_by_hand(campaign, 3, "test")
    assert {k: status["ensemble"][k] for k in expected} == pytest.approx(expected)
    assert status["threshold"] == pytest.approx(0.4 / 3)


def test_history_costs(campaign):
    status = campaign_status(campaign.store)
    assert [e["labels"] for e in status["history"]] == [8, 26, 44]
    assert [e["n_train"] + e["n_validation"] for e in status["history"]] == [8, 14, 20]
    workers = {"label": 2, "sample": 1, "train": 1}
    attempts = rows(campaign, "select executor, start, end from attempt where end is not null")
    for entry, (decided,) in zip(
        status["history"],
        rows(campaign, "select decided from ensemble where decided is not null"),
        strict=True,
    ):
        spent = sum((end - start) / 3600 / workers[pool] for pool, start, end in attempts if end <= decided)
        assert entry["node_hours"] == pytest.approx(spent)


def test_busy_fraction_leaves_out_the_time_between_controllers(campaign):
    status = campaign_status(campaign.store)
    active = 0.0
    for low, high in rows(campaign, 'select min(dispatched), max("end") from attempt group by epoch'):
        active += high - low
    first, last = rows(campaign, 'select min(dispatched), max("end") from attempt')[0]
    assert active < last - first - 7000
    for pool, slots in (("label", 2), ("sample", 1), ("train", 1)):
        spent = 'select sum("end" - start) from attempt where executor = :pool'
        ((busy,),) = rows(campaign, spent, pool=pool)
        assert status["pools"][pool]["slots"] == slots
        assert status["pools"][pool]["busy_fraction"] == pytest.approx(busy / (slots * active))
    assert status["label_rate_per_minute"] == pytest.approx(62 / (active / 60))


def test_failures_by_cause(campaign):
    failures = {(f["what"], f["cause"]): f for f in campaign_status(campaign.store)["failures"]}
    bug = failures["task", "KeyError: 'x'"]
    assert (bug["count"], bug["failure_class"], bug["task_id"]) == (2, "bug", campaign.ids.failed_task)
    assert failures["rejection", "scf_not_converged: <b>no convergence</b> & more"]["count"] == 1
    quarantined = failures["quarantine", "odd electrons"]
    assert (quarantined["count"], quarantined["failure_class"]) == (1, "input")
    keys = {"what", "kind", "failure_class", "cause", "count", "task_id"}
    new = {"stage", "class", "structures", "last_task", "last_structure", "answer", "next"}
    assert all(set(entry) >= keys | new for entry in failures.values())
    assert campaign_status(campaign.store)["hosts_set_aside"] == []


def test_changes_are_shown_with_their_time(begun):
    assert campaign_status(begun)["changes"] == []
    lines = [["-  labels: 40", "+  labels: 60"], ["+  generations: 9"], ["-  seed: 1"], ["+- x"]]
    with begun.write() as session:
        for changed in lines:
            add_event(session, 3, "changed", "\n".join(changed))
    status = campaign_status(begun)
    assert [change["lines"] for change in status["changes"]] == lines
    assert {change["epoch"] for change in status["changes"]} == {3}
    text = status_text(status)
    assert "changes of the campaign file\n  1 earlier" in text
    assert text.index("+ generations: 9") < text.index("- seed: 1") < text.index("+- x")


@pytest.mark.parametrize(
    ("state", "words"), [("failed", "mend what stopped it, then go on"), ("stopped", "go on")]
)
def test_the_command_to_go_on(begun, tmp_path, state, words):
    with begun.write() as session:
        session.execute(sql("UPDATE campaign SET state = :state"), {"state": state})
    folder = tmp_path / "a b"
    assert campaign_status(begun)["next"] == "hpcal resume DIR"
    text = status_text(campaign_status(begun, folder))
    assert text.splitlines()[-1] == f"{words} with `hpcal resume '{folder}'`"


def test_nothing_is_known_of_a_campaign_that_has_just_begun(begun):
    status = campaign_status(begun)
    assert status["generation"] == 0
    assert status["history"] == []
    assert [status["ensemble"][key] for key in ERRORS] == [None] * 4
    assert status["labels"]["accepted"] == status["structures"]["total"] == 0
    assert status["pools"] == {}
    assert status["audit_share"] is None
    json.dumps(status, allow_nan=False)
    assert "no ensemble yet" in status_text(status)


def test_store_without_campaign(tmp_path):
    store = Store.create(tmp_path)
    with pytest.raises(InputError, match="no campaign yet"):
        campaign_status(store)
    store.close()


def test_text(campaign):
    text = status_text(campaign_status(campaign.store))
    lines = text.splitlines()
    assert lines[0] == "water on laptop, running (generation 3)"
    assert any("62 accepted, 2 pending, 1 rejected, 1 set aside" in line for line in lines)
    words = next(line for line in lines if "KeyError" in line).split(maxsplit=3)
    assert words[:3] == ["label", "2", "×"]
    assert words[3].startswith("KeyError: 'x' (bug), given up")
    assert words[3].endswith(f"hpcal why DIR task:{campaign.ids.failed_task}")
    head = next(i for i, line in enumerate(lines) if line.lstrip().startswith("generation "))
    assert len({len(line) for line in lines[head : head + 4]}) == 1


def test_text_says_why_it_ended(begun):
    status = campaign_status(begun) | {"state": "finished", "stop_reason": "100 labels"}
    assert status_text(status).startswith("begun, finished: 100 labels")


def interval(found):
    return force_interval(FamilyErrors.summed(found))


def test_interval_is_that_of_a_mean_of_squares():
    # Structures of one size: the RMSE² is a plain mean, whose normal interval is known.
    rmse = np.sqrt(np.random.default_rng(3).uniform(0.5, 1.5, 400))
    low, high = interval(evaluations(force_rmse=rmse)) or (0, 0)
    square = rmse**2
    error = 1.96 * square.std() / np.sqrt(len(square))
    expected = np.sqrt([square.mean() - error, square.mean() + error])
    # 1000 resamples know a 2.5 % quantile to about a tenth of the half width.
    assert [low, high] == pytest.approx(expected, abs=0.15 * (expected[1] - expected[0]) / 2)
    assert interval(evaluations(force_rmse=rmse)) == [low, high]


def test_interval_counts_a_walker_once():
    rmse = np.sqrt(np.random.default_rng(4).uniform(0.5, 1.5, 50))
    alone = interval(evaluations(force_rmse=rmse))
    fourfold = interval(evaluations(force_rmse=np.repeat(rmse, 4), family=np.repeat(np.arange(50), 4)))
    assert fourfold == pytest.approx(alone)
    assert interval(evaluations(force_rmse=rmse, family=np.zeros(50))) is None


def test_labels_without_forces_still_tell_of_energies():
    found = evaluations(
        force_rmse=[np.nan, np.nan], force_mae=[np.nan, np.nan], energy_error=[0.2, -0.4], n_atoms=[2, 4]
    )
    summary = error_summary(FamilyErrors.summed(found))
    assert summary["energy_mae_ev_per_atom"] == pytest.approx(0.1)
    assert summary["force_rmse_ev_per_ang"] is None
    assert summary["count"] == 2

"""The life of structures of a real campaign: one trained on, one rejected, one dropped, one of the audit."""

from __future__ import annotations

import pytest
from support.campaigns import query, run_inline

from hpcal.report.lineage import trace
from hpcal.store.database import Store

pytestmark = pytest.mark.stores


@pytest.fixture
def campaign(campaign_file, tmp_path):
    file = campaign_file(stop="{labels: 60, generations: 4}", threshold="calibrated")
    text = file.read_text()
    # A limit on the force turns some structures away.
    text = text.replace("model:", "checks: {max_force_eV_per_A: 4}, model:").replace(
        "time_ps: 0.05", "time_ps: 0.1"
    )
    file.write_text(text)
    run_inline(file, tmp_path / "run")
    return tmp_path / "run"


def life(root, where: str) -> dict:
    found = query(root, f"SELECT id FROM structure WHERE {where} ORDER BY id LIMIT 1")
    assert found, f"the campaign has no structure with {where}"
    store = Store.read(root)
    try:
        return trace(store, str(found[0][0]))
    finally:
        store.close()


def test_every_kind_of_life_is_told_whole(campaign):
    trained = life(
        campaign, "origin = 'sample' AND state = 'labelled' AND split = 'train' AND generation = 1"
    )
    origin = trained["origin"]
    assert origin["generation"] == 1
    assert origin["walker"]["sampler"] == "langevin"
    assert origin["step"] > 0
    assert origin["time_fs"] == pytest.approx(0.5 * origin["step"])
    assert trained["scores"][0]["value"] > trained["scores"][0]["threshold"]
    assert trained["selection"][0]["reason"]
    assert trained["attempts"][0]["host"]
    assert trained["label"]["level"]["method"] == "morse"
    assert trained["datasets"]
    assert trained["datasets"][0]["split"] == "train"
    assert trained["models"]

    rejected = life(campaign, "state = 'rejected'")
    assert rejected["rejections"][0]["code"] == "force_limit"
    assert rejected["attempts"]
    assert rejected["label"] is None
    assert rejected["datasets"] == []
    assert rejected["models"] == []

    dropped = life(campaign, "state = 'dropped' AND origin IN ('sample', 'audit')")
    assert dropped["structure"]["state"] == "dropped"
    assert dropped["structure"]["reason"]
    assert dropped["label"] is None

    audit = life(campaign, "origin = 'audit' AND state = 'labelled'")
    assert audit["selection"][0]["decision"] == "audit"
    assert audit["models"] == []
    assert any(score["purpose"] == "evaluate" for score in audit["scores"])

"""Why batch jobs still wait, in the status of a campaign."""

from __future__ import annotations

import pytest

from hpcal.report.status import campaign_status, status_text
from hpcal.store import campaigns
from hpcal.store.database import Store, add_event
from hpcal.store.history import BLOCKS_WAIT, events
from hpcal.store.transitions import CampaignState

pytestmark = pytest.mark.stores


@pytest.fixture
def store(begun: Store) -> Store:
    """A campaign that runs on a site of two pools."""
    with begun.write() as session:
        campaign = campaigns.campaign(session)
        campaign.state = CampaignState.RUNNING
        campaign.site = {"pools": {"label": {"slots": 2}, "sample": {"slots": 1}}}
    return begun


def told(store: Store, epoch: int, **pools: dict[str, int]) -> dict[str, object]:
    """What the status tells of each pool after the controller of an epoch was told this."""
    with store.write() as session:
        add_event(session, epoch, BLOCKS_WAIT, "words", pools=pools)
    status = campaign_status(store)
    return {name: pool["waiting"] for name, pool in status["pools"].items() if pool["waiting"]}


def test_the_status_of_a_running_campaign_says_why_its_jobs_wait(store):
    assert told(store, store.epoch, label={"Priority": 1}) == {"label": {"Priority": 1}}
    waiting = {"label": {"Resources": 2, "AssocGrpCPULimit": 1}, "sample": {"Resources": 1}}
    assert told(store, store.epoch, **waiting) == waiting
    text = status_text(campaign_status(store))
    assert "label 2 slots while 3 blocks wait (Resources; AssocGrpCPULimit)" in text
    assert "sample 1 slots while 1 block waits (Resources)" in text
    with store.session() as session:
        assert BLOCKS_WAIT not in [kind for _, kind, _ in events(session, 15)]
    assert told(store, store.epoch) == {}


def test_what_an_earlier_controller_was_told_is_no_news(store):
    assert told(store, store.epoch - 1, label={"Priority": 1}) == {}
    assert told(store, store.epoch, label={"Priority": 1})
    with store.write() as session:
        campaigns.campaign(session).state = CampaignState.STOPPED
    assert campaign_status(store)["pools"]["label"]["waiting"] == {}

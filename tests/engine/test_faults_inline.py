"""Attempts that fail or vanish, on a campaign that ends in seconds."""

from __future__ import annotations

import numpy as np
import pytest
from support.campaigns import query, run_inline

from hpcal.core.errors import CampaignFailed, ConfigurationError, FailureClass
from hpcal.engine.dispatch import Assignment, Report
from hpcal.engine.tasks import run_attempt


class Faulty:
    """Carries assignments out, but for some that fail or are lost."""

    def __init__(self, kinds: tuple[str, ...], share: float, **how: object) -> None:
        self.kinds, self.share, self.how = kinds, share, how
        self.rng = np.random.default_rng(4)

    def __call__(self, assignment: Assignment) -> Report:
        if assignment.kind in self.kinds and self.rng.random() < self.share:
            return Report(attempt_id=assignment.attempt_id, message="made up", **self.how)
        return run_attempt(assignment)


def whole(root) -> None:
    assert query(root, "SELECT state FROM campaign") == [("finished",)]
    assert query(root, "SELECT count(*) FROM structure WHERE state = 'claimed'") == [(0,)]
    assert query(root, "SELECT count(*) FROM walker WHERE state = 'claimed'") == [(0,)]
    assert query(root, "SELECT count(*) FROM label GROUP BY structure_id HAVING count(*) > 1") == []


ALL = ("label", "sample", "train", "evaluate", "select", "rescore", "bootstrap", "relax")


@pytest.mark.slow
def test_lost_attempts_are_tried_again_and_nothing_is_labelled_twice(campaign_file, tmp_path):
    run_inline(campaign_file(), tmp_path / "run", Faulty(ALL, 0.3, lost=True))
    whole(tmp_path / "run")
    assert query(tmp_path / "run", "SELECT count(*) FROM attempt WHERE state = 'lost'")[0][0] > 0


@pytest.mark.slow
def test_failed_attempts_are_tried_again(campaign_file, tmp_path):
    run_inline(campaign_file(), tmp_path / "run", Faulty(("label", "sample"), 0.2, failure=FailureClass.NODE))
    whole(tmp_path / "run")


@pytest.mark.parametrize("kind", ["label", "train", "evaluate"])
def test_a_stage_in_which_everything_fails_stops_with_the_cause_and_can_be_resumed(
    campaign_file, tmp_path, kind
):
    file, root = campaign_file(), tmp_path / "run"
    with pytest.raises(CampaignFailed, match=rf"stage {kind}: .*made up"):
        run_inline(file, root, Faulty((kind,), 1.0, failure=FailureClass.BUG))
    assert query(root, "SELECT state FROM campaign") == [("failed",)]
    run_inline(file, root)
    whole(root)


@pytest.mark.slow
def test_what_is_recorded_already_cannot_be_changed(campaign_file, tmp_path):
    from support.campaigns import SLOTS

    from hpcal.engine.campaign import read_campaign
    from hpcal.engine.dispatch import InlineDispatcher
    from hpcal.engine.start import take_up

    root = tmp_path / "run"
    run_inline(campaign_file(), root)
    file = campaign_file()
    file.write_text(file.read_text().replace("metric: force_std", "metric: energy_std"))
    with pytest.raises(ConfigurationError, match=r"uncertainty\.metric: cannot be changed"):
        take_up(root, InlineDispatcher(SLOTS, run_attempt), spec=read_campaign(file), accept_changes=True)

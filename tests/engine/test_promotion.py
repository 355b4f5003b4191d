from __future__ import annotations

import numpy as np
import pytest

from hpcal.core.walker import Split
from hpcal.engine.campaign_file import PromotionBlock, SplitsBlock
from hpcal.engine.promotion import gate
from hpcal.engine.splits import audit_steps, walker_split
from hpcal.engine.streams import derive

RULE = PromotionBlock(margin=0.2, min_audit=10)


def test_the_first_ensemble_is_promoted():
    assert gate(None, None, 0, RULE).promoted


@pytest.mark.parametrize(("error", "promoted"), [(0.08, True), (0.12, True), (0.121, False)])
def test_worse_by_more_than_the_margin_is_refused_and_says_so(error, promoted):
    verdict = gate(error, 0.1, 30, RULE)
    assert verdict.promoted is promoted
    assert "30 audit labels" in verdict.reason
    assert "margin 20%" in verdict.reason


def test_too_few_audit_labels_cannot_refuse():
    verdict = gate(1.0, 0.1, 9, RULE)
    assert verdict.promoted
    assert "too few" in verdict.reason


def test_splits_of_walkers_follow_their_shares():
    # 20,000 draws: five standard errors of a share of 0.1 are 0.0106.
    shares = SplitsBlock(validation=0.1, audit_walkers=0.2)
    rng = np.random.default_rng(5)
    drawn = [walker_split(rng, shares) for _ in range(20_000)]
    for split, share in {Split.CALIBRATION: 0.1, Split.TEST: 0.1, Split.VALIDATION: 0.08}.items():
        assert abs(drawn.count(split) / len(drawn) - share) < 0.0106


def test_no_audit_walker_is_born_where_there_are_enough():
    rng = np.random.default_rng(5)
    shares = SplitsBlock(validation=0.1, audit_walkers=0.5)
    drawn = {walker_split(rng, shares, audit=False) for _ in range(200)}
    assert drawn == {Split.TRAIN, Split.VALIDATION}


def test_audit_frames_are_uniform_in_time():
    # 20,000 steps of 1..100: their mean is 50.5 with a standard error of 0.2.
    rng = np.random.default_rng(6)
    steps = [step for _ in range(10_000) for step in audit_steps(rng, 2, 100)]
    assert min(steps) == 1
    assert max(steps) == 100
    assert abs(np.mean(steps) - 50.5) < 1.0


def test_streams_of_different_purposes_differ_and_are_stable():
    assert derive(7, "walker", 1) == derive(7, "walker", 1)
    assert (
        len({derive(7, "walker", 1), derive(7, "walker", 2), derive(7, "noise", 1), derive(8, "walker", 1)})
        == 4
    )
    assert 0 <= derive(7, "walker", 1) < 2**63

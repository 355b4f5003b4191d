"""The planner, on snapshots made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.campaigns import SLOTS

from hpcal.engine import plan as p
from hpcal.engine.campaign import read_campaign
from hpcal.engine.view import AuditErrors, EnsembleView, EntryView, Gap, View
from hpcal.store.transitions import EnsembleState


@pytest.fixture
def spec(campaign_file):
    return read_campaign(campaign_file(stop="{labels: 100, generations: 5, quiet_generations: 2}"))


def ensemble(generation: int = 1, state: EnsembleState = EnsembleState.PROMOTED, **more) -> EnsembleView:
    return EnsembleView(id=10 + generation, generation=generation, state=state, last_seq=16, **more)


@pytest.fixture
def view() -> View:
    """In the middle of a campaign, with nothing to do but to sample."""
    now = ensemble()
    return View(
        labels=20, slots=SLOTS, current=now, newest=now, walkers=(EntryView(idle=(1, 2, 3), alive=8),)
    )


def kinds(actions: list) -> list[type]:
    return [type(action) for action in actions]


def test_begins_with_relaxations_and_then_looks_at_curvatures(spec):
    assert p.plan(View(seeds=(1, 2), slots=SLOTS), spec) == [
        p.Relax(structure_ids=(1,)),
        p.Relax(structure_ids=(2,)),
    ]
    assert p.plan(View(tasks={"relax": 1}, slots=SLOTS), spec) == []
    assert p.plan(View(minima=(3,), unchecked=(3,), slots=SLOTS), spec) == [p.CheckMinimum(minimum_id=3)]


def test_deals_the_bootstrap_out_over_the_minima(spec):
    actions = p.plan(View(minima=(3, 5, 8), slots=SLOTS), spec)
    made = [a for a in actions if isinstance(a, p.Bootstrap)]
    assert [a.minimum_id for a in made] == [3, 5, 8]
    assert sum(a.count for a in made) == 16
    assert max(a.count for a in made) - min(a.count for a in made) <= 1


def test_first_training_waits_for_every_bootstrap_label(spec):
    done = frozenset({(0, 3)})
    waiting = View(minima=(3,), bootstrapped=done, waiting=(4,), n_waiting=1, learnable=15, slots=SLOTS)
    assert kinds(p.plan(waiting, spec)) == [p.LabelChunk]
    under_way = View(minima=(3,), bootstrapped=done, tasks={"label": 1}, learnable=15, slots=SLOTS)
    assert p.plan(under_way, spec) == []
    complete = View(minima=(3,), bootstrapped=done, learnable=16, slots=SLOTS)
    assert p.plan(complete, spec) == [p.Train(generation=1, start_from=None)]


def test_a_bootstrap_without_any_label_fails_with_the_cause(spec):
    (action,) = p.plan(View(minima=(3,), bootstrapped=frozenset({(0, 3)}), slots=SLOTS), spec)
    assert isinstance(action, p.Fail)


def test_samples_while_there_is_nothing_else_to_do(spec, view):
    assert p.plan(view, spec) == [p.Sample(entry=0, walker_ids=(1, 2, 3), ensemble_id=11)]


def test_keeps_the_population_of_walkers(spec, view):
    fewer = replace(view, walkers=(EntryView(alive=5),))
    assert p.plan(fewer, spec) == [p.Spawn(entry=0, count=3)]


def test_no_stage_waits_for_another(spec, view):
    busy = replace(
        view,
        learnable=8,
        waiting=(40, 41),
        n_waiting=2,
        candidates=tuple(range(50, 60)),
        n_candidates=10,
    )
    assert {p.Train, p.Select, p.LabelChunk, p.Sample} <= set(kinds(p.plan(busy, spec)))


def test_trains_after_a_batch_and_never_two_at_once(spec, view):
    assert p.Train not in kinds(p.plan(replace(view, learnable=7), spec))
    trained = p.plan(replace(view, learnable=8), spec)
    assert p.Train(generation=2, start_from=11) in trained
    training = replace(view, learnable=8, newest=ensemble(2, EnsembleState.TRAINING))
    assert p.Train not in kinds(p.plan(training, spec))


def test_evaluates_a_trained_ensemble_at_once_with_all_gaps(spec, view):
    gap = Gap(ensemble_id=12, structure_ids=(7, 8))
    trained = replace(view, newest=ensemble(2, EnsembleState.TRAINED), gaps=(gap,))
    assert p.plan(trained, spec)[0] == p.Evaluate(pairs=((12, (7, 8)),), decide=12)


def test_scores_waiting_structures_again_after_a_promotion(spec, view):
    assert p.Rescore(structure_ids=(30,), ensemble_id=11) in p.plan(replace(view, stale=(30,)), spec)


def test_full_queue_stalls_sampling(spec, view):
    full = replace(view, n_waiting=16, waiting=(1,), tasks={"label": 2}, pools={"label": 2})
    assert p.Sample not in kinds(p.plan(full, spec))


def test_outstanding_labelling_stays_within_twice_the_slots(spec, view):
    many = replace(view, waiting=tuple(range(100, 200)), n_waiting=100)
    chunks = [a for a in p.plan(many, spec) if isinstance(a, p.LabelChunk)]
    assert len(chunks) == 2
    assert all(len(c.structure_ids) <= 4 for c in chunks)
    assert p.LabelChunk not in kinds(p.plan(replace(many, pools={"label": 2}), spec))


def test_never_asks_for_more_labels_than_the_budget(spec, view):
    nearly = replace(view, labels=95, n_claimed=3, waiting=tuple(range(100, 120)), n_waiting=20)
    asked = [i for a in p.plan(nearly, spec) if isinstance(a, p.LabelChunk) for i in a.structure_ids]
    assert len(asked) == 2


def test_audit_frames_go_first_until_they_have_their_share(spec, view):
    both = replace(
        view, waiting=tuple(range(100, 120)), n_waiting=20, waiting_audit=(7, 8, 9, 10, 11, 12, 13)
    )
    asked = [i for a in p.plan(both, spec) if isinstance(a, p.LabelChunk) for i in a.structure_ids]
    audit = [i for i in asked if i < 100]
    assert audit
    assert len(audit) <= 0.2 * (20 + len(asked))


def test_audit_frames_beyond_their_share_wait(spec, view):
    enough = replace(view, audit_labels=4, waiting_audit=(7, 8))
    assert p.LabelChunk not in kinds(p.plan(enough, spec))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"labels": 100}, "label budget"),
        ({"newest": ensemble(5), "current": ensemble(5)}, "generations"),
        ({"current": ensemble(1, ended=40, crossed=1)}, "quiet"),
    ],
)
def test_stop_rules(spec, view, change, word):
    reason = p.stop_reason(replace(view, **change), spec)
    assert reason is not None
    assert reason.startswith(word)


def test_quiet_rounds_break_when_walkers_cross(spec):
    assert p.quiet_rounds(ensemble(2, quiet_rounds=1, ended=20, crossed=1), spec) == 2
    assert p.quiet_rounds(ensemble(2, quiet_rounds=1, ended=20, crossed=2), spec) == 0
    assert p.quiet_rounds(ensemble(2, quiet_rounds=1, ended=19, crossed=1), spec) == 1
    assert p.quiet_rounds(ensemble(2, quiet_rounds=1, ended=19, crossed=2), spec) == 0


def test_a_sure_ensemble_ends_a_campaign_without_a_quiet_rule(campaign_file, view):
    spec = read_campaign(campaign_file(stop="{labels: 100}"))
    sure = replace(view, current=ensemble(1, ended=200, crossed=0))
    assert (p.stop_reason(sure, spec) or "").startswith("quiet: 10 rounds of 20 walkers in a row")


def test_error_target_needs_enough_test_labels(campaign_file, view):
    spec = read_campaign(campaign_file(stop="{labels: 100, force_rmse_eV_per_A: 0.1}"))
    few = replace(view, audit=AuditErrors(count=19, force_rmse=0.05, energy_rmse=0.001))
    many = replace(view, audit=AuditErrors(count=20, force_rmse=0.05, energy_rmse=0.001))
    assert p.stop_reason(few, spec) is None
    assert "0.0500 eV/Å" in (p.stop_reason(many, spec) or "")


def test_the_end_learns_from_the_last_labels_and_closes_every_gap(spec, view):
    end = replace(view, labels=100, learnable=3)
    assert p.plan(replace(end, tasks={"sample": 1}), spec) == []
    assert p.plan(end, spec) == [p.Train(generation=2, start_from=11)]
    learned = replace(end, learnable=0, gaps=(Gap(ensemble_id=11, structure_ids=(5,)),))
    assert p.plan(learned, spec) == [p.Evaluate(pairs=((11, (5,)),), decide=None)]
    (finish,) = p.plan(replace(end, learnable=0), spec)
    assert isinstance(finish, p.Finish)


def test_a_stage_in_which_everything_fails_stops_the_campaign(spec, view):
    assert p.plan(replace(view, failed_stage="stage label: …"), spec) == [p.Fail(reason="stage label: …")]


def test_is_pure(spec, view):
    assert p.plan(view, spec) == p.plan(view, spec)

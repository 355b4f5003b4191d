"""The time of a label, learned from those that are done, and what the planner makes of it."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import text
from support.campaigns import SLOTS, query, run_inline

from hpcal.core.deadline import Deadline
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure
from hpcal.engine import plan as p
from hpcal.engine import snapshot
from hpcal.engine.actions import apply
from hpcal.engine.campaign import read_campaign
from hpcal.engine.campaign_file import TasksBlock
from hpcal.engine.dispatch import InlineDispatcher
from hpcal.engine.label_time import ENOUGH, PRIOR_EXPONENT, chunks, composition, fit
from hpcal.engine.start import take_up
from hpcal.engine.tasks import run_attempt
from hpcal.engine.view import EnsembleView, EntryView, View
from hpcal.engine.work import quantum
from hpcal.store import measurements
from hpcal.store.measurements import LabelSeconds
from hpcal.store.transitions import EnsembleState

BASIS = {"H": 5, "C": 14, "N": 14, "O": 14}
"""def2-SVP."""


def alkane(n: int) -> str:
    return f"C{n}H{2 * n + 2}" if n > 1 else "CH4"


def measured(formulas: list[str], seconds, functions=None) -> LabelSeconds:
    return LabelSeconds(
        formula=tuple(formulas),
        seconds=np.array(seconds, dtype=float),
        basis_functions=np.full(len(formulas), np.nan)
        if functions is None
        else np.array(functions, dtype=float),
    )


def scattered(exponent: float, n: int = 120, spread: float = 0.2, seed: int = 1) -> LabelSeconds:
    """Labels of alkanes of 5 to 32 atoms."""
    rng = np.random.default_rng(seed)
    carbons = rng.integers(1, 11, n)
    seconds = 0.01 * (3 * carbons + 2.0) ** exponent * np.exp(rng.normal(0, spread, n))
    return measured([alkane(int(c)) for c in carbons], seconds)


# ── Learning ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("exponent", [1.0, 2.2, 3.0])
def test_the_power_law_and_its_scatter_are_found(exponent) -> None:
    times = fit(scattered(exponent))
    assert times is not None
    assert times.exponent == pytest.approx(exponent, abs=3 * times.exponent_error)
    assert times.exponent_error < 0.1
    assert times.spread == pytest.approx(0.2, rel=0.3)
    assert times.expected("C6H14") == pytest.approx(0.01 * 20**exponent * math.exp(0.02), rel=0.15)


def test_a_few_held_up_labels_do_not_lead_astray() -> None:
    clean = scattered(2.2)
    seconds = clean.seconds.copy()
    seconds[::10] *= 100
    times = fit(replace(clean, seconds=seconds))
    assert times is not None
    assert times.exponent == pytest.approx(2.2, abs=0.25)
    assert times.expected("C6H14") == pytest.approx(0.01 * 20**2.2, rel=0.35)


def test_few_labels_foretell_nothing_and_one_size_goes_by_the_prior() -> None:
    assert fit(measured(["CH4"] * (ENOUGH - 1), [1.0] * (ENOUGH - 1))) is None
    times = fit(measured(["CH4"] * 30, [1.0] * 30))
    assert times is not None
    assert times.exponent == pytest.approx(PRIOR_EXPONENT)
    assert times.expected("C3H10O2") == pytest.approx(3**PRIOR_EXPONENT, rel=0.05)
    # Far from what was seen, the exponent is what is least known.
    assert times.least("CH4") > 0.5
    assert times.least("C30H100O20") < 0.05 * times.expected("C30H100O20")


def test_sizes_are_basis_functions_where_labels_tell_them() -> None:
    """CH4 and H4O have as many atoms and other elements, C2H6 and C6H2 as many atoms and other bases."""
    formulas = [*(alkane(n) for n in range(1, 6)), "H2O", "CH4O", "H3N", "C2H6O"] * 3
    functions = [sum(BASIS[e] * k for e, k in composition(f).items()) for f in formulas]
    times = fit(measured(formulas, [1e-3 * f**2.5 for f in functions], functions))
    assert times is not None
    assert times.size("C6H2") == pytest.approx(94, abs=1e-6)
    assert times.expected("C6H2") == pytest.approx(1e-3 * 94**2.5, rel=0.1)
    assert times.size("ClH") == pytest.approx(5 + times.other)
    untold = fit(measured(formulas, [1.0] * len(formulas), [math.nan, *functions[1:]]))
    assert untold is not None
    assert untold.size("C6H2") == 8


def test_elements_that_occur_only_together_share_their_functions() -> None:
    times = fit(measured(["CH4"] * 6, [1.0] * 6, [34.0] * 6))
    assert times is not None
    assert times.size("CH4") == pytest.approx(34)
    assert times.size("C2H8") == pytest.approx(68)


def test_tasks_are_filled_up_to_the_aim() -> None:
    assert chunks([4, 4, 4, 20, 1, 1, 1], aim=10, most=64) == [2, 1, 1, 3]
    assert chunks([1] * 7, aim=100, most=3) == [3, 3, 1]
    assert chunks([], aim=10, most=4) == []


# ── Planning ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def spec(campaign_file):
    read = read_campaign(campaign_file(stop="{labels: 100}"))
    return replace(read, file=read.file.model_copy(update={"tasks": TasksBlock(label_seconds=10)}))


def waiting(formulas: list[str], **more) -> View:
    now = EnsembleView(id=11, generation=1, state=EnsembleState.PROMOTED, last_seq=16)
    ids = tuple(range(1, len(formulas) + 1))
    times = fit(measured(["CH4"] * 40, [1.0] * 40))
    assert times is not None
    return View(
        **{
            "labels": 20, "slots": {"label": 1}, "current": now, "newest": now,
            "walkers": (EntryView(alive=8),), "waiting": ids, "n_waiting": len(ids),
            "seconds": {"label": 1.0},
            "label_times": times, "formulas": dict(zip(ids, formulas, strict=True)), **more,
        }
    )  # fmt: skip


def labelling(view: View, spec) -> list[p.LabelChunk]:
    return [a for a in p.plan(view, spec) if isinstance(a, p.LabelChunk)]


def test_tasks_of_large_structures_hold_fewer(spec) -> None:
    """By the prior, twice the atoms take four times as long: 1 s and about 4 s."""
    small = labelling(waiting(["CH4"] * 24), spec)
    large = labelling(waiting(["C2H8"] * 24), spec)
    assert [len(c.structure_ids) for c in small] == [9, 9]
    assert [len(c.structure_ids) for c in large] == [2, 2]
    mixed = labelling(waiting(["C2H8", "CH4", "CH4", "C3H12", "CH4"]), spec)
    assert [c.structure_ids for c in mixed] == [(1, 2, 3), (4,)]
    assert all(sum(c.seconds) <= 10 for c in mixed)
    # What the snapshot has not looked at waits for the next one.
    part = waiting(["CH4"] * 24)
    some = replace(part, formulas=dict.fromkeys((1, 2, 3), "CH4"))
    assert [c.structure_ids for c in labelling(some, spec)] == [(1, 2, 3)]
    unknown = replace(waiting(["C2H8"] * 24), label_times=None)
    assert [len(c.structure_ids) for c in labelling(unknown, spec)] == [10, 10]
    assert all(c.seconds == () for c in labelling(unknown, spec))


def test_a_label_that_fits_into_no_batch_job_is_refused_with_the_reason(spec) -> None:
    huge = "C100H400"
    learned = fit(scattered(2.0, spread=0.05))
    view = waiting(["CH4", huge, "CH4", "C4H16"], label_room=20.0, label_times=learned)
    refused = [a for a in p.plan(view, spec) if isinstance(a, p.Refuse)]
    (action,) = refused
    assert action.structure_ids == (2,)
    assert "a label of C100H400 takes about" in action.reason
    assert "leaves 20 s for one" in action.reason
    assert {i for c in labelling(view, spec) for i in c.structure_ids} == {1, 3, 4}
    guessed = waiting(["CH4", huge], label_room=20.0)
    for kept in (replace(view, label_room=None), guessed):
        assert not [a for a in p.plan(kept, spec) if isinstance(a, p.Refuse)]


def test_a_mean_beyond_the_room_fails_only_where_nothing_smaller_waits(spec) -> None:
    slow = {"seconds": {"label": 50.0}, "label_room": 20.0}
    assert isinstance(p.plan(waiting(["C8H32"], **slow), spec)[0], p.Fail)
    assert labelling(waiting(["C8H32", "CH4"], **slow), spec)


# ── In the store and the worker ──────────────────────────────────────────────────────────────


class Timed(InlineDispatcher):
    """As one whose durations are real, in batch jobs of a minute."""

    virtual = False

    def room(self, wanted: str) -> float | None:
        return 60.0


@pytest.fixture
def context(campaign_file, tmp_path: Path):
    root = tmp_path / "run"
    run_inline(campaign_file(stop="{generations: 1}"), root)
    taken = take_up(root, Timed(SLOTS, run_attempt))
    try:
        yield taken
    finally:
        taken.store.release()


@pytest.mark.slow
def test_times_come_from_the_newest_labels_that_were_made_here(context) -> None:
    with context.store.write() as session:
        known = measurements.label_seconds(session, context.level_id)
        rows = session.execute(text("select diagnostics from label where seq is not null order by seq")).all()
        told = [json.loads(row[0])["seconds"] for row in rows]
        assert len(known) == len(told) >= ENOUGH
        assert known.seconds.tolist() == told
        assert np.isnan(known.basis_functions).all()
        assert known.formula[0] == measurements.formulas(session, [1])[1]
        assert len(measurements.label_seconds(session, context.level_id, last=3)) == 3
        assert len(measurements.label_seconds(session, context.level_id + 1)) == 0
        session.execute(text("update label set attempt_id = null"))
        assert len(measurements.label_seconds(session, context.level_id)) == 0


@pytest.mark.slow
def test_a_refused_structure_is_set_aside_with_its_reason(context) -> None:
    with context.store.write() as session:
        (chosen,) = session.execute(text("select id from structure order by id desc limit 1")).one()
        session.execute(text("update structure set state = 'waiting' where id = :i"), {"i": chosen})
        view = snapshot.take(session, context)
        assert view.label_times is not None
        assert view.formulas.keys() == {*view.waiting, *view.waiting_audit} >= {chosen}
        assert apply(p.Refuse(structure_ids=(chosen,), reason="too long"), session, context) == []
        again = snapshot.take(session, context)
        assert chosen not in (*again.waiting, *again.waiting_audit)
    root = context.folders.root
    (row,) = query(root, "select state, reason from structure where id = :i", i=chosen)
    assert row == ("quarantined", "too long")
    (event,) = query(root, "select message from event where kind = 'refused'")
    assert event == ("1 structures set aside: too long",)


@pytest.mark.slow
def test_virtual_durations_foretell_nothing(campaign_file, tmp_path: Path) -> None:
    root = tmp_path / "run"
    run_inline(campaign_file(stop="{generations: 1}"), root)
    taken = take_up(root, InlineDispatcher(SLOTS, run_attempt))
    try:
        with taken.store.write() as session:
            session.execute(text("update structure set state = 'waiting' where id > 10"))
            view = snapshot.take(session, taken)
    finally:
        taken.store.release()
    assert view.waiting
    assert (view.label_times, view.formulas, view.seconds) == (None, {}, {})
    inputs = [json.loads(row[0]) for row in query(root, "select inputs from task where kind = 'label'")]
    assert inputs
    assert all(given.keys() == {"structure_ids"} for given in inputs)


class Notes:
    """A labeler and a spool."""

    def __init__(self) -> None:
        self.done: list[int] = []

    def label(self, structure, deadline) -> Label:
        return Label(energy=0.0, forces=None, level=LevelOfTheory(code="t", version="1", method="m"))

    def append(self, record) -> None:
        self.done.append(record["structure_id"])


@pytest.mark.parametrize(
    ("seconds", "done"), [((1, 500, 2), [1, 3]), ((500, 1, 500), [1, 2]), ((), [1, 2, 3])]
)
def test_a_worker_passes_over_what_no_longer_fits(monkeypatch, tmp_path, seconds, done) -> None:
    notes = Notes()
    monkeypatch.setattr(quantum, "labeler_of", lambda *_, **__: notes)
    atom = Structure(numbers=[2], positions=[[0, 0, 0]])
    items = [{"id": i, "structure": atom} for i in (1, 2, 3)]
    for item, expected in zip(items, seconds, strict=False):
        item["seconds"] = float(expected)
    work = quantum.Work(
        inputs={"label": {}, "structures": items}, spool=notes, deadline=Deadline.after(60),
        log=tmp_path / "log", scratch=tmp_path, threads=1, virtual=False, late=False,
    )  # fmt: skip
    quantum.label(work)
    assert notes.done == done


def test_fitting_costs_a_few_milliseconds() -> None:
    known = scattered(2.0, n=200)
    known = replace(known, basis_functions=np.array([3.0 * len(f) for f in known.formula]))
    began = time.perf_counter()
    for _ in range(5):
        fit(known)
    assert (time.perf_counter() - began) / 5 < 0.02

"""Ensembles that do without a member: the rule, the planner, whole campaigns, late members, descent."""

from __future__ import annotations

import json
import random
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from support.campaigns import SITE, SLOTS, StopAfter, content, query

from hpcal.core.codec import unpack
from hpcal.core.errors import CampaignFailed, ConfigurationError, FailureClass, Interrupted, TaskFailure
from hpcal.engine import loop
from hpcal.engine import plan as p
from hpcal.engine.campaign import read_campaign
from hpcal.engine.dispatch import InlineDispatcher
from hpcal.engine.loop import Controller
from hpcal.engine.pairing import build_labeler
from hpcal.engine.simulation.dispatcher import SimulatedDispatcher
from hpcal.engine.simulation.faults import NO_FAULTS
from hpcal.engine.simulation.invariants import Watch
from hpcal.engine.simulation.physics import Nature
from hpcal.engine.simulation.violation import Violation
from hpcal.engine.simulation.world import Host, World
from hpcal.engine.start import begin, take_up
from hpcal.engine.tasks import run_attempt
from hpcal.engine.view import EnsembleView, TrainingView, View
from hpcal.potentials.morse_fit import MorseTrainer
from hpcal.report.lineage import trace
from hpcal.report.lineage_text import trace_text
from hpcal.report.status import campaign_status, status_text
from hpcal.store import campaigns, ensembles
from hpcal.store.database import Store
from hpcal.store.tables import DatasetRow, EnsembleRow, LevelOfTheoryRow, ModelRow
from hpcal.store.transitions import EnsembleState

APART = SLOTS | {"train": 4}
"""Each of the four members is a task of its own."""


# ── the key ──────────────────────────────────────────────────────────────────────────────────


def with_quorum(path: Path, quorum: int | str) -> Path:
    path.write_text(path.read_text().replace("tasks: {", f"tasks: {{quorum: {quorum}, "))
    return path


def test_by_default_three_quarters_make_an_ensemble_and_never_fewer_than_two(campaign_file):
    spec = read_campaign(campaign_file())
    found = {members: spec.quorum(members) for members in (1, 2, 3, 4, 5, 8, 12)}
    assert found == {1: 1, 2: 2, 3: 3, 4: 3, 5: 4, 8: 6, 12: 9}
    assert read_campaign(with_quorum(campaign_file(), "null")).quorum(8) == 6
    assert read_campaign(with_quorum(campaign_file(), 2)).quorum(4) == 2


@pytest.mark.parametrize(
    ("quorum", "message"),
    [(1, r"tasks\.quorum: .*no spread.*2 or more"), (5, r"tasks\.quorum: .*members is 4.*at most 4"),
     (0, r"tasks\.quorum")],
)  # fmt: skip
def test_a_quorum_that_cannot_be_is_refused_with_its_place(campaign_file, quorum, message):
    with pytest.raises(ConfigurationError, match=message):
        read_campaign(with_quorum(campaign_file(), quorum))


# ── the planner ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def training(campaign_file):
    """A view in which three of four members are there, and the campaign."""
    newest = EnsembleView(id=7, generation=1, state=EnsembleState.TRAINING, last_seq=16)
    view = View(
        labels=16,
        slots=APART,
        newest=newest,
        tasks={"train": 1},
        training=TrainingView(ensemble_id=7, members=4, trained=3, longest=100.0, waited=201.0),
    )
    return view, read_campaign(campaign_file())


def changed(view: View, **how) -> View:
    return replace(view, training=replace(view.training, **how))


def test_goes_on_once_the_others_have_had_twice_the_longest_training(training):
    view, spec = training
    assert p.plan(view, spec) == [p.GoOn(ensemble_id=7)]
    assert p.plan(changed(view, waited=199.0), spec) == []


def test_never_goes_on_without_the_quorum_or_without_a_measured_training(training):
    view, spec = training
    assert p.plan(changed(view, trained=2), spec) == []
    assert p.plan(changed(view, longest=None), spec) == []


def test_a_late_member_does_not_hold_up_the_end(training):
    view, spec = training
    assert p.plan(replace(view, labels=40), spec) == [p.GoOn(ensemble_id=7)]
    assert p.plan(changed(replace(view, labels=40), waited=0.0), spec) == []


# ── whole campaigns ──────────────────────────────────────────────────────────────────────────


@pytest.fixture
def diverging(monkeypatch):
    """Members of the numbers in this set diverge in training."""
    members: set[int] = set()
    real = MorseTrainer.fit
    failure = [FailureClass.PHYSICS]

    def fit(self, dataset, specs, deadline, checkpoint):
        if members.intersection(s.index for s in specs):
            raise TaskFailure(failure[0], f"training of members {[s.index for s in specs]} diverged")
        return real(self, dataset, specs, deadline, checkpoint)

    monkeypatch.setattr(MorseTrainer, "fit", fit)
    return members


def run(file: Path, root: Path, carry_out=run_attempt, slots=APART) -> str:
    dispatcher = InlineDispatcher(slots, carry_out)
    spec = read_campaign(file)
    if Store.begun(root):
        context = take_up(root, dispatcher, spec=spec, accept_changes=True)
    else:
        context, _ = begin(spec, root, dispatcher, SITE)
    try:
        return Controller(context).run()
    finally:
        context.store.release()
        context.store.close()


def told(root: Path) -> tuple[str, str]:
    """What status and trace say."""
    store = Store.read(root)
    try:
        return status_text(campaign_status(store)), trace_text(trace(store, "ensemble:1"))
    finally:
        store.close()


def test_one_task_a_member_where_there_is_a_slot_for_each(campaign_file, tmp_path):
    root = tmp_path / "run"
    with pytest.raises(Interrupted):
        run(campaign_file(), root, StopAfter(14))
    inputs = [json.loads(i) for (i,) in query(root, "SELECT inputs FROM task WHERE kind = 'train' LIMIT 4")]
    assert [[m["index"] for m in i["members"]] for i in inputs] == [[0], [1], [2], [3]]
    members = query(root, "SELECT member, task_id FROM model WHERE ensemble_id = 1 ORDER BY member")
    tasks = [i for (i,) in query(root, "SELECT id FROM task WHERE kind = 'train' ORDER BY id LIMIT 4")]
    assert members == list(enumerate(tasks))


@pytest.mark.slow
def test_a_member_that_diverges_is_missing_and_the_others_go_on(campaign_file, tmp_path, diverging):
    diverging.add(2)
    file, root = campaign_file(stop="{labels: 30, generations: 2}"), tmp_path / "run"
    run(file, root)
    states = query(root, "SELECT state, hash FROM ensemble ORDER BY id")
    assert len(states) >= 2
    assert {state for state, _ in states} <= {"promoted", "refused"}
    rows = query(root, "SELECT ensemble_id, member, path, missing FROM model ORDER BY ensemble_id, member")
    for _, member, path, missing in rows:
        assert (path is None) == (missing is not None) == (member == 2)
        assert member != 2 or missing == "physics: training of members [2] diverged"
    status, traced = told(root)
    assert "promoted, 3 of 4 members" in status
    assert "morse, 3 of 4 members" in traced
    assert "member 2, seed" in traced
    assert "missing: physics: training of members [2] diverged" in traced
    assert query(root, "SELECT count(*) FROM event WHERE kind = 'quorum'") == [(len(states),)]
    assert "3 of 4 members" in query(root, "SELECT message FROM event WHERE kind = 'promoted'")[0][0]
    # Scores of three members: the committee works with fewer.
    assert query(root, "SELECT count(*) FROM score WHERE force_std > 0")[0][0] > 0


@pytest.mark.slow
def test_a_campaign_without_a_member_is_the_same_after_an_interruption(campaign_file, tmp_path, diverging):
    diverging.add(1)
    file = campaign_file(stop="{labels: 30, generations: 2}")
    run(file, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(file, tmp_path / "run", StopAfter(9))
    for after in (1, 2, 7):
        with pytest.raises(Interrupted):
            run(file, tmp_path / "run", StopAfter(after))
    run(file, tmp_path / "run")
    assert content(tmp_path / "run") == content(tmp_path / "whole")


def member_of(assignment) -> int | None:
    """The member that an assignment trains; None for one of another kind."""
    if assignment.kind != "train":
        return None
    return unpack(Path(assignment.payload).read_bytes())["members"][0]["index"]


class StopAtTraining:
    """Carries assignments out and asks for a stop before a training of a member begins."""

    def __init__(self, member: int) -> None:
        self.member = member

    def __call__(self, assignment):
        if member_of(assignment) == self.member:
            Path(assignment.stop_file).touch()
        return run_attempt(assignment)


@pytest.mark.slow
@pytest.mark.parametrize("member", [1, 3])
def test_a_quorum_that_is_raised_in_the_middle_fails_the_ensemble_and_not_the_campaign(
    campaign_file, tmp_path, diverging, member
):
    """Member 0 has diverged, the others are out; from now on all are wanted."""
    diverging.add(0)
    file, root = campaign_file(stop="{labels: 30, generations: 1}"), tmp_path / "run"
    with pytest.raises(Interrupted):
        run(file, root, StopAtTraining(member))
    diverging.clear()
    run(with_quorum(file, 4), root)
    assert query(root, "SELECT state FROM ensemble ORDER BY id")[:2] == [("failed",), ("promoted",)]
    # It failed before anything went out again: those that were out are not trained for nothing.
    rest = f"SELECT missing FROM model WHERE ensemble_id = 1 AND member >= {member}"
    assert query(root, rest) == [("not needed: ensemble 1 has failed",)] * (4 - member)
    assert query(root, "SELECT count(*) FROM task WHERE state IN ('queued', 'dispatched')") == [(0,)]


class Killed(BaseException):
    """The controller is gone."""


def killed_after_training(assignment):
    """Takes the controller with it once member 2 is trained, so that nobody hears of that."""
    report = run_attempt(assignment)
    if member_of(assignment) == 2:
        raise Killed
    return report


@pytest.mark.slow
def test_a_quorum_that_is_raised_over_a_training_that_nobody_heard_of_keeps_its_result(
    campaign_file, tmp_path, diverging
):
    """Its results are adopted by a controller for which the ensemble has failed."""
    diverging.add(0)
    file, root = campaign_file(stop="{labels: 30, generations: 1}"), tmp_path / "run"
    with pytest.raises(Killed):
        run(file, root, killed_after_training)
    diverging.clear()
    run(with_quorum(file, 4), root)
    assert query(root, "SELECT state FROM ensemble ORDER BY id")[:2] == [("failed",), ("promoted",)]
    found = "SELECT member, state FROM model JOIN task ON task.id = task_id WHERE ensemble_id = 1"
    assert query(root, f"{found} ORDER BY member") == [
        (0, "failed"), (1, "done"), (2, "done"), (3, "failed")
    ]  # fmt: skip
    assert query(root, "SELECT path IS NULL FROM model WHERE ensemble_id = 1 AND member = 2") == [(0,)]


def test_below_the_quorum_the_ensemble_fails_and_what_is_out_ends(campaign_file, tmp_path, diverging):
    diverging.update({0, 1})
    root = tmp_path / "run"
    with pytest.raises(CampaignFailed, match=r"stage train: the last 3 ensembles failed: .* diverged"):
        run(campaign_file(), root)
    assert query(root, "SELECT state FROM ensemble") == [("failed",)] * 3
    assert query(root, "SELECT count(*) FROM task WHERE state IN ('queued', 'dispatched')") == [(0,)]
    # The others were not trained for nothing.
    missing = query(root, "SELECT missing FROM model WHERE ensemble_id = 1 AND member > 1")
    assert missing == [("not needed: ensemble 1 has failed",)] * 2


@pytest.mark.slow
def test_a_stated_quorum_of_all_lets_one_member_fail_the_ensemble(campaign_file, tmp_path, diverging):
    diverging.add(3)
    with pytest.raises(CampaignFailed, match="the last 3 ensembles failed"):
        run(with_quorum(campaign_file(), 4), tmp_path / "run")


def test_a_fault_of_the_program_stops_the_stage_whatever_the_quorum(campaign_file, tmp_path, monkeypatch):
    real = MorseTrainer.fit

    def fit(self, dataset, specs, deadline, checkpoint):
        if specs[0].index == 3:
            raise ValueError("a fault")
        return real(self, dataset, specs, deadline, checkpoint)

    monkeypatch.setattr(MorseTrainer, "fit", fit)
    with pytest.raises(CampaignFailed, match=r"stage train: task .* by a fault of hpcal or of a plugin"):
        run(campaign_file(), tmp_path / "run")
    assert query(tmp_path / "run", "SELECT state FROM ensemble") == [("failed",)]


# ── late members ─────────────────────────────────────────────────────────────────────────────


@contextmanager
def clock_of(world: World):
    with (
        patch.object(time, "time", lambda: world.clock),
        patch.object(time, "monotonic", lambda: world.clock),
        patch.object(time, "sleep", lambda seconds: world.advance(world.clock + seconds)),
        patch.object(loop, "BEAT_SECONDS", 3600.0),
    ):
        yield


def simulated(file: Path, root: Path, slowness: float, *, virtual: bool = False) -> list[str]:
    """Runs a campaign on virtual hosts and watches every promise; what it said.

    Member 3 is trained on a slow host.
    """
    spec = read_campaign(file)
    nature = Nature(seed=1, level=build_labeler(spec).level)
    world = World(rng=random.Random(5), nature=nature, rates=NO_FAULTS)
    real = world.begin

    def slow(run) -> None:
        if run.assignment.kind == "train":
            members = unpack(Path(run.assignment.payload).read_bytes())["members"]
            if members[0]["index"] == 3:
                run.host = Host(name="slow", slowness=slowness)
        real(run)

    world.begin = slow
    dispatcher = SimulatedDispatcher(world, APART, virtual=virtual)
    with clock_of(world):
        context, _ = begin(spec, root, dispatcher, SITE)
        watch = Watch(root, nature, spec.quorum)
        world.on_work = watch.spent
        watching = Watching(watch)
        try:
            Controller(context, watching).run()
            watch.look()
        finally:
            watch.close()
            context.store.release()
            context.store.close()
    return watching.said


class Watching:
    """Looks at the store whenever the planner has seen it, and keeps what is said."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.said: list[str] = []

    def message(self, text: str) -> None:
        """Keeps it."""
        self.said.append(text)

    def update(self, view: View) -> None:
        self.watch.look()


LONG = "{labels: 200, generations: 4}"


@pytest.mark.slow
def test_a_late_member_is_not_waited_for_and_dropped_when_it_comes(campaign_file, tmp_path):
    root = tmp_path / "run"
    said = simulated(campaign_file(stop=LONG), root, slowness=12.0)
    missing = query(root, "SELECT ensemble_id, member, missing FROM model WHERE missing IS NOT NULL")
    # The first one is waited for: nothing else happens meanwhile, and a virtual clock jumps.
    assert [row[:2] for row in missing] == [(2, 3), (3, 3), (4, 3)]
    assert missing[0][2] == "late: generation 2 went on with 3 of 4 members"
    why = f"without members 3 ({missing[0][2]})"
    assert [text.split(" trained: ")[0] for text in said if why in text] == ["generation 2"]
    late = query(root, "SELECT task_id, message, data FROM event WHERE kind = 'late_member' ORDER BY id")
    assert late
    task, message, data = late[0]
    assert message.startswith("members 3 of ensemble 2 (generation 2) came after")
    assert "dropped" in message
    assert [path.split("/")[1] for path in json.loads(data)["files"]] == ["ensemble-2"]
    assert query(root, f"SELECT state FROM task WHERE id = {task}") == [("failed",)]
    assert query(root, f"SELECT state FROM attempt WHERE task_id = {task}") == [("lost",)]
    assert query(root, "SELECT member FROM model WHERE ensemble_id = 2 AND path IS NOT NULL") == [
        (0,), (1,), (2,)
    ]  # fmt: skip


@pytest.mark.slow
def test_a_member_a_little_slower_than_the_others_is_waited_for(campaign_file, tmp_path):
    root = tmp_path / "run"
    simulated(campaign_file(stop=LONG), root, slowness=1.5)
    assert query(root, "SELECT count(*) FROM model WHERE path IS NULL") == [(0,)]


@pytest.mark.slow
def test_where_durations_are_virtual_nobody_is_late(campaign_file, tmp_path):
    root = tmp_path / "run"
    simulated(campaign_file(stop=LONG), root, slowness=50.0, virtual=True)
    assert query(root, "SELECT count(*) FROM model WHERE path IS NULL") == [(0,)]


@pytest.mark.slow
def test_the_watch_finds_an_ensemble_below_its_quorum_and_one_that_changes(campaign_file, tmp_path):
    root = tmp_path / "run"
    simulated(campaign_file(stop="{labels: 200, generations: 2}"), root, slowness=12.0)
    with pytest.raises(Violation, match="an ensemble in use has its quorum; ensemble 2 has 3 of 4"):
        Watch(root, Nature(seed=1, level=None), lambda members: members)._quorums()
    watch = Watch(root, Nature(seed=1, level=None), lambda _members: 2)
    watch._quorums()
    store = Store.open(root)
    store.acquire()
    with store.write() as session:
        row = ensembles.members_of(session, 2)[3]
        row.path, row.sha256, row.missing = "models/late", "0" * 64, None
    store.release()
    store.close()
    with pytest.raises(Violation, match="a trained ensemble never changes"):
        watch._quorums()
    watch.close()


# ── descent ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def line(tmp_path):
    """A writing session, and a function that adds an ensemble with some of five members."""
    store = Store.create(tmp_path)
    with store.write() as session:
        campaigns.add_campaign(session, name="line", spec={}, spec_folder=".", site={})
        session.add(LevelOfTheoryRow(id=1, hash="h", record={}))
        session.flush()
        session.add(
            DatasetRow(
                id=1, generation=1, level_of_theory_id=1, last_seq=1, n_train=1, n_validation=0, created=0.0
            )
        )
        session.flush()

        def add(generation: int, there: set[int], before: int | None, state=EnsembleState.PROMOTED):
            row = EnsembleRow(
                generation=generation, state=state, kind="morse", dataset_id=1, predecessor_id=before,
                metric="force_std", created=0.0,
            )  # fmt: skip
            session.add(row)
            session.flush()
            for member in range(5):
                path = f"g{generation}-m{member}" if member in there else None
                session.add(ModelRow(ensemble_id=row.id, member=member, seed=0, metrics={}, path=path))
            session.flush()
            return row

        yield session, add
    store.close()


def starts(session, ensemble) -> dict[int, str]:
    return {k: row.path for k, row in sorted(ensembles.starts(session, ensemble, range(5)).items())}


def test_a_member_goes_on_from_the_newest_of_its_own_line(line):
    session, add = line
    first = add(1, {0, 1, 2, 3, 4}, None)
    second = add(2, {0, 2, 4}, first.id)
    third = add(3, set(), second.id, EnsembleState.TRAINING)
    assert starts(session, third) == {0: "g2-m0", 1: "g1-m1", 2: "g2-m2", 3: "g1-m3", 4: "g2-m4"}
    second.state = EnsembleState.FAILED
    assert starts(session, third) == {k: f"g1-m{k}" for k in range(5)}


def test_without_a_line_of_its_own_it_goes_on_from_the_nearest(line):
    session, add = line
    first = add(1, {0, 2}, None)
    second = add(2, set(), first.id, EnsembleState.TRAINING)
    assert starts(session, second) == {0: "g1-m0", 1: "g1-m0", 2: "g1-m2", 3: "g1-m2", 4: "g1-m2"}


def test_the_first_generation_begins_anew(line):
    session, add = line
    assert starts(session, add(1, set(), None, EnsembleState.TRAINING)) == {}

"""What is done about failures: the table, hosts set aside, and what a campaign makes of them."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from support.campaigns import SITE, SLOTS, query, run_inline

from hpcal.core.codec import unpack
from hpcal.core.errors import CampaignFailed, ConfigurationError, FailureClass, TaskFailure
from hpcal.core.settings import Document, validate
from hpcal.engine.campaign import read_campaign
from hpcal.engine.dispatch import Assignment, InlineDispatcher, Report
from hpcal.engine.failures import (
    POLICIES,
    Answer,
    Limits,
    Tried,
    answer_structure,
    answer_task,
    bad_host,
)
from hpcal.engine.loop import Controller
from hpcal.engine.start import begin
from hpcal.engine.tasks import STAGES, WORK, run_attempt
from hpcal.engine.work import quantum
from hpcal.sites.schema import Site
from hpcal.store import failures
from hpcal.store.database import Store
from hpcal.store.failures import HostAttempt

LIMITS = Limits(max_failures=2, max_losses=5)
F = FailureClass


# ── the table ────────────────────────────────────────────────────────────────────────────────


def test_every_class_has_answers_and_every_kind_of_task_a_stage():
    assert set(POLICIES) == set(FailureClass)
    assert set(STAGES) == set(WORK)


@pytest.mark.parametrize(
    ("failure", "structure", "task"),
    [(F.INPUT, Answer.QUARANTINE, Answer.GIVE_UP), (F.PHYSICS, Answer.REJECT, Answer.GIVE_UP)],
)
def test_input_and_physics_are_never_tried_again(failure, structure, task):
    for tried in (Tried(), Tried(failures=1), Tried(failures=9, larger=True)):
        assert answer_structure(failure, tried, LIMITS) is structure
        assert answer_task(failure, tried, LIMITS) is task


def answers(failure, tried_of, n):
    return [answer_task(failure, tried_of(i), LIMITS) for i in range(1, n + 1)]


def test_a_bug_is_retried_once_then_the_stage_stops():
    assert answers(F.BUG, lambda n: Tried(failures=n), 2) == [Answer.AGAIN, Answer.STOP]
    assert answer_structure(F.BUG, Tried(failures=2), LIMITS) is Answer.QUARANTINE


def test_a_node_is_left_for_another_up_to_max_losses():
    found = answers(F.NODE, lambda n: Tried(losses=n), 5)
    assert found == [Answer.ELSEWHERE] * 4 + [Answer.GIVE_UP]


def test_a_lack_of_room_asks_for_a_larger_slot_until_there_is_none():
    one_pool = [answer_task(F.RESOURCE, Tried(size=s), LIMITS) for s in range(2)]
    assert one_pool == [Answer.LARGER, Answer.GIVE_UP]
    # Further than max_failures where the site has larger pools still.
    chain = [answer_task(F.RESOURCE, Tried(size=s, larger=s < 3), LIMITS) for s in range(4)]
    assert chain == [Answer.LARGER] * 3 + [Answer.GIVE_UP]
    assert answer_structure(F.RESOURCE, Tried(size=1), LIMITS) is Answer.QUARANTINE


# ── hosts ────────────────────────────────────────────────────────────────────────────────────


def ending(task: int, dispatched: float, recorded: float, *, node: bool = True, reason="disk full", of=()):
    return HostAttempt(
        task_id=task,
        dispatched=dispatched,
        recorded=recorded,
        node=node,
        reason=reason,
        structures=frozenset(of),
    )


def test_a_host_that_fails_three_attempts_one_after_the_other_is_bad():
    row = [ending(1, 0, 1), ending(2, 2, 3), ending(1, 4, 5, reason="cannot write")]
    assert bad_host(row[:2]) is None
    found = bad_host(row[::-1])
    assert found is not None
    assert (found.count, found.reason) == (3, "cannot write")


def test_attempts_that_fall_together_with_their_node_count_once():
    assert bad_host([ending(i, 0, 10 + i / 10) for i in range(8)]) is None


def test_a_success_clears_a_host():
    row = [ending(1, 0, 1), ending(2, 2, 3), ending(3, 3, 4, node=False), ending(4, 5, 6), ending(5, 7, 8)]
    assert bad_host(row) is None


def test_one_task_that_kills_its_worker_each_time_does_not_condemn_the_host():
    assert bad_host([ending(1, 2 * i, 2 * i + 1) for i in range(5)]) is None


def test_one_structure_that_kills_its_worker_in_task_after_task_does_not_condemn_the_host():
    def row(*structures):
        return [ending(i, 2 * i, 2 * i + 1, of=of) for i, of in enumerate(structures)]

    assert bad_host(row({7, 8}, {7}, {7}, {7, 9})) is None
    assert bad_host(row({7, 8}, {7}, {9})) is not None
    assert bad_host(row({7}, {7}, set())) is not None


class Told:
    """The first label attempts fail on one host, whose clock is far ahead or behind."""

    def __init__(self, ahead: float) -> None:
        self.ahead, self.left = ahead, 3

    def __call__(self, assignment: Assignment) -> Report:
        if assignment.kind == "bootstrap":
            return run_attempt(assignment)
        if assignment.kind == "label" and self.left:
            self.left -= 1
            at = time.time() + self.ahead
            return Report(
                attempt_id=assignment.attempt_id, failure=F.NODE, message="no", host="n1", start=at, end=at
            )
        return run_attempt(assignment)


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [-1e6, pytest.param(1e6, marks=pytest.mark.slow)])
def test_the_clock_of_a_host_does_not_matter(campaign_file, tmp_path, ahead):
    root = tmp_path / "run"
    run_inline(campaign_file(), root, Told(ahead))
    store = Store.read(root)
    with store.session() as session:
        found = failures.attempts_on(session, "n1", epoch=1)
    store.close()
    assert len(found) == 3
    now = time.time()
    assert all(now - 600 < one.dispatched <= one.recorded <= now for one in found)
    row = sorted(found, key=lambda one: one.dispatched)
    assert all(b.dispatched >= a.recorded for a, b in pairwise(row) if a.task_id == b.task_id)


# ── sites ────────────────────────────────────────────────────────────────────────────────────


def site(**larger: str) -> Site:
    pools = {name: {} for name in ("label", "sample", "train", "big", "huge")}
    for name, value in larger.items():
        pools[name] = {"larger": value}
    return validate(Site, Document({"pools": pools}, {}, "site.yaml"))


def test_larger_pools_are_climbed_one_by_one():
    found = site(label="big", big="huge")
    assert [found.larger("label", n) for n in range(4)] == ["label", "big", "huge", "huge"]
    assert found.larger("score", 0) == "sample"
    assert found.larger("train", 2) == "train"


@pytest.mark.parametrize(
    ("larger", "sentence"),
    [
        ({"label": "bg"}, "larger names 'bg'.*'big'"),
        ({"label": "label"}, "circle"),
        ({"label": "big", "big": "huge", "huge": "label"}, "circle"),
    ],
)
def test_larger_pools_that_lead_nowhere_are_refused(larger, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        site(**larger)


# ── whole campaigns ──────────────────────────────────────────────────────────────────────────


class Fails:
    """Carries assignments out, but for those that a rule gives a report for."""

    def __init__(self, rule) -> None:
        self.rule = rule
        self.seen: list[Assignment] = []

    def __call__(self, assignment: Assignment) -> Report:
        self.seen.append(assignment)
        how = self.rule(assignment)
        return run_attempt(assignment) if how is None else Report(attempt_id=assignment.attempt_id, **how)


class Tiered(InlineDispatcher):
    """A site in one process whose pool for labels has a larger one."""

    def pool(self, wanted: str, size: int = 0) -> str:
        return "big" if size and wanted == "label" else super().pool(wanted)


def run_tiered(file: Path, root: Path, run) -> str:
    context, _ = begin(read_campaign(file), root, Tiered({**SLOTS, "big": 1}, run), SITE)
    try:
        return Controller(context).run()
    finally:
        context.store.release()
        context.store.close()


@pytest.fixture
def one_breaks(monkeypatch):
    """Gives the label of one structure a failure of a class, in the pools that are named."""

    def install(failure: FailureClass, unlucky: int, within=lambda work: True) -> list[int]:
        calls: list[int] = []
        real = quantum._one_label

        def one(labeler, structure, work):
            items = work.inputs["structures"]
            number = next(i["id"] for i in items if i["structure"] is structure)
            calls.append(number)
            if number == unlucky and within(work):
                return {"failure": failure, "message": f"made up {failure}"}
            return real(labeler, structure, work)

        monkeypatch.setattr(quantum, "_one_label", one)
        return calls

    return install


def test_a_structure_that_runs_out_of_memory_goes_alone_to_the_larger_pool(
    campaign_file, tmp_path, one_breaks
):
    calls = one_breaks(F.RESOURCE, 5, lambda work: work.inputs["structures"][0]["id"] != 5)
    root, run = tmp_path / "run", Fails(lambda a: None)
    run_tiered(campaign_file(stop="{labels: 16}"), root, run)
    assert query(root, "SELECT state FROM structure WHERE id = 5") == [("labelled",)]
    # The others of its chunk were labelled once; it was tried twice, the second time in the larger pool.
    assert sorted(calls.count(i) for i in set(calls)) == [1] * (len(set(calls)) - 1) + [2]
    (big,) = [a for a in run.seen if a.pool == "big"]
    assert big.size == 1
    assert query(root, f"SELECT pool, size, state FROM task WHERE id = {big.task_id}") == [("big", 1, "done")]
    assert query(root, "SELECT count(*) FROM event WHERE kind = 'enlarged'") == [(1,)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("failure", "state", "times"),
    [
        (F.INPUT, "quarantined", 1),
        (F.PHYSICS, "rejected", 1),
        (F.RESOURCE, "quarantined", 2),
        (F.BUG, "quarantined", 2),
        (F.NODE, "quarantined", 5),
    ],
)
def test_one_structure_that_always_breaks_is_set_aside_and_nothing_else(
    campaign_file, tmp_path, one_breaks, failure, state, times
):
    calls = one_breaks(failure, 5)
    root = tmp_path / "run"
    run_inline(campaign_file(stop="{labels: 16}"), root)
    ((found, reason),) = query(root, "SELECT state, reason FROM structure WHERE id = 5")
    assert (found, calls.count(5)) == (state, times)
    assert f"{failure}: made up" in reason
    assert query(root, "SELECT failure_class, structure_id FROM rejection") == [(str(failure), 5)]
    assert query(root, "SELECT state FROM campaign") == [("finished",)]


class Kills:
    """Attempts that hold a structure are reported as lost, or fail, when they come to it."""

    def __init__(self, structure_id: int, how: dict, until: int = 10**6) -> None:
        self.structure_id, self.how, self.until, self.seen = structure_id, how, until, []

    def __call__(self, assignment: Assignment) -> Report:
        if assignment.kind in ("label", "relax"):
            ids = [item["id"] for item in unpack(Path(assignment.payload).read_bytes())["structures"]]
            if self.structure_id in ids and len(self.seen) < self.until:
                self.seen.append(ids)
                return Report(attempt_id=assignment.attempt_id, host="n1", **self.how)
        return run_attempt(assignment)


LOST = {"lost": True, "message": "manager lost"}


@pytest.mark.parametrize(
    ("how", "reason", "state", "times"),
    [
        (LOST, "node: manager lost", "quarantined", 10),
        ({"failure": F.INPUT, "message": "bad"}, "input: bad", "quarantined", 2),
        ({"failure": F.PHYSICS, "message": "bad"}, "physics: bad", "rejected", 2),
        ({"failure": F.RESOURCE, "message": "walltime"}, "resource: walltime", "quarantined", 3),
    ],
)
def test_a_structure_that_kills_its_worker_is_found_and_set_aside_and_nothing_else(
    campaign_file, tmp_path, how, reason, state, times
):
    root, run = tmp_path / "run", Kills(5, how)
    assert "label budget" in run_inline(campaign_file(stop="{labels: 16}"), root, run)
    assert query(root, "SELECT state, reason FROM structure WHERE id = 5") == [(state, reason)]
    assert query(root, "SELECT structure_id FROM rejection") == [(5,)]
    assert len(run.seen) == times
    # Those that were with it got their labels, once they were apart from it.
    assert len(run.seen[0]) > 1
    assert run.seen[-1] == [5]
    beside = ", ".join(str(i) for i in run.seen[0] if i != 5)
    assert query(root, f"SELECT DISTINCT state FROM structure WHERE id IN ({beside})") == [("labelled",)]
    assert query(root, "SELECT count(*) FROM structure WHERE state = 'quarantined' AND id != 5") == [(0,)]
    assert query(root, "SELECT count(*) FROM event WHERE kind = 'host_set_aside'") == [(0,)]
    assert query(root, "SELECT state FROM campaign") == [("finished",)]


def test_structures_of_a_task_that_was_only_unlucky_all_get_their_labels(campaign_file, tmp_path):
    root, run = tmp_path / "run", Kills(5, LOST, until=5)
    run_inline(campaign_file(stop="{labels: 16}"), root, run)
    assert query(root, "SELECT state FROM structure WHERE id = 5") == [("labelled",)]
    assert query(root, "SELECT count(*) FROM rejection") == [(0,)]


def test_failures_of_nodes_do_not_use_up_the_tries_of_a_structure(campaign_file, tmp_path, monkeypatch):
    real, seen = quantum._one_label, []

    def one(labeler, structure, work):
        number = next(i["id"] for i in work.inputs["structures"] if i["structure"] is structure)
        if number == 5 and len(seen) < 4:
            seen.append((F.NODE, F.NODE, F.NODE, F.BUG)[len(seen)])
            return {"failure": seen[-1], "message": f"made up {seen[-1]}"}
        return real(labeler, structure, work)

    monkeypatch.setattr(quantum, "_one_label", one)
    root = tmp_path / "run"
    run_inline(campaign_file(stop="{labels: 16}"), root)
    assert len(seen) == 4
    assert query(root, "SELECT state, failures FROM structure WHERE id = 5") == [("labelled", 4)]


@pytest.mark.slow
def test_a_task_that_runs_out_of_time_is_given_more_and_then_given_up(campaign_file, tmp_path):
    file, root = campaign_file(), tmp_path / "run"
    run = Fails(lambda a: {"failure": F.RESOURCE, "message": "out of memory"} if a.kind == "train" else None)
    with pytest.raises(CampaignFailed, match=r"stage train: the last 3 .* failed: out of memory"):
        run_inline(file, root, run)
    assert [a.size for a in run.seen if a.kind == "train"] == [0, 1] * 3
    assert query(root, "SELECT DISTINCT failure_class FROM task WHERE state = 'failed'") == [("resource",)]


@pytest.mark.slow
def test_a_bug_stops_its_stage_with_its_traceback_kept(campaign_file, tmp_path, monkeypatch):
    def broken(*args):
        raise ZeroDivisionError("in a plugin")

    root = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr("hpcal.engine.work.learning.evaluate", broken)
        with pytest.raises(
            CampaignFailed, match=r"stage evaluate: task \d+ .*ZeroDivisionError: in a plugin"
        ):
            run_inline(campaign_file(), root)
    ((log,),) = query(
        root,
        "SELECT log FROM attempt JOIN task ON task.id = task_id WHERE task.state = 'failed' AND number = 2",
    )
    assert "Traceback" in (root / log).read_text()
    assert "ZeroDivisionError" in query(root, "SELECT message FROM event WHERE kind = 'failed'")[0][0]
    run_inline(campaign_file(), root)
    assert query(root, "SELECT state FROM campaign") == [("finished",)]


def test_a_labeler_that_fails_on_everything_stops_the_campaign_with_the_cause(
    campaign_file, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        quantum, "_one_label", lambda *a: {"failure": F.RESOURCE, "message": "killed: out of memory"}
    )
    root = tmp_path / "run"
    with pytest.raises(CampaignFailed, match="out of memory"):
        run_inline(campaign_file(), root)
    ((state, reason),) = query(root, "SELECT state, stop_reason FROM campaign")
    assert state == "failed"
    assert "killed: out of memory" in reason


def test_seeds_that_cannot_be_relaxed_are_named_with_the_cause(campaign_file, tmp_path, monkeypatch):
    def relax(*args):
        raise TaskFailure(F.PHYSICS, "SCF not converged")

    monkeypatch.setattr(quantum, "relax", relax)
    with pytest.raises(CampaignFailed, match=r"relax .*SCF not converged"):
        run_inline(campaign_file(), tmp_path / "run")


class Hosted(InlineDispatcher):
    """Inline, with hosts that can be set aside."""

    def __init__(self, slots, run, hosts):
        super().__init__(slots, run)
        self.hosts, self.aside = list(hosts), []

    def set_aside(self, host):
        self.aside.append(host)
        self.hosts.remove(host)
        return () if self.hosts else ("label", "sample", "train")


def run_hosted(file, root, hosts, bad, sound=()):
    turn = iter(range(10**6))

    def run(assignment):
        host = dispatcher.hosts[next(turn) % len(dispatcher.hosts)]
        if host in bad and assignment.kind not in sound:
            return Report(
                attempt_id=assignment.attempt_id, failure=F.NODE, message="no space left", host=host
            )
        return replace(run_attempt(assignment), host=host)

    dispatcher = Hosted(SLOTS, run, hosts)
    context, _ = begin(read_campaign(file), root, dispatcher, SITE)
    try:
        return Controller(context).run(), dispatcher
    finally:
        context.store.release()
        context.store.close()


@pytest.mark.slow
def test_a_host_that_fails_repeatedly_is_set_aside_and_the_others_go_on(campaign_file, tmp_path):
    root = tmp_path / "run"
    _, dispatcher = run_hosted(campaign_file(), root, ["n1", "n2", "n3"], bad={"n2"})
    assert dispatcher.aside == ["n2"]
    ((message, data),) = query(root, "SELECT message, data FROM event WHERE kind = 'host_set_aside'")
    assert "n2" in message
    assert '"count": 3' in data
    assert query(root, "SELECT state FROM campaign") == [("finished",)]
    assert query(root, "SELECT count(*) FROM attempt WHERE host = 'n2'") == [(3,)]


def test_the_last_host_to_be_set_aside_stops_the_campaign_with_the_cause(campaign_file, tmp_path):
    root = tmp_path / "run"
    with pytest.raises(CampaignFailed, match=r"host n\d .*no space left.*no other host"):
        run_hosted(
            campaign_file(), root, ["n1", "n2"], bad={"n1", "n2"}, sound=("relax", "curvature", "bootstrap")
        )
    ((state, reason),) = query(root, "SELECT state, stop_reason FROM campaign")
    assert state == "failed"
    assert "no space left" in reason


@pytest.mark.slow
def test_where_no_node_ever_relaxed_a_seed_the_seed_is_not_blamed(campaign_file, tmp_path):
    root = tmp_path / "run"
    with pytest.raises(CampaignFailed, match=r"stage relax: the last 3 tasks failed: no space left"):
        run_hosted(campaign_file(), root, ["n1", "n2"], bad={"n1", "n2"})
    assert query(root, "SELECT DISTINCT state FROM structure") == [("waiting",)]
    run_inline(campaign_file(), root)
    assert query(root, "SELECT state FROM campaign") == [("finished",)]


# ── hosts under Parsl ────────────────────────────────────────────────────────────────────────


class Status:
    terminal = False


class Executor:
    """What of an executor of Parsl is asked for when a host is set aside."""

    label = "label"

    def __init__(self, blocks: int, max_blocks: int) -> None:
        self.blocks_to_job_id = {str(i): f"job{i}" for i in range(blocks)}
        self.held: list[str] = []
        self.cancelled: list[str] = []
        self.provider = self
        self.max_blocks = max_blocks

    @property
    def status_facade(self):
        return {block: Status() for block, job in self.blocks_to_job_id.items() if job not in self.cancelled}

    def _hold_block(self, block):
        self.held.append(block)

    def cancel(self, jobs):
        self.cancelled += jobs
        return [True] * len(jobs)


def hosts_of(executor: Executor, *, local: bool = False):
    """The watch of a pool's hosts, which ends blocks at once."""
    from hpcal.engine.parsl_blocks import PoolBlocks
    from hpcal.engine.parsl_watch import PoolHosts

    return PoolHosts(blocks=PoolBlocks(executor=executor, beside=lambda work: work()), local=local)


def report_from(host: str, block: str) -> Report:
    return Report(attempt_id=1, host=host, block=block)


def test_blocks_on_a_host_set_aside_are_held_and_replaced():
    executor = Executor(blocks=3, max_blocks=3)
    hosts = hosts_of(executor)
    for host, block in (("n1", "0"), ("n2", "1"), ("n2", "2")):
        hosts.reported(report_from(host, block))
    assert hosts.set_aside("n2")
    assert (executor.held, executor.cancelled) == (["1", "2"], ["job1", "job2"])
    # The scheduler gives the same host again: its block goes as soon as it is known.
    executor.blocks_to_job_id["3"] = "job3"
    hosts.reported(report_from("n2", "3"))
    assert executor.cancelled == ["job1", "job2", "job3"]
    hosts.reported(report_from("n1", "0"))
    assert executor.held == ["1", "2", "3"]


def test_a_pool_whose_only_host_is_set_aside_says_so():
    import socket

    full = hosts_of(Executor(blocks=1, max_blocks=1))
    full.reported(report_from("n1", "0"))
    assert not full.set_aside("n1")
    growing = hosts_of(Executor(blocks=1, max_blocks=2))
    growing.reported(report_from("n1", "0"))
    assert growing.set_aside("n1")
    assert not hosts_of(Executor(1, 1), local=True).set_aside(socket.gethostname())

"""Whole campaigns under thousands of seeded faults keep every promise, and the checks can fail."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from hpcal.core.walker import Split
from hpcal.engine import claims, completions, label_records, loop, records
from hpcal.engine.completions import Completions
from hpcal.engine.loop import Controller
from hpcal.engine.simulate import main, scratch
from hpcal.engine.simulation.faults import Fate
from hpcal.engine.simulation.history import measure, run_history
from hpcal.engine.simulation.violation import Violation
from hpcal.engine.simulation.world import spool_record, spool_start
from hpcal.engine.spool import SpoolWriter
from hpcal.store import ensembles, labels, queries, walkers
from hpcal.store import siblings as store_siblings
from hpcal.store.lease import Lease
from hpcal.store.tables import TaskRow

CHUNK = 50
COVERING = 300
"""Histories, of the two thousand, in which everything happens that can."""
STEPS = {
    f"{when} {what}"
    for when in ("before", "after")
    for what in ("a file", "a removal", "a submission", "waiting", "the lease", "the store is opened")
} | {"before a transaction", "before a commit", "committed"}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with scratch() as made:
        yield Path(made)


def play(seeds: range, folder: Path) -> Any:
    return measure(seeds, folder, folder / "kinds")[0]


@pytest.mark.parametrize("first", [pytest.param(first, marks=pytest.mark.slow) for first in (0, 20)])
def test_histories_keep_every_promise(first, folder):
    total = play(range(first, first + 20), folder)
    assert total.commits > 15
    assert total.ends["finished"] + total.ends["nothing to learn from"] >= 15


@pytest.mark.histories
@pytest.mark.parametrize("first", range(1000, 3000 - COVERING, CHUNK))
def test_two_thousand_histories_keep_every_promise(first, folder):
    total = play(range(first, first + CHUNK), folder)
    assert total.ends["finished"] + total.ends["nothing to learn from"] >= CHUNK


@pytest.mark.histories
def test_histories_meet_every_fault_and_die_at_every_step(folder):
    total = play(range(5000, 5000 + COVERING), folder)
    assert set(total.fates) == {str(fate) for fate in Fate}
    assert set(total.kills) == STEPS
    assert {"disk full", "fenced", "stopped", "failed", "finished"} <= set(total.ends)
    assert total.damaged


@pytest.mark.slow
def test_a_seed_gives_one_history(folder):
    for seed in (3, 11, 42):
        once, again = (run_history(seed, folder, folder / "kinds") for _ in range(2))
        assert once.steps == again.steps
        assert once.commits == again.commits
    assert run_history(12, folder, folder / "kinds").steps != once.steps


def test_the_command_replays_a_history(capsys):
    assert main(["--seed", "3", "--verbose"]) == 0
    out = capsys.readouterr().out
    assert "finished: " in out
    assert "history 3: kept every promise" in out


def test_virtual_hosts_write_the_bytes_of_real_ones(tmp_path):
    values = [{"structure_id": 7, "failure": "node", "message": "é"}, {"end": True}]
    with SpoolWriter(tmp_path / "real", attempt=5, epoch=2) as writer:
        for value in values:
            writer.append(value)
    virtual = spool_start(5, 2) + b"".join(map(spool_record, values))
    assert (tmp_path / "real").read_bytes() == virtual


# ── the checks can fail ──────────────────────────────────────────────────────────────────────


def files_go_before_the_commit() -> AbstractContextManager[Any]:
    function = Completions._reported

    def reported(self: Completions, session: Any, reports: Any, after: Any) -> Any:
        messages = function(self, session, reports, after)
        self._tidy(after)
        return messages

    return patch.object(Completions, "_reported", reported)


def a_late_member_of_a_walker_counts_twice() -> AbstractContextManager[Any]:
    function = records.walkers.record_segment

    def twice(*args: Any, **options: Any) -> Any:
        row = function(*args, **options)
        row.start_step += 1
        return row

    return patch.object(walkers, "record_segment", twice)


def nothing_is_dispatched_again() -> AbstractContextManager[Any]:
    return patch.object(Controller, "_dispatch_queued", lambda _self: None)


def what_kills_its_worker_waits_again() -> AbstractContextManager[Any]:
    def waits(session: Any, _context: Any, attempt: Any, *_: Any) -> str:
        claims.give_back(session, [session.get_one(TaskRow, attempt.task_id)])
        return ""

    return patch.object(claims, "_set_aside", waits)


def selected_ones_stay_alone() -> AbstractContextManager[Any]:
    function = records.siblings.expand

    def one_by_one(session: Any, policy: Any, ids: Any, **options: Any) -> None:
        if len(ids) == 1:
            function(session, policy, ids, **options)

    return patch.object(records.siblings, "expand", one_by_one)


def the_highest_is_kept() -> AbstractContextManager[Any]:
    function = labels.energies_of

    def turned_over(*args: Any) -> dict[int, float]:
        return {structure_id: -energy for structure_id, energy in function(*args).items()}

    return patch.object(labels, "energies_of", turned_over)


def states_of_another_split() -> AbstractContextManager[Any]:
    function = store_siblings.add_structure

    def moved(*args: Any, **options: Any) -> Any:
        return function(*args, **{**options, "split": Split.VALIDATION})

    return patch.object(store_siblings, "add_structure", moved)


MUTATIONS: dict[str, tuple[Callable[[], AbstractContextManager[Any]], str]] = {
    "a second label is not noticed": (
        lambda: patch.object(labels, "attempts_of", lambda *_: {}),
        "the controller ends in good order",
    ),
    "claims are never given back": (
        lambda: patch.object(completions, "give_back", lambda *_: None),
        "claimed .* belongs to one outstanding task|nothing is claimed",
    ),
    "files go before the commit": (
        files_go_before_the_commit,
        "no finished label is (computed again|lost)",
    ),
    "the lease is not asserted": (
        lambda: patch.object(Lease, "assert_held", lambda *_: None),
        "a controller that was taken over|the controller waits although nothing is under way",
    ),
    "nothing is recovered": (
        lambda: patch.object(Completions, "recover", lambda _self: []),
        "every open attempt is under way",
    ),
    "what was lost is not tried again": (
        nothing_is_dispatched_again,
        "the controller waits although nothing is under way|finishes within",
    ),
    "audit labels are learned from": (
        lambda: patch.object(labels, "LEARNING", tuple(Split)),
        "a shard (counts|holds)",
    ),
    "segments do not follow each other": (
        a_late_member_of_a_walker_counts_twice,
        "segments of a walker follow each other",
    ),
    "candidates are never looked at": (
        lambda: patch.object(queries, "scored_by", lambda *_args, **_options: ()),
        "the controller waits although nothing is under way|finishes within",
    ),
    "an ensemble is used before it is whole": (
        lambda: patch.object(ensembles, "add_member", lambda *_args, **_options: None),
        "an ensemble in training has a task",
    ),
    "what kills its worker is not set aside": (
        what_kills_its_worker_waits_again,
        "it ended as failed|what kills its worker is set aside",
    ),
    "errors are not summed again": (
        lambda: patch.object(ensembles, "sum_errors", lambda *_: None),
        "errors of an ensemble are those of its rows",
    ),
    "origins are counted twice": (
        lambda: patch.object(ensembles, "origins_between", lambda *_: [(Split.TRAIN, "minimum", 99)]),
        "origins of a data set are those of its labels",
    ),
    "what is selected is labelled in its own state alone": (
        selected_ones_stay_alone,
        "labelled in its further states too",
    ),
    "the highest multiplicity is kept": (
        the_highest_is_kept,
        "of compared multiplicities the lowest",
    ),
    "multiplicities are never compared": (
        lambda: patch.object(label_records.siblings, "settle", lambda *_: None),
        "held back for another multiplicity",
    ),
    "further states audit what their geometry trains": (
        states_of_another_split,
        "the states of a geometry are of its split",
    ),
    "the planner sees no tasks": (
        lambda: patch.object(loop.tasks, "unfinished", lambda *_: []),
        "the controller waits although nothing is under way|finishes within",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_the_checks_find_a_fault_that_is_put_in(name, folder):
    mutation, message = MUTATIONS[name]
    with mutation():
        found = first_violation(range(300), folder, message)
    assert "python -m hpcal.engine.simulate --seed" in found


def first_violation(seeds: range, folder: Path, message: str) -> str:
    for seed in seeds:
        try:
            run_history(seed, folder, folder / "kinds")
        except Violation as violation:
            if re.search(message, str(violation)):
                return str(violation)
    return f"no history said {message!r}"

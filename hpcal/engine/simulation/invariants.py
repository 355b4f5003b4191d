"""What must hold after every transaction of a campaign, asked of its store by a connection of its own."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from hpcal.engine.simulation.physics import Nature
from hpcal.engine.simulation.violation import Violation
from hpcal.exchange.hdf5 import read_shard
from hpcal.store import transitions
from hpcal.store.database import STORE_FILE
from hpcal.store.transitions import EnsembleState, StructureState, TaskState, WalkerState

_OPEN = "('queued', 'dispatched', 'lost')"
_FURTHER = "('state', 'audit_state')"
_STATES = (
    f"SELECT id, charge, state, CASE WHEN origin IN {_FURTHER} THEN parent_id ELSE id END AS geometry "
    "FROM structure"
)

RULES: Final[Mapping[str, str]] = {
    "one label for a structure and level": (
        "SELECT structure_id FROM label WHERE retracted IS NULL "
        "GROUP BY structure_id, level_of_theory_id HAVING count(*) > 1"
    ),
    "commit numbers are 1, 2, 3 …": (
        "SELECT count(seq), max(seq) FROM label HAVING count(seq) <> coalesce(max(seq), 0)"
    ),
    "labels of a split are numbered 1, 2, 3 …": (
        "SELECT split FROM label WHERE seq IS NOT NULL GROUP BY split "
        "HAVING count(*) <> max(split_seq) OR count(*) <> count(DISTINCT split_seq)"
    ),
    "a labelled structure has its label, and no other has one": (
        "SELECT s.id, s.state FROM structure s LEFT JOIN label l ON l.structure_id = s.id "
        "WHERE (s.state = 'labelled') <> (l.id IS NOT NULL)"
    ),
    "a label has the split of its structure": (
        "SELECT l.id FROM label l JOIN structure s ON s.id = l.structure_id WHERE l.split <> s.split"
    ),
    "a structure that was turned away has no label": (
        "SELECT r.structure_id FROM rejection r JOIN label l ON l.structure_id = r.structure_id"
    ),
    "a structure that was turned away says why": (
        "SELECT s.id FROM structure s LEFT JOIN rejection r ON r.structure_id = s.id "
        "WHERE s.state = 'rejected' AND r.id IS NULL"
    ),
    "a candidate will be scored and selected": (
        "SELECT id, origin FROM structure "
        "WHERE state = 'candidate' AND (origin <> 'sample' OR scored_generation IS NULL)"
    ),
    "a waiting structure is in a queue that the planner reads": (
        "SELECT id, origin FROM structure WHERE state = 'waiting' AND "
        "origin NOT IN ('seed', 'minimum', 'saddle', 'given', 'bootstrap', 'sample', 'audit', 'state', "
        "'audit_state')"
    ),
    "no seed waits once there is an ensemble": (
        "SELECT id FROM structure WHERE state IN ('waiting', 'claimed') AND origin = 'seed' "
        "AND EXISTS (SELECT 1 FROM ensemble WHERE state <> 'failed')"
    ),
    "a claimed structure belongs to one outstanding task": (
        "SELECT s.id, count(t.id) FROM structure s LEFT JOIN ("
        f"SELECT task.id, j.value AS sid FROM task, json_each(task.inputs, '$.structure_ids') j "
        f"WHERE task.state IN {_OPEN} AND task.kind IN ('label', 'relax')"
        ") t ON t.sid = s.id WHERE s.state = 'claimed' GROUP BY s.id HAVING count(t.id) <> 1"
    ),
    "a claimed walker belongs to one outstanding task": (
        "SELECT w.id, count(t.id) FROM walker w LEFT JOIN ("
        f"SELECT task.id, j.value AS wid FROM task, json_each(task.inputs, '$.walker_ids') j "
        f"WHERE task.state IN {_OPEN} AND task.kind = 'sample'"
        ") t ON t.wid = w.id WHERE w.state = 'claimed' GROUP BY w.id HAVING count(t.id) <> 1"
    ),
    "a dispatched task has one open attempt, any other none": (
        "SELECT t.id, t.state, count(a.id) FROM task t "
        "LEFT JOIN attempt a ON a.task_id = t.id AND a.state = 'dispatched' "
        "GROUP BY t.id HAVING count(a.id) <> (t.state = 'dispatched')"
    ),
    "no task stays lost": "SELECT id FROM task WHERE state = 'lost'",
    "attempts are numbered 1, 2, 3 …": (
        "SELECT task_id FROM attempt GROUP BY task_id HAVING count(*) <> max(number)"
    ),
    "a task that is done has an attempt that is": (
        "SELECT t.id FROM task t WHERE t.state = 'done' AND NOT EXISTS "
        "(SELECT 1 FROM attempt a WHERE a.task_id = t.id AND a.state = 'done') "
        # What asked for an ensemble that was given up ends without a result.
        "AND NOT EXISTS (SELECT 1 FROM ensemble e WHERE e.state = 'failed' AND "
        "(e.id = json_extract(t.inputs, '$.ensemble_id') OR e.id IN (SELECT json_extract(value, "
        "'$.ensemble_id') FROM json_each(t.inputs, '$.groups')))) "
        # One that was given up after some of its structures were done.
        "AND NOT (t.kind IN ('label', 'relax') AND t.losses + t.failures > 0)"
    ),
    "an ensemble in training has a task for each missing member": (
        "SELECT m.ensemble_id, m.member FROM model m JOIN ensemble e ON e.id = m.ensemble_id "
        "WHERE e.state = 'training' AND m.path IS NULL AND m.missing IS NULL AND NOT EXISTS ("
        "SELECT 1 FROM task t, json_each(t.inputs, '$.members') j WHERE t.kind = 'train' "
        f"AND t.state IN {_OPEN} AND json_extract(t.inputs, '$.ensemble_id') = e.id "
        "AND json_extract(j.value, '$.index') = m.member)"
    ),
    "a member of a trained ensemble has a file and its hash, or says why it is missing": (
        "SELECT m.ensemble_id, m.member FROM model m JOIN ensemble e ON e.id = m.ensemble_id "
        "WHERE e.state IN ('trained', 'promoted', 'refused') "
        "AND ((m.path IS NULL) <> (m.sha256 IS NULL) OR (m.path IS NULL) <> (m.missing IS NOT NULL))"
    ),
    "nothing trains for an ensemble that is decided": (
        "SELECT t.id, t.state, e.state FROM task t JOIN ensemble e "
        "ON e.id = json_extract(t.inputs, '$.ensemble_id') WHERE t.kind = 'train' "
        f"AND t.state IN {_OPEN} AND json_extract(t.inputs, '$.restore') IS NULL AND e.state <> 'training'"
    ),
    "one ensemble at a time is not decided": (
        "SELECT count(*) FROM ensemble WHERE state IN ('training', 'trained') HAVING count(*) > 1"
    ),
    "an evaluation is recorded once": (
        "SELECT structure_id, ensemble_id FROM score WHERE purpose = 'evaluate' "
        "GROUP BY structure_id, ensemble_id HAVING count(*) > 1"
    ),
    "a data set counts its labels": (
        "SELECT d.id FROM dataset d WHERE "
        "n_train <> (SELECT count(*) FROM label WHERE split = 'train' AND seq <= d.last_seq) OR "
        "n_validation <> (SELECT count(*) FROM label WHERE split = 'validation' AND seq <= d.last_seq)"
    ),
    "a shard counts its labels": (
        "SELECT h.id FROM shard h WHERE h.count <> (SELECT count(*) FROM label "
        "WHERE split IN ('train', 'validation') AND seq BETWEEN h.first_seq AND h.last_seq)"
    ),
    "shards follow each other": (
        "SELECT id FROM (SELECT id, first_seq, lag(last_seq, 1, 0) OVER (ORDER BY first_seq) AS before "
        "FROM shard) WHERE first_seq <= before"
    ),
    "segments of a walker follow each other": (
        "SELECT walker_id FROM (SELECT walker_id, start_step, "
        "lag(end_step, 1, 0) OVER (PARTITION BY walker_id ORDER BY id) AS before FROM segment) "
        "WHERE start_step <> before"
    ),
    "a walker stands where its last segment ended": (
        "SELECT w.id FROM walker w LEFT JOIN (SELECT walker_id, max(end_step) AS step, count(end_reason) "
        "AS ends FROM segment GROUP BY walker_id) g ON g.walker_id = w.id "
        "WHERE w.step <> coalesce(g.step, 0) OR (w.state = 'ended') <> (coalesce(g.ends, 0) = 1)"
    ),
    "a frame comes from one segment": (
        "SELECT walker_id, step FROM structure WHERE segment_id IS NOT NULL "
        "GROUP BY walker_id, step, origin HAVING count(*) > 1"
    ),
    "a frame has the split of its walker": (
        "SELECT s.id FROM structure s JOIN walker w ON w.id = s.walker_id WHERE s.split <> w.split"
    ),
    "what was sampled to be labelled was decided on": (
        "SELECT s.id FROM structure s WHERE s.origin IN ('sample', 'audit') "
        "AND s.state IN ('waiting', 'claimed', 'labelled') AND NOT EXISTS (SELECT 1 FROM selection c "
        "WHERE c.structure_id = s.id AND c.decision IN ('chosen', 'audit'))"
    ),
    "the states of a geometry are of its split and its walker": (
        f"SELECT s.id FROM structure s JOIN structure p ON p.id = s.parent_id WHERE s.origin IN {_FURTHER} "
        "AND (s.split <> p.split OR s.walker_id IS NOT p.walker_id OR s.positions <> p.positions)"
    ),
    "a state of a geometry is made once": (
        f"SELECT parent_id, charge, multiplicity FROM structure WHERE origin IN {_FURTHER} "
        "GROUP BY parent_id, charge, multiplicity HAVING count(*) > 1"
    ),
    "what is labelled is labelled in its further states too": (
        "SELECT s.id, s.origin, s.state FROM structure s "
        "WHERE s.origin IN ('minimum', 'saddle', 'bootstrap', 'sample', 'audit') "
        "AND s.state IN ('waiting', 'claimed', 'labelled', 'rejected') "
        f"AND EXISTS (SELECT 1 FROM structure WHERE origin IN {_FURTHER}) "
        f"AND NOT EXISTS (SELECT 1 FROM structure f WHERE f.parent_id = s.id AND f.origin IN {_FURTHER}) "
        "AND NOT EXISTS (SELECT 1 FROM label l WHERE l.structure_id = s.id AND l.attempt_id IS NULL)"
    ),
    "a label is held back for another multiplicity that is still to come": (
        f"SELECT l.structure_id FROM label l JOIN ({_STATES}) s ON s.id = l.structure_id "
        f"WHERE l.retracted LIKE 'held back%' AND NOT EXISTS (SELECT 1 FROM ({_STATES}) o "
        "WHERE o.geometry = s.geometry AND o.charge = s.charge AND o.state IN ('waiting', 'claimed'))"
    ),
    "of compared multiplicities the lowest is learned from": (
        f"SELECT l.structure_id FROM label l JOIN ({_STATES}) s ON s.id = l.structure_id "
        f"JOIN ({_STATES}) o ON o.geometry = s.geometry AND o.charge = s.charge AND o.id <> s.id "
        "JOIN label k ON k.structure_id = o.id WHERE l.seq IS NOT NULL AND l.attempt_id IS NOT NULL AND "
        "(k.retracted LIKE 'held back%' OR k.retracted LIKE 'not known%' "
        "OR (k.retracted LIKE 'not the lowest%' AND k.energy < l.energy))"
    ),
    "every attempt counts the calls of its labels": (
        "SELECT a.id, a.qm_calls FROM attempt a LEFT JOIN "
        "(SELECT attempt_id, sum(qm_calls) AS calls FROM label GROUP BY attempt_id) l "
        "ON l.attempt_id = a.id WHERE a.qm_calls < coalesce(l.calls, 0)"
    ),
}
"""Questions to the store whose answer is empty as long as all is well."""

AT_THE_END: Final[Mapping[str, str]] = {
    "nothing is under way": f"SELECT id, kind, state FROM task WHERE state IN {_OPEN}",
    "nothing is claimed": (
        "SELECT id FROM structure WHERE state = 'claimed' UNION SELECT id FROM walker WHERE state = 'claimed'"
    ),
    "no ensemble is left undecided": "SELECT id FROM ensemble WHERE state IN ('training', 'trained')",
    "every foreign key has its row": "PRAGMA foreign_key_check",
    "errors of an ensemble are those of its rows": (
        "SELECT e.id, json_extract(e.errors, '$.test.count'), json_extract(e.errors, "
        "'$.test.force_rmse_ev_per_ang'), count(s.id), "
        "sqrt(sum(s.n_atoms * s.force_rmse * s.force_rmse) / sum(s.n_atoms)) AS rmse "
        "FROM ensemble e JOIN score s ON s.ensemble_id = e.id "
        "AND s.purpose = 'evaluate' AND s.split = 'test' GROUP BY e.id "
        "HAVING count(s.id) <> coalesce(json_extract(e.errors, '$.test.count'), 0) "
        "OR abs(rmse - coalesce(json_extract(e.errors, '$.test.force_rmse_ev_per_ang'), 0)) > 1e-9"
    ),
    "origins of a data set are those of its labels": (
        "SELECT d.id, l.split, s.origin, count(*) FROM dataset d JOIN label l ON l.seq <= d.last_seq "
        "AND l.level_of_theory_id = d.level_of_theory_id AND l.split IN ('train', 'validation') "
        "JOIN structure s ON s.id = l.structure_id GROUP BY d.id, l.split, s.origin "
        "HAVING count(*) <> coalesce(json_extract(d.origins, '$.' || l.split || '.' || s.origin), 0)"
    ),
    "an evaluation says whose it is": (
        "SELECT c.id FROM score c JOIN structure s ON s.id = c.structure_id WHERE c.purpose = 'evaluate' AND "
        "(c.split <> s.split OR c.n_atoms <> s.n_atoms OR c.family <> coalesce("
        "s.walker_id, CASE WHEN s.origin IN ('state', 'audit_state') THEN -s.parent_id ELSE -s.id END))"
    ),
}
FILES: Final[Mapping[str, str]] = {
    "shard": "SELECT path, sha256 FROM shard",
    # Nothing loads an ensemble that was given up.
    "model": (
        "SELECT m.path, m.sha256 FROM model m JOIN ensemble e ON e.id = m.ensemble_id "
        "WHERE m.path IS NOT NULL AND e.state <> 'failed'"
    ),
}
_MOVING: Final[Mapping[str, type[StrEnum]]] = {
    "structure": StructureState,
    "task": TaskState,
    "walker": WalkerState,
    "ensemble": EnsembleState,
}
LEARNING: Final = ("train", "validation")


class Watch:
    """Looks at a store after every transaction, and remembers what it saw."""

    def __init__(self, root: Path, nature: Nature, quorum: Callable[[int], int]) -> None:
        self._root, self._nature, self._quorum = root, nature, quorum
        self._db = sqlite3.connect(root / STORE_FILE, check_same_thread=False)
        self._states: dict[str, dict[int, str]] = {table: {} for table in _MOVING}
        self._labels: dict[int, tuple[Any, ...]] = {}
        self._calls: dict[int, int] = {}
        self._models: set[int] = set()
        self._ensembles: dict[int, tuple[Any, ...]] = {}
        self._shards: set[int] = set()
        self.looks = 0

    def close(self) -> None:
        """Closes the connection."""
        self._db.close()

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Rows of the store as committed."""
        return self._db.execute(query).fetchall()

    def look(self) -> None:
        """Checks everything. Raises Violation, naming the first rule that is broken."""
        self.looks += 1
        self._ask(RULES)
        self._transitions()
        self._kept_labels()
        self._calls_spent()
        self._trained_on()
        self._quorums()
        self._shard_files()

    @property
    def without_a_member(self) -> int:
        """Ensembles that were trained without one of their members."""
        return sum(any(sha is None for _, sha, _ in members) for _, *members in self._ensembles.values())

    def finished(self, most_losses: int) -> None:
        """Checks what must hold once the campaign is finished.

        Args:
            most_losses: attempts at a structure that may be lost before it is set aside.

        Raises:
            Violation: it does not hold.
        """
        self._ask(AT_THE_END)
        self._poison_set_aside(most_losses)
        for table, query in FILES.items():
            for path, digest in self.rows(query):
                self._file(table, path, digest)

    def _poison_set_aside(self, most_losses: int) -> None:
        # A task that was given up for a bug has stopped its stage: what it held begins anew; and
        # before the first label there is nothing to tell a structure from a broken machine.
        query = (
            "SELECT s.id, s.hash, s.state, coalesce(sum(t.losses), 0), coalesce(max(t.state = 'failed' AND "
            "json_array_length(t.inputs, '$.structure_ids') = 1), 0) FROM structure s LEFT JOIN ("
            "SELECT task.*, j.value AS sid FROM task, json_each(task.inputs, '$.structure_ids') j "
            "WHERE task.kind = 'label' AND coalesce(task.failure_class, '') <> 'bug' "
            "AND task.finished > (SELECT min(finished) FROM task WHERE kind = 'label' AND state = 'done')"
            ") t ON t.sid = s.id "
            "GROUP BY s.id"
        )
        for key, content_hash, state, losses, given_up in self.rows(query):
            if not self._nature.poisonous(content_hash):
                continue
            if state == "labelled" and self.rows(f"SELECT 1 FROM label WHERE structure_id = {key} "
                                                 "AND attempt_id IS NOT NULL"):  # fmt: skip
                raise Violation(f"broken: what kills its worker gets no label; structure {key} has one")
            if losses > most_losses or (given_up and state not in ("quarantined", "rejected")):
                raise Violation(
                    f"broken: what kills its worker is set aside; structure {key} is {state} after "
                    f"{losses} attempts were lost"
                )

    def spent(self, attempt: int, calls: int) -> None:
        """An attempt has written records of so many QM calls to its spool."""
        self._calls[attempt] = calls

    def _ask(self, rules: Mapping[str, str]) -> None:
        for rule, query in rules.items():
            found = self._db.execute(query).fetchmany(3)
            if found:
                raise Violation(f"broken: {rule}; the first: {found}")

    def _transitions(self) -> None:
        for table, kind in _MOVING.items():
            before = self._states[table]
            now = dict(self.rows(f"SELECT id, state FROM {table}"))
            for row, old in before.items():
                new = now.get(row)
                if new != old and (new is None or new not in reachable(kind, old)):
                    raise Violation(f"broken: transitions; {table} {row} went from {old} to {new}")
            self._states[table] = now

    def _kept_labels(self) -> None:
        query = (
            "SELECT l.id, l.seq, l.structure_id, l.attempt_id, l.energy, s.hash FROM label l "
            "JOIN structure s ON s.id = l.structure_id"
        )
        now = {row[0]: row for row in self.rows(query)}
        for key, row in self._labels.items():
            # One that was held back gets its commit number later.
            later = row[1] is None and key in now and now[key][0:1] + now[key][2:] == row[0:1] + row[2:]
            if now.get(key) != row and not later:
                raise Violation(f"broken: a label is kept for ever; {row} became {now.get(key)}")
        for key in now.keys() - self._labels.keys():
            _, _, structure, attempt, energy, content_hash = now[key]
            if attempt is not None and abs(energy - self._nature.energy(content_hash, attempt)) > 1e-9:
                raise Violation(f"broken: structure {structure} has the label of another, or of no attempt")
        self._labels = now

    def _calls_spent(self) -> None:
        for attempt, calls in self.rows("SELECT id, qm_calls FROM attempt WHERE qm_calls > 0"):
            if calls > self._calls.get(attempt, 0):
                written = self._calls.get(attempt, 0)
                raise Violation(
                    f"broken: calls are counted once; attempt {attempt} wrote {written}, counted {calls}"
                )

    def _trained_on(self) -> None:
        query = (
            "SELECT m.id, m.trained_on, d.last_seq FROM model m JOIN ensemble e ON e.id = m.ensemble_id "
            "JOIN dataset d ON d.id = e.dataset_id WHERE m.trained_on IS NOT NULL"
        )
        for model, blob, last_seq in self.rows(query):
            if model in self._models:
                continue
            self._models.add(model)
            allowed = self._learnable(0, last_seq, ("train",))
            foreign = set(np.frombuffer(blob, dtype="<i8").tolist()) - allowed
            if foreign:
                raise Violation(f"broken: no training outside the train split; model {model} saw {foreign}")

    def _quorums(self) -> None:
        query = (
            "SELECT e.id, e.hash, m.member, m.sha256, m.missing FROM ensemble e "
            "JOIN model m ON m.ensemble_id = e.id WHERE e.hash IS NOT NULL ORDER BY e.id, m.member"
        )
        now: dict[int, list[Any]] = {}
        for key, digest, *member in self.rows(query):
            now.setdefault(key, [digest]).append(tuple(member))
        for key, before in self._ensembles.items():
            if tuple(now.get(key, ())) != before:
                raise Violation(f"broken: a trained ensemble never changes; {before} became {now.get(key)}")
        for key in now.keys() - self._ensembles.keys():
            _, *members = now[key]
            there = sum(digest is not None for _, digest, _ in members)
            if there < self._quorum(len(members)):
                raise Violation(
                    f"broken: an ensemble in use has its quorum; ensemble {key} has {there} of {len(members)}"
                )
            self._ensembles[key] = tuple(now[key])

    def _shard_files(self) -> None:
        for key, path, digest, first, last in self.rows(
            "SELECT id, path, sha256, first_seq, last_seq FROM shard"
        ):
            if key in self._shards:
                continue
            self._shards.add(key)
            self._file("shard", path, digest)
            ids = set(read_shard(self._root / path).ids.tolist())
            if ids != self._learnable(first - 1, last, LEARNING):
                raise Violation(f"broken: a shard holds the learning labels of its range; shard {key}")

    def _learnable(self, after: int, last: int, splits: Iterable[str]) -> set[int]:
        words = ", ".join(f"'{split}'" for split in splits)
        query = f"SELECT structure_id FROM label WHERE split IN ({words}) AND seq > {after} AND seq <= {last}"
        return {row[0] for row in self.rows(query)}

    def _file(self, table: str, path: str, digest: str) -> None:
        file = self._root / path
        if not file.is_file():
            raise Violation(f"broken: every file is there; {table} {path} is missing")
        if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise Violation(f"broken: every file has its hash; {table} {path} has not")


@cache
def reachable(kind: type[StrEnum], old: str) -> frozenset[str]:
    """States that can follow a state within one transaction of several changes."""
    table = transitions.TABLES[kind]
    found: set[str] = set()
    left = [kind(old)]
    while left:
        for new in table[left.pop()] - found:
            found.add(new)
            left.append(new)
    return frozenset(found)

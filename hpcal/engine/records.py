"""What came back from tasks, written into the store: one function a kind of task.

Each is idempotent: a record that was adopted before, or comes a second time from a late attempt,
changes nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Final

from hpcal.core.protocols import MemberResult
from hpcal.core.walker import Candidate, SampleResult, Split
from hpcal.engine import siblings
from hpcal.engine.completed import Completed, Record
from hpcal.engine.context import Context
from hpcal.engine.decide import decide
from hpcal.engine.label_records import record_labels
from hpcal.engine.minima import BOOTSTRAP_PRIORITY, record_curvature, record_minimum
from hpcal.engine.splits import learning_split
from hpcal.engine.streams import stream
from hpcal.store import ensembles, structures, walkers
from hpcal.store.database import add_event
from hpcal.store.rows import family
from hpcal.store.session import Session
from hpcal.store.tables import EnsembleRow, SegmentRow, StructureRow
from hpcal.store.transitions import EnsembleState, StructureState
from hpcal.store.twins import Twins, drop_duplicate


def record_all(done: Sequence[Completed]) -> list[str]:
    """Writes the results of attempts in the order given; labels of all of them together."""
    messages: list[str] = []
    for kind, group in groupby(done, key=lambda one: one.task.kind):
        if kind == "label":
            messages += record_labels(list(group))
        else:
            messages += [message for one in group for message in RECORDERS[kind](one)]
    return messages


def _relax(done: Completed) -> list[str]:
    session, context, task, values = done.session, done.context, done.task, done.values
    for value in values:
        done.attempt.qm_calls += value["qm_calls"]
        record_minimum(session, context, task, value)
    return []


def _curvature(done: Completed) -> list[str]:
    for value in done.values:
        done.attempt.qm_calls += value["qm_calls"]
        record_curvature(done.session, done.task, value["seeds"])
    return []


def _bootstrap(done: Completed) -> list[str]:
    session, context, task, values = done.session, done.context, done.task, done.values
    messages = []
    for value in values:
        done.attempt.qm_calls += value["qm_calls"]
        if value["message"]:
            text = f"no bootstrap structures from minimum {task.inputs['minimum_id']}: {value['message']}"
            add_event(session, context.store.epoch, "bootstrap_failed", text, task_id=task.id)
            messages.append(text)
        twins = Twins(session, value["structures"])
        for index, structure in enumerate(value["structures"]):
            rng = stream(context.spec.seed, "split", task.inputs["entry"], task.inputs["minimum_id"], index)
            twin = twins.of(structure)
            row = structures.add_structure(
                session,
                structure,
                origin="bootstrap",
                state=StructureState.WAITING if twin is None else StructureState.DROPPED,
                split=learning_split(rng, context.spec.file.splits),
                parent_id=task.inputs["minimum_id"],
                task_id=task.id,
                priority=BOOTSTRAP_PRIORITY,
            )
            if twin is not None:
                drop_duplicate(session, row, twin, task_id=task.id)
                continue
            twins.add(structure, row.id)
            structures.add_decision(
                session,
                row.id,
                "bootstrap",
                "bootstrap",
                "every bootstrap structure is labelled",
                task_id=task.id,
            )
            # One by one: in the queue the states of a geometry follow it.
            siblings.expand(session, context.spec.label.states, [row.id], task_id=task.id)
    return messages


def _train(done: Completed) -> list[str]:
    session, context, task, values = done.session, done.context, done.task, done.values
    ensemble = ensembles.get(session, task.inputs["ensemble_id"])
    if ensemble.state is not EnsembleState.TRAINING:
        return []
    for value in values:
        path = str(_relative(value["path"], context))
        result = MemberResult(**{**value, "path": path, "trained_on": tuple(value["trained_on"])})
        ensembles.add_member(session, ensemble.id, result, task_id=task.id)
    session.flush()
    return []


def _relative(path: str, context: Context) -> str:
    root = f"{context.folders.root}/"
    return path.removeprefix(root)


def _evaluate(done: Completed) -> list[str]:
    session, context, task, values = done.session, done.context, done.task, done.values
    seen = _evaluated_before(session, values)
    rows = structures.rows_of(session, sorted({value["structure_id"] for value in values}))
    used = {i: ensembles.get(session, i) for i in {value["ensemble_id"] for value in values}}
    for value in values:
        if (value["ensemble_id"], value["structure_id"]) in seen:
            continue
        row = rows[value["structure_id"]]
        structures.add_score(
            session,
            value["structure_id"],
            value["ensemble_id"],
            value["scores"],
            purpose="evaluate",
            metric=context.spec.metric,
            threshold=used[value["ensemble_id"]].threshold,
            task_id=task.id,
            split=row.split,
            family=family(row),
            n_atoms=row.n_atoms,
            energy=value["energy"],
            energy_error=value["energy_error"],
            committee_error=value["committee_error"],
            force_mae=value.get("force_mae"),
            force_rmse=value.get("force_rmse"),
        )
    session.flush()
    ensembles.sum_errors(session, used)
    chosen = task.inputs["decide"]
    return [] if chosen is None else [decide(session, context, chosen)]


def _evaluated_before(session: Session, values: Sequence[Record]) -> set[tuple[int, int]]:
    """Pairs of ensemble and structure that have their evaluation."""
    asked: dict[int, list[int]] = defaultdict(list)
    for value in values:
        asked[value["ensemble_id"]].append(value["structure_id"])
    return {
        (ensemble_id, structure_id)
        for ensemble_id, ids in asked.items()
        for structure_id in structures.evaluated_among(session, ensemble_id, ids)
    }


def _rescore(done: Completed) -> list[str]:
    session, context, task, values = done.session, done.context, done.task, done.values
    ensemble = ensembles.get(session, task.inputs["ensemble_id"])
    threshold = ensemble.threshold or 0.0
    states = structures.states_of(session, [value["structure_id"] for value in values])
    policy = context.spec.label.states
    waiting = [i for i, state in states.items() if state is StructureState.WAITING]
    begun = siblings.begun(session, policy, waiting)
    kept: list[int] = []
    gone: dict[int, dict[str, str]] = {}
    for value in values:
        structure_id, scores = value["structure_id"], value["scores"]
        structures.add_score(
            session, structure_id, ensemble.id, scores,
            purpose="rescore", metric=context.spec.metric, threshold=threshold, task_id=task.id,
        )  # fmt: skip
        if states[structure_id] not in (StructureState.CANDIDATE, StructureState.WAITING):
            continue
        if scores.trigger > threshold or structure_id in begun:
            kept.append(structure_id)
            continue
        reason = (
            f"{context.spec.metric} {scores.trigger:.4g} is below the threshold {threshold:.4g} of "
            f"generation {ensemble.generation}"
        )
        gone[structure_id] = {"reason": reason}
        structures.add_decision(
            session, structure_id, "dropped", "rescore", reason,
            task_id=task.id, ensemble_id=ensemble.id, value=scores.trigger, threshold=threshold,
        )  # fmt: skip
    structures.change(session, kept, scored_generation=ensemble.generation)
    structures.move_each(session, gone, StructureState.DROPPED)
    siblings.drop(session, policy, [i for i in gone if i in waiting])
    dropped = sum(states[i] is StructureState.WAITING for i in gone)
    return [f"{dropped} waiting structures dropped: the new ensemble is sure of them"] if dropped else []


def _select(done: Completed) -> list[str]:
    session, context, task, values = done.session, done.context, done.task, done.values
    ensemble = ensembles.get(session, task.inputs["ensemble_id"])
    states = structures.states_of(session, [value["structure_id"] for value in values])
    latest = structures.latest_values(session, list(states))
    chosen: dict[int, dict[str, float]] = {}
    passed_over: dict[int, dict[str, str]] = {}
    for value in values:
        structure_id = value["structure_id"]
        if states[structure_id] is not StructureState.CANDIDATE:
            continue
        structures.add_decision(
            session,
            structure_id,
            "chosen" if value["chosen"] else "passed_over",
            context.spec.selection.part.name,
            value["reason"],
            task_id=task.id,
            ensemble_id=ensemble.id,
            value=latest.get(structure_id),
            threshold=ensemble.threshold,
            rank=value["rank"],
            distance=value["distance"],
            competitors=len(values),
        )
        if value["chosen"]:
            chosen[structure_id] = {"priority": float(-(value["rank"] or 0))}
        else:
            passed_over[structure_id] = {"reason": value["reason"]}
    structures.move_each(session, chosen, StructureState.WAITING)
    siblings.expand(session, context.spec.label.states, list(chosen), task_id=task.id)
    structures.move_each(session, passed_over, StructureState.DROPPED)
    return [f"selected {len(chosen)} of {len(values)} candidates"]


def _sample(done: Completed) -> list[str]:
    session, task, values = done.session, done.task, done.values
    ensemble = ensembles.get(session, task.inputs["ensemble_id"])
    for result in values:
        if not isinstance(result, SampleResult):
            continue
        segments = {
            segment.walker.id: walkers.record_segment(
                session,
                segment,
                attempt_id=done.attempt.id,
                ensemble_id=ensemble.id,
                generation=ensemble.generation,
            )
            for segment in result.segments
            if segment.walker.step > segment.start_step or segment.end is not None
        }
        untouched = [s.walker.id for s in result.segments if s.walker.id not in segments]
        walkers.release(session, untouched)
        splits = walkers.splits_of(session, [c.walker_id for c in result.candidates])
        twins = Twins(session, [c.structure for c in result.candidates])
        audits = []
        for candidate in result.candidates:
            row = _candidate(
                done, ensemble, candidate, segments[candidate.walker_id],
                split=splits[candidate.walker_id], twins=twins,
            )  # fmt: skip
            audits += [row.id] if row.state is StructureState.WAITING else []
        siblings.expand(session, done.context.spec.label.states, audits, task_id=task.id)
    return []


def _candidate(
    done: Completed,
    ensemble: EnsembleRow,
    candidate: Candidate,
    segment: SegmentRow,
    *,
    split: Split,
    twins: Twins,
) -> StructureRow:
    session, task, metric = done.session, done.task, done.context.spec.metric
    twin = twins.of(candidate.structure)
    audit = candidate.reason == "audit"
    state = StructureState.WAITING if audit else StructureState.CANDIDATE
    row = structures.add_structure(
        session,
        candidate.structure,
        origin="audit" if audit else "sample",
        state=StructureState.DROPPED if twin is not None else state,
        split=split,
        generation=ensemble.generation,
        scored_generation=ensemble.generation,
        walker_id=candidate.walker_id,
        segment_id=segment.id,
        task_id=task.id,
        step=candidate.step,
        time_fs=candidate.time_fs,
        priority=_audit_priority(done.context, candidate) if audit else 0.0,
    )
    structures.add_score(
        session, row.id, ensemble.id, candidate.scores,
        purpose="sample", metric=metric, threshold=ensemble.threshold, task_id=task.id,
    )  # fmt: skip
    if twin is not None:
        drop_duplicate(session, row, twin, task_id=task.id)
        return row
    twins.add(candidate.structure, row.id)
    if audit:
        structures.add_decision(
            session, row.id, "audit", "audit_stream",
            f"frame of a {split} walker at a step drawn at its birth, whatever its uncertainty",
            task_id=task.id, ensemble_id=ensemble.id, value=candidate.scores.trigger,
            threshold=ensemble.threshold,
        )  # fmt: skip
    return row


def _audit_priority(context: Context, candidate: Candidate) -> float:
    """Audit frames wait in random order: neither by uncertainty nor by when they came.

    In the order of their coming the audit would stay with the dynamics of the first generation.
    """
    return float(stream(context.spec.seed, "audit", candidate.walker_id, candidate.step).random())


Recorder = Callable[[Completed], list[str]]
RECORDERS: Final[Mapping[str, Recorder]] = {
    "relax": _relax,
    "curvature": _curvature,
    "bootstrap": _bootstrap,
    "train": _train,
    "evaluate": _evaluate,
    "rescore": _rescore,
    "select": _select,
    "sample": _sample,
}

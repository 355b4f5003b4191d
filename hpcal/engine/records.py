"""What came back from tasks, written into the store: one function a kind of task.

Each is idempotent: a record that was adopted before, or comes a second time from a late attempt,
changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hpcal.core.errors import FailureClass
from hpcal.core.label import Label, Rejection
from hpcal.core.protocols import MemberResult
from hpcal.core.walker import Candidate, SampleResult, Split
from hpcal.engine.context import Context
from hpcal.engine.decide import decide
from hpcal.engine.minima import BOOTSTRAP_PRIORITY, record_curvature, record_minimum
from hpcal.engine.splits import learning_split
from hpcal.engine.streams import stream
from hpcal.store import ensembles, labels, structures, walkers
from hpcal.store.database import add_event
from hpcal.store.session import Session
from hpcal.store.tables import AttemptRow, EnsembleRow, SegmentRow, StructureRow, TaskRow
from hpcal.store.transitions import EnsembleState, StructureState

Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Completed:
    """The results of one attempt, about to be written."""

    session: Session
    context: Context
    task: TaskRow
    attempt: AttemptRow
    values: Sequence[Any]


def record(done: Completed) -> list[str]:
    """Writes the results of an attempt; returns what a person would want to hear of it."""
    return RECORDERS[done.task.kind](done)


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
        for index, structure in enumerate(value["structures"]):
            rng = stream(context.spec.seed, "split", task.inputs["entry"], task.inputs["minimum_id"], index)
            row = structures.add_structure(
                session,
                structure,
                origin="bootstrap",
                state=StructureState.WAITING,
                split=learning_split(rng, context.spec.file.splits),
                parent_id=task.inputs["minimum_id"],
                task_id=task.id,
                priority=BOOTSTRAP_PRIORITY,
            )
            structures.add_decision(
                session,
                row.id,
                "bootstrap",
                "bootstrap",
                "every bootstrap structure is labelled",
                task_id=task.id,
            )
    return messages


def _label(done: Completed) -> list[str]:
    session, context, values = done.session, done.context, done.values
    rows = structures.rows_of(session, [value["structure_id"] for value in values])
    messages = []
    for value in values:
        row = rows[value["structure_id"]]
        result = value.get("result")
        if isinstance(result, Label):
            done.attempt.qm_calls += result.qm_calls
            _accept(session, context, row, result, done.attempt)
        elif isinstance(result, Rejection):
            done.attempt.qm_calls += result.qm_calls
            if row.state is StructureState.CLAIMED:
                labels.add_rejection(
                    session, row.id, result, level_id=context.level_id, attempt_id=done.attempt.id
                )
                bad_input = result.failure_class is FailureClass.INPUT
                new = StructureState.QUARANTINED if bad_input else StructureState.REJECTED
                structures.move(session, [row.id], new, reason=f"{result.code}: {result.message}")
        elif row.state is StructureState.CLAIMED:
            messages += _broken(done, row, value)
    return messages


def _accept(session: Session, context: Context, row: StructureRow, label: Label, attempt: AttemptRow) -> None:
    if row.state not in (StructureState.CLAIMED, StructureState.LABELLED):
        text = f"structure {row.id} is {row.state}: its late label is not used"
        add_event(session, context.store.epoch, "late_label", text, structure_id=row.id)
        return
    if labels.add_label(session, row, label, level_id=context.level_id, attempt_id=attempt.id):
        structures.move(session, [row.id], StructureState.LABELLED)
        return
    first = labels.attempt_of(session, row.id, context.level_id)
    if first != attempt.id:
        add_event(
            session,
            context.store.epoch,
            "duplicate_label",
            f"structure {row.id} was labelled by attempts {first} and {attempt.id}; the first one counts",
            structure_id=row.id,
            attempts=[first, attempt.id],
        )


def _broken(done: Completed, row: StructureRow, value: Record) -> list[str]:
    """A structure whose calculation broke: tried again up to a cap, then set aside.

    Its task keeps the claim on it, so that no other task labels it meanwhile.
    """
    session, epoch = done.session, done.context.store.epoch
    failure, message = FailureClass(value["failure"]), str(value["message"])
    row.failures += 1
    add_event(
        session, epoch, "label_failed", message,
        structure_id=row.id, task_id=done.task.id, failure_class=str(failure),
    )  # fmt: skip
    if failure is not FailureClass.INPUT and row.failures < done.context.spec.file.tasks.max_failures:
        return []
    turned_away = Rejection(failure_class=failure, code="failed", message=message)
    labels.add_rejection(
        session, row.id, turned_away, level_id=done.context.level_id, attempt_id=done.attempt.id
    )
    structures.move(session, [row.id], StructureState.QUARANTINED, reason=f"{failure}: {message}")
    return [f"structure {row.id} set aside after {row.failures} failures ({failure}): {message}"]


def _train(done: Completed) -> list[str]:
    session, context, task, values = done.session, done.context, done.task, done.values
    ensemble = ensembles.get(session, task.inputs["ensemble_id"])
    if ensemble.state is not EnsembleState.TRAINING:
        return []
    for value in values:
        path = str(_relative(value["path"], context))
        result = MemberResult(**{**value, "path": path, "trained_on": tuple(value["trained_on"])})
        ensembles.add_member(session, ensemble.id, result, task_id=task.id)
    if any(m.path is None for m in ensembles.members_of(session, ensemble.id)):
        return []
    manifest = ensembles.manifest_of(session, ensemble, str(context.folders.root))
    ensembles.move(ensemble, EnsembleState.TRAINED, hash=manifest.hash)
    data = ensembles.dataset_of(session, ensemble)
    return [
        f"generation {ensemble.generation} trained: {len(manifest.members)} members on {data.n_train} "
        f"labels, {data.n_validation} for validation"
    ]


def _relative(path: str, context: Context) -> str:
    root = f"{context.folders.root}/"
    return path.removeprefix(root)


def _evaluate(done: Completed) -> list[str]:
    session, context, task, values = done.session, done.context, done.task, done.values
    for value in values:
        if structures.is_evaluated(session, value["structure_id"], value["ensemble_id"]):
            continue
        structures.add_score(
            session,
            value["structure_id"],
            value["ensemble_id"],
            value["scores"],
            purpose="evaluate",
            metric=context.spec.metric,
            threshold=ensembles.get(session, value["ensemble_id"]).threshold,
            task_id=task.id,
            energy=value["energy"],
            energy_error=value["energy_error"],
            committee_error=value["committee_error"],
            force_mae=value.get("force_mae"),
            force_rmse=value.get("force_rmse"),
        )
    session.flush()
    chosen = task.inputs["decide"]
    return [] if chosen is None else [decide(session, context, chosen)]


def _rescore(done: Completed) -> list[str]:
    session, context, task, values = done.session, done.context, done.task, done.values
    ensemble = ensembles.get(session, task.inputs["ensemble_id"])
    threshold = ensemble.threshold or 0.0
    states = structures.states_of(session, [value["structure_id"] for value in values])
    dropped = 0
    for value in values:
        structure_id, scores = value["structure_id"], value["scores"]
        structures.add_score(
            session, structure_id, ensemble.id, scores,
            purpose="rescore", metric=context.spec.metric, threshold=threshold, task_id=task.id,
        )  # fmt: skip
        if states[structure_id] not in (StructureState.CANDIDATE, StructureState.WAITING):
            continue
        if scores.trigger > threshold:
            structures.change(session, structure_id, scored_generation=ensemble.generation)
            continue
        reason = (
            f"{context.spec.metric} {scores.trigger:.4g} is below the threshold {threshold:.4g} of "
            f"generation {ensemble.generation}"
        )
        structures.move(session, [structure_id], StructureState.DROPPED, reason=reason)
        structures.add_decision(
            session, structure_id, "dropped", "rescore", reason,
            task_id=task.id, ensemble_id=ensemble.id, value=scores.trigger, threshold=threshold,
        )  # fmt: skip
        dropped += states[structure_id] is StructureState.WAITING
    return [f"{dropped} waiting structures dropped: the new ensemble is sure of them"] if dropped else []


def _select(done: Completed) -> list[str]:
    session, context, task, values = done.session, done.context, done.task, done.values
    ensemble = ensembles.get(session, task.inputs["ensemble_id"])
    states = structures.states_of(session, [value["structure_id"] for value in values])
    chosen = 0
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
            value=structures.latest_value(session, structure_id),
            threshold=ensemble.threshold,
            rank=value["rank"],
            distance=value["distance"],
            competitors=len(values),
        )
        if value["chosen"]:
            chosen += 1
            rank = value["rank"] or 0
            structures.move(session, [structure_id], StructureState.WAITING, priority=float(-rank))
        else:
            structures.move(session, [structure_id], StructureState.DROPPED, reason=value["reason"])
    return [f"selected {chosen} of {len(values)} candidates"]


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
        for candidate in result.candidates:
            split = splits[candidate.walker_id]
            _candidate(done, ensemble, candidate, segments[candidate.walker_id], split)
    return []


def _candidate(
    done: Completed, ensemble: EnsembleRow, candidate: Candidate, segment: SegmentRow, split: Split
) -> None:
    session, task, metric = done.session, done.task, done.context.spec.metric
    twin = structures.known_twin(session, candidate.structure)
    audit = candidate.reason == "audit"
    state = StructureState.WAITING if audit else StructureState.CANDIDATE
    row = structures.add_structure(
        session,
        candidate.structure,
        origin="audit" if audit else "sample",
        state=StructureState.DROPPED if twin is not None else state,
        split=split,
        reason=None if twin is None else f"duplicate of structure {twin}",
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
    if audit and twin is None:
        structures.add_decision(
            session, row.id, "audit", "audit_stream",
            f"frame of a {split} walker at a step drawn at its birth, whatever its uncertainty",
            task_id=task.id, ensemble_id=ensemble.id, value=candidate.scores.trigger,
            threshold=ensemble.threshold,
        )  # fmt: skip


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
    "label": _label,
    "train": _train,
    "evaluate": _evaluate,
    "rescore": _rescore,
    "select": _select,
    "sample": _sample,
}

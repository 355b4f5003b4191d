"""Labels, rejections and broken calculations of labelling tasks, written for many attempts at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpcal.core.errors import FailureClass
from hpcal.core.label import Label, Rejection
from hpcal.engine import siblings
from hpcal.engine.completed import Completed, Record
from hpcal.engine.failures import Answer, answer_structure, limits_of, tried
from hpcal.store import failures, labels, structures
from hpcal.store.database import add_event
from hpcal.store.labels import NewLabel
from hpcal.store.structures import Standing
from hpcal.store.transitions import StructureState

TAKES_A_LABEL = (StructureState.CLAIMED, StructureState.WAITING, StructureState.LABELLED)
"""States in which a label counts; in ``waiting`` it comes late, from an attempt that was given up."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Result:
    """What one attempt says of one structure."""

    done: Completed
    structure_id: int
    value: Record


def record_labels(group: Sequence[Completed]) -> list[str]:
    """Writes the results of labelling attempts, the first of each structure counts."""
    session = group[0].session
    results = [
        _Result(done=done, structure_id=value["structure_id"], value=value)
        for done in group
        for value in done.values
    ]
    standing = structures.standing(session, [r.structure_id for r in results])
    _accept([r for r in results if isinstance(r.value.get("result"), Label)], standing)
    messages: list[str] = []
    others = [r for r in results if not isinstance(r.value.get("result"), Label)]
    # What has just been labelled is past being turned away.
    now = structures.states_of(session, [r.structure_id for r in others])
    for result in others:
        if now[result.structure_id] is not StructureState.CLAIMED:
            continue
        verdict = result.value.get("result")
        if isinstance(verdict, Rejection):
            result.done.attempt.qm_calls += verdict.qm_calls
            _turn_away(result, verdict)
        else:
            messages += _broken(result)
        now |= structures.states_of(session, [result.structure_id])
    context = group[0].context
    ended = [r.structure_id for r in results]
    siblings.settle(session, context.spec.label.states, context.level_id, ended)
    return messages


def _accept(results: Sequence[_Result], standing: dict[int, Standing]) -> None:
    if not results:
        return
    session, context = results[0].done.session, results[0].done.context
    fitting = []
    for result in results:
        label: Label = result.value["result"]
        result.done.attempt.qm_calls += label.qm_calls
        state = standing[result.structure_id].state
        if state in TAKES_A_LABEL:
            fitting.append(result)
            continue
        text = f"structure {result.structure_id} is {state}: its late label is not used"
        attempts = [result.done.attempt.id]
        add_event(
            session, context.store.epoch, "late_label", text,
            structure_id=result.structure_id, attempts=attempts,
        )  # fmt: skip
    new = [
        NewLabel(
            structure_id=r.structure_id,
            split=standing[r.structure_id].split,
            label=r.value["result"],
            attempt_id=r.done.attempt.id,
        )
        for r in fitting
    ]
    held = siblings.holds(context.spec.label.states)
    accepted = labels.add_labels(session, new, level_id=context.level_id, held=held)
    fresh = {r.structure_id for r, is_new in zip(fitting, accepted, strict=True) if is_new}
    late = [i for i in fresh if standing[i].state is StructureState.WAITING]
    structures.move(session, late, StructureState.CLAIMED)
    structures.move(session, fresh, StructureState.LABELLED)
    _note_repeated([r for r, is_new in zip(fitting, accepted, strict=True) if not is_new])


def _note_repeated(results: Sequence[_Result]) -> None:
    """A second result for a structure is recorded with both attempts; the first one counts."""
    if not results:
        return
    session, context = results[0].done.session, results[0].done.context
    first = labels.attempts_of(session, [r.structure_id for r in results], context.level_id)
    for result in results:
        attempts = [first[result.structure_id], result.done.attempt.id]
        if attempts[0] != attempts[1]:
            add_event(
                session, context.store.epoch, "duplicate_label",
                f"structure {result.structure_id} was labelled by attempts {attempts[0]} and {attempts[1]}; "
                "the first one counts",
                structure_id=result.structure_id, attempts=attempts,
            )  # fmt: skip


def _turn_away(result: _Result, rejection: Rejection) -> None:
    done, structure_id = result.done, result.structure_id
    labels.add_rejection(
        done.session, structure_id, rejection, level_id=done.context.level_id, attempt_id=done.attempt.id
    )
    new = StructureState.QUARANTINED if rejection.set_aside else StructureState.REJECTED
    structures.move(done.session, [structure_id], new, reason=f"{rejection.code}: {rejection.message}")


def _broken(result: _Result) -> list[str]:
    """A structure whose calculation broke: tried again up to a cap, then set aside.

    Its task keeps the claim on it, so that no other task labels it meanwhile.
    """
    done, structure_id = result.done, result.structure_id
    session, epoch = done.session, done.context.store.epoch
    failure, message = FailureClass(result.value["failure"]), str(result.value["message"])
    count = structures.add_failure(session, structure_id)
    add_event(
        session, epoch, "label_failed", message,
        structure_id=structure_id, task_id=done.task.id, failure_class=str(failure),
    )  # fmt: skip
    before = tried(done.context, done.task, failures.broken(session, structure_id))
    answer = answer_structure(failure, before, limits_of(done.context))
    if answer.retries:
        return []
    turned_away = Rejection(failure_class=failure, code="failed", message=message)
    labels.add_rejection(
        session, structure_id, turned_away, level_id=done.context.level_id, attempt_id=done.attempt.id
    )
    new = StructureState.REJECTED if answer is Answer.REJECT else StructureState.QUARANTINED
    structures.move(session, [structure_id], new, reason=f"{failure}: {message}")
    return [f"structure {structure_id} set aside after {count} failures ({failure}): {message}"]

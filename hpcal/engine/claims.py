"""What becomes of the structures and walkers that a task had claimed and did not finish."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hpcal.core.errors import FailureClass
from hpcal.core.label import Rejection
from hpcal.engine import siblings
from hpcal.engine.context import Context
from hpcal.engine.failures import POLICIES, Answer
from hpcal.store import failures, labels, structures, tasks, walkers
from hpcal.store.database import add_event
from hpcal.store.session import Session
from hpcal.store.tables import AttemptRow, TaskRow
from hpcal.store.transitions import StructureState

PARTIAL: Final = ("label", "relax")
"""Kinds whose records each stand for themselves: half an attempt is worth keeping."""


def left(session: Session, tasks: Sequence[TaskRow]) -> frozenset[int]:
    """Structures of labelling tasks that are still claimed."""
    ids = [i for task in tasks if task.kind in PARTIAL for i in task.inputs["structure_ids"]]
    states = structures.states_of(session, ids) if ids else {}
    return frozenset(i for i in ids if states[i] is StructureState.CLAIMED)


def give_back(session: Session, tasks: Sequence[TaskRow]) -> None:
    """Structures and walkers that tasks claimed and did not finish wait again."""
    unlabelled = left(session, tasks)
    if unlabelled:
        structures.move(session, unlabelled, StructureState.WAITING)
    for task in tasks:
        if task.kind == "sample":
            walkers.release(session, task.inputs["walker_ids"])


def part(
    session: Session, context: Context, attempt: AttemptRow, failure: FailureClass, text: str
) -> list[str]:
    """Gives a labelling task up whose attempts failed as a whole, so that the structure at fault is found.

    One of several structures is parted: each that is left gets a task of its own, of the same size.
    The structure of a task of its own is set aside. So a structure is tried, over both, at most
    twice as often as the cap of the failure says. Where no task of the kind was ever done, though,
    lost attempts say nothing against a structure: it waits again, and the stage counts as failed
    after a few tasks.

    Args:
        attempt: the last one.
        failure: its class.
        text: what happened.
    """
    task, epoch = session.get_one(TaskRow, attempt.task_id), context.store.epoch
    ids: Sequence[int] = task.inputs["structure_ids"]
    remaining = left(session, [task])
    if len(remaining) < len(ids):
        # Something came of it: the stage as such works.
        tasks.finish(task, None, epoch=epoch)
    else:
        tasks.fail(task, failure, text, epoch=epoch)
    if not remaining:
        return [f"task {task.id} ({task.kind}) is given up; nothing of it is left to do"]
    if len(ids) == 1:
        if failure is FailureClass.NODE and not failures.ever_done(session, task.kind):
            give_back(session, [task])
            return [f"task {task.id} ({task.kind}) is given up"]
        return [_set_aside(session, context, attempt, failure, text)]
    for structure_id in sorted(remaining):
        inputs = {**task.inputs, "structure_ids": [structure_id]}
        alone = tasks.add_task(session, task.kind, task.pool, inputs, units=1, priority=task.priority)
        alone.size = task.size
    message = (
        f"task {task.id} ({task.kind}) is given up; the {len(remaining)} structures that are left of it are "
        "tried one by one"
    )
    add_event(session, epoch, "parted", message, task_id=task.id, structures=sorted(remaining))
    return [message]


def _set_aside(
    session: Session, context: Context, attempt: AttemptRow, failure: FailureClass, text: str
) -> str:
    """A structure at which every attempt failed although it was alone."""
    task = session.get_one(TaskRow, attempt.task_id)
    (structure_id,) = task.inputs["structure_ids"]
    structures.add_failure(session, structure_id)
    add_event(
        session, context.store.epoch, f"{task.kind}_failed", text,
        structure_id=structure_id, task_id=task.id, failure_class=str(failure),
    )  # fmt: skip
    rejected = POLICIES[failure].structure is Answer.REJECT and task.kind == "label"
    if task.kind == "label":
        turned_away = Rejection(failure_class=failure, code="failed", message=text)
        labels.add_rejection(
            session, structure_id, turned_away, level_id=context.level_id, attempt_id=attempt.id
        )
    new = StructureState.REJECTED if rejected else StructureState.QUARANTINED
    structures.move(session, [structure_id], new, reason=f"{failure}: {text}")
    siblings.settle(session, context.spec.label.states, context.level_id, [structure_id])
    return (
        f"structure {structure_id} is set aside: task {task.id} ({task.kind}), which held nothing else, is "
        "given up"
    )

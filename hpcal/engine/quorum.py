"""Members on their way into an ensemble: how many make it, who is missing and why, and who came late.

Each training task ends in one of three ways for its members: they are there (a file and its hash),
they are missing (the task was given up, or was late), or neither yet. An ensemble is trained as
soon as no member is undecided and the quorum is there, and it has failed as soon as the quorum
cannot be reached any more. From then on it never changes; see docs/decisions/quorum.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from hpcal.core.errors import FailureClass
from hpcal.engine.context import Context
from hpcal.engine.dispatch import now
from hpcal.engine.view import TrainingView
from hpcal.store import ensembles, tasks
from hpcal.store.database import add_event
from hpcal.store.session import Session
from hpcal.store.tables import EnsembleRow, ModelRow, TaskRow
from hpcal.store.transitions import EnsembleState, TaskState

NOT_NEEDED: Final = "not needed: "
"""How the error of a task begins that was ended because its ensemble had failed by others."""


def give_up(session: Session, task: TaskRow, failure: FailureClass, why: str) -> None:
    """The members of a task that was given up are missing. A fault of hpcal fails the whole ensemble."""
    ensemble = ensembles.get(session, task.inputs["ensemble_id"])
    if ensemble.state is EnsembleState.TRAINING:
        ensembles.mark_missing(session, ensemble.id, _members(task), f"{failure}: {why}")
        if failure is FailureClass.BUG:
            ensembles.move(ensemble, EnsembleState.FAILED)


def settle_all(session: Session, context: Context, ended: Sequence[TaskRow]) -> list[str]:
    """What follows for the ensembles in training from tasks that have ended or were given up."""
    ids = sorted({int(task.inputs["ensemble_id"]) for task in ended if task.kind == "train"})
    return [text for i in ids for text in settle(session, context, ensembles.get(session, i))]


def settle_open(session: Session, context: Context) -> list[str]:
    """The same for all ensembles in training, as when the quorum was changed while no controller ran."""
    return [text for row in ensembles.in_training(session) for text in settle(session, context, row)]


def settle(session: Session, context: Context, ensemble: EnsembleRow) -> list[str]:
    """Whether an ensemble in training is trained, or has failed, by what became of its members.

    To be called when tasks that end now are closed: those that are still out for an ensemble that is
    decided end here, without a result.
    """
    if ensemble.state is EnsembleState.TRAINING:
        members = ensembles.members_of(session, ensemble.id)
        there = [m for m in members if m.path is not None]
        open_ones = [m for m in members if m.path is None and m.missing is None]
        quorum = context.spec.quorum(len(members))
        if len(there) + len(open_ones) < quorum:
            ensembles.move(ensemble, EnsembleState.FAILED)
        elif open_ones:
            return []
        else:
            return [_trained(session, context, ensemble, members)]
    if ensemble.state is EnsembleState.FAILED:
        _end_tasks(session, context, ensemble, f"{NOT_NEEDED}ensemble {ensemble.id} has failed")
    return []


def go_on(session: Session, context: Context, ensemble_id: int) -> str:
    """An ensemble that has its quorum goes on without the members that are late; says so."""
    ensemble = ensembles.get(session, ensemble_id)
    members = ensembles.members_of(session, ensemble.id)
    there = sum(m.path is not None for m in members)
    late = [m.member for m in members if m.path is None and m.missing is None]
    why = f"late: generation {ensemble.generation} went on with {there} of {len(members)} members"
    ensembles.mark_missing(session, ensemble.id, late, why)
    _end_tasks(session, context, ensemble, why)
    return _trained(session, context, ensemble, ensembles.members_of(session, ensemble.id))


def came_late(session: Session, context: Context, task: TaskRow, values: Sequence[Any]) -> list[str]:
    """Members whose files come after their task was given up are dropped; said once."""
    if tasks.has_event(session, task.id, "late_member"):
        return []
    ensemble = ensembles.get(session, task.inputs["ensemble_id"])
    text = (
        f"members {_listed([value['index'] for value in values])} of ensemble {ensemble.id} (generation "
        f"{ensemble.generation}) came after their task had been given up; they are dropped"
    )
    files = [str(value["path"]).removeprefix(f"{context.folders.root}/") for value in values]
    add_event(
        session, context.store.epoch, "late_member", text,
        task_id=task.id, ensemble_id=ensemble.id, files=files,
    )  # fmt: skip
    return [text]


def progress(session: Session, context: Context, ensemble_id: int) -> TrainingView:
    """How far the training of an ensemble is. Without a clock (inline) nobody has waited."""
    members = ensembles.members_of(session, ensemble_id)
    there = [m for m in members if m.path is not None]
    view = TrainingView(ensemble_id=ensemble_id, members=len(members), trained=len(there))
    if context.dispatcher.virtual or len(there) < context.spec.quorum(len(members)):
        return view
    begun = [
        tasks.first_dispatch(session, task.id, context.store.epoch)
        for task in ensembles.outstanding_trainings(session, ensemble_id)
    ]
    # One that this controller has not sent out yet, as its inputs are being made again, is not late.
    if not begun or None in begun:
        return view
    since = max(_reached(session, there, context.spec.quorum(len(members))), *(b for b in begun if b))
    longest = max((tasks.seconds_worked(session, i) for i in _tasks_of(there)), default=0.0)
    return TrainingView(
        ensemble_id=ensemble_id,
        members=len(members),
        trained=len(there),
        longest=longest or None,
        waited=max(0.0, now() - since),
    )


def _tasks_of(members: Sequence[ModelRow]) -> list[int]:
    return sorted({m.task_id for m in members if m.task_id is not None})


def _reached(session: Session, there: Sequence[ModelRow], quorum: int) -> float:
    """When the quorum was there."""
    ends = sorted(session.get_one(TaskRow, m.task_id).finished or 0.0 for m in there if m.task_id is not None)
    return ends[quorum - 1] if len(ends) >= quorum else 0.0


def _trained(session: Session, context: Context, ensemble: EnsembleRow, members: Sequence[ModelRow]) -> str:
    manifest = ensembles.manifest_of(session, ensemble, str(context.folders.root))
    ensembles.move(ensemble, EnsembleState.TRAINED, hash=manifest.hash)
    data = ensembles.dataset_of(session, ensemble)
    there, missing = len(manifest.members), [m for m in members if m.missing is not None]
    count = f"{there}" if not missing else f"{there} of {len(members)}"
    text = (
        f"generation {ensemble.generation} trained: {count} members on {data.n_train} labels, "
        f"{data.n_validation} for validation"
    )
    if missing:
        reasons = "; ".join(dict.fromkeys((m.missing or "").splitlines()[-1] for m in missing))
        text += f"; without members {_listed([m.member for m in missing])} ({reasons})"
        add_event(
            session, context.store.epoch, "quorum", text,
            ensemble_id=ensemble.id, missing=[m.member for m in missing],
            quorum=context.spec.quorum(len(members)),
        )  # fmt: skip
    return text


def _end_tasks(session: Session, context: Context, ensemble: EnsembleRow, why: str) -> None:
    """Tasks whose result nobody waits for any more; their workers may still be at it."""
    for task in ensembles.outstanding_trainings(session, ensemble.id):
        for attempt in tasks.open_attempts_at(session, task.id):
            tasks.end_attempt(attempt, TaskState.LOST, why)
        tasks.fail(task, FailureClass.NODE, why, epoch=context.store.epoch)
        ensembles.mark_missing(session, ensemble.id, _members(task), why)


def _members(task: TaskRow) -> list[int]:
    return [int(member["index"]) for member in task.inputs["members"]]


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(numbers)))

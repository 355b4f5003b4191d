"""What became of a relaxed seed: a new minimum, a known one, or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from hpcal.core.errors import FailureClass
from hpcal.core.structure import Structure
from hpcal.core.walker import Split
from hpcal.engine import siblings
from hpcal.engine.context import Context
from hpcal.engine.failures import answer_structure, limits_of, tried
from hpcal.sampling.relaxation import same_minimum
from hpcal.store import failures, structures
from hpcal.store.database import add_event
from hpcal.store.rows import structure_of
from hpcal.store.session import Session
from hpcal.store.tables import StructureRow, TaskRow
from hpcal.store.transitions import StructureState
from hpcal.store.twins import Twins

BOOTSTRAP_PRIORITY: Final = 1e6
"""Bootstrap structures are labelled before anything else."""


def record_minimum(session: Session, context: Context, task: TaskRow, value: Mapping[str, Any]) -> None:
    """Writes the result of one relaxation; a minimum that is known already is dropped."""
    seed = structures.rows_of(session, [value["structure_id"]])[value["structure_id"]]
    if seed.state is not StructureState.CLAIMED:
        return
    failure = value.get("failure", FailureClass.PHYSICS)
    if "failure" in value:
        seed.failures += 1
        _note(session, context, seed, value, failure_class=str(failure))
        before = tried(context, task, failures.broken(session, seed.id))
        answer = answer_structure(failure, before, limits_of(context))
        if answer.retries:
            return  # still claimed: it is tried again with the rest of its task, or goes back to the queue
    if "failure" in value or not value["converged"]:
        _set_aside(session, context, seed, value)
        return
    found: Structure = value["structure"]
    twin = _known(session, found, value["energy"]) or _labelled_before(session, found, value["energy"])
    note = "" if value["same_bonds"] else "; its bonds changed on the way"
    row = structures.add_structure(
        session,
        found,
        origin="minimum",
        state=StructureState.WAITING if twin is None else StructureState.DROPPED,
        split=Split.TRAIN,
        parent_id=seed.id,
        task_id=task.id,
        energy=value["energy"],
        priority=BOOTSTRAP_PRIORITY,
        reason=None
        if twin is None
        else f"the same minimum as structure {twin.id}, whose energy and distances agree",
    )
    if twin is None:
        reason = f"minimum relaxed from seed {seed.id} in {value['steps']} steps{note}"
        structures.add_decision(session, row.id, "bootstrap", "minimum", reason, task_id=task.id)
        siblings.expand(session, context.spec.label.states, [row.id], task_id=task.id)
    # The seed itself is never labelled: its minimum stands for it.
    structures.move(session, [seed.id], StructureState.WAITING)
    structures.move(session, [seed.id], StructureState.DROPPED, reason=f"relaxed to structure {row.id}")


def record_curvature(session: Session, task: TaskRow, seeds: Sequence[Structure]) -> None:
    """Writes what curvature says of a relaxed structure; from a saddle point it goes on downhill."""
    if not seeds:
        return
    saddle = task.inputs["minimum_id"]
    structures.change(session, [saddle], origin="saddle", reason="a saddle point, not a minimum")
    for seed in seeds:
        structures.add_structure(
            session,
            seed,
            origin="seed",
            state=StructureState.WAITING,
            split=Split.TRAIN,
            parent_id=saddle,
            task_id=task.id,
            priority=BOOTSTRAP_PRIORITY,
        )


def _known(session: Session, found: Structure, energy: float) -> StructureRow | None:
    for row in structures.of_origin(session, "minimum", "saddle"):
        if row.state is StructureState.DROPPED or row.energy is None:
            continue
        if same_minimum(structure_of(row), row.energy, found, energy):
            return row
    return None


def _labelled_before(session: Session, found: Structure, energy: float) -> StructureRow | None:
    """A structure of this geometry that came with its label: it is the minimum from now on."""
    twin = Twins(session, [found]).of(found)
    row = None if twin is None else structures.rows_of(session, [twin])[twin]
    if row is None or row.state is not StructureState.LABELLED or row.split is not Split.TRAIN:
        return None
    row.origin, row.energy = "minimum", energy
    return row


def _set_aside(session: Session, context: Context, seed: StructureRow, value: Mapping[str, Any]) -> None:
    failure = value.get("failure", FailureClass.PHYSICS)
    if "failure" not in value:
        _note(session, context, seed, value)
    structures.move(session, [seed.id], StructureState.QUARANTINED, reason=f"{failure}: {_why(value)}")


def _note(
    session: Session, context: Context, seed: StructureRow, value: Mapping[str, Any], **data: str
) -> None:
    text = f"seed {seed.id} was not relaxed: {_why(value)}"
    add_event(session, context.store.epoch, "relax_failed", text, structure_id=seed.id, **data)


def _why(value: Mapping[str, Any]) -> str:
    return value.get("message") or f"the relaxation did not converge in {value['steps']} steps"

"""What a task had claimed and did not finish waits again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hpcal.store import structures, walkers
from hpcal.store.session import Session
from hpcal.store.tables import TaskRow
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

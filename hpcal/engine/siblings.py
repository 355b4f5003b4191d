"""The further electronic states of what waits for a label: they come, go and are compared together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from hpcal.engine.states import Outcome, State, StatesSettings, compare, in_state, states_of
from hpcal.store import labels, siblings, structures
from hpcal.store.rows import structure_of
from hpcal.store.session import Session
from hpcal.store.tables import StructureRow
from hpcal.store.transitions import UNFINISHED, StructureState
from hpcal.store.twins import Twins, drop_duplicate

RULE: Final = "states"


def expand(
    session: Session, policy: StatesSettings | None, ids: Sequence[int], *, task_id: int | None = None
) -> None:
    """Adds the further states of structures that have just come to wait for a label.

    They belong to the transaction that lets the structures wait, so that they are made once.

    Args:
        task_id: the task that brought or chose the structures.
    """
    if policy is None or not ids:
        return
    rows = siblings.fresh_rows(session, ids)
    roots = siblings.roots(session, list(rows.values()))
    new = []
    for i in ids:
        first = structure_of(rows[i])
        states = states_of(policy, first, _state(roots[i]))
        new += [(rows[i], in_state(first, state)) for state in states if state != _state(rows[i])]
    if not new:
        return
    twins = Twins(session, [structure for _, structure in new])
    for first_row, structure in new:
        twin = twins.of(structure)
        row = siblings.add_state(session, first_row, structure, task_id=task_id, known=twin is not None)
        if twin is not None:
            drop_duplicate(session, row, twin, task_id=task_id)
            continue
        twins.add(structure, row.id)
        reason = f"{_state(row)} of the geometry of structure {first_row.id} ({_state(first_row)})"
        structures.add_decision(session, row.id, "state", RULE, reason, task_id=task_id)


def begun(session: Session, policy: StatesSettings | None, ids: Sequence[int]) -> set[int]:
    """Those of some waiting structures of which a further state is being labelled, or was.

    A geometry is dropped with all its states or not at all.
    """
    if policy is None:
        return set()
    found = siblings.further_states(session, list(siblings.fresh_rows(session, ids).values()))
    untouched = (StructureState.WAITING, StructureState.DROPPED)
    return {i for i, states in found.items() if any(row.state not in untouched for row in states)}


def drop(session: Session, policy: StatesSettings | None, ids: Sequence[int]) -> None:
    """Drops the further states of structures that were dropped."""
    if policy is None or not ids:
        return
    found = siblings.further_states(session, list(siblings.fresh_rows(session, ids).values()))
    for first, states in sorted(found.items()):
        reason = f"structure {first}, the same geometry, was dropped"
        gone = [row.id for row in states if row.state is StructureState.WAITING]
        structures.move(session, gone, StructureState.DROPPED, reason=reason)
        for i in gone:
            structures.add_decision(session, i, "dropped", RULE, reason)


def holds(policy: StatesSettings | None) -> bool:
    """Whether labels are held back until :func:`settle` has compared them."""
    return policy is not None and policy.keep == "lowest"


def settle(session: Session, policy: StatesSettings | None, level_id: int, ended: Sequence[int]) -> None:
    """Of each geometry and charge lets the lowest multiplicity stand, once all of them have ended.

    Args:
        ended: structures that were labelled or turned away, in that order: commit numbers follow it.
    """
    if not holds(policy) or not ended:
        return
    rows = siblings.fresh_rows(session, ended)
    # A group is complete with its last member, and takes the place of that one.
    groups: dict[tuple[int, int], None] = {}
    for i in ended:
        key = (siblings.geometry_of(rows[i]), rows[i].charge)
        groups.pop(key, None)
        groups[key] = None
    first = siblings.fresh_rows(session, sorted({geometry for geometry, _ in groups}))
    further = siblings.further_states(session, list(first.values()))
    for geometry, charge in groups:
        states = [first[geometry], *further.get(geometry, ())]
        group = [row for row in states if row.charge == charge]
        if all(row.state not in UNFINISHED for row in group):
            _choose(session, level_id, group)


def _choose(session: Session, level_id: int, group: Sequence[StructureRow]) -> None:
    """Decides on the multiplicities of one geometry and charge, all of which have ended."""
    held = labels.held_back(session, [row.id for row in group], level_id)
    if not held:
        return
    # What equals a known structure was not labelled again; that one's energy stands for it.
    stands_for = {row.id: row.twin_id or row.id for row in group}
    energies = labels.energies_of(session, sorted(set(stands_for.values())), level_id)
    rows = [row for row in group if row.twin_id is None or row.twin_id in energies]
    lowest, sentences = compare(group[0].charge, [_outcome(row, stands_for, energies) for row in rows])
    for place, (row, sentence) in enumerate(zip(rows, sentences, strict=True)):
        if row.id not in held:
            continue
        if place == lowest:
            labels.accept(session, row.id, level_id)
        else:
            labels.take_back(session, row.id, level_id, sentence)
        decision = "kept" if place == lowest else "taken_back"
        structures.add_decision(session, row.id, decision, RULE, sentence)


def _outcome(row: StructureRow, stands_for: Mapping[int, int], energies: Mapping[int, float]) -> Outcome:
    return Outcome(
        name=f"structure {stands_for[row.id]}",
        multiplicity=row.multiplicity,
        energy=energies.get(stands_for[row.id]),
        problem=f"{row.state}: {row.reason}",
    )


def _state(row: StructureRow) -> State:
    return State(charge=row.charge, multiplicity=row.multiplicity)

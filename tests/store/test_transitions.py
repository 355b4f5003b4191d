from __future__ import annotations

import pytest

from hpcal.core.errors import TransitionError
from hpcal.core.structure import Structure
from hpcal.core.walker import Split
from hpcal.store import structures, transitions
from hpcal.store.campaigns import add_campaign
from hpcal.store.database import Store
from hpcal.store.transitions import StructureState, TaskState

pytestmark = pytest.mark.stores

S = StructureState


@pytest.fixture
def store(tmp_path):
    made = Store.create(tmp_path)
    with made.write() as session:
        add_campaign(session, name="x", spec={}, spec_folder=".", site={})
    yield made
    made.close()


def add(store: Store, state: StructureState, x: float = 0.0) -> int:
    structure = Structure(numbers=[2], positions=[[x, 0, 0]])
    with store.write() as session:
        return structures.add_structure(
            session, structure, origin="sample", state=state, split=Split.TRAIN
        ).id


@pytest.mark.parametrize("old", list(S))
@pytest.mark.parametrize("new", list(S))
def test_the_store_enforces_the_table(store, old, new):
    structure = add(store, old)
    if new in transitions.STRUCTURE[old]:
        with store.write() as session:
            structures.move(session, [structure], new)
            assert structures.states_of(session, [structure]) == {structure: new}
    else:
        refusal = f"structure {structure} cannot go from {old} to {new}"
        with pytest.raises(TransitionError, match=refusal), store.write() as session:
            structures.move(session, [structure], new)


def test_a_refused_move_changes_none(store):
    good, bad = add(store, S.WAITING), add(store, S.LABELLED, 1.0)
    with pytest.raises(TransitionError), store.write() as session:
        structures.move(session, [good, bad], S.CLAIMED)
    with store.session() as session:
        assert structures.states_of(session, [good, bad]) == {good: S.WAITING, bad: S.LABELLED}


def test_every_unfinished_structure_has_a_next_state():
    for state in transitions.UNFINISHED:
        assert transitions.STRUCTURE[state]


def test_finished_states_are_final():
    for state in set(S) - set(transitions.UNFINISHED):
        assert not transitions.STRUCTURE[state]


def test_a_late_result_of_a_lost_task_is_accepted():
    assert TaskState.DONE in transitions.TASK[TaskState.LOST]


def test_diagram_holds_every_arrow():
    text = transitions.mermaid(S)
    assert "    claimed --> waiting" in text
    assert text.count("-->") == sum(len(n) or 1 for n in transitions.STRUCTURE.values())

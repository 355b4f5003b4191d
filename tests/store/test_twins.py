"""Structures of one geometry are known again, whatever way they come in."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from hpcal.core.structure import Structure
from hpcal.core.walker import Split
from hpcal.store import campaigns, structures
from hpcal.store.database import Store
from hpcal.store.transitions import StructureState
from hpcal.store.twins import Twins

pytestmark = pytest.mark.stores

ETHANE = Structure(
    numbers=[6, 6, 1, 1, 1, 1, 1, 1],
    positions=[
        [0.0, 0.0, 0.77], [0.0, 0.0, -0.77], [1.02, 0.0, 1.16], [-0.51, 0.88, 1.16], [-0.51, -0.88, 1.16],
        [-1.02, 0.0, -1.16], [0.51, -0.88, -1.16], [0.51, 0.93, -1.16],
    ],
)  # fmt: skip
CRYSTAL = Structure(
    numbers=[14, 14], positions=[[0, 0, 0], [1.36, 1.36, 1.36]],
    cell=[[0, 2.72, 2.72], [2.72, 0, 2.72], [2.72, 2.72, 0]], pbc=(True, True, True),
)  # fmt: skip


@pytest.fixture
def store(tmp_path):
    made = Store.create(tmp_path)
    with made.write() as session:
        campaigns.add_campaign(session, name="x", spec={}, spec_folder=".", site={})
    yield made
    made.close()


def add(session, structure, state=StructureState.WAITING, origin="sample") -> int:
    return structures.add_structure(session, structure, origin=origin, state=state, split=Split.TRAIN).id


def moved(structure: Structure, seed: int, shake: float = 0.0) -> Structure:
    """Rotated, mirrored or not, shifted, renumbered, and every atom displaced by a given length."""
    rng = np.random.default_rng(seed)
    turn = Rotation.random(random_state=seed).as_matrix() * rng.choice([-1, 1])
    order = rng.permutation(len(structure))
    noise = rng.normal(size=(len(structure), 3))
    noise *= shake / np.linalg.norm(noise, axis=1, keepdims=True)
    positions = (structure.positions + noise) @ turn.T + rng.normal(size=3) * 5
    return Structure(numbers=structure.numbers[order], positions=positions[order])


def test_moved_copies_are_known_and_others_are_not(store):
    with store.write() as session:
        known = add(session, ETHANE)
        copies = [moved(ETHANE, seed, 4e-4) for seed in range(200)]
        others = [moved(ETHANE, seed, 0.02) for seed in range(200)]
        twins = Twins(session, [*copies, *others])
        assert {twins.of(copy) for copy in copies} == {known}
        assert {twins.of(other) for other in others} == {None}


def test_what_came_in_a_moment_ago_is_known(store):
    with store.write() as session:
        first, second = moved(ETHANE, 1), moved(ETHANE, 2)
        twins = Twins(session, [first, second])
        assert twins.of(first) is None
        twins.add(first, 17)
        assert twins.of(second) == 17


def test_crystals_are_known_from_another_origin_and_after_wrapping(store):
    shifted = Structure(
        numbers=CRYSTAL.numbers[::-1], positions=np.add(CRYSTAL.positions, 7.7)[::-1],
        cell=CRYSTAL.cell, pbc=CRYSTAL.pbc,
    )  # fmt: skip
    with store.write() as session:
        known = add(session, CRYSTAL)
        assert Twins(session, [shifted]).of(shifted) == known


@pytest.mark.parametrize(("charge", "multiplicity"), [(1, 2), (0, 3)])
def test_another_state_is_another_structure(store, charge, multiplicity):
    other = Structure(
        numbers=ETHANE.numbers, positions=ETHANE.positions, charge=charge, multiplicity=multiplicity
    )
    with store.write() as session:
        add(session, ETHANE)
        assert Twins(session, [other]).of(other) is None


def test_dropped_ones_and_seeds_are_nobodys_twins(store):
    with store.write() as session:
        add(session, ETHANE, StructureState.DROPPED)
        add(session, ETHANE, origin="seed")
        assert Twins(session, [ETHANE]).of(ETHANE) is None
        rejected = add(session, ETHANE, StructureState.REJECTED)
        assert Twins(session, [ETHANE]).of(ETHANE) == rejected

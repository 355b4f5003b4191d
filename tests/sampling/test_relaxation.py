"""Relaxation, bonds, and telling minima apart, on energies known in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from hpcal.core.arrays import FloatArray
from hpcal.core.errors import FailureClass, TaskFailure
from hpcal.core.structure import Structure
from hpcal.sampling.relaxation import bonds, find_minima, relax, same_minimum, unique_minima

LENGTH, STIFFNESS = 0.9, 30.0
WATER = Structure(numbers=[8, 1, 1], positions=[[0, 0, 0], [0, 0, 0.96], [0.93, 0, -0.24]])


def springs(structure: Structure) -> tuple[float, FloatArray]:
    """Harmonic springs of length LENGTH between all pairs: ½ k (d − l)²."""
    x = structure.positions
    energy, forces = 0.0, np.zeros_like(x)
    for i in range(len(x)):
        for j in range(i):
            gap = x[i] - x[j]
            d = float(np.linalg.norm(gap))
            energy += 0.5 * STIFFNESS * (d - LENGTH) ** 2
            push = -STIFFNESS * (d - LENGTH) * gap / d
            forces[i] += push
            forces[j] -= push
    return energy, forces


def distances(structure: Structure) -> FloatArray:
    first, second = np.triu_indices(len(structure), k=1)
    return np.linalg.norm(structure.positions[first] - structure.positions[second], axis=1)


def test_springs_relax_to_their_length() -> None:
    calls = []

    def counted(structure: Structure) -> tuple[float, FloatArray]:
        calls.append(structure)
        return springs(structure)

    end = relax(WATER, counted, fmax=1e-4)
    assert end.converged
    assert distances(end.structure) == pytest.approx(np.full(3, LENGTH), abs=1e-5)
    assert end.energy == pytest.approx(0.0, abs=1e-8)
    assert np.linalg.norm(end.forces, axis=1).max() < 1e-4
    assert end.calls == len(calls)
    assert end.steps >= 2
    assert end.structure.charge == WATER.charge


def test_charge_multiplicity_and_cell_are_passed_on() -> None:
    seen = []

    def watch(structure: Structure) -> tuple[float, FloatArray]:
        seen.append(structure)
        return springs(structure)

    ion = Structure(
        numbers=WATER.numbers,
        positions=WATER.positions,
        charge=-1,
        multiplicity=2,
        cell=np.eye(3) * 9,
        pbc=(True, True, True),
    )
    end = relax(ion, watch)
    for structure in [*seen, end.structure]:
        assert (structure.charge, structure.multiplicity, structure.pbc) == (-1, 2, (True,) * 3)
        assert np.array_equal(structure.cell, ion.cell)


def test_too_few_steps_have_not_converged() -> None:
    end = relax(WATER, springs, fmax=1e-6, max_steps=2)
    assert not end.converged
    assert end.steps == 2
    assert end.energy == springs(end.structure)[0]


def test_a_relaxation_that_breaks_a_bond_says_so() -> None:
    def repelling(structure: Structure) -> tuple[float, FloatArray]:
        gap = structure.positions[1] - structure.positions[0]
        d = float(np.linalg.norm(gap))
        return 1.0 / d, np.array([-gap, gap]) / d**3

    pair = Structure(numbers=[6, 6], positions=[[0, 0, 0], [0, 0, 1.5]])
    end = relax(pair, repelling, fmax=0.05, max_steps=100)
    assert not end.same_bonds
    assert relax(WATER, springs).same_bonds
    assert relax(end.structure, repelling, fmax=0.05).same_bonds


def test_failures_are_passed_on() -> None:
    def failing(structure: Structure) -> tuple[float, FloatArray]:
        raise TaskFailure(FailureClass.PHYSICS, "no label")

    with pytest.raises(TaskFailure, match="no label"):
        relax(WATER, failing)


def test_bonds() -> None:
    assert bonds(WATER) == {(0, 1), (0, 2)}
    assert bonds(WATER.with_positions(WATER.positions * 2)) == frozenset()
    chain = Structure(
        numbers=[6, 6],
        positions=[[0.2, 0, 0], [5.9, 0, 0]],
        cell=np.diag([7.0, 9, 9]),
        pbc=(True, True, True),
    )
    assert bonds(chain) == {(0, 1)}


# ── Telling minima apart ─────────────────────────────────────────────────────────────────────


def rotation(seed: int) -> FloatArray:
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * np.sign(np.linalg.det(q))


CHIRAL = Structure(
    numbers=[6, 1, 9, 17, 35],
    positions=[[0, 0, 0], [0, 0, 1.1], [1.3, 0, -0.4], [-0.8, 1.5, -0.5], [-0.9, -1.6, -0.5]],
)


def test_moved_mirrored_and_reordered_minima_are_one() -> None:
    turned = CHIRAL.with_positions(CHIRAL.positions @ rotation(1) + np.array([3.0, 2.0, 1.0]))
    assert same_minimum(CHIRAL, -1.0, turned, -1.0005)
    mirrored = CHIRAL.with_positions(CHIRAL.positions * np.array([1, -1, 1]))
    assert same_minimum(CHIRAL, -1.0, mirrored, -1.0)
    swapped = Structure(numbers=[1, 8, 1], positions=WATER.positions[[2, 0, 1]])
    assert same_minimum(WATER, 0.0, swapped, 0.0)


def test_different_minima() -> None:
    assert not same_minimum(CHIRAL, -1.0, CHIRAL, -1.003)
    assert same_minimum(CHIRAL, -1.0, CHIRAL, -1.003, energy_tol_eV=0.004)
    bent = CHIRAL.positions.copy()
    bent[1] = [0.9, 0.0, 0.6]
    assert not same_minimum(CHIRAL, -1.0, CHIRAL.with_positions(bent), -1.0)
    exchanged = Structure(numbers=[6, 1, 17, 9, 35], positions=CHIRAL.positions)
    assert not same_minimum(CHIRAL, -1.0, exchanged, -1.0)
    ion = Structure(numbers=WATER.numbers, positions=WATER.positions, charge=2)
    assert not same_minimum(WATER, 0.0, ion, 0.0)


def test_unique_minima_are_sorted_by_energy() -> None:
    other = CHIRAL.with_positions(CHIRAL.positions * 1.3)
    turned = CHIRAL.with_positions(CHIRAL.positions @ rotation(2))
    assert unique_minima([other, CHIRAL, turned], [-1.0, -2.0, -2.0005]) == [2, 0]
    lone = Structure(numbers=[2], positions=[[0, 0, 0]])
    assert unique_minima([lone, lone], [0.0, 0.0]) == [0]


def double_well(structure: Structure) -> tuple[float, FloatArray]:
    """Three atoms held at x = −1, 0, 1 Å, the middle one in two wells along z.

    E = h (z² − ¼)² + t z + 5 (all else)², in eV and Å: minima near ±½, a saddle near 0.
    """
    home = np.array([[-1.0, 0, 0], [0, 0, 0], [1.0, 0, 0]])
    off = structure.positions - home
    z = off[1, 2]
    off[1, 2] = 0.0
    height, tilt = 16.0, 0.2
    energy = height * (z**2 - 0.25) ** 2 + tilt * z + 5.0 * float((off**2).sum())
    forces = -10.0 * off
    forces[1, 2] = -4 * height * z * (z**2 - 0.25) - tilt
    return energy, forces


def test_a_saddle_point_is_left_on_both_sides() -> None:
    # The stationary point between the wells: 64 z (z² − ¼) + 0.2 = 0, near z = 0.0125.
    start = Structure(numbers=[8, 8, 8], positions=[[-1, 0, 0], [0, 0, 0.0125], [1, 0, 0]])
    assert abs(relax(start, double_well).structure.positions[1, 2]) < 0.05
    found = find_minima([start], double_well)
    heights = [r.structure.positions[1, 2] for r in found.relaxations]
    assert heights == pytest.approx([-0.506, 0.494], abs=0.01)
    assert found.relaxations[1].energy - found.relaxations[0].energy == pytest.approx(0.2, abs=0.002)
    assert found.saddles == 1
    assert found.calls > 18 * 3


def test_what_did_not_become_a_minimum_is_counted() -> None:
    good = Structure(numbers=[8, 8, 8], positions=[[-1, 0, 0], [0, 0, 0.4], [1, 0, 0]])
    marked = Structure(numbers=[8, 8, 16], positions=good.positions)

    def partly(structure: Structure) -> tuple[float, FloatArray]:
        if 16 in structure.numbers:
            raise TaskFailure(FailureClass.PHYSICS, "scf_not_converged")
        return double_well(structure)

    found = find_minima([marked, good, good], partly)
    assert (found.failed, len(found.relaxations)) == (1, 1)
    slow = find_minima([good], partly, fmax=1e-9, max_steps=1)
    assert (slow.unconverged, len(slow.relaxations)) == (1, 0)
    far = good.with_positions(good.positions * 3)
    assert find_minima([far], partly).broken == 1

    def dead(structure: Structure) -> tuple[float, FloatArray]:
        raise TaskFailure(FailureClass.NODE, "disk full")

    with pytest.raises(TaskFailure, match="disk full"):
        find_minima([good], dead)

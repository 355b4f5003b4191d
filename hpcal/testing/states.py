"""What a potential promises of the charge and spin states of one geometry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

from hpcal.core.protocols import Potential
from hpcal.core.structure import Structure
from hpcal.testing.conformance import Subject
from hpcal.testing.potentials import Tolerances, mean_energy


def check_states(
    subject: Subject, potential: Potential, structures: Sequence[Structure], limits: Tolerances
) -> None:
    """Checks structures that are one geometry in several states, where there are any.

    Raises:
        ConformanceError: a potential that is ``charge_aware`` has one energy for two of them, or one
            that is not has two.
    """
    aware = potential.capabilities().charge_aware
    for one, other in combinations(structures, 2):
        if not _states_of_one_geometry(one, other):
            continue
        energies = [mean_energy(potential, structure) for structure in (one, other)]
        states = f"{_state(one)} and {_state(other)} of {one.formula}"
        if aware:
            subject.promises(
                "a potential that is charge_aware tells the states of a geometry apart",
                abs(energies[0] - energies[1]) > limits.energy,
                f"{energies[0]:.10g} eV for both {states}; tolerance {limits.energy:g} eV",
            )
        else:
            subject.agrees(
                f"a potential that is not charge_aware has one energy for {states}",
                energies[0],
                energies[1],
                within=limits.energy,
                unit="eV",
            )


def _states_of_one_geometry(one: Structure, other: Structure) -> bool:
    if _state(one) == _state(other) or len(one) != len(other):
        return False
    same_state = replace(other, charge=one.charge, multiplicity=one.multiplicity)
    return same_state.content_hash == one.content_hash


def _state(structure: Structure) -> str:
    return f"charge {structure.charge} multiplicity {structure.multiplicity}"

"""What a potential promises that says it takes cells and gives stress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from hpcal.core.batch import Batch
from hpcal.core.protocols import Potential
from hpcal.core.structure import Structure
from hpcal.testing import batches, geometry
from hpcal.testing.conformance import Subject
from hpcal.testing.potentials import Tolerances, mean_energy

SPACE: Final = 2.2
"""Å between images of a molecule in a cell made around it: they interact."""


def check_crystals(
    subject: Subject, potential: Potential, structures: Sequence[Structure], limits: Tolerances
) -> None:
    """Checks crystals made of molecules in skew cells, and crystals that are given.

    Raises:
        ConformanceError: the first promise that is broken.
    """
    crystals = [s for s in structures if s.periodic] or [crystal_of(structures[0])]
    for crystal in crystals:
        _check_stress(subject, potential, crystal, limits)
        _check_images(subject, potential, crystal, limits)
        _check_mixed(subject, potential, crystal, structures[0], limits)


def crystal_of(molecule: Structure) -> Structure:
    """A molecule in a skew cell a little larger than it is, periodic throughout."""
    extent = molecule.positions.max(axis=0) - molecule.positions.min(axis=0) + SPACE
    cell = np.diag(extent)
    cell[1, 0], cell[2, 0], cell[2, 1] = 0.2, -0.15, 0.3
    return replace(molecule, cell=cell, pbc=(True, True, True))


def _batch(potential: Potential, structures: Sequence[Structure]) -> Batch:
    return Batch.of(structures, device=potential.device, dtype=potential.dtype)


def _check_stress(subject: Subject, potential: Potential, crystal: Structure, limits: Tolerances) -> None:
    stress = batches.array(potential.stress(_batch(potential, [crystal, crystal])))
    subject.promises("stress() has shape (B, 3, 3)", stress.shape == (2, 3, 3), f"{stress.shape}")
    subject.agrees(
        "stress is symmetric", stress, stress.transpose(0, 2, 1), within=limits.stress, unit="eV/Å³"
    )

    def energy(structure: Structure) -> float:
        return mean_energy(potential, structure)

    for strain in geometry.unit_strains():
        slope = geometry.slope_under(energy, crystal, strain, limits.step)
        subject.agrees(
            f"stress() is dE/dε/V, positive in tension (central differences of {limits.step:g})",
            float((stress[0] * strain).sum()),
            slope / geometry.volume(crystal),
            within=limits.stress,
            unit="eV/Å³",
        )


def _check_images(subject: Subject, potential: Potential, crystal: Structure, limits: Tolerances) -> None:
    if crystal.cell is None:
        return
    energy = mean_energy(potential, crystal)
    along = int(np.argmax(crystal.pbc))
    positions = crystal.positions.copy()
    positions[-1] += 2 * crystal.cell[along]
    subject.agrees(
        "an atom moved by lattice vectors is the same atom",
        mean_energy(potential, crystal.with_positions(positions)),
        energy,
        within=limits.energy,
        unit="eV",
    )
    cell = crystal.cell.copy()
    cell[along] *= 2
    doubled = replace(
        crystal,
        numbers=np.tile(crystal.numbers, 2),
        positions=np.concatenate([crystal.positions, crystal.positions + crystal.cell[along]]),
        cell=cell,
        charge=2 * crystal.charge,
        multiplicity=2 * crystal.multiplicity - 1,
        magnetic_moments=None,
    )
    subject.agrees(
        "a cell of twice the length has twice the energy",
        mean_energy(potential, doubled),
        2 * energy,
        within=2 * limits.energy,
        unit="eV",
    )


def _check_mixed(
    subject: Subject, potential: Potential, crystal: Structure, molecule: Structure, limits: Tolerances
) -> None:
    together = _batch(potential, [molecule, crystal, molecule])
    found = batches.array(potential.energies(together)).mean(axis=0)
    expected = [mean_energy(potential, s) for s in (molecule, crystal, molecule)]
    subject.agrees(
        "crystals and molecules in one batch are as each alone (energies)",
        found,
        expected,
        within=limits.energy,
        unit="eV",
    )
    subject.agrees(
        "crystals and molecules in one batch are as each alone (forces)",
        batches.array(potential.forces(together))[1, : len(crystal)],
        batches.array(potential.forces(_batch(potential, [crystal])))[0],
        within=limits.force,
        unit="eV/Å",
    )

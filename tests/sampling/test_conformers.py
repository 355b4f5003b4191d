"""Starting geometries from SMILES, and glycine's torsional minima, the flipped hydroxyl included."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from pydantic import ValidationError

from hpcal.core.errors import InputError
from hpcal.core.structure import Structure
from hpcal.labeling.forces import as_forces
from hpcal.labeling.xtb import XTB, XTBSettings
from hpcal.sampling.conformers import Conformers, ConformerSettings, enumerate_conformers
from hpcal.sampling.relaxation import bonds, find_minima, relax

GLYCINE = "NCC(=O)O"


def conformers(smiles: str, seed: int = 7, **settings: object) -> Conformers:
    return enumerate_conformers(smiles, ConformerSettings(**settings), np.random.default_rng(seed))


def torsion(structure: Structure, atoms: tuple[int, int, int, int]) -> float:
    """Degrees in (−180, 180]."""
    angle = Atoms(numbers=structure.numbers, positions=structure.positions).get_dihedral(*atoms)
    return (angle + 180.0) % 360.0 - 180.0


def hydroxyl(structure: Structure) -> float:
    """|C–C–O–H| of glycine, degrees, atoms in the order N C C O O and hydrogens."""
    hydrogen = next(h for o, h in sorted(bonds(structure)) if o == 4 and structure.numbers[h] == 1)
    return abs(torsion(structure, (1, 2, 4, hydrogen)))


def test_glycine_starts_on_both_sides_of_its_hydroxyl() -> None:
    found = conformers(GLYCINE, jitter_A=0.0)
    assert len(found.torsions) == 3
    assert found.complete
    angles = np.array([hydroxyl(s) for s in found.structures])
    assert {round(a) for a in angles} == {0, 180}
    assert len({bonds(s) for s in found.structures}) == 1
    assert {(s.charge, s.multiplicity, s.formula) for s in found.structures} == {(0, 1, "C2H5NO2")}


def test_the_flipped_hydroxyl_is_a_minimum_that_is_reached() -> None:
    forces = as_forces(XTB(XTBSettings()))
    starts = conformers(GLYCINE).structures
    flipped = [s for s in starts if hydroxyl(s) < 90][:3]
    for start in flipped:
        end = relax(start, forces)
        assert end.converged
        assert end.same_bonds
        assert hydroxyl(end.structure) < 15


@pytest.mark.slow
def test_glycine_relaxes_to_all_its_torsional_minima() -> None:
    """GFN2-xTB; meV above the lowest, from a full grid of 72 starts with tight convergence."""
    expected = {0: 180, 52: 180, 143: 180, 152: 0, 263: 0, 349: 0, 363: 0}
    starts = conformers(GLYCINE)
    found = find_minima(starts.structures, as_forces(XTB(XTBSettings())))
    lowest = found.relaxations[0].energy
    energies = np.array([1000 * (r.energy - lowest) for r in found.relaxations])
    for energy, angle in expected.items():
        nearest = int(np.argmin(abs(energies - energy)))
        assert energies[nearest] == pytest.approx(energy, abs=2.0)
        assert hydroxyl(found.relaxations[nearest].structure) == pytest.approx(angle, abs=15)
    # A flat stretch of the surface may count as one more.
    assert len(energies) in (7, 8)
    assert all(r.converged and r.same_bonds for r in found.relaxations)


@pytest.mark.parametrize(
    ("smiles", "formula", "charge", "multiplicity"),
    [
        ("O", "H2O", 0, 1),
        ("[He]", "He", 0, 1),
        ("[NH4+]", "H4N", 1, 1),
        ("NCC(=O)[O-]", "C2H4NO2", -1, 1),
        ("[CH3]", "CH3", 0, 2),
        ("[O][O]", "O2", 0, 3),
        ("[NH3+]CC(=O)[O-]", "C2H5NO2", 0, 1),
    ],
)
def test_charge_and_multiplicity_come_from_the_smiles(
    smiles: str, formula: str, charge: int, multiplicity: int
) -> None:
    first = conformers(smiles).structures[0]
    assert (first.formula, first.charge, first.multiplicity) == (formula, charge, multiplicity)


@pytest.mark.parametrize(
    ("smiles", "torsions", "least", "most"),
    [
        ("CC", 0, 1, 1),  # methyl: turning gives the same again
        ("CC(=O)C", 0, 1, 1),
        ("c1ccccc1O", 0, 1, 1),  # the ring is the same on both sides
        ("C[N+](=O)[O-]", 0, 1, 1),
        ("OO", 1, 3, 4),  # 0, ±60, ±120, 180 less mirror images
        ("CCO", 1, 3, 4),
        ("CCCC", 1, 2, 3),  # anti and gauche, both of them unless the embedding is symmetric
        ("OC=O", 1, 2, 2),  # formic acid, both planar forms
        ("CC#CC", 0, 1, 1),
        ("CC(=O)NC", 1, 2, 2),  # cis and trans amide
    ],
)
def test_torsions_that_are_turned(smiles: str, torsions: int, least: int, most: int) -> None:
    found = conformers(smiles)
    assert len(found.torsions) == torsions
    assert least <= len(found.structures) <= most


def test_rings_come_from_several_embeddings() -> None:
    """Methylcyclohexane has an axial and an equatorial chair, which no torsion outside rings connects."""
    found = conformers("CC1CCCCC1", embeddings=20)
    assert len(found.structures) >= 2


def test_stated_stereochemistry_is_kept() -> None:
    for smiles, low, high in (("C/C=C/C", 170, 180), ("C/C=C\\C", 0, 10)):
        found = conformers(smiles, jitter_A=0.0)
        assert low <= abs(torsion(found.structures[0], (0, 1, 2, 3))) <= high
        assert "stereo" not in found.message
    assert "1 stereo elements are not stated" in conformers("FC(Cl)Br").message


def test_the_cap_is_obeyed_and_said() -> None:
    found = conformers("OCC(O)CO", max_conformers=10)
    assert len(found.structures) == 10
    assert not found.complete
    assert "max_conformers" in found.message
    assert "drawn at random" in found.message
    everything = conformers(GLYCINE)
    assert everything.complete
    assert "drawn" not in everything.message


def test_the_same_seed_gives_the_same_geometries() -> None:
    one, two, other = (conformers("OCC(O)CO", seed, max_conformers=5) for seed in (1, 1, 2))
    assert one.structures == two.structures
    assert one.structures != other.structures


def test_jitter_breaks_symmetry() -> None:
    still, shaken = conformers("CCO", jitter_A=0.0), conformers("CCO", jitter_A=0.02)
    moved = np.concatenate(
        [
            (a.positions - b.positions).ravel()
            for a, b in zip(still.structures, shaken.structures, strict=True)
        ]
    )
    assert 0.01 < moved.std() < 0.03


@pytest.mark.parametrize(
    ("smiles", "told"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("C(C", "syntax"),
        ("xyz", "syntax"),
        ("C(C)(C)(C)(C)C", "valence"),
        ("[Na+].[Cl-]", "2 molecules"),
        ("C*", "placeholder"),
    ],
)
def test_smiles_that_cannot_be_used(smiles: str, told: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=told) as error:
        conformers(smiles)
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


def test_steps_divide_the_circle() -> None:
    with pytest.raises(ValidationError, match="does not divide 360"):
        ConformerSettings(angle_step_degrees=50)

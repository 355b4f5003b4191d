"""Each format comes in as what it is: the same molecules, in eV, Å and forces."""

from __future__ import annotations

import json
from pathlib import Path

import ase.db
import ase.io
import h5py
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from exchange import molecules
from exchange.molecules import NUMBERS, h5, water

from hpcal.core.errors import FormatError
from hpcal.core.label import LevelOfTheory
from hpcal.core.structure import Structure
from hpcal.core.units import BOHR, HARTREE, KCAL_PER_MOL
from hpcal.core.walker import Split
from hpcal.exchange.files import read_dataset, read_found, read_labelled, read_structures
from hpcal.exchange.found import Found, ReadOptions, is_unknown
from hpcal.exchange.levels import told_apart

GIVEN = LevelOfTheory(code="orca", version="4.2", method="PBE", settings={"basis": "def2-SVP"})
FRAMES = water(12)
WRITERS = {
    "npz": (molecules.npz, "a.npz"),
    "ani": (molecules.comp6, "a.h5"),
    "spice": (molecules.spice, "a.hdf5"),
    "ase": (molecules.database, "a.db"),
    "deepmd": (molecules.deepmd, "a"),
    "extxyz": (molecules.extxyz, "a.extxyz"),
}
UNITS = {
    "npz": ("kcal/mol", "Å", "kcal/mol/Å", "known of the format"),
    "ani": ("Hartree", "Å", "Hartree/Å", "known of the format"),
    "spice": ("Hartree", "bohr", "Hartree/bohr", "stated by the file"),
    "ase": ("eV", "Å", "eV/Å", "known of the format"),
    "deepmd": ("eV", "Å", "eV/Å", "known of the format"),
    "extxyz": ("eV", "Å", "eV/Å", "known of the format"),
}


def made(tmp_path: Path, kind: str) -> Path:
    write, name = WRITERS[kind]
    return write(tmp_path / name, FRAMES)


def arrays(found: Found) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.array([f.structure.positions for f in found.frames]),
        np.array([f.label.energy for f in found.frames]),
        np.array([f.label.forces for f in found.frames]),
    )


@pytest.mark.parametrize("kind", WRITERS)
def test_the_same_molecules_come_from_every_format(tmp_path: Path, kind: str) -> None:
    path = made(tmp_path, kind)
    found = read_found(path)
    assert (found.format, found.path) == (kind, path)
    assert (found.units.energy, found.units.length, found.units.force, found.units.source) == UNITS[kind]
    for frame in found.frames:
        assert frame.structure.numbers.tolist() == [8, 1, 1]
        assert (frame.structure.charge, frame.structure.multiplicity) == (0, 1)
        assert frame.structure.pbc == (False, False, False)
    tolerance = 1e-6 if kind == "ani" else 1e-11
    for one, other in zip(arrays(found), (FRAMES.positions, FRAMES.energies, FRAMES.forces), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=40 * tolerance)
    counts = found.counts
    assert (counts.structures, counts.energies, counts.forces) == (12, 12, 12)
    assert (counts.elements, counts.formulas, counts.periodic) == ((1, 8), {"H2O": 12}, 0)
    assert found.units.gradient == (kind in ("ani", "spice"))


@pytest.mark.parametrize("kind", WRITERS)
def test_the_front_door_takes_every_format(tmp_path: Path, kind: str) -> None:
    path = made(tmp_path, kind)
    structures = [frame.structure for frame in read_found(path).frames]
    assert read_structures(path) == structures
    pairs = read_labelled(path, GIVEN)
    assert [s for s, _ in pairs] == structures
    assert {label.level for _, label in pairs} == {GIVEN}
    dataset = read_dataset(path)
    assert dataset.structures() == structures
    np.testing.assert_allclose(dataset.energies, FRAMES.energies, rtol=0, atol=1e-8)
    assert set(dataset.splits) == {"train"}
    with pytest.raises(FormatError, match=r"frame 1: atoms 0 .* overlap"):
        read_structures(path, min_distance_factor=1.5)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_level_is_stated_known_given_or_unknown(tmp_path: Path, kind: str) -> None:
    path = made(tmp_path, kind)
    found = read_found(path)
    expected = {
        "npz": ("PBE", "def2-SVP", "known of the format"),
        "ani": ("wb97x", "6-31g*", "stated by the file"),
        "spice": ("wB97M-D3(BJ)", "def2-TZVPPD", "known of the format"),
    }
    if kind in expected:
        method, basis, source = expected[kind]
        assert (found.level.method, found.level.settings["basis"]) == (method, basis)
        assert found.level_source == source
    else:
        assert found.level is None
        assert found.levels == ()
        assert found.level_source == "unknown"
        assert all(is_unknown(frame.label.level) for frame in found.frames)
    given = read_found(path, ReadOptions(level=GIVEN))
    assert (given.level, given.level_source) == (GIVEN, "given")


@pytest.mark.parametrize("kind", WRITERS)
def test_options_apply_to_every_format(tmp_path: Path, kind: str) -> None:
    path = made(tmp_path, kind)
    charge = 0 if kind == "spice" else 1  # its SMILES states the charge, which goes before an option
    found = read_found(path, ReadOptions(charge=1, multiplicity=1 + charge, split=Split.TEST))
    assert {(f.structure.charge, f.structure.multiplicity) for f in found.frames} == {(charge, 1 + charge)}
    assert found.counts.splits == {"test": 12}
    lowest = read_found(path, ReadOptions(charge=-1, multiplicity="lowest"))
    assert {f.structure.multiplicity for f in lowest.frames} == {1 + charge}
    with pytest.raises(FormatError, match=r"10 electrons, which cannot have multiplicity 2.*hpcal import"):
        read_found(path, ReadOptions(multiplicity=2))


# ── npz ──────────────────────────────────────────────────────────────────────────────────────


def test_a_bare_npz_is_ambiguous_and_its_energies_are_named(tmp_path: Path) -> None:
    path = molecules.npz(tmp_path / "a.npz", FRAMES, old_indices=None, old_energies=None, old_forces=None)
    with pytest.raises(FormatError) as caught:
        read_found(path)
    for words in ("a.npz is ambiguous", "--energy-unit", "--length-unit", "total energies in kcal/mol"):
        assert words in str(caught.value)
    options = ReadOptions(energy_unit="kcal/mol", length_unit="angstrom")
    found = read_found(path, options)
    np.testing.assert_allclose(arrays(found)[2], FRAMES.forces, atol=1e-10)
    assert (found.units.force, found.units.source) == ("kcal/mol/Å", "given")
    assert found.level is None


def test_revised_md17_is_told_by_its_arrays_and_its_energies(tmp_path: Path) -> None:
    """Arrays of revised MD17 with energies in eV are not revised MD17."""
    path = molecules.npz(tmp_path / "a.npz", FRAMES, energies=FRAMES.energies)
    with pytest.raises(FormatError, match=r"ambiguous.*look like total energies in eV"):
        read_found(path)


def test_other_names_and_stated_units_of_npz(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "a.npz",
        z=NUMBERS,
        R=FRAMES.positions / BOHR,
        E=FRAMES.energies[:, None] / HARTREE,
        F=FRAMES.forces / HARTREE * BOHR,
        e_unit="Ha",
        r_unit="bohr",
        theory="PBE+TS",
    )
    found = read_found(tmp_path / "a.npz")
    np.testing.assert_allclose(arrays(found)[0], FRAMES.positions, atol=1e-10)
    np.testing.assert_allclose(arrays(found)[1], FRAMES.energies, atol=1e-8)
    np.testing.assert_allclose(arrays(found)[2], FRAMES.forces, atol=1e-10)
    assert (found.units.source, found.level.method) == ("stated by the file", "PBE+TS")
    with pytest.raises(FormatError, match="says that it is in Hartree, not eV"):
        read_found(tmp_path / "a.npz", ReadOptions(energy_unit="eV"))


def test_gradients_of_npz_by_name_or_option(tmp_path: Path) -> None:
    gradients = -FRAMES.forces / KCAL_PER_MOL
    by_name = molecules.npz(tmp_path / "a.npz", FRAMES, forces=None, gradients=gradients)
    units = {"energy_unit": "kcal/mol", "length_unit": "Å"}
    named = read_found(by_name, ReadOptions(**units))
    by_option = molecules.npz(tmp_path / "b.npz", FRAMES, forces=gradients)
    told = read_found(by_option, ReadOptions(gradient=True))
    for found in (named, told):
        assert found.units.gradient
        np.testing.assert_allclose(arrays(found)[2], FRAMES.forces, atol=1e-10)
    both = molecules.npz(tmp_path / "c.npz", FRAMES, gradients=gradients)
    with pytest.raises(FormatError, match="forces and gradients; choose with --forces-key"):
        read_found(both)
    chosen = read_found(both, ReadOptions(forces_key="gradients"))
    np.testing.assert_allclose(arrays(chosen)[2], FRAMES.forces, atol=1e-10)


# ── HDF5 ─────────────────────────────────────────────────────────────────────────────────────


def test_comp6_holds_gradients_and_a_sum_of_charges(tmp_path: Path) -> None:
    found = read_found(molecules.comp6(tmp_path / "a.h5", FRAMES))
    assert found.frames[0].label.charges.tolist() == [-0.6, 0.3, 0.3]
    assert found.frames[0].label.charge_scheme == "cm5"
    assert any("gradients" in note for note in found.notes)
    taken = read_found(tmp_path / "a.h5", ReadOptions(gradient=False))
    np.testing.assert_allclose(arrays(taken)[2], -FRAMES.forces, atol=1e-5)


def test_ani1x_has_levels_to_choose_from_and_gaps(tmp_path: Path) -> None:
    energies = FRAMES.energies / HARTREE
    gaps = energies.copy()
    gaps[3:5] = np.nan
    forces = FRAMES.forces / HARTREE
    forces[7] = np.nan
    groups = {
        "H2O": {
            "atomic_numbers": NUMBERS.astype("u1"),
            "coordinates": FRAMES.positions,
            "wb97x_dz.energy": gaps,
            "wb97x_dz.forces": forces,
            "wb97x_dz.cm5_charges": np.tile([[-0.6, 0.3, 0.3]], (12, 1)),
            "ccsd(t)_cbs.energy": energies - 0.1,
        }
    }
    path = h5(tmp_path / "ani1x.h5", groups)
    with pytest.raises(FormatError, match=r"wb97x_dz\.energy.*choose one with --energy-key") as caught:
        read_found(path)
    assert "ccsd(t)_cbs.energy" in str(caught.value)
    found = read_found(path, ReadOptions(energy_key="wb97x_dz.energy"))
    assert [f.label is None for f in found.frames] == [i in (3, 4) for i in range(12)]
    assert found.frames[7].label.forces is None
    np.testing.assert_allclose(found.frames[0].label.forces, FRAMES.forces[0], atol=1e-10)
    assert str(found.level) == "wb97x/6-31G* (ANI-1x)"
    assert any("2 conformations have no wb97x_dz.energy" in note for note in found.notes)
    best = read_found(path, ReadOptions(energy_key="ccsd(t)_cbs.energy"))
    assert best.counts.forces == 0
    np.testing.assert_allclose(best.frames[3].label.energy, FRAMES.energies[3] - 0.1 * HARTREE)


@pytest.mark.parametrize(("grouping", "name"), [("by_formula", "H2O"), ("by_num_atoms", "003")])
@pytest.mark.filterwarnings("ignore")
def test_what_torchani_writes(tmp_path: Path, grouping: str, name: str) -> None:
    import torch
    from torchani.datasets import ANIDataset

    path = tmp_path / "torchani.h5"
    dataset = ANIDataset(path, grouping=grouping)
    conformers = {
        "species": torch.tensor(NUMBERS).repeat(12, 1),
        "coordinates": torch.tensor(FRAMES.positions),
        "energies": torch.tensor(FRAMES.energies / HARTREE),
        "forces": torch.tensor(FRAMES.forces / HARTREE),
    }
    dataset.append_conformers(name, conformers)
    found = read_found(path)
    assert found.format == "ani"
    for one, other in zip(arrays(found), (FRAMES.positions, FRAMES.energies, FRAMES.forces), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-8)


def test_ani_energies_that_are_not_in_hartree_are_ambiguous(tmp_path: Path) -> None:
    group = {"coordinates": FRAMES.positions, "energies": FRAMES.energies, "species": NUMBERS}
    path = h5(tmp_path / "a.h5", {"H2O": group})
    with pytest.raises(FormatError, match=r"ambiguous.*Hartree, but its energies are total energies in eV"):
        read_found(path)
    found = read_found(path, ReadOptions(energy_unit="eV"))
    assert found.frames[2].label.energy == FRAMES.energies[2]
    stated = h5(tmp_path / "b.h5", {"H2O": group}, {"energies": "eV"})
    assert read_found(stated).frames[2].label.energy == FRAMES.energies[2]
    valence = {**group, "energies": (FRAMES.energies - molecules.TOTAL - 138.0) / HARTREE}
    assert read_found(h5(tmp_path / "c.h5", {"H2O": valence})).units.energy == "Hartree"


def test_spice_states_units_in_attributes(tmp_path: Path) -> None:
    silent = read_found(molecules.spice(tmp_path / "a.hdf5", FRAMES, units=False))
    assert silent.units.source == "known of the format"
    np.testing.assert_allclose(arrays(silent)[2], FRAMES.forces, atol=1e-10)
    path = molecules.spice(tmp_path / "b.hdf5", FRAMES, conformations=FRAMES.positions)
    with h5py.File(path, "r+") as file:
        file["water/conformations"].attrs["units"] = "angstrom"
    np.testing.assert_allclose(arrays(read_found(path))[0], FRAMES.positions, atol=1e-12)
    with h5py.File(path, "r+") as file:
        file["water/conformations"].attrs["units"] = "furlong"
    with pytest.raises(FormatError, match="/water/conformations: unknown unit of length 'furlong'"):
        read_found(path)


@pytest.mark.parametrize(
    ("smiles", "charge"),
    [
        ("[O:1]([H:2])[H:3]", 0),
        ("[H:2][O-:1]", -1),
        ("[Mg+2:1]", 2),
        ("[Ca++:4]", 2),
        ("[N+:1]([H:2])([H:3])([H:4])[C:5]([H:6])([H:7])[C:8](=[O:9])[O-:10]", 0),
        ("[Fe+3:1].[Cl-:2]", 2),
    ],
)
def test_formal_charges_of_smiles(smiles: str, charge: int) -> None:
    from rdkit import Chem

    from hpcal.exchange.spice_hdf5 import formal_charge

    assert formal_charge(smiles) == charge
    assert Chem.GetFormalCharge(Chem.MolFromSmiles(smiles)) == charge


def test_spice_charge_from_smiles_or_stated(tmp_path: Path) -> None:
    ion = molecules.spice(tmp_path / "a.hdf5", FRAMES, smiles=np.array([b"[O-2:1].[H+:2].[H+:3]"]))
    assert {f.structure.charge for f in read_found(ion).frames} == {0}
    path = molecules.spice(tmp_path / "b.hdf5", FRAMES, charge=np.array(-2))
    found = read_found(path)
    assert {f.structure.charge for f in found.frames} == {-2}
    assert found.frames[0].info["smiles"] == "[O:1]([H:2])[H:3]"


# ── ASE ──────────────────────────────────────────────────────────────────────────────────────


def test_ase_rows_with_state_stress_and_level(tmp_path: Path) -> None:
    atoms = Atoms("OH", [[0, 0, 0.0], [0, 0, 1.0]], cell=[8, 9, 10], pbc=True, magmoms=[1.0, 0.0])
    stress = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) / 64
    atoms.calc = SinglePointCalculator(
        atoms, energy=-3.25, forces=np.ones((2, 3)), stress=stress, dipole=[0, 0, 0.5], charges=[-0.3, 0.3]
    )
    record = {"code": "vasp", "version": "6", "method": "PBE", "settings": {"encut_eV": 520}}
    with ase.db.connect(str(tmp_path / "a.db")) as db:
        db.write(atoms, charge=-1, multiplicity=1, split="test")
        db.write(atoms, charge=0, spin=2, split="validation")
        db.metadata = {"level_of_theory": record}
    before = (tmp_path / "a.db").read_bytes()
    found = read_found(tmp_path / "a.db")
    first, second = found.frames
    assert (first.structure.charge, first.structure.multiplicity) == (-1, 1)
    assert (second.structure.charge, second.structure.multiplicity) == (0, 2)
    assert first.structure.magnetic_moments.tolist() == [1.0, 0.0]
    np.testing.assert_array_equal(first.label.stress, atoms.get_stress(voigt=False))
    assert first.label.dipole.tolist() == [0, 0, 0.5]
    assert first.label.charges.tolist() == [-0.3, 0.3]
    assert found.level == LevelOfTheory(**record)
    assert found.counts.splits == {"test": 1, "validation": 1}
    assert read_dataset(tmp_path / "a.db").splits.tolist() == ["test", "validation"]
    assert (tmp_path / "a.db").read_bytes() == before
    with pytest.raises(FormatError, match=r"a.db: the file says its level of theory is PBE"):
        read_found(tmp_path / "a.db", ReadOptions(level=GIVEN))


def test_ase_rows_without_results_are_structures(tmp_path: Path) -> None:
    with ase.db.connect(str(tmp_path / "a.db")) as db:
        db.write(Atoms(NUMBERS, FRAMES.positions[0]))
    found = read_found(tmp_path / "a.db")
    assert found.frames[0].label is None
    assert found.frames[0].structure == Structure(numbers=NUMBERS, positions=FRAMES.positions[0])
    with pytest.raises(FormatError, match="frame 1: no label"):
        read_labelled(tmp_path / "a.db")


# ── DeePMD ───────────────────────────────────────────────────────────────────────────────────


def test_a_virial_is_minus_the_stress_times_the_volume(tmp_path: Path) -> None:
    cells = np.tile(np.diag([8.0, 9.0, 10.0]), (12, 1, 1))
    virial = np.tile(np.arange(9.0), (12, 1))
    found = read_found(molecules.deepmd(tmp_path / "a", FRAMES, cells=cells, virial=virial))
    structure, label = found.frames[4].structure, found.frames[4].label
    assert structure.pbc == (True, True, True)
    np.testing.assert_array_equal(structure.cell, cells[4])
    np.testing.assert_allclose(label.stress, -np.arange(9.0).reshape(3, 3) / 720.0)


def test_mixed_types_and_padding_of_deepmd(tmp_path: Path) -> None:
    types = np.tile([0, 1, 1], (12, 1))
    types[5] = [0, -1, -1]
    folder = molecules.deepmd(tmp_path / "a", FRAMES, real_atom_types=types)
    (folder / "type.raw").write_text("0\n0\n0\n")
    frames = read_found(folder).frames
    assert [frame.structure.formula for frame in frames] == ["H2O"] * 5 + ["O"] + ["H2O"] * 6
    np.testing.assert_array_equal(frames[5].label.forces, FRAMES.forces[5, :1])


def test_several_systems_and_sets_of_deepmd(tmp_path: Path) -> None:
    for split in ("train", "test"):
        molecules.deepmd(tmp_path / "all" / split / "H2O", FRAMES)
    (tmp_path / "all/test/H2O/set.000").rename(tmp_path / "all/test/H2O/set.001")
    found = read_found(tmp_path / "all")
    assert found.counts.splits == {"test": 12, "train": 12}
    assert found.counts.structures == 24


# ── Extended XYZ ─────────────────────────────────────────────────────────────────────────────


def test_what_ase_writes_of_results(tmp_path: Path) -> None:
    atoms = Atoms(NUMBERS, FRAMES.positions[0], cell=[8, 9, 10], pbc=True)
    stress = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) / 64
    atoms.calc = SinglePointCalculator(
        atoms, energy=-3.25, forces=FRAMES.forces[0], stress=stress, charges=[-0.5, 0.25, 0.25]
    )
    ase.io.write(tmp_path / "a.extxyz", atoms)
    label = read_found(tmp_path / "a.extxyz").frames[0].label
    np.testing.assert_array_equal(label.stress, atoms.get_stress(voigt=False))
    assert label.charges.tolist() == [-0.5, 0.25, 0.25]


def test_a_virial_of_extended_xyz(tmp_path: Path) -> None:
    box = 'Lattice="8 0 0 0 9 0 0 0 10" Properties=species:S:1:pos:R:3 energy=1'
    text = "1\n%s %s\nHe 0 0 0\n"
    path = tmp_path / "a.xyz"
    path.write_text(text % (box, 'virial="0 1 2 1 4 5 2 5 8"'))
    virial = np.array([[0, 1, 2], [1, 4, 5], [2, 5, 8.0]])
    np.testing.assert_allclose(read_labelled(path)[0][1].stress, -virial / 720.0)
    path.write_text(text % (box, 'virial="0 1 2 1 4 5 2 5 8" stress="0 1 2 1 4 5 2 5 8"'))
    with pytest.raises(FormatError, match="stress and virial disagree"):
        read_found(path)


def test_names_that_the_user_gives(tmp_path: Path) -> None:
    path = molecules.extxyz(tmp_path / "a.xyz", FRAMES, energy="dft")
    with pytest.raises(FormatError, match=r"frame 1: no label.*keys there: dft.*--energy-key"):
        read_found(path)
    assert read_found(path, ReadOptions(energy_key="dft")).counts.energies == 12
    with pytest.raises(FormatError, match="`nothing`"):
        read_found(path, ReadOptions(energy_key="nothing", forces_key="none"))


def test_units_of_extended_xyz_that_are_not_the_usual(tmp_path: Path) -> None:
    path = molecules.extxyz(tmp_path / "a.xyz", FRAMES)
    found = read_found(path, ReadOptions(energy_unit="Hartree", length_unit="bohr"))
    np.testing.assert_allclose(arrays(found)[0], FRAMES.positions * BOHR)
    np.testing.assert_allclose(arrays(found)[1], FRAMES.energies * HARTREE)
    np.testing.assert_allclose(arrays(found)[2], FRAMES.forces * HARTREE / BOHR)


def test_state_under_the_keys_of_mace(tmp_path: Path) -> None:
    path = molecules.extxyz(tmp_path / "a.xyz", FRAMES, "total_charge=-1 total_spin=2 note=x")
    frame = read_found(path).frames[0]
    assert (frame.structure.charge, frame.structure.multiplicity) == (-1, 2)
    assert frame.info == {"note": "x"}
    path = molecules.extxyz(tmp_path / "a.xyz", FRAMES, "total_charge=-2 charge=0")
    with pytest.raises(FormatError, match="frame 1: ambiguous: charge=0 but total_charge=-2"):
        read_found(path)


def test_frames_with_and_without_labels(tmp_path: Path) -> None:
    path = molecules.extxyz(tmp_path / "a.xyz", FRAMES)
    path.write_text("1\nconfig_type=IsolatedAtom\nHe 0 0 0\n" + path.read_text())
    found = read_found(path)
    assert (found.counts.structures, found.counts.energies, found.counts.isolated_atoms) == (13, 12, 1)
    assert any("1 of 13 frames have no label" in note for note in found.notes)


def test_levels_of_frames(tmp_path: Path) -> None:
    record = json.dumps(GIVEN.as_dict()).replace('"', '\\"')
    found = read_found(molecules.extxyz(tmp_path / "a.xyz", FRAMES, f'level="{record}"'))
    assert (found.level, found.level_source) == (GIVEN, "stated by the file")
    other = molecules.extxyz(tmp_path / "b.xyz", FRAMES, "level=PBE0")
    (tmp_path / "c.xyz").write_text((tmp_path / "a.xyz").read_text() + other.read_text())
    mixed = read_found(tmp_path / "c.xyz")
    assert mixed.level is None
    assert [level.method for level in mixed.levels] == ["PBE", "PBE0"]


def test_a_unit_of_forces_that_the_file_states_is_kept_when_that_of_energies_is_given(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    content = {"coordinates": FRAMES.positions, "energies": FRAMES.energies / KCAL_PER_MOL}
    content |= {"forces": FRAMES.forces, "species": np.array([b"O", b"H", b"H"])}
    h5(path, {"water": content}, {"forces": "eV/angstrom"})
    read = read_found(path, ReadOptions(energy_unit="kcal/mol"))
    assert (read.units.energy, read.units.force, read.units.source) == ("kcal/mol", "eV/Å", "given")
    np.testing.assert_allclose(arrays(read)[2], FRAMES.forces)
    with pytest.raises(FormatError, match="says that it is in eV/Å, not Hartree/Å"):
        read_found(path, ReadOptions(energy_unit="kcal/mol", force_unit="Hartree/A"))
    h5(path, {"water": content | {"coordinates": FRAMES.positions / BOHR}}, {"energies": "kcal/mol"})
    read = read_found(path, ReadOptions(length_unit="bohr", force_unit="eV/A"))
    np.testing.assert_allclose(arrays(read)[0], FRAMES.positions)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_name_that_no_array_has_is_refused(tmp_path: Path, kind: str) -> None:
    path = made(tmp_path, kind)
    for key in ("energy_key", "forces_key", "stress_key"):
        with pytest.raises(FormatError):
            read_found(path, ReadOptions(**{key: "mistyped"}))


def test_columns_that_may_be_forces_are_noted(tmp_path: Path) -> None:
    path = molecules.extxyz(tmp_path / "a.extxyz", FRAMES)
    path.write_text(path.read_text().replace("REF_forces", "dft_gradient"))
    read = read_found(path)
    assert read.counts.forces == 0
    assert any("dft_gradient" in note and "--forces-key" in note for note in read.notes)


def test_moments_say_the_multiplicity_of_molecules_that_state_none(tmp_path: Path) -> None:
    path = tmp_path / "a.extxyz"
    text = "2\nProperties=species:S:1:pos:R:3:initial_magmoms:R:1 {}\nO 0 0 0 1.0\nO 0 0 1.2 {}\n"
    for keys, moment, expected in (("", 1.0, 3), ("", -1.0, 1), ("multiplicity=5", 1.0, 5)):
        path.write_text(text.format(keys, moment))
        assert read_structures(path)[0].multiplicity == expected
    path.write_text(text.format("", 0.0))
    with pytest.raises(FormatError, match="sum to 1 Bohr magnetons, and 16 electrons cannot have"):
        read_structures(path)
    with ase.db.connect(tmp_path / "a.db", use_lock_file=False) as db:
        db.write(Atoms("O2", [[0, 0, 0], [0, 0, 1.2]], magmoms=[1.0, 1.0]))
    assert read_structures(tmp_path / "a.db")[0].multiplicity == 3


def test_levels_of_equal_name_are_told_apart(tmp_path: Path) -> None:
    other = LevelOfTheory(code="orca", version="5.0", method="PBE", settings={"basis": "def2-SVP", "grid": 7})
    assert told_apart([GIVEN, other]) == [
        "PBE/def2-SVP (orca), version 4.2, no grid",
        "PBE/def2-SVP (orca), version 5.0, grid=7",
    ]
    assert told_apart([GIVEN]) == [str(GIVEN)]

"""A data set in extended XYZ: what MACE looks for is where it looks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ase.io
import numpy as np
import pytest
from exchange.data import LEVEL, made_up, molecules

from hpcal.core.dataset import Dataset
from hpcal.core.errors import InputError
from hpcal.core.label import Label
from hpcal.core.structure import Structure
from hpcal.exchange.extxyz import read_labelled_frames
from hpcal.exchange.extxyz_write import write_dataset

ARRAYS = ("energy", "forces", "stress", "dipole", "charges")


def test_a_data_set_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    dataset = made_up(24)
    # Crystals have no parity; the molecules with charge 2 keep an even number of electrons.
    assert write_dataset(tmp_path / "a.extxyz", dataset, "mace") == 24
    for i, frame in enumerate(read_labelled_frames(tmp_path / "a.extxyz")):
        assert frame.structure == dataset.structure(i)
        for name in ARRAYS:
            ours, theirs = getattr(frame.label, name), getattr(dataset.label(i), name)
            np.testing.assert_array_equal(ours, theirs)
        assert frame.label.level == LEVEL
        assert frame.info["split"] == dataset.splits[i]
        assert frame.info["structure_id"] == str(dataset.ids[i])
        assert float(frame.info.get("uncertainty", "nan")) == pytest.approx(
            dataset.uncertainties[i], nan_ok=True
        )


def test_ase_finds_what_mace_reads(tmp_path: Path) -> None:
    dataset = made_up(24)
    write_dataset(tmp_path / "a.extxyz", dataset, "mace")
    for i, atoms in enumerate(ase.io.read(tmp_path / "a.extxyz", index=":")):
        label = dataset.label(i)
        assert atoms.info["REF_energy"] == label.energy
        assert atoms.info["total_charge"] == dataset.charges[i]
        assert atoms.info["total_spin"] == dataset.multiplicities[i]
        assert atoms.info["config_type"] == dataset.origins[i]
        assert ("REF_forces" in atoms.arrays) == (label.forces is not None)
        if label.forces is not None:
            np.testing.assert_array_equal(atoms.arrays["REF_forces"], label.forces)
        assert ("REF_stress" in atoms.info) == (label.stress is not None)
        if label.stress is not None:
            np.testing.assert_array_equal(np.reshape(atoms.info["REF_stress"], (3, 3)), label.stress)
    write_dataset(tmp_path / "b.extxyz", dataset)
    assert "total_charge" not in (tmp_path / "b.extxyz").read_text()


def test_the_lowest_neutral_atom_of_an_element_is_its_isolated_atom(tmp_path: Path) -> None:
    def atom(number, energy, charge=0, multiplicity=1, pbc=False):
        structure = Structure(
            numbers=[number], positions=np.zeros((1, 3)), charge=charge, multiplicity=multiplicity,
            cell=5 * np.eye(3) if pbc else None, pbc=(pbc,) * 3,
        )  # fmt: skip
        return structure, Label(energy=energy, forces=np.zeros((1, 3)), level=LEVEL)

    pairs = [
        atom(1, -13.6, multiplicity=2),
        atom(8, -2040.0),
        atom(8, -2043.0, multiplicity=3),
        atom(11, -4400.0, charge=1),
        atom(29, -45000.0, pbc=True),
        atom(1, -13.5, multiplicity=2),
    ]
    atoms = Dataset.of([s for s, _ in pairs], [label for _, label in pairs])
    dataset = Dataset.concatenate([molecules(2), atoms])
    write_dataset(tmp_path / "a.extxyz", dataset)
    kinds = [a.info["config_type"] for a in ase.io.read(tmp_path / "a.extxyz", index=":")]
    # As MACE does it: the energy of each frame that is marked is the energy of its element.
    marked = [i for i, kind in enumerate(kinds) if kind == "IsolatedAtom"]
    assert {int(dataset.structure(i).numbers[0]): dataset.energies[i] for i in marked} == {
        1: -13.6,
        8: -2043.0,
    }
    assert len(marked) == 2
    assert kinds[:2] == ["bootstrap", "sample"]
    assert kinds[-1] == "Default"


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    dataset = molecules(4)
    with pytest.raises(InputError, match="not finite"):
        write_dataset(tmp_path / "a.extxyz", replace(dataset, energies=np.array([1, 2, 3, np.nan])))
    with pytest.raises(InputError, match="state the level"):
        write_dataset(tmp_path / "a.extxyz", replace(dataset, level=None))
    assert list(tmp_path.iterdir()) == []

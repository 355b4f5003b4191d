"""ANI-style HDF5 as torchani and h5py read it, in Hartree and Å."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from exchange.data import LEVEL, made_up, molecules

from hpcal.core.dataset import Dataset
from hpcal.core.errors import InputError
from hpcal.core.label import Label
from hpcal.core.structure import Structure
from hpcal.exchange.ani_write import write_ani
from hpcal.exchange.files import read_dataset

HARTREE = 27.211386245988
"""eV, CODATA 2018; ``ase.units`` has that of 2014."""


def test_torchani_reads_what_is_written(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchani.datasets import ANIDataset
    dataset = molecules(30)
    (note,) = write_ani(tmp_path / "a.h5", dataset)
    assert "origins of structures, generations, uncertainties at selection" in note
    found = ANIDataset(tmp_path / "a.h5", verbose=False)
    assert found.num_conformers == 30
    assert found.properties == {"species", "coordinates", "energies", "forces", "split"}
    seen = []
    for group in found.values():
        for numbers, positions, energy, forces in zip(
            group["species"], group["coordinates"], group["energies"], group["forces"], strict=True
        ):
            (i,) = np.flatnonzero(np.isclose(dataset.energies, energy.item() * HARTREE, rtol=1e-9))
            assert numbers.tolist() == dataset.structure(i).numbers.tolist()
            np.testing.assert_array_equal(positions.numpy(), dataset.structure(i).positions)
            np.testing.assert_allclose(forces.numpy() * HARTREE, dataset.forces_of(i), rtol=1e-8)
            assert energy.item() * HARTREE == pytest.approx(dataset.energies[i], rel=1e-8)
            seen.append(int(i))
    assert sorted(seen) == list(range(30))


def test_groups_are_formulas_in_one_order_of_atoms(tmp_path: Path) -> None:
    structures = [Structure(numbers=z, positions=np.eye(3) * i) for i, z in enumerate(
        ([8, 1, 1], [1, 8, 1], [8, 1, 1], [1, 1, 8]), start=1)]  # fmt: skip
    labels = [Label(energy=float(i), forces=np.full((3, 3), float(i)), level=LEVEL) for i in range(4)]
    write_ani(tmp_path / "a.h5", Dataset.of(structures, labels))
    with h5py.File(tmp_path / "a.h5") as file:
        assert sorted(file) == ["H2O", "H2O_2", "H2O_3"]
        assert file["H2O"]["species"][()].tolist() == [b"O", b"H", b"H"]
        np.testing.assert_allclose(file["H2O"]["energies"][()] * HARTREE, [0.0, 2.0])
        assert file["H2O"]["coordinates"].shape == (2, 3, 3)
        assert file["H2O"]["energies"].attrs["units"] == "hartree"
        assert file["H2O"]["forces"].attrs["units"] == "hartree/Å"
        assert "wb97x" in file.attrs["level_of_theory"]


def test_equal_data_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.h5", "b.h5"):
        write_ani(tmp_path / name, molecules(9))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_charges_have_a_place_and_are_noted(tmp_path: Path) -> None:
    dataset = molecules(4)
    dataset = replace(dataset, charges=np.array([0, 1, 0, -1]), multiplicities=np.array([1, 2, 3, 1]))
    note, _ = write_ani(tmp_path / "a.h5", dataset)
    assert "`charge` and `multiplicity`" in note
    with h5py.File(tmp_path / "a.h5") as file:
        states = {
            (round(e * HARTREE, 6), c, m)
            for g in file.values()
            for e, c, m in zip(g["energies"][()], g["charge"][()], g["multiplicity"][()], strict=True)
        }
    expected = zip(dataset.energies.round(6), dataset.charges, dataset.multiplicities, strict=True)
    assert states == set(expected)


def test_labels_without_forces(tmp_path: Path) -> None:
    dataset = molecules(6)
    note, _ = write_ani(tmp_path / "a.h5", replace(dataset, forces=np.full_like(dataset.forces, np.nan)))
    assert "energies only" in note
    with h5py.File(tmp_path / "a.h5") as file:
        assert all("forces" not in group for group in file.values())
    some = dataset.forces.copy()
    some[dataset.offsets[2] : dataset.offsets[3]] = np.nan
    with pytest.raises(
        InputError, match=r"cannot hold 1 of 6 structures \(the first is 102\).*\.extxyz, \.h5"
    ):
        write_ani(tmp_path / "b.h5", replace(dataset, forces=some))
    assert not (tmp_path / "b.h5").exists()


def test_what_it_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="periodic, and it knows molecules only"):
        write_ani(tmp_path / "a.h5", made_up(9))
    dataset = molecules(3)
    with pytest.raises(InputError, match="not finite is not written: structure 101"):
        write_ani(tmp_path / "a.h5", replace(dataset, energies=np.array([1.0, np.inf, 2.0])))
    with pytest.raises(InputError, match="cannot be written"):
        write_ani(tmp_path / "none" / "a.h5", dataset)
    assert list(tmp_path.iterdir()) == []


def test_hpcal_reads_it_back(tmp_path: Path) -> None:
    dataset = replace(molecules(20), charges=np.arange(20) % 2 * 2)
    write_ani(tmp_path / "a.h5", dataset)
    found = read_dataset(tmp_path / "a.h5")
    assert found.level == LEVEL
    assert {s.content_hash for s in found.structures()} == {s.content_hash for s in dataset.structures()}
    place = {s.content_hash: i for i, s in enumerate(dataset.structures())}
    for i, structure in enumerate(found.structures()):
        j = place[structure.content_hash]
        assert found.energies[i] == pytest.approx(dataset.energies[j], rel=1e-15)
        np.testing.assert_allclose(found.forces_of(i), dataset.forces_of(j), rtol=1e-15)


def test_splits_come_back(tmp_path: Path) -> None:
    splits = ["train", "test", "validation", "test", "train", "calibration"]
    dataset = replace(molecules(6), splits=np.array(splits))
    write_ani(tmp_path / "a.h5", dataset)
    again = read_dataset(tmp_path / "a.h5")
    by_energy = {round(float(e), 6): s for e, s in zip(again.energies, again.splits, strict=True)}
    assert [by_energy[round(float(e), 6)] for e in dataset.energies] == splits


def test_structures_that_moments_alone_tell_apart_are_refused(tmp_path: Path) -> None:
    structures = [
        Structure(numbers=[8, 8], positions=[[0, 0, 0], [0, 0, 1.2]], magnetic_moments=[m, -m])
        for m in (0.0, 1.0)
    ]
    labels = [Label(energy=float(i), forces=np.zeros((2, 3)), level=LEVEL) for i in range(2)]
    with pytest.raises(InputError, match=r"cannot hold 2 of 2 structures.*initial moments alone"):
        write_ani(tmp_path / "a.h5", Dataset.of(structures, labels))
    same = [replace(label, energy=1.0) for label in labels]
    (note,) = write_ani(tmp_path / "a.h5", Dataset.of(structures, same))
    assert "initial magnetic moments" in note

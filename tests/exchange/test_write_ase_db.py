"""Databases of ASE as ``ase.db`` reads them."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.calculators.singlepoint import PropertyNotImplementedError
from ase.db import connect
from ase.stress import voigt_6_to_full_3x3_stress
from exchange.data import LEVEL, made_up, molecules

from hpcal.core.errors import InputError
from hpcal.core.structure import from_ase
from hpcal.exchange.ase_db_write import write_ase_db
from hpcal.exchange.files import read_dataset


def test_ase_reads_what_is_written(tmp_path: Path) -> None:
    dataset = made_up(30)
    assert write_ase_db(tmp_path / "a.db", dataset) == []
    database = connect(tmp_path / "a.db")
    assert database.metadata["level_of_theory"] == LEVEL.as_dict()
    assert database.metadata["units"]["forces"] == "eV/Å"
    assert len(database) == 30
    for i, row in enumerate(database.select(sort="id")):
        atoms, label = row.toatoms(), dataset.label(i)
        pairs = row.key_value_pairs
        assert from_ase(
            atoms, charge=pairs["total_charge"], multiplicity=pairs["multiplicity"]
        ) == dataset.structure(i)
        assert atoms.get_potential_energy() == label.energy
        for value, get in (
            (label.forces, atoms.get_forces),
            (label.stress, lambda a=atoms: voigt_6_to_full_3x3_stress(a.get_stress())),
            (label.dipole, atoms.get_dipole_moment),
            (label.charges, atoms.get_charges),
        ):
            if value is None:
                with pytest.raises(PropertyNotImplementedError):
                    get()
            else:
                np.testing.assert_allclose(get(), value, rtol=1e-15)
        assert pairs["split"] == dataset.splits[i]
        assert pairs["structure_id"] == dataset.ids[i]
        assert pairs["origin"] == dataset.origins[i]
        assert pairs["generation"] == dataset.generations[i]
        assert pairs.get("uncertainty", np.nan) == pytest.approx(dataset.uncertainties[i], nan_ok=True)
        assert pairs["level"] == "wb97x/6-31g* (pyscf)"
    assert [row.structure_id for row in database.select(split="test", total_charge=0)] == [
        i
        for i, s, c in zip(dataset.ids, dataset.splits, dataset.charges, strict=True)
        if s == "test" and c == 0
    ]


def test_many_rows_take_one_transaction(tmp_path: Path) -> None:
    dataset = molecules(500)
    start = time.process_time()
    write_ase_db(tmp_path / "a.db", dataset)
    assert time.process_time() - start < 5
    assert [path.name for path in tmp_path.iterdir()] == ["a.db"]


def test_only_a_database_of_ase_gives_way(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    write_ase_db(path, molecules(3))
    write_ase_db(path, molecules(2))
    assert len(connect(path)) == 2
    for content in (b"notes", b""):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is no database of ASE"):
            write_ase_db(path, molecules(2))
        assert path.read_bytes() == content


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    dataset = molecules(5)
    with pytest.raises(InputError, match="not finite"):
        write_ase_db(tmp_path / "a.db", replace(dataset, energies=np.array([1, 2, 3, np.nan, 5])))
    with pytest.raises(InputError, match="state the level"):
        write_ase_db(tmp_path / "a.db", replace(dataset, level=None))
    with pytest.raises(InputError, match="cannot be written"):
        write_ase_db(tmp_path / "none" / "a.db", dataset)
    assert list(tmp_path.iterdir()) == []


def test_hpcal_reads_it_back(tmp_path: Path) -> None:
    dataset = made_up(30)
    write_ase_db(tmp_path / "a.db", dataset)
    found = read_dataset(tmp_path / "a.db")
    assert found.level == LEVEL
    assert found.structures() == dataset.structures()
    assert found.splits.tolist() == dataset.splits.tolist()
    np.testing.assert_array_equal(found.energies, dataset.energies)
    np.testing.assert_array_equal(found.forces, dataset.forces)
    np.testing.assert_allclose(found.stresses, dataset.stresses, rtol=1e-15)
    np.testing.assert_array_equal(found.dipoles, dataset.dipoles)


def test_origins_of_dipoles_and_schemes_of_charges_come_back(tmp_path: Path) -> None:
    dataset = made_up(6)
    origins = np.where(np.isfinite(dataset.dipoles), 0.5, np.nan)
    write_ase_db(tmp_path / "a.db", replace(dataset, dipole_origins=origins))
    again = read_dataset(tmp_path / "a.db")
    np.testing.assert_array_equal(again.dipole_origins, origins)
    assert again.charge_schemes.tolist() == dataset.charge_schemes.tolist()


def test_a_stress_that_is_not_symmetric_is_refused(tmp_path: Path) -> None:
    dataset = made_up(6)
    stresses = dataset.stresses.copy()
    stresses[3, 0, 1] += 0.01
    with pytest.raises(InputError, match=r"1 of 6 structures \(the first is 103\): .*not symmetric"):
        write_ase_db(tmp_path / "a.db", replace(dataset, stresses=stresses))

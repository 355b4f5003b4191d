"""Writes databases of ASE (``ase.db``, SQLite): one row a structure, with the label as its results.

Energy, forces, stress, dipole and partial charges are where ASE keeps results of a calculator; ASE's
units are ours, and so is the sign of its stress. Key-value pairs of a row: ``total_charge``,
``multiplicity``, ``split``, ``structure_id``, ``level``, and ``origin``, ``generation``, ``uncertainty``,
``charge_scheme`` where known; ``dipole_origin`` (Å) is in the data of a row.
A key ``charge`` would be hidden by ``AtomsRow.charge``, the sum of initial charges. The metadata of
the database hold the whole record of the level of theory and the units.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any, Final

import numpy as np

from hpcal.core.arrays import AnyArray
from hpcal.core.dataset import Dataset
from hpcal.core.errors import InputError
from hpcal.core.label import Label
from hpcal.core.structure import to_ase
from hpcal.exchange.atomic import replacing
from hpcal.exchange.grouping import refuse, refuse_not_finite

UNITS: Final = {
    "energy": "eV",
    "forces": "eV/Å",
    "stress": "eV/Å^3",
    "dipole": "e Å",
    "charges": "e",
    "positions": "Å",
}
ASYMMETRY: Final = 1e-3
ASYMMETRY_EV_PER_A3: Final = 1e-5
"""Differences of σ_ij and σ_ji beyond which a stress is not symmetric: of its size, and 16 bar."""


def write_ase_db(path: Path, dataset: Dataset) -> list[str]:
    """Writes a data set, whole or not at all; a database of ASE that was there gives way.

    Returns:
        Notes for the user, one sentence each.

    Raises:
        InputError: the level of theory is not known, numbers that are not finite, or a path that is
            something else or cannot be written.
    """
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.db import connect

    refuse_not_finite(dataset)
    refuse_other_file(path)
    refuse(_not_symmetric(dataset), dataset, "a database of ASE", "their stress is not symmetric")
    if dataset.level is None:
        raise InputError("labels of an unknown level of theory: state the level")
    with replacing(path) as out:
        try:
            # The file is there already, and nobody else knows its name: it needs no lock.
            database = connect(out.name, type="db", use_lock_file=False)
            database.metadata = {"level_of_theory": dataset.level.as_dict(), "units": UNITS}
            with database:
                for i in range(len(dataset)):
                    atoms, results = to_ase(dataset.structure(i)), _results(dataset.label(i))
                    atoms.calc = SinglePointCalculator(atoms, **results)
                    database.write(atoms, data=_data(dataset, i), **_pairs(dataset, i))
        except sqlite3.Error as error:
            raise InputError(f"{path} cannot be written: {error}") from error
    return []


def _results(label: Label) -> dict[str, Any]:
    """Results of a label, under ASE's names; the stress in the order xx, yy, zz, yz, xz, xy."""
    stress = label.stress
    if stress is not None:
        symmetric = (stress + stress.T) / 2
        stress = symmetric[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    results = {
        "energy": label.energy,
        "forces": label.forces,
        "stress": stress,
        "dipole": label.dipole,
        "charges": label.charges,
    }
    return {name: value for name, value in results.items() if value is not None}


def _not_symmetric(dataset: Dataset) -> AnyArray:
    """(n,) bool, stresses of which six numbers would be others than the nine that there are."""
    if dataset.stresses is None:
        return np.zeros(len(dataset), dtype=bool)
    off = np.abs(dataset.stresses - dataset.stresses.transpose(0, 2, 1)).max(axis=(1, 2))
    size = np.abs(dataset.stresses).max(axis=(1, 2))
    return np.asarray(np.nan_to_num(off) > ASYMMETRY_EV_PER_A3 + ASYMMETRY * np.nan_to_num(size))


def _data(dataset: Dataset, i: int) -> dict[str, Any]:
    """What is no number or word: the point that the dipole is about, Å."""
    if dataset.dipole_origins is None or not np.isfinite(dataset.dipole_origins[i]).all():
        return {}
    return {"dipole_origin": dataset.dipole_origins[i].tolist()}


def _pairs(dataset: Dataset, i: int) -> dict[str, Any]:
    pairs: dict[str, Any] = {
        "total_charge": int(dataset.charges[i]),
        "multiplicity": int(dataset.multiplicities[i]),
        "split": str(dataset.splits[i]),
        "structure_id": int(dataset.ids[i]),
        "level": str(dataset.level),
    }
    if dataset.charge_schemes is not None and dataset.charge_schemes[i]:
        pairs["charge_scheme"] = str(dataset.charge_schemes[i])
    if dataset.origins is not None and dataset.origins[i]:
        pairs["origin"] = str(dataset.origins[i])
    if dataset.generations is not None and dataset.generations[i] >= 0:
        pairs["generation"] = int(dataset.generations[i])
    if dataset.uncertainties is not None and np.isfinite(dataset.uncertainties[i]):
        pairs["uncertainty"] = float(dataset.uncertainties[i])
    return pairs


def refuse_other_file(path: Path) -> None:
    """Raises InputError if a file is there that is no database of ASE."""
    if not path.exists():
        return
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            known = "SELECT count(*) FROM sqlite_master WHERE name IN ('systems', 'number_key_values')"
            ours = connection.execute(known).fetchone()[0] == 2
        finally:
            connection.close()
    except sqlite3.Error:
        ours = False
    if not ours:
        raise InputError(f"{path} is there and is no database of ASE: give another name")

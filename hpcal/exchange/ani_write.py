"""Writes ANI-style HDF5: a group for each formula, as ``torchani.datasets`` and COMP6 have them.

=================  ==================  ==============================================
in each group      shape               meaning
=================  ==================  ==============================================
``species``        (N,) texts          element symbols, the same for all structures
``coordinates``    (B, N, 3)           Å
``energies``       (B,)                Hartree
``forces``         (B, N, 3)           Hartree/Å; absent if no label has forces
``charge``         (B,)                e; only if one structure of the file is charged
                                       or no singlet
``multiplicity``   (B,)                likewise
``split``          (B,) whole numbers  places in the attribute ``names``, a list in JSON
=================  ==================  ==============================================

The layout is that of ANI-1x and COMP6 (10.1038/s41597-020-0473-z, 10.1063/1.5023802). Units and the
level of theory are attributes, which torchani ignores.
"""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from hpcal.core import elements
from hpcal.core.arrays import AnyArray
from hpcal.core.dataset import Dataset
from hpcal.core.units import HARTREE
from hpcal.core.walker import Split
from hpcal.exchange.atomic import replacing
from hpcal.exchange.grouping import (
    WORDS,
    Group,
    groups,
    left_out,
    refuse,
    refuse_equal_without_moments,
    refuse_not_finite,
    states,
)

NAME: Final = "ANI-style HDF5"
UNITS: Final = {
    "coordinates": "Å",
    "energies": "hartree",
    "forces": "hartree/Å",
    "charge": "e",
    "multiplicity": "",
    "split": "",
}
SPLITS: Final = tuple(str(split) for split in Split)


def write_ani(path: Path, dataset: Dataset) -> list[str]:
    """Writes a data set, whole or not at all; equal data give equal bytes.

    Returns:
        Notes for the user, one sentence each.

    Raises:
        InputError: structures that are periodic, labels of which only some have forces, numbers
            that are not finite, or a path that cannot be written.
    """
    refuse(
        np.asarray(dataset.pbc.any(axis=1)), dataset, NAME, "they are periodic, and it knows molecules only"
    )
    refuse_equal_without_moments(dataset, NAME)
    refuse_not_finite(dataset)
    has_forces = dataset.has_forces
    if has_forces.any():
        problem = "their labels have no forces, and it has forces for all structures or for none"
        refuse(~has_forces, dataset, NAME, problem)
    with_states = bool(states(dataset).any())
    level = json.dumps(dataset.level.as_dict(), sort_keys=True) if dataset.level else "unknown"
    # In memory, as HDF5 cannot close a file whose disk is full: it would stay open in this process.
    memory = BytesIO()
    with h5py.File(memory, "w", track_order=False) as file:
        file.attrs["level_of_theory"] = level
        for group in groups(dataset):
            arrays = _arrays(dataset, group, forces=bool(has_forces.any()), with_states=with_states)
            _write_group(file.create_group(group.name), group, arrays)
    with replacing(path) as out:
        out.write(memory.getbuffer())
    notes = []
    if with_states:
        notes.append("charges and multiplicities are under `charge` and `multiplicity`, which ANI ignores")
    if not has_forces.any():
        notes.append("no label has forces: the file holds energies only")
    return [*notes, *left_out(dataset, NAME, tuple(WORDS))]


def _arrays(dataset: Dataset, group: Group, *, forces: bool, with_states: bool) -> dict[str, AnyArray]:
    arrays: dict[str, AnyArray] = {
        "coordinates": dataset.positions[group.atoms],
        "energies": dataset.energies[group.index] / HARTREE,
    }
    if forces:
        arrays["forces"] = dataset.forces[group.atoms] / HARTREE
    arrays["split"] = np.array([SPLITS.index(str(s)) for s in dataset.splits[group.index]], dtype="u1")
    if with_states:
        arrays["charge"] = dataset.charges[group.index]
        arrays["multiplicity"] = dataset.multiplicities[group.index]
    return arrays


def _write_group(place: Any, group: Group, arrays: dict[str, AnyArray]) -> None:
    symbols = [elements.symbol(z) for z in group.numbers.tolist()]
    place.create_dataset("species", data=np.array(symbols, dtype="S2"), track_times=False)
    for name, array in arrays.items():
        stored = place.create_dataset(name, data=np.ascontiguousarray(array), track_times=False)
        stored.attrs["units"] = UNITS[name]
        if name == "split":
            stored.attrs["names"] = json.dumps(SPLITS)

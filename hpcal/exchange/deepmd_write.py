"""Writes DeePMD's folders of numpy files (``deepmd/npy``), in eV and Å, as float64.

::

    OUT/train/H2O/type.raw           index into type_map.raw, one line an atom
                  type_map.raw       element symbols, the same in all folders
                  nopbc              there for molecules
                  set.000/coord.npy  (B, 3 N) Å
                          energy.npy (B,) eV
                          force.npy  (B, 3 N) eV/Å; absent where labels have no forces
                          box.npy    (B, 9) Å, rows are lattice vectors; absent for molecules
                          virial.npy (B, 9) eV; absent where labels have no stress
        validation/…                 a folder for each split, so that test structures stay apart

Each folder with a ``type.raw`` is a system: structures of the same atoms in the same order. The virial
is minus the derivative of the energy with respect to strain, ``-stress × volume`` with our stress, which
is positive in tension; the same as in dpdata (``dpdata/plugins/ase.py``). Format: DeePMD-kit, "System"
(https://docs.deepmodeling.com/projects/deepmd/en/stable/data/system.html).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

import numpy as np

from hpcal.core import elements
from hpcal.core.arrays import AnyArray
from hpcal.core.dataset import Dataset
from hpcal.core.errors import InputError
from hpcal.exchange.atomic import sync_folder
from hpcal.exchange.grouping import (
    WORDS,
    Group,
    groups,
    left_out,
    mixed_states,
    refuse,
    refuse_equal_without_moments,
    refuse_not_finite,
    state_note,
)

NAME: Final = "DeePMD"
TYPES: Final = "type.raw"


def write_deepmd(path: Path, dataset: Dataset) -> list[str]:
    """Writes a data set as a folder, whole or not at all; such a folder that was there gives way.

    Returns:
        Notes for the user, one sentence each.

    Raises:
        InputError: structures periodic in one or two directions, a formula with several charges or
            multiplicities, numbers that are not finite, or a path that is something else or cannot
            be written.
    """
    periodic = np.asarray(dataset.pbc.all(axis=1))
    partly = np.asarray(dataset.pbc.any(axis=1) & ~periodic)
    refuse(partly, dataset, NAME, "they are periodic in one or two directions, and it knows three or none")
    problem = "their formula occurs with several charges or multiplicities, and it has no place for either"
    refuse(mixed_states(dataset), dataset, NAME, problem)
    refuse_equal_without_moments(dataset, NAME)
    refuse_not_finite(dataset)
    with _replacing_folder(path) as scratch:
        for split in np.unique(dataset.splits).tolist():
            part = dataset.take(np.flatnonzero(dataset.splits == split))
            for group in groups(part, _kinds(part)):
                folder = scratch / split / group.name
                folder.mkdir(parents=True)
                _write_system(folder, part, group, dataset.elements)
    notes = state_note(dataset, NAME)
    if without := int((~dataset.has_forces).sum()):
        notes.append(f"{without} structures have no forces: their folders hold energies only")
    more = [] if dataset.level is None else [f"the level of theory ({dataset.level})"]
    if dataset.stresses is not None and np.isfinite(dataset.stresses[~periodic]).any():
        more.append("stresses of structures that are not periodic")
    return [*notes, *left_out(dataset, NAME, [name for name in WORDS if name != "stresses"], more)]


def _kinds(dataset: Dataset) -> list[tuple[bool, bool, bool]]:
    """Of each structure: whether it is periodic, has forces, and has a stress."""
    periodic = np.asarray(dataset.pbc.all(axis=1))
    has_stress = np.zeros(len(dataset), dtype=bool)
    if dataset.stresses is not None:
        has_stress = periodic & np.asarray(np.isfinite(dataset.stresses).all(axis=(1, 2)))
    return list(zip(periodic.tolist(), dataset.has_forces.tolist(), has_stress.tolist(), strict=True))


def _write_system(folder: Path, dataset: Dataset, group: Group, type_map: tuple[int, ...]) -> None:
    periodic, with_forces, with_stress = group.apart
    types = np.searchsorted(type_map, group.numbers)
    _write_lines(folder / TYPES, types.tolist())
    _write_lines(folder / "type_map.raw", [elements.symbol(z) for z in type_map])
    count = len(group.index)
    arrays: dict[str, AnyArray] = {
        "coord": dataset.positions[group.atoms].reshape(count, -1),
        "energy": dataset.energies[group.index],
    }
    if with_forces:
        arrays["force"] = dataset.forces[group.atoms].reshape(count, -1)
    if periodic:
        arrays["box"] = dataset.cells[group.index].reshape(count, 9)
    else:
        _write_lines(folder / "nopbc", [])
    if with_stress and dataset.stresses is not None:
        volumes = np.abs(np.linalg.det(dataset.cells[group.index]))
        arrays["virial"] = (-volumes[:, None, None] * dataset.stresses[group.index]).reshape(count, 9)
    place = folder / "set.000"
    place.mkdir()
    for name, array in arrays.items():
        with (place / f"{name}.npy").open("xb") as file:
            np.save(file, np.ascontiguousarray(array, dtype="<f8"), allow_pickle=False)
            os.fsync(file.fileno())


def _write_lines(path: Path, lines: list[int] | list[str]) -> None:
    with path.open("x") as file:
        file.writelines(f"{line}\n" for line in lines)


def refuse_other_folder(path: Path) -> None:
    """Raises InputError unless ``path`` is new, empty, or a folder of DeePMD systems and nothing else."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; DeePMD data are a folder")
    if not path.is_dir():
        return
    for folder, folders, files in os.walk(path):
        if TYPES in files:
            folders.clear()
        elif files or (not folders and Path(folder) != path):
            raise InputError(
                f"{path} is not empty and holds other things than DeePMD data: give another folder"
            )


@contextmanager
def _replacing_folder(path: Path) -> Iterator[Path]:
    """A folder that takes the place of ``path`` when the block ends without an exception."""
    refuse_other_folder(path)
    scratch = path.with_name(f".{path.name}.{uuid4().hex[:12]}.part")
    try:
        scratch.mkdir()
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}: {path.parent}") from error
    try:
        yield scratch
        if path.exists():
            old = path.with_name(f".{path.name}.{uuid4().hex[:12]}.old")
            path.rename(old)
            scratch.rename(path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            scratch.rename(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    sync_folder(path.parent)

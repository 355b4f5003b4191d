"""The front door for data files: extension and content say how a file is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from hpcal.core.dataset import Dataset
from hpcal.core.errors import FormatError
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure
from hpcal.core.walker import Split
from hpcal.exchange import extxyz, hdf5
from hpcal.exchange.ani_hdf5 import read_ani
from hpcal.exchange.ase_db import read_ase
from hpcal.exchange.deepmd import read_deepmd
from hpcal.exchange.found import Format, Found, FoundFrame, ReadOptions, unknown_level
from hpcal.exchange.h5_groups import groups_with, opened
from hpcal.exchange.levels import told_apart
from hpcal.exchange.npz import read_npz
from hpcal.exchange.overlap import overlap_problem
from hpcal.exchange.scale import INSIDE, FileUnits, refuse_names, resolve, stated_of
from hpcal.exchange.spice_hdf5 import read_spice

_EXTENSIONS: Final[dict[str, Format | None]] = {
    ".xyz": "extxyz",
    ".extxyz": "extxyz",
    ".h5": None,
    ".hdf5": None,
    ".npz": "npz",
    ".db": "ase",
}
"""Format of each extension; None where several formats share it and the content decides."""


def read_found(path: Path, options: ReadOptions | None = None) -> Found:
    """Everything that a data file or a DeePMD folder holds, in the units of hpcal.

    Raises:
        FormatError: the file cannot be read whole, its extension says nothing, it is ambiguous
            without further options, or its values make no sense; one sentence with the place.
    """
    options = options or ReadOptions()
    return _READERS[options.format or format_of(path)](path, options)


def format_of(path: Path) -> Format:
    """The format of a file or folder, by its extension and content.

    Raises:
        FormatError: it is none that is read.
    """
    if path.is_dir() and path.suffix.lower() not in (".xyz", ".extxyz"):
        return "deepmd"
    if path.suffix.lower() not in _EXTENSIONS:
        known = ", ".join(_EXTENSIONS)
        raise FormatError(
            f"{path}: the extension {path.suffix!r} is not one that is read ({known}, and folders of DeePMD)"
        )
    return _EXTENSIONS[path.suffix.lower()] or _hdf5_format(path)


def read_structures(path: Path, min_distance_factor: float | None = None) -> list[Structure]:
    """The structures of a file, whether labelled or not.

    Args:
        min_distance_factor: as for :func:`hpcal.exchange.extxyz.read_structures`.

    Raises:
        FormatError: the file cannot be read, or its extension says nothing.
    """
    if format_of(path) == "extxyz":
        return extxyz.read_structures(path, min_distance_factor)
    structures = [frame.structure for frame in read_found(path).frames]
    for number, structure in enumerate(structures, start=1):
        if min_distance_factor is not None and (problem := overlap_problem(structure, min_distance_factor)):
            raise FormatError(f"{path}, frame {number}: {problem}")
    return structures


def read_labelled(path: Path, level: LevelOfTheory | None = None) -> list[tuple[Structure, Label]]:
    """The structures of a file and their labels.

    Args:
        level: the level of theory where the file does not state it.

    Raises:
        FormatError: the file cannot be read, has no labels, or its extension says nothing.
    """
    if format_of(path) == "extxyz":
        return extxyz.read_labelled(path, level)
    frames = _all_labelled(path, level)
    return [(frame.structure, frame.label) for frame in frames if frame.label is not None]


def read_dataset(path: Path, level: LevelOfTheory | None = None) -> Dataset:
    """The labelled structures of a file as one data set.

    Ids are places in the file, but for files of hpcal, which hold them; the split of a structure is
    kept, ``train`` where it has none.

    Args:
        level: the level of theory where the file does not state it.

    Raises:
        FormatError: as for :func:`read_labelled`.
        hpcal.core.errors.InputError: labels of more than one level of theory.
    """
    if (kind := format_of(path)) == "hpcal":
        return _shard(path, level)
    if kind == "extxyz":
        frames: list[FoundFrame] = [
            FoundFrame(structure=frame.structure, label=frame.label, info=frame.info)
            for frame in extxyz.read_labelled_frames(path, level)
        ]
    else:
        frames = _all_labelled(path, level)
    return Dataset.of(
        [frame.structure for frame in frames],
        [frame.label for frame in frames if frame.label is not None],
        splits=[split_of(frame.info.get("split"), f"{path}, frame {i}") for i, frame in enumerate(frames, 1)],
    )


def _all_labelled(path: Path, level: LevelOfTheory | None) -> list[FoundFrame]:
    frames = list(read_found(path, ReadOptions(level=level)).frames)
    for number, frame in enumerate(frames, start=1):
        if frame.label is None:
            raise FormatError(f"{path}, frame {number}: no label: it has no energy")
    return frames


def split_of(text: object, where: str) -> Split:
    """A split by its name, ``train`` for None. Raises FormatError for an unknown one."""
    if text is None:
        return Split.TRAIN
    try:
        return Split(str(text))
    except ValueError:
        known = ", ".join(Split)
        raise FormatError(f"{where}: unknown split {str(text)!r}; known: {known}") from None


def read_hpcal(path: Path, options: ReadOptions) -> Found:
    """The structures of an HDF5 file of hpcal, which states units and level itself.

    Raises:
        FormatError: as for :func:`hpcal.exchange.hdf5.read_shard`; a level that contradicts the
            one given.
    """
    refuse_names(path, options, "a file of hpcal")
    own = FileUnits(
        energy=INSIDE.energy,
        length=INSIDE.length,
        force=INSIDE.force,
        stated=stated_of(energy=INSIDE.energy, length=INSIDE.length, force=INSIDE.force),
    )
    scale = resolve(path, options, own)
    dataset = _shard(path, options.level)
    if scale.gradient:
        dataset = replace(dataset, forces=-dataset.forces)
    stated = dataset.level is not None and options.level is None
    known = replace(dataset, level=dataset.level or unknown_level(path))
    frames = [
        FoundFrame(structure=known.structure(i), label=known.label(i), info=_info(known, i))
        for i in range(len(known))
    ]
    return Found(
        path=path,
        format="hpcal",
        frames=frames,
        units=scale.read(),
        notes=("forces of the file are gradients, whose sign was turned",) if scale.gradient else (),
        level_source="stated by the file" if stated else "given" if options.level else "unknown",
    )


def _info(dataset: Dataset, i: int) -> dict[str, object]:
    info: dict[str, object] = {"structure_id": int(dataset.ids[i]), "split": str(dataset.splits[i])}
    if dataset.origins is not None and dataset.origins[i]:
        info["origin"] = str(dataset.origins[i])
    if dataset.generations is not None and dataset.generations[i] >= 0:
        info["generation"] = int(dataset.generations[i])
    if dataset.uncertainties is not None and np.isfinite(dataset.uncertainties[i]):
        info["uncertainty"] = float(dataset.uncertainties[i])
    return info


def _shard(path: Path, level: LevelOfTheory | None) -> Dataset:
    dataset = hdf5.read_shard(path)
    if dataset.level is not None and level is not None and level != dataset.level:
        stated, given = told_apart((dataset.level, level))
        raise FormatError(f"{path} says its level of theory is {stated}, not {given}")
    return replace(dataset, level=dataset.level or level)


def _hdf5_format(path: Path) -> Format:
    with opened(path) as file:
        if file.attrs.get("format") == hdf5.FORMAT:
            return "hpcal"
        if groups_with(file, "conformations"):
            return "spice"
        if groups_with(file, "coordinates"):
            return "ani"
        there = ", ".join(list(file)[:8]) or "nothing"
    raise FormatError(
        f"{path} is an HDF5 file of none of the layouts that are read: hpcal's own, SPICE (groups with "
        f"`conformations`) or ANI (groups with `coordinates`); it holds {there}"
    )


_READERS: Final[dict[Format, Callable[[Path, ReadOptions], Found]]] = {
    "extxyz": extxyz.read_extxyz,
    "npz": read_npz,
    "ani": read_ani,
    "spice": read_spice,
    "hpcal": read_hpcal,
    "ase": read_ase,
    "deepmd": read_deepmd,
}

"""The front door for data files: the extension says how a file is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

from hpcal.core.dataset import Dataset
from hpcal.core.errors import FormatError
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure
from hpcal.core.walker import Split
from hpcal.exchange import extxyz, hdf5
from hpcal.exchange.overlap import overlap_problem

_KINDS: Final[dict[str, Literal["xyz", "hdf5"]]] = {
    ".xyz": "xyz",
    ".extxyz": "xyz",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
}


def read_structures(path: Path, min_distance_factor: float | None = None) -> list[Structure]:
    """The structures of a file, whether labelled or not.

    Args:
        min_distance_factor: as for :func:`hpcal.exchange.extxyz.read_structures`.

    Raises:
        FormatError: the file cannot be read, or its extension says nothing.
    """
    if _kind(path) == "xyz":
        return extxyz.read_structures(path, min_distance_factor)
    structures = hdf5.read_shard(path).structures()
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
    if _kind(path) == "xyz":
        return extxyz.read_labelled(path, level)
    return hdf5.read_labelled_hdf5(path, level)


def read_dataset(path: Path, level: LevelOfTheory | None = None) -> Dataset:
    """The labelled structures of a file as one data set.

    Ids of an extended XYZ file are places in it; its key ``split`` is kept, ``train`` if absent.

    Args:
        level: the level of theory where the file does not state it.

    Raises:
        FormatError: as for :func:`read_labelled`.
        hpcal.core.errors.InputError: labels of more than one level of theory.
    """
    if _kind(path) == "hdf5":
        dataset = hdf5.read_shard(path)
        if dataset.level is not None and level not in (None, dataset.level):
            raise FormatError(f"{path} says its level of theory is {dataset.level}, not {level}")
        return replace(dataset, level=dataset.level or level)
    frames = extxyz.read_labelled_frames(path, level)
    return Dataset.of(
        [frame.structure for frame in frames],
        [frame.label for frame in frames],
        splits=[_split(frame.info.get("split"), number, path) for number, frame in enumerate(frames, 1)],
    )


def _split(text: str | None, number: int, path: Path) -> Split:
    if text is None:
        return Split.TRAIN
    try:
        return Split(text)
    except ValueError:
        known = ", ".join(Split)
        raise FormatError(f"{path}, frame {number}: unknown split {text!r}; known: {known}") from None


def _kind(path: Path) -> Literal["xyz", "hdf5"]:
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        known = ", ".join(_KINDS)
        raise FormatError(f"{path}: the extension {path.suffix!r} is not one that is read ({known})")
    return kind

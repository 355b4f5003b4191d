"""Shards: immutable HDF5 files of labelled structures, named by the hash of their bytes.

A shard holds the flat arrays of :class:`~hpcal.core.dataset.Dataset`, one HDF5 data set each,
with its unit and the level of theory as attributes; an array that the data set lacks is not there.
Equal data give equal bytes (no times are stored), so equal data have one hash.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from hpcal.core import elements
from hpcal.core.arrays import AnyArray
from hpcal.core.dataset import Dataset
from hpcal.core.errors import FormatError
from hpcal.core.label import LevelOfTheory
from hpcal.core.walker import Split
from hpcal.exchange.atomic import replacing

FORMAT: Final = "hpcal labelled structures"
VERSION: Final = 2
"""Version 1 has the arrays of ``_FIELDS`` only."""
_SPLITS: Final = tuple(str(split) for split in Split)
_MAX_WORDS: Final = 256
_HASH_BYTES: Final = hashlib.sha256().digest_size


@dataclass(frozen=True, kw_only=True)
class _Field:
    """How one array of a data set is stored: dtype, unit, and its shape in n and A.

    Words are stored as numbers, with the words themselves in the attribute ``names``.
    """

    dtype: str
    unit: str
    shape: tuple[str | int, ...]
    words: bool = False


_FIELDS: Final[dict[str, _Field]] = {
    "ids": _Field(dtype="<i8", unit="", shape=("n",)),
    "splits": _Field(dtype="|u1", unit="", shape=("n",), words=True),
    "offsets": _Field(dtype="<i8", unit="", shape=("n+1",)),
    "numbers": _Field(dtype="|u1", unit="", shape=("A",)),
    "positions": _Field(dtype="<f8", unit="Å", shape=("A", 3)),
    "energies": _Field(dtype="<f8", unit="eV", shape=("n",)),
    "forces": _Field(dtype="<f8", unit="eV/Å", shape=("A", 3)),
    "charges": _Field(dtype="<i8", unit="e", shape=("n",)),
    "multiplicities": _Field(dtype="<i8", unit="", shape=("n",)),
    "cells": _Field(dtype="<f8", unit="Å", shape=("n", 3, 3)),
    "pbc": _Field(dtype="|u1", unit="", shape=("n", 3)),
}
_OPTIONAL: Final[dict[str, _Field]] = {
    "stresses": _Field(dtype="<f8", unit="eV/Å^3", shape=("n", 3, 3)),
    "dipoles": _Field(dtype="<f8", unit="e Å", shape=("n", 3)),
    "dipole_origins": _Field(dtype="<f8", unit="Å", shape=("n", 3)),
    "atomic_charges": _Field(dtype="<f8", unit="e", shape=("A",)),
    "charge_schemes": _Field(dtype="|u1", unit="", shape=("n",), words=True),
    "magnetic_moments": _Field(dtype="<f8", unit="Bohr magneton", shape=("A",)),
    "hashes": _Field(dtype="|u1", unit="", shape=("n", _HASH_BYTES)),
    "origins": _Field(dtype="|u1", unit="", shape=("n",), words=True),
    "generations": _Field(dtype="<i8", unit="", shape=("n",)),
    "uncertainties": _Field(dtype="<f8", unit="of the metric", shape=("n",)),
}


def write_shard(path: Path, dataset: Dataset, *, version: int = VERSION) -> str:
    """Writes a shard, whole or not at all, and durably (fsync).

    Args:
        version: of the format; with 1, a shard of an older hpcal can be written again with the hash
            that it had.

    Returns:
        SHA-256 of the file, the same for the same data.
    """
    level = json.dumps(dataset.level.as_dict(), sort_keys=True) if dataset.level else "unknown"
    # In memory, as HDF5 cannot close a file whose disk is full: it would stay open in this process.
    memory = BytesIO()
    names: dict[str, str] = {}
    with h5py.File(memory, "w", track_order=False) as file:
        file.attrs.update(format=FORMAT, version=version, level_of_theory=level)
        for name, field in (_FIELDS if version == 1 else _FIELDS | _OPTIONAL).items():
            if (array := getattr(dataset, name)) is None:
                continue
            if field.words:
                words = _SPLITS if name == "splits" else tuple(str(word) for word in np.unique(array))
                names[name], array = json.dumps(words), _codes(array, words)
            elif name == "hashes":
                array = _digests(array)
            data = np.ascontiguousarray(array, dtype=field.dtype)
            stored = file.create_dataset(name, data=data, track_times=False)
            stored.attrs["unit"] = field.unit
            stored.attrs["level_of_theory"] = level
        # Last, as in version 1, whose bytes this order decides.
        for name, text in names.items():
            file[name].attrs["names"] = text
    content = memory.getbuffer()
    with replacing(path) as out:
        out.write(content)
    return hashlib.sha256(content).hexdigest()


def read_shard(path: Path, sha256: str | None = None) -> Dataset:
    """The data set of a shard.

    Args:
        sha256: what the bytes must hash to; None reads without that check.

    Raises:
        FormatError: no such file, other bytes than were written, or no shard of hpcal.
    """
    try:
        if sha256 is not None:
            _check_hash(path, sha256)
        with h5py.File(path, "r", locking=False) as file:
            return _read(file, path)
    except FileNotFoundError:
        raise FormatError(f"no such file: {path}") from None
    except (OSError, KeyError, IndexError, RuntimeError, ValueError, TypeError) as error:
        raise FormatError(
            f"{path} cannot be read as an HDF5 file of hpcal: {error}; it is cut short, damaged or "
            "of another kind"
        ) from error


def read_snapshot(shards: Sequence[tuple[Path, str]]) -> Dataset:
    """The data sets of several shards, given with their hashes, as one.

    Raises:
        FormatError: as for :func:`read_shard`; no shards; shards of two levels of theory.
    """
    if not shards:
        raise FormatError("a training snapshot needs at least one shard")
    parts = [read_shard(path, sha256) for path, sha256 in shards]
    for (path, _), part in zip(shards, parts, strict=True):
        if part.level != parts[0].level:
            raise FormatError(
                f"two levels of theory in one snapshot: {parts[0].level} in {shards[0][0]}, "
                f"{part.level} in {path}"
            )
    return Dataset.concatenate(parts)


def _codes(array: AnyArray, words: tuple[str, ...]) -> AnyArray:
    """(n,) place of each word among ``words``."""
    order = np.argsort(words)
    ranked = np.array(words)[order]
    places = np.minimum(np.searchsorted(ranked, array), len(words) - 1)
    unknown = np.flatnonzero(ranked[places] != array)
    if len(unknown):
        raise FormatError(f"unknown word {array[unknown[0]]!r}; known: {', '.join(words)}")
    if len(words) > _MAX_WORDS:
        raise FormatError(f"{len(words)} different words in one array: {', '.join(words[:3])}, …")
    return np.asarray(order[places])


def _digests(hashes: AnyArray) -> AnyArray:
    """(n, 32) bytes of hexadecimal hashes; zeros for an empty one."""
    filled = [str(digest) or "0" * 2 * _HASH_BYTES for digest in hashes.tolist()]
    return np.frombuffer(bytes.fromhex("".join(filled)), dtype="u1").reshape(-1, _HASH_BYTES)


def _hashes(digests: AnyArray) -> AnyArray:
    """What :func:`_digests` was made of."""
    text = np.frombuffer(digests.tobytes().hex().encode(), dtype=f"S{2 * _HASH_BYTES}").astype(str)
    return np.where(digests.any(axis=1), text, "")


def _check_hash(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise FormatError(
            f"{path} is not what was written: SHA-256 {found[:16]}… instead of {sha256[:16]}…; it was "
            "cut short or changed; take it back from a copy or remove the shard"
        )


def _read(file: h5py.File, path: Path) -> Dataset:
    if file.attrs.get("format") != FORMAT:
        raise FormatError(f"{path} is an HDF5 file, but not of labelled structures by hpcal")
    if int(file.attrs["version"]) > VERSION:
        raise FormatError(f"{path} was written by a newer hpcal (format {file.attrs['version']})")
    n, n_atoms = len(file["energies"]), len(file["numbers"])
    extent: dict[str | int, int] = {"n": n, "n+1": n + 1, "A": n_atoms, 3: 3, _HASH_BYTES: _HASH_BYTES}
    arrays: dict[str, AnyArray] = {}
    for name, field in (_FIELDS | _OPTIONAL).items():
        if name in _FIELDS or name in file:
            arrays[name] = _array(file[name], tuple(extent[s] for s in field.shape), field.dtype, path)
            if field.words:
                arrays[name] = np.array(json.loads(file[name].attrs["names"]))[arrays[name]]
    offsets = arrays["offsets"]
    if n == 0 or offsets[0] != 0 or offsets[-1] != n_atoms or (np.diff(offsets) < 1).any():
        raise FormatError(f"{path} is damaged: its offsets do not divide {n_atoms} atoms")
    _check_values(arrays, path)
    if "hashes" in arrays:
        arrays["hashes"] = _hashes(arrays["hashes"])
    arrays["numbers"] = arrays["numbers"].astype(np.int64)
    arrays["pbc"] = arrays["pbc"].astype(bool)
    return Dataset(level=_level(file), **arrays)


def _check_values(arrays: dict[str, AnyArray], path: Path) -> None:
    for name in ("positions", "energies", "cells"):
        if not np.isfinite(arrays[name]).all():
            raise FormatError(f"{path} is damaged: {name} are not all finite")
    numbers = arrays["numbers"]
    if numbers.min() < 1 or numbers.max() > elements.MAX_ATOMIC_NUMBER:
        raise FormatError(f"{path} is damaged: atomic numbers from {numbers.min()} to {numbers.max()}")


def _array(stored: Any, shape: tuple[int, ...], dtype: str, path: Path) -> AnyArray:
    if stored.shape != shape or stored.dtype != np.dtype(dtype):
        raise FormatError(
            f"{path} is damaged: {stored.name} is {stored.dtype} {stored.shape}, not {dtype} {shape}"
        )
    # What is not in the file is made up by HDF5 from a fill value, however large.
    if stored.id.get_storage_size() < stored.size * stored.dtype.itemsize:
        raise FormatError(f"{path} is damaged: parts of {stored.name} are missing")
    return np.asarray(stored[()])


def _level(file: h5py.File) -> LevelOfTheory | None:
    text = str(file.attrs["level_of_theory"])
    return None if text == "unknown" else LevelOfTheory.of(json.loads(text))

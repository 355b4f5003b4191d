"""Parts of an HDF5 file of hpcal, read without the rest: each rank of a program reads its own.

Only structures are read, by hyperslabs: structure i owns rows ``offsets[i]:offsets[i + 1]`` of the
arrays of atoms.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from hpcal.core import elements
from hpcal.core.arrays import AnyArray
from hpcal.core.errors import FormatError, StructureError
from hpcal.core.structure import Structure
from hpcal.exchange.hdf5 import FORMAT, VERSION

_PER_STRUCTURE: Final = ("energies", "charges", "multiplicities", "cells", "pbc")
_PER_ATOM: Final = ("numbers", "positions")
_MOMENTS: Final = "magnetic_moments"


@dataclass(frozen=True, kw_only=True)
class StructureFile:
    """An HDF5 file of hpcal that was looked at, but not read.

    Attributes:
        path: where it is.
        count: number of structures.
        atoms: number of atoms of all structures.
    """

    path: Path
    count: int
    atoms: int


def look_at(path: Path) -> StructureFile:
    """Counts the structures of a file.

    Raises:
        FormatError: no such file, none of hpcal, or arrays that do not belong together.
    """
    with _opened(path) as file:
        if file.attrs.get("format") != FORMAT:
            raise FormatError(
                f"{path} is not an HDF5 file of hpcal, which is the only layout that ranks read in parts: "
                f"convert it with `hpcal import {path} --to pool.h5`, or score it without --mpi"
            )
        if int(file.attrs["version"]) > VERSION:
            raise FormatError(f"{path} was written by a newer hpcal (format {file.attrs['version']})")
        count, atoms = len(file["energies"]), len(file["numbers"])
        names = (*_PER_STRUCTURE, *_PER_ATOM, *((_MOMENTS,) if _MOMENTS in file else ()))
        for name in names:
            rows = count if name in _PER_STRUCTURE else atoms
            _check_stored(file[name], rows, path)
        _check_stored(file["offsets"], count + 1, path)
        first, last = int(file["offsets"][0]), int(file["offsets"][count])
        if count == 0 or (first, last) != (0, atoms):
            raise FormatError(f"{path} is damaged: its offsets do not divide {atoms} atoms")
        return StructureFile(path=path, count=count, atoms=atoms)


def shares(count: int, ranks: int, chunk: int) -> list[range]:
    """Contiguous shares of ``count`` structures, one a rank, that differ by at most one chunk.

    All but the end of the last are whole chunks, so that the structures that are calculated
    together do not depend on the number of ranks. A rank may have none.
    """
    pieces = -(-count // chunk)
    edges = [min(count, chunk * (pieces * rank // ranks)) for rank in range(ranks + 1)]
    edges[-1] = count
    return [range(start, stop) for start, stop in pairwise(edges)]


def read_slice(file: StructureFile, part: range) -> list[Structure]:
    """The structures of a contiguous part of a file, in order.

    Raises:
        FormatError: the file is damaged there, or a structure is none; names the frame.
    """
    if not part:
        return []
    with _opened(file.path) as stored:
        offsets = np.asarray(stored["offsets"][part.start : part.stop + 1])
        if (np.diff(offsets) < 1).any() or offsets[0] < 0 or offsets[-1] > file.atoms:
            raise FormatError(f"{file.path} is damaged: its offsets do not divide {file.atoms} atoms")
        rows = {name: np.asarray(stored[name][part.start : part.stop]) for name in _PER_STRUCTURE}
        names = (*_PER_ATOM, *((_MOMENTS,) if _MOMENTS in stored else ()))
        atoms = {name: np.asarray(stored[name][offsets[0] : offsets[-1]]) for name in names}
    _check_values(file.path, rows, atoms)
    structures = []
    for i, own in enumerate(slice(a, b) for a, b in pairwise(offsets - offsets[0])):
        try:
            structures.append(_structure(rows, atoms, i, own))
        except StructureError as error:
            raise FormatError(f"{file.path}, frame {part[i] + 1}: {error}") from None
    return structures


def _structure(rows: dict[str, AnyArray], atoms: dict[str, AnyArray], i: int, own: slice) -> Structure:
    moments = atoms[_MOMENTS][own] if _MOMENTS in atoms else None
    cell, pbc = rows["cells"][i], rows["pbc"][i].astype(bool)
    return Structure(
        numbers=atoms["numbers"][own],
        positions=atoms["positions"][own],
        cell=cell if cell.any() else None,
        pbc=(bool(pbc[0]), bool(pbc[1]), bool(pbc[2])),
        charge=int(rows["charges"][i]),
        multiplicity=int(rows["multiplicities"][i]),
        magnetic_moments=None if moments is None or np.isnan(moments).any() else moments,
    )


def _check_values(path: Path, rows: dict[str, AnyArray], atoms: dict[str, AnyArray]) -> None:
    for name, array in (("positions", atoms["positions"]), *((n, rows[n]) for n in ("energies", "cells"))):
        if not np.isfinite(array).all():
            raise FormatError(f"{path} is damaged: {name} are not all finite")
    numbers = atoms["numbers"]
    if numbers.min() < 1 or numbers.max() > elements.MAX_ATOMIC_NUMBER:
        raise FormatError(f"{path} is damaged: atomic numbers from {numbers.min()} to {numbers.max()}")


def _check_stored(stored: Any, rows: int, path: Path) -> None:
    """An array is as long as it must be and all there: HDF5 makes up what is missing."""
    whole = stored.id.get_storage_size() >= stored.size * stored.dtype.itemsize
    if len(stored) != rows or not whole:
        raise FormatError(f"{path} is damaged: {stored.name} has {len(stored)} rows, not {rows} whole ones")


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except FormatError:
        raise
    except FileNotFoundError:
        raise FormatError(f"no such file: {path}") from None
    except (OSError, KeyError, IndexError, RuntimeError, ValueError, TypeError) as error:
        said = " ".join(str(error).split())
        raise FormatError(
            f"{path} cannot be read as an HDF5 file of hpcal: {said}; it is cut short, damaged or of another "
            "kind"
        ) from error

"""What files of arrays claim to hold, compared with their size before anything is allocated."""

from __future__ import annotations

import math
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from tokenize import TokenError
from types import MappingProxyType
from typing import IO, Any, Final

import h5py
import numpy as np

from hpcal.core.arrays import AnyArray
from hpcal.core.errors import FormatError

MOST_DEFLATED: Final = 1032
"""Deflate cannot make more than this many bytes of one (zlib, "Maximum Expansion Factor")."""

_READERS: Final = MappingProxyType(
    {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
)
_UNREADABLE: Final = (
    OSError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


def h5_array(stored: Any, path: Path) -> AnyArray:
    """The array of an HDF5 data set.

    Raises:
        FormatError: no data set of plain numbers or texts in this file, or one that claims more
            than the file holds.
    """
    where = f"{path}, {getattr(stored, 'name', '?')}"
    if not isinstance(stored, h5py.Dataset):
        raise FormatError(f"{where} is a group where an array belongs")
    if stored.external or stored.is_virtual:
        raise FormatError(f"{where} is kept in another file; put the data into this one")
    if stored.dtype.kind == "O":
        if h5py.check_string_dtype(stored.dtype) is None:
            raise FormatError(f"{where} holds {stored.dtype}, not numbers: objects are not read")
        itemsize = 16
    elif stored.dtype.kind not in "fiubS":
        raise FormatError(f"{where} holds {stored.dtype}, not numbers")
    else:
        itemsize = stored.dtype.itemsize
    _check_extent(stored, where, itemsize)
    array = stored.asstr(errors="replace")[()] if stored.dtype.kind == "O" else stored[()]
    return np.asarray(array)


def _check_extent(stored: Any, where: str, itemsize: int) -> None:
    """What is not in the file is made up by HDF5 from a fill value, however large."""
    claimed = math.prod(stored.shape) * itemsize
    there = stored.id.get_storage_size()
    packed = stored.chunks is not None and stored.id.get_create_plist().get_nfilters() > 0
    missing = there * (MOST_DEFLATED if packed else 1) < claimed
    if packed and not missing and claimed:
        pieces = math.prod(math.ceil(n / c) for n, c in zip(stored.shape, stored.chunks, strict=True))
        missing = stored.id.get_num_chunks() < pieces
    if missing:
        raise FormatError(
            f"{where} claims {stored.shape} values ({claimed} bytes), but the file holds {there} bytes of "
            "them: it is cut short or damaged"
        )


def npz_arrays(path: Path) -> Mapping[str, AnyArray]:
    """The arrays of an npz file by name.

    Raises:
        FormatError: no such file, cut short or damaged, an array that claims more than the file
            holds, or objects, which are never read because that can run code.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.is_dir() or not member.filename.endswith(".npy"):
                    continue
                if member.compress_size * MOST_DEFLATED < member.file_size:
                    raise FormatError(
                        f"{path}, {member.filename}: {member.file_size} bytes announced, "
                        f"{member.compress_size} there"
                    )
                name = member.filename.removesuffix(".npy")
                with archive.open(member) as file:
                    arrays[name] = _npy(file, member.file_size, f"{path}, {name}")
    except FileNotFoundError:
        raise FormatError(f"no such file: {path}") from None
    except _UNREADABLE as error:
        raise FormatError(
            f"{path} cannot be read as an npz file: {error}; it is cut short or damaged"
        ) from error
    return arrays


def npy_array(path: Path) -> AnyArray:
    """The array of an npy file. Raises FormatError as :func:`npz_arrays`."""
    try:
        with path.open("rb") as file:
            return _npy(file, path.stat().st_size, str(path))
    except FileNotFoundError:
        raise FormatError(f"no such file: {path}") from None
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}") from error


def _npy(file: IO[bytes], size: int, where: str) -> AnyArray:
    try:
        with warnings.catch_warnings():
            # Files by Python 2 are read with a warning that helps nobody here.
            warnings.simplefilter("ignore", UserWarning)
            version = np.lib.format.read_magic(file)
            if version not in _READERS:
                raise FormatError(f"{where} is an npy array of version {version}, of no plain numbers")
            shape, fortran, dtype = _READERS[version](file)
    except (ValueError, SyntaxError, TokenError) as error:
        said = " ".join(str(error).split())
        raise FormatError(f"{where} is no npy array: {said}; it is cut short or damaged") from None
    if dtype.hasobject:
        raise FormatError(
            f"{where} holds Python objects, which are not read because that can run code; save arrays of "
            "plain numbers"
        )
    if dtype.kind not in "fiubSU":
        raise FormatError(f"{where} holds {dtype}, not numbers")
    claimed, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if claimed != there:
        raise FormatError(
            f"{where} claims {shape} values ({claimed} bytes), but {there} bytes follow: it is cut short or "
            "damaged"
        )
    data = file.read(claimed)
    if len(data) != claimed:
        raise FormatError(f"{where} is cut short: {len(data)} of {claimed} bytes")
    return np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if fortran else "C")

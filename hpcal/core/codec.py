"""Values as bytes and back, without running code.

A record is a JSON header followed by the raw little-endian bytes of its arrays. Only the classes
named in ``VALUES`` are ever built from a record, so reading one from disk or from another host
cannot run code.
"""

from __future__ import annotations

import json
import struct
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from math import prod
from typing import Any, Final

import numpy as np

from hpcal.core.errors import FailureClass, FormatError
from hpcal.core.label import Audit, Label, LevelOfTheory, Noise, Rejection
from hpcal.core.structure import Structure
from hpcal.core.walker import Candidate, SampleResult, Scores, Segment, Walker, WalkerEnd

VALUES: Final[dict[str, type]] = {
    cls.__name__: cls
    for cls in (
        Structure,
        LevelOfTheory,
        Noise,
        Label,
        Rejection,
        Audit,
        Scores,
        Walker,
        Candidate,
        Segment,
        SampleResult,
        FailureClass,
        WalkerEnd,
    )
}
_CLASS, _ARRAY = "__class__", "__array__"
_DTYPES: Final = frozenset({"<f8", "<f4", "<i8", "<i4", "|b1", "|u1"})
_NESTED: Final = (list, dict)
_LENGTH: Final = struct.Struct("<I")


def pack(value: Any) -> bytes:
    """A value as bytes.

    Takes None, bool, int, float, str, lists, tuples (which come back as lists unless a field of a
    value), dicts with string keys, numpy arrays and the classes of ``VALUES``.

    Raises:
        TypeError: anything else.
    """
    arrays: list[bytes] = []
    header = json.dumps(_reduce(value, arrays), separators=(",", ":")).encode()
    return _LENGTH.pack(len(header)) + header + b"".join(arrays)


def unpack(data: bytes) -> Any:
    """The value that :func:`pack` made into these bytes.

    Raises:
        FormatError: bytes that are no record.
    """
    try:
        (length,) = _LENGTH.unpack_from(data)
        header = json.loads(data[_LENGTH.size : _LENGTH.size + length])
        return _restore(header, memoryview(data)[_LENGTH.size + length :])
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"not a record of hpcal: {error}") from error


def _reduce(value: Any, arrays: list[bytes]) -> Any:
    if isinstance(value, Enum):
        return {_CLASS: type(value).__name__, "value": value.value}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        array = np.ascontiguousarray(value)
        dtype = array.dtype.newbyteorder("<").str
        if dtype not in _DTYPES:
            raise TypeError(f"arrays of {array.dtype} do not cross a boundary")
        start = sum(map(len, arrays))
        arrays.append(array.astype(dtype, copy=False).tobytes())
        return {_ARRAY: [dtype, list(array.shape), start]}
    if isinstance(value, list | tuple):
        return [_reduce(v, arrays) for v in value]
    if is_dataclass(value) and type(value).__name__ in VALUES:
        record = {f.name: _reduce(getattr(value, f.name), arrays) for f in fields(value)}
        return {_CLASS: type(value).__name__, **record}
    if hasattr(value, "items"):
        return {str(k): _reduce(v, arrays) for k, v in value.items()}
    raise TypeError(f"{type(value).__name__} does not cross a boundary")


def _restore(value: Any, data: memoryview) -> Any:
    if isinstance(value, list):
        return [_restore(v, data) for v in value]
    if not isinstance(value, dict):
        return value
    if _ARRAY in value:
        dtype, shape, start = value[_ARRAY]
        if dtype not in _DTYPES:
            raise ValueError(f"array of {dtype}")
        count = prod(shape)
        return np.frombuffer(data, dtype=dtype, count=count, offset=start).reshape(shape).copy()
    if _CLASS in value:
        cls = VALUES[value[_CLASS]]
        if issubclass(cls, Enum):
            return cls(value["value"])
        return cls(
            **{
                name: tuple(_restore(value[name], data)) if as_tuple else _restore(value[name], data)
                for name, as_tuple in _layout(cls)  # type: ignore[arg-type]
                if name in value
            }
        )
    # Most values are plain: a call for each would take half of the time.
    return {k: _restore(v, data) if isinstance(v, _NESTED) else v for k, v in value.items()}


@cache
def _layout(cls: Any) -> tuple[tuple[str, bool], ...]:
    """Fields of a value, and whether they are annotated as tuples, which JSON has not."""
    return tuple((f.name, str(cls.__annotations__.get(f.name, "")).startswith("tuple")) for f in fields(cls))

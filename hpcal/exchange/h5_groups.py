"""Groups of arrays in an HDF5 file: what the readers of molecules have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from hpcal.core import elements
from hpcal.core.arrays import AnyArray
from hpcal.core.errors import FormatError, InputError
from hpcal.exchange.quantities import Unit

_UNIT_ATTRIBUTES: Final = ("units", "unit")


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file for reading; whatever is wrong with it becomes one sentence.

    Raises:
        FormatError: no such file, or no whole HDF5 file.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except InputError:
        raise
    except FileNotFoundError:
        raise FormatError(f"no such file: {path}") from None
    except (OSError, KeyError, RuntimeError, ValueError, TypeError, MemoryError) as error:
        said = " ".join(str(error).split())
        raise FormatError(
            f"{path} cannot be read as an HDF5 file: {said}; it is cut short or damaged"
        ) from error


def groups_with(file: h5py.File, name: str) -> list[h5py.Group]:
    """All groups that hold an array of this name, in the order of the file; links are not followed."""
    found: list[h5py.Group] = [file] if name in file else []

    def visit(_: str, item: Any) -> None:
        if isinstance(item, h5py.Group) and name in item:
            found.append(item)

    file.visititems(visit)
    return found


def place(group: h5py.Group) -> str:
    """A group as messages name it."""
    return "" if group.name == "/" else f"group {group.name}"


def first_of(group: h5py.Group, names: Sequence[str]) -> str | None:
    """The first of these names that the group holds."""
    return next((name for name in names if name in group), None)


def text_of(group: h5py.Group, name: str, read: Any) -> str | None:
    """The one text of an array or attribute, or None."""
    if name in group.attrs:
        value: Any = group.attrs[name]
    elif name in group:
        array = read(group[name])
        if array.size == 0:
            return None
        value = array.reshape(-1)[0]
    else:
        return None
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def unit_stated(group: h5py.Group, name: str | None, parse: Any, path: Path) -> Unit | None:
    """The unit in the attribute ``units`` (or ``unit``) of an array, or None.

    Raises:
        FormatError: a unit that is not known.
    """
    if name is None or name not in group:
        return None
    attributes: Mapping[str, Any] = group[name].attrs
    for key in _UNIT_ATTRIBUTES:
        if key in attributes:
            value = attributes[key]
            text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
            try:
                unit = parse(text)
            except InputError as error:
                raise FormatError(f"{path}, {group.name}/{name}: {error}") from None
            return unit if isinstance(unit, Unit) else None
    return None


def atomic_numbers(words: AnyArray, where: str) -> AnyArray:
    """Atomic numbers of symbols in an array of texts; numbers are kept as they are.

    Raises:
        FormatError: an unknown symbol.
    """
    if words.dtype.kind not in "SUO":
        return words
    texts = np.array([w.decode(errors="replace") if isinstance(w, bytes) else str(w) for w in words.ravel()])
    numbers = {}
    for text in np.unique(texts):
        try:
            numbers[text] = elements.atomic_number(str(text).strip().capitalize())
        except KeyError:
            numbers[text] = 0
        if numbers[text] < 1:
            raise FormatError(f"{where}: unknown element {str(text)!r}")
    return np.array([numbers[t] for t in texts], dtype=np.int64).reshape(words.shape)

"""Frames of an XYZ file as text: the right number of lines and columns, nothing interpreted yet."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, TextIO

import numpy as np

from hpcal.core.arrays import FloatArray
from hpcal.core.errors import FormatError
from hpcal.exchange.xyz_header import Header

_SHORTEST_ATOM_LINE: Final = len("H 0 0 0")
_DECIMALS: Final = re.compile(r"[-+]?\d*\.?(\d*)")


@dataclass(frozen=True)
class Frame:
    """One frame: its header and the words of its atoms' lines."""

    header: Header
    rows: list[list[str]]

    def words(self, name: str) -> list[list[str]] | None:
        """The words of one column group, atom by atom, or None if there is no such column."""
        column = self.header.columns.get(name)
        return None if column is None else [row[column.start : column.stop] for row in self.rows]

    def reals(self, name: str, width: int) -> FloatArray | None:
        """(N, width) numbers of a column group, or None if there is no such column.

        Raises:
            FormatError: another width, or a word that is no number.
        """
        words = self.words(name)
        if words is None:
            return None
        if len(words[0]) != width:
            raise FormatError(f"column {name!r} must have {width} numbers an atom, not {len(words[0])}")
        try:
            return np.array([[float(word) for word in row] for row in words])
        except ValueError:
            atom, word = next((i, w) for i, row in enumerate(words) for w in row if not _is_number(w))
            raise FormatError(f"{name} of atom {atom} must be a number, not {word!r}") from None


def read_frames(path: Path) -> Iterator[Frame]:
    """The frames of a file, in order.

    Raises:
        FormatError: the file does not exist, is no XYZ file, or is cut short.
    """
    try:
        size = path.stat().st_size
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            count = 0
            for first in file:
                if not first.strip():
                    continue
                count += 1
                try:
                    frame = _frame(file, first, size, is_first=count == 1)
                except FormatError as error:
                    raise FormatError(f"{path}, frame {count}: {error}") from None
                yield frame
    except FileNotFoundError:
        raise FormatError(f"no such file: {path}") from None
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}") from error


def _frame(file: TextIO, first: str, size: int, *, is_first: bool) -> Frame:
    n_atoms = _count(first, size, is_first=is_first)
    comment = file.readline()
    if not comment:
        raise FormatError(f"the file ends after the number of atoms ({n_atoms}): it is cut short")
    header = Header.parse(comment)
    width = max(column.stop for column in header.columns.values())
    lines = list(islice(file, n_atoms))
    rows = [line.split() for line in lines]
    for atom, row in enumerate(rows):
        if len(row) < width or (header.extended and len(row) > width):
            raise FormatError(
                f"the line of atom {atom} has {len(row)} columns where {width} belong: "
                f"{lines[atom].strip()[:60]!r}; is the number of atoms ({n_atoms}) right?"
            )
    if len(rows) < n_atoms:
        raise FormatError(f"{n_atoms} atoms announced, {len(rows)} there: the file is cut short")
    if not lines[-1].endswith("\n"):
        _refuse_cut_number(rows)
    return Frame(header, rows)


def _count(line: str, size: int, *, is_first: bool) -> int:
    text = line.strip()
    if not (text.isascii() and text.isdigit()):
        if is_first:
            raise FormatError(f"not an XYZ file: it must begin with a number of atoms, not {text[:60]!r}")
        raise FormatError(
            f"it must begin with a number of atoms, not {text[:60]!r}; "
            "is the number of atoms of the frame before it right?"
        )
    # Compared as text first: a number of thousands of digits is not worth converting.
    if len(text.lstrip("0")) > 18 or int(text) * _SHORTEST_ATOM_LINE > size:
        raise FormatError(f"{text[:20]} atoms announced, but the whole file has {size} bytes")
    if int(text) == 0:
        raise FormatError("a structure needs at least one atom, and 0 are announced")
    return int(text)


def _refuse_cut_number(rows: list[list[str]]) -> None:
    """A file cut inside its last number still has all its columns; the missing digits give it away."""
    decimals = [_decimals(word) for row in rows for word in row if _is_number(word)]
    if _is_number(rows[-1][-1]) and len(decimals) > 1 and decimals[-1] < min(decimals[:-1]):
        raise FormatError(
            f"the last number ({rows[-1][-1]}) has fewer digits than all others and no end of line "
            "follows: the file is cut short (if it is whole, end its last line)"
        )


def _decimals(word: str) -> int:
    match = _DECIMALS.match(word)
    return len(match.group(1)) if match and "." in word else 0


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True

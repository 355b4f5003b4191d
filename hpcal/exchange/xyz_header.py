"""The comment line of an extended XYZ frame: keys, values and the columns they announce."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from hpcal.core.arrays import FloatArray
from hpcal.core.errors import FormatError

_CLOSING: Final = {"{": "}", "[": "]"}
_QUOTES: Final = "\"'"
_NUMBER_SEPARATORS: Final = re.compile(r"[\s,\[\]{}]+")
_BARE: Final = {"": re.compile(r"\S*"), "=": re.compile(r"[^\s=]*")}
_TRUTH: Final = {"T": True, "TRUE": True, "1": True, "F": False, "FALSE": False, "0": False}
_KINDS: Final = frozenset("SRIL")


@dataclass(frozen=True, kw_only=True)
class Column:
    """Columns ``start:stop`` of each atom's line, of kind S(tring), R(eal), I(nteger) or L(ogical)."""

    name: str
    kind: str
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """A parsed comment line.

    Attributes:
        values: all texts given for each key, without their delimiters; ``T`` for a bare key.
    """

    values: Mapping[str, tuple[str, ...]]

    @classmethod
    def parse(cls, line: str) -> Header:
        """Any line parses: a plain XYZ comment is free text."""
        values: dict[str, tuple[str, ...]] = {}
        at = 0
        while (at := _skip_blanks(line, at)) < len(line):
            key, at = _word(line, at, stop="=")
            value = "T"
            after = _skip_blanks(line, at)
            if line[after : after + 1] == "=":
                value, at = _word(line, _skip_blanks(line, after + 1))
            values[key] = (*values.get(key, ()), value)
        return cls(values)

    def text(self, key: str) -> str | None:
        """The text of a key, or None.

        Raises:
            FormatError: given twice with different values.
        """
        texts = self.values.get(key)
        if texts is None:
            return None
        if len(set(texts)) > 1:
            raise FormatError(f"`{key}` is given twice, as {' and '.join(map(repr, texts))}")
        return texts[0]

    def whole(self, keys: Sequence[str]) -> int | None:
        """The whole number under any of these keys, or None.

        Raises:
            FormatError: anything else, two that differ, or the first key in other letter case,
                which a reader that looks for the exact key would pass over.
        """
        found: dict[str, int] = {}
        for key in keys:
            text = self.text(key)
            if text is None:
                continue
            try:
                number = float(text)
            except ValueError:
                number = float("nan")
            if not number.is_integer():
                raise FormatError(f"{key} must be a whole number, not {text!r}")
            found[key] = int(number)
        if len(set(found.values())) > 1:
            raise FormatError(f"ambiguous: {' but '.join(f'{k}={v}' for k, v in found.items())}")
        if not found:
            other = next((k for k in self.values if k.lower() == keys[0]), None)
            if other is not None:
                raise FormatError(f"the key `{other}` must be written `{keys[0]}`")
        return next(iter(found.values()), None)

    def numbers(self, key: str) -> list[float] | None:
        """The numbers of a key in the order written, brackets and commas aside, or None.

        Raises:
            FormatError: something that is no number.
        """
        text = self.text(key)
        if text is None:
            return None
        words = [w for w in _NUMBER_SEPARATORS.split(text.removeprefix("_JSON ")) if w]
        try:
            return [float(word) for word in words]
        except ValueError:
            raise FormatError(f"`{key}` must hold numbers, not {text[:60]!r}") from None

    def cell(self) -> FloatArray | None:
        """(3, 3) lattice vectors as rows, Å, or None.

        Raises:
            FormatError: not nine numbers.
        """
        values = self.numbers("Lattice")
        if values is None:
            return None
        if len(values) != 9:
            raise FormatError(f"wrong cell: `Lattice` must hold 9 numbers, not {len(values)}")
        return np.array(values).reshape(3, 3)

    def pbc(self) -> tuple[bool, bool, bool]:
        """Periodic directions; where not given, all with a cell and none without.

        Raises:
            FormatError: not one or three truth values.
        """
        text = self.text("pbc")
        if text is None:
            periodic = "Lattice" in self.values
            return (periodic, periodic, periodic)
        words = [w for w in _NUMBER_SEPARATORS.split(text) if w]
        flags = [_TRUTH.get(word.upper()) for word in words]
        if len(flags) == 1:
            flags *= 3
        if len(flags) != 3 or None in flags:
            raise FormatError(f'pbc must be three of T and F such as pbc="T T F", not {text!r}')
        return (bool(flags[0]), bool(flags[1]), bool(flags[2]))

    @cached_property
    def columns(self) -> dict[str, Column]:
        """The columns that ``Properties`` announces; element and position without it.

        Raises:
            FormatError: ``Properties`` that is not ``name:kind:count`` repeated.
        """
        text = self.text("Properties")
        parts = (text or "species:S:1:pos:R:3").split(":")
        if len(parts) % 3:
            raise FormatError(f"Properties must be name:kind:count repeated, not {text!r}")
        columns: dict[str, Column] = {}
        start = 0
        for name, kind, count in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            if kind not in _KINDS or not (count.isascii() and count.isdigit() and 0 < int(count) < 10_000):
                raise FormatError(f"Properties must be name:kind:count repeated, not {text!r}")
            if name in columns:
                raise FormatError(f"Properties names the column {name!r} twice")
            columns[name] = Column(name=name, kind=kind, start=start, stop=start + int(count))
            start += int(count)
        return columns

    @property
    def extended(self) -> bool:
        """Whether the line announces its columns."""
        return "Properties" in self.values


def _skip_blanks(line: str, at: int) -> int:
    while at < len(line) and line[at].isspace():
        at += 1
    return at


def _word(line: str, at: int, stop: str = "") -> tuple[str, int]:
    """A word, quoted text, or balanced bracket (kept with its brackets), and where it ends."""
    opening = line[at : at + 1]
    if opening and opening in _QUOTES:
        return _quoted(line, at)
    if opening in _CLOSING and not stop:
        return _bracketed(line, at)
    end = _BARE[stop].match(line, at).end()  # type: ignore[union-attr]  # both match nothing, too
    return line[at:end], end


def _quoted(line: str, at: int) -> tuple[str, int]:
    quote = line[at]
    end = line.find(quote, at + 1)
    if end >= 0 and "\\" not in line[at:end]:
        return line[at + 1 : end], end + 1
    characters: list[str] = []
    at += 1
    while at < len(line) and line[at] != quote:
        if line[at] == "\\" and at + 1 < len(line):
            at += 1
        characters.append(line[at])
        at += 1
    return "".join(characters), at + 1


def _bracketed(line: str, at: int) -> tuple[str, int]:
    start = at
    open_brackets: list[str] = []
    while at < len(line):
        if line[at] == '"':
            at = _quoted(line, at)[1]
            continue
        if line[at] in _CLOSING:
            open_brackets.append(_CLOSING[line[at]])
        elif open_brackets and line[at] == open_brackets[-1]:
            open_brackets.pop()
            if not open_brackets:
                return line[start : at + 1], at + 1
        at += 1
    return line[start:], at

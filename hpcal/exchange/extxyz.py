"""Extended XYZ: structures and labels from text files and back, to the last bit.

A reader of its own, because ``ase.io`` takes a missing charge for granted, lets a later key win
over an earlier one, allocates what a header claims, and writes eight decimals. What is written
here is read by ASE and by the usual trainers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hpcal.core import elements
from hpcal.core.arrays import FloatArray, IntArray
from hpcal.core.errors import FormatError, InputError
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure, parity_problem
from hpcal.exchange.extxyz_keys import LABEL_KEYS, RESERVED, STRUCTURE_KEYS, LabelledFrame
from hpcal.exchange.extxyz_write import write_labelled, write_structures
from hpcal.exchange.overlap import overlap_problem
from hpcal.exchange.xyz_frames import Frame, read_frames
from hpcal.exchange.xyz_header import Header

__all__ = [
    "LabelledFrame",
    "read_labelled",
    "read_labelled_frames",
    "read_structures",
    "write_labelled",
    "write_structures",
]


def read_structures(path: Path, min_distance_factor: float | None = None) -> list[Structure]:
    """The structures of a file, whether labelled or not.

    Charge and multiplicity come from the keys ``charge`` and ``multiplicity`` of the comment
    line, 0 and 1 where absent.

    Args:
        min_distance_factor: refuse atoms nearer than this many times the sum of their covalent
            radii (periodic images included); None accepts any distance.

    Raises:
        FormatError: the file cannot be read, holds no structure, or a frame is no valid
            structure; one sentence with the file and the frame's number, from 1.
    """
    structures = []
    for number, frame in enumerate(read_frames(path), start=1):
        try:
            structure = _structure(frame)
            if min_distance_factor is not None and (
                problem := overlap_problem(structure, min_distance_factor)
            ):
                raise FormatError(problem)
        except InputError as error:
            raise FormatError(f"{path}, frame {number}: {error}") from None
        structures.append(structure)
    if not structures:
        raise FormatError(f"{path} holds no structure: the file is empty")
    return structures


def read_labelled(path: Path, level: LevelOfTheory | None = None) -> list[tuple[Structure, Label]]:
    """The structures of a file and their labels, in eV, Å, eV/Å and eV/Å³.

    Args:
        level: the level of theory where the file does not state it.

    Raises:
        FormatError: as for :func:`read_structures`; a frame without a label; a quantity given
            under two names with different values; a level that contradicts the one given.
    """
    return [(frame.structure, frame.label) for frame in read_labelled_frames(path, level)]


def read_labelled_frames(path: Path, level: LevelOfTheory | None = None) -> list[LabelledFrame]:
    """As :func:`read_labelled`, with the other keys of each comment line."""
    frames = []
    for number, frame in enumerate(read_frames(path), start=1):
        try:
            structure = _structure(frame)
            label = _label(frame, _level(frame.header, level, path))
        except InputError as error:
            raise FormatError(f"{path}, frame {number}: {error}") from None
        info = {k: v[0] for k, v in frame.header.values.items() if k not in RESERVED}
        frames.append(LabelledFrame(structure=structure, label=label, info=info))
    if not frames:
        raise FormatError(f"{path} holds no labelled structure: the file is empty")
    return frames


def _structure(frame: Frame) -> Structure:
    header = frame.header
    positions = frame.reals("pos", 3)
    if positions is None:
        raise FormatError("Properties announce no column `pos`")
    moments = frame.reals("initial_magmoms", 1)
    structure = Structure(
        numbers=_atomic_numbers(frame),
        positions=positions,
        cell=header.cell(),
        pbc=header.pbc(),
        charge=header.whole("charge", 0),
        multiplicity=header.whole("multiplicity", 1),
        magnetic_moments=None if moments is None else moments[:, 0],
    )
    if problem := parity_problem(structure):
        raise FormatError(problem)
    return structure


def _atomic_numbers(frame: Frame) -> IntArray:
    found = []
    for name in ("species", "Z", "numbers"):
        words = frame.words(name)
        if words is not None:
            found.append([_atomic_number(row, atom) for atom, row in enumerate(words)])
    if not found:
        raise FormatError("Properties announce no column `species`")
    if any(numbers != found[0] for numbers in found):
        raise FormatError("the columns `species` and `Z` name different elements")
    return np.array(found[0], dtype=np.int64)


def _atomic_number(words: list[str], atom: int) -> int:
    word = words[0]
    if word.isascii() and word.isdigit() and len(word) <= 3:
        number = int(word)
    else:
        try:
            number = elements.atomic_number(word.capitalize())
        except KeyError:
            number = 0
    if len(words) != 1 or not 1 <= number <= elements.MAX_ATOMIC_NUMBER:
        raise FormatError(f"unknown element {' '.join(words)!r} (atom {atom})")
    return number


def _level(header: Header, given: LevelOfTheory | None, path: Path) -> LevelOfTheory:
    text = header.text("level")
    if text is None:
        return given or LevelOfTheory(code="file", version="unknown", method=f"as in {path.name}")
    try:
        record = json.loads(text.removeprefix("_JSON "))
    except ValueError:
        return given or LevelOfTheory(code="file", version="unknown", method=text)
    if not isinstance(record, dict) or not {"code", "version", "method"} <= record.keys():
        raise FormatError(f"`level` must be a record with code, version and method, not {text[:80]!r}")
    stated = LevelOfTheory(
        code=str(record["code"]),
        version=str(record["version"]),
        method=str(record["method"]),
        settings=record.get("settings") or {},
    )
    if given is not None and given != stated:
        raise FormatError(f"the file says its level of theory is {stated}, not {given}")
    return stated


def _label(frame: Frame, level: LevelOfTheory) -> Label:
    header = frame.header
    energy = _one_of("energy", header.numbers)
    if energy is None:
        names = " or ".join(f"`{k}`" for k in LABEL_KEYS["energy"])
        there = ", ".join(k for k in header.values if k not in STRUCTURE_KEYS) or "none"
        raise FormatError(f"no label: no energy under {names} (keys there: {there})")
    if energy.shape != (1,):
        raise FormatError(f"the energy must be one number, not {energy.size}")
    charges = _one_of("charges", lambda key: frame.reals(key, 1))
    return Label(
        energy=float(energy[0]),
        forces=_one_of("forces", lambda key: frame.reals(key, 3)),
        stress=_stress(_one_of("stress", header.numbers)),
        dipole=_vector("dipole", _one_of("dipole", header.numbers)),
        dipole_origin=_vector("dipole origin", _one_of("dipole_origin", header.numbers)),
        charges=None if charges is None else charges[:, 0],
        charge_scheme=header.text("REF_charge_scheme"),
        level=level,
    )


def _one_of(quantity: str, read: Callable[[str], Any]) -> FloatArray | None:
    """The value of a quantity under whichever of its names, all finite."""
    found = {key: np.array(v) for key in LABEL_KEYS[quantity] if (v := read(key)) is not None}
    if not found:
        return None
    (name, value), *others = found.items()
    for other, another in others:
        if value.shape != another.shape or not np.array_equal(value, another):
            raise FormatError(f"ambiguous label: `{name}` and `{other}` differ; keep the one that is meant")
    if not np.isfinite(value).all():
        raise FormatError(f"`{name}` is not finite")
    return np.asarray(value, dtype=np.float64)


def _stress(values: FloatArray | None) -> FloatArray | None:
    """(3, 3) from nine numbers, or from six in the order xx, yy, zz, yz, xz, xy."""
    if values is None:
        return None
    if values.size == 6:
        xx, yy, zz, yz, xz, xy = values
        return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    if values.size != 9:
        raise FormatError(f"a stress has 6 or 9 numbers, not {values.size}")
    return values.reshape(3, 3)


def _vector(name: str, values: FloatArray | None) -> FloatArray | None:
    if values is not None and values.size != 3:
        raise FormatError(f"a {name} has 3 numbers, not {values.size}")
    return values

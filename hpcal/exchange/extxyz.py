"""Extended XYZ: structures and labels from text files and back, to the last bit.

A reader of its own, because ``ase.io`` takes a missing charge for granted, lets a later key win
over an earlier one, allocates what a header claims, and writes eight decimals. What is written
here is read by ASE and by the usual trainers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hpcal.core import elements
from hpcal.core.arrays import FloatArray, IntArray
from hpcal.core.errors import FormatError, InputError
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure
from hpcal.exchange.blocks import check_state, state_of
from hpcal.exchange.extxyz_keys import (
    CHARGE_KEYS,
    LABEL_KEYS,
    MULTIPLICITY_KEYS,
    OTHER_CHARGES,
    RESERVED,
    STRUCTURE_KEYS,
    LabelledFrame,
)
from hpcal.exchange.extxyz_write import write_labelled, write_structures
from hpcal.exchange.found import (
    Found,
    FoundFrame,
    ReadOptions,
    Source,
    is_unknown,
    looks_like_forces,
    looks_like_label,
    unknown_level,
)
from hpcal.exchange.levels import level_stated
from hpcal.exchange.overlap import overlap_problem
from hpcal.exchange.scale import INSIDE, FileUnits, Scale, resolve
from hpcal.exchange.xyz_frames import Frame, read_frames
from hpcal.exchange.xyz_header import Column, Header

__all__ = [
    "LabelledFrame",
    "read_extxyz",
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
            structure = _structure(frame, ReadOptions())
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
    options = ReadOptions(level=level)
    keys, levels = _keys(options), _Levels(path=path, given=level)
    frames = []
    for number, frame in enumerate(read_frames(path), start=1):
        try:
            structure = _structure(frame, options)
            label = _label(frame, levels.of(frame.header), keys)
            if label is None:
                raise FormatError(_no_label(frame, keys))
        except InputError as error:
            raise FormatError(f"{path}, frame {number}: {error}") from None
        frames.append(LabelledFrame(structure=structure, label=label, info=_info(frame, keys)))
    if not frames:
        raise FormatError(f"{path} holds no labelled structure: the file is empty")
    return frames


def read_extxyz(path: Path, options: ReadOptions) -> Found:
    """The structures of a file, and the labels of those that have one.

    Extended XYZ is in eV, Å, eV/Å and eV/Å³ by convention, stress positive in tension, and
    ``virial`` is −stress × volume.

    Raises:
        FormatError: as for :func:`read_structures`; forces without an energy; a name of energies
            that no frame has; a quantity under two names with different values.
    """
    keys = _keys(options)
    inside = FileUnits(energy=INSIDE.energy, length=INSIDE.length, force=INSIDE.force)
    scale = resolve(path, options, inside)
    levels = _Levels(path=path, given=options.level)
    frames: list[FoundFrame] = []
    names = _Names()
    sources: set[Source] = set()
    unlabelled: Frame | None = None
    for number, frame in enumerate(read_frames(path), start=1):
        try:
            structure = _structure(frame, options, scale.length.factor)
            names.add(frame.header)
            label = _label(frame, levels.of(frame.header), keys)
            if label is None and any(name in frame.header.columns for name in keys["forces"]):
                raise FormatError(
                    f"{_no_label(frame, keys)}; it has forces: name the energy with --energy-key"
                )
        except InputError as error:
            raise FormatError(f"{path}, frame {number}: {error}") from None
        if label is None:
            unlabelled = frame
        else:
            sources.add(_source(label.level, options))
        info = _info(frame, keys)
        if "split" not in info and options.split is not None:
            info["split"] = str(options.split)
        frames.append(FoundFrame(structure=structure, label=_scaled(label, scale), info=info))
    if not frames:
        raise FormatError(f"{path} holds no structure: the file is empty")
    if unlabelled is not None and options.energy_key and not sources:
        raise FormatError(f"{path}: {_no_label(unlabelled, keys)}")
    names.check(path, options)
    return Found(
        path=path,
        format="extxyz",
        frames=frames,
        units=scale.read(),
        level_source="unknown" if "unknown" in sources or not sources else sorted(sources)[-1],
        notes=(*_notes(frames, unlabelled, keys, scale), *names.note(keys)),
        unread=names.unread(keys),
    )


def _keys(options: ReadOptions) -> dict[str, tuple[str, ...]]:
    """Names of the parts of a label, where the user names some of them."""
    given = {"energy": options.energy_key, "forces": options.forces_key, "stress": options.stress_key}
    keys = {
        quantity: (key,) if (key := given.get(quantity)) else names for quantity, names in LABEL_KEYS.items()
    }
    if options.stress_key:
        virial = "virial" in options.stress_key.lower()
        keys["virial" if not virial else "stress"] = ()
        keys["virial" if virial else "stress"] = (options.stress_key,)
    return keys


def _source(level: LevelOfTheory, options: ReadOptions) -> Source:
    if options.level is not None:
        return "given"
    return "unknown" if is_unknown(level) else "stated by the file"


def _notes(
    frames: list[FoundFrame], unlabelled: Frame | None, keys: dict[str, tuple[str, ...]], scale: Scale
) -> tuple[str, ...]:
    notes = []
    if unlabelled is not None:
        count = sum(frame.label is None for frame in frames)
        notes.append(
            f"{count} of {len(frames)} frames have no label; the last of them: {_no_label(unlabelled, keys)}"
        )
    if scale.gradient:
        notes.append("forces of the file are gradients, whose sign was turned")
    return tuple(notes)


def _info(frame: Frame, keys: dict[str, tuple[str, ...]]) -> dict[str, str]:
    known = {*RESERVED, *CHARGE_KEYS, *MULTIPLICITY_KEYS, *(k for names in keys.values() for k in names)}
    return {k: v[0] for k, v in frame.header.values.items() if k not in known}


def _scaled(label: Label | None, scale: Scale) -> Label | None:
    """The label in the units of hpcal."""
    if label is None or scale == INSIDE:
        return label
    pressure = scale.energy.factor / scale.length.factor**3
    length = scale.length.factor
    return replace(
        label,
        energy=label.energy * scale.energy.factor,
        forces=None if label.forces is None else label.forces * scale.force_factor,
        stress=None if label.stress is None else label.stress * pressure,
        dipole=None if label.dipole is None else label.dipole * length,
        dipole_origin=None if label.dipole_origin is None else label.dipole_origin * length,
    )


def _structure(frame: Frame, options: ReadOptions, length: float = 1.0) -> Structure:
    header = frame.header
    positions = frame.reals("pos", 3)
    if positions is None:
        raise FormatError("Properties announce no column `pos`")
    numbers = _atomic_numbers(frame)
    moments = frame.reals("initial_magmoms", 1)
    charge, multiplicity = state_of(
        numbers,
        header.whole(CHARGE_KEYS),
        header.whole(MULTIPLICITY_KEYS),
        options,
        moments=None if moments is None or any(header.pbc()) else moments[:, 0],
    )
    cell = header.cell()
    structure = Structure(
        numbers=numbers,
        positions=positions * length,
        cell=None if cell is None else cell * length,
        pbc=header.pbc(),
        charge=charge,
        multiplicity=multiplicity,
        magnetic_moments=None if moments is None else moments[:, 0],
    )
    check_state(structure)
    return structure


def _atomic_numbers(frame: Frame) -> IntArray:
    found = []
    for name in ("species", "Z", "numbers"):
        words = frame.words(name)
        if words is not None:
            found.append([_known(row, atom) for atom, row in enumerate(words)])
    if not found:
        raise FormatError("Properties announce no column `species`")
    if any(numbers != found[0] for numbers in found):
        raise FormatError("the columns `species` and `Z` name different elements")
    return np.array(found[0], dtype=np.int64)


def _known(words: list[str], atom: int) -> int:
    number = _atomic_number(words[0])
    if len(words) != 1 or not 1 <= number <= elements.MAX_ATOMIC_NUMBER:
        raise FormatError(f"unknown element {' '.join(words)!r} (atom {atom})")
    return number


@lru_cache(maxsize=1024)
def _atomic_number(word: str) -> int:
    """The atomic number of a symbol or number; 0 for anything else."""
    if word.isascii() and word.isdigit() and len(word) <= 3:
        return int(word)
    try:
        return elements.atomic_number(word.capitalize())
    except KeyError:
        return 0


class _Names:
    """Names of columns and keys that any frame of a file has."""

    def __init__(self) -> None:
        self._columns: dict[str, Column] = {}
        self._keys: set[str] = set()

    def add(self, header: Header) -> None:
        self._columns.update(header.columns)
        self._keys.update(header.values)

    def check(self, path: Path, options: ReadOptions) -> None:
        """Raises FormatError for a name from the user that no frame has."""
        for option, name, there in (
            ("--forces-key", options.forces_key, self._columns.keys()),
            ("--stress-key", options.stress_key, self._keys),
            ("--energy-key", options.energy_key, self._keys),
        ):
            if name is not None and name not in there:
                known = ", ".join(sorted(set(there) - STRUCTURE_KEYS)) or "none"
                raise FormatError(f"{path}: no frame has {name}, which {option} names (there: {known})")

    def unread(self, keys: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
        """Names that may be parts of labels, but are not read as such."""
        known = {name for names in keys.values() for name in names} | RESERVED
        there = {name for name, column in self._columns.items() if column.kind == "R"} | self._keys
        return tuple(sorted(name for name in there - known if looks_like_label(name)))

    def note(self, keys: dict[str, tuple[str, ...]]) -> list[str]:
        """A sentence on columns that may be forces, but are not read as such; or none."""
        found = [
            name
            for name, column in self._columns.items()
            if column.kind == "R"
            and column.stop - column.start == 3
            and name not in keys["forces"]
            and looks_like_forces(name)
        ]
        return [f"not read: {', '.join(found)} (forces? name them with --forces-key)"] if found else []


class _Levels:
    """Levels of theory of one file: equal texts are one object."""

    def __init__(self, *, path: Path, given: LevelOfTheory | None) -> None:
        self._given = given
        self._by_text: dict[str | None, LevelOfTheory] = {None: given or unknown_level(path)}

    def of(self, header: Header) -> LevelOfTheory:
        """The level of a frame: stated, given or unknown."""
        text = header.text("level")
        if text is not None and text not in self._by_text:
            self._by_text[text] = level_stated(text, self._given)
        return self._by_text[text]


def _no_label(frame: Frame, keys: dict[str, tuple[str, ...]]) -> str:
    names = " or ".join(f"`{k}`" for k in keys["energy"])
    there = ", ".join(k for k in frame.header.values if k not in STRUCTURE_KEYS) or "none"
    return f"no label: no energy under {names} (keys there: {there})"


def _label(frame: Frame, level: LevelOfTheory, keys: dict[str, tuple[str, ...]]) -> Label | None:
    header = frame.header
    energy = _one_of(keys["energy"], header.numbers)
    if energy is None:
        return None
    if energy.shape != (1,):
        raise FormatError(f"the energy must be one number, not {energy.size}")
    charges = _one_of(keys["charges"], lambda key: frame.reals(key, 1))
    return Label(
        energy=float(energy[0]),
        forces=_one_of(keys["forces"], lambda key: frame.reals(key, 3)),
        stress=_stress(
            _one_of(keys["stress"], header.numbers), _one_of(keys["virial"], header.numbers), header.cell()
        ),
        dipole=_vector("dipole", _one_of(keys["dipole"], header.numbers)),
        dipole_origin=_vector("dipole origin", _one_of(keys["dipole_origin"], header.numbers)),
        charges=None if charges is None else charges[:, 0],
        charge_scheme=header.text("REF_charge_scheme"),
        quadrupole=_square("quadrupole", _one_of(keys["quadrupole"], header.numbers)),
        other_charges=_other_charges(frame),
        level=level,
    )


def _one_of(names: tuple[str, ...], read: Callable[[str], Any]) -> FloatArray | None:
    """The value of a quantity under whichever of its names, all finite."""
    found = {key: np.array(v) for key in names if (v := read(key)) is not None}
    if not found:
        return None
    (name, value), *others = found.items()
    for other, another in others:
        if value.shape != another.shape or not np.array_equal(value, another):
            raise FormatError(f"ambiguous label: `{name}` and `{other}` differ; keep the one that is meant")
    if not np.isfinite(value).all():
        raise FormatError(f"`{name}` is not finite")
    return np.asarray(value, dtype=np.float64)


def _stress(
    stress: FloatArray | None, virial: FloatArray | None, cell: FloatArray | None
) -> FloatArray | None:
    """(3, 3) stress, or that of a virial W: σ = −W / V."""
    if virial is not None:
        volume = 0.0 if cell is None else abs(float(np.linalg.det(cell)))
        if volume < 1e-6:
            raise FormatError("a virial needs a cell with a volume")
        from_virial = -_matrix("virial", virial) / volume
        if stress is not None and not np.allclose(
            _matrix("stress", stress), from_virial, rtol=1e-3, atol=1e-6
        ):
            raise FormatError("ambiguous label: stress and virial disagree (stress = −virial / volume)")
        return from_virial if stress is None else _matrix("stress", stress)
    return None if stress is None else _matrix("stress", stress)


def _matrix(name: str, values: FloatArray) -> FloatArray:
    """(3, 3) from nine numbers, or from six in the order xx, yy, zz, yz, xz, xy."""
    if values.size == 6:
        xx, yy, zz, yz, xz, xy = values
        return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    if values.size != 9:
        raise FormatError(f"a {name} has 6 or 9 numbers, not {values.size}")
    return values.reshape(3, 3)


def _other_charges(frame: Frame) -> dict[str, FloatArray]:
    """(N,) charges by the name of their scheme."""
    names = [name for name in frame.header.columns if name.startswith(OTHER_CHARGES)]
    read = {name: _one_of((name,), lambda key: frame.reals(key, 1)) for name in names}
    return {name.removeprefix(OTHER_CHARGES): a[:, 0] for name, a in read.items() if a is not None}


def _square(name: str, values: FloatArray | None) -> FloatArray | None:
    if values is None:
        return None
    if values.size != 9:
        raise FormatError(f"a {name} has 9 numbers, not {values.size}")
    return values.reshape(3, 3)


def _vector(name: str, values: FloatArray | None) -> FloatArray | None:
    if values is not None and values.size != 3:
        raise FormatError(f"a {name} has 3 numbers, not {values.size}")
    return values

"""Reads databases of ASE (SQLite, ``.db``): eV and Å by definition, stress positive in tension."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import ase.db
import numpy as np

from hpcal.core.arrays import AnyArray, FloatArray
from hpcal.core.errors import FormatError, InputError
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure
from hpcal.exchange.blocks import check_state, state_of, whole
from hpcal.exchange.found import (
    Found,
    FoundFrame,
    ReadOptions,
    Source,
    is_unknown,
    looks_like_label,
    unknown_level,
)
from hpcal.exchange.levels import level_stated
from hpcal.exchange.scale import INSIDE, FileUnits, Scale, refuse_names, resolve

_CHARGE: Final = ("charge", "total_charge")
_MULTIPLICITY: Final = ("multiplicity", "spin_multiplicity", "spin")
"""``spin`` is 2S + 1 in the data sets that have it (OMol25 and what is trained on it)."""
_LEVEL: Final = ("level", "level_of_theory")


def read_ase(path: Path, options: ReadOptions) -> Found:
    """The rows of a database of ASE.

    Raises:
        FormatError: no whole database of ASE, no rows, or values that make no sense.
    """
    _refuse_other_files(path)
    refuse_names(path, options, "a database of ASE")
    file = FileUnits(energy=INSIDE.energy, length=INSIDE.length, force=INSIDE.force)
    scale = resolve(path, options, file)
    frames = []
    sources: set[Source] = set()
    database_level: LevelOfTheory | None = None
    try:
        database = ase.db.connect(str(path), type="db", use_lock_file=False)
        try:
            database_level = _stated(database.metadata, options)
        except InputError as error:
            raise FormatError(f"{path}: {error}") from None
        for row in _rows(database, path):
            try:
                frame, level = _frame(row, options, scale, path, database_level)
            except InputError as error:
                raise FormatError(f"{path}, row {row.id}: {error}") from None
            frames.append(frame)
            if frame.label is not None:
                sources.add("given" if options.level else "stated by the file" if level else "unknown")
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        raise FormatError(f"{path} is a damaged database: {error}") from error
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error}") from error
    if not frames:
        raise FormatError(f"{path} holds no structure: the database has no rows")
    source: Source = "unknown" if "unknown" in sources or not sources else next(iter(sources))
    return Found(
        path=path,
        format="ase",
        frames=frames,
        units=scale.read(),
        level_source=source,
        unread=tuple(sorted({key for frame in frames for key in frame.info if looks_like_label(key)})),
    )


def _refuse_other_files(path: Path) -> None:
    """ASE would make a database of whatever it is given; nothing is opened for writing here."""
    if not path.is_file():
        raise FormatError(f"no such file: {path}")
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        try:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        finally:
            connection.close()
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        raise FormatError(
            f"{path} is no database of ASE: {error}; is it cut short or of another kind?"
        ) from None
    if not tables >= {"systems", "information"}:
        raise FormatError(f"{path} is no database of ASE: it has no table `systems`")


def _rows(database: Any, path: Path) -> Iterator[Any]:
    """The rows; one that cannot be decoded is told by the last good one."""
    last = 0
    rows: Iterable[Any] = database.select()
    try:
        for row in rows:
            yield row
            last = row.id
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError, IndexError) as error:
        raise FormatError(f"{path}, the row after row {last}: it cannot be decoded: {error}") from error


def _frame(
    row: Any, options: ReadOptions, scale: Scale, path: Path, database_level: LevelOfTheory | None
) -> tuple[FoundFrame, LevelOfTheory | None]:
    # Some names, such as `charge`, are properties of a row that hide what was stored under them.
    stored: Mapping[str, Any] = vars(row)
    structure = _structure(row, stored, options, scale)
    level = database_level or _stated(stored, options)
    data = row.data if isinstance(row.data, Mapping) else {}
    label = _label(stored, data, len(structure), scale, options.level or level or unknown_level(path))
    own = (*_CHARGE, *_MULTIPLICITY, *_LEVEL, "charge_scheme")
    info = {k: v for k, v in row.key_value_pairs.items() if k not in own}
    if "split" not in info and options.split is not None:
        info["split"] = str(options.split)
    return FoundFrame(structure=structure, label=label, info=info), level


def _structure(row: Any, stored: Mapping[str, Any], options: ReadOptions, scale: Scale) -> Structure:
    numbers = np.asarray(row.numbers, dtype=np.int64)
    moments = stored.get("initial_magmoms")
    pbc = [bool(p) for p in row.pbc]
    charge, multiplicity = state_of(
        numbers,
        _number(stored, _CHARGE),
        _number(stored, _MULTIPLICITY),
        options,
        moments=None if any(pbc) else moments,
    )
    cell = np.asarray(row.cell, dtype=np.float64) * scale.length.factor
    structure = Structure(
        numbers=numbers,
        positions=np.asarray(row.positions, dtype=np.float64) * scale.length.factor,
        cell=cell if cell.any() else None,
        pbc=(pbc[0], pbc[1], pbc[2]),
        charge=charge,
        multiplicity=multiplicity,
        magnetic_moments=moments,
    )
    check_state(structure)
    return structure


def _number(stored: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    found = {name: whole(stored[name], name) for name in names if name in stored}
    if len(set(found.values())) > 1:
        raise FormatError(f"ambiguous: {' and '.join(f'{k} = {v}' for k, v in found.items())}")
    return next(iter(found.values()), None)


def _label(
    stored: Mapping[str, Any], data: Mapping[str, Any], size: int, scale: Scale, level: LevelOfTheory
) -> Label | None:
    forces = _array(stored, "forces", (size, 3))
    if stored.get("energy") is None:
        if forces is not None:
            raise FormatError("it has forces but no energy")
        return None
    stress = _array(stored, "stress", (6,), (3, 3), (9,))
    charges = _array(stored, "charges", (size,))
    energy = _array(stored, "energy", ())
    origin = _array(data, "dipole_origin", (3,))
    return Label(
        energy=float(energy) * scale.energy.factor if energy is not None else float("nan"),
        forces=None if forces is None else forces * scale.force_factor,
        stress=None if stress is None else matrix(stress) * scale.energy.factor / scale.length.factor**3,
        dipole=None if (dipole := _array(stored, "dipole", (3,))) is None else dipole * scale.length.factor,
        charges=charges,
        dipole_origin=None if origin is None else origin * scale.length.factor,
        charge_scheme=None if charges is None else str(stored.get("charge_scheme") or "unknown"),
        level=level,
    )


def _array(stored: Mapping[str, Any], name: str, *shapes: tuple[int, ...]) -> FloatArray | None:
    value = stored.get(name)
    if value is None:
        return None
    try:
        array: AnyArray = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise FormatError(f"{name} must be numbers, not {value!r}") from None
    if array.shape not in shapes:
        raise FormatError(f"{name} has shape {array.shape}, not {' or '.join(map(str, shapes))}")
    if not np.isfinite(array).all():
        raise FormatError(f"{name} is not finite")
    return array


def matrix(stress: FloatArray) -> FloatArray:
    """(3, 3) of nine numbers, or of six in the order xx, yy, zz, yz, xz, xy."""
    if stress.size == 9:
        return stress.reshape(3, 3)
    xx, yy, zz, yz, xz, xy = stress
    return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])


def _stated(stored: Mapping[str, Any], options: ReadOptions) -> LevelOfTheory | None:
    value = next((stored[name] for name in _LEVEL if name in stored), None)
    if value is None:
        return None
    level = level_stated(value if isinstance(value, str) else json.dumps(value), options.level)
    return None if is_unknown(level) else level

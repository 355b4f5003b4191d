"""Reads npz files of one molecule's conformations: revised MD17, sGDML and their like.

Revised MD17 (10.1088/2632-2153/abba6f) states no units. It is told from other files by its arrays
``old_indices``, ``old_energies`` and ``old_forces``, which point into the original MD17, together
with energies that are total energies of all electrons in kcal/mol and in no other unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from hpcal.core.arrays import AnyArray
from hpcal.core.errors import FormatError, InputError
from hpcal.core.label import LevelOfTheory
from hpcal.exchange.blocks import Block, Reading, frames_of
from hpcal.exchange.claims import npz_arrays
from hpcal.exchange.found import Found, ReadOptions, Source, looks_like_forces, looks_like_label
from hpcal.exchange.quantities import ANGSTROM, KCAL, energy_unit, length_unit
from hpcal.exchange.scale import FileUnits, refuse_names, resolve, stated_of
from hpcal.exchange.total_energy import unit_it_looks_like

NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "atomic numbers": ("nuclear_charges", "atomic_numbers", "numbers", "z", "Z", "species"),
    "coordinates": ("coords", "coordinates", "positions", "R"),
    "energies": ("energies", "energy", "E"),
    "forces": ("forces", "force", "F"),
    "gradients": ("gradients", "gradient", "grad", "G"),
    "cells": ("cell", "cells", "lattice"),
    "total charges": ("total_charge", "charge", "Q"),
    "multiplicities": ("multiplicity", "multiplicities"),
}
"""Names under which arrays are looked for."""

RMD17: Final = LevelOfTheory(
    code="rMD17", version="10.1088/2632-2153/abba6f", method="PBE", settings={"basis": "def2-SVP"}
)
"""What the paper states; the file does not."""

_RMD17_KEYS: Final = frozenset(
    {"nuclear_charges", "coords", "energies", "forces", "old_indices", "old_energies", "old_forces"}
)


def read_npz(path: Path, options: ReadOptions) -> Found:
    """The conformations of an npz file.

    Raises:
        FormatError: the file cannot be read whole, units are not known, or values make no sense.
    """
    arrays = npz_arrays(path)
    refuse_names(path, options, "an npz file of conformations", stress_only=True)
    if options.energy_key and options.energy_key not in arrays:
        raise FormatError(f"{path} holds no {options.energy_key} (arrays there: {', '.join(arrays)})")
    numbers = _required(arrays, "atomic numbers", path)
    positions = _required(arrays, "coordinates", path)
    if positions.ndim == 2:
        positions = positions[None]
    if positions.ndim != 3 or positions.shape[2] != 3:
        raise FormatError(f"{path}: coordinates have shape {positions.shape}, not (frames, atoms, 3)")
    if not len(positions):
        raise FormatError(f"{path} holds no structure: its coordinates have shape {positions.shape}")
    energies = _one(arrays, _names("energies", options.energy_key), path)
    forces, gradient = _forces(arrays, options, path)
    if energies is None and forces is not None:
        raise FormatError(f"{path} holds forces but no energies; name them with --energy-key")
    energies = None if energies is None else _per_frame(energies, len(positions))
    known = _is_rmd17(arrays, numbers, energies)
    file = _units(arrays, numbers, energies, known=known, gradient=gradient, path=path)
    scale = resolve(path, options, file, labelled=energies is not None)
    level, source = _level(arrays, known=known, options=options)
    cells = _one(arrays, NAMES["cells"], path)
    block = Block(
        where="",
        numbers=numbers,
        positions=positions,
        energies=energies,
        forces=forces,
        cells=None if cells is None else np.broadcast_to(cells, (len(positions), 3, 3)),
        pbc=(cells is not None,) * 3,
        total_charges=_state(arrays, "total charges", len(positions), path),
        multiplicities=_state(arrays, "multiplicities", len(positions), path),
        level=level,
        infos=_infos(arrays, len(positions)) if known else None,
        padded="N" in arrays,
    )
    notes: tuple[str, ...] = ()
    if scale.gradient and forces is not None:
        notes = ("forces of the file are gradients, whose sign was turned",)
    used = {options.energy_key, options.forces_key, *(name for names in NAMES.values() for name in names)}
    unread = tuple(name for name in arrays if not known and name not in used and looks_like_label(name))
    vectors = [name for name in unread if looks_like_forces(name) and arrays[name].shape == positions.shape]
    if vectors:
        notes += (f"not read: {', '.join(vectors)} (forces? name them with --forces-key)",)
    return Found(
        path=path,
        format="npz",
        frames=frames_of(block, Reading(path=path, scale=scale, options=options)),
        units=scale.read(),
        level_source=source,
        notes=notes,
        unread=unread,
    )


def _names(quantity: str, key: str | None) -> tuple[str, ...]:
    return (key,) if key else NAMES[quantity]


def _required(arrays: Mapping[str, AnyArray], quantity: str, path: Path) -> AnyArray:
    array = _one(arrays, NAMES[quantity], path)
    if array is None:
        there = ", ".join(arrays) or "nothing"
        raise FormatError(
            f"{path} holds no {quantity} under {', '.join(NAMES[quantity])} (arrays there: {there})"
        )
    return array


def _one(arrays: Mapping[str, AnyArray], names: Sequence[str], path: Path) -> AnyArray | None:
    there = [name for name in names if name in arrays]
    if len(there) > 1:
        raise FormatError(
            f"{path} is ambiguous: it holds {' and '.join(there)}; say which with --energy-key or "
            "--forces-key, or keep the one that is meant"
        )
    return arrays[there[0]] if there else None


def _forces(arrays: Mapping[str, AnyArray], options: ReadOptions, path: Path) -> tuple[AnyArray | None, bool]:
    if options.forces_key:
        if options.forces_key not in arrays:
            raise FormatError(f"{path} holds no {options.forces_key} (arrays there: {', '.join(arrays)})")
        return arrays[options.forces_key], options.forces_key in NAMES["gradients"]
    forces, gradients = (_one(arrays, NAMES[q], path) for q in ("forces", "gradients"))
    if forces is not None and gradients is not None:
        raise FormatError(f"{path} is ambiguous: it holds forces and gradients; choose with --forces-key")
    return (gradients, True) if forces is None else (forces, False)


def _per_frame(array: AnyArray, n: int) -> AnyArray:
    """(n,) of (n,), (n, 1) or, for one frame, a single number."""
    return array.reshape(n) if array.shape in ((n, 1), ()) and array.size == n else array


def _state(arrays: Mapping[str, AnyArray], quantity: str, n: int, path: Path) -> AnyArray | None:
    array = _one(arrays, NAMES[quantity], path)
    if array is None:
        return None
    return np.broadcast_to(array, (n,)) if array.size == 1 else _per_frame(array, n)


def _infos(arrays: Mapping[str, AnyArray], n: int) -> list[dict[str, Any]] | None:
    indices = arrays["old_indices"]
    return [{"old_index": int(i)} for i in indices] if indices.shape == (n,) else None


def _is_rmd17(arrays: Mapping[str, AnyArray], numbers: AnyArray, energies: AnyArray | None) -> bool:
    return arrays.keys() >= _RMD17_KEYS and _looks_like(numbers, energies) == KCAL.name


def _looks_like(numbers: AnyArray, energies: AnyArray | None) -> str | None:
    usable = numbers.ndim == 1 and numbers.dtype.kind in "iu" and numbers.size
    if energies is None or not usable or energies.dtype.kind not in "fiu" or int(numbers.min()) < 1:
        return None
    finite = energies[np.isfinite(energies)]
    if not finite.size:
        return None
    unit = unit_it_looks_like([numbers.astype(np.int64)], np.atleast_1d(np.median(finite)))
    return unit.name if unit else None


def _units(
    arrays: Mapping[str, AnyArray],
    numbers: AnyArray,
    energies: AnyArray | None,
    *,
    known: bool,
    gradient: bool,
    path: Path,
) -> FileUnits:
    if known:
        return FileUnits(energy=KCAL, length=ANGSTROM, gradient=gradient)
    try:
        energy = energy_unit(str(arrays["e_unit"])) if "e_unit" in arrays else None
        length = length_unit(str(arrays["r_unit"])) if "r_unit" in arrays else None
    except InputError as error:
        raise FormatError(f"{path}: {error}") from None
    name = _looks_like(numbers, energies)
    return FileUnits(
        energy=energy,
        length=length,
        gradient=gradient,
        stated=stated_of(energy=energy, length=length),
        hint=f" (its energies look like total energies in {name})" if name else "",
    )


def _level(
    arrays: Mapping[str, AnyArray], *, known: bool, options: ReadOptions
) -> tuple[LevelOfTheory | None, Source]:
    if options.level is not None:
        return options.level, "given"
    if known:
        return RMD17, "known of the format"
    if "theory" in arrays and arrays["theory"].dtype.kind in "SU" and arrays["theory"].size == 1:
        word = arrays["theory"].reshape(-1)[0]
        text = word.decode(errors="replace") if isinstance(word, bytes) else str(word)
        if text.strip().lower() not in ("", "unknown"):
            return LevelOfTheory(code="file", version="unknown", method=text), "stated by the file"
    return None, "unknown"

"""Reads HDF5 files in the layouts of ANI: ANI-1, ANI-1x, COMP6 and those that torchani writes.

All have groups with ``coordinates`` (n, N, 3) in Å and energies in Hartree. They differ in names,
and COMP6 in one thing that costs a training run: its ``forces`` are gradients, as its authors say
(github.com/isayev/COMP6, issue 2).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import h5py
import numpy as np

from hpcal.core.arrays import AnyArray, IntArray
from hpcal.core.errors import FormatError
from hpcal.core.label import LevelOfTheory
from hpcal.exchange.blocks import Block, Reading, frames_of
from hpcal.exchange.claims import h5_array
from hpcal.exchange.found import Found, FoundFrame, ReadOptions, Source, is_unknown, looks_like_label
from hpcal.exchange.h5_groups import (
    atomic_numbers,
    first_of,
    groups_with,
    opened,
    place,
    text_of,
    unit_stated,
)
from hpcal.exchange.levels import level_stated
from hpcal.exchange.quantities import ANGSTROM, HARTREES, energy_unit, force_unit, length_unit
from hpcal.exchange.scale import FileUnits, Scale, refuse_names, resolve, stated_of
from hpcal.exchange.total_energy import unit_it_looks_like

_SPECIES: Final = ("atomic_numbers", "species", "numbers")
_ENERGIES: Final = ("energies", "energy")
_CHARGES: Final = ("cm5", "cm5_charges", "hirshfeld", "hirshfeld_charges", "mbis_charges", "mulliken_charges")
_CELLS: Final = ("cell", "cells")
_COMP6: Final = frozenset({"lot", "hirshfeld", "cm5"})
"""Arrays that COMP6 has in each group and no other file of this layout has together."""

_ANI1X: Final = {
    "wb97x_dz": ("wb97x", "6-31G*"),
    "wb97x_tz": ("wb97x", "def2-TZVPP"),
    "hf_dz": ("HF", "cc-pVDZ"),
    "hf_tz": ("HF", "cc-pVTZ"),
    "hf_qz": ("HF", "cc-pVQZ"),
    "ccsd(t)_cbs": ("CCSD(T)*", "CBS"),
}
"""Level of each prefix in ANI-1x (Smith et al., Sci. Data 7, 134 (2020), 10.1038/s41597-020-0473-z)."""

_SAMPLED: Final = 200
"""Groups of which the unit of energies is judged."""


def read_ani(path: Path, options: ReadOptions) -> Found:
    """The molecules of a file in one of the layouts of ANI.

    Raises:
        FormatError: the file cannot be read whole, has several energies to choose from, or values
            make no sense.
    """
    with opened(path) as file:
        groups = groups_with(file, "coordinates")
        if not groups:
            raise FormatError(f"{path} holds no structure: no group has an array `coordinates`")
        energy_key = _energy_key(groups, options, path)
        forces_key = _forces_key(groups, energy_key, options, path)
        refuse_names(path, options, "a file in a layout of ANI", stress_only=True)
        unread = tuple(
            dict.fromkeys(
                key
                for group in groups
                for key in group
                if key not in (energy_key, forces_key) and looks_like_label(key)
            )
        )
        comp6 = forces_key is not None and groups[0].keys() >= _COMP6
        scale = _scale(groups, energy_key, forces_key, options, path)
        if energy_key is not None:
            _check_unit(groups, energy_key, scale, path)
        reading = Reading(path=path, scale=scale, options=options)
        frames: list[FoundFrame] = []
        source: Source = "given" if options.level else "unknown"
        for group in groups:
            level, stated = _level(group, energy_key, options, path)
            if level is not None and options.level is None:
                source = stated
            frames += frames_of(_block(group, energy_key, forces_key, level, path), reading)
    return Found(
        path=path,
        format="ani",
        frames=frames,
        units=scale.read(),
        level_source=source,
        notes=_notes(frames, energy_key, scale, comp6=comp6) if forces_key else _notes(frames, energy_key),
        unread=unread,
    )


def _energy_key(groups: Sequence[h5py.Group], options: ReadOptions, path: Path) -> str | None:
    keys = list(dict.fromkeys(key for group in groups for key in group))
    if options.energy_key:
        if options.energy_key not in keys:
            raise FormatError(f"{path} holds no {options.energy_key} (arrays there: {', '.join(keys)})")
        return options.energy_key
    plain = [key for key in keys if key in _ENERGIES]
    named = [key for key in keys if key.endswith(".energy")]
    found = plain or named
    if len(found) > 1:
        raise FormatError(
            f"{path} is ambiguous: it holds energies of several levels of theory ({', '.join(found)}); "
            "choose one with --energy-key"
        )
    if not found and any(key.split(".")[-1] in ("forces", "force") for key in keys):
        raise FormatError(f"{path} holds forces but no energies (arrays there: {', '.join(keys)})")
    return found[0] if found else None


def _prefix(energy_key: str | None) -> str:
    """What the names of one level of theory begin with, such as ``wb97x_dz.``."""
    return f"{energy_key.rpartition('.')[0]}." if energy_key and "." in energy_key else ""


def _forces_key(
    groups: Sequence[h5py.Group], energy_key: str | None, options: ReadOptions, path: Path
) -> str | None:
    if options.forces_key:
        if not any(options.forces_key in group for group in groups):
            there = ", ".join(dict.fromkeys(key for group in groups for key in group))
            raise FormatError(f"{path} holds no {options.forces_key} (arrays there: {there})")
        return options.forces_key
    prefix = _prefix(energy_key)
    names = [f"{prefix}forces", f"{prefix}force"]
    return next((name for name in names if any(name in group for group in groups)), None)


def _scale(
    groups: Sequence[h5py.Group],
    energy_key: str | None,
    forces_key: str | None,
    options: ReadOptions,
    path: Path,
) -> Scale:
    group = groups[0]
    energy = unit_stated(group, energy_key, energy_unit, path)
    length = unit_stated(group, "coordinates", length_unit, path)
    force = unit_stated(group, forces_key, force_unit, path)
    for other in groups[1:]:
        if (
            unit_stated(other, energy_key, energy_unit, path),
            unit_stated(other, "coordinates", length_unit, path),
        ) != (energy, length):
            raise FormatError(f"{path}: the groups {group.name} and {other.name} are in different units")
    file = FileUnits(
        energy=energy or HARTREES,
        length=length or ANGSTROM,
        force=force,
        gradient=group.keys() >= _COMP6,
        stated=stated_of(energy=energy, length=length, force=force),
    )
    return resolve(path, options, file, labelled=energy_key is not None)


def _check_unit(groups: Sequence[h5py.Group], energy_key: str, scale: Scale, path: Path) -> None:
    """Files in this layout are in Hartree unless their numbers say that they are not."""
    if scale.source != "known of the format":
        return
    compositions: list[IntArray] = []
    energies: list[float] = []
    for group in groups[:: max(1, len(groups) // _SAMPLED)]:
        if energy_key not in group:
            continue
        values = h5_array(group[energy_key], path).reshape(-1)
        numbers = _numbers(group, path)
        first = numbers if numbers.ndim == 1 else numbers[0] if len(numbers) else np.zeros(0)
        finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
        if len(finite) and len(first) and first.min() > 0:
            compositions.append(first.astype(np.int64))
            energies.append(float(finite[0]))
    unit = unit_it_looks_like(compositions, energies)
    if unit is not None and unit != scale.energy:
        raise FormatError(
            f"{path} is ambiguous: files of this layout are in {scale.energy.name}, but its energies are "
            f"total energies in {unit.name}; give --energy-unit and --length-unit"
        )


def _numbers(group: h5py.Group, path: Path) -> AnyArray:
    key = first_of(group, _SPECIES)
    if key is None:
        there = ", ".join(group)
        raise FormatError(f"{path}, {place(group)} holds no species (arrays there: {there})")
    numbers = atomic_numbers(h5_array(group[key], path), f"{path}, {place(group)}")
    # torchani pads lists of atoms of unequal length with −1.
    return np.where(numbers == -1, 0, numbers) if numbers.ndim == 2 else numbers


def _block(
    group: h5py.Group,
    energy_key: str | None,
    forces_key: str | None,
    level: LevelOfTheory | None,
    path: Path,
) -> Block:
    positions = h5_array(group["coordinates"], path)
    n = len(positions) if positions.ndim else 0
    numbers = _numbers(group, path)
    charges, scheme = _charges(group, positions.shape, _prefix(energy_key), path)
    cell_key = first_of(group, _CELLS)
    cells = None if cell_key is None else h5_array(group[cell_key], path)
    energies = h5_array(group[energy_key], path) if energy_key is not None and energy_key in group else None
    forces = h5_array(group[forces_key], path) if forces_key is not None and forces_key in group else None
    return Block(
        where=place(group),
        numbers=numbers,
        positions=positions,
        energies=energies.reshape(n) if energies is not None and energies.size == n else energies,
        forces=forces if energies is not None else None,
        charges=charges if energies is not None else None,
        charge_scheme=scheme,
        cells=np.broadcast_to(cells, (n, 3, 3)) if cells is not None and cells.shape == (3, 3) else cells,
        pbc=_pbc(group, path) if cells is not None else (False, False, False),
        total_charges=_state(group, ("charge", "charges_total", "total_charge"), n, path),
        multiplicities=_state(group, ("multiplicity", "multiplicities"), n, path),
        level=level,
        infos=_splits(group, n, path),
        padded=numbers.ndim == 2,
        # ANI-1x holds NaN where a quantity was not calculated.
        gaps=bool(_prefix(energy_key)),
    )


def _charges(
    group: h5py.Group, shape: tuple[int, ...], prefix: str, path: Path
) -> tuple[AnyArray | None, str | None]:
    for name in _CHARGES:
        if (key := prefix + name) in group:
            charges = h5_array(group[key], path)
            # COMP6 appends the sum over all atoms.
            if charges.ndim == 2 and len(shape) == 3 and charges.shape[1] == shape[1] + 1:
                charges = charges[:, :-1]
            return charges, name.removesuffix("_charges")
    return None, None


def _state(group: h5py.Group, names: Sequence[str], n: int, path: Path) -> AnyArray | None:
    for name in names:
        if name in group.attrs:
            return np.broadcast_to(np.asarray(group.attrs[name]).reshape(-1)[:1], (n,))
        if name in group:
            array = h5_array(group[name], path)
            return np.broadcast_to(array.reshape(-1), (n,)) if array.size == 1 else array
    return None


def _splits(group: h5py.Group, n: int, path: Path) -> list[dict[str, str]] | None:
    """The split of each conformation, as hpcal writes them; None where the group does not say."""
    if "split" not in group:
        return None
    words = h5_array(group["split"], path).reshape(-1)
    if len(words) != n:
        return None
    if words.dtype.kind in "iu":
        names = json.loads(str(group["split"].attrs.get("names", "[]")))
        if not names or words.max() >= len(names) or words.min() < 0:
            return None
        return [{"split": str(names[word])} for word in words.tolist()]
    if words.dtype.kind not in "SUO":
        return None
    return [
        {"split": word.decode(errors="replace") if isinstance(word, bytes) else str(word)}
        for word in words.tolist()
    ]


def _pbc(group: h5py.Group, path: Path) -> tuple[bool, bool, bool]:
    if "pbc" not in group:
        return (True, True, True)
    rows = h5_array(group["pbc"], path).reshape(-1, 3).astype(bool)
    if len(rows) == 0 or (rows != rows[0]).any():
        raise FormatError(f"{path}, {place(group)}: `pbc` must be the same for all frames of a group")
    return (bool(rows[0][0]), bool(rows[0][1]), bool(rows[0][2]))


def _level(
    group: h5py.Group, energy_key: str | None, options: ReadOptions, path: Path
) -> tuple[LevelOfTheory | None, Source]:
    record = group.file.attrs.get("level_of_theory", "unknown")
    if isinstance(record, str) and record != "unknown":
        try:
            level = level_stated(record, options.level)
        except FormatError as error:
            raise FormatError(f"{path}: {error}") from None
        return (None, "unknown") if is_unknown(level) else (level, "stated by the file")
    prefix = _prefix(energy_key).removesuffix(".")
    if prefix in _ANI1X:
        method, basis = _ANI1X[prefix]
        return LevelOfTheory(
            code="ANI-1x", version="10.1038/s41597-020-0473-z", method=method, settings={"basis": basis}
        ), "known of the format"
    text = text_of(group, "lot", lambda stored: h5_array(stored, path))
    if text is None:
        return None, "unknown"
    method, slash, basis = text.partition("/")
    return LevelOfTheory(
        code="file", version="unknown", method=method, settings={"basis": basis} if slash else {}
    ), "stated by the file"


def _notes(
    frames: Sequence[FoundFrame], energy_key: str | None, scale: Scale | None = None, *, comp6: bool = False
) -> tuple[str, ...]:
    notes = []
    without = sum(frame.label is None for frame in frames)
    if energy_key is not None and without:
        notes.append(f"{without} conformations have no {energy_key} and stay without a label")
    if scale is None or not scale.gradient:
        return tuple(notes)
    if comp6:
        notes.append("COMP6 stores gradients under the name forces: their sign was turned")
    else:
        notes.append("forces of the file are gradients, whose sign was turned")
    return tuple(notes)

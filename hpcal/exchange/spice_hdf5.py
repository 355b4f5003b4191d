"""Reads HDF5 files in the layout of SPICE (Eastman et al., Sci. Data 10, 11 (2023)).

A group for each molecule: ``atomic_numbers`` (N,), ``conformations`` (n, N, 3) in bohr,
``dft_total_energy`` (n,) in Hartree and ``dft_total_gradient`` (n, N, 3) in Hartree/bohr, which is
dE/dx: forces are its negative. An attribute ``units`` of an array goes before these.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from hpcal.core.arrays import AnyArray
from hpcal.core.errors import FormatError
from hpcal.core.label import LevelOfTheory
from hpcal.exchange.blocks import Block, Reading, frames_of, whole
from hpcal.exchange.claims import h5_array
from hpcal.exchange.found import Found, FoundFrame, ReadOptions, Source, looks_like_label
from hpcal.exchange.h5_groups import (
    atomic_numbers,
    first_of,
    groups_with,
    opened,
    place,
    text_of,
    unit_stated,
)
from hpcal.exchange.quantities import BOHRS, HARTREES, energy_unit, force_unit, length_unit
from hpcal.exchange.scale import FileUnits, Scale, refuse_names, resolve, stated_of

SPICE: Final = LevelOfTheory(
    code="SPICE",
    version="10.1038/s41597-022-01882-6",
    method="wB97M-D3(BJ)",
    settings={"basis": "def2-TZVPPD"},
)
_ENERGY: Final = "dft_total_energy"
_GRADIENT: Final = "dft_total_gradient"
_CHARGE: Final = ("charge", "total_charge", "molecular_charge")
_MULTIPLICITY: Final = ("multiplicity", "molecular_multiplicity")
_FORMAL_CHARGE: Final = re.compile(r"\[[^\]]*?(\++|-+)(\d*)(?::\d+)?\]")


def read_spice(path: Path, options: ReadOptions) -> Found:
    """The molecules of a file in the layout of SPICE.

    Raises:
        FormatError: the file cannot be read whole, or values make no sense.
    """
    energy_key, forces_key = options.energy_key or _ENERGY, options.forces_key or _GRADIENT
    with opened(path) as file:
        groups = groups_with(file, "conformations")
        if not groups:
            raise FormatError(f"{path} holds no structure: no group has an array `conformations`")
        labelled = any(energy_key in group for group in groups)
        if not labelled and (options.energy_key or any(forces_key in group for group in groups)):
            raise FormatError(
                f"{path} holds no {energy_key} (arrays there: {', '.join(groups[0])}); name the energies "
                "with --energy-key"
            )
        refuse_names(path, options, "a file in the layout of SPICE", stress_only=True)
        if options.forces_key and not any(forces_key in group for group in groups):
            raise FormatError(f"{path} holds no {forces_key} (arrays there: {', '.join(groups[0])})")
        scale = _scale(groups, energy_key, forces_key, options, path, labelled=labelled)
        reading = Reading(path=path, scale=scale, options=options)
        unread = tuple(dict.fromkeys(key for group in groups for key in group if looks_like_label(key)))
        frames: list[FoundFrame] = []
        source: Source = "given" if options.level else "unknown"
        for group in groups:
            level = _level(group, energy_key, path)
            if level is not None and options.level is None:
                source = "known of the format"
            frames += frames_of(_block(group, energy_key, forces_key, level, path), reading)
    without = sum(frame.label is None for frame in frames) if labelled else 0
    notes = [f"{without} conformations have no {energy_key} and stay without a label"] if without else []
    if scale.gradient and any(frame.label is not None and frame.label.forces is not None for frame in frames):
        notes.append(f"{forces_key} is a gradient: forces are its negative")
    return Found(
        path=path,
        format="spice",
        frames=frames,
        units=scale.read(),
        level_source=source,
        notes=tuple(notes),
        unread=() if labelled else unread,
    )


def formal_charge(smiles: str) -> int:
    """The sum of the formal charges that a SMILES states, such as −1 for ``[CH3:1][O-:2]``."""
    total = 0
    for signs, digits in _FORMAL_CHARGE.findall(smiles):
        size = int(digits) if digits else len(signs)
        total += size if signs[0] == "+" else -size
    return total


def _scale(
    groups: Sequence[h5py.Group],
    energy_key: str,
    forces_key: str,
    options: ReadOptions,
    path: Path,
    *,
    labelled: bool,
) -> Scale:
    def stated(group: h5py.Group) -> tuple[Any, Any, Any]:
        return (
            unit_stated(group, energy_key, energy_unit, path),
            unit_stated(group, "conformations", length_unit, path),
            unit_stated(group, forces_key, force_unit, path),
        )

    example = next((g for g in groups if energy_key in g), groups[0])
    units = stated(example)
    for group in groups:
        for mine, other in zip(stated(group), units, strict=True):
            if mine is not None and mine != other:
                raise FormatError(f"{path}: {place(example)} and {place(group)} are in different units")
    energy, length, force = units
    file = FileUnits(
        energy=energy or HARTREES,
        length=length or BOHRS,
        force=force,
        gradient="grad" in forces_key.lower(),
        stated=stated_of(energy=energy, length=length, force=force),
    )
    return resolve(path, options, file, labelled=labelled)


def _block(
    group: h5py.Group, energy_key: str, forces_key: str, level: LevelOfTheory | None, path: Path
) -> Block:
    if first_of(group, ("atomic_numbers",)) is None:
        raise FormatError(
            f"{path}, {place(group)} holds no atomic_numbers (arrays there: {', '.join(group)})"
        )
    numbers = atomic_numbers(h5_array(group["atomic_numbers"], path), f"{path}, {place(group)}")
    positions = h5_array(group["conformations"], path)
    n = len(positions) if positions.ndim else 0
    energies = h5_array(group[energy_key], path) if energy_key in group else None
    forces = h5_array(group[forces_key], path) if forces_key in group and energies is not None else None
    charges = h5_array(group["mbis_charges"], path) if "mbis_charges" in group else None
    if charges is not None and charges.ndim == 3 and charges.shape[2] == 1:
        charges = charges[:, :, 0]
    info = {
        name: text
        for name in ("smiles", "subset")
        if (text := text_of(group, name, lambda stored: h5_array(stored, path))) is not None
    }
    info["group"] = str(group.name).rpartition("/")[2]
    return Block(
        where=place(group),
        numbers=numbers,
        positions=positions,
        energies=energies.reshape(n) if energies is not None and energies.size == n else energies,
        forces=forces,
        charges=charges if energies is not None else None,
        charge_scheme="mbis",
        total_charges=_charge(group, info.get("smiles"), n, path),
        multiplicities=_stated(group, _MULTIPLICITY, n, path),
        level=level,
        infos=[info] * n,
    )


def _charge(group: h5py.Group, smiles: str | None, n: int, path: Path) -> AnyArray | None:
    """The charge that the molecule states, in numbers or by the formal charges of its SMILES."""
    stated = _stated(group, _CHARGE, n, path)
    if stated is not None or smiles is None:
        return stated
    return np.full(n, formal_charge(smiles))


def _stated(group: h5py.Group, names: Sequence[str], n: int, path: Path) -> AnyArray | None:
    for name in names:
        if name in group.attrs:
            return np.full(n, whole(np.asarray(group.attrs[name]).reshape(-1)[0], name))
        if name in group:
            array = h5_array(group[name], path).reshape(-1)
            return np.broadcast_to(array, (n,)) if array.size == 1 else array
    return None


def _level(group: h5py.Group, energy_key: str, path: Path) -> LevelOfTheory | None:
    """SPICE does not write its level, but names each molecule's subset as its own."""
    if energy_key != _ENERGY or energy_key not in group:
        return None
    subset = text_of(group, "subset", lambda stored: h5_array(stored, path))
    return SPICE if subset is not None and subset.startswith("SPICE") else None

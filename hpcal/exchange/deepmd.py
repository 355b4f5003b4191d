"""Reads folders of DeePMD-kit (npy, also its mixed type): eV and Å by definition.

A system is a folder with ``type.raw``, ``type_map.raw`` and sets ``set.*`` of ``coord.npy`` (n, 3N),
``energy.npy`` (n,), ``force.npy`` (n, 3N), ``box.npy`` (n, 9) and ``virial.npy`` (n, 9), which is
−dE/dε: stress = −virial / volume. A file ``nopbc`` says that nothing is periodic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from hpcal.core import elements
from hpcal.core.arrays import AnyArray, IntArray
from hpcal.core.errors import FormatError
from hpcal.core.walker import Split
from hpcal.exchange.blocks import Block, Reading, frames_of
from hpcal.exchange.claims import npy_array
from hpcal.exchange.found import Found, FoundFrame, ReadOptions
from hpcal.exchange.scale import INSIDE, FileUnits, refuse_names, resolve

_LONGEST_LIST: Final = 200_000_000
"""Bytes of ``type.raw`` beyond which it is no list of atoms."""


def systems(folder: Path) -> list[Path]:
    """The systems in a folder: itself, or all below it, in the order of their names."""
    if (folder / "type.raw").is_file():
        return [folder]
    return sorted(file.parent for file in folder.rglob("type.raw"))


def read_deepmd(path: Path, options: ReadOptions) -> Found:
    """The systems of a DeePMD folder.

    Raises:
        FormatError: no such folder, no system or no frames in it, or values that make no sense.
    """
    if not path.is_dir():
        raise FormatError(
            f"no such folder: {path}" if not path.exists() else f"{path} is no folder of DeePMD"
        )
    refuse_names(path, options, "a folder of DeePMD")
    folders = systems(path)
    if not folders:
        raise FormatError(f"{path} is no folder of DeePMD: there is no type.raw in it or below it")
    file = FileUnits(energy=INSIDE.energy, length=INSIDE.length, force=INSIDE.force)
    scale = resolve(path, options, file)
    frames: list[FoundFrame] = []
    reading = Reading(path=path, scale=scale, options=options)
    for folder in folders:
        sets = sorted(entry for entry in folder.glob("set.*") if entry.is_dir())
        if not sets:
            raise FormatError(f"{folder} holds no structure: there is no folder set.* in it")
        system = _System(folder=folder, types=_types(folder), names=_type_map(folder))
        for part in sets:
            frames += frames_of(_block(path, system, part), reading)
    return Found(
        path=path,
        format="deepmd",
        frames=frames,
        units=scale.read(),
        level_source="given" if options.level else "unknown",
        notes=("forces of the files are gradients, whose sign was turned",) if scale.gradient else (),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _System:
    """A folder, the types (N,) of its atoms, and the atomic number of each type."""

    folder: Path
    types: IntArray
    names: IntArray


def _block(path: Path, system: _System, part: Path) -> Block:
    folder, types, names = system.folder, system.types, system.names
    where = "" if part == path else str(part.relative_to(path))
    coordinates = npy_array(part / "coord.npy")
    size = len(types)
    if coordinates.ndim != 2 or coordinates.shape[1] != 3 * size:
        raise FormatError(
            f"{part / 'coord.npy'} has shape {coordinates.shape}, not (frames, {3 * size}) as the {size} "
            "atoms of type.raw ask for"
        )
    n = len(coordinates)
    cells = _cells(folder, part, n)
    virial = _optional(part, "virial", (n, 9), (n, 3, 3))
    if virial is not None and cells is None:
        raise FormatError(f"{part / 'virial.npy'}: a virial needs the cells of box.npy")
    energies = _optional(part, "energy", (n,), (n, 1))
    forces = _optional(part, "force", (n, 3 * size))
    if energies is None and forces is not None:
        raise FormatError(f"{part} holds force.npy but no energy.npy")
    numbers, padded = _numbers(part, types, names, n)
    return Block(
        where=where,
        numbers=numbers,
        positions=coordinates.reshape(n, size, 3),
        energies=None if energies is None else energies.reshape(n),
        forces=None if forces is None else forces.reshape(n, size, 3),
        stresses=None if virial is None or cells is None else _stress(part, virial, cells),
        cells=cells,
        pbc=(cells is not None,) * 3,
        padded=padded,
        infos=[{"split": split}] * n if (split := _split(path, folder)) else None,
    )


def _split(path: Path, folder: Path) -> str | None:
    """The split that the first folder below ``path`` is named after, as hpcal writes them."""
    name = next(iter(folder.relative_to(path).parts), "")
    return name if name in tuple(Split) else None


def _types(folder: Path) -> IntArray:
    """(N,) types of the atoms, counted from 0."""
    file = folder / "type.raw"
    if file.stat().st_size > _LONGEST_LIST:
        raise FormatError(f"{file} has {file.stat().st_size} bytes, too many for the types of one system")
    words = file.read_text(encoding="utf-8", errors="replace").split()
    if not words:
        raise FormatError(f"{file} is empty: it must hold the type of each atom")
    for atom, word in enumerate(words):
        if not (word.isascii() and word.isdigit() and len(word) < 7):
            raise FormatError(f"{file}: the type of atom {atom} must be a number from 0, not {word[:40]!r}")
    return np.array(words, dtype=np.int64)


def _type_map(folder: Path) -> IntArray:
    """Atomic number of each type."""
    file = folder / "type_map.raw"
    if not file.is_file():
        raise FormatError(
            f"{folder} is ambiguous: without type_map.raw nobody knows the elements of its types; write one "
            "with the symbol of each type on a line"
        )
    numbers = []
    for word in file.read_text(encoding="utf-8", errors="replace").split():
        try:
            numbers.append(elements.atomic_number(word))
        except KeyError:
            # A type that no atom has may be called anything, such as Type_0.
            numbers.append(-1)
    if not numbers:
        raise FormatError(f"{file} is empty: it must hold the symbol of each type")
    return np.array(numbers, dtype=np.int64)


def _numbers(part: Path, types: IntArray, names: IntArray, n: int) -> tuple[AnyArray, bool]:
    """Atomic numbers, (N,) or in the mixed type (n, N), and whether 0 in them is padding."""
    file = part / "real_atom_types.npy"
    if not file.exists():
        return _named(types, names, part), False
    mixed = npy_array(file)
    if mixed.shape != (n, len(types)) or mixed.dtype.kind not in "iu":
        raise FormatError(f"{file} is {mixed.dtype} {mixed.shape}, not whole numbers ({n}, {len(types)})")
    padding = mixed == -1
    numbers = _named(np.where(padding, 0, mixed).astype(np.int64), names, part)
    return np.where(padding, 0, numbers), bool(padding.any())


def _named(types: IntArray, names: IntArray, part: Path) -> IntArray:
    if types.max() >= len(names) or types.min() < 0:
        raise FormatError(
            f"{part}: an atom is of type {types.max()}, but type_map.raw names {len(names)} types"
        )
    numbers = names[types]
    if (numbers < 1).any():
        raise FormatError(
            f"{part}: unknown element: type {types[numbers < 1][0]} has no symbol of an element in "
            "type_map.raw"
        )
    return np.asarray(numbers, dtype=np.int64)


def _cells(folder: Path, part: Path, n: int) -> AnyArray | None:
    if (folder / "nopbc").exists():
        return None
    if not (part / "box.npy").exists():
        raise FormatError(
            f"{part} is ambiguous: there is no box.npy, and no file nopbc in {folder} says that nothing is "
            "periodic; write the one that is meant"
        )
    cells = _optional(part, "box", (n, 9), (n, 3, 3))
    return None if cells is None else cells.reshape(n, 3, 3)


def _stress(part: Path, virial: AnyArray, cells: AnyArray) -> AnyArray:
    """σ = −W / V, with W = −dE/dε."""
    volumes = np.abs(np.linalg.det(np.asarray(cells, dtype=np.float64)))
    if not (volumes > 0.0).all():
        frame = int(np.argmin(volumes > 0.0)) + 1
        raise FormatError(f"{part}, frame {frame}: a virial needs a cell with a volume")
    stress: AnyArray = -virial.astype(np.float64).reshape(-1, 3, 3) / volumes[:, None, None]
    return stress


def _optional(part: Path, name: str, *shapes: Sequence[int]) -> AnyArray | None:
    file = part / f"{name}.npy"
    if not file.exists():
        return None
    array = npy_array(file)
    if array.shape not in shapes:
        wanted = " or ".join(map(str, shapes))
        raise FormatError(f"{file} has shape {array.shape}, not {wanted} as coord.npy and type.raw ask for")
    if array.dtype.kind not in "fiu":
        raise FormatError(f"{file} must hold numbers, not {array.dtype}")
    return array

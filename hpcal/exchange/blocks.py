"""Blocks: many conformations of one list of atoms, as most formats of arrays hold them.

A reader gives blocks as they are in the file; they are checked and converted here, all
conformations at once, and become structures and labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from hpcal.core import elements
from hpcal.core.arrays import AnyArray, FloatArray, IntArray
from hpcal.core.errors import FormatError, InputError
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure, parity_problem
from hpcal.exchange.found import FoundFrame, ReadOptions, unknown_level
from hpcal.exchange.scale import Scale

_NO_MOMENT: Final = 1e-6
"""Bohr magnetons below which moments sum to nothing."""
_ASKS: Final = "state `charge` and `multiplicity`"
"""How a parity problem ends that another charge or multiplicity solves."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """n conformations of N atoms in the units of a file, nothing checked yet.

    Attributes:
        where: the place in the file, such as ``group /s66x8/mol00``; empty if it is all of it.
        numbers: (N,) atomic numbers, or (n, N) where they differ; 0 is padding if ``padded``.
        positions: (n, N, 3).
        energies: (n,), or None; NaN where a conformation has none, if ``gaps``.
        forces: (n, N, 3) forces or gradients, or None.
        stresses: (n, 3, 3) in energy/length³, positive in tension, or None.
        charges: (n, N) partial charges, e, or None.
        cells: (n, 3, 3) lattice vectors as rows, or None.
        total_charges: (n,) e, or None where they are not stated.
        multiplicities: (n,), or None where they are not stated.
        level: of these labels, or None.
        infos: one mapping a conformation, or none.
    """

    where: str
    numbers: AnyArray
    positions: AnyArray
    energies: AnyArray | None = None
    forces: AnyArray | None = None
    stresses: AnyArray | None = None
    charges: AnyArray | None = None
    charge_scheme: str | None = None
    cells: AnyArray | None = None
    pbc: tuple[bool, bool, bool] = (False, False, False)
    total_charges: AnyArray | None = None
    multiplicities: AnyArray | None = None
    level: LevelOfTheory | None = None
    infos: Sequence[Mapping[str, Any]] | None = None
    padded: bool = False
    gaps: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """What all blocks of one file have in common."""

    path: Path
    scale: Scale
    options: ReadOptions


def frames_of(block: Block, reading: Reading) -> list[FoundFrame]:
    """Structures and labels of a block, in the units of hpcal.

    Raises:
        FormatError: shapes that do not fit, values that are not finite, unknown elements, or a
            charge and multiplicity that cannot be; one sentence with file, group and frame.
    """
    where = f"{reading.path}{', ' + block.where if block.where else ''}"
    _check_shapes(block, where)
    _check_elements(block, where)
    _check_finite(block, where)
    numbers = block.numbers.astype(np.int64)
    if numbers.ndim == 1 or (len(numbers) and (numbers == numbers[0]).all() and (numbers[0] > 0).all()):
        each = numbers if numbers.ndim == 1 else numbers[0]
        atoms = [slice(None)] * len(block.positions)
        every = [each] * len(block.positions)
    else:
        atoms = [row > 0 for row in numbers]
        every = [row[keep] for row, keep in zip(numbers, atoms, strict=True)]
    structures = _structures(block, reading, where, every, atoms)
    labels = _labels(block, reading, atoms)
    infos: Sequence[Mapping[str, Any]] = block.infos or [{}] * len(structures)
    split = reading.options.split
    extra = {} if split is None else {"split": str(split)}
    return [
        FoundFrame(structure=s, label=label, info={**extra, **info})
        for s, label, info in zip(structures, labels, infos, strict=True)
    ]


def state_of(
    numbers: IntArray,
    charge: int | None,
    multiplicity: int | None,
    options: ReadOptions,
    moments: object = None,
) -> tuple[int, int]:
    """Charge and multiplicity: as stated, else as the options say, else as the moments say, else 0 and 1.

    Args:
        moments: (N,) initial magnetic moments of a molecule, Bohr magnetons, or None.

    Raises:
        FormatError: moments whose sum no multiplicity of so many electrons has.
    """
    charge = (options.charge or 0) if charge is None else charge
    if multiplicity is None and options.multiplicity is None and moments is not None:
        multiplicity = _of_moments(int(numbers.sum()) - charge, np.asarray(moments, dtype=np.float64))
    if multiplicity is None:
        if options.multiplicity == "lowest":
            multiplicity = 1 + (int(numbers.sum()) - charge) % 2
        else:
            multiplicity = options.multiplicity or 1
    return charge, multiplicity


def _of_moments(electrons: int, moments: FloatArray) -> int | None:
    """2S + 1 of moments along one axis, or None where they sum to 0."""
    total = abs(float(moments.sum()))
    if not _NO_MOMENT < total < np.inf:
        return None
    multiplicity = round(total) + 1
    if (electrons - multiplicity + 1) % 2:
        raise FormatError(
            f"initial moments sum to {total:g} Bohr magnetons, and {electrons} electrons cannot have "
            f"multiplicity {multiplicity}: state the multiplicity in the file, or with --multiplicity"
        )
    return multiplicity


def check_state(structure: Structure) -> None:
    """Raises FormatError where charge and multiplicity cannot go together."""
    if problem := parity_problem(structure):
        advice = (
            " in the file, or for all that do not state them with --charge and --multiplicity "
            "(--multiplicity lowest: 1 or 2 as the electrons ask for); for commands without these options, "
            "convert it with `hpcal import FILE --to …`"
        )
        raise FormatError(problem + advice if problem.endswith(_ASKS) else problem)


def whole(value: object, name: str) -> int:
    """A whole number from a file. Raises FormatError for anything else."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = float("nan")
    if not number.is_integer():
        raise FormatError(f"{name} must be a whole number, not {value!r}")
    return int(number)


def _structures(
    block: Block,
    reading: Reading,
    where: str,
    numbers: Sequence[IntArray],
    atoms: Sequence[Any],
) -> list[Structure]:
    length = reading.scale.length.factor
    positions = np.asarray(block.positions, dtype=np.float64) * length
    cells = None if block.cells is None else np.asarray(block.cells, dtype=np.float64) * length
    structures = []
    for i, (z, keep) in enumerate(zip(numbers, atoms, strict=True)):
        try:
            charge, multiplicity = state_of(
                z,
                None if block.total_charges is None else whole(block.total_charges[i], "charge"),
                None if block.multiplicities is None else whole(block.multiplicities[i], "multiplicity"),
                reading.options,
            )
            structure = Structure(
                numbers=z,
                positions=positions[i][keep],
                cell=None if cells is None else cells[i],
                pbc=block.pbc,
                charge=charge,
                multiplicity=multiplicity,
            )
            check_state(structure)
        except InputError as error:
            raise FormatError(f"{where}, frame {i + 1}: {error}") from None
        structures.append(structure)
    return structures


def _labels(block: Block, reading: Reading, atoms: Sequence[Any]) -> list[Label | None]:
    if block.energies is None:
        return [None] * len(block.positions)
    scale = reading.scale
    energies = np.asarray(block.energies, dtype=np.float64) * scale.energy.factor
    forces = None if block.forces is None else np.asarray(block.forces, dtype=np.float64) * scale.force_factor
    pressure = scale.energy.factor / scale.length.factor**3
    stresses = None if block.stresses is None else np.asarray(block.stresses, dtype=np.float64) * pressure
    level = reading.options.level or block.level or unknown_level(reading.path)
    labels: list[Label | None] = []
    for i, (energy, keep) in enumerate(zip(energies, atoms, strict=True)):
        if np.isnan(energy):
            labels.append(None)
            continue
        charges = None if block.charges is None else _known(block.charges[i][keep])
        labels.append(
            Label(
                energy=float(energy),
                forces=None if forces is None else _known(forces[i][keep]),
                stress=None if stresses is None else _known(stresses[i]),
                charges=charges,
                charge_scheme=None if charges is None else block.charge_scheme,
                level=level,
            )
        )
    return labels


def _known(array: AnyArray) -> AnyArray | None:
    """The array, or None if it holds NaN, which stands for what was not calculated."""
    return None if np.isnan(array).any() else array


def _check_shapes(block: Block, where: str) -> None:
    positions = block.positions
    if positions.ndim != 3 or positions.shape[2] != 3:
        raise FormatError(f"{where}: coordinates have shape {positions.shape}, not (frames, atoms, 3)")
    n, size = positions.shape[:2]
    if n == 0 or size == 0:
        raise FormatError(f"{where} holds no structure: its coordinates have shape {positions.shape}")
    expected: dict[str, tuple[AnyArray | None, tuple[tuple[int, ...], ...]]] = {
        "atomic numbers": (block.numbers, ((size,), (n, size))),
        "energies": (block.energies, ((n,),)),
        "forces": (block.forces, ((n, size, 3),)),
        "stresses": (block.stresses, ((n, 3, 3),)),
        "partial charges": (block.charges, ((n, size),)),
        "cells": (block.cells, ((n, 3, 3),)),
        "total charges": (block.total_charges, ((n,),)),
        "multiplicities": (block.multiplicities, ((n,),)),
    }
    for name, (array, shapes) in expected.items():
        if array is not None and array.shape not in shapes:
            wanted = " or ".join(map(str, shapes))
            raise FormatError(
                f"{where}: {name} have shape {array.shape}, not {wanted} as coordinates of {n} frames of "
                f"{size} atoms ask for"
            )
        if array is not None and array.dtype.kind not in "fiu":
            raise FormatError(f"{where}: {name} must be numbers, not {array.dtype}")
    if positions.dtype.kind not in "fiu":
        raise FormatError(f"{where}: coordinates must be numbers, not {positions.dtype}")


def _check_elements(block: Block, where: str) -> None:
    numbers = block.numbers
    lowest = 0 if block.padded else 1
    bad = ~((numbers >= lowest) & (numbers <= elements.MAX_ATOMIC_NUMBER) & (numbers == np.floor(numbers)))
    if bad.any():
        place = np.argwhere(bad)[0]
        frame = f", frame {place[0] + 1}" if numbers.ndim == 2 else ""
        raise FormatError(
            f"{where}{frame}: unknown element: atomic number {numbers[bad][0]} (atom {place[-1]})"
        )
    if numbers.ndim == 2 and (empty := ~(numbers > 0).any(axis=1)).any():
        raise FormatError(f"{where}, frame {int(np.argmax(empty)) + 1}: a structure needs at least one atom")


def _check_finite(block: Block, where: str) -> None:
    arrays = {
        "coordinates": block.positions,
        "energy": block.energies,
        "forces": block.forces,
        "stress": block.stresses,
        "partial charges": block.charges,
        "cell": block.cells,
    }
    for name, array in arrays.items():
        if array is None:
            continue
        gap_allowed = block.gaps and name not in ("coordinates", "cell")
        good = ~np.isinf(array) if gap_allowed else np.isfinite(array)
        if good.all():
            continue
        frame, *rest = (int(i) for i in np.argwhere(~good)[0])
        atom = f" of atom {rest[0]}" if name in ("coordinates", "forces", "partial charges") else ""
        value = array[(frame, *rest)]
        raise FormatError(f"{where}, frame {frame + 1}: {name}{atom} not finite: {value}")

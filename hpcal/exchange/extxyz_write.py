"""Writes extended XYZ with as many digits as a number has, so that nothing changes on the way."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from hpcal.core import elements
from hpcal.core.arrays import AnyArray
from hpcal.core.dataset import Dataset
from hpcal.core.errors import InputError
from hpcal.core.label import Label
from hpcal.core.structure import Structure
from hpcal.exchange.atomic import replacing
from hpcal.exchange.extxyz_keys import LABEL_KEYS, OTHER_CHARGES, RESERVED, LabelledFrame
from hpcal.exchange.found import is_unknown

Keys = Literal["hpcal", "mace"]
ISOLATED: Final = "IsolatedAtom"
"""The ``config_type`` by which MACE knows the energies of single atoms."""
_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_BARE: Final = re.compile(r"[A-Za-z0-9_.:/+-]+")
_WRITTEN: Final = {quantity: names[0] for quantity, names in LABEL_KEYS.items()}


def write_labelled(path: Path, items: Iterable[LabelledFrame]) -> int:
    """Writes labelled structures under the keys ``REF_energy``, ``REF_forces`` and so on.

    The file takes its place whole when everything is written.

    Returns:
        How many were written.

    Raises:
        InputError: nothing to write, a label that is not finite, or an info key that means
            something else in this format.
    """
    return _write(path, ((item.structure, item.label, item.info) for item in items))


def write_dataset(path: Path, dataset: Dataset, keys: Keys = "hpcal") -> int:
    """Writes a data set as :func:`write_labelled` does, with what is known of each structure.

    Further keys of the comment line: ``structure_id``, ``split``, ``config_type``, and ``origin``,
    ``generation``, ``uncertainty`` where known. ``config_type`` is the origin, and ``IsolatedAtom`` for
    the neutral single atom of lowest energy of each element.

    Args:
        keys: ``mace`` adds charge and multiplicity under the keys that MACE reads by default,
            ``total_charge`` and ``total_spin`` (``mace/tools/default_keys.py``; its default of 1
            for ``total_spin`` is the multiplicity of a singlet).

    Returns:
        How many were written.

    Raises:
        InputError: as :func:`write_labelled`; the level of theory is not known.
    """
    return write_labelled(path, _frames(dataset, keys))


def _frames(dataset: Dataset, keys: Keys) -> Iterator[LabelledFrame]:
    isolated = set(lowest_atoms(dataset).values())
    known = {
        "origin": [None] * len(dataset) if dataset.origins is None else dataset.origins.tolist(),
        "generation": [None] * len(dataset) if dataset.generations is None else dataset.generations.tolist(),
        "uncertainty": [None] * len(dataset)
        if dataset.uncertainties is None
        else [value if math.isfinite(value) else None for value in dataset.uncertainties.tolist()],
    }
    for i in range(len(dataset)):
        info: dict[str, Any] = {"structure_id": int(dataset.ids[i]), "split": str(dataset.splits[i])}
        info |= {name: values[i] for name, values in known.items()}
        info["config_type"] = ISOLATED if i in isolated else info["origin"] or "Default"
        if keys == "mace":
            info["total_charge"] = int(dataset.charges[i])
            info["total_spin"] = int(dataset.multiplicities[i])
        yield LabelledFrame(structure=dataset.structure(i), label=dataset.label(i), info=info)


def lowest_atoms(dataset: Dataset) -> dict[int, int]:
    """The neutral, not periodic single atom of lowest energy: atomic number → place in the data set."""
    single = (dataset.sizes == 1) & (dataset.charges == 0) & ~dataset.pbc.any(axis=1)
    lowest: dict[int, int] = {}
    for i in np.flatnonzero(single).tolist():
        number = int(dataset.numbers[dataset.offsets[i]])
        if number not in lowest or dataset.energies[i] < dataset.energies[lowest[number]]:
            lowest[number] = i
    return lowest


def write_structures(
    path: Path, structures: Iterable[Structure], infos: Sequence[Mapping[str, Any]] | None = None
) -> int:
    """Writes structures without labels; returns and raises as :func:`write_labelled`.

    Args:
        infos: further keys of each comment line, one mapping a structure.
    """
    if infos is None:
        return _write(path, ((structure, None, {}) for structure in structures))
    return _write(path, ((s, None, info) for s, info in zip(structures, infos, strict=True)))


def _write(path: Path, rows: Iterable[tuple[Structure, Label | None, Mapping[str, Any]]]) -> int:
    count = 0
    with replacing(path) as file:
        for structure, label, info in rows:
            file.write(_frame(structure, label, info).encode())
            count += 1
        if not count:
            raise InputError(f"nothing to write to {path}: no structures")
    return count


def _frame(structure: Structure, label: Label | None, info: Mapping[str, Any]) -> str:
    keys: dict[str, Any] = {}
    columns: list[tuple[str, AnyArray]] = [("pos", structure.positions)]
    if structure.magnetic_moments is not None:
        columns.append(("initial_magmoms", structure.magnetic_moments[:, None]))
    if structure.cell is not None:
        keys["Lattice"] = structure.cell
    keys["Properties"] = None
    keys["pbc"] = structure.pbc
    keys["charge"] = structure.charge
    keys["multiplicity"] = structure.multiplicity
    if label is not None:
        _add_label(label, keys, columns)
    for key, value in info.items():
        _check_key(key)
        keys[key] = value
    keys["Properties"] = "species:S:1:" + ":".join(f"{name}:R:{a.shape[1]}" for name, a in columns)
    comment = " ".join(f"{key}={_text(value)}" for key, value in keys.items() if value is not None)
    return f"{len(structure)}\n{comment}\n{_atom_lines(structure, columns)}"


def _add_label(label: Label, keys: dict[str, Any], columns: list[tuple[str, AnyArray]]) -> None:
    arrays = (label.energy, label.forces, label.stress, label.dipole, label.charges)
    if not all(np.isfinite(array).all() for array in arrays if array is not None):
        raise InputError(f"a label with numbers that are not finite is not written: {label.energy} eV")
    keys[_WRITTEN["energy"]] = label.energy
    keys[_WRITTEN["stress"]] = label.stress
    keys[_WRITTEN["dipole"]] = label.dipole
    keys[_WRITTEN["dipole_origin"]] = label.dipole_origin
    keys[_WRITTEN["charge_scheme"]] = label.charge_scheme
    keys[_WRITTEN["quadrupole"]] = label.quadrupole
    if not is_unknown(label.level):
        keys["level"] = label.level.as_dict()
    if label.forces is not None:
        columns.append((_WRITTEN["forces"], label.forces))
    if label.charges is not None:
        columns.append((_WRITTEN["charges"], label.charges[:, None]))
    for scheme, charges in label.other_charges.items():
        columns.append((OTHER_CHARGES + scheme, charges[:, None]))


def _check_key(key: str) -> None:
    if key in RESERVED:
        raise InputError(f"the info key {key!r} has a meaning of its own in extended XYZ")
    if not _KEY.fullmatch(key):
        raise InputError(f"the info key {key!r} cannot be written: use letters, digits and _")


def _atom_lines(structure: Structure, columns: list[tuple[str, AnyArray]]) -> str:
    symbols = [elements.symbol(z) for z in structure.numbers.tolist()]
    rows = np.hstack([array for _, array in columns]).tolist()
    return "".join(f"{s} {' '.join(map(repr, row))}\n" for s, row in zip(symbols, rows, strict=True))


def _text(value: Any) -> str:
    """A value as its text in a comment line, quoted where it has to be."""
    if isinstance(value, np.ndarray):
        return f'"{" ".join(map(_scalar, value.ravel().tolist()))}"'
    if isinstance(value, tuple) and all(isinstance(v, bool) for v in value):
        return f'"{" ".join(map(_scalar, value))}"'
    if isinstance(value, Mapping | list | tuple):
        return _quoted(json.dumps(value, sort_keys=True, default=_plain))
    if isinstance(value, str):
        return str(value) if _BARE.fullmatch(value) else _quoted(value)
    return _scalar(_plain(value))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return value.item() if isinstance(value, np.generic) else value


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "T" if value else "F"
    if isinstance(value, int | float):
        return repr(value)
    raise InputError(f"{value!r} cannot be written to a comment line")


def _quoted(text: str) -> str:
    if len(text.splitlines()) > 1 or text != text.strip("\r\n"):
        raise InputError(f"a text of several lines cannot be written to a comment line: {text!r}")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

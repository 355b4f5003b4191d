"""Structures of equal atoms together, as formats want them that hold one array for many structures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from hpcal.core import elements
from hpcal.core.arrays import AnyArray, IntArray
from hpcal.core.dataset import Dataset
from hpcal.core.errors import InputError

OTHERS: Final = "export as .extxyz, .h5 or .db, which hold it"


SAME_EV: Final = 1e-6
"""Difference of two energies below which they are one."""
WORDS: Final = {
    "stresses": "stresses",
    "dipoles": "dipoles",
    "atomic_charges": "partial charges",
    "magnetic_moments": "initial magnetic moments",
    "origins": "origins of structures",
    "generations": "generations",
    "uncertainties": "uncertainties at selection",
}
"""Arrays that a format may have to leave out."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """B structures that have the same N atoms in the same order.

    Attributes:
        name: the Hill formula; from the second group of a formula on with ``_2`` and so on, for
            atoms in another order or where ``apart`` differs.
        apart: what else they have in common.
        numbers: (N,) atomic numbers.
        index: (B,) places in the data set, ascending.
        atoms: (B, N) places of their atoms in the arrays over atoms.
    """

    name: str
    apart: Any
    numbers: IntArray
    index: IntArray
    atoms: IntArray


def groups(dataset: Dataset, apart: Sequence[Any] | None = None) -> list[Group]:
    """The structures of a data set in groups of equal atoms, in the order in which they first come.

    Args:
        apart: one value a structure; structures with different values are not put together.
    """
    kinds = [None] * len(dataset) if apart is None else list(apart)
    species = dataset.numbers.astype("u1").tobytes()
    bounds = dataset.offsets.tolist()
    places: dict[tuple[bytes, Any], list[int]] = {}
    for i, (a, b, kind) in enumerate(zip(bounds[:-1], bounds[1:], kinds, strict=True)):
        places.setdefault((species[a:b], kind), []).append(i)
    found, times = [], dict[str, int]()
    for (numbers, kind), members in places.items():
        formula = elements.formula(list(numbers))
        times[formula] = times.get(formula, 0) + 1
        index = np.array(members, dtype=np.int64)
        found.append(
            Group(
                name=formula if times[formula] == 1 else f"{formula}_{times[formula]}",
                apart=kind,
                numbers=np.frombuffer(numbers, dtype="u1").astype(np.int64),
                index=index,
                atoms=dataset.offsets[index][:, None] + np.arange(len(numbers)),
            )
        )
    return found


def refuse(what: AnyArray, dataset: Dataset, format_name: str, problem: str) -> None:
    """Raises InputError with the first structure and the count, if anything is refused.

    Args:
        what: (n,) bool, the structures that the format cannot hold.
        problem: what they are, and why the format cannot hold it.
    """
    if what.any():
        first = int(dataset.ids[np.flatnonzero(what)[0]])
        count = f"{int(what.sum())} of {len(dataset)} structures"
        raise InputError(f"{format_name} cannot hold {count} (the first is {first}): {problem}; {OTHERS}")


def refuse_not_finite(dataset: Dataset) -> None:
    """Raises InputError for an energy that is not finite, or forces of which only some are."""
    bad = ~np.isfinite(dataset.energies)
    forces = np.add.reduceat(np.isfinite(dataset.forces).all(axis=1), dataset.offsets[:-1], dtype=np.int64)
    bad |= (forces != dataset.sizes) & ~(forces == 0)
    bad |= np.logical_or.reduceat(np.isinf(dataset.forces).any(axis=1), dataset.offsets[:-1])
    if bad.any():
        first = int(dataset.ids[np.flatnonzero(bad)[0]])
        raise InputError(f"a label with numbers that are not finite is not written: structure {first}")


def states(dataset: Dataset) -> AnyArray:
    """(n,) bool, the structures that are charged or no singlets."""
    return np.asarray((dataset.charges != 0) | (dataset.multiplicities != 1))


def mixed_states(dataset: Dataset) -> AnyArray:
    """(n,) bool, the structures whose formula occurs with other charges or multiplicities."""
    first: dict[str, tuple[int, int]] = {}
    mixed: set[str] = set()
    formulas = np.empty(len(dataset), dtype=object)
    for group in groups(dataset):
        formula = elements.formula(group.numbers.tolist())
        formulas[group.index] = formula
        pairs = np.stack([dataset.charges[group.index], dataset.multiplicities[group.index]], axis=1)
        for charge, multiplicity in np.unique(pairs, axis=0).tolist():
            if first.setdefault(formula, (charge, multiplicity)) != (charge, multiplicity):
                mixed.add(formula)
    return np.array([formula in mixed for formula in formulas], dtype=bool)


def refuse_equal_without_moments(dataset: Dataset, format_name: str) -> None:
    """Raises InputError where structures that differ in initial moments alone have different energies."""
    if dataset.magnetic_moments is None:
        return
    seen: dict[str, int] = {}
    differ = np.zeros(len(dataset), dtype=bool)
    for i in range(len(dataset)):
        first = seen.setdefault(replace(dataset.structure(i), magnetic_moments=None).content_hash, i)
        if abs(dataset.energies[i] - dataset.energies[first]) > SAME_EV:
            differ[[first, i]] = True
    problem = "they differ from others in their initial moments alone, which it has no place for"
    refuse(differ, dataset, format_name, problem)


def left_out(dataset: Dataset, format_name: str, names: Sequence[str], more: Sequence[str] = ()) -> list[str]:
    """A sentence on those of these arrays of which any structure of a data set has a value, or none.

    Args:
        names: among the keys of ``WORDS``.
        more: what else is left out.
    """
    words = list(more)
    for name in names:
        array = getattr(dataset, name)
        if array is None:
            continue
        if array.dtype.kind == "U":
            has = array != ""
        else:
            has = array >= 0 if name == "generations" else np.isfinite(array)
        if has.any():
            words.append(WORDS[name])
    return [f"left out, as {format_name} has no place for it: {', '.join(words)}; {OTHERS}"] if words else []


def state_note(dataset: Dataset, format_name: str) -> list[str]:
    """A sentence on charges and multiplicities that a format leaves out, or none."""
    count = int(states(dataset).sum())
    if not count:
        return []
    return [f"{count} structures are charged or no singlets, which {format_name} does not say; {OTHERS}"]

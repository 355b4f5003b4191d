"""Constant energies of a training: those of the atoms, and those of charge and spin beside them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpcal.core.arrays import FloatArray, IntArray
from hpcal.core.dataset import Dataset
from hpcal.potentials.member import Frame
from hpcal.potentials.states import StateFrame, of_dataset, scale, seen


def fit(
    dataset: Dataset,
    elements: Sequence[int],
    index: IntArray,
    earlier: Frame | None,
    *,
    charge_aware: bool,
) -> tuple[FloatArray, StateFrame | None]:
    """(E,) constant energy of an atom of each element, eV, and what an aware member needs besides.

    Args:
        index: structures that count.
        earlier: of a member to go on from, whose constants are kept.
        charge_aware: whether the networks know charge and spin.
    """
    kept = known(earlier)
    if not charge_aware:
        return fit_self_energies(dataset, elements, index, kept), None
    before = None if earlier is None else earlier.state
    states = (None, None) if before is None else before.known
    self_energies, energies = fit_state_energies(dataset, elements, index, kept, states)
    found = seen(dataset, index) | set(() if before is None else before.seen)
    own = scale(dataset.sizes[index]) if before is None else before.scale
    return self_energies, StateFrame(seen=tuple(sorted(found)), scale=own, energies=energies)


def known(frame: Frame | None) -> dict[int, float]:
    """Constants of the elements that an earlier member was trained on."""
    if frame is None:
        return {}
    pairs = zip(frame.elements, frame.self_energies.tolist(), strict=True)
    return {z: energy for z, energy in pairs if z in frame.trained}


def fit_self_energies(
    dataset: Dataset, elements: Sequence[int], index: IntArray, known: dict[int, float]
) -> FloatArray:
    """(E,) constant energy of an atom of each element, eV.

    The least-squares solution of smallest norm over compositions, as one composition cannot tell
    its elements apart. Each composition counts with its median energy, which a few broken
    structures do not move, and the root of its number of structures.

    Args:
        index: structures that count.
        known: constants that are kept.
    """
    counts = compositions(dataset, elements)[index]
    return _constants(counts, dataset.energies[index], [known.get(z) for z in elements])


def fit_state_energies(
    dataset: Dataset,
    elements: Sequence[int],
    index: IntArray,
    known: dict[int, float],
    states: Sequence[float | None] = (None, None),
) -> tuple[FloatArray, FloatArray]:
    """(E,) constant energies of atoms, and (2,) of a charge of one e and of an unpaired electron, eV.

    As :func:`fit_self_energies`, over compositions in their states. What data cannot tell from the
    elements, as where all structures have one state, goes to the elements.

    Args:
        index: structures that count.
        known: constants of elements that are kept.
        states: constants of charge and spin that are kept, None for those to be fitted.
    """
    # A column this small is of no use to the smallest solution where another one does as well.
    small = 1e-3
    counts = np.hstack([compositions(dataset, elements), small * of_dataset(dataset)])[index]
    kept = [*(known.get(z) for z in elements), *(None if k is None else k / small for k in states)]
    both = _constants(counts, dataset.energies[index], kept)
    return both[: len(elements)], small * both[len(elements) :]


def total(
    dataset: Dataset, elements: Sequence[int], self_energies: FloatArray, state: StateFrame | None
) -> FloatArray:
    """(n,) constant energy of each structure, eV."""
    of_elements: FloatArray = compositions(dataset, elements) @ self_energies
    return of_elements if state is None else of_elements + of_dataset(dataset) @ state.energies


def _constants(counts: FloatArray, energies: FloatArray, known: Sequence[float | None]) -> FloatArray:
    """Energy of one of what is counted in the columns of ``counts``, eV; known ones are kept."""
    fixed = np.array([0.0 if value is None else value for value in known])
    free = np.array([value is None for value in known])
    result = fixed.copy()
    if not free.any():
        return result
    kinds, member, weights = np.unique(counts, axis=0, return_inverse=True, return_counts=True)
    member = member.reshape(-1)
    medians = np.array([np.median(energies[member == k]) for k in range(len(kinds))])
    root = np.sqrt(weights)
    rest = (medians - kinds @ fixed) * root
    solution = np.linalg.lstsq(kinds[:, free] * root[:, None], rest, rcond=1e-8)[0]
    result[free] = solution
    return result


def compositions(dataset: Dataset, elements: Sequence[int]) -> FloatArray:
    """(n, E) atoms of each element in each structure."""
    starts = dataset.offsets[:-1]
    of_atoms = dataset.numbers[:, None] == np.asarray(elements)[None, :]
    return np.add.reduceat(of_atoms.astype(np.float64), starts, axis=0)

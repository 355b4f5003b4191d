"""Whether forces are minus the slope of the energy: units and signs that cannot be told otherwise.

Of two conformations x₁, x₂ of one molecule that are near each other, the trapezoidal rule gives

    E₂ − E₁ = −½ (F₁ + F₂)·(x₂ − x₁) + O(|x₂ − x₁|³).

The ratio of the two sides is 1 where units and signs are right, −1 where gradients were taken for
forces, and a ratio of units where they are mixed. (A unit of length that is wrong everywhere leaves
it at 1; see :func:`stretched`.)

Pairs are used where the right side can be trusted, which is judged without looking at the energies:
no atom moves by more than 0.4 Å, and what the forces change on the way, Σ_i |ΔF_i||Δx_i|, is at most
8 times the work. Each conformation is in one pair at most, so pairs are independent. Molecules are
turned onto each other first; displacements in periodic cells are the shortest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
from scipy.spatial import cKDTree
from scipy.stats import binom

from hpcal.core import elements
from hpcal.core.arrays import AnyArray, FloatArray, IntArray
from hpcal.core.structure import Structure
from hpcal.exchange.found import Found, FoundFrame, UnitsRead
from hpcal.exchange.quantities import ENERGIES, LENGTHS, energy_unit, force_of, force_unit

CONFIDENCE: Final = 0.9999
"""Of the interval of the median ratio: at most one of 10,000 consistent files falls outside by chance."""
TOLERANCE: Final = 1.3
"""Ratios from 1/1.3 to 1.3 count as 1: the rule's own error is below 10 %, the smallest unit
mix-up, Å for bohr, is a factor of 1.89."""
FEWEST: Final = 15
"""Pairs below which no distribution-free interval of that confidence exists."""

_NEAR: Final = 0.4
_CHANGE: Final = 8.0
_MOST_FRAMES: Final = 1500
_MOST_PAIRS: Final = 400
_RUN: Final = 50
_NEIGHBOURS: Final = 8
_NAMED_WITHIN: Final = 1.12
_FORCES: Final = tuple(force_of(energy, length) for energy in ENERGIES for length in LENGTHS)
_SAMPLED: Final = 200


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """What the pairs of a file say.

    Attributes:
        pairs: independent pairs of near conformations.
        ratio: median of energy difference over work, or None without pairs.
        interval: of the median, at ``CONFIDENCE``, or None with fewer than ``FEWEST`` pairs, which
            are too few to judge by.
        problem: why units or sign cannot be right, with the likely cause, or None.
        note: what a person should know, or None.
    """

    pairs: int
    ratio: float | None = None
    interval: tuple[float, float] | None = None
    problem: str | None = None
    note: str | None = None


def consistency(found: Found) -> Consistency:
    """Judges units and sign of energies against those of forces.

    There is a problem when the whole interval of the median ratio lies outside 1/1.3 to 1.3 and the
    ratios are alike (their quartiles differ by less than the median): then another factor explains
    the file, and 1 does not. Ratios that are not alike, and an interval that reaches out of 1/1.3 to
    1.3, are only noted.
    """
    ratios = np.array(list(islice(_ratios(found.frames), _MOST_PAIRS)))
    if len(ratios) < FEWEST:
        return Consistency(pairs=len(ratios), ratio=float(np.median(ratios)) if len(ratios) else None)
    ratio, interval = float(np.median(ratios)), median_interval(ratios)
    lower, upper = np.quantile(ratios, [0.25, 0.75])
    problem = note = None
    if interval[0] > TOLERANCE or interval[1] < 1.0 / TOLERANCE:
        if upper - lower < abs(ratio):
            problem = _explained(ratio, len(ratios), found.units)
        else:
            note = (
                f"forces explain {ratio:.2g} of the energy differences of {len(ratios)} pairs of near "
                "conformations, and differently from pair to pair: are they of the same calculations?"
            )
    elif not agrees(interval):
        note = (
            f"whether energies and forces agree cannot be told: their ratio over {len(ratios)} pairs of near "
            f"conformations is {interval[0]:.3g} to {interval[1]:.3g}; are they of the same calculations?"
        )
    return Consistency(pairs=len(ratios), ratio=ratio, interval=interval, problem=problem, note=note)


def agrees(interval: tuple[float, float]) -> bool:
    """Whether the whole interval of the median ratio counts as 1."""
    return interval[0] >= 1.0 / TOLERANCE and interval[1] <= TOLERANCE


def median_interval(values: FloatArray) -> tuple[float, float]:
    """Interval that holds the median with at least ``CONFIDENCE``, whatever the distribution.

    Order statistics k and n + 1 − k, with the largest k for which P(B(n, ½) < k) ≤ (1 − C) / 2.

    Raises:
        ValueError: fewer than ``FEWEST`` values.
    """
    if len(values) < FEWEST:
        raise ValueError(f"{len(values)} values are too few for an interval")
    ordered = np.sort(values)
    counts = np.arange(len(values) // 2)
    tail = binom.cdf(counts, len(values), 0.5)
    k = int(np.flatnonzero(tail <= (1.0 - CONFIDENCE) / 2.0)[-1])
    return float(ordered[k]), float(ordered[-1 - k])


def stretched(frames: Sequence[FoundFrame]) -> str | None:
    """A sentence where molecules are larger or smaller by what lies between Å and bohr, or None.

    The distance to the nearest atom over the sum of the covalent radii is about 1 in molecules; it is
    judged by its median and its first and last tenth over the atoms of up to 200 of them.
    """
    molecules = [f.structure for f in frames if len(f.structure) > 1 and not f.structure.periodic]
    measured = [_nearest(s) for s in molecules[:: max(1, len(molecules) // _SAMPLED)]]
    if not measured:
        return None
    relative = np.concatenate(measured)
    least, median, most = (float(q) for q in np.quantile(relative, [0.1, 0.5, 0.9]))
    if least > 1.5 and 1.6 < median < 2.3:
        return f"nearest atoms are {median:.2f} times as far apart as in a bond: are coordinates in bohr?"
    if 0.42 < median < 0.65 and most < 0.75:
        return f"nearest atoms are {median:.2f} times as far apart as in a bond: were Å taken for bohr?"
    return None


def _nearest(structure: Structure) -> FloatArray:
    # Of large structures a part says enough, and the full table of distances would not fit.
    x, z = structure.positions[:300], structure.numbers[:300]
    distances = np.linalg.norm(x[:, None] - x[None], axis=2)
    radii = elements.COVALENT_RADII[z]
    relative = distances / (radii[:, None] + radii[None])
    np.fill_diagonal(relative, np.inf)
    return np.asarray(relative.min(axis=1), dtype=np.float64)


def _explained(ratio: float, pairs: int, units: UnitsRead) -> str:
    sentence = (
        f"forces are not minus the slope of the energies: between {pairs} pairs of near conformations the "
        f"energy changes by {ratio:.4g} times the work of the forces"
    )
    causes = []
    if ratio < 0.0:
        causes.append(
            "they are forces, not gradients: give --forces"
            if units.gradient
            else "they are gradients, not forces: give --gradient"
        )
    if not 1.0 / TOLERANCE < abs(ratio) < TOLERANCE:
        causes += _other_units(abs(ratio), units)
    return f"{sentence}; {' and '.join(causes)}; or give --no-consistency-check to take it as it is"


def _other_units(ratio: float, units: UnitsRead) -> list[str]:
    """The unit of force, or of energy, that would make the ratio 1."""
    energy, force = energy_unit(units.energy), force_unit(units.force)
    likely = []
    for name, option, known, wanted in (
        (force.name, "--force-unit", _FORCES, force.factor * ratio),
        (energy.name, "--energy-unit", ENERGIES, energy.factor / ratio),
    ):
        nearest = min(known, key=lambda unit: abs(math.log(unit.factor / wanted)))
        if max(nearest.factor / wanted, wanted / nearest.factor) < _NAMED_WITHIN and nearest.name != name:
            likely.append(f"{option} {nearest.name} (instead of {name})")
    if not likely:
        return [f"energies in {energy.name} and forces in {force.name} cannot both be right"]
    return [f"units are mixed: give {' or '.join(likely)}"]


def _ratios(frames: Sequence[FoundFrame]) -> Iterator[float]:
    """Energy difference over work of pairs, those of the most frequent molecules first."""
    for group in _groups(frames):
        labels = [frame.label for frame in group if frame.label is not None]
        x = np.array([frame.structure.positions for frame in group])
        f = np.array([label.forces for label in labels])
        e = np.array([label.energy for label in labels])
        cell = group[0].structure.cell if group[0].structure.periodic else None
        yield from _ratios_of(x, f, e, cell, np.array(group[0].structure.pbc))


def _groups(frames: Sequence[FoundFrame]) -> list[list[FoundFrame]]:
    """Labelled frames of the same atoms in the same order, state, level and cell."""
    groups: dict[object, list[FoundFrame]] = {}
    for frame in frames:
        s, label = frame.structure, frame.label
        if label is None or label.forces is None or len(s) < 2:
            continue
        cell = np.round(s.cell, 6).tobytes() if s.periodic and s.cell is not None else b""
        key = (s.numbers.tobytes(), s.charge, s.multiplicity, s.pbc, cell, label.level)
        groups.setdefault(key, []).append(frame)
    several = sorted((g for g in groups.values() if len(g) > 1), key=len, reverse=True)
    return [_part(group) for group in several]


def _part(group: list[FoundFrame]) -> list[FoundFrame]:
    """Runs of neighbours in time, evenly spread: near both as in a trajectory and by chance."""
    if len(group) <= _MOST_FRAMES:
        return group
    starts = np.linspace(0, len(group) - _RUN, _MOST_FRAMES // _RUN).astype(int)
    return [group[i] for i in sorted({i for start in starts for i in range(start, start + _RUN)})]


def _ratios_of(
    x: FloatArray, f: FloatArray, e: FloatArray, cell: FloatArray | None, pbc: AnyArray
) -> Iterator[float]:
    if cell is None:
        x = x - x.mean(axis=1, keepdims=True)
        turn = _rotations(np.broadcast_to(x[:1], x.shape), x)
        x, f = x @ turn, f @ turn
    i, j = _neighbours(x)
    xi, xj, fi, fj = x[i], x[j], f[i], f[j]
    if cell is None:
        turn = _rotations(xi, xj)
        xj, fj = xj @ turn, fj @ turn
        step = xj - xi
    else:
        step = _shortest(xj - xi, cell, pbc)
        step -= step.mean(axis=1, keepdims=True)
    work = -0.5 * ((fi + fj) * step).sum(axis=(1, 2))
    moved = np.linalg.norm(step, axis=2)
    change = (np.linalg.norm(fj - fi, axis=2) * moved).sum(axis=1)
    usable = (moved.max(axis=1) <= _NEAR) & (change <= _CHANGE * np.abs(work)) & (work != 0.0)
    order = np.flatnonzero(usable)
    order = order[np.argsort(change[order] / np.abs(work[order]), kind="stable")]
    used: set[int] = set()
    for pair in order.tolist():
        a, b = int(i[pair]), int(j[pair])
        if a not in used and b not in used:
            used |= {a, b}
            yield float((e[b] - e[a]) / work[pair])


def _neighbours(x: FloatArray) -> tuple[IntArray, IntArray]:
    """Indices i < j of pairs that are near in space or in the order of the file."""
    n = len(x)
    flat = x.reshape(n, -1)
    near = cKDTree(flat).query(flat, k=min(n, _NEIGHBOURS + 1))[1]
    first = np.repeat(np.arange(n), near.shape[1])
    pairs = np.stack([first, near.ravel()], axis=1)
    following = np.stack([np.arange(n - 1), np.arange(1, n)], axis=1)
    pairs = np.unique(np.sort(np.concatenate([pairs, following]), axis=1), axis=0)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    return pairs[:, 0], pairs[:, 1]


def _rotations(fixed: FloatArray, moved: FloatArray) -> FloatArray:
    """(n, 3, 3) proper rotations R for which moved @ R is nearest to fixed (Kabsch, both centred)."""
    u, _, vt = np.linalg.svd(np.einsum("pai,paj->pij", moved, fixed))
    u[:, :, -1] *= np.sign(np.linalg.det(u @ vt))[:, None]
    rotations: FloatArray = u @ vt
    return rotations


def _shortest(step: FloatArray, cell: FloatArray, pbc: AnyArray) -> FloatArray:
    fractional = step @ np.linalg.inv(cell)
    shortest: FloatArray = (fractional - np.round(fractional) * pbc) @ cell
    return shortest

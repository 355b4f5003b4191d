"""Findings on single frames: energies and forces far from the others, atoms on top of each other."""

from __future__ import annotations

from typing import Final

import numpy as np

from hpcal.core.arrays import FloatArray
from hpcal.core.elements import symbol
from hpcal.labeling.checks import ChecksSettings
from hpcal.report.integrity.collection import Collection
from hpcal.report.integrity.finding import Example, Finding, Severity, largest
from hpcal.report.integrity.shapes import Shapes

Z_LIMIT: Final = 10.0
"""Robust z above which an energy is called an outlier; 10⁻²³ of a normal distribution is."""
Z_FLOOR_EV: Final = 5e-3
"""Least robust standard deviation of energies an atom, eV: a scan about a minimum has a smaller one."""
ABSURD_EV: Final = 20.0
"""eV an atom off the fit, which no bond explains: another unit, or another reference of energy."""
MIN_FRAMES: Final = 10
"""Frames below which no distribution is told."""
ROUNDS: Final = 30


def fit_residuals(collection: Collection) -> FloatArray:
    """(n,) energies an atom less the composition's share, eV.

    E_i ≈ Σ_e n_ie ε_e by iteratively reweighted least squares, w_i = 1 / max(|r_i|, s): nearly the least
    sum of |r_i|, r_i the residual an atom, which single wrong energies do not pull along (s, a small
    share of the median |r|, keeps the weights finite).
    """
    data = collection.data
    elements = np.array(data.elements)
    owner = np.repeat(np.arange(len(data)), data.sizes)
    counts = np.zeros((len(data), len(elements)))
    np.add.at(counts, (owner, np.searchsorted(elements, data.numbers)), 1.0)
    sizes = data.sizes.astype(np.float64)
    shares, per_atom = counts / sizes[:, None], data.energies / sizes
    known = np.isfinite(per_atom)
    weights = known.astype(np.float64)
    residual = np.zeros(len(data))
    for _ in range(ROUNDS):
        root = np.sqrt(weights)
        epsilon = np.linalg.lstsq(
            shares[known] * root[known, None], per_atom[known] * root[known], rcond=1e-10
        )[0]
        residual = per_atom - shares @ epsilon
        scale = max(1e-6, 0.1 * float(np.median(np.abs(residual[known]))))
        weights = known / np.maximum(np.abs(np.nan_to_num(residual)), scale)
    return np.asarray(residual)


def robust_z(values: FloatArray, floor: float) -> FloatArray:
    """(n,) distances from the median in robust standard deviations, 1.4826 MAD or ``floor``."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return np.zeros(len(values))
    median = np.median(finite)
    scale = max(floor, 1.4826 * float(np.median(np.abs(finite - median))))
    return np.asarray((values - median) / scale)


def outlier_findings(
    collection: Collection, shapes: Shapes, checks: ChecksSettings, *, limit: int
) -> list[Finding]:
    """Energies, forces and contacts that stand out."""
    return [
        *_not_finite(collection, limit),
        *_energies(collection, limit),
        *_forces(collection, checks, limit),
        *_contacts(collection, shapes, checks, limit),
    ]


def _not_finite(collection: Collection, limit: int) -> list[Finding]:
    data = collection.data
    partly = np.isnan(data.forces).any(axis=1)
    starts = data.offsets[:-1]
    some = np.logical_or.reduceat(partly, starts) & ~np.logical_and.reduceat(partly, starts)
    infinite = np.logical_or.reduceat(np.isinf(data.forces).any(axis=1), starts)
    bad = np.flatnonzero(~np.isfinite(data.energies) | some | infinite)
    if not len(bad):
        return []
    return [
        Finding(
            kind="not_finite",
            severity=Severity.ERROR,
            count=len(bad),
            meaning="Energies or forces are no numbers; training on them fails. Remove or label again.",
            examples=tuple(
                Example(where=(int(i),), detail=f"energy {data.energies[i]:g} eV") for i in bad[:limit]
            ),
        )
    ]


def _energies(collection: Collection, limit: int) -> list[Finding]:
    if len(collection) < MIN_FRAMES:
        return []
    residual = fit_residuals(collection)
    z = robust_z(residual, Z_FLOOR_EV)
    size = np.abs(np.nan_to_num(residual))
    # A composition that is there once fits itself in no way that can be trusted: it is not judged
    # by the same measure, but nothing real is off by as much as another unit.
    alone = np.zeros(len(collection), dtype=bool)
    for group in collection.compositions:
        alone[group.index] = len(group.numbers) == 1 or len(group.index) == 1
    absurd = np.flatnonzero(size > ABSURD_EV)
    outside = np.flatnonzero((np.abs(np.nan_to_num(z)) > Z_LIMIT) & (size <= ABSURD_EV) & ~alone)
    found = []
    for kind, severity, index, meaning in (
        (
            "absurd_energies",
            Severity.ERROR,
            absurd,
            f"Energies more than {ABSURD_EV:g} eV an atom off what the composition explains: another unit, "
            "another reference of energy (atomisation against total energy) or a failed calculation.",
        ),
        (
            "energy_outliers",
            Severity.WARNING,
            outside,
            f"Energies an atom more than {Z_LIMIT:g} robust standard deviations (median and MAD, after a "
            "fit of the composition) from the others: another SCF solution, a broken geometry, or a region "
            "of its own. Look at the frames.",
        ),
    ):
        if len(index):
            found.append(
                Finding(
                    kind=kind,
                    severity=severity,
                    count=len(index),
                    meaning=meaning,
                    examples=tuple(
                        Example(
                            where=(i,),
                            detail=f"{collection.formulas[i]}: {residual[i]:+.3f} eV an atom off the fit, "
                            f"z = {z[i]:+.0f}",
                            value=float(residual[i]),
                        )
                        for i in largest(index, size, limit)
                    ),
                )
            )
    return found


def strongest_force(collection: Collection) -> FloatArray:
    """(n,) largest force on an atom, eV/Å; NaN without forces."""
    norms = np.linalg.norm(collection.data.forces, axis=1)
    return np.asarray(np.maximum.reduceat(norms, collection.data.offsets[:-1]))


def _forces(collection: Collection, checks: ChecksSettings, limit: int) -> list[Finding]:
    strongest = np.nan_to_num(strongest_force(collection))
    above = np.flatnonzero(strongest > checks.max_force_eV_per_A)
    found = []
    if len(above):
        found.append(
            Finding(
                kind="large_forces",
                severity=Severity.WARNING,
                count=len(above),
                meaning=f"Forces above {checks.max_force_eV_per_A:g} eV/Å, where atoms nearly coincide or "
                "the SCF failed. They weigh most in a fit; leave them out unless they are meant.",
                examples=tuple(
                    Example(
                        where=(i,),
                        detail=f"{collection.formulas[i]}: largest force {strongest[i]:.1f} eV/Å",
                        value=float(strongest[i]),
                    )
                    for i in largest(above, strongest, limit)
                ),
            )
        )
    data = collection.data
    zero = np.logical_and.reduceat((data.forces == 0).all(axis=1), data.offsets[:-1])
    none = np.flatnonzero(zero & (data.sizes > 1) & ~collection.periodic)
    if len(none):
        found.append(
            Finding(
                kind="zero_forces",
                severity=Severity.ERROR,
                count=len(none),
                meaning="All forces of a molecule are exactly zero, which no calculation gives: they were "
                "filled in. A model would learn that the geometry is a minimum; leave the forces out.",
                examples=tuple(
                    Example(where=(int(i),), detail=collection.formulas[int(i)]) for i in none[:limit]
                ),
            )
        )
    return found


def _contacts(collection: Collection, shapes: Shapes, checks: ChecksSettings, limit: int) -> list[Finding]:
    near = np.flatnonzero(shapes.contact < checks.min_distance_factor)
    if not len(near):
        return []
    order = near[np.argsort(shapes.contact[near], kind="stable")][:limit]
    return [
        Finding(
            kind="overlapping_atoms",
            severity=Severity.WARNING,
            count=len(near),
            meaning=f"Atoms nearer than {checks.min_distance_factor:g} times the sum of their covalent "
            "radii: outside what chemistry visits, and QM is often wrong there.",
            examples=tuple(_contact(collection, shapes, int(i)) for i in order),
        )
    ]


def _contact(collection: Collection, shapes: Shapes, i: int) -> Example:
    a, b = (int(k) for k in shapes.closest[i])
    numbers = collection.structures[i].numbers
    names = f"{symbol(int(numbers[a]))}{a} and {symbol(int(numbers[b]))}{b}"
    return Example(
        where=(i,),
        detail=f"atoms {names} are {shapes.distance[i]:.3f} Å apart ({shapes.contact[i]:.2f} radii)",
        value=float(shapes.contact[i]),
    )

"""Findings on structures that are there more than once: duplicates, contradictions, leakage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

import numpy as np

from hpcal.report.integrity.collection import Collection
from hpcal.report.integrity.finding import Example, Finding, Severity, worst
from hpcal.report.integrity.twins import Twin, Twins

NOISE_EV: Final = 1e-3
"""Difference of energies that convergence and the orientation of a grid explain, eV."""


def duplicate_findings(collection: Collection, twins: Twins, *, near_A: float, limit: int) -> list[Finding]:  # noqa: N803
    """Duplicates, contradicting energies, and geometries in two splits."""
    return [
        *_contradictions(collection, twins, limit),
        *_leaks(collection, twins, limit),
        *_families(collection, limit),
        *_near(collection, twins, near_A, limit),
        *_duplicates(collection, twins, limit),
        *_unfinished(twins),
    ]


def _contradictions(collection: Collection, twins: Twins, limit: int) -> list[Finding]:
    energies = collection.data.energies
    cases = [
        Example(
            where=(t.i, t.j),
            detail=f"energies differ by {abs(energies[t.i] - energies[t.j]):.6g} eV, atoms by "
            f"{t.displacement:.1e} Å",
            value=float(abs(energies[t.i] - energies[t.j])),
        )
        for t in twins.same
        if collection.levels[t.i] == collection.levels[t.j]
        and abs(energies[t.i] - energies[t.j]) > NOISE_EV + _explained(collection, t)
    ]
    return worst(
        "contradicting_energies",
        Severity.ERROR,
        "One geometry in one state has two energies at one level of theory, further apart than the small "
        "displacement explains. At most one is right: another SCF solution, another level, or a mix-up of "
        "rows; label the geometry again.",
        cases,
        limit=limit,
    )


def _explained(collection: Collection, twin: Twin) -> float:
    """What the displacement changes of the energy at most, to first order: Σ|F_i| d, eV."""
    forces = collection.data.forces_of(twin.i)
    return float(np.nan_to_num(np.linalg.norm(forces, axis=1)).sum()) * twin.displacement


def _duplicates(collection: Collection, twins: Twins, limit: int) -> list[Finding]:
    """Those within one split; what two splits share is a leak."""
    splits, cases, spare = collection.data.splits, [], 0
    for group in twins.groups:
        members: dict[str, list[int]] = {}
        for place in group:
            members.setdefault(str(splits[place]), []).append(place)
        for alike in members.values():
            if len(alike) > 1:
                spare += len(alike) - 1
                detail = f"{collection.formulas[alike[0]]}, {len(alike)} times"
                cases.append(Example(where=tuple(alike[:4]), detail=detail, value=float(len(alike))))
    return worst(
        "duplicates",
        Severity.WARNING,
        "One geometry (up to rotation, reflection, translation and order of equal atoms, within 0.001 Å) is "
        "there more than once. A model weighs it more than others; keep one of each.",
        cases,
        limit=limit,
        count=spare,
    )


def _leaks(collection: Collection, twins: Twins, limit: int) -> list[Finding]:
    splits = collection.data.splits
    cases = []
    for group in twins.groups:
        first: dict[str, int] = {}
        for place in group:
            first.setdefault(str(splits[place]), place)
        if len(first) > 1:
            cases.append(
                Example(
                    where=tuple(first.values()),
                    detail=f"{collection.formulas[group[0]]} in {' and '.join(sorted(first))}",
                    value=float(len(group)),
                )
            )
    return worst(
        "leaked_geometries",
        Severity.ERROR,
        "One geometry is in two splits: the model has seen what it is tested on, and the errors found there "
        "are too small. Remove it from the one that trains.",
        cases,
        limit=limit,
    )


def _families(collection: Collection, limit: int) -> list[Finding]:
    splits = collection.data.splits
    members: dict[int, dict[str, int]] = {}
    for place in np.flatnonzero(collection.families >= 0):
        members.setdefault(int(collection.families[place]), {}).setdefault(str(splits[place]), int(place))
    cases = [
        Example(where=tuple(first.values()), detail=f"walker {family}: {' and '.join(sorted(first))}")
        for family, first in members.items()
        if len(first) > 1
    ]
    return worst(
        "leaked_walkers",
        Severity.ERROR,
        "Frames of one walker (trajectory) are in two splits. They are correlated, so that errors found on "
        "the one say too little; keep all frames of a walker in one split.",
        cases,
        limit=limit,
    )


def _near(collection: Collection, twins: Twins, near: float, limit: int) -> list[Finding]:
    splits = collection.data.splits
    nearest: dict[int, Twin] = {}
    for twin in sorted(twins.near, key=lambda t: t.displacement):
        nearest.setdefault(twin.j, twin)
    between = Counter(" and ".join(sorted((str(splits[t.i]), str(splits[t.j])))) for t in nearest.values())
    cases = [
        Example(
            where=(t.i, t.j),
            detail=f"{collection.formulas[t.i]}: no atom further than {t.displacement:.4f} Å from its place",
            value=t.displacement,
        )
        for t in nearest.values()
    ]
    said = "; ".join(f"{count} between {pair}" for pair, count in between.most_common(4))
    return worst(
        "leaked_near_duplicates",
        Severity.WARNING,
        f"Structures of different splits are within {near:g} Å of each other in every atom ({said}): "
        "neighbouring frames of one trajectory, as a rule. Split by trajectory, not by frame.",
        cases,
        limit=limit,
        smallest=True,
    )


def _unfinished(twins: Twins) -> Iterator[Finding]:
    if twins.skipped:
        yield Finding(
            kind="search_limited",
            severity=Severity.NOTE,
            count=twins.skipped,
            meaning="So many structures are alike that not all candidates for (near-)duplicates were "
            "compared atom by atom: the nearest were. Exact copies were all found.",
        )

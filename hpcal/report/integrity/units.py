"""Findings on units and signs, which energies, forces and distances betray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from hpcal.core.arrays import IntArray
from hpcal.core.label import Label, LevelOfTheory
from hpcal.exchange.consistency import Consistency, consistency, stretched
from hpcal.exchange.found import Found, FoundFrame
from hpcal.exchange.scale import INSIDE
from hpcal.report.integrity.collection import Collection
from hpcal.report.integrity.finding import Example, Finding, Severity

MOST: Final = 20_000
"""Frames of a source that are looked at, in runs of neighbours."""
RUNS: Final = 40


def unit_findings(collection: Collection) -> list[Finding]:
    """Whether forces are minus the slope of the energies, and lengths are in Å, in each source."""
    slopes, sizes = [], []
    for source in range(max(1, len(collection.source_names))):
        found = _found(collection, _sample(np.flatnonzero(collection.sources == source)))
        name = collection.source_names[source] if len(collection.source_names) > 1 else ""
        slopes.append((name, consistency(found)))
        sizes.append((name, stretched(found.frames)))
    wrong = [(name, result) for name, result in slopes if result.problem is not None]
    odd = [(name, result.note) for name, result in slopes if result.note is not None]
    far = [(name, said) for name, said in sizes if said is not None]
    return [
        *_finding(
            "forces_against_energies",
            Severity.ERROR,
            "Forces are not minus the slope of the energies, as pairs of near conformations show: gradients "
            "were taken for forces, or units are mixed. Import the data with the right ones.",
            [(name, _slope(result)) for name, result in wrong],
        ),
        *_finding(
            "forces_and_energies_vary",
            Severity.WARNING,
            "Forces and energies of near conformations do not go together everywhere.",
            odd,
        ),
        *_finding(
            "lengths",
            Severity.ERROR,
            "Molecules are too large or too small for their elements by what lies between Å and bohr. "
            "Import the data with the right unit of length.",
            far,
        ),
    ]


def _finding(
    kind: str, severity: Severity, meaning: str, cases: Sequence[tuple[str, str | None]]
) -> list[Finding]:
    if not cases:
        return []
    examples = tuple(Example(detail=f"{f'{name}: ' if name else ''}{said}") for name, said in cases)
    return [Finding(kind=kind, severity=severity, count=len(cases), meaning=meaning, examples=examples)]


def _slope(result: Consistency) -> str:
    turned = "; the sign is that of gradients" if result.ratio is not None and result.ratio < 0 else ""
    return (
        f"energies change by {result.ratio:.4g} times the work of the forces between {result.pairs} pairs "
        f"of near conformations, where 1 is right{turned}"
    )


def _sample(index: IntArray) -> IntArray:
    if len(index) <= MOST:
        return index
    starts = np.linspace(0, len(index) - MOST // RUNS, RUNS).astype(np.int64)
    return np.concatenate([index[start : start + MOST // RUNS] for start in starts])


def _found(collection: Collection, index: IntArray) -> Found:
    data, level = collection.data, LevelOfTheory(code="check", version="", method="")
    frames = []
    for i in index:
        forces = data.forces_of(int(i))
        known = np.isfinite(forces).all() and np.isfinite(data.energies[i])
        label = Label(energy=float(data.energies[i]), forces=forces if known else None, level=level)
        frames.append(FoundFrame(structure=collection.structures[int(i)], label=label))
    return Found(
        path=Path(), format="hpcal", frames=frames, units=INSIDE.read(), level_source="stated by the file"
    )

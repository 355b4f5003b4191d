"""Labelled structures with nothing wrong: thermal molecules under springs between all their atoms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ase.build import molecule

from hpcal.core.arrays import FloatArray
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure
from hpcal.labeling.checks import ChecksSettings
from hpcal.report.integrity.collection import Collection
from hpcal.report.integrity.examine import Aims, Report, report_of
from hpcal.report.integrity.finding import Finding

LEVEL = LevelOfTheory(code="spring", version="1", method="harmonic")
AIMS = Aims(cutoff=2.0, near=0.01, checks=ChecksSettings(), gated=False, limit=5)
SHARES = {1: -13.0, 6: -1030.0, 7: -1480.0, 8: -2040.0}
"""Energy of an atom, eV."""


def springs(structure: Structure, rest: FloatArray, stiffness: float = 2.0) -> Label:
    """E = Σ_i ε_i + ½ k Σ_ij (d_ij − d⁰_ij)², and minus its slope: no net force, no torque."""
    i, j = np.triu_indices(len(structure), 1)
    gap = structure.positions[i] - structure.positions[j]
    length = np.linalg.norm(gap, axis=1)
    stretch = length - np.linalg.norm(rest[i] - rest[j], axis=1)
    pull = -(stiffness * stretch / length)[:, None] * gap
    forces = np.zeros((len(structure), 3))
    np.add.at(forces, i, pull)
    np.add.at(forces, j, -pull)
    energy = sum(SHARES[int(z)] for z in structure.numbers) + 0.5 * stiffness * float((stretch**2).sum())
    return Label(energy=energy, forces=forces, level=LEVEL)


def frames(
    count: int, seed: int = 1, names: Sequence[str] = ("CH3CH2OH", "CH3CONH2")
) -> list[tuple[Structure, Label]]:
    """Thermal frames of some molecules, by turns."""
    rng = np.random.default_rng(seed)
    result = []
    for k in range(count):
        atoms = molecule(names[k % len(names)])
        positions = atoms.positions + rng.normal(size=(len(atoms), 3)) * 0.05
        structure = Structure(numbers=atoms.numbers, positions=positions)
        result.append((structure, springs(structure, atoms.positions)))
    return result


def collected(
    pairs: Sequence[tuple[Structure, Label]],
    *,
    splits: Sequence[str] | None = None,
    families: Sequence[int] | None = None,
    source: str = "data.xyz",
) -> Collection:
    return Collection.of_labels(
        [s for s, _ in pairs],
        [label for _, label in pairs],
        source=source,
        splits=["train"] * len(pairs) if splits is None else splits,
        families=families,
    )


def checked(pairs: Sequence[tuple[Structure, Label]], aims: Aims = AIMS, **more: Any) -> Report:
    return report_of(["data.xyz"], collected(pairs, **more), aims)


def found(report: Report, kind: str) -> Finding:
    """The finding of a kind, which has to be there."""
    kinds = {finding.kind: finding for finding in report.findings}
    assert kind in kinds, f"{kind} is not among {sorted(kinds)}"
    return kinds[kind]


def kinds(report: Report) -> set[str]:
    return {finding.kind for finding in report.findings}


def relabelled(pair: tuple[Structure, Label], **changes: Any) -> tuple[Structure, Label]:
    """The same structure with another label."""
    return pair[0], replace(pair[1], **changes)


def shared_data() -> Path:
    return Path(__file__).parents[2] / ".." / "shared" / "data"

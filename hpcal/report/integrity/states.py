"""Findings on charge, spin and level of theory."""

from __future__ import annotations

from collections import Counter

import numpy as np

from hpcal.core.structure import parity_problem
from hpcal.report.integrity.collection import NOT_STATED, Collection
from hpcal.report.integrity.finding import Example, Finding, Severity, worst


def state_findings(collection: Collection, *, limit: int) -> list[Finding]:
    """Parity, several states of one geometry or composition, and mixed levels of theory."""
    return [
        *_levels(collection, limit),
        *_parity(collection, limit),
        *_geometries(collection, limit),
        *_compositions(collection, limit),
    ]


def _levels(collection: Collection, limit: int) -> list[Finding]:
    counts = Counter(int(level) for level in collection.levels)
    if len(counts) < 2:
        return []
    named = {collection.level_names[level] for level in counts} - {NOT_STATED}
    most = counts.most_common(1)[0][0]
    others = np.flatnonzero(collection.levels != most)
    said = ", ".join(f"{count} at {collection.level_names[level]}" for level, count in counts.most_common())
    return [
        Finding(
            kind="mixed_levels",
            severity=Severity.ERROR if len(named) > 1 else Severity.WARNING,
            count=len(others),
            meaning=f"Labels of different levels of theory ({said}): their energies do not belong to one "
            "surface. Keep one level in a training target.",
            examples=tuple(
                Example(where=(int(i),), detail=collection.level_names[collection.levels[i]])
                for i in others[:limit]
            ),
        )
    ]


def _parity(collection: Collection, limit: int) -> list[Finding]:
    cases, known = [], {}
    for i, structure in enumerate(collection.structures):
        key = (int(structure.numbers.sum()), structure.charge, structure.multiplicity, structure.periodic)
        if key not in known:
            known[key] = parity_problem(structure) is None
        if not known[key]:
            cases.append(Example(where=(i,), detail=parity_problem(structure) or ""))
    return worst(
        "impossible_states",
        Severity.ERROR,
        "Charge and multiplicity do not go together with the number of electrons: the label belongs to "
        "another state than is stated. State both.",
        cases,
        limit=limit,
    )


def _geometries(collection: Collection, limit: int) -> list[Finding]:
    data = collection.data
    seen: dict[bytes, list[int]] = {}
    for i in range(len(collection)):
        atoms = slice(data.offsets[i], data.offsets[i + 1])
        key = data.numbers[atoms].tobytes() + data.positions[atoms].tobytes() + data.cells[i].tobytes()
        seen.setdefault(key, []).append(i)
    cases = []
    for places in seen.values():
        states = {(int(data.charges[i]), int(data.multiplicities[i])): i for i in reversed(places)}
        if len(states) > 1:
            said = ", ".join(f"charge {q} multiplicity {m}" for q, m in sorted(states))
            where = tuple(sorted(states.values()))
            cases.append(Example(where=where, detail=f"{collection.formulas[where[0]]}: {said}"))
    return worst(
        "states_of_one_geometry",
        Severity.WARNING,
        "One geometry has labels in several states of charge or spin. A potential that does not know the "
        "state cannot fit both; train one for each, or one that takes charge and spin.",
        cases,
        limit=limit,
    )


def _compositions(collection: Collection, limit: int) -> list[Finding]:
    data = collection.data
    cases = []
    for group in collection.compositions:
        states = Counter(
            (int(q), int(m))
            for q, m in zip(data.charges[group.index], data.multiplicities[group.index], strict=True)
        )
        if len(states) > 1:
            (charge, multiplicity), _ = states.most_common()[-1]
            rare = group.index[
                (data.charges[group.index] == charge) & (data.multiplicities[group.index] == multiplicity)
            ]
            said = ", ".join(f"{n} with charge {q} multiplicity {m}" for (q, m), n in states.most_common())
            cases.append(
                Example(where=(int(rare[0]),), detail=f"{collection.formulas[int(rare[0])]}: {said}")
            )
    return worst(
        "states_of_one_composition",
        Severity.NOTE,
        "A composition is there in several states of charge or spin; make sure that the potential knows "
        "them apart.",
        cases,
        limit=limit,
    )

"""What labelled data cover: elements, pairs, sizes, distance from equilibrium, contacts, states.

The questions are those of Kulichenko et al., Chem. Rev. 2024, 10.1021/acs.chemrev.4c00572: a potential
is as good as the regions that its data reach, and it does not say so by itself.
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations_with_replacement
from typing import Any, Final

import numpy as np

from hpcal.core.arrays import AnyArray
from hpcal.core.elements import symbol
from hpcal.core.units import BOLTZMANN
from hpcal.report.integrity.collection import Collection
from hpcal.report.integrity.finding import Example, Finding, Severity
from hpcal.report.integrity.outliers import strongest_force
from hpcal.report.integrity.shapes import Shapes

NEAR_EQUILIBRIUM_EV_PER_A: Final = 0.5
"""Frames with no larger force are called near equilibrium: kT at 300 K displaces bonds by as much."""
FEW: Final = 20
"""Frames of a composition below which no spread of energies is told."""
QUANTILES: Final = (0.05, 0.5, 0.95)


def coverage(collection: Collection, shapes: Shapes, cutoff: float) -> dict[str, Any]:
    """What the data cover, as JSON values in eV and Å."""
    data = collection.data
    starts = data.offsets[:-1]
    return {
        "structures": len(collection),
        "atoms": int(data.offsets[-1]),
        "splits": dict(Counter(str(split) for split in data.splits).most_common()),
        "levels": dict(Counter(collection.level_names[level] for level in collection.levels).most_common()),
        "with_forces": int((~np.isnan(np.add.reduceat(data.forces.sum(axis=1), starts))).sum()),
        "periodic": int(collection.periodic.sum()),
        "elements": _elements(collection),
        "compositions": len(collection.compositions),
        "atoms_per_structure": _quantiles(data.sizes),
        "pairs": _pairs(collection, shapes, cutoff),
        "size": _sizes(shapes, cutoff),
        "forces": _forces(collection),
        "energies": _energies(collection),
        "contacts": _contacts(shapes),
        "states": _states(collection),
    }


def _elements(collection: Collection) -> dict[str, Any]:
    data = collection.data
    owner = np.repeat(np.arange(len(data)), data.sizes)
    return {
        symbol(z): {
            "atoms": int((data.numbers == z).sum()),
            "structures": len(np.unique(owner[data.numbers == z])),
        }
        for z in data.elements
    }


def _pairs(collection: Collection, shapes: Shapes, cutoff: float) -> dict[str, Any]:
    wanted = list(combinations_with_replacement(collection.data.elements, 2))
    return {
        "cutoff": cutoff,
        "seen": {
            _pair(pair): {"structures": shapes.pairs[pair].frames, "shortest": shapes.pairs[pair].shortest}
            for pair in wanted
            if pair in shapes.pairs
        },
        "never": [_pair(pair) for pair in wanted if pair not in shapes.pairs],
    }


def _pair(pair: tuple[int, int]) -> str:
    return f"{symbol(pair[0])}-{symbol(pair[1])}"


def _sizes(shapes: Shapes, cutoff: float) -> dict[str, Any]:
    """A molecule wider than twice the cutoff has atoms whose whole sphere is inside it."""
    free = shapes.diameter[np.isfinite(shapes.diameter)]
    return {
        "diameter": _quantiles(free),
        "largest_diameter": float(free.max()) if len(free) else None,
        "twice_cutoff": 2 * cutoff,
        "share_wider": float((free > 2 * cutoff).mean()) if len(free) else None,
    }


def _forces(collection: Collection) -> dict[str, Any]:
    strongest = strongest_force(collection)
    strongest = strongest[np.isfinite(strongest) & (collection.data.sizes > 1)]
    components = collection.data.forces[np.isfinite(collection.data.forces)]
    return {
        "rms_component": float(np.sqrt((components**2).mean())) if len(components) else None,
        "largest_of_a_structure": _quantiles(strongest),
        "near_equilibrium_below": NEAR_EQUILIBRIUM_EV_PER_A,
        "near_equilibrium_share": float((strongest < NEAR_EQUILIBRIUM_EV_PER_A).mean())
        if len(strongest)
        else None,
    }


def _energies(collection: Collection) -> dict[str, Any]:
    """Energies above the lowest of their composition, and the temperature that spreads them so.

    f harmonic degrees of freedom at temperature T have Var(E) = f (k T)² / 2, f = 3N − 6 (3N − 3 if
    periodic), so that T = σ_E / k · sqrt(2 / f); σ_E from the quartiles, which single frames do not move.
    Energies of different cells are not spread by temperature alone and are left out of it.
    """
    data = collection.data
    above, temperatures, weights = [], [], []
    for group in collection.compositions:
        for periodic in (False, True):
            index = group.index[collection.periodic[group.index] == periodic]
            energies = data.energies[index]
            energies = energies[np.isfinite(energies)]
            n = len(group.numbers)
            if len(energies) < 2 or n < 2:
                continue
            above.append((energies - energies.min()) / n)
            strained = periodic and np.ptp(data.cells[index], axis=0).max() > 1e-6
            if len(energies) >= FEW and not strained:
                freedom = 3 * n - 3 if periodic else max(1, 3 * n - 6)
                low, high = np.quantile(energies, [0.25, 0.75])
                temperatures.append((high - low) / 1.349 / BOLTZMANN * np.sqrt(2 / freedom))
                weights.append(len(energies))
    spread = np.concatenate(above) if above else np.zeros(0)
    return {
        "above_lowest_per_atom": _quantiles(spread),
        "spread_temperature_K": {
            "compositions": len(temperatures),
            "lowest": float(min(temperatures)) if temperatures else None,
            "mean": float(np.average(temperatures, weights=weights)) if temperatures else None,
            "highest": float(max(temperatures)) if temperatures else None,
        },
    }


def _contacts(shapes: Shapes) -> dict[str, Any]:
    gaps = shapes.gap[np.isfinite(shapes.gap)]
    return {
        "structures_with_several_fragments": int((shapes.fragments > 1).sum()),
        "most_fragments": int(shapes.fragments.max()),
        "nearest_between_fragments": _quantiles(gaps),
        "shortest_between_fragments": float(gaps.min()) if len(gaps) else None,
        "closest_in_covalent_radii": _quantiles(shapes.contact[np.isfinite(shapes.contact)]),
    }


def _states(collection: Collection) -> list[dict[str, int]]:
    data = collection.data
    counts = Counter(
        (int(q), int(m)) for q, m in zip(data.charges, data.multiplicities, strict=True)
    ).most_common()
    return [{"charge": q, "multiplicity": m, "structures": count} for (q, m), count in counts]


def _quantiles(values: AnyArray) -> dict[str, float] | None:
    if not len(values):
        return None
    found = np.quantile(values, QUANTILES)
    return {f"p{round(100 * q):02d}": float(value) for q, value in zip(QUANTILES, found, strict=True)}


def coverage_findings(found: dict[str, Any], shapes: Shapes, *, limit: int) -> list[Finding]:
    """What is not covered and may be asked for."""
    return [*_never(found, limit), *_small(found), *_lonely(found, shapes), *_still(found)]


def _never(found: dict[str, Any], limit: int) -> list[Finding]:
    never = found["pairs"]["never"]
    if not never:
        return []
    return [
        Finding(
            kind="pairs_never_seen",
            severity=Severity.WARNING,
            count=len(never),
            meaning=f"Elements that are both there never come within {found['pairs']['cutoff']:g} Å of each "
            "other: what a model says of their contact is made up.",
            examples=tuple(Example(detail=pair) for pair in never[: max(limit, 8)]),
        )
    ]


def _small(found: dict[str, Any]) -> list[Finding]:
    size = found["size"]
    if size["largest_diameter"] is None or found["periodic"] or size["share_wider"] > 0:
        return []
    return [
        Finding(
            kind="smaller_than_cutoff_sphere",
            severity=Severity.NOTE,
            count=found["structures"],
            meaning=f"The largest molecule is {size['largest_diameter']:.1f} Å wide, less than twice the "
            f"cutoff of {size['twice_cutoff'] / 2:g} Å: no atom has a full sphere of neighbours. In larger "
            "systems every environment is new to the model.",
        )
    ]


def _lonely(found: dict[str, Any], shapes: Shapes) -> list[Finding]:
    if (shapes.fragments > 1).any() or found["periodic"]:
        return []
    return [
        Finding(
            kind="no_contacts_between_molecules",
            severity=Severity.NOTE,
            count=found["structures"],
            meaning="Each structure is one molecule: contacts between molecules are not covered. Add dimers "
            "if liquids, crystals or clusters are meant.",
        )
    ]


def _still(found: dict[str, Any]) -> list[Finding]:
    share = found["forces"]["near_equilibrium_share"]
    if share is None or share < 0.8 or found["structures"] < FEW:
        return []
    return [
        Finding(
            kind="close_to_equilibrium",
            severity=Severity.NOTE,
            count=round(share * found["structures"]),
            meaning=f"{100 * share:.0f} % of the structures have no force above "
            f"{NEAR_EQUILIBRIUM_EV_PER_A:g} eV/Å: the data stay near minima, and dynamics will leave them.",
        )
    ]

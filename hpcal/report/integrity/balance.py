"""Findings on the sums of forces: an isolated molecule neither accelerates nor begins to turn."""

from __future__ import annotations

from typing import Final

import numpy as np

from hpcal.core.arrays import FloatArray
from hpcal.labeling.checks import ChecksSettings
from hpcal.report.integrity.collection import Collection
from hpcal.report.integrity.finding import Example, Finding, Severity, largest

GROSS: Final = 10.0
"""Times the gate from which it is no longer the error of a grid."""


def net_forces(collection: Collection) -> tuple[FloatArray, FloatArray]:
    """(n,) lengths of ΣF, eV/Å, and of Σ(r − r̄)×F over the radius of gyration, eV/Å; NaN without forces.

    Divided so, the torque of independent errors ε of the forces on N atoms is as large as their net
    force, √N ε, so that one gate serves both.
    """
    data = collection.data
    starts = data.offsets[:-1]
    net = np.add.reduceat(data.forces, starts, axis=0)
    centre = np.add.reduceat(data.positions, starts, axis=0) / data.sizes[:, None]
    arms = data.positions - np.repeat(centre, data.sizes, axis=0)
    torque = np.add.reduceat(np.cross(arms, data.forces), starts, axis=0)
    radius = np.sqrt(np.add.reduceat((arms**2).sum(axis=1), starts) / data.sizes)
    return (
        np.asarray(np.linalg.norm(net, axis=1)),
        np.asarray(np.linalg.norm(torque, axis=1) / np.maximum(radius, 0.3)),
    )


def balance_findings(
    collection: Collection, checks: ChecksSettings, *, gated: bool, limit: int
) -> list[Finding]:
    """Net forces and torques of isolated molecules against the gate of labels.

    Args:
        gated: whether the labels should have passed the gate, so that any net force above it is wrong.
    """
    net, torque = (np.nan_to_num(values) for values in net_forces(collection))
    free = ~collection.periodic & (collection.data.sizes > 1)
    gate = checks.max_net_force_eV_per_A
    found = []
    for name, values, words, unit in (
        ("net_force", net, "The forces on an isolated molecule do not add up to zero", "eV/Å"),
        ("net_torque", torque, "The forces turn an isolated molecule", "eV/Å (over radius of gyration)"),
    ):
        above = np.flatnonzero(free & (values > gate))
        if not len(above):
            continue
        gross = int((values[above] > GROSS * gate).sum())
        error = gross > 0 or (gated and name == "net_force")
        found.append(
            Finding(
                kind=name,
                severity=Severity.ERROR if error else Severity.WARNING,
                count=len(above),
                meaning=f"{words}: above {gate:g} {unit} in {len(above)} frames, above ten times that in "
                f"{gross}. Little of it is the error of a DFT grid; much of it means forces of another "
                "geometry or order of atoms, a sign or unit, or an external field.",
                examples=tuple(
                    Example(
                        where=(i,),
                        detail=f"{collection.formulas[i]}: {values[i]:.4f} {unit}",
                        value=float(values[i]),
                    )
                    for i in largest(above, values, limit)
                ),
            )
        )
    return found

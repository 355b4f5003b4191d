"""Expensive checks of a declared sample of the labels.

A label is drawn by its structure alone, so that a label made again is audited again. The audit by
finite differences is made here for every labeler; others are a labeler's own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np

from hpcal.core.arrays import FloatArray
from hpcal.core.deadline import Deadline
from hpcal.core.errors import ConfigurationError
from hpcal.core.label import Audit, Label, Rejection
from hpcal.core.structure import Structure

FINITE_DIFFERENCE: Final = "finite_difference"
ON_REQUEST: Final = frozenset({"fod", "t1"})
"""Audits that cost as much as a label or more; made only where the user names them."""
STEP: Final = 0.005
"""Å; displacement of the finite difference, as the length of a vector over all atoms."""
FORCE_LIMIT: Final = 0.005
"""eV/Å; disagreement that is allowed whatever the declared noise."""
NOISES: Final = 5.0
"""Declared noises of a force by which a finite difference may be off."""


class Auditable(Protocol):
    """What an audit needs of a labeler."""

    def label(self, structure: Structure, deadline: Deadline) -> Label | Rejection: ...


def offered_by(labeler: Auditable) -> tuple[str, ...]:
    """Names of the audits that a labeler can make."""
    return tuple(getattr(labeler, "audits", ()))


def drawn(
    structure: Structure, label: Label, offered: Sequence[str], wanted: Sequence[str] | None, share: float
) -> tuple[str, ...]:
    """Names of the audits that the label of a structure gets.

    Args:
        offered: names of those that the labeler can make.
        wanted: those that the user names, or None for those offered that are not expensive.
        share: of the labels that are audited.

    Raises:
        ConfigurationError: an audit that the labeler does not offer.
    """
    unknown = sorted(set(wanted or ()) - set(offered))
    if unknown:
        raise ConfigurationError(
            f"checks.audits: the labeler has no audit {', '.join(unknown)}; it has "
            f"{', '.join(offered) or 'none'}"
        )
    if share == 0 or _uniform(structure) >= share:
        return ()
    names = wanted if wanted is not None else [name for name in offered if name not in ON_REQUEST]
    return tuple(name for name in names if name != FINITE_DIFFERENCE or label.forces is not None)


def make_audit(
    name: str, labeler: Auditable, structure: Structure, label: Label, deadline: Deadline
) -> Audit:
    """One audit of a label that passed its checks."""
    if name == FINITE_DIFFERENCE:
        return finite_difference(labeler, structure, label, deadline)
    made: Audit = labeler.audit(name, structure, label, deadline)  # type: ignore[attr-defined]
    return made


def finite_difference(labeler: Auditable, structure: Structure, label: Label, deadline: Deadline) -> Audit:
    """The force along one random direction against the central difference of two energies.

    The direction d is of length 1 over all coordinates: F·d = -(E(x + hd) - E(x - hd))/2h + O(h²).
    """
    assert label.forces is not None
    direction = _direction(structure)
    energies: list[float] = []
    calls = 0
    for sign in (1.0, -1.0):
        moved = structure.with_positions(structure.positions + sign * STEP * direction)
        result = labeler.label(moved, deadline)
        calls += result.qm_calls
        if isinstance(result, Rejection):
            problem = f"a displacement by {STEP:g} Å cannot be labelled ({result.code}: {result.message})"
            return Audit(name=FINITE_DIFFERENCE, passed=False, problem=problem, qm_calls=calls)
        energies.append(result.energy)
    numerical = -(energies[0] - energies[1]) / (2 * STEP)
    analytical = float((label.forces * direction).sum())
    error = abs(numerical - analytical)
    noise = 0.0 if label.level.noise is None else label.level.noise.force
    limit = max(FORCE_LIMIT, NOISES * noise)
    return Audit(
        name=FINITE_DIFFERENCE,
        passed=error <= limit,
        value=error,
        limit=limit,
        problem=""
        if error <= limit
        else f"the force along a random direction is {analytical:.4f} eV/Å, the slope of the energy "
        f"{numerical:.4f} eV/Å: off by {error:.4f}, allowed are {limit:g}",
        qm_calls=calls,
    )


def _uniform(structure: Structure) -> float:
    """A number in [0, 1) that depends on the structure alone."""
    digest = hashlib.sha256(f"audit:{structure.content_hash}".encode()).digest()
    return int.from_bytes(digest[:8], "little") / 2.0**64


def _direction(structure: Structure) -> FloatArray:
    digest = hashlib.sha256(f"direction:{structure.content_hash}".encode()).digest()
    drawn_from = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    direction = drawn_from.normal(size=structure.positions.shape)
    return np.asarray(direction / np.linalg.norm(direction))

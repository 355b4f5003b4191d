"""Drawing structures until one has no overlapping atoms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from hpcal.core.errors import FailureClass, TaskFailure
from hpcal.core.structure import Structure
from hpcal.sampling.guards import overlap_problem

MAX_DRAWS: Final = 100
"""Draws for one structure before giving up."""


def draw_without_overlap(draw: Callable[[], Structure], min_distance_factor: float, advice: str) -> Structure:
    """The first of up to ``MAX_DRAWS`` draws in which no atoms overlap.

    Args:
        draw: makes a structure, another one with each call.
        min_distance_factor: of the sum of covalent radii, see :mod:`hpcal.sampling.guards`.
        advice: what the user may do if none is found.

    Raises:
        TaskFailure: of class ``physics``, if all of them overlap.
    """
    problem = ""
    for _ in range(MAX_DRAWS):
        structure = draw()
        found = overlap_problem(structure, min_distance_factor)
        if found is None:
            return structure
        problem = found
    raise TaskFailure(
        FailureClass.PHYSICS,
        f"each of {MAX_DRAWS} structures drawn around {structure.formula} has overlapping atoms; in the "
        f"last one {problem}; {advice}",
    )

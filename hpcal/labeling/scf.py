"""Self-consistent fields of PySCF that do not converge at once: a ladder of ways, and its end.

Rungs, in the order in which they are climbed:

* ``diis``: Pulay's DIIS, as PySCF starts it.
* ``shift``: ADIIS with level shift and damping, then DIIS from that density without either,
  because a shift changes what is converged to.
* ``newton``: second order, about four times the cost of a step.

A field that no rung has converged gives no label.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from hpcal.core.arrays import FloatArray

Rung = Literal["diis", "shift", "newton"]
RUNGS: Final[tuple[Rung, ...]] = ("diis", "shift", "newton")
LEVEL_SHIFT: Final = 0.3
"""Hartree."""
DAMPING: Final = 0.3
MakeField = Callable[[], Any]
"""Makes a fresh mean field of one structure, settings and callback in place."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Climb:
    """How far the ladder was climbed.

    Attributes:
        field: the mean field of the last rung; converged if ``rung`` is not None.
        rung: the rung that converged, or None.
        notes: one sentence for each rung that did not.
    """

    field: Any
    rung: Rung | None
    notes: tuple[str, ...]


def climb(make: MakeField, rungs: Sequence[Rung], guess: FloatArray | None = None) -> Climb:
    """Climbs until a rung converges.

    Args:
        make: makes the mean field.
        rungs: those that may be used, in order.
        guess: density matrix to start from, or None for PySCF's own guess.
    """
    notes: list[str] = []
    density = guess
    field: Any = None
    for rung in rungs:
        try:
            field = _WAYS[rung](make, density if rung == "newton" else guess)
        except (np.linalg.LinAlgError, ArithmeticError) as error:
            notes.append(f"{rung}: {type(error).__name__}: {error}")
            continue
        if field.converged and np.isfinite(field.e_tot):
            return Climb(field=field, rung=rung, notes=tuple(notes))
        density = _finite_density(field)
        notes.append(f"{rung}: not converged at {field.e_tot:.6f} Hartree")
    return Climb(field=field, rung=None, notes=tuple(notes))


def _diis(make: MakeField, guess: FloatArray | None) -> Any:
    field = make()
    field.kernel(dm0=guess)
    return field


def _shift(make: MakeField, guess: FloatArray | None) -> Any:
    from pyscf import scf

    helped = make()
    helped.DIIS = scf.ADIIS
    helped.level_shift = LEVEL_SHIFT
    helped.damp = DAMPING
    helped.kernel(dm0=guess)
    if not helped.converged:
        return helped
    field = make()
    field.kernel(dm0=helped.make_rdm1())
    return field


def _newton(make: MakeField, guess: FloatArray | None) -> Any:
    field = make().newton()
    field.kernel(dm0=guess)
    return field


_WAYS: Final[dict[Rung, Callable[[MakeField, FloatArray | None], Any]]] = {
    "diis": _diis,
    "shift": _shift,
    "newton": _newton,
}


def _finite_density(field: Any) -> FloatArray | None:
    density = np.asarray(field.make_rdm1())
    return density if np.isfinite(density).all() else None


def drop_checkpoint(field: Any) -> None:
    """Closes the file that PySCF opens for every field to save its orbitals in; nobody reads it."""
    field.chkfile = None
    checkpoint = field.__dict__.pop("_chkfile", None)
    if checkpoint is not None:
        checkpoint.close()

"""Which solution of the self-consistent field a label stands on: the search for the lowest state.

A broken bond has an unrestricted solution far below the restricted one, and a restart from
symmetric orbitals or an analysis of internal stability may miss it. So *scouts*, cheap fields
(coarse grid, density fitting, loose convergence), look for it:

1. One scout converges from PySCF's own guess: restricted for a singlet, else unrestricted.
2. A second, unrestricted one starts from its orbitals with the highest filled one mixed with the
   lowest empty one, by +45° among the alpha and by -45° among the beta orbitals. That of a singlet
   is given up as soon as its spin density is gone: there is no other state.
3. Where a bond is broken, others start with two and three pairs of orbitals mixed, as a double or
   triple bond needs.
4. The lowest one of them is where the expensive field starts from.
5. Where a singlet breaks its symmetry, a triplet scout tells whether it is a broken bond or a
   molecule whose multiplicity was stated wrongly.

Scouts are compared with scouts only, so that neither grid nor fitting enters a comparison. Their
work is not lost: the expensive field starts from their density.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from hpcal.core.arrays import FloatArray
from hpcal.labeling.scf import Climb, climb

LOWER: Final = 5e-6
"""Hartree by which a second solution must be lower to be taken: half of what a label may be off."""
MULTIPLICITY_MARGIN: Final = 1e-3
"""Hartree by which a triplet must be lower to call a broken singlet a wrong multiplicity."""
CLOSED: Final = 1e-3
"""<S²> below which a singlet has no spin density."""
UNPAIRED: Final = 0.05
"""Excess of <S²> from which on further bonds may be broken, so that more orbitals are mixed."""
PAIRS: Final = (1, 2, 3)
"""Numbers of pairs of orbitals to mix; N2 at 2.5 Å needs three, one ends 0.9 eV too high in PBE0."""
MIXING: Final = np.pi / 4
_RUNGS: Final = ("diis", "newton")

MakeScout = Callable[[int, bool, Callable[[Any], None] | None], Any]
"""Makes a scout: 2S of it, whether unrestricted, and what else to call in each iteration."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What the scouts found.

    Attributes:
        density: (nao, nao) or (2, nao, nao) density matrix to start from; None if no scout converged.
        unrestricted: whether the lowest solution is an unrestricted one.
        lowering: Hartree by which the second solution is below the first one; 0 if it is not.
        triplet_lower: Hartree by which a triplet is below a singlet of broken symmetry, or None.
        problem: why the search came to no end, or empty.
    """

    density: FloatArray | None = None
    unrestricted: bool = False
    lowering: float = 0.0
    triplet_lower: float | None = None
    problem: str = ""


def search(make: MakeScout, spin: int) -> Found:
    """Looks for the lowest state of a molecule.

    Args:
        make: makes scouts.
        spin: 2S of the molecule.
    """
    first = climb(lambda: make(spin, spin > 0, None), _RUNGS)
    if first.rung is None:
        return Found(problem=f"the first scout did not converge ({'; '.join(first.notes)})")
    best, failed = first, ""
    for pairs in PAIRS:
        mixture = mixed(first.field, pairs)
        if mixture is None or (pairs > 1 and not failed and not _unpaired(best, spin)):
            break
        trial = _trial(make, spin, mixture)
        if trial is None:
            continue
        if trial.rung is None:
            failed = f"the scout with {pairs} pairs mixed did not converge ({'; '.join(trial.notes)})"
        elif trial.field.e_tot < best.field.e_tot - LOWER:
            best = trial
    if best is first and failed:
        return Found(problem=failed)
    lowering = float(first.field.e_tot - best.field.e_tot)
    return Found(
        density=np.asarray(best.field.make_rdm1()),
        unrestricted=spin > 0 or best is not first,
        lowering=lowering,
        triplet_lower=_triplet_lower(make, best) if spin == 0 and best is not first else None,
    )


def mixed(field: Any, pairs: int = 1, angle: float = MIXING) -> FloatArray | None:
    """(2, nao, nao) density with frontier orbitals mixed by opposite angles for the two spins.

    Args:
        pairs: how many of them: the highest filled with the lowest empty one, the next below with
            the next above, and so on.

    Returns:
        None if there are fewer pairs than that in both spins.
    """
    coefficients, filled = np.asarray(field.mo_coeff), np.asarray(field.mo_occ) > 0
    if coefficients.ndim == 2:
        coefficients, filled = np.stack([coefficients] * 2), np.stack([filled] * 2)
    densities, most = [], 0
    for orbitals, occupied, sign in zip(coefficients, filled, (1.0, -1.0), strict=True):
        inside, outside = orbitals[:, occupied].copy(), orbitals[:, ~occupied]
        there = min(pairs, inside.shape[1], outside.shape[1])
        most = max(most, there)
        for k in range(there):
            inside[:, -1 - k] = np.cos(angle) * inside[:, -1 - k] + sign * np.sin(angle) * outside[:, k]
        densities.append(inside @ inside.T)
    return np.array(densities) if most == pairs else None


def spin_square(density: FloatArray, overlap: FloatArray, nelec: tuple[int, int]) -> float:
    """<S²> of a determinant from its (2, nao, nao) density."""
    alpha, beta = nelec
    z = (alpha - beta) / 2
    shared = np.einsum("ij,ji->", density[0] @ overlap, density[1] @ overlap)
    return float(z * (z + 1) + beta - shared)


class _NoSpinDensity(Exception):
    """A singlet on its way back to the restricted solution."""


@dataclass
class _SpinWatch:
    """Ends a scout of a singlet once its spin density is gone in two iterations in a row."""

    _overlap: FloatArray | None = field(default=None, init=False)
    _closed: bool = field(default=False, init=False)

    def __call__(self, state: Any) -> None:
        density = state.get("dm")
        if density is None or np.ndim(density) != 3:
            return
        if self._overlap is None:
            self._overlap = state["mf"].mol.intor_symmetric("int1e_ovlp")
        closed = spin_square(np.asarray(density), self._overlap, state["mf"].mol.nelec) < CLOSED
        if closed and self._closed:
            raise _NoSpinDensity
        self._closed = closed


def _trial(make: MakeScout, spin: int, mixture: FloatArray) -> Climb | None:
    """The unrestricted scout from mixed orbitals, or None where it falls back to a restricted one."""
    try:
        return climb(lambda: make(spin, True, None if spin else _SpinWatch()), _RUNGS, mixture)
    except _NoSpinDensity:
        return None


def _unpaired(climbed: Climb, spin: int) -> bool:
    """Whether a scout has more spin density than its multiplicity asks for: a broken bond."""
    square = float(climbed.field.spin_square()[0])
    return square - spin / 2 * (spin / 2 + 1) > UNPAIRED


def _triplet_lower(make: MakeScout, singlet: Climb) -> float:
    """Hartree by which the triplet is below; minus infinity where there is none or it does not converge."""
    if sum(singlet.field.mol.nelec) < 2 or singlet.field.mol.nao < 2:
        return -np.inf
    triplet = climb(lambda: make(2, True, None), _RUNGS)
    return -np.inf if triplet.rung is None else float(singlet.field.e_tot - triplet.field.e_tot)

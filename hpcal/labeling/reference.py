"""Which solution of the self-consistent field a label stands on: the search for the lowest state.

A broken bond has an unrestricted solution far below the restricted one, and a restart from
symmetric orbitals or an analysis of internal stability may miss it. So *scouts*, cheap fields
(coarse grid, density fitting, loose convergence), look for it:

1. One scout converges from PySCF's own guess: restricted for a singlet, else unrestricted.
2. A second, unrestricted one starts from the spin densities of two guesses together: free atoms with
   the spins of Hund's rule, each opposite to its nearest neighbour's; and the orbitals of the first
   scout, the highest filled one mixed with the lowest empty one, by +45° among the alpha and by -45°
   among the beta orbitals. That of a singlet is given up as soon as its spin density is gone: there
   is no other state.
3. Where spins stay apart, further ones start from each of the two guesses alone.
4. The lowest one of them is where the expensive field starts from.
5. Where a singlet breaks its symmetry, a triplet scout tells whether it is a broken bond or a
   molecule whose multiplicity was stated wrongly.

One guess is not enough. Mixed orbitals alone break a single bond only: N2 at 1.6 Å stays 0.7 eV, at
2.5 Å 2.3 eV too high (PBE0/def2-SVP); polarised atoms alone miss the biradical of CH2.

Scouts are compared with scouts only, so that neither grid nor fitting enters a comparison. Their
work is not lost: the expensive field starts from their density.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from hpcal.core.arrays import FloatArray
from hpcal.core.elements import symbol
from hpcal.labeling.scf import Climb, climb

LOWER: Final = 5e-6
"""Hartree by which a second solution must be lower to be taken: half of what a label may be off."""
LOST: Final = 5e-5
"""Hartree of a lowering that is no matter of the scouts' coarse grid, so that a label must show it."""
MULTIPLICITY_MARGIN: Final = 1e-3
"""Hartree by which a triplet must be lower to call a broken singlet a wrong multiplicity."""
CLOSED: Final = 1e-3
"""<S²> below which a singlet has no spin density."""
UNPAIRED: Final = 0.05
"""Excess of <S²> from which on spins are apart that the multiplicity alone would not hold apart."""
MIXING: Final = np.pi / 4
_RUNGS: Final = ("diis", "newton")

MakeScout = Callable[[int, bool, Callable[[Any], None] | None], Any]
"""Makes a scout: 2S of it, whether unrestricted, and what else to call in each iteration."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What the scouts found.

    Attributes:
        density: (nao, nao) or (2, nao, nao) density matrix to start from, or None for PySCF's own guess.
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
    for start in _starts(first.field):
        trial = _trial(make, spin, start)
        if trial is None:
            break
        if trial.rung is None:
            failed = f"a scout of broken symmetry did not converge ({'; '.join(trial.notes)})"
            continue
        if trial.field.e_tot < best.field.e_tot - LOWER:
            best = trial
        if not _unpaired(trial, spin):
            break
    if best is first and failed:
        return Found(problem=failed)
    lowering = float(first.field.e_tot - best.field.e_tot)
    return Found(
        density=np.asarray(best.field.make_rdm1()),
        unrestricted=spin > 0 or best is not first,
        lowering=lowering,
        triplet_lower=_triplet_lower(make, best) if spin == 0 and best is not first else None,
    )


def _starts(field: Any) -> Iterator[FloatArray]:
    """Guesses of broken symmetry, the one that finds most of them first."""
    atoms, orbitals = polarised_atoms(field.mol), mixed(field)
    if atoms is not None and orbitals is not None:
        overlap = field.mol.intor_symmetric("int1e_ovlp")
        first, second = atoms[0] - atoms[1], orbitals[0] - orbitals[1]
        alike = np.einsum("ij,ji->", first @ overlap, second @ overlap) >= 0
        # Opposite ones would cancel.
        spin = 0.5 * (first + (second if alike else -second))
        total = 0.5 * atoms.sum(axis=0)
        yield np.array([total + spin, total - spin])
    yield from (guess for guess in (atoms, orbitals) if guess is not None)


def polarised_atoms(molecule: Any) -> FloatArray | None:
    """(2, nao, nao) density of free atoms with the spins of Hund's rule, opposite on neighbours.

    Each atom is joined to its nearest one among those joined before, and takes the other sign. None
    for a molecule of fewer than two electrons or orbitals.
    """
    from pyscf import scf

    if sum(molecule.nelec) < 2 or molecule.nao < 2:
        return None
    total = np.asarray(scf.hf.get_init_guess(molecule, key="minao"))
    polarisation = np.zeros(molecule.nao)
    signs, borders = _alternating(molecule.atom_coords()), molecule.ao_loc_nr()
    for shell in range(molecule.nbas):
        atom = molecule.bas_atom(shell)
        share = _unpaired_share(molecule, atom, molecule.bas_angular(shell))
        polarisation[borders[shell] : borders[shell + 1]] = signs[atom] * share
    up, down = np.sqrt(1 + polarisation), np.sqrt(1 - polarisation)
    return np.array([0.5 * total * np.outer(w, w) for w in (up, down)])


def mixed(field: Any) -> FloatArray | None:
    """(2, nao, nao) density with the frontier orbitals mixed by opposite angles for the two spins.

    None if neither spin has both a filled and an empty orbital.
    """
    coefficients, filled = np.asarray(field.mo_coeff), np.asarray(field.mo_occ) > 0
    if coefficients.ndim == 2:
        coefficients, filled = np.stack([coefficients] * 2), np.stack([filled] * 2)
    densities, any_mixed = [], False
    for orbitals, occupied, sign in zip(coefficients, filled, (1.0, -1.0), strict=True):
        inside, outside = orbitals[:, occupied].copy(), orbitals[:, ~occupied]
        if inside.shape[1] and outside.shape[1]:
            inside[:, -1] = np.cos(MIXING) * inside[:, -1] + sign * np.sin(MIXING) * outside[:, 0]
            any_mixed = True
        densities.append(inside @ inside.T)
    return np.array(densities) if any_mixed else None


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
    """The unrestricted scout from a guess, or None where it falls back to a restricted one."""
    try:
        return climb(lambda: make(spin, True, None if spin else _SpinWatch()), _RUNGS, mixture)
    except _NoSpinDensity:
        return None


def _unpaired(climbed: Climb, spin: int) -> bool:
    """Whether a scout has more spin density than its multiplicity asks for: a broken bond."""
    square = float(climbed.field.spin_square()[0])
    return square - spin / 2 * (spin / 2 + 1) > UNPAIRED


def _alternating(positions: FloatArray) -> FloatArray:
    """(N,) of +1 and -1, opposite for neighbours along the shortest tree that joins all atoms."""
    signs = np.zeros(len(positions))
    signs[0] = 1.0
    apart = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    while not signs.all():
        inside, outside = np.flatnonzero(signs), np.flatnonzero(signs == 0)
        near = apart[np.ix_(inside, outside)]
        i, j = np.unravel_index(int(near.argmin()), near.shape)
        signs[outside[j]] = -signs[inside[i]]
    return signs


def _unpaired_share(molecule: Any, atom: int, momentum: int) -> float:
    """Unpaired electrons of a free atom in its shells of one angular momentum, as a share of those there."""
    from pyscf import gto
    from pyscf.data.elements import CONFIGURATION

    core = molecule.atom_nelec_core(atom)
    number = int(molecule.atom_charge(atom)) + core
    if number >= len(CONFIGURATION) or momentum >= len(CONFIGURATION[number]):
        return 0.0
    capacity = 2 * (2 * momentum + 1)
    hidden = gto.ecp.core_configuration(core, symbol(number))[momentum] * capacity if core else 0
    electrons = CONFIGURATION[number][momentum] - hidden
    if electrons <= 0:
        return 0.0
    outermost = electrons % capacity
    return float(min(outermost, capacity - outermost) / electrons)


def _triplet_lower(make: MakeScout, singlet: Climb) -> float:
    """Hartree by which the triplet is below; minus infinity where it does not converge."""
    triplet = climb(lambda: make(2, True, None), _RUNGS)
    return -np.inf if triplet.rung is None else float(singlet.field.e_tot - triplet.field.e_tot)

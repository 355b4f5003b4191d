"""Auxiliary basis sets of density fitting: PySCF's own where it is right, else one made for the basis set.

PySCF chooses a set by the name of the basis set, and some of its choices are wrong without a word. Errors of
fitted PBE0 energies:

=================================  ==========================================================
HBr, 6-31G*                        +4.6 eV: the set has no g functions for the exchange of 3d
ZnH, LANL2DZ                       -30 eV: too few even-tempered functions
HI, 3-21G                          -1700 eV: a set made for an ECP, around all electrons
NaCl, cc-pVDZ                      none: the set lacks sodium
=================================  ==========================================================

So each element's set is tried on the density of its free atom. Where Coulomb or exchange energy is off by
more than ``LIMIT``, AutoAux takes its place (Stoychev, Auer, Neese, J. Chem. Theory Comput. 2017,
10.1021/acs.jctc.6b01041).
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np

from hpcal.core.elements import symbol
from hpcal.core.units import HARTREE
from hpcal.labeling.basis import ecp_electrons

LIMIT: Final = 0.02
"""eV; sets that were made for a basis set are a tenth of it off."""
RULE: Final = f"of PySCF, or AutoAux where it is off by {LIMIT} eV"
"""What becomes part of a fitted level of theory."""
_NO_SET: Final = (RuntimeError, KeyError, IndexError, ValueError)
"""What PySCF raises where it has no set, or can make none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fit:
    """The auxiliary basis set of an element.

    Attributes:
        shells: as PySCF holds them.
        own: whether PySCF takes it of its own accord.
    """

    shells: Any
    own: bool


def unfitted(basis: str, numbers: Iterable[int], functional: str) -> list[str]:
    """Symbols of those elements for which no auxiliary basis set is right.

    Args:
        basis: name of the basis set.
        numbers: atomic numbers, all covered by the basis set.
        functional: PySCF's ``xc``, or ``hf``.
    """
    return [symbol(z) for z in sorted(set(numbers)) if _fit(basis, z, functional) is None]


def auxiliary(basis: str, numbers: Iterable[int], functional: str) -> dict[str, Any] | None:
    """The auxiliary basis set of each element as ``density_fit`` takes it; None for PySCF's own.

    Args: as for :func:`unfitted`, of which there must be none.
    """
    found = {symbol(z): _fit(basis, z, functional) for z in sorted(set(numbers))}
    if all(fit is None or fit.own for fit in found.values()):
        return None
    return {name: fit.shells for name, fit in found.items() if fit is not None}


@cache
def _fit(basis: str, number: int, functional: str) -> _Fit | None:
    from pyscf import df, gto
    from pyscf.scf.hf import get_init_guess, get_jk

    name = symbol(number)
    ecp = {name: basis} if ecp_electrons(basis, number) else {}
    atom = gto.M(atom=[(name, (0.0, 0.0, 0.0))], basis=basis, ecp=ecp, spin=None, verbose=0)
    with warnings.catch_warnings():
        # PySCF 2.14 makes this guess by what it calls deprecated itself.
        warnings.simplefilter("ignore")
        density = np.asarray(get_init_guess(atom, key="atom"))
    exact = get_jk(atom, density)
    for own in (True, False):
        try:
            # PySCF prints advice where a set lacks the element.
            with contextlib.redirect_stdout(io.StringIO()):
                fitted = _field(atom, functional, None if own else df.autoaux(atom)).with_df
                off = [fit - right for fit, right in zip(fitted.get_jk(density), exact, strict=True)]
        except _NO_SET:
            continue
        coulomb, exchange = (abs(float(np.einsum("ij,ji->", each, density))) * HARTREE for each in off)
        if coulomb / 2 <= LIMIT and (exchange / 4 <= LIMIT or not _exact_exchange(functional)):
            return _Fit(shells=fitted.auxmol._basis[name], own=own)
    return None


def _field(atom: Any, functional: str, shells: Any) -> Any:
    """A field of the functional, by which PySCF chooses among its sets."""
    from pyscf import dft, scf

    field = scf.UHF(atom) if functional == "hf" else dft.UKS(atom, xc=functional)
    return field.density_fit(auxbasis=shells)


def _exact_exchange(functional: str) -> bool:
    from pyscf.dft import libxc

    return functional == "hf" or bool(libxc.is_hybrid_xc(functional))

"""Basis sets and effective core potentials (ECPs) of PySCF: what covers which element.

An element whose basis set was made for an ECP gives a converged energy without it that is
thousands of Hartree off. So an ECP that the basis set brings is always used, and a basis set with
fewer shells than the electrons occupy does not cover its element.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import numpy as np

from hpcal.core.elements import symbol
from hpcal.core.errors import ConfigurationError

EcpPolicy = Literal["basis", "none"]
HEAVIEST_LIGHT: Final = 36
"""Atomic number up to which every basis set is probed when its name is checked."""


class BasisSet:
    """A named basis set and the policy on its ECPs.

    Raises:
        ConfigurationError: PySCF knows no such basis set.
    """

    def __init__(self, name: str, ecp: EcpPolicy) -> None:
        self.name = name
        self._policy = ecp
        self._problems: dict[int, str | None] = {}
        if name.strip().lower().startswith("gth"):
            raise ConfigurationError(
                f"basis {name!r} goes with GTH pseudopotentials, which are not offered; use def2-svp"
            )
        if all(_shells(name, z) is None for z in range(1, HEAVIEST_LIGHT + 1)):
            raise ConfigurationError(
                f"basis {name!r} is not a basis set that PySCF knows for any element up to krypton; "
                "examples: 6-31g*, def2-svp, def2-tzvp, cc-pvdz"
            )

    def problem(self, number: int) -> str | None:
        """Why an element is not covered, or None if it is."""
        if number not in self._problems:
            self._problems[number] = self._find_problem(number)
        return self._problems[number]

    def ecps(self, numbers: Iterable[int]) -> dict[str, str]:
        """The ECP of each element that has one, as ``Mole.ecp`` takes it."""
        return {symbol(z): self.name for z in sorted(set(numbers)) if ecp_electrons(self.name, z)}

    def _find_problem(self, number: int) -> str | None:
        shells = _shells(self.name, number)
        if shells is None:
            return f"{self.name} has no functions for {symbol(number)}"
        core = ecp_electrons(self.name, number)
        if core and self._policy == "none":
            return (
                f"{self.name} was made for {symbol(number)} with an ECP of {core} electrons; set ecp: basis"
            )
        lacking = _lacking_shells(shells, number, core)
        if lacking:
            return (
                f"{self.name} has too few {lacking} functions for the electrons of {symbol(number)}: it was "
                "made for an ECP that PySCF does not hold under this name"
            )
        return None


def ecp_electrons(basis: str, number: int) -> int:
    """Electrons that the ECP of a basis set stands for; 0 without one."""
    from pyscf import gto

    try:
        with warnings.catch_warnings():
            # PySCF advises to install another package wherever it finds no ECP.
            warnings.simplefilter("ignore")
            found = gto.basis.load_ecp(basis, symbol(number))
    except (RuntimeError, KeyError, TypeError, OSError):
        return 0
    return int(found[0]) if found else 0


def _shells(basis: str, number: int) -> dict[int, int] | None:
    """Contracted functions of each angular momentum, or None without a basis set."""
    from pyscf import gto

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = gto.basis.load(basis, symbol(number))
    except (RuntimeError, KeyError, TypeError, OSError):
        return None
    counts: dict[int, int] = {}
    for shell in loaded:
        momentum, rows = shell[0], [row for row in shell[1:] if not isinstance(row, int)]
        counts[momentum] = counts.get(momentum, 0) + _contractions(rows)
    return counts or None


def _contractions(rows: list[Any]) -> int:
    return len(rows[0]) - 1 if rows else 0


def _lacking_shells(shells: Mapping[int, int], number: int, core: int) -> str:
    """Letters of angular momenta with fewer functions than occupied shells outside the core."""
    from pyscf import gto
    from pyscf.data.elements import CONFIGURATION

    inside = gto.ecp.core_configuration(core, symbol(number)) if core else [0, 0, 0, 0]
    lacking = ""
    for momentum, electrons in enumerate(CONFIGURATION[number]):
        occupied = int(np.ceil(electrons / (2 * (2 * momentum + 1))))
        if shells.get(momentum, 0) < occupied - inside[momentum]:
            lacking += "spdf"[momentum]
    return lacking

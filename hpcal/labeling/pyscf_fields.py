"""Molecules and mean fields of PySCF as the settings of a level ask for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, Final

from hpcal.core.elements import symbol
from hpcal.core.structure import Structure
from hpcal.core.units import BOHR
from hpcal.labeling.basis import BasisSet
from hpcal.labeling.fitting import auxiliary, unfitted
from hpcal.labeling.functional import Functional
from hpcal.labeling.pyscf_settings import PySCFSettings
from hpcal.labeling.reference import Found, search
from hpcal.labeling.scf import drop_checkpoint

WARNINGS_ONLY: Final = 2
"""PySCF's verbosity at which it writes warnings and nothing else."""
SCOUT_GRID: Final = 1
SCOUT_CONV_TOL: Final = 1e-6
SCOUT_CYCLES: Final = 60

Watch = Callable[[Any], None]
"""Called in each iteration with PySCF's own variables."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fields:
    """Makes the molecules and mean fields of one level of theory.

    Attributes:
        memory_MB: what PySCF may use for one molecule; it takes that as advice.
    """

    settings: PySCFSettings
    functional: Functional
    basis: BasisSet
    memory_MB: float  # noqa: N815

    def molecule(self, structure: Structure, messages: IO[str], spin: int | None = None) -> Any:
        """The molecule of a structure, whose warnings go to ``messages``; 2S as stated unless given."""
        from pyscf import gto

        molecule = gto.Mole()
        molecule.stdout = messages
        molecule.verbose = WARNINGS_ONLY
        molecule.max_memory = self.memory_MB
        return molecule.build(
            dump_input=False,
            parse_arg=False,
            # Bohr, by hpcal's factor: PySCF's own is of another CODATA set.
            atom=[
                (symbol(int(z)), (x / BOHR).tolist())
                for z, x in zip(structure.numbers, structure.positions, strict=True)
            ],
            unit="Bohr",
            basis=self.settings.basis,
            ecp=self.basis.ecps(structure.numbers.tolist()),
            cart=self.settings.cartesian,
            charge=structure.charge,
            spin=structure.multiplicity - 1 if spin is None else spin,
        )

    def full(self, molecule: Any, watch: Watch, *, unrestricted: bool) -> Any:
        """The mean field of the level."""
        field = self._field(molecule, unrestricted=unrestricted)
        if not self.functional.hartree_fock:
            field.grids.level = self.functional.grid(self.settings.grid_level)
        if self.functional.dispersion != "none" and not self.functional.own_dispersion:
            field.disp = self.functional.dispersion
        if self.settings.density_fit:
            field = field.density_fit(auxbasis=self._auxiliary(molecule))
        field.conv_tol = self.settings.conv_tol
        field.max_cycle = self.settings.max_cycle
        field.callback = watch
        return field

    def scout(self, molecule: Any, watch: Watch, *, unrestricted: bool) -> Any:
        """A cheap field of the same functional and basis set, for comparisons with its like."""
        field = self._field(molecule, unrestricted=unrestricted)
        if not self.functional.hartree_fock:
            field.grids.level = min(SCOUT_GRID, self.functional.grid(self.settings.grid_level))
            field.nlc = 0
        # Dispersion does not depend on the density.
        field.disp = None
        if not unfitted(self.settings.basis, _numbers(molecule), self.functional.name):
            field = field.density_fit(auxbasis=self._auxiliary(molecule))
        field.conv_tol = SCOUT_CONV_TOL
        field.max_cycle = SCOUT_CYCLES
        field.callback = watch
        return field

    def search(self, structure: Structure, molecule: Any, messages: IO[str], watch: Watch) -> Found:
        """The state that a label stands on, by the policy of the level.

        Args:
            molecule: of the structure.
            messages: where warnings go to.
            watch: called in each iteration of each scout.
        """
        if self.settings.reference == "rks_unchecked":
            return Found(unrestricted=molecule.spin > 0)
        molecules = {molecule.spin: molecule}

        def scout(spin: int, unrestricted: bool, also: Watch | None) -> Any:
            if spin not in molecules:
                molecules[spin] = self.molecule(structure, messages, spin)

            def both(state: Any) -> None:
                watch(state)
                if also is not None:
                    also(state)

            return self.scout(molecules[spin], both, unrestricted=unrestricted)

        return search(scout, molecule.spin)

    def _auxiliary(self, molecule: Any) -> dict[str, Any] | None:
        return auxiliary(self.settings.basis, _numbers(molecule), self.functional.name)

    def _field(self, molecule: Any, *, unrestricted: bool) -> Any:
        from pyscf import dft, scf

        if self.functional.hartree_fock:
            field = scf.UHF(molecule) if unrestricted else scf.RHF(molecule)
        else:
            field = dft.UKS(molecule) if unrestricted else dft.RKS(molecule)
            field.xc = self.functional.name
        drop_checkpoint(field)
        return field


def _numbers(molecule: Any) -> set[int]:
    from pyscf.gto import charge

    return {int(charge(molecule.atom_symbol(i))) for i in range(molecule.natm)}

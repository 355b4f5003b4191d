"""Molecules and mean fields of PySCF as the settings of a level ask for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import IO, Any, Final

from hpcal.core.elements import symbol
from hpcal.core.structure import Structure
from hpcal.core.units import BOHR
from hpcal.labeling.basis import BasisSet
from hpcal.labeling.functional import Functional
from hpcal.labeling.pyscf_settings import PySCFSettings
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
            field.grids.level = self.settings.grid_level
            if self.functional.dispersion != "none" and not self.functional.own_dispersion:
                field.disp = self.functional.dispersion
        elif self.functional.dispersion != "none":
            field.disp = self.functional.dispersion
        if self.settings.density_fit:
            field = field.density_fit()
        field.conv_tol = self.settings.conv_tol
        field.max_cycle = self.settings.max_cycle
        field.callback = watch
        return field

    def scout(self, molecule: Any, watch: Watch, *, unrestricted: bool) -> Any:
        """A cheap field of the same functional and basis set, for comparisons with its like."""
        field = self._field(molecule, unrestricted=unrestricted)
        if not self.functional.hartree_fock:
            field.grids.level = min(SCOUT_GRID, self.settings.grid_level)
            field.nlc = 0
        # Dispersion does not depend on the density.
        field.disp = None
        field = field.density_fit()
        field.conv_tol = SCOUT_CONV_TOL
        field.max_cycle = SCOUT_CYCLES
        field.callback = watch
        return field

    def _field(self, molecule: Any, *, unrestricted: bool) -> Any:
        from pyscf import dft, scf

        if self.functional.hartree_fock:
            field = scf.UHF(molecule) if unrestricted else scf.RHF(molecule)
        else:
            field = dft.UKS(molecule) if unrestricted else dft.RKS(molecule)
            field.xc = self.functional.name
        drop_checkpoint(field)
        return field

    def finer(self) -> Fields:
        """The same level, without numerical noise worth speaking of."""
        tight = self.settings.model_copy(
            update={"grid_level": 6, "conv_tol": 1e-11, "density_fit": False, "grid_response": True}
        )
        return replace(self, settings=tight)

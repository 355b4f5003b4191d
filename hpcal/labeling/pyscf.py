"""Hartree–Fock and density functional theory of molecules through PySCF."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final

import numpy as np
from pydantic import Field

from hpcal.core.arrays import FloatArray
from hpcal.core.deadline import Deadline
from hpcal.core.elements import masses, symbol
from hpcal.core.errors import FailureClass, PluginError
from hpcal.core.label import Label, LevelOfTheory, Rejection
from hpcal.core.plugins import how_to_install
from hpcal.core.settings import Settings
from hpcal.core.structure import Structure
from hpcal.core.units import BOHR, HARTREE
from hpcal.labeling.audits import FINITE_DIFFERENCE
from hpcal.labeling.basis import BasisSet, EcpPolicy
from hpcal.labeling.checks import parity
from hpcal.labeling.failures import check_time
from hpcal.labeling.functional import Dispersion, Functional, dispersion_version, resolve
from hpcal.labeling.scf import RUNGS, Climb, Rung, climb

WARNINGS_ONLY: Final = 2
"""PySCF's verbosity at which it writes warnings and nothing else."""


class PySCFSettings(Settings):
    """The block ``label`` of a campaign with ``labeler: pyscf``."""

    method: str = Field(description="hf, or a functional of libxc such as wb97x, pbe0, b3lyp or wb97m-v")
    basis: str = Field(description="basis set by name, such as 6-31g*, def2-svp or cc-pvtz")
    density_fit: bool = Field(default=False, description="density fitting of Coulomb and exchange")
    dispersion: Dispersion = Field(default="none", description="correction for dispersion")
    grid_level: int = Field(
        default=4,
        ge=0,
        le=9,
        description="PySCF's integration grid; at 3 the net force of larger molecules exceeds 10 meV/Å",
    )
    grid_response: bool = Field(
        default=False, description="include the response of the grid in the forces; then they add up to zero"
    )
    conv_tol: float = Field(
        default=1e-9, gt=0, le=1e-6, description="convergence of the energy, Hartree, as PySCF names it"
    )
    max_cycle: int = Field(default=100, ge=1, description="iterations of each rung of the ladder")
    ladder: tuple[Rung, ...] = Field(
        default=RUNGS, min_length=1, description="ways to converge, tried in this order"
    )
    cartesian: bool = Field(default=False, description="Cartesian d and f functions instead of spherical")
    ecp: EcpPolicy = Field(
        default="basis", description="basis: the basis set's own ECPs; none: refuse elements that need one"
    )
    max_spin_contamination: float = Field(
        default=0.1, gt=0, description="largest deviation of <S²> from S(S+1), for multiplicity above 1"
    )
    max_memory_MB: int = Field(  # noqa: N815
        default=4000, gt=0, description="memory that PySCF tries to keep to, for one molecule"
    )


class PySCF:
    """Labels by PySCF: energy, forces, dipole, Mulliken charges.

    Multiplicity 1 is calculated restricted, all others unrestricted. The dipole is about the
    centre of mass, which matters for ions.

    Raises:
        ConfigurationError: a method or basis set that PySCF does not have, or an ambiguous name.
        PluginError: dispersion without its package.
    """

    Settings: ClassVar[type[Settings]] = PySCFSettings
    isolate: ClassVar[bool] = True
    periodic: ClassVar[bool] = False
    audits: ClassVar[tuple[str, ...]] = (FINITE_DIFFERENCE,)

    def __init__(self, settings: PySCFSettings) -> None:
        library = _import_pyscf()
        self._settings = settings
        self._functional = resolve(settings.method, settings.dispersion)
        self._basis = BasisSet(settings.basis, settings.ecp)
        self._level = _level(settings, self._functional, library.__version__)

    @property
    def level(self) -> LevelOfTheory:
        """The level of theory of its labels."""
        return self._level

    def missing_elements(self, numbers: Sequence[int]) -> tuple[int, ...]:
        """Those of the atomic numbers that the basis set, with its ECPs, does not cover."""
        return tuple(z for z in numbers if self._basis.problem(z) is not None)

    def label(self, structure: Structure, deadline: Deadline) -> Label | Rejection:
        """A label, or why there is none.

        Codes of rejections: ``scf_not_converged``, ``spin_contamination``, ``parity``,
        ``element``.

        Raises:
            TaskFailure: class ``resource``, the time is up; looked at in every iteration.
        """
        check_time(deadline)
        refused = parity(structure) or self._uncovered(structure)
        if refused is not None:
            return refused
        messages = io.StringIO()
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always")
            result = self._calculate(structure, deadline, messages)
        lines = [line.strip() for line in messages.getvalue().splitlines()]
        # The gap is in the diagnostics. PySCF 2.14 warns of every open shell, as it takes the
        # empty alpha orbital from among the beta ones.
        seen = [line for line in lines if line and "HOMO" not in line]
        seen += [str(warning.message) for warning in raised]
        if seen:
            return _with_diagnostics(result, {"warnings": seen})
        return result

    def _calculate(
        self, structure: Structure, deadline: Deadline, messages: io.StringIO
    ) -> Label | Rejection:
        cycles = [0]

        def watch(_: Any) -> None:
            cycles[0] += 1
            check_time(deadline)

        molecule = self._molecule(structure, messages)
        climbed = climb(lambda: self._field(molecule, watch), self._settings.ladder)
        if climbed.rung is None:
            return self._not_converged(structure, climbed, cycles[0])
        field = climbed.field
        spin = _spin(field, structure)
        diagnostics = {
            "converged": True,
            "rung": climbed.rung,
            "cycles": cycles[0],
            "ladder": list(climbed.notes),
            "reference": "restricted" if structure.multiplicity == 1 else "unrestricted",
            "gap_eV": _gap(field),
            "dipole_origin": "centre of mass",
            **spin,
        }
        limit = self._settings.max_spin_contamination
        if structure.multiplicity > 1 and spin["spin_contamination"] > limit:
            return _contaminated(structure, limit, diagnostics)
        check_time(deadline)
        return self._label(structure, field, diagnostics)

    def _molecule(self, structure: Structure, messages: io.StringIO) -> Any:
        from pyscf import gto

        molecule = gto.Mole()
        molecule.stdout = messages
        molecule.verbose = WARNINGS_ONLY
        molecule.max_memory = self._settings.max_memory_MB
        return molecule.build(
            dump_input=False,
            parse_arg=False,
            # Bohr, by hpcal's factor: PySCF's own is of another CODATA set.
            atom=[
                (symbol(int(z)), (x / BOHR).tolist())
                for z, x in zip(structure.numbers, structure.positions, strict=True)
            ],
            unit="Bohr",
            basis=self._settings.basis,
            ecp=self._basis.ecps(structure.numbers.tolist()),
            cart=self._settings.cartesian,
            charge=structure.charge,
            spin=structure.multiplicity - 1,
        )

    def _field(self, molecule: Any, watch: Callable[[Any], None]) -> Any:
        from pyscf import dft, scf

        restricted = molecule.spin == 0
        if self._functional.hartree_fock:
            field = scf.RHF(molecule) if restricted else scf.UHF(molecule)
        else:
            field = dft.RKS(molecule) if restricted else dft.UKS(molecule)
            field.xc = self._functional.name
            field.grids.level = self._settings.grid_level
        _drop_checkpoint(field)
        if self._functional.dispersion != "none" and not self._functional.own_dispersion:
            field.disp = self._functional.dispersion
        if self._settings.density_fit:
            field = field.density_fit()
        field.conv_tol = self._settings.conv_tol
        field.max_cycle = self._settings.max_cycle
        field.callback = watch
        return field

    def _label(self, structure: Structure, field: Any, diagnostics: dict[str, Any]) -> Label:
        gradient = field.nuc_grad_method()
        if not self._functional.hartree_fock:
            gradient.grid_response = self._settings.grid_response
        weights = masses(structure.numbers)
        origin: FloatArray = weights @ structure.positions / weights.sum()
        dipole = field.dip_moment(unit="AU", origin=origin / BOHR, verbose=0)
        return Label(
            energy=float(field.e_tot) * HARTREE,
            forces=-np.asarray(gradient.kernel()) * HARTREE / BOHR,
            dipole=np.asarray(dipole) * BOHR,
            dipole_origin=origin,
            charges=np.asarray(field.mulliken_pop(verbose=0)[1]),
            charge_scheme="mulliken",
            level=self._level,
            diagnostics=diagnostics,
        )

    def _uncovered(self, structure: Structure) -> Rejection | None:
        problems = [self._basis.problem(z) for z in sorted(set(structure.numbers.tolist()))]
        found = "; ".join(p for p in problems if p is not None)
        if not found:
            return None
        return Rejection(failure_class=FailureClass.INPUT, code="element", message=found)

    def _not_converged(self, structure: Structure, climbed: Climb, cycles: int) -> Rejection:
        tried = "; ".join(climbed.notes)
        return Rejection(
            failure_class=FailureClass.PHYSICS,
            code="scf_not_converged",
            message=f"{self._level} of {structure.formula} did not converge in {cycles} iterations ({tried})",
            diagnostics={"converged": False, "cycles": cycles, "ladder": list(climbed.notes)},
            qm_calls=1,
        )


def _level(settings: PySCFSettings, functional: Functional, version: str) -> LevelOfTheory:
    from pyscf.dft import libxc

    density_functional = not functional.hartree_fock
    return LevelOfTheory(
        code="pyscf",
        version=version,
        method=functional.name,
        settings={
            "basis": settings.basis.strip().lower(),
            "cartesian": settings.cartesian,
            "ecp": settings.ecp,
            "density_fit": settings.density_fit,
            "dispersion": functional.dispersion,
            "dispersion_version": None if functional.dispersion == "none" else dispersion_version(),
            "conv_tol": settings.conv_tol,
            "reference": "restricted singlets, unrestricted otherwise",
            "functional": functional.components,
            "libxc": str(libxc.__version__) if density_functional else None,
            "grid_level": settings.grid_level if density_functional else None,
            "grid_response": settings.grid_response if density_functional else None,
        },
    )


def _drop_checkpoint(field: Any) -> None:
    """Closes the file that PySCF opens for every field to save its orbitals in; nobody reads it."""
    field.chkfile = None
    checkpoint = field.__dict__.pop("_chkfile", None)
    if checkpoint is not None:
        checkpoint.close()


def _spin(field: Any, structure: Structure) -> dict[str, float]:
    spin = (structure.multiplicity - 1) / 2
    square = float(field.spin_square()[0])
    return {"spin_square": square, "spin_contamination": abs(square - spin * (spin + 1))}


def _gap(field: Any) -> float | None:
    """Lowest empty less highest filled orbital over both spins, eV; None without empty ones."""
    energies, filled = np.asarray(field.mo_energy).ravel(), np.asarray(field.mo_occ).ravel() > 0
    if filled.all() or not filled.any():
        return None
    return float(energies[~filled].min() - energies[filled].max()) * HARTREE


def _contaminated(structure: Structure, limit: float, diagnostics: dict[str, Any]) -> Rejection:
    return Rejection(
        failure_class=FailureClass.PHYSICS,
        code="spin_contamination",
        message=f"<S²> of {structure.formula} with multiplicity {structure.multiplicity} is "
        f"{diagnostics['spin_square']:.3f}, off by {diagnostics['spin_contamination']:.3f}; "
        f"max_spin_contamination is {limit:g}",
        diagnostics=diagnostics,
        qm_calls=1,
    )


def _with_diagnostics(result: Label | Rejection, more: dict[str, Any]) -> Label | Rejection:
    return replace(result, diagnostics={**result.diagnostics, **more})


def _import_pyscf() -> Any:
    try:
        import pyscf
    except ImportError as error:
        raise PluginError(
            f"labeler 'pyscf' needs the package 'pyscf', which cannot be imported ({error}): "
            f"{how_to_install('pyscf')}"
        ) from error
    return pyscf

"""Hartree–Fock, density functionals and correlated methods for molecules, through PySCF."""

from __future__ import annotations

import io
import resource
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Final

import numpy as np

from hpcal.core.arrays import FloatArray
from hpcal.core.deadline import Deadline
from hpcal.core.elements import masses, symbol
from hpcal.core.errors import ConfigurationError, FailureClass, PluginError, TaskFailure
from hpcal.core.label import Audit, Label, LevelOfTheory, Rejection
from hpcal.core.plugins import how_to_install
from hpcal.core.settings import Settings
from hpcal.core.structure import Structure
from hpcal.core.units import BOHR, HARTREE
from hpcal.labeling.audits import FINITE_DIFFERENCE
from hpcal.labeling.basis import BasisSet
from hpcal.labeling.charges import obstacle, partial_charges, quadrupole
from hpcal.labeling.checks import parity
from hpcal.labeling.child import MEGABYTE, SHARE_OF_LIMIT
from hpcal.labeling.correlated import correlate
from hpcal.labeling.failures import check_time
from hpcal.labeling.fitting import LIMIT, unfitted
from hpcal.labeling.functional import resolve
from hpcal.labeling.pyscf_audits import AUDITS, audit
from hpcal.labeling.pyscf_fields import Fields
from hpcal.labeling.pyscf_level import level_of
from hpcal.labeling.pyscf_settings import PySCFSettings
from hpcal.labeling.reference import CLOSED, LOST, MULTIPLICITY_MARGIN, Found
from hpcal.labeling.scf import Climb, climb

UNLIMITED_MB: Final = 4000
"""What PySCF is told of where neither the settings nor the slot say how much there is."""
_NO_ORBITALS: Final = ("Ill geometry", "Failed to assign mo_occ")
"""How PySCF's exceptions begin where atoms or basis functions coincide, or are too few."""


class PySCF:
    """Labels by PySCF: energy, forces, dipole, quadrupole, partial charges.

    A label stands on the lowest state that scouts find (:mod:`hpcal.labeling.reference`): singlets are
    restricted where no unrestricted solution is lower. Dipole and quadrupole are about the centre
    of mass, which matters for ions.

    Raises:
        ConfigurationError: a method or basis set that PySCF does not have, or an ambiguous name.
        PluginError: dispersion without its package.
    """

    Settings: ClassVar[type[Settings]] = PySCFSettings
    isolate: ClassVar[bool] = True
    periodic: ClassVar[bool] = False
    audits: ClassVar[tuple[str, ...]] = (FINITE_DIFFERENCE, *AUDITS)

    def __init__(self, settings: PySCFSettings) -> None:
        library = _import_pyscf()
        self._settings = settings
        self._functional = resolve(settings.method, settings.dispersion)
        if self._functional.correlation and "iao" in settings.charges:
            raise ConfigurationError(
                f"charges by iao are refused with method {settings.method!r}: they hold the orbitals of a "
                "mean field, not a correlated density; use another scheme"
            )
        self._basis = BasisSet(settings.basis, settings.ecp)
        self._level = level_of(settings, self._functional, library.__version__)

    @property
    def level(self) -> LevelOfTheory:
        """The level of theory of its labels."""
        return self._level

    def missing_elements(self, numbers: Sequence[int]) -> tuple[int, ...]:
        """Those of the atomic numbers that the basis set, with its ECPs and its fit, does not cover."""
        return tuple(z for z in numbers if self._problem(z) is not None)

    def label(self, structure: Structure, deadline: Deadline) -> Label | Rejection:
        """A label, or why there is none.

        Codes of rejections: ``parity``, ``element``, ``no_orbitals``, ``scf_not_converged``,
        ``state_check_failed``, ``lower_state``, ``lower_multiplicity``, ``correlation_not_converged``,
        ``response_not_converged``, ``no_core``.

        Raises:
            TaskFailure: class ``resource``, the time is up (looked at in every iteration), or the
                memory cannot do.
        """
        check_time(deadline)
        refused = parity(structure) or self._uncovered(structure)
        if refused is not None:
            return refused
        messages = io.StringIO()
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always")
            try:
                result = _Calculation(self, structure, deadline, messages).run()
            except RuntimeError as error:
                result = self._no_orbitals(structure, error)
        lines = [line.strip() for line in messages.getvalue().splitlines()]
        # The gap is in the diagnostics. PySCF 2.14 warns of every open shell, as it takes the
        # empty alpha orbital from among the beta ones.
        seen = [line for line in lines if line and "HOMO" not in line]
        seen += [str(warning.message) for warning in raised]
        if seen:
            return replace(result, diagnostics={**result.diagnostics, "warnings": sorted(set(seen))})
        return result

    def audit(self, name: str, structure: Structure, label: Label, deadline: Deadline) -> Audit:
        """One of ``other_guess``, ``stability``, ``fod``, ``t1`` on a label of its own.

        Raises:
            TaskFailure: class ``resource``, the time is up.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return audit(name, self.fields(), structure, label, lambda _: check_time(deadline))

    def fields(self) -> Fields:
        """What makes the mean fields of this level, within the memory that there is now."""
        return Fields(
            settings=self._settings,
            functional=self._functional,
            basis=self._basis,
            memory_MB=_memory_MB(self._settings.max_memory_MB),
        )

    def _uncovered(self, structure: Structure) -> Rejection | None:
        problems = [self._problem(z) for z in sorted(set(structure.numbers.tolist()))]
        found = "; ".join(p for p in problems if p is not None)
        found = found or self._no_charges(structure)
        if not found:
            return None
        return Rejection(failure_class=FailureClass.INPUT, code="element", message=found)

    def _problem(self, number: int) -> str | None:
        """Why an element is not covered, or None if it is."""
        settings = self._settings
        problem = self._basis.problem(number)
        if (
            problem is None
            and settings.density_fit
            and unfitted(settings.basis, [number], self._functional.name)
        ):
            return (
                f"no auxiliary basis set fits {settings.basis} of {symbol(number)} within {LIMIT:g} eV; set "
                "density_fit: false, or use a basis set of the def2 family"
            )
        return problem

    def _no_orbitals(self, structure: Structure, error: RuntimeError) -> Rejection:
        """The rejection of a structure that PySCF has no orbitals for; raises what it does not know."""
        if not str(error).startswith(_NO_ORBITALS):
            raise error
        return Rejection(
            failure_class=FailureClass.INPUT,
            code="no_orbitals",
            message=f"{self._settings.basis} has too few independent orbitals for {structure.formula} of "
            f"charge {structure.charge} and multiplicity {structure.multiplicity} ({error}): "
            "atoms that nearly coincide, or a basis set that is too small for this charge and multiplicity",
        )

    def _no_charges(self, structure: Structure) -> str:
        """Why a scheme of charges cannot be had of a structure, or nothing."""
        if not {"iao", "meta-lowdin"} & set(self._settings.charges):
            return ""
        molecule = self.fields().molecule(structure, io.StringIO())
        found = {scheme: obstacle(scheme, molecule) for scheme in self._settings.charges}
        return "; ".join(f"no charges by {scheme}: {why}" for scheme, why in found.items() if why)


class _Calculation:
    """One structure on its way to a label."""

    def __init__(
        self, labeler: PySCF, structure: Structure, deadline: Deadline, messages: io.StringIO
    ) -> None:
        self._level = labeler.level
        self._fields = labeler.fields()
        self._settings = self._fields.settings
        self._structure = structure
        self._deadline = deadline
        self._messages = messages
        self._cycles = 0

    def run(self) -> Label | Rejection:
        """A label, or why there is none."""
        structure, fields = self._structure, self._fields
        molecule = fields.molecule(structure, self._messages)
        _refuse_beyond_memory(molecule, fields)
        found = fields.search(structure, molecule, self._messages, lambda _: check_time(self._deadline))
        refused = self._refused(found)
        if refused is not None:
            return refused
        make = partial(fields.full, molecule, self._watch, unrestricted=found.unrestricted)
        climbed = climb(make, self._settings.ladder, found.density)
        if climbed.rung is None:
            return self._not_converged(climbed)
        diagnostics = self._diagnostics(climbed, found)
        if structure.multiplicity == 1 and found.lowering > LOST and not diagnostics["broken_symmetry"]:
            return self._lost(found)
        check_time(self._deadline)
        if fields.functional.correlation:
            return self._correlated_label(climbed.field, diagnostics)
        return self._mean_field_label(climbed.field, diagnostics)

    def _refused(self, found: Found) -> Rejection | None:
        """What the search says against a label."""
        structure, singlet = self._structure, self._structure.multiplicity == 1
        code = problem = ""
        if found.problem:
            code, problem = (
                "state_check_failed",
                f"the state of {structure.formula} is not known: {found.problem}",
            )
        elif singlet and found.unrestricted and self._settings.reference == "rks":
            code = "lower_state"
            problem = (
                f"{structure.formula} has an unrestricted solution {found.lowering * HARTREE:.3f} eV below "
                "the restricted one; with reference: uks_bs it is labelled by that"
            )
        elif (
            found.triplet_lower is not None
            and found.triplet_lower > MULTIPLICITY_MARGIN
            and self._settings.lower_multiplicity == "quarantine"
        ):
            code = "lower_multiplicity"
            problem = (
                f"{structure.formula} is stated as a singlet, but breaks its symmetry, and its triplet is "
                f"{found.triplet_lower * HARTREE:.3f} eV lower: state multiplicity 3, or set "
                "lower_multiplicity: accept"
            )
        if not code:
            return None
        return Rejection(
            failure_class=FailureClass.PHYSICS, code=code, message=problem, qm_calls=1, quarantine=True
        )

    def _lost(self, found: Found) -> Rejection:
        """The rejection where the expensive field went back to the higher state."""
        return Rejection(
            failure_class=FailureClass.PHYSICS,
            code="state_check_failed",
            message=f"{self._structure.formula} has a state of broken symmetry "
            f"{found.lowering * HARTREE:.3f} eV below the restricted one, and the calculation that began "
            "there ended in the restricted one",
            qm_calls=1,
            quarantine=True,
        )

    def _watch(self, _: Any) -> None:
        self._cycles += 1
        check_time(self._deadline)

    def _diagnostics(self, climbed: Climb, found: Found) -> dict[str, Any]:
        field, structure = climbed.field, self._structure
        spin = (structure.multiplicity - 1) / 2
        square = float(field.spin_square()[0])
        contamination = abs(square - spin * (spin + 1))
        broken = structure.multiplicity == 1 and contamination > CLOSED
        names = {(False, False): "rks", (True, False): "uks", (True, True): "uks_bs"}
        return {
            "converged": True,
            "rung": climbed.rung,
            "cycles": self._cycles,
            "ladder": list(climbed.notes),
            "reference": names[found.unrestricted, broken],
            "broken_symmetry": broken,
            "state_check": self._settings.reference != "rks_unchecked",
            "state_lowering_eV": found.lowering * HARTREE,
            "gap_eV": _gap(field),
            "basis_functions": int(field.mol.nao),
            "dipole_origin": "centre of mass",
            "spin_square": square,
            "spin_contamination": contamination,
        }

    def _mean_field_label(self, field: Any, diagnostics: dict[str, Any]) -> Label:
        forces = None
        if self._settings.forces:
            gradient = field.nuc_grad_method()
            if not self._fields.functional.hartree_fock:
                gradient.grid_response = self._settings.grid_response
            forces = -np.asarray(gradient.kernel()) * HARTREE / BOHR
        return self._label(field, float(field.e_tot), forces, np.asarray(field.make_rdm1()), diagnostics)

    def _correlated_label(self, field: Any, diagnostics: dict[str, Any]) -> Label | Rejection:
        """Energy beyond Hartree–Fock; what needs a response only where PySCF has a right one."""
        settings = self._settings
        found = correlate(
            field,
            self._fields.functional.correlation,
            frozen_core=settings.frozen_core,
            conv_tol=settings.conv_tol,
            max_cycle=settings.max_cycle,
            check=partial(check_time, self._deadline),
        )
        if isinstance(found, Rejection):
            return found
        diagnostics |= {
            "mean_field_energy_eV": float(field.e_tot) * HARTREE,
            "frozen_orbitals": found.frozen,
            "t1": found.t1,
        }
        if not settings.forces or found.respond is None:
            diagnostics["energy_only"] = found.no_response or "forces: false"
            return self._label(field, found.energy, None, None, diagnostics)
        response = found.respond()
        if isinstance(response, Rejection):
            return response
        forces = -response.gradient * HARTREE / BOHR
        return self._label(field, found.energy, forces, response.density, diagnostics)

    def _label(
        self,
        field: Any,
        energy: float,
        forces: FloatArray | None,
        density: FloatArray | None,
        diagnostics: dict[str, Any],
    ) -> Label:
        """The label of an energy (Hartree), with what follows from the density where there is one."""
        label = Label(energy=energy * HARTREE, forces=forces, level=self._level, diagnostics=diagnostics)
        if density is None:
            return label
        correlated = density if self._fields.functional.correlation else None
        charges = partial_charges(field, self._settings.charges, density=correlated)
        main, *others = self._settings.charges
        weights = masses(self._structure.numbers)
        origin: FloatArray = weights @ self._structure.positions / weights.sum()
        dipole = field.dip_moment(dm=density, unit="AU", origin=origin / BOHR, verbose=0)
        return replace(
            label,
            dipole=np.asarray(dipole) * BOHR,
            dipole_origin=origin,
            quadrupole=quadrupole(field.mol, density, origin / BOHR) * BOHR**2,
            charges=charges[main],
            charge_scheme=main,
            other_charges={scheme: charges[scheme] for scheme in others},
        )

    def _not_converged(self, climbed: Climb) -> Rejection:
        tried = "; ".join(climbed.notes)
        return Rejection(
            failure_class=FailureClass.PHYSICS,
            code="scf_not_converged",
            message=f"{self._level} of {self._structure.formula} did not converge in {self._cycles} "
            f"iterations ({tried})",
            diagnostics={"converged": False, "cycles": self._cycles, "ladder": list(climbed.notes)},
            qm_calls=1,
        )


def _gap(field: Any) -> float | None:
    """Lowest empty less highest filled orbital over both spins, eV; None without empty ones."""
    energies, filled = np.asarray(field.mo_energy).ravel(), np.asarray(field.mo_occ).ravel() > 0
    if filled.all() or not filled.any():
        return None
    return float(energies[~filled].min() - energies[filled].max()) * HARTREE


def _memory_MB(stated: float | None) -> float:  # noqa: N802 - units are spelled as they are
    """What PySCF may use: as stated, and no more than most of this process's limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if soft == resource.RLIM_INFINITY:
        return UNLIMITED_MB if stated is None else stated
    most = SHARE_OF_LIMIT * soft / MEGABYTE
    return most if stated is None else min(stated, most)


def _refuse_beyond_memory(molecule: Any, fields: Fields) -> None:
    """Refuses what cannot fit before hours are spent on it.

    Raises:
        TaskFailure: class ``resource``.
    """
    needed = _estimate_MB(molecule, fields.functional.correlation)
    if needed > fields.memory_MB:
        raise TaskFailure(
            FailureClass.RESOURCE,
            f"{molecule.nao} basis functions need about {needed:.0f} MB with method "
            f"{fields.settings.method}, {fields.memory_MB:.0f} MB may be used: give the pool's "
            "workers more memory (mem_per_worker), raise max_memory_MB where the campaign states it, or take "
            "a smaller basis",
        )


def _estimate_MB(molecule: Any, correlation: str) -> float:  # noqa: N802 - units are spelled as they are
    """Matrices of the SCF (both spins, DIIS), and amplitudes of coupled clusters with their history."""
    functions = float(molecule.nao)
    filled = max(molecule.nelec)
    words = 40 * functions**2
    if correlation.startswith("ccsd"):
        # T2 of now, of before and of six DIIS vectors, of three spin blocks where spins differ.
        blocks = 3 if molecule.spin else 1
        words += 8 * blocks * filled**2 * (functions - filled) ** 2
    return 8 * words / MEGABYTE


def _import_pyscf() -> Any:
    try:
        import pyscf
    except ImportError as error:
        raise PluginError(
            f"labeler 'pyscf' needs the package 'pyscf', which cannot be imported ({error}): "
            f"{how_to_install('pyscf')}"
        ) from error
    return pyscf

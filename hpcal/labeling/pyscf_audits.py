"""Audits of labels of PySCF: calculations that a sample of the labels gets, to find wrong states.

* ``other_guess``: the same level from Hückel orbitals, symmetry broken. A lower energy fails the label.
* ``stability``: the SCF's orbital Hessian (Seeger and Pople, J. Chem. Phys. 1977, 10.1063/1.434318),
  external for restricted fields (towards unrestricted ones), internal for unrestricted ones.
* ``fod``: number of electrons by fractional occupation, N_FOD, at the electronic temperature of Bauer,
  Hansen and Grimme (Phys. Chem. Chem. Phys. 2017, 10.1039/c7cp06469b): informs about static correlation.
* ``t1``: T1 of CCSD (Lee and Taylor, Int. J. Quantum Chem. 1989, 10.1002/qua.560360824), above 0.02
  where one determinant is a poor start: informs, at the price of a CCSD calculation.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from hpcal.core.arrays import FloatArray
from hpcal.core.label import Audit, Label, Rejection
from hpcal.core.structure import Structure
from hpcal.core.units import HARTREE
from hpcal.labeling.correlated import correlate
from hpcal.labeling.pyscf_fields import Fields, Watch
from hpcal.labeling.reference import mixed
from hpcal.labeling.scf import Climb, climb, drop_checkpoint

LOWER: Final = 1e-5
"""Hartree by which another solution must be lower to fail a label."""
T1_CONV_TOL: Final = 1e-7
"""Hartree; T1 has three digits then."""
FOD_KELVIN: Final = 5000.0
FOD_KELVIN_PER_EXCHANGE: Final = 20000.0
KELVIN: Final = 3.166811563e-6
"""Hartree."""


def audit(name: str, fields: Fields, structure: Structure, label: Label, watch: Watch) -> Audit:
    """The audit of a name.

    Raises:
        TaskFailure: whatever ``watch`` raises.
    """
    return _AUDITS[name](_Case(fields=fields, structure=structure, label=label, watch=watch))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Case:
    """What is audited, and how its fields are made."""

    fields: Fields
    structure: Structure
    label: Label
    watch: Watch

    def molecule(self) -> Any:
        return self.fields.molecule(self.structure, io.StringIO())

    def climb(self, molecule: Any, guess: FloatArray | None, *, unrestricted: bool) -> Climb:
        make = partial(self.fields.full, molecule, self.watch, unrestricted=unrestricted)
        return climb(make, self.fields.settings.ladder, guess)


def _other_guess(case: _Case) -> Audit:
    molecule = case.molecule()
    unrestricted = molecule.spin > 0 or case.fields.settings.reference == "uks_bs"
    start = case.fields.scout(molecule, case.watch, unrestricted=unrestricted)
    start.max_cycle = 1
    start.kernel(dm0=start.get_init_guess(key="huckel"))
    guess = mixed(start) if unrestricted else start.make_rdm1()
    climbed = case.climb(molecule, guess, unrestricted=unrestricted)
    if climbed.rung is None:
        return Audit(name="other_guess", passed=True, limit=LOWER * HARTREE, qm_calls=1)
    own = _mean_field_energy(case.label)
    lower = own - float(climbed.field.e_tot) * HARTREE
    passed = lower <= LOWER * HARTREE
    problem = (
        f"from another guess the energy of {case.structure.formula} is {lower:.5f} eV lower than the label's"
    )
    return Audit(
        name="other_guess",
        passed=passed,
        value=lower,
        limit=LOWER * HARTREE,
        problem="" if passed else problem,
        qm_calls=1,
    )


def _mean_field_energy(label: Label) -> float:
    """eV; of a correlated level, its Hartree–Fock energy."""
    return float(label.diagnostics.get("mean_field_energy_eV", label.energy))


def _converged(case: _Case) -> Any:
    """The label's own field again, or None."""
    molecule = case.molecule()
    found = case.fields.search(case.structure, molecule, io.StringIO(), case.watch)
    if found.problem:
        return None
    climbed = case.climb(molecule, found.density, unrestricted=found.unrestricted)
    return None if climbed.rung is None else climbed.field


def _stability(case: _Case) -> Audit:
    field = _converged(case)
    if field is None:
        problem = f"the field of {case.structure.formula} did not converge a second time"
        return Audit(name="stability", passed=False, problem=problem, qm_calls=1)
    restricted = np.ndim(field.mo_coeff) == 2
    filled = np.atleast_2d(field.mo_occ) > 0
    if not (filled.any(axis=1) & ~filled.all(axis=1)).any():
        return Audit(name="stability", passed=True, qm_calls=1)  # no orbital to turn into another
    *_, internal, external = field.stability(
        internal=not restricted, external=restricted, return_status=True, verbose=0
    )
    stable = bool(external if restricted else internal)
    kind = "restricted" if restricted else "unrestricted"
    return Audit(
        name="stability",
        passed=stable,
        problem=""
        if stable
        else f"the {kind} solution of {case.structure.formula} is unstable: a lower one exists",
        qm_calls=1,
    )


def _fod(case: _Case) -> Audit:
    from pyscf.scf import addons

    molecule = case.molecule()
    field = case.fields.full(molecule, case.watch, unrestricted=True)
    kelvin = FOD_KELVIN + FOD_KELVIN_PER_EXCHANGE * case.fields.functional.exact_exchange
    # One Fermi level for both spins would pair the electrons of an open shell.
    field = addons.smearing_(field, sigma=kelvin * KELVIN, method="fermi", fix_spin=True)
    field.kernel()
    occupied = np.asarray(field.mo_occ)
    order = np.arange(occupied.shape[1])
    inside = np.stack([order < n for n in molecule.nelec])
    value = float((1 - occupied[inside]).sum() + occupied[~inside].sum()) if field.converged else None
    return Audit(name="fod", passed=True, value=value, qm_calls=1)


def _t1(case: _Case) -> Audit:
    from pyscf import scf

    molecule = case.molecule()
    field = scf.RHF(molecule) if molecule.spin == 0 else scf.UHF(molecule)
    drop_checkpoint(field)
    field.callback = case.watch
    field.kernel()
    value = None
    if field.converged:
        settings = case.fields.settings
        clusters = correlate(
            field,
            "ccsd",
            frozen_core=settings.frozen_core,
            conv_tol=T1_CONV_TOL,
            max_cycle=settings.max_cycle,
            check=partial(case.watch, None),
        )
        value = None if isinstance(clusters, Rejection) else clusters.t1
    return Audit(name="t1", passed=True, value=value, qm_calls=1)


_AUDITS: Final[dict[str, Callable[[_Case], Audit]]] = {
    "other_guess": _other_guess,
    "stability": _stability,
    "fod": _fod,
    "t1": _t1,
}
AUDITS: Final = tuple(_AUDITS)

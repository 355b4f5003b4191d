"""Correlated methods of PySCF on a converged Hartree–Fock field: MP2, CCSD, CCSD(T).

What there is, restricted (R) and unrestricted (U, also of broken symmetry):

=======  =======================  ============================
method   energy                   gradient and relaxed density
=======  =======================  ============================
mp2      R, U, density-fitted     R, U
ccsd     R, U, density-fitted     R, U
ccsd(t)  R, U, density-fitted     R
=======  =======================  ============================

The gradient of unrestricted CCSD(T) in PySCF 2.14 is wrong by up to 4e-4 Hartree/Bohr (finite
differences of NH2 and O2), so that none is offered. On a density-fitted field the amplitudes are
fitted too, with the auxiliary basis set made for correlation (-RI): that of the field errs by 12 meV
in MP2/def2-TZVP of water instead of 2. PySCF's gradient leaves the fit out (4e-5 Hartree/Bohr), so
that none is offered either. What fitting saves is the memory of the integrals: CCSD of small
molecules is slower with it, and off by 1 to 2 meV/atom.

**Core.** The orbitals of ``frozen_core`` are the noble-gas core, without its outermost shell for
elements of the s- and d-block (none of Li and Be, 1s of B to Mg, 2s and 2p from Al to Zn, …), less what
an ECP stands for. They are the lowest orbitals, by energy. Shells such as 2p of Na lie among the
valence orbitals of its neighbours, and which of them is "lowest" would change along a bond.

**Density.** It is relaxed: dipoles from it are derivatives of the energy by a field. Unrelaxed ones
are not, and are not offered.

**T1** (Lee and Taylor, Int. J. Quantum Chem. 1989, 10.1002/qua.560360824), above 0.02 where one
determinant is a poor start: ‖t1‖ / √N of the restricted amplitudes and N correlated electrons. Of
unrestricted ones √((‖t1α‖² + ‖t1β‖²) / 2N), which is the same for a closed shell.

**Far apart.** Coupled-cluster equations have more than one solution. On a field of broken symmetry the
lowest ones come close with distance, and the one found may be another state's: CCSD of H2 in 6-31G** is
full CI within 3e-9 Hartree from 2 to 3.5 Å, and 5e-5 Hartree above it at 4 Å.

**Memory.** PySCF keeps integrals and DIIS vectors in files of its scratch folder where
``molecule.max_memory`` does not hold them. Amplitudes are in memory always.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import comb
from typing import Any, Final

import numpy as np

from hpcal.core.arrays import FloatArray
from hpcal.core.errors import FailureClass
from hpcal.core.label import Rejection

CORE_GAP: Final = 0.5
"""Hartree that must lie between frozen and correlated occupied orbitals."""
NORM_PER_ENERGY: Final = 100.0
"""Convergence of the norm of amplitudes in units of that of the energy."""
FINEST_NORM: Final = 5e-8
"""Below, DIIS stagnates on fields of broken symmetry."""
MULTIPLIERS: Final = 10.0
"""Convergence of the multipliers in units of that of amplitudes. Near broken bonds they stagnate earlier,
and gradients are no different from there on (LiH at 4 Å: 1e-7 Hartree/Bohr)."""

Check = Callable[[], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Response:
    """How a correlated energy answers to moved nuclei and to fields.

    Attributes:
        gradient: (N, 3) Hartree/Bohr.
        density: (nao, nao), of unrestricted methods (2, nao, nao) by spin; relaxed, in atomic orbitals.
    """

    gradient: FloatArray
    density: FloatArray


Respond = Callable[[], Response | Rejection]


@dataclass(frozen=True, kw_only=True, eq=False)
class Correlated:
    """A converged correlated energy on a Hartree–Fock field.

    Attributes:
        energy: total energy, Hartree.
        correlation: its part beyond Hartree–Fock, Hartree.
        frozen: orbitals (of each spin) that are not correlated.
        t1: T1 diagnostic, or None where there are no amplitudes.
        respond: gradient and density, or why they did not converge; None where there are none.
        no_response: why ``respond`` is None; empty otherwise.
    """

    energy: float
    correlation: float
    frozen: int
    t1: float | None
    respond: Respond | None
    no_response: str = ""


def correlate(
    field: Any, method: str, *, frozen_core: bool, conv_tol: float, max_cycle: int, check: Check
) -> Correlated | Rejection:
    """The energy of a correlated method.

    Where no two electrons can be excited (one electron, no empty orbitals), it is Hartree–Fock's.

    Args:
        field: a converged RHF or UHF field of PySCF; it is left as it is.
        method: of ``CORRELATED`` (:mod:`hpcal.labeling.functional`).
        frozen_core: leave core electrons out.
        conv_tol: convergence of the energy, Hartree.
        max_cycle: iterations of amplitudes, and as many of their multipliers.
        check: called before and after each step and in each iteration, raises to stop; (T) is one step.

    Returns:
        A rejection with the code ``correlation_not_converged``, or ``no_core`` where frozen and
        correlated orbitals are not apart.

    Raises:
        KeyError: another method.
    """
    own = _own_copy(field)
    frozen = _frozen_orbitals(own) if frozen_core else 0
    refused = _core_problem(own, frozen)
    if refused is not None:
        return refused
    if _excitations(own, frozen, 2) == 0:
        return Correlated(
            energy=float(own.e_tot),
            correlation=0.0,
            frozen=frozen,
            t1=None,
            respond=lambda: _mean_field_response(own),
        )
    check()
    case = _Case(field=own, method=method, frozen=frozen, conv_tol=conv_tol, max_cycle=max_cycle, check=check)
    return _METHODS[method](case)


def core_orbitals(molecule: Any) -> int:
    """Orbitals that ``frozen_core`` leaves out of a molecule of PySCF, of each spin."""
    from pyscf.data.elements import chemcore

    return int(chemcore(molecule))


def t1_diagnostic(singles: Any) -> float:
    """T1 of single amplitudes: (occupied, empty), or a pair of such by spin."""
    if isinstance(singles, tuple):
        square = sum(float(np.sum(part**2)) for part in singles)
        return float(np.sqrt(square / (2 * sum(len(part) for part in singles))))
    return float(np.sqrt(np.sum(singles**2) / (2 * len(singles))))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Case:
    """A field on which correlation is calculated, and how."""

    field: Any
    method: str
    frozen: int
    conv_tol: float
    max_cycle: int
    check: Check

    @property
    def unrestricted(self) -> bool:
        return _unrestricted(self.field)

    @property
    def triples(self) -> bool:
        """Whether there are perturbative triples to add."""
        return self.method == "ccsd(t)" and _excitations(self.field, self.frozen, 3) > 0

    @property
    def fitted(self) -> bool:
        return getattr(self.field, "with_df", None) is not None

    def fit(self, solver: Any) -> None:
        """Gives a solver the auxiliary basis set of correlation instead of the field's."""
        from pyscf import df

        molecule = self.field.mol
        # Where the field needs another set than PySCF's, so do the amplitudes (see fitting).
        chosen = isinstance(self.field.with_df.auxbasis, dict)
        auxiliary = df.autoaux(molecule) if chosen else df.make_auxbasis(molecule, mp2fit=True)
        solver.with_df = df.DF(molecule, auxbasis=auxiliary)

    def watch(self, _: Any = None) -> None:
        """The check, as PySCF calls back."""
        self.check()

    def result(self, correlation: float, t1: float | None, respond: Respond) -> Correlated:
        """The result with what can be said of its response."""
        reason = self._no_response()
        return Correlated(
            energy=float(self.field.e_tot) + correlation,
            correlation=correlation,
            frozen=self.frozen,
            t1=t1,
            respond=None if reason else respond,
            no_response=reason,
        )

    def _no_response(self) -> str:
        if self.fitted:
            return f"PySCF has no gradient of density-fitted {self.method}; without density_fit there is one"
        if self.unrestricted and self.triples:
            return "the gradient of unrestricted ccsd(t) in PySCF is wrong; ccsd has a right one"
        return ""

    def not_converged(self, what: str, code: str = "correlation_not_converged") -> Rejection:
        """A rejection for what did not converge."""
        return _rejection(
            code,
            f"{what} of {self.method} of {_formula(self.field.mol)} did not converge in {self.max_cycle} "
            "iterations: one determinant may be a poor start, or max_cycle is too small",
        )


def _mp2(case: _Case) -> Correlated | Rejection:
    from pyscf import mp

    solver = mp.MP2(case.field, frozen=case.frozen or None)
    if case.fitted:
        case.fit(solver)
    solver.kernel(with_t2=not case.fitted)
    case.check()
    energy = float(solver.e_corr)
    if not np.isfinite(energy):
        return case.not_converged("the energy")
    return case.result(energy, None, lambda: _respond(case, solver.nuc_grad_method().kernel))


def _coupled_clusters(case: _Case) -> Correlated | Rejection:
    from pyscf import cc

    solver = cc.CCSD(case.field, frozen=case.frozen or None)
    if case.fitted:
        case.fit(solver)
    solver.conv_tol = case.conv_tol
    solver.conv_tol_normt = max(NORM_PER_ENERGY * case.conv_tol, FINEST_NORM)
    solver.max_cycle = case.max_cycle
    solver.callback = case.watch
    try:
        integrals = solver.ao2mo()
        solver.kernel(eris=integrals)
        case.check()
        energy = float(solver.e_corr)
        if solver.converged and case.triples:
            energy += float(solver.ccsd_t(eris=integrals))
            case.check()
    except (np.linalg.LinAlgError, ArithmeticError):
        return case.not_converged("the amplitudes")
    if not (solver.converged and np.isfinite(energy)):
        return case.not_converged("the amplitudes")
    return case.result(
        energy, t1_diagnostic(solver.t1), lambda: _coupled_clusters_respond(case, solver, integrals)
    )


def _coupled_clusters_respond(case: _Case, solver: Any, integrals: Any) -> Response | Rejection:
    from pyscf.cc import ccsd_lambda, ccsd_t_lambda, uccsd_lambda
    from pyscf.grad import ccsd_t as triples

    if case.triples:
        equations, gradient = ccsd_t_lambda, triples.Gradients(solver)
    else:
        equations = uccsd_lambda if case.unrestricted else ccsd_lambda
        gradient = solver.nuc_grad_method()

    def update(*args: Any) -> Any:
        case.check()
        return equations.update_lambda(*args)

    try:
        converged, *multipliers = ccsd_lambda.kernel(
            solver,
            integrals,
            solver.t1,
            solver.t2,
            max_cycle=case.max_cycle,
            tol=MULTIPLIERS * solver.conv_tol_normt,
            verbose=solver.verbose,
            fintermediates=equations.make_intermediates,
            fupdate=update,
        )
    except (np.linalg.LinAlgError, ArithmeticError):
        converged, multipliers = False, []
    if not converged:
        return case.not_converged("the multipliers", "response_not_converged")
    return _respond(case, lambda: gradient.kernel(solver.t1, solver.t2, *multipliers, eris=integrals))


def _respond(case: _Case, kernel: Callable[[], Any]) -> Response | Rejection:
    """Runs a gradient of PySCF and keeps the relaxed density that it makes on its way.

    The density is nowhere handed out. The last potential that a gradient asks for is of the
    correlation's part of it, plus the transpose.
    """
    field = case.field
    plain = type(field).get_veff
    asked: list[Any] = []

    def potential(mol: Any = None, dm: Any = None, *args: Any, **kwargs: Any) -> Any:
        case.check()
        asked[:] = [dm]
        return plain(field, mol, dm, *args, **kwargs)

    field.get_veff = potential
    try:
        gradient = np.asarray(kernel())
    finally:
        del field.get_veff
    density = np.asarray(field.make_rdm1()) + np.asarray(asked[0]) / 2
    if not (np.isfinite(gradient).all() and np.isfinite(density).all()):
        return case.not_converged("the response of the orbitals", "response_not_converged")
    return Response(gradient=gradient, density=density)


def _mean_field_response(field: Any) -> Response:
    return Response(
        gradient=np.asarray(field.nuc_grad_method().kernel()), density=np.asarray(field.make_rdm1())
    )


_METHODS: Final[dict[str, Callable[[_Case], Correlated | Rejection]]] = {
    "mp2": _mp2,
    "ccsd": _coupled_clusters,
    "ccsd(t)": _coupled_clusters,
}


def _own_copy(field: Any) -> Any:
    """A copy that may be watched, without the second-order solver that may be around it."""
    own = field.remove_soscf().copy()
    own.callback = None
    return own


def _unrestricted(field: Any) -> bool:
    return bool(np.ndim(field.mo_occ) == 2)


def _spins(field: Any) -> list[tuple[int, FloatArray]]:
    """Occupied orbitals and orbital energies of each spin."""
    occupations = np.atleast_2d(field.mo_occ)
    energies = np.atleast_2d(field.mo_energy)
    spins = [(int(np.count_nonzero(n)), e) for n, e in zip(occupations, energies, strict=True)]
    return spins if len(spins) == 2 else spins * 2


def _frozen_orbitals(field: Any) -> int:
    """Core orbitals, as far as both spins occupy them."""
    return min(core_orbitals(field.mol), *(occupied for occupied, _ in _spins(field)))


def _core_problem(field: Any, frozen: int) -> Rejection | None:
    for occupied, energies in _spins(field):
        if not 0 < frozen < occupied:
            continue
        gap = float(energies[frozen] - energies[frozen - 1])
        if gap < CORE_GAP:
            return _rejection(
                "no_core",
                f"the core orbitals of {_formula(field.mol)} are {gap:.2f} Hartree below its valence "
                f"orbitals, less than {CORE_GAP}: what is frozen would change along a path; set frozen_core: "
                "false, with a basis set that has functions for the core",
            )
    return None


def _excitations(field: Any, frozen: int, order: int) -> int:
    """Excitations of so many electrons that there are, spins kept."""
    alpha, beta = [(n - frozen, len(energies) - n) for n, energies in _spins(field)]
    return sum(
        comb(alpha[0], k) * comb(alpha[1], k) * comb(beta[0], order - k) * comb(beta[1], order - k)
        for k in range(order + 1)
    )


def _rejection(code: str, message: str) -> Rejection:
    return Rejection(failure_class=FailureClass.PHYSICS, code=code, message=message, qm_calls=1)


def _formula(molecule: Any) -> str:
    from pyscf.data.elements import charge

    from hpcal.core.elements import formula

    return formula(charge(molecule.atom_symbol(atom)) for atom in range(molecule.natm))

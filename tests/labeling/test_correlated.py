"""MP2, CCSD and CCSD(T) against printed energies of other codes and finite differences."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pyscf import cc, fci, gto, scf
from pyscf.cc import ccsd_lambda, uccsd_t_lambda
from pyscf.grad import uccsd_t

from hpcal.core.deadline import Deadline
from hpcal.core.elements import atomic_number
from hpcal.core.label import Label, Rejection
from hpcal.core.structure import Structure
from hpcal.core.units import BOHR, HARTREE
from hpcal.labeling.checks import CheckedLabeler, ChecksSettings
from hpcal.labeling.correlated import (
    Correlated,
    Response,
    core_orbitals,
    correlate,
    t1_diagnostic,
)
from hpcal.labeling.functional import CORRELATED
from hpcal.labeling.pyscf import PySCF
from hpcal.labeling.pyscf_settings import PySCFSettings

CRAWFORD_WATER = """O 0 -0.143225816552 0
H 1.638036840407 1.136548822547 0
H -1.638036840407 1.136548822547 0"""
"""Bohr; the geometry of https://github.com/CrawfordGroup/ProgrammingProjects."""

REFERENCE = {
    # Name: 2S, charge, basis set, atoms in Bohr, then total energies in Hartree of Hartree-Fock and, all
    # electrons correlated and with a frozen core, of MP2, CCSD and CCSD(T): Psi4 1.3.2, no density
    # fitting, e_convergence 1e-10, r_convergence 1e-8. Its basis sets named 6-31G* are Cartesian. Psi4
    # freezes 1s of Li, so that LiH is compared with all electrons only.
    "water": (
        (0, 0, "cc-pvdz", "O 0 0 0.2217; H 0 1.4309 -0.8867; H 0 -1.4309 -0.8867"),
        -76.0267709334,
        (-76.2307765471, -76.2401003845, -76.2431592427),
        (-76.2284390144, -76.2380056667, -76.2410423080),
    ),
    "ammonia": (
        (
            0,
            0,
            "cc-pvdz",
            "N 0 0 0.15; H 1.77 0 -0.55; H -0.885 1.5329 -0.55; H -0.885 -1.5329 -0.55",
        ),
        -56.1956175548,
        (-56.3841837087, -56.4001276926, -56.4039045985),
        (-56.3815235264, -56.3977052004, -56.4014516399),
    ),
    "carbon monoxide": (
        (0, 0, "cc-pvdz", "C 0 0 0; O 0 0 2.132"),
        -112.7492922628,
        (-113.0401066002, -113.0473596071, -113.0580727748),
        (-113.0360276858, -113.0437297078, -113.0543796208),
    ),
    "nitrogen": (
        (0, 0, "cc-pvdz", "N 0 0 0; N 0 0 2.074"),
        -108.9541534669,
        (-109.2646949466, -109.2671942719, -109.2791248239),
        (-109.2603943728, -109.2633753540, -109.2752304186),
    ),
    "hydrogen fluoride": (
        (0, 0, "6-31g*", "H 0 0 0; F 0 0 1.7328"),
        -100.0028632573,
        (-100.1838461019, -100.1880380864, -100.1897468041),
        (-100.1818535705, -100.1862736712, -100.1879627442),
    ),
    "silane": (
        (
            0,
            0,
            "6-31g*",
            "Si 0 0 0; H 1.615 1.615 1.615; H -1.615 -1.615 1.615; H -1.615 1.615 -1.615; "
            "H 1.615 -1.615 -1.615",
        ),
        -291.2250963154,
        (-291.3168395235, -291.3416493061, -291.3438282710),
        (-291.3071102994, -291.3321707864, -291.3341045366),
    ),
    "lithium hydride": (
        (0, 0, "6-31g*", "Li 0 0 0; H 0 0 3.015"),
        -7.9806673493,
        (-7.9962754724, -8.0031126946, -8.0031262823),
        (),
    ),
    "hydroxyl": (
        (1, 0, "cc-pvdz", "O 0 0 0; H 0 0 1.834"),
        -75.3938264284,
        (-75.5448517565, -75.5593713060, -75.5611242329),
        (-75.5428293964, -75.5575493612, -75.5592809419),
    ),
    "amidogen": (
        (1, 0, "cc-pvdz", "N 0 0 0.15; H 0 1.52 -1.05; H 0 -1.52 -1.05"),
        -55.5670751711,
        (-55.7127644559, -55.7319674730, -55.7346121799),
        (-55.7105434405, -55.7299466426, -55.7325632883),
    ),
    "oxygen": (
        (2, 0, "cc-pvdz", "O 0 0 0; O 0 0 2.282"),
        -149.6277429699,
        (-149.9764386689, -149.9795562411, -149.9893240072),
        (-149.9724778818, -149.9760204802, -149.9857319077),
    ),
    "cyanide": (
        (0, -1, "6-31g*", "C 0 0 0; N 0 0 2.22"),
        -92.2852905375,
        (-92.5694815587, -92.5760852900, -92.5878293946),
        (-92.5617513584, -92.5687194509, -92.5803474778),
    ),
}

BENT_WATER = "O 0 0.02 0.22; H 0.05 1.43 -0.88; H 0 -1.5 -0.85"
LITHIUM_HYDRIDE = "Li 0 0 0; H 0 0 3.2"
CARBON_MONOXIDE = "C 0 0 0; O 0 0 2.25"
SILYLENE = "Si 0 0 0; H 0 2.1 1.9; H 0.1 -2.2 1.9"
AMIDOGEN = "N 0 0 0; H 0 1.5 1.1; H 0.1 -1.6 1.1"
STRETCHED_HYDROGEN = "H 0 0 0; H 0 0 3.8"


def molecule(atoms: str, basis: str = "6-31g", spin: int = 0, charge: int = 0, **kwargs: Any) -> gto.Mole:
    return gto.M(atom=atoms, unit="Bohr", basis=basis, spin=spin, charge=charge, verbose=0, **kwargs)


def hartree_fock(
    mol: gto.Mole,
    *,
    unrestricted: bool | None = None,
    fitted: bool = False,
    guess: np.ndarray | None = None,
    electric_field: np.ndarray | None = None,
) -> scf.hf.SCF:
    field = scf.UHF(mol) if unrestricted or (unrestricted is None and mol.spin) else scf.RHF(mol)
    field.chkfile = None
    field._chkfile.close()
    if fitted:
        field = field.density_fit()
    if electric_field is not None:
        core = field.get_hcore() + np.einsum("x,xij->ij", electric_field, mol.intor("int1e_r"))
        field.get_hcore = lambda *args: core
    field.conv_tol = 1e-12
    field.conv_tol_grad = 1e-7
    field.kernel(dm0=guess)
    assert field.converged
    return field


def broken(mol: gto.Mole) -> np.ndarray:
    """Density of HOMO and LUMO mixed in each spin, of two electrons."""
    coefficients = hartree_fock(mol).mo_coeff
    ahead = (coefficients[:, 0] + coefficients[:, 1]) / np.sqrt(2)
    behind = (coefficients[:, 0] - coefficients[:, 1]) / np.sqrt(2)
    return np.array([np.outer(ahead, ahead), np.outer(behind, behind)])


def calm() -> None:
    """Never stops a calculation."""


def outcome(field: scf.hf.SCF, method: str, **settings: Any) -> Correlated | Rejection:
    values = {"frozen_core": True, "conv_tol": 1e-10, "max_cycle": 100, "check": calm}
    return correlate(field, method, **{**values, **settings})


def correlated(field: scf.hf.SCF, method: str, **settings: Any) -> Correlated:
    result = outcome(field, method, **settings)
    assert isinstance(result, Correlated), result
    return result


def response(result: Correlated) -> Response:
    assert result.respond is not None, result.no_response
    answer = result.respond()
    assert isinstance(answer, Response), answer
    return answer


@pytest.mark.parametrize(
    ("method", "correlation"),
    [
        ("mp2", -0.049149636120),
        ("ccsd", -0.070680088376),
        ("ccsd(t)", -0.070680088376 - 0.000099877272),
    ],
)
def test_water_of_the_programming_projects(method: str, correlation: float) -> None:
    field = hartree_fock(molecule(CRAWFORD_WATER, "sto-3g"))
    assert field.e_tot == pytest.approx(-74.942079928192, abs=1e-9)
    result = correlated(field, method, frozen_core=False)
    assert result.frozen == 0
    assert result.correlation == pytest.approx(correlation, abs=1e-8)
    assert result.energy == pytest.approx(field.e_tot + correlation, abs=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCE)
def test_energies_of_another_code(name: str) -> None:
    (spin, charge, basis, atoms), mean, full, frozen = REFERENCE[name]
    field = hartree_fock(molecule(atoms, basis, spin, charge, cart=basis == "6-31g*"))
    assert field.e_tot == pytest.approx(mean, abs=1e-8)
    for frozen_core, expected in [(False, full), (True, frozen)]:
        if expected:
            found = [correlated(field, m, frozen_core=frozen_core).energy for m in CORRELATED]
            assert found == pytest.approx(expected, abs=1e-8)


def structure_of(name: str) -> Structure:
    (spin, charge, _, atoms), *_ = REFERENCE[name]
    rows = [words.split() for words in atoms.split(";")]
    return Structure(
        numbers=[atomic_number(row[0]) for row in rows],
        positions=np.array([[float(x) for x in row[1:]] for row in rows]) * BOHR,
        charge=charge,
        multiplicity=spin + 1,
    )


def labelled(structure: Structure, method: str, basis: str, **settings: Any) -> Label:
    source = PySCF(PySCFSettings(method=method, basis=basis, **settings))
    result = CheckedLabeler(source, ChecksSettings(audit_share=0.0)).label(structure, Deadline())
    assert isinstance(result, Label), result
    return result


@pytest.mark.slow
@pytest.mark.parametrize("name", ["water", "carbon monoxide", "nitrogen", "cyanide", "hydroxyl", "oxygen"])
def test_labels_have_the_energies_of_another_code(name: str) -> None:
    """To 1e-6 Hartree, as conv_tol of a label is 1e-9 and correlation is not stationary."""
    (_, _, basis, _), mean, _, frozen = REFERENCE[name]
    structure, common = structure_of(name), {"cartesian": basis == "6-31g*", "forces": False}
    energies = [labelled(structure, method, basis, **common).energy for method in ("hf", *CORRELATED)]
    assert np.array(energies) / HARTREE == pytest.approx((mean, *frozen), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", CORRELATED)
def test_forces_of_labels_are_slopes_of_their_energies(method: str) -> None:
    structure, step, energies = structure_of("water"), 0.01, []
    found = labelled(structure, method, "6-31g").forces
    for count in (2, 1, -1, -2):
        moved = structure.positions.copy()
        moved[1, 1] += count * step
        energies.append(labelled(structure.with_positions(moved), method, "6-31g", forces=False).energy)
    slope = np.dot([-1, 8, -8, 1], energies) / (12 * step)
    assert abs(slope) > 0.1
    assert found[1, 1] == pytest.approx(-slope, abs=1e-4)


def assert_gradient(
    atoms: str, method: str, *, frozen_core: bool, within: float, start: Callable[..., Any] | None = None
) -> None:
    """A component of the gradient of the first atom against four points of the energy."""
    mol = molecule(atoms, spin=1 if atoms == AMIDOGEN else 0)
    guess = None if start is None else start(mol)
    field = hartree_fock(mol, unrestricted=start is not None or mol.spin > 0, guess=guess)
    found = response(correlated(field, method, frozen_core=frozen_core)).gradient
    step, energies = 1e-3, []
    for count in (2, 1, -1, -2):
        positions = mol.atom_coords()
        positions[0, 2] += count * step
        moved = hartree_fock(
            molecule(
                "; ".join(f"{mol.atom_symbol(i)} {x} {y} {z}" for i, (x, y, z) in enumerate(positions)),
                spin=mol.spin,
            ),
            unrestricted=np.ndim(field.mo_occ) == 2,
            guess=field.make_rdm1(),
        )
        energies.append(correlated(moved, method, frozen_core=frozen_core).energy)
    numeric = np.dot([-1, 8, -8, 1], energies) / (12 * step)
    assert abs(numeric) > 1e-3
    assert found[0, 2] == pytest.approx(numeric, abs=within)
    assert np.abs(found.sum(axis=0)).max() < 1e-10


def test_gradient_of_mp2() -> None:
    assert_gradient(BENT_WATER, "mp2", frozen_core=True, within=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("frozen_core", [False, True])
@pytest.mark.parametrize("method", CORRELATED)
@pytest.mark.parametrize("atoms", [BENT_WATER, LITHIUM_HYDRIDE, CARBON_MONOXIDE, SILYLENE])
def test_gradients_of_restricted_methods(atoms: str, method: str, frozen_core: bool) -> None:
    assert_gradient(atoms, method, frozen_core=frozen_core, within=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("frozen_core", [False, True])
@pytest.mark.parametrize("method", ["mp2", "ccsd"])
def test_gradients_of_unrestricted_methods(method: str, frozen_core: bool) -> None:
    assert_gradient(AMIDOGEN, method, frozen_core=frozen_core, within=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", CORRELATED)
def test_gradients_on_a_field_of_broken_symmetry(method: str) -> None:
    assert_gradient(STRETCHED_HYDROGEN, method, frozen_core=True, within=1e-6, start=broken)


@pytest.mark.slow
@pytest.mark.parametrize("distance", [1.4, 2.8, 3.8, 5.6])
def test_two_electrons_are_full_ci(distance: float) -> None:
    mol = molecule(f"H 0 0 0; H 0 0 {distance}", "6-31g**")
    exact = fci.FCI(hartree_fock(mol)).kernel()[0]
    field = hartree_fock(mol, unrestricted=True, guess=broken(mol))
    for method in ("ccsd", "ccsd(t)"):
        assert correlated(field, method, conv_tol=1e-9).energy == pytest.approx(exact, abs=2e-8)


@pytest.mark.slow
def test_gradient_of_unrestricted_triples_is_wrong_in_pyscf_and_not_offered() -> None:
    def energy(field: scf.hf.SCF) -> tuple[Any, Any, float]:
        solver = cc.UCCSD(field)
        solver.conv_tol, solver.conv_tol_normt, solver.verbose = 1e-11, 1e-8, 0
        integrals = solver.ao2mo()
        solver.kernel(eris=integrals)
        return solver, integrals, solver.e_tot + solver.ccsd_t(eris=integrals)

    field = hartree_fock(molecule(AMIDOGEN, spin=1))
    solver, integrals, total = energy(field)
    converged, *multipliers = uccsd_t_lambda.kernel(
        solver, integrals, solver.t1, solver.t2, tol=1e-8, max_cycle=100, verbose=0
    )
    assert converged
    theirs = uccsd_t.Gradients(solver).kernel(solver.t1, solver.t2, *multipliers, eris=integrals)
    step = 2e-3
    ahead, behind = (
        energy(hartree_fock(molecule(AMIDOGEN.replace("N 0 0 0", f"N 0 0 {z}"), spin=1)))[2]
        for z in (step, -step)
    )
    assert abs(theirs[0, 2] - (ahead - behind) / (2 * step)) > 1e-4

    ours = correlated(field, "ccsd(t)", frozen_core=False)
    assert ours.energy == pytest.approx(total, abs=1e-8)
    assert ours.respond is None
    assert "unrestricted" in ours.no_response


def total(density: np.ndarray) -> np.ndarray:
    """Density of both spins."""
    return density if density.ndim == 2 else density.sum(axis=0)


@pytest.mark.parametrize(
    ("method", "atoms", "spin", "basis"),
    [
        ("mp2", CARBON_MONOXIDE, 0, "sto-3g"),
        pytest.param("ccsd", CARBON_MONOXIDE, 0, "6-31g", marks=pytest.mark.slow),
        pytest.param("ccsd(t)", CARBON_MONOXIDE, 0, "6-31g", marks=pytest.mark.slow),
        pytest.param("mp2", AMIDOGEN, 1, "6-31g", marks=pytest.mark.slow),
        pytest.param("ccsd", AMIDOGEN, 1, "6-31g", marks=pytest.mark.slow),
    ],
)
def test_density_gives_the_answer_to_an_electric_field(
    method: str, atoms: str, spin: int, basis: str
) -> None:
    mol = molecule(atoms, basis, spin)
    field = hartree_fock(mol)
    density = total(response(correlated(field, method)).density)
    assert np.einsum("ij,ji->", density, field.get_ovlp()) == pytest.approx(mol.nelectron, abs=1e-8)
    found = -np.einsum("ij,ji->", density, mol.intor("int1e_r")[2])
    strength = 5e-4
    ahead, behind = (
        correlated(hartree_fock(mol, electric_field=sign * np.array([0, 0, strength])), method).energy
        for sign in (1, -1)
    )
    numeric = (behind - ahead) / (2 * strength)
    assert found == pytest.approx(numeric, abs=5e-6)
    mean = -np.einsum("ij,ji->", total(field.make_rdm1()), mol.intor("int1e_r")[2])
    assert abs(mean - numeric) > 1e-2


@pytest.mark.parametrize("method", CORRELATED)
@pytest.mark.parametrize(
    ("atoms", "basis", "spin"), [("H 0 0 0", "6-31g", 1), ("He 0 0 0", "sto-3g", 0), ("F 0 0 0", "sto-3g", 1)]
)
def test_nothing_to_correlate(method: str, atoms: str, basis: str, spin: int) -> None:
    field = hartree_fock(molecule(atoms, basis, spin))
    result = correlated(field, method, max_cycle=1)
    assert result.correlation == 0.0
    assert result.energy == field.e_tot
    assert result.t1 is None
    answer = response(result)
    assert np.abs(answer.gradient).max() < 1e-10
    assert answer.density == pytest.approx(field.make_rdm1())


@pytest.mark.slow
@pytest.mark.parametrize("method", CORRELATED)
def test_electrons_of_one_spin_only(method: str) -> None:
    result = correlated(hartree_fock(molecule("H 0 0 0; H 0 0 1.9", spin=2)), method)
    assert -1e-2 < result.correlation < -1e-5
    assert response(result).gradient[0, 2] == pytest.approx(-response(result).gradient[1, 2], abs=1e-10)


@pytest.mark.parametrize("method", ["ccsd", "ccsd(t)"])
def test_amplitudes_that_do_not_converge_give_no_energy(method: str) -> None:
    field = hartree_fock(molecule(CRAWFORD_WATER, "sto-3g"))
    result = outcome(field, method, max_cycle=4)
    assert isinstance(result, Rejection)
    assert result.code == "correlation_not_converged"
    assert "H2O" in result.message
    assert "4 iterations" in result.message


@pytest.mark.slow
def test_multipliers_that_do_not_converge_give_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    result = correlated(hartree_fock(molecule(CRAWFORD_WATER, "sto-3g")), "ccsd", max_cycle=30)
    plain = ccsd_lambda.update_lambda
    rng = np.random.default_rng(3)

    def noisy(*args: Any) -> Any:
        singles, doubles = plain(*args)
        return singles + 1e-3 * rng.normal(size=singles.shape), doubles

    monkeypatch.setattr(ccsd_lambda, "update_lambda", noisy)
    assert result.respond is not None
    answer = result.respond()
    assert isinstance(answer, Rejection)
    assert answer.code == "response_not_converged"


class Clock:
    """Stops at a count of looks."""

    def __init__(self, looks: int) -> None:
        self.left = looks

    def __call__(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise TimeoutError


def test_each_iteration_looks_at_the_clock() -> None:
    field = hartree_fock(molecule(CRAWFORD_WATER, "sto-3g"))
    plenty = Clock(10_000)
    result = correlated(field, "ccsd(t)", check=plenty)
    spent = 10_000 - plenty.left
    assert spent > 8
    with pytest.raises(TimeoutError):
        outcome(field, "ccsd(t)", check=Clock(spent // 2))
    assert result.respond is not None
    plenty.left = 10_000
    assert isinstance(result.respond(), Response)
    spent = 10_000 - plenty.left
    assert spent > 8
    for looks in (1, spent - 1):
        plenty.left = looks
        with pytest.raises(TimeoutError):
            result.respond()


@pytest.mark.parametrize("method", ["mp2", pytest.param("ccsd(t)", marks=pytest.mark.slow)])
def test_field_is_left_as_it_was_and_nothing_is_said(method: str) -> None:
    mol = molecule(CRAWFORD_WATER, "sto-3g")
    field = hartree_fock(mol)
    mol.stdout, mol.verbose = io.StringIO(), 2
    before = dict(field.__dict__)
    response(correlated(field, method))
    assert field.__dict__ == before
    assert mol.stdout.getvalue() == ""


@pytest.mark.slow
def test_field_of_the_second_order_solver() -> None:
    mol = molecule(CRAWFORD_WATER, "sto-3g")
    plain = response(correlated(hartree_fock(mol), "mp2"))
    newton = scf.RHF(mol).newton()
    newton.chkfile = None
    newton._chkfile.close()
    newton.conv_tol = 1e-12
    newton.kernel()
    second = response(correlated(newton, "mp2"))
    assert second.gradient == pytest.approx(plain.gradient, abs=1e-6)
    assert second.density == pytest.approx(plain.density, abs=1e-5)


@pytest.mark.parametrize("spin", [0, 1])
@pytest.mark.parametrize("method", ["mp2", pytest.param("ccsd(t)", marks=pytest.mark.slow)])
def test_density_fitting_gives_energies_only(method: str, spin: int) -> None:
    atoms = AMIDOGEN if spin else BENT_WATER
    mol = molecule(atoms, "def2-svp", spin)
    exact = correlated(hartree_fock(mol), method)
    fitted = correlated(hartree_fock(mol, fitted=True), method)
    assert 1e-5 < abs(fitted.correlation - exact.correlation) < 3e-4
    assert fitted.respond is None
    assert "density-fitted" in fitted.no_response


@pytest.mark.slow
def test_fit_is_made_for_correlation() -> None:
    mol = molecule(BENT_WATER, "def2-tzvp")
    exact = correlated(hartree_fock(mol), "mp2")
    fitted = correlated(hartree_fock(mol, fitted=True), "mp2")
    # The auxiliary set of the field is off by 4.4e-4 Hartree.
    assert abs(fitted.correlation - exact.correlation) < 1.5e-4


@pytest.mark.parametrize(
    ("atoms", "basis", "orbitals"),
    [
        (BENT_WATER, "sto-3g", 1),
        (LITHIUM_HYDRIDE, "sto-3g", 0),
        ("Na 0 0 0; F 0 0 3.6", "sto-3g", 2),
        ("K 0 0 0; F 0 0 4.1", "sto-3g", 6),
        ("Al 0 0 0; Cl 0 0 4.0", "sto-3g", 10),
        ("Zn 0 0 0", "sto-3g", 5),
        ("I 0 0 0; H 0 0 3.0", "def2-svp", 4),
        ("Xe 0 0 0", "def2-svp", 4),
    ],
)
def test_core_orbitals(atoms: str, basis: str, orbitals: int) -> None:
    ecp = {symbol: "def2-svp" for symbol in ("I", "Xe") if symbol in atoms}
    assert core_orbitals(molecule(atoms, basis, ecp=ecp)) == orbitals


def test_core_is_refused_where_it_is_not_apart() -> None:
    field = hartree_fock(molecule(BENT_WATER, "sto-3g"))
    field.mo_energy = field.mo_energy.copy()
    field.mo_energy[0] = field.mo_energy[1] - 0.3
    refused = outcome(field, "mp2")
    assert isinstance(refused, Rejection)
    assert refused.code == "no_core"
    assert "0.30 Hartree" in refused.message
    assert isinstance(outcome(field, "mp2", frozen_core=False), Correlated)


def test_core_is_not_more_than_what_is_occupied() -> None:
    result = correlated(hartree_fock(molecule("B 0 0 0", "6-31g", charge=3)), "mp2")
    assert result.frozen == 1
    assert result.correlation == 0.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"), [("water", 0.005889), ("carbon monoxide", 0.019285), ("nitrogen", 0.011704)]
)
def test_t1_of_another_code(name: str, value: float) -> None:
    """Printed by Psi4 1.3.2 in the calculations of the table, with a frozen core."""
    (spin, charge, basis, atoms), *_ = REFERENCE[name]
    result = correlated(hartree_fock(molecule(atoms, basis, spin, charge)), "ccsd")
    assert result.t1 == pytest.approx(value, abs=2e-6)


@pytest.mark.slow
def test_t1_of_dicarbon_tells_that_one_determinant_is_a_poor_start() -> None:
    """Energy and T1 of Psi4 1.3.2, with a frozen core."""
    result = correlated(hartree_fock(molecule("C 0 0 0; C 0 0 2.348", "cc-pvdz")), "ccsd")
    assert result.energy == pytest.approx(-75.699130021773, abs=1e-8)
    assert result.t1 == pytest.approx(0.037885, abs=2e-6)


@pytest.mark.slow
def test_t1_of_a_closed_shell_does_not_depend_on_the_reference() -> None:
    mol = molecule(CRAWFORD_WATER, "sto-3g")
    restricted = correlated(hartree_fock(mol), "ccsd")
    unrestricted = correlated(hartree_fock(mol, unrestricted=True), "ccsd")
    assert restricted.t1 == pytest.approx(unrestricted.t1, abs=1e-7)
    assert 0 < restricted.t1 < 0.02
    singles = np.full((4, 3), 0.1)
    assert t1_diagnostic(singles) == pytest.approx(0.1 * np.sqrt(12 / 8))

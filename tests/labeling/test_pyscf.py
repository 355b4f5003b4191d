"""PySCF labels against PySCF itself, finite differences, and the states that must not become labels."""

from __future__ import annotations

import importlib.util
import resource
import time

import numpy as np
import pytest
from pyscf import dft, gto, scf
from pyscf.lib import param

from hpcal.core.deadline import Deadline
from hpcal.core.errors import ConfigurationError, FailureClass, PluginError, TaskFailure
from hpcal.core.label import Label, Rejection
from hpcal.core.structure import Structure
from hpcal.core.units import BOHR, HARTREE
from hpcal.labeling.checks import CheckedLabeler, ChecksSettings
from hpcal.labeling.pyscf import PySCF
from hpcal.labeling.pyscf_settings import PySCFSettings

WATER = Structure(numbers=[8, 1, 1], positions=[[0, 0, 0.1], [0, 0.02, 1.07], [0.94, 0, -0.2]])
HYDROXYL = Structure(numbers=[8, 1], positions=[[0, 0, 0], [0, 0, 0.98]], multiplicity=2)
HYDROXIDE = Structure(numbers=[8, 1], positions=[[0, 0, 0], [0, 0, 0.98]], charge=-1)


def labeler(method: str = "hf", basis: str = "sto-3g", **settings: object) -> PySCF:
    return PySCF(PySCFSettings(method=method, basis=basis, **settings))


def label(structure: Structure, *args: str, **settings: object) -> Label:
    result = labeler(*args, **settings).label(structure, Deadline())
    assert isinstance(result, Label), result
    return result


def direct_molecule(structure: Structure, basis: str, **kwargs: object) -> gto.Mole:
    return gto.M(
        atom=list(zip(structure.numbers.tolist(), (structure.positions / BOHR).tolist(), strict=True)),
        unit="Bohr",
        basis=basis,
        charge=structure.charge,
        spin=structure.multiplicity - 1,
        verbose=0,
        **kwargs,
    )


def quiet(field: scf.hf.SCF) -> scf.hf.SCF:
    """Without the file of orbitals that PySCF opens for every field and never closes."""
    field.chkfile = None
    field._chkfile.close()
    return field


def assert_same(ours: Label, field: scf.hf.SCF) -> None:
    assert field.converged
    assert ours.energy == pytest.approx(field.e_tot * HARTREE, abs=1e-7)
    gradient = field.nuc_grad_method().kernel()
    assert ours.forces == pytest.approx(-gradient * HARTREE / BOHR, abs=2e-5)
    origin = ours.dipole_origin / BOHR
    dipole = field.dip_moment(unit="AU", origin=origin, verbose=0) * BOHR
    assert ours.dipole == pytest.approx(dipole, abs=1e-5)
    assert ours.charges == pytest.approx(field.mulliken_pop(verbose=0)[1], abs=1e-5)


def test_hartree_fock_of_water() -> None:
    ours = label(WATER)
    field = quiet(scf.RHF(direct_molecule(WATER, "sto-3g"))).run(conv_tol=1e-9)
    assert_same(ours, field)
    occupied = field.mo_energy[field.mo_occ > 0].max()
    empty = field.mo_energy[field.mo_occ == 0].min()
    assert ours.diagnostics["gap_eV"] == pytest.approx((empty - occupied) * HARTREE, abs=1e-4)
    assert ours.diagnostics["rung"] == "diis"
    assert ours.diagnostics["reference"] == "rks"
    assert ours.charge_scheme == "mulliken"


def test_density_functional_with_density_fitting() -> None:
    ours = label(WATER, "wb97x", "6-31g*", density_fit=True, grid_level=1, conv_tol=1e-11)
    field = quiet(dft.RKS(direct_molecule(WATER, "6-31g*"), xc="wb97x")).density_fit()
    field.grids.level = 1
    assert_same(ours, field.run(conv_tol=1e-11))
    exact = label(WATER, "wb97x", "6-31g*", grid_level=1)
    assert 1e-5 < abs(exact.energy - ours.energy) < 0.01


def test_open_shell_is_unrestricted() -> None:
    ours = label(HYDROXYL, "pbe0", "6-31g", grid_level=1)
    field = quiet(dft.UKS(direct_molecule(HYDROXYL, "6-31g"), xc="pbe0"))
    field.grids.level = 1
    assert_same(ours, field.run(conv_tol=1e-9))
    assert ours.diagnostics["reference"] == "uks"
    assert ours.diagnostics["spin_square"] == pytest.approx(0.75, abs=0.02)


def test_forces_are_the_negative_gradient() -> None:
    ours = label(WATER)
    step = 1e-3
    for atom, axis in [(0, 2), (2, 0)]:
        shift = np.zeros((3, 3))
        shift[atom, axis] = step
        ahead = label(WATER.with_positions(WATER.positions + shift)).energy
        behind = label(WATER.with_positions(WATER.positions - shift)).energy
        assert ours.forces[atom, axis] == pytest.approx((behind - ahead) / (2 * step), abs=1e-4)


def test_grid_response_makes_forces_add_up_to_zero() -> None:
    plain = label(WATER, "pbe", "sto-3g", grid_level=0)
    response = label(WATER, "pbe", "sto-3g", grid_level=0, grid_response=True)
    assert np.linalg.norm(plain.forces.sum(axis=0)) > 1e-3
    assert np.linalg.norm(response.forces.sum(axis=0)) < 1e-8


def test_dipole_of_an_ion_does_not_depend_on_where_it_is() -> None:
    moved = HYDROXIDE.with_positions(HYDROXIDE.positions + np.array([4.0, 5.0, -6.0]))
    here, there = label(HYDROXIDE, "hf", "6-31g"), label(moved, "hf", "6-31g")
    assert there.dipole == pytest.approx(here.dipole, abs=1e-6)
    assert np.abs(here.dipole).max() > 0.1


def test_cartesian_functions() -> None:
    spherical, cartesian = label(WATER, "hf", "6-31g*"), label(WATER, "hf", "6-31g*", cartesian=True)
    field = quiet(scf.RHF(direct_molecule(WATER, "6-31g*", cart=True))).run()
    assert cartesian.energy == pytest.approx(field.e_tot * HARTREE, abs=1e-6)
    assert cartesian.energy < spherical.energy
    assert cartesian.level != spherical.level


def test_lengths_are_converted_with_our_factor() -> None:
    """PySCF's own Å differs in the eleventh digit, and would shift every distance."""
    assert param.BOHR != BOHR
    assert label(WATER).energy == pytest.approx(
        quiet(scf.RHF(direct_molecule(WATER, "sto-3g"))).run(conv_tol=1e-9).e_tot * HARTREE, abs=1e-8
    )


# ── Convergence ──────────────────────────────────────────────────────────────────────────────


def test_a_field_that_did_not_converge_never_becomes_a_label() -> None:
    result = labeler(max_cycle=1, ladder=("diis",)).label(WATER, Deadline())
    assert isinstance(result, Rejection)
    assert result.code == "scf_not_converged"
    assert result.failure_class is FailureClass.PHYSICS
    assert result.diagnostics["converged"] is False
    assert result.qm_calls == 1


@pytest.mark.parametrize(("ladder", "rung"), [(("diis", "shift"), "shift"), (("diis", "newton"), "newton")])
def test_the_ladder_ends_in_the_same_state(
    ladder: tuple[str, ...], rung: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the first rung fails, the others reach what it would have reached."""
    import hpcal.labeling.scf as ways

    def failing(make: object, guess: object) -> object:
        field = make()
        field.max_cycle = 2
        field.kernel(dm0=guess)
        return field

    expected = label(WATER)
    monkeypatch.setitem(ways._WAYS, "diis", failing)
    found = label(WATER, ladder=ladder)
    assert found.diagnostics["rung"] == rung
    assert found.diagnostics["ladder"][0].startswith("diis: not converged")
    assert found.energy == pytest.approx(expected.energy, abs=1e-6)
    assert found.forces == pytest.approx(expected.forces, abs=1e-4)


def test_a_broken_linear_algebra_is_a_rung_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    import hpcal.labeling.scf as ways

    def broken(make: object, guess: object) -> object:
        raise np.linalg.LinAlgError("singular matrix")

    for rung in ways.RUNGS:
        monkeypatch.setitem(ways._WAYS, rung, broken)
    result = labeler().label(WATER, Deadline())
    assert isinstance(result, Rejection)
    assert "singular matrix" in result.message


@pytest.mark.slow
def test_spin_contamination_is_refused() -> None:
    """Unrestricted Hartree–Fock of some radicals mixes in higher spins."""
    # <S²> of cyanogen radical is 1.25 in Hartree–Fock, 0.75 would be pure; PBE0 gives 0.76.
    radical = Structure(numbers=[6, 7], positions=[[0, 0, 0], [0, 0, 1.17]], multiplicity=2)
    source = labeler("hf", "6-31g")
    result = CheckedLabeler(source, ChecksSettings(audit_share=0)).label(radical, Deadline())
    assert isinstance(result, Rejection)
    assert (result.code, result.failure_class) == ("spin_contamination", FailureClass.PHYSICS)
    assert result.diagnostics["spin_square"] == pytest.approx(1.25, abs=0.02)
    assert not result.quarantine
    kept = ChecksSettings(audit_share=0, reject_spin_contamination=2.0)
    assert CheckedLabeler(source, kept).label(radical, Deadline()).quarantine
    allowed = ChecksSettings(audit_share=0, max_spin_contamination=2.0)
    assert isinstance(CheckedLabeler(source, allowed).label(radical, Deadline()), Label)
    assert label(radical, "pbe0", "6-31g", grid_level=1).diagnostics["spin_contamination"] < 0.1


def test_the_deadline_ends_a_calculation_between_iterations() -> None:
    three = Structure(
        numbers=[8, 1, 1] * 3,
        positions=np.concatenate([WATER.positions + np.array([3.0 * i, 0, 0]) for i in range(3)]),
    )
    start = time.monotonic()
    with pytest.raises(TaskFailure) as failure:
        labeler("hf", "6-31g*").label(three, Deadline.after(0.02))
    assert failure.value.failure_class is FailureClass.RESOURCE
    within = time.monotonic() - start
    start = time.monotonic()
    label(three, "hf", "6-31g*")
    assert within < time.monotonic() - start


def test_parity_is_refused() -> None:
    wrong = Structure(numbers=HYDROXYL.numbers, positions=HYDROXYL.positions)
    result = labeler().label(wrong, Deadline())
    assert isinstance(result, Rejection)
    assert (result.code, result.failure_class) == ("parity", FailureClass.INPUT)


# ── Basis sets and effective core potentials ─────────────────────────────────────────────────

IODIDE = Structure(numbers=[1, 53], positions=[[0, 0, 0], [0, 0, 1.61]])


def test_the_ecp_of_the_basis_set_is_used() -> None:
    """Without it, HI/def2-SVP converges 1 700 Hartree off, with a warning that nobody sees."""
    ours = label(IODIDE, "hf", "def2-svp")
    field = quiet(scf.RHF(direct_molecule(IODIDE, "def2-svp", ecp={"I": "def2-svp"}))).run()
    assert ours.energy == pytest.approx(field.e_tot * HARTREE, abs=1e-5)
    assert ours.energy / HARTREE == pytest.approx(-297.2, abs=0.5)


def test_elements_that_need_an_ecp_are_refused_without() -> None:
    without = labeler("hf", "def2-svp", ecp="none")
    assert without.missing_elements([1, 8, 53]) == (53,)
    result = without.label(IODIDE, Deadline())
    assert isinstance(result, Rejection)
    assert (result.code, result.failure_class) == ("element", FailureClass.INPUT)
    assert "ecp: basis" in result.message


def test_elements_that_the_basis_set_lacks() -> None:
    assert labeler("hf", "6-31g*").missing_elements([1, 8, 53, 26]) == (53,)
    assert labeler("hf", "sto-3g").missing_elements([53]) == ()


def test_a_basis_set_made_for_an_ecp_that_is_not_found_covers_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """def2-SVP of iodine has four s shells; its electrons fill five."""
    import hpcal.labeling.basis as module

    monkeypatch.setattr(module, "ecp_electrons", lambda *_: 0)
    assert labeler("hf", "def2-svp").missing_elements([17, 53]) == (53,)


@pytest.mark.parametrize("name", ["6-31g*", "def2-svp", "def2-tzvp", "cc-pvdz", "aug-cc-pvtz", "sto-3g"])
def test_common_basis_sets_cover_what_they_hold(name: str) -> None:
    from hpcal.labeling.basis import BasisSet

    basis = BasisSet(name, "basis")
    problems = [basis.problem(z) for z in range(1, 87)]
    assert all(problem is None or "has no functions" in problem for problem in problems)
    assert problems[:10] == [None] * 10


@pytest.mark.parametrize("name", ["6-31gg*", "def3-svp", "gth-dzvp", ""])
def test_unknown_basis_sets(name: str) -> None:
    with pytest.raises(ConfigurationError):
        labeler("hf", name)


# ── Names of methods ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"method": "wb97x-d"}, "wb97x-d3bj"),
        ({"method": "wB97X_D3"}, "wb97x-v"),
        ({"method": "wb97x-d4"}, "changes between versions"),
        ({"method": "b3lyp-d3bj"}, "method: b3lyp and dispersion: d3bj"),
        ({"method": "pbe0-d4"}, "method: pbe0 and dispersion: d4"),
        ({"method": "r2scan-3c"}, "-3c methods"),
        ({"method": "b3lip"}, "did you mean b3lyp"),
        ({"method": ""}, "nor a functional of libxc"),
        ({"method": "wb97x", "dispersion": "d3bj"}, "wb97x-d3bj"),
        ({"method": "wb97m-v", "dispersion": "d4"}, "another functional"),
        ({"method": "wb97x-d3bj", "dispersion": "d4"}, "brings d3bj"),
        ({"method": "vv10", "dispersion": "d3bj"}, "VV10"),
        ({"method": "lda"}, "no correlation"),
        ({"method": "b88"}, "'b88,lyp'"),
        ({"method": "gga_c_lyp"}, "no exchange"),
        ({"method": "lda_k_tf"}, "kinetic energy"),
        ({"method": "wb97xd"}, "wb97x-d3bj"),
        ({"method": "hyb_gga_xc_wb97x_d"}, "leave out the dispersion"),
        ({"method": "b97-d"}, "dispersion: d3bj to b97-d"),
        ({"method": "beefvdw"}, "leave out the dispersion"),
        ({"method": "scan_rvv10"}, "scan_vv10"),
    ],
)
def test_ambiguous_or_unavailable_methods_are_refused(settings: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        labeler(**settings)


@pytest.mark.parametrize(
    "method",
    ["hf", "pbe", "PBE0", "b3lyp", "wb97x", "wb97x-v", "wb97m_v", "m06-2x", "r2scan", "b88,lyp", "b88,"],
)
def test_methods_that_are_taken(method: str) -> None:
    assert labeler(method).level.method == method.lower()


has_dispersion = importlib.util.find_spec("pyscf.dispersion") is not None


@pytest.mark.skipif(has_dispersion, reason="pyscf-dispersion is installed")
@pytest.mark.parametrize("settings", [{"method": "pbe0", "dispersion": "d3bj"}, {"method": "wb97x-d3bj"}])
def test_dispersion_without_its_package_says_how_to_install_it(settings: dict[str, str]) -> None:
    with pytest.raises(PluginError, match=r"pip install 'hpcal\[dispersion\]'"):
        labeler(**settings)


@pytest.mark.extras
@pytest.mark.skipif(not has_dispersion, reason="needs pyscf-dispersion")
@pytest.mark.parametrize("version", ["d3bj", "d4"])
def test_dispersion_is_added_with_its_gradient(version: str) -> None:
    step = 1e-3
    plain, ours = label(WATER), label(WATER, dispersion=version)
    assert -0.5 < ours.energy - plain.energy < -0.001
    shift = np.zeros((3, 3))
    shift[1, 2] = step
    ahead = label(WATER.with_positions(WATER.positions + shift), dispersion=version).energy
    behind = label(WATER.with_positions(WATER.positions - shift), dispersion=version).energy
    assert ours.forces[1, 2] == pytest.approx((behind - ahead) / (2 * step), abs=1e-4)
    assert ours.level != plain.level


@pytest.mark.extras
@pytest.mark.skipif(not has_dispersion, reason="needs pyscf-dispersion")
def test_a_functional_that_was_made_for_a_dispersion_is_taken_with_it() -> None:
    settings = labeler("b97-d", dispersion="d3bj").level.settings
    assert settings["dispersion"] == "d3bj"


@pytest.mark.extras
@pytest.mark.skipif(not has_dispersion, reason="needs pyscf-dispersion")
def test_dispersion_without_parameters_for_the_functional() -> None:
    with pytest.raises(ConfigurationError, match="no d4 parameters"):
        labeler("svwn", dispersion="d4")


def test_warnings_of_pyscf_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    import hpcal.labeling.scf as ways

    diis = ways._WAYS["diis"]

    def warning(make: object, guess: object) -> object:
        field = diis(make, guess)
        warnings.warn("something odd", UserWarning, stacklevel=1)
        field.mol.stdout.write("Warn: linear dependency\n")
        return field

    monkeypatch.setitem(ways._WAYS, "diis", warning)
    assert label(WATER).diagnostics["warnings"] == ["Warn: linear dependency", "something odd"]


@pytest.mark.parametrize(
    ("stated", "limit", "told"),
    [(None, None, 4000), (900, None, 900), (None, 8000, 6400), (900, 8000, 900), (9000, 8000, 6400)],
)
def test_pyscf_is_told_of_the_memory_of_its_process(
    monkeypatch: pytest.MonkeyPatch, stated: int | None, limit: int | None, told: float
) -> None:
    soft = resource.RLIM_INFINITY if limit is None else limit * 10**6
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, resource.RLIM_INFINITY))
    stating = {} if stated is None else {"max_memory_MB": stated}
    assert labeler("hf", **stating).fields().memory_MB == told


def test_level_of_theory_tells_settings_apart() -> None:
    base = labeler("pbe", "6-31g*").level
    assert base == labeler("PBE", "6-31G*", max_cycle=7, max_memory_MB=99).level
    for change in ({"grid_level": 2}, {"density_fit": True}, {"conv_tol": 1e-8}, {"cartesian": True}):
        assert base != labeler("pbe", "6-31g*", **change).level
    assert base != labeler("pbe", "6-31g").level
    assert labeler("hf", grid_level=1).level == labeler("hf", grid_level=3).level


# ── A second code ────────────────────────────────────────────────────────────────────────────

PSI4 = {
    # Hartree, B3LYP and PBE0 of Psi4 1.3.2: scf_type pk, grid (99, 590), e_convergence 1e-10.
    "H2O": (-76.4203699616, -76.3388343831),
    "NH3": (-56.5533463585, -56.4850488037),
    "CO": (-113.3212772144, -113.1933741834),
    "N2": (-109.5332363063, -109.4103934381),
    "OH": (-75.7319458407, -75.6526944476),
}
PSI4_MOLECULES = {
    "H2O": "O 0 0 0.2217; H 0 1.4309 -0.8867; H 0 -1.4309 -0.8867",
    "NH3": "N 0 0 0.15; H 1.77 0 -0.55; H -0.885 1.5329 -0.55; H -0.885 -1.5329 -0.55",
    "CO": "C 0 0 0; O 0 0 2.132",
    "N2": "N 0 0 0; N 0 0 2.074",
    "OH": "O 0 0 0; H 0 0 1.834",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(PSI4))
def test_total_energies_of_functionals_are_those_of_psi4(name: str) -> None:
    rows = [words.split() for words in PSI4_MOLECULES[name].split(";")]
    structure = Structure(
        numbers=[{"H": 1, "C": 6, "N": 7, "O": 8}[row[0]] for row in rows],
        positions=np.array([[float(x) for x in row[1:]] for row in rows]) * BOHR,
        multiplicity=2 if name == "OH" else 1,
    )
    for method, expected in zip(("b3lyp", "pbe0"), PSI4[name], strict=True):
        ours = label(structure, method, "cc-pvdz", grid_level=6, forces=False)
        assert ours.forces is None
        assert ours.energy / HARTREE == pytest.approx(expected, abs=1e-6)


def test_charges_by_several_schemes_go_with_a_label() -> None:
    ours = label(WATER, charges=("cm5", "hirshfeld", "mulliken"))
    assert ours.charge_scheme == "cm5"
    assert set(ours.other_charges) == {"hirshfeld", "mulliken"}
    assert ours.other_charges["mulliken"] == pytest.approx(label(WATER).charges, abs=1e-6)
    for charges in (ours.charges, *ours.other_charges.values()):
        assert charges.sum() == pytest.approx(0, abs=1e-3)
        assert charges[0] < 0 < charges[1]


def test_the_quadrupole_is_the_slope_of_the_energy_in_a_field_gradient() -> None:
    """E(G) = E - ½ Σ G Q for a potential -½ Σ G x x about the origin."""
    ours = label(WATER, "hf", "6-31g")
    mol = direct_molecule(WATER, "6-31g")
    origin, step, energies = ours.dipole_origin / BOHR, 1e-4, []
    with mol.with_common_orig(tuple(origin)):
        operator = mol.intor("int1e_rr").reshape(3, 3, mol.nao, mol.nao)[2, 2]
    arms = (mol.atom_coords() - origin)[:, 2]
    for sign in (1, -1):
        field = quiet(scf.RHF(mol))
        core = field.get_hcore() + sign * step / 2 * operator
        field.get_hcore = lambda *_, core=core: core
        field.run(conv_tol=1e-13)
        energies.append(field.e_tot - sign * step / 2 * float(mol.atom_charges() @ arms**2))
    slope = -2 * (energies[0] - energies[1]) / (2 * step)
    assert ours.quadrupole[2, 2] / BOHR**2 == pytest.approx(slope, abs=1e-4)


def test_schemes_that_cannot_be_had_are_refused_before_the_calculation() -> None:
    with pytest.raises(ConfigurationError, match="iao are refused with method 'mp2'"):
        labeler("mp2", "6-31g", charges=("iao",))
    result = labeler("hf", "def2-svp", charges=("iao",)).label(IODIDE, Deadline())
    assert isinstance(result, Rejection)
    assert (result.code, result.qm_calls) == ("element", 0)
    assert "iao" in result.message
    assert labeler(charges=("cm5",)).level != labeler().level

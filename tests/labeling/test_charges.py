"""Charges and second moments against PySCF, symmetry, published charges and a field gradient."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from pyscf import cc, dft, gto, lo, scf

from hpcal.core.elements import atomic_number
from hpcal.core.errors import ConfigurationError
from hpcal.core.units import BOHR, DEBYE
from hpcal.labeling.charges import SCHEMES, obstacle, partial_charges, quadrupole
from hpcal.labeling.cm5 import cm5
from hpcal.labeling.hirshfeld import GRID_LEVEL, ProAtom, free_atoms, hirshfeld, reference_atom
from hpcal.labeling.pyscf_fields import drop_checkpoint

S66X8 = Path(__file__).parents[2] / ".." / "shared" / "data" / "s66x8" / "s66x8_wb97x6-31gd.h5"
needs_s66x8 = pytest.mark.skipif(not S66X8.exists(), reason="needs s66x8 in ../shared/data")
WATER = "O 0 0 0.1; H 0 0.02 1.07; H 0.94 0 -0.2"
IN_SPACE = ("hirshfeld", "cm5")


def field_of(atoms: Any, basis: str, xc: str | None = None, fitted: bool = False, **kwargs: Any) -> Any:
    molecule = gto.M(atom=atoms, basis=basis, verbose=0, **kwargs)
    field = scf.HF(molecule) if xc is None else dft.KS(molecule, xc=xc)
    drop_checkpoint(field)
    if fitted:
        field = field.density_fit()
    field.kernel()
    assert field.converged
    return field


@cache
def water(spin: int = 0) -> Any:
    return field_of(WATER, "6-31g*", cart=True, spin=spin, charge=spin)


@pytest.mark.parametrize("spin", [0, 1])
def test_charges_by_functions_agree_with_pyscf(spin: int) -> None:
    field = water(spin)
    ours = partial_charges(field, ["mulliken", "lowdin", "meta-lowdin", "iao"])
    molecule, density = field.mol, field.make_rdm1()
    overlap = field.get_ovlp()
    total = density if spin == 0 else density.sum(axis=0)
    symmetric = lo.orth_ao(molecule, "lowdin", None, s=overlap).T @ overlap
    orbitals = [field.mo_coeff] if spin == 0 else field.mo_coeff
    filled = [field.mo_occ] if spin == 0 else field.mo_occ
    iao = 0
    for c, n in zip(orbitals, filled, strict=True):
        one_spin = (c * n) @ c.T
        functions = lo.iao.iao(molecule, c[:, n > 0])
        functions = lo.vec_lowdin(functions, overlap)
        populations, _ = lo.iao.fast_iao_mullikan_pop(molecule, one_spin, functions, verbose=0)
        iao = iao + np.asarray(populations)
    minimal = lo.iao.reference_mol(molecule)
    by_atom = [iao[a:b].sum() for a, b in minimal.aoslice_by_atom()[:, 2:]]
    expected = {
        "mulliken": field.mulliken_pop(verbose=0)[1],
        "lowdin": scf.hf.mulliken_pop(
            molecule, symmetric @ total @ symmetric.T, np.eye(len(total)), verbose=0
        )[1],
        "meta-lowdin": field.mulliken_meta(verbose=0)[1],
        "iao": molecule.atom_charges() - by_atom,
    }
    for scheme, charges in expected.items():
        assert ours[scheme] == pytest.approx(charges, abs=1e-10), scheme
        assert ours[scheme].sum() == pytest.approx(molecule.charge, abs=1e-9)


def test_a_density_of_its_own_gives_the_charges() -> None:
    field = water()
    assert partial_charges(field, ["mulliken"], density=0.5 * field.make_rdm1())[
        "mulliken"
    ].sum() == pytest.approx(5)
    with pytest.raises(ConfigurationError, match="not a correlated density"):
        partial_charges(field, ["iao"], density=field.make_rdm1())


def test_a_homonuclear_molecule_has_no_charges() -> None:
    field = field_of("H 0 0 0; H 0 0 0.74", "6-31g*")
    for scheme, charges in partial_charges(field, SCHEMES).items():
        assert charges == pytest.approx([0, 0], abs=1e-6), scheme


@pytest.mark.parametrize(
    ("atoms", "charge", "spin"),
    [("O 0 0 0; H 0 0 0.97", -1, 0), (WATER, 1, 1), ("O 0 0 0; H 0 0 0.97", 0, 1)],
    ids=["anion", "cation", "radical"],
)
def test_charges_sum_to_the_charge(atoms: str, charge: int, spin: int) -> None:
    field = field_of(atoms, "6-31g", charge=charge, spin=spin)
    for scheme, charges in partial_charges(field, SCHEMES).items():
        assert charges.sum() == pytest.approx(charge, abs=1e-8), scheme


def test_space_is_shared_out_alike_whatever_the_orientation() -> None:
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    field = water()
    atoms = [(field.mol.atom_symbol(i), turn @ x) for i, x in enumerate(field.mol.atom_coords())]
    turned = field_of(atoms, "6-31g*", cart=True, unit="Bohr")
    before, after = (partial_charges(f, IN_SPACE) for f in (field, turned))
    for scheme in IN_SPACE:
        assert after[scheme] == pytest.approx(before[scheme], abs=1e-4)


def test_the_usual_grid_is_good_to_a_ten_thousandth() -> None:
    field = water()
    coarse, fine = (partial_charges(field, ["hirshfeld"], grid_level=n)["hirshfeld"] for n in (GRID_LEVEL, 6))
    assert coarse == pytest.approx(fine, abs=1e-4)


def test_an_error_of_the_grid_is_shared_out_unless_it_is_gross(monkeypatch: pytest.MonkeyPatch) -> None:
    field = water()
    shared = partial_charges(field, ["hirshfeld"], grid_level=0)["hirshfeld"]
    monkeypatch.setattr("hpcal.labeling.hirshfeld.GRID_ERROR", 1e-12)
    plain = partial_charges(field, ["hirshfeld"], grid_level=0)["hirshfeld"]
    assert abs(plain.sum()) > 1e-5
    assert abs(shared.sum()) < 1e-9
    assert shared == pytest.approx(plain, abs=abs(plain.sum()))


def test_cm5_of_water_has_the_dipole_that_was_measured() -> None:
    """1.855 D (Clough et al., J. Chem. Phys. 1973, 59, 2254); Hirshfeld charges have half of it."""
    field = field_of("O 0 0 0; H 0 0.757 0.587; H 0 -0.757 0.587", "6-31g*", "pbe0")
    found = partial_charges(field, IN_SPACE)
    dipoles = {k: np.linalg.norm(q @ field.mol.atom_coords()) * BOHR / DEBYE for k, q in found.items()}
    assert dipoles["cm5"] == pytest.approx(1.855, abs=0.15)
    assert dipoles["hirshfeld"] < 0.6 * 1.855


def test_free_atoms_hold_their_electrons_and_are_calculated_once() -> None:
    for number in (1, 7, 17):
        atom = reference_atom(number)
        shells = 4 * np.pi * atom.radii**2 * atom.density
        assert atom.electrons == number
        assert np.trapezoid(shells, atom.radii) == pytest.approx(number, abs=2e-3)
        assert atom.at(atom.radii[5:50]) == pytest.approx(atom.density[5:50])
    assert reference_atom(7) is reference_atom(7)
    # Hydrogen has one electron with spin; without spin it would be much larger.
    atom = reference_atom(1)
    assert np.trapezoid(4 * np.pi * atom.radii**4 * atom.density, atom.radii) == pytest.approx(3.4, abs=0.1)


def test_free_atoms_of_other_kinds_may_be_given() -> None:
    field = field_of("H 0 0 0; F 0 0 0.92", "6-31g")
    atoms = free_atoms(field.mol)
    fluorine = atoms["F"]
    larger = ProAtom(
        number=9, electrons=9, radii=fluorine.radii, density=fluorine.at(0.9 * fluorine.radii) * 0.9**3
    )
    usual, other = (
        hirshfeld(field.mol, field.make_rdm1(), pro_atoms=chosen) for chosen in (None, {**atoms, "F": larger})
    )
    assert other[1] < usual[1] - 0.05


def test_an_ecp_stands_for_the_same_electrons_in_molecule_and_free_atom() -> None:
    field = field_of("H 0 0 0; Cl 0 0 1.28", "lanl2dz", ecp={"Cl": "lanl2dz"})
    assert free_atoms(field.mol)["Cl"].electrons == 7
    assert free_atoms(field.mol)["H"] is reference_atom(1)
    charges = partial_charges(field, [s for s in SCHEMES if not obstacle(s, field.mol)])
    assert set(charges) == {"mulliken", "lowdin", "hirshfeld", "cm5"}
    full = partial_charges(field_of("H 0 0 0; Cl 0 0 1.28", "6-311g"), IN_SPACE)
    for scheme in IN_SPACE:
        assert charges[scheme].sum() == pytest.approx(0, abs=1e-8)
        assert charges[scheme] == pytest.approx(full[scheme], abs=0.03)


@pytest.mark.parametrize("scheme", ["iao", "meta-lowdin"])
def test_schemes_that_an_ecp_misleads_are_refused(scheme: str) -> None:
    molecule = gto.M(atom="H 0 0 0; Cl 0 0 1.28", basis="lanl2dz", ecp={"Cl": "lanl2dz"}, verbose=0)
    assert "ECP" in obstacle(scheme, molecule)
    with pytest.raises(ConfigurationError, match=f"charges by {scheme} are not offered here.*ECP"):
        partial_charges(scf.RHF(molecule), [scheme])


def test_an_unknown_scheme_is_refused() -> None:
    assert "there are mulliken, lowdin" in obstacle("bader", water().mol)


def moments_about(field: Any, origin: list[float]) -> np.ndarray:
    return quadrupole(field.mol, field.make_rdm1(), np.array(origin))


@pytest.mark.parametrize("spin", [0, 1])
def test_quadrupole_without_its_trace_is_pyscfs(spin: int) -> None:
    field = water(spin)
    moments = moments_about(field, [0.1, -0.2, 0.3])
    traceless = 1.5 * moments - 0.5 * np.trace(moments) * np.eye(3)
    theirs = field.quad_moment(unit="AU", origin=np.array([0.1, -0.2, 0.3]), verbose=0)
    assert traceless == pytest.approx(theirs, abs=1e-8)


def test_quadrupole_is_the_response_to_a_field_gradient() -> None:
    """In the potential g·x·z the energy's slope is Σ q x z: electrons by the field, nuclei by hand."""
    origin = [0.0, 0.0, 0.0]
    molecule = water().mol
    with molecule.with_common_orig(origin):
        squares = molecule.intor("int1e_rr").reshape(3, 3, molecule.nao, molecule.nao)

    def energy(strength: float) -> float:
        field = scf.RHF(molecule)
        drop_checkpoint(field)
        core = field.get_hcore() - strength * squares[0, 2]
        field.get_hcore = lambda *_: core
        field.conv_tol = 1e-12
        arms = molecule.atom_coords()
        return float(field.kernel() + strength * (molecule.atom_charges() * arms[:, 0] * arms[:, 2]).sum())

    step = 1e-3
    slope = (energy(step) - energy(-step)) / (2 * step)
    assert moments_about(water(), origin)[0, 2] == pytest.approx(slope, abs=1e-5)


def test_quadrupole_of_hydrogen_is_that_of_the_literature() -> None:
    """0.4568 e·Bohr² at 1.4 Bohr (Poll, Wolniewicz, J. Chem. Phys. 1978, 68, 3053)."""
    field = field_of("H 0 0 0; H 0 0 1.4", "aug-cc-pvtz", unit="Bohr")
    correlated = cc.CCSD(field).run()
    density = correlated.make_rdm1(ao_repr=True)
    moments = quadrupole(field.mol, density, np.array([0.0, 0.0, 0.7]))
    assert moments[2, 2] - moments[0, 0] == pytest.approx(0.4568, abs=0.005)


@needs_s66x8
def test_cm5_of_published_hirshfeld_charges_is_the_published() -> None:
    with h5py.File(S66X8) as file:
        for group in file["s66x8"].values():
            numbers = np.array([atomic_number(s.decode()) for s in group["species"][:]])
            positions = group["coordinates"][:].astype(float)
            for i, x in enumerate(positions):
                # The last of the file's charges is their sum.
                ours = cm5(numbers, x, group["hirshfeld"][i, :-1].astype(float))
                assert ours == pytest.approx(group["cm5"][i, :-1], abs=3e-6)


# Smaller dimers are labelled once for energies, forces and charges in test_s66x8.py.
DIMERS = {
    "methanol–methylamine": ("mol05", 7),
    "methylamine–methanol": ("mol08", 0),
    "methylamine–methylamine": ("mol09", 7),
    "ethyne–acetic acid": ("mol59", 0),
    "peptide–water": ("mol15", 7),
}
MONOMERS = {
    "water": ("mol00", slice(0, 3)),
    "methanol": ("mol01", slice(3, 9)),
    "methylamine": ("mol02", slice(3, 10)),
    "ethyne": ("mol50", slice(0, 4)),
    "acetic acid": ("mol59", slice(4, 12)),
    "peptide": ("mol15", slice(0, 12)),
}


def deviation(name: str, frame: int, atoms: slice) -> float:
    with h5py.File(S66X8) as file:
        group = file["s66x8"][name]
        species = [s.decode() for s in group["species"][atoms]]
        positions = group["coordinates"][frame, atoms].astype(float)
        published = {scheme: group[scheme][frame, :-1][atoms] for scheme in IN_SPACE}
    geometry = list(zip(species, positions, strict=True))
    field = field_of(geometry, "6-31g*", "wb97x", fitted=True, cart=True)
    ours = partial_charges(field, IN_SPACE)
    return max(float(abs(ours[scheme] - published[scheme]).max()) for scheme in IN_SPACE)


@pytest.mark.slow
@needs_s66x8
@pytest.mark.parametrize(("name", "frame"), DIMERS.values(), ids=DIMERS)
def test_dimers_of_s66x8_have_their_published_charges(name: str, frame: int) -> None:
    assert deviation(name, frame, slice(None)) < 0.01


@pytest.mark.slow
@needs_s66x8
@pytest.mark.parametrize(("name", "atoms"), MONOMERS.values(), ids=MONOMERS)
def test_monomers_have_the_charges_of_distant_dimers(name: str, atoms: slice) -> None:
    """The monomers at the largest distance still feel each other: most where hydrogen bonds are."""
    assert deviation(name, 7, atoms) < 0.02

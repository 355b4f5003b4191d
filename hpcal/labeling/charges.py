"""Partial charges and second moments of a mean field of PySCF, as functions of its density.

==============  ================================================================================
scheme          how the density is shared out
==============  ================================================================================
``mulliken``    by the functions of each atom, overlaps in halves
``lowdin``      by the functions of each atom, orthogonalised by S^(−1/2)
``meta-lowdin`` the same for core, valence and the rest apart, after atomic natural orbitals
                (Sun, Chan, J. Chem. Theory Comput. 2014, 10.1021/ct500512f)
``iao``         by intrinsic atomic orbitals (Knizia, J. Chem. Theory Comput. 2013, 10.1021/ct400687b)
``hirshfeld``   in space, by free atoms (:mod:`hpcal.labeling.hirshfeld`)
``cm5``         Hirshfeld charges, mapped (:mod:`hpcal.labeling.cm5`)
==============  ================================================================================

An ECP's electrons count as part of the nucleus in all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, get_args

import numpy as np

from hpcal.core.arrays import FloatArray, IntArray
from hpcal.core.errors import ConfigurationError
from hpcal.core.units import BOHR
from hpcal.labeling.cm5 import cm5
from hpcal.labeling.hirshfeld import GRID_LEVEL, ProAtom, hirshfeld

ChargeScheme = Literal["mulliken", "lowdin", "meta-lowdin", "iao", "hirshfeld", "cm5"]
SCHEMES: Final[tuple[ChargeScheme, ...]] = get_args(ChargeScheme)


def partial_charges(
    field: Any,
    schemes: Sequence[ChargeScheme],
    *,
    density: FloatArray | None = None,
    pro_atoms: Mapping[str, ProAtom] | None = None,
    grid_level: int = GRID_LEVEL,
) -> dict[str, FloatArray]:
    """(N,) partial charges of a converged field, e, by each of the schemes.

    Args:
        field: restricted or unrestricted mean field of PySCF.
        schemes: which.
        density: AO density matrix, (n, n) or (2, n, n), such as that of a correlated method; that of the
            field by default.
        pro_atoms: free atoms for ``hirshfeld`` and ``cm5``, by the symbols of the molecule's atoms; those of
            the reference by default.
        grid_level: of the grid on which ``hirshfeld`` and ``cm5`` integrate.

    Raises:
        ConfigurationError: an unknown scheme, or one that :func:`obstacle` objects to.
    """
    for scheme in schemes:
        problem = obstacle(scheme, field.mol, own_density=density is None)
        if problem:
            raise ConfigurationError(f"charges by {scheme} are not offered here: {problem}")
    molecule = field.mol
    total = np.asarray(field.make_rdm1() if density is None else density)
    total = total if total.ndim == 2 else total.sum(axis=0)
    found: dict[str, FloatArray] = {}
    if {"hirshfeld", "cm5"} & set(schemes):
        found["hirshfeld"] = hirshfeld(molecule, total, pro_atoms=pro_atoms, grid_level=grid_level)
    for scheme in schemes:
        if scheme == "cm5":
            positions = molecule.atom_coords() * BOHR
            found[scheme] = cm5(_numbers(molecule), positions, found["hirshfeld"])
        elif scheme == "iao":
            found[scheme] = _iao(field)
        elif scheme != "hirshfeld":
            found[scheme] = _by_functions(scheme, molecule, total)
    return {scheme: found[scheme] for scheme in schemes}


def obstacle(scheme: str, molecule: Any, *, own_density: bool = True) -> str:
    """Why a scheme cannot be had of a molecule, as one sentence, or nothing.

    Args:
        scheme: its name.
        molecule: PySCF's.
        own_density: whether the density is that of the mean field itself.
    """
    if scheme not in SCHEMES:
        return f"there is no scheme {scheme!r}; there are {', '.join(SCHEMES)}"
    if scheme == "meta-lowdin" and molecule.has_ecp():
        return "PySCF tells core from valence wrongly beneath an ECP (2.14: hydrogen in HI gets −0.6 e)"
    if scheme != "iao":
        return ""
    if not own_density:
        return "intrinsic atomic orbitals hold the orbitals of the mean field, not a correlated density"
    if molecule.has_ecp():
        return "the minimal basis of intrinsic atomic orbitals holds the electrons that the ECP stands for"
    missing = _without_minimal_basis(molecule)
    if missing:
        return f"PySCF's minimal basis for intrinsic atomic orbitals lacks {', '.join(missing)}"
    return ""


def quadrupole(molecule: Any, density: FloatArray, origin: FloatArray) -> FloatArray:
    """(3, 3) second moments Σ q x xᵀ of nuclei and electrons, e·Bohr², their trace included.

    Args:
        molecule: PySCF's.
        density: AO density matrix, (n, n) or (2, n, n).
        origin: (3,) Bohr; matters wherever charge or dipole do not vanish.
    """
    total = density if density.ndim == 2 else density.sum(axis=0)
    with molecule.with_common_orig(tuple(origin)):
        moments = molecule.intor("int1e_rr").reshape(3, 3, molecule.nao, molecule.nao)
    electrons: FloatArray = np.einsum("xyij,ji->xy", moments, total)
    arms = molecule.atom_coords() - origin
    nuclei: FloatArray = np.einsum("i,ix,iy->xy", molecule.atom_charges().astype(float), arms, arms)
    moment: FloatArray = nuclei - electrons
    return moment


def _by_functions(scheme: str, molecule: Any, density: FloatArray) -> FloatArray:
    """Charges from the populations of AOs, plain or orthogonalised."""
    from pyscf import lo

    overlap = molecule.intor_symmetric("int1e_ovlp")
    if scheme == "mulliken":
        return _less(molecule, np.einsum("ij,ji->i", density, overlap))
    if scheme == "lowdin":
        orthogonal = lo.lowdin(overlap)
    else:
        orthogonal = lo.orth_ao(molecule, "meta_lowdin", "ano", s=overlap)
    projected = orthogonal.T @ overlap
    return _less(molecule, np.einsum("ij,jk,ik->i", projected, density, projected))


def _iao(field: Any) -> FloatArray:
    """Charges from the populations of orthogonalised intrinsic atomic orbitals, a set for each spin."""
    from pyscf import lo

    molecule = field.mol
    overlap = molecule.intor_symmetric("int1e_ovlp")
    minimal = lo.iao.reference_mol(molecule)
    populations = np.zeros(minimal.nao)
    orbitals, filled = np.asarray(field.mo_coeff), np.asarray(field.mo_occ)
    spins = zip(orbitals, filled, strict=True) if orbitals.ndim == 3 else [(orbitals, filled)]
    for coefficients, numbers in spins:
        occupied = coefficients[:, numbers > 0]
        if not occupied.shape[1]:
            continue
        intrinsic = lo.vec_lowdin(lo.iao.iao(molecule, occupied), overlap)
        shares = (intrinsic.T @ overlap @ occupied) ** 2
        populations += shares @ numbers[numbers > 0]
    return _less(minimal, populations)


def _less(molecule: Any, populations: FloatArray) -> FloatArray:
    """(N,) nuclear charges less the populations of the functions of each atom."""
    slices = molecule.aoslice_by_atom()[:, 2:]
    electrons = np.array([populations[start:stop].sum() for start, stop in slices])
    charges: FloatArray = molecule.atom_charges() - electrons
    return charges


def _numbers(molecule: Any) -> IntArray:
    """(N,) atomic numbers, which with an ECP are not the charges of the nuclei."""
    from pyscf import gto

    return np.array([gto.charge(molecule.atom_symbol(i)) for i in range(molecule.natm)], dtype=np.int64)


def _without_minimal_basis(molecule: Any) -> list[str]:
    from pyscf import gto

    missing = []
    for name in sorted({molecule.atom_pure_symbol(i) for i in range(molecule.natm)}):
        try:
            gto.basis.load("minao", name)
        except (RuntimeError, KeyError, TypeError, OSError):
            missing.append(name)
    return missing

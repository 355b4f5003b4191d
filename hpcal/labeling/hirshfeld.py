"""Hirshfeld charges: every atom gets the share of the density that its free atom has in the promolecule.

    q_A = Z_A − ∫ w_A ρ dr,    w_A(r) = ρ⁰_A(|r − R_A|) / Σ_B ρ⁰_B(|r − R_B|)

Source: Hirshfeld, Theor. Chim. Acta 1977, 44, 129, 10.1007/BF00549096. What is integrated is the deformation
density, q_A = −∫ w_A (ρ − Σ_B ρ⁰_B) dr: the same number, but the cusps at the nuclei cancel.

The charges hang on the free atoms: in the valence basis of a molecule a free atom is too compact, which
moves charges by up to 0.06 e. So they are of one reference for all levels of theory, and not of the level
of the molecule: neutral, in the ground configuration, spherical by fractional occupation, def2-QZVP, nine
tenths of Dirac exchange and one of exact exchange, open shells with the spin of Hund's rule except that p
shells from half filling on have none. The last two are empirical: chosen so that molecules of H, C, N and O
have the charges that are published with S66x8 within 0.01 e. Other elements follow the same rule, without
such a comparison.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Final

import numpy as np

from hpcal.core.arrays import FloatArray, IntArray
from hpcal.core.elements import symbol
from hpcal.core.errors import ConfigurationError
from hpcal.labeling.basis import ecp_electrons
from hpcal.labeling.scf import drop_checkpoint

FUNCTIONAL: Final = "0.9*lda+0.1*hf,"
"""In PySCF's words."""
BASIS: Final = "def2-qzvp"
GRID_LEVEL: Final = 2
GRID_ERROR: Final = 1e-3
"""e for each atom; an error of the grid up to this is shared out among the atoms."""
RADIUS: Final = 30.0
"""Bohr; density tables of free atoms end here."""
POINTS: Final = 401
CONV_TOL: Final = 1e-8
CYCLES: Final = 200
FLOOR: Final = 1e-40
"""e/Bohr³; keeps shares defined where no atom has density."""
BLOCK: Final = 20_000
"""Points of the grid that are shared out at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ProAtom:
    """The spherical density of a free atom.

    Attributes:
        number: atomic number.
        electrons: those that the density holds; fewer than ``number`` with an ECP.
        radii: (R,) Bohr, increasing from 0.
        density: (R,) e/Bohr³.
    """

    number: int
    electrons: int
    radii: FloatArray
    density: FloatArray

    def at(self, distances: FloatArray) -> FloatArray:
        """Density at distances in Bohr, e/Bohr³; interpolated in its logarithm."""
        from scipy.interpolate import CubicSpline

        table = CubicSpline(self.radii, np.log(np.maximum(self.density, FLOOR)))
        found: FloatArray = np.exp(table(np.minimum(distances, self.radii[-1])))
        return found


def hirshfeld(
    molecule: Any,
    density: FloatArray,
    *,
    pro_atoms: Mapping[str, ProAtom] | None = None,
    grid_level: int = GRID_LEVEL,
) -> FloatArray:
    """(N,) Hirshfeld charges, e.

    What the grid misses of the total charge is shared out by the nuclear charges, so that the sum is exact;
    an error beyond ``GRID_ERROR`` for each atom is left in the sum for all to see.

    Args:
        molecule: PySCF's.
        density: AO density matrix, (n, n) or one for each spin (2, n, n).
        pro_atoms: free atoms by the molecule's own symbols of its atoms; those of the reference by default.
        grid_level: of PySCF's grids; 2 is good to 1e-4 e.

    Raises:
        ConfigurationError: there is no free atom for an element.
    """
    from pyscf import dft

    atoms = free_atoms(molecule) if pro_atoms is None else pro_atoms
    total = density if density.ndim == 2 else density.sum(axis=0)
    grids = dft.gen_grid.Grids(molecule)
    grids.level = grid_level
    grids.build()
    molecular = dft.numint.NumInt().get_rho(molecule, total, grids)
    centres = molecule.atom_coords()
    charges = np.zeros(len(centres))
    for start in range(0, len(molecular), BLOCK):
        part = slice(start, start + BLOCK)
        points = grids.coords[part]
        free = np.stack(
            [
                atoms[molecule.atom_symbol(i)].at(np.linalg.norm(points - centre, axis=1))
                for i, centre in enumerate(centres)
            ]
        )
        promolecule = free.sum(axis=0)
        charges -= (free / promolecule) @ ((molecular[part] - promolecule) * grids.weights[part])
    return _completed(charges, molecule, total)


def _completed(charges: FloatArray, molecule: Any, density: FloatArray) -> FloatArray:
    """The charges with the error of the grid shared out among them, unless it is gross."""
    nuclei: FloatArray = molecule.atom_charges().astype(float)
    electrons = float(np.einsum("ij,ji->", density, molecule.intor_symmetric("int1e_ovlp")))
    missed = nuclei.sum() - electrons - charges.sum()
    shared: FloatArray = charges + missed * nuclei / nuclei.sum()
    return charges if abs(missed) > GRID_ERROR * len(charges) else shared


def free_atoms(molecule: Any) -> dict[str, ProAtom]:
    """The reference's free atom of every atom of a molecule, by the molecule's own symbols.

    An atom whose ECP stands for other electrons than that of the reference's basis set, or that the basis set
    does not cover, is calculated in the basis set and with the ECP that it has in the molecule.

    Raises:
        ConfigurationError: there is no free atom for an element.
    """
    from pyscf import gto

    found = {}
    for i in range(molecule.natm):
        name = molecule.atom_symbol(i)
        if name in found:
            continue
        number = int(gto.charge(name))
        core = int(molecule.atom_nelec_core(i))
        if _covers(number, core):
            found[name] = reference_atom(number)
        else:
            found[name] = free_atom(
                number, molecule._basis[name], molecule._ecp.get(name), functional=FUNCTIONAL
            )
    return found


@cache
def reference_atom(number: int) -> ProAtom:
    """The free atom of the reference, with the ECP of its basis set; calculated once in a process.

    Raises:
        ConfigurationError: the basis set does not cover the element.
    """
    from pyscf import gto

    name = symbol(number)
    ecp = gto.basis.load_ecp(BASIS, name) if ecp_electrons(BASIS, number) else None
    return free_atom(number, gto.basis.load(BASIS, name), ecp, functional=FUNCTIONAL)


def free_atom(number: int, basis: Any, ecp: Any, *, functional: str) -> ProAtom:
    """The spherical density of a neutral atom in its ground configuration.

    Args:
        number: atomic number.
        basis: shells as PySCF holds them; those of a symmetry that the atom does not occupy are left out.
        ecp: as PySCF holds it, or None.
        functional: exchange and correlation, by PySCF's names.

    Raises:
        ConfigurationError: the shells do not hold the electrons, or the field does not converge.
    """
    shells = _occupations(number, int(ecp[0]) if ecp else 0)
    field = _spherical_field(number, basis, ecp, shells, functional)
    field.kernel()
    if not field.converged:
        raise ConfigurationError(
            f"the free atom {symbol(number)} that Hirshfeld charges need did not converge in {CYCLES} "
            "iterations; leave out hirshfeld and cm5"
        )
    radii = RADIUS * np.linspace(0.0, 1.0, POINTS) ** 2
    along_x = np.stack([radii, 0 * radii, 0 * radii], axis=1)
    orbitals = field.mol.eval_gto("GTOval_sph", along_x)
    density = np.einsum("pi,ij,pj->p", orbitals, field.make_rdm1().sum(axis=0), orbitals)
    return ProAtom(number=number, electrons=_electrons(shells), radii=radii, density=density)


def _spherical_field(
    number: int, basis: Any, ecp: Any, shells: Mapping[int, FloatArray], functional: str
) -> Any:
    """An unrestricted field of an atom, whose occupations are those of the shells."""
    from pyscf import dft, gto

    name = symbol(number)
    atom = gto.M(
        atom=[(name, (0.0, 0.0, 0.0))],
        basis={name: [shell for shell in basis if shell[0] in shells]},
        ecp={name: ecp} if ecp else {},
        spin=_electrons(shells) % 2,
        cart=False,
        verbose=0,
    )
    field = dft.UKS(atom, xc=functional)
    drop_checkpoint(field)
    # Barely changes a density, and costs most of the time.
    field.nlc = 0
    field.conv_tol = CONV_TOL
    field.max_cycle = CYCLES
    field.get_occ = partial(_occupy, field, shells, _momenta(atom))
    return field


def _electrons(shells: Mapping[int, FloatArray]) -> int:
    return round(sum((2 * momentum + 1) * float(shares.sum()) for momentum, shares in shells.items()))


def _covers(number: int, core: int) -> bool:
    from pyscf import gto

    try:
        gto.basis.load(BASIS, symbol(number))
    except (RuntimeError, KeyError, TypeError, OSError):
        return False
    return ecp_electrons(BASIS, number) == core


def _occupations(number: int, core: int) -> dict[int, FloatArray]:
    """Occupation of an orbital of each shell, (2, shells) for both spins, by angular momentum."""
    from pyscf import gto
    from pyscf.data.elements import CONFIGURATION

    inside = gto.ecp.core_configuration(core, symbol(number)) if core else [0, 0, 0, 0]
    found = {}
    for momentum, electrons in enumerate(CONFIGURATION[number]):
        places = 2 * momentum + 1
        full, rest = divmod(electrons, 2 * places)
        unpolarised = momentum == 1 and rest >= places
        alpha = rest / 2 if unpolarised else min(rest, places)
        shares = [[1.0] * full + [n / places] * (rest > 0) for n in (alpha, rest - alpha)]
        outside: FloatArray = np.array(shares)[:, inside[momentum] :]
        if outside.size:
            found[momentum] = outside
    return found


def _momenta(atom: Any) -> IntArray:
    """Angular momentum of each spherical AO of one atom."""
    shells = range(atom.nbas)
    momenta = np.array([atom.bas_angular(i) for i in shells], dtype=np.int64)
    contractions = np.array([atom.bas_nctr(i) for i in shells], dtype=np.int64)
    return np.repeat(momenta, (2 * momenta + 1) * contractions)


def _occupy(
    field: Any,
    shells: Mapping[int, FloatArray],
    momenta: IntArray,
    energies: FloatArray,
    orbitals: FloatArray,
) -> FloatArray:
    """(2, n) occupations that keep the atom spherical: all orbitals of a shell have the same."""
    occupied = np.zeros_like(energies)
    present = np.array(sorted(shells))
    for spin in range(2):
        weights = np.stack([(orbitals[spin][momenta == m] ** 2).sum(axis=0) for m in present])
        character = present[weights.argmax(axis=0)]
        for momentum, shares in shells.items():
            mine = np.flatnonzero(character == momentum)
            mine = mine[np.argsort(energies[spin][mine])]
            filled = np.repeat(shares[spin], 2 * momentum + 1)
            if len(mine) < len(filled):
                raise ConfigurationError(
                    f"the basis set of {field.mol.atom_symbol(0)} has too few functions for its electrons, "
                    "so that there is no free atom for Hirshfeld charges; leave out hirshfeld and cm5"
                )
            occupied[spin][mine[: len(filled)]] = filled
    field.nelec = tuple(occupied.sum(axis=1))
    return occupied

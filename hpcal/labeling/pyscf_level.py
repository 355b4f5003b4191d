"""The level of theory of PySCF's labels, and the noise that such settings have."""

from __future__ import annotations

from typing import Any, Final

from hpcal.core.label import LevelOfTheory, Noise
from hpcal.labeling import fitting, hirshfeld
from hpcal.labeling.functional import Functional, dispersion_version
from hpcal.labeling.pyscf_settings import PySCFSettings

MILLI: Final = 1e-3
GRID_NOISE: Final = {
    0: Noise(energy=200e-3, force=150e-3),
    1: Noise(energy=2e-3, force=45e-3),
    2: Noise(energy=0.1e-3, force=7e-3),
    3: Noise(energy=0.1e-3, force=7e-3),
    4: Noise(energy=0.05e-3, force=1.5e-3),
    5: Noise(energy=0.03e-3, force=1e-3),
}
"""By the level of PySCF's grid, up to the finest told apart: of LDA, GGA and hybrids of them.

Measured on displaced water, ethanol and glycine with PBE0/def2-SVP and ωB97X/6-31G*, density fitting on
both sides, against grid 5 to 8 with its response, water and ethanol at random orientations: the largest
error of an energy per atom, the largest root mean square over components of the forces (single
components err by up to five times that), rounded up. ωB97X sets the forces from grid 1 on: from grid 4 it
gains little, and it errs on glycine at grid 3 as at grid 2.
"""
META_GRID_NOISE: Final = {
    0: Noise(energy=200e-3, force=1000e-3),
    1: Noise(energy=2e-3, force=50e-3),
    2: Noise(energy=0.6e-3, force=40e-3),
    3: Noise(energy=0.1e-3, force=10e-3),
    4: Noise(energy=0.05e-3, force=10e-3),
    5: Noise(energy=0.03e-3, force=1e-3),
}
"""Of meta-GGAs: likewise with M06-2X and ωB97M-V on water and r²SCAN on water and ethanol, def2-SVP.

r²SCAN sets grids 2 to 4; ωB97M-V errs by less than a twentieth of it on 2 and 3. PySCF's own grid for
VV10 was left as it is.
"""
FITTED_COULOMB: Final = 2.5e-3
FITTED_EXCHANGE: Final = 8e-3
FITTED_MINIMAL: Final = 15e-3
"""eV/atom by which density fitting errs, systematically: of Coulomb repulsion; of exact exchange, where
it is whole at short range; of minimal basis sets, for which no auxiliary set was made.

The largest seen of CO, N2, O2, SO2, HCl, HBr, HI, hydrogen fluoride and water with 3-21G, 6-31G*, def2-SVP,
cc-pVDZ and def2-TZVP: Hartree–Fock 9.0, M06-2X 5.1, PBE 2.2, PBE0 1.9, ωB97X 1.0 meV/atom; with STO-3G
PBE 14.3. MP2 and CCSD(T) err by less than Hartree–Fock.
Forces are slopes of the fitted energy, so that nothing is added to their noise.
"""


def level_of(settings: PySCFSettings, functional: Functional, version: str) -> LevelOfTheory:
    """Everything that decides the value of a label."""
    from pyscf.dft import libxc

    density_functional = not functional.hartree_fock
    values: dict[str, Any] = {
        "basis": settings.basis.strip().lower(),
        "cartesian": settings.cartesian,
        "ecp": settings.ecp,
        "density_fit": settings.density_fit,
        **({"auxiliary": fitting.RULE} if settings.density_fit else {}),
        "dispersion": functional.dispersion,
        "dispersion_version": None if functional.dispersion == "none" else dispersion_version(),
        "conv_tol": settings.conv_tol,
        "reference": settings.reference,
        "functional": functional.components,
        "libxc": str(libxc.__version__) if density_functional else None,
        "grid_level": functional.grid(settings.grid_level) if density_functional else None,
        "grid_response": settings.grid_response if density_functional else None,
    }
    if {"hirshfeld", "cm5"} & set(settings.charges):
        # Charges of these schemes depend on the free atoms that they share a density out by.
        values["free_atoms"] = f"{hirshfeld.FUNCTIONAL}/{hirshfeld.BASIS}"
    if functional.correlation:
        values["frozen_core"] = settings.frozen_core
    return LevelOfTheory(
        code="pyscf",
        version=version,
        method=functional.correlation or functional.name,
        settings=values,
        noise=declared_noise(settings, functional),
    )


def declared_noise(settings: PySCFSettings, functional: Functional) -> Noise:
    """The noise that the user declares, or that was measured for such settings (docs/performance.md)."""
    if settings.noise is not None:
        stated = settings.noise
        return Noise(energy=stated.energy_meV_per_atom * MILLI, force=stated.force_meV_per_A * MILLI)
    # Of an error ε of the energy, an SCF leaves √ε in its orbitals and in the forces.
    convergence = Noise(energy=27.2 * settings.conv_tol, force=10.0 * settings.conv_tol**0.5)
    parts = [convergence]
    if functional.correlation:
        # Correlation is not stationary in the orbitals, so that their error counts in first order.
        parts.append(Noise(energy=50 * convergence.energy, force=0.0))
    if not functional.hartree_fock:
        parts.append(_grid_noise(functional.grid(settings.grid_level), functional))
    if settings.density_fit:
        parts.append(Noise(energy=_fitting_error(settings.basis, functional), force=0.0))
    return Noise(energy=sum(p.energy for p in parts), force=sum(p.force for p in parts))


def _grid_noise(level: int, functional: Functional) -> Noise:
    table = META_GRID_NOISE if functional.meta else GRID_NOISE
    return table[min(level, max(table))]


def _fitting_error(basis: str, functional: Functional) -> float:
    """eV/atom; at long range exchange is smooth and fitted well."""
    if basis.strip().lower().startswith("sto"):
        return FITTED_MINIMAL
    return FITTED_COULOMB + functional.exact_exchange * FITTED_EXCHANGE

"""The level of theory of PySCF's labels, and the noise that such settings have."""

from __future__ import annotations

from typing import Any, Final

from hpcal.core.label import LevelOfTheory, Noise
from hpcal.labeling import hirshfeld
from hpcal.labeling.functional import Functional, dispersion_version
from hpcal.labeling.pyscf_settings import PySCFSettings

MILLI: Final = 1e-3
FITTING: Final = Noise(energy=0.2e-3, force=0.0)
"""eV/atom by which density fitting errs, systematically."""
GRID_NOISE: Final = {
    0: Noise(energy=100e-3, force=500e-3),
    1: Noise(energy=10e-3, force=85e-3),
    2: Noise(energy=1e-3, force=10e-3),
    3: Noise(energy=0.2e-3, force=2e-3),
}
"""By the level of PySCF's grid; finer ones have a tenth of the last."""


def level_of(settings: PySCFSettings, functional: Functional, version: str) -> LevelOfTheory:
    """Everything that decides the value of a label."""
    from pyscf.dft import libxc

    density_functional = not functional.hartree_fock
    values: dict[str, Any] = {
        "basis": settings.basis.strip().lower(),
        "cartesian": settings.cartesian,
        "ecp": settings.ecp,
        "density_fit": settings.density_fit,
        "dispersion": functional.dispersion,
        "dispersion_version": None if functional.dispersion == "none" else dispersion_version(),
        "conv_tol": settings.conv_tol,
        "reference": settings.reference,
        "functional": functional.components,
        "libxc": str(libxc.__version__) if density_functional else None,
        "grid_level": settings.grid_level if density_functional else None,
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
        parts.append(GRID_NOISE.get(settings.grid_level, _tenth(GRID_NOISE[3])))
    if settings.density_fit:
        parts.append(FITTING)
    return Noise(energy=sum(p.energy for p in parts), force=sum(p.force for p in parts))


def _tenth(noise: Noise) -> Noise:
    return Noise(energy=noise.energy / 10, force=noise.force / 10)

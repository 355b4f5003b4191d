"""Main levels of theory and molecules of the benchmarks of labels, with what is measured on them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from hpcal.core.deadline import Deadline
from hpcal.core.label import Label
from hpcal.core.structure import Structure
from hpcal.labeling.audits import finite_difference
from hpcal.labeling.checks import CheckedLabeler, ChecksSettings
from hpcal.labeling.pyscf import PySCF
from hpcal.labeling.pyscf_settings import PySCFSettings
from hpcal.sampling.conformers import ConformerSettings, enumerate_conformers

SMILES: Final = {"water": "O", "ethanol": "CCO", "glycine": "NCC(=O)O"}
LEVELS: Final[dict[str, dict[str, Any]]] = {
    "HF/STO-3G": {"method": "hf", "basis": "sto-3g"},
    "ωB97X/6-31G*": {"method": "wb97x", "basis": "6-31g*"},
    "ωB97X/6-31G*, density fitting": {"method": "wb97x", "basis": "6-31g*", "density_fit": True},
    "PBE0-D3BJ/def2-SVP, density fitting": {
        "method": "pbe0",
        "basis": "def2-svp",
        "dispersion": "d3bj",
        "density_fit": True,
    },
}
AUDITS: Final = ("finite_difference", "other_guess", "stability")
"""Those that are made by default."""
FINE: Final = {"density_fit": False, "grid_level": 6, "grid_response": True, "conv_tol": 1e-11}


def molecule(name: str) -> Structure:
    """The lowest conformer of a molecule."""
    return enumerate_conformers(SMILES[name], ConformerSettings(), np.random.default_rng(1)).structures[0]


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What some work gives, and the seconds of the processor that it took."""
    began = time.process_time()
    result = work()
    return result, time.process_time() - began


def labelled(source: Any, structure: Structure) -> tuple[Label, float]:
    """A label, and the seconds of the processor that it took."""
    result, seconds = timed(lambda: source.label(structure, Deadline()))
    assert isinstance(result, Label), result
    return result, seconds


def pyscf(**settings: Any) -> PySCF:
    """The labeler of PySCF with some settings."""
    return PySCF(PySCFSettings(**settings))


def deviation(settings: dict[str, Any], structure: Structure, count: int) -> tuple[float, float]:
    """Noise of a level: its deviation from itself without density fitting, on a fine grid, well converged.

    Returns:
        Root mean square over ``count`` displaced geometries, of energies (eV/atom, their mean
        removed) and of components of forces (eV/Å).
    """
    rough, fine = pyscf(**settings), pyscf(**{**settings, **FINE})
    rng = np.random.default_rng(5)
    energies, forces = [], []
    for _ in range(count):
        moved = structure.with_positions(structure.positions + rng.normal(0, 0.04, structure.positions.shape))
        a, b = labelled(rough, moved)[0], labelled(fine, moved)[0]
        assert a.forces is not None
        assert b.forces is not None
        energies.append((a.energy - b.energy) / len(moved))
        forces.append(a.forces - b.forces)
    spread = np.array(energies) - np.mean(energies)
    return float(np.sqrt(np.mean(spread**2))), float(np.sqrt(np.mean(np.array(forces) ** 2)))


@dataclass(frozen=True, kw_only=True)
class Price:
    """What checks of a label cost.

    Attributes:
        seconds: of the processor, of an unchecked label.
        shares: of that, by check.
        by_default: share of what is done by default, audits by the share of labels that has them.
    """

    seconds: float
    shares: dict[str, float]
    by_default: float


def price(name: str) -> Price:
    """The price of each check of a label at PBE0/def2-SVP with density fitting."""
    settings = {"method": "pbe0", "basis": "def2-svp", "density_fit": True}
    structure, plain = molecule(name), pyscf(**settings, reference="rks_unchecked")
    source = pyscf(**settings)
    labelled(plain, structure)
    _, unchecked = labelled(plain, structure)
    label, checked = labelled(source, structure)
    _, gated = labelled(CheckedLabeler(source, ChecksSettings(audit_share=0.0)), structure)
    shares = {
        "search for the lowest state": (checked - unchecked) / unchecked,
        "checks before and after": (gated - checked) / unchecked,
    }
    audits = {"finite_difference": partial(finite_difference, source, structure, label, Deadline())}
    for audit in ("other_guess", "stability", "fod"):
        audits[audit] = partial(source.audit, audit, structure, label, Deadline())
    shares |= {audit: timed(made)[1] / unchecked for audit, made in audits.items()}
    sampled = ChecksSettings().audit_share * sum(shares[audit] for audit in AUDITS)
    by_default = shares["search for the lowest state"] + shares["checks before and after"] + sampled
    return Price(seconds=unchecked, shares=shares, by_default=by_default)

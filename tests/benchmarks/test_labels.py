"""What labels cost and how well they are calculated: time, memory, noise, and the price of each check.

Times are of the processor, one thread. The noise of a level is its deviation from the same level
without density fitting, on a fine grid and tightly converged, over displaced geometries: of an
energy per atom (its constant part aside), of a component of a force.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hpcal.core.deadline import Deadline
from hpcal.core.label import Label
from hpcal.core.structure import Structure
from hpcal.labeling.audits import finite_difference
from hpcal.labeling.checks import CheckedLabeler, ChecksSettings
from hpcal.labeling.pyscf import PySCF
from hpcal.labeling.pyscf_settings import PySCFSettings
from hpcal.labeling.xtb import XTB, XTBSettings

pytestmark = pytest.mark.benchmark

AUDIT_SHARE = ChecksSettings().audit_share
LEVELS: dict[str, dict[str, Any]] = {
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
FINE = {"density_fit": False, "grid_level": 6, "grid_response": True, "conv_tol": 1e-11}


def molecules() -> dict[str, Structure]:
    from hpcal.sampling.conformers import ConformerSettings, enumerate_conformers

    made = {}
    for name, smiles in (("water", "O"), ("ethanol", "CCO"), ("glycine", "NCC(=O)O")):
        found = enumerate_conformers(smiles, ConformerSettings(), np.random.default_rng(1))
        made[name] = found.structures[0]
    return made


def displaced(structure: Structure, count: int) -> list[Structure]:
    rng = np.random.default_rng(5)
    return [
        structure.with_positions(structure.positions + rng.normal(0, 0.04, structure.positions.shape))
        for _ in range(count)
    ]


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.process_time()
    result = work()
    return result, time.process_time() - began


def labelled(source: Any, structure: Structure) -> tuple[Label, float]:
    result, seconds = timed(lambda: source.label(structure, Deadline()))
    assert isinstance(result, Label), result
    return result, seconds


def pyscf(**settings: Any) -> PySCF:
    return PySCF(PySCFSettings(**settings))


def peak_MB() -> float:  # noqa: N802
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)


def test_time_and_noise_of_the_main_levels() -> None:
    print("\nlevel, molecule: CPU seconds of a checked label, noise in meV/atom and meV/Å, declared")
    for name, structure in molecules().items():
        _, seconds = labelled(XTB(XTBSettings()), structure)
        _, seconds = labelled(XTB(XTBSettings()), structure)
        print(f"{'GFN2-xTB':38s} {name:8s} {seconds:8.3f} s")
    for level, settings in LEVELS.items():
        for name, structure in molecules().items():
            source = pyscf(**settings)
            labelled(source, structure)
            _, seconds = labelled(source, structure)
            if name != "water":  # fine references of the others take minutes each
                print(f"{level:38s} {name:8s} {seconds:8.2f} s, peak {peak_MB():.0f} MB")
                continue
            noise = deviation(settings, structure, 4)
            declared = source.level.noise
            assert declared is not None
            print(
                f"{level:38s} {name:8s} {seconds:8.2f} s, peak {peak_MB():.0f} MB, "
                f"{noise[0] * 1e3:.3f} meV/atom, {noise[1] * 1e3:.2f} meV/Å "
                f"(declared {declared.energy * 1e3:.2f}, {declared.force * 1e3:.2f})"
            )
            assert noise[0] <= 2 * declared.energy + 1e-6
            assert noise[1] <= 2 * declared.force + 1e-5


def deviation(settings: dict[str, Any], structure: Structure, count: int) -> tuple[float, float]:
    """Root mean square over displaced geometries, of energies (eV/atom, mean removed) and forces (eV/Å)."""
    rough, fine = pyscf(**settings), pyscf(**{**settings, **FINE})
    energies, forces = [], []
    for moved in displaced(structure, count):
        a, b = labelled(rough, moved)[0], labelled(fine, moved)[0]
        assert a.forces is not None
        assert b.forces is not None
        energies.append((a.energy - b.energy) / len(moved))
        forces.append(a.forces - b.forces)
    spread = np.array(energies) - np.mean(energies)
    return float(np.sqrt(np.mean(spread**2))), float(np.sqrt(np.mean(np.array(forces) ** 2)))


def test_the_default_checks_cost_less_than_half_a_label() -> None:
    print("\nprice of the checks in percent of an unchecked label, PBE0/def2-SVP with density fitting:")
    settings = {"method": "pbe0", "basis": "def2-svp", "density_fit": True}
    for name, structure in molecules().items():
        plain = pyscf(**settings, reference="rks_unchecked")
        source = pyscf(**settings)
        labelled(plain, structure)
        _, unchecked = labelled(plain, structure)
        label, checked = labelled(source, structure)
        state = (checked - unchecked) / unchecked
        gates = CheckedLabeler(source, ChecksSettings(audit_share=0.0))
        _, gated = timed(lambda gates=gates, structure=structure: gates.label(structure, Deadline()))
        parts = {"state check": state, "checks and gates": max(0.0, (gated - checked) / unchecked)}
        for audit in ("finite_difference", "other_guess", "stability", "fod"):
            _, seconds = timed(
                lambda audit=audit, source=source, structure=structure, label=label: (
                    finite_difference(source, structure, label, Deadline())
                    if audit == "finite_difference"
                    else source.audit(audit, structure, label, Deadline())
                )
            )
            parts[audit] = seconds / unchecked
        by_default = state + sum(
            AUDIT_SHARE * parts[a] for a in ("finite_difference", "other_guess", "stability")
        )
        listed = ", ".join(f"{part} {100 * share:.0f} %" for part, share in parts.items())
        print(f"{name:8s} label {unchecked:.2f} s: {listed}; by default {100 * by_default:.0f} %")
        assert name == "water" or by_default < 0.5

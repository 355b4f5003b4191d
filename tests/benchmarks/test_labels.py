"""What labels of the main levels are worth on water, and the price of each check.

Times are of the processor, one thread. The table of all levels and molecules, with memory, is
made by ``label_table.py``: its fine references take half an hour.
"""

from __future__ import annotations

import pytest
from support.label_levels import LEVELS, SMILES, deviation, labelled, molecule, pyscf, timed

from hpcal.core.deadline import Deadline
from hpcal.labeling.audits import finite_difference
from hpcal.labeling.checks import CheckedLabeler, ChecksSettings

pytestmark = pytest.mark.benchmark

AUDIT_SHARE = ChecksSettings().audit_share


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_is_no_noisier_than_it_declares(level: str) -> None:
    declared = pyscf(**LEVELS[level]).level.noise
    assert declared is not None
    energy, force = deviation(LEVELS[level], molecule("water"), 4)
    print(
        f"\n{level}, water: {energy * 1e3:.3f} meV/atom, {force * 1e3:.2f} meV/Å "
        f"(declared {declared.energy * 1e3:.2f}, {declared.force * 1e3:.2f})"
    )
    assert energy <= declared.energy + 1e-6
    assert force <= declared.force + 1e-5


def test_the_default_checks_cost_less_than_half_a_label() -> None:
    print("\nprice of the checks in percent of an unchecked label, PBE0/def2-SVP with density fitting:")
    settings = {"method": "pbe0", "basis": "def2-svp", "density_fit": True}
    for name in SMILES:
        structure = molecule(name)
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

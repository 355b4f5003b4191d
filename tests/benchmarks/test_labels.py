"""What labels of the main levels are worth on water, and the price of the checks.

Times are of the processor, one thread. The tables of all levels and molecules, with memory, are
made by ``label_table.py``: its fine references take half an hour.
"""

from __future__ import annotations

import pytest
from support.label_levels import LEVELS, deviation, molecule, price, pyscf

pytestmark = pytest.mark.benchmark


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_is_no_noisier_than_it_declares(level: str) -> None:
    if "dispersion" in LEVELS[level]:
        pytest.importorskip("pyscf.dispersion", reason="needs pyscf-dispersion")
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
    found = price("ethanol")
    print("\nchecks of ethanol at PBE0/def2-SVP, fitted, in percent of an unchecked label:")
    print(", ".join(f"{part} {100 * share:.0f}" for part, share in found.shares.items()))
    assert found.by_default < 0.5

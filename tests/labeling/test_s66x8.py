"""Labels against the published energies, forces and charges of dimers of S66x8."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcal.core.deadline import Deadline
from hpcal.core.elements import atomic_number
from hpcal.core.label import Label
from hpcal.core.structure import Structure
from hpcal.core.units import HARTREE
from hpcal.labeling.checks import CheckedLabeler, ChecksSettings
from hpcal.labeling.pyscf import PySCF
from hpcal.labeling.pyscf_settings import PySCFSettings

S66X8 = Path(__file__).parents[2] / ".." / "shared" / "data" / "s66x8" / "s66x8_wb97x6-31gd.h5"
IN_SPACE = ("hirshfeld", "cm5")
ENERGY = 1e-3
"""eV/atom."""
FORCE = 10e-3
"""eV/Å. Of two dimers the stored ones are off by up to 4.3 meV/Å from those of grid 7 with its
response; the rest is left to the grid of the label."""
CHARGE = 0.01
DIMERS = {
    "water–water": ("mol00", 0),
    "water–methanol": ("mol01", 0),
    "water–methylamine": ("mol02", 0),
    "methanol–methanol": ("mol04", 0),
    "methanol–water": ("mol07", 3),
    "methylamine–water": ("mol11", 0),
    "ethyne–ethyne": ("mol50", 0),
    "ethyne–water": ("mol58", 0),
}
"""Name in the file, and which of the eight distances, from 0.9 to 2 equilibrium ones."""


@pytest.mark.slow
@pytest.mark.skipif(not S66X8.exists(), reason="needs s66x8 in ../shared/data")
@pytest.mark.parametrize(("name", "frame"), DIMERS.values(), ids=DIMERS)
def test_labels_of_dimers_are_the_published(name: str, frame: int) -> None:
    """The file's ``forces`` are gradients, in Hartree/Å; the last of its charges is their sum."""
    with h5py.File(S66X8) as file:
        group = file["s66x8"][name]
        numbers = [atomic_number(s.decode()) for s in group["species"][:]]
        structure = Structure(numbers=numbers, positions=group["coordinates"][frame].astype(float))
        energy = float(group["energies"][frame]) * HARTREE
        forces = -group["forces"][frame].astype(float) * HARTREE
        charges = {scheme: group[scheme][frame, :-1] for scheme in IN_SPACE}
    source = PySCF(PySCFSettings(method="wb97x", basis="6-31g(d)", cartesian=True, charges=IN_SPACE))
    label = CheckedLabeler(source, ChecksSettings(audit_share=0.0)).label(structure, Deadline())
    assert isinstance(label, Label), label
    off = (label.energy - energy) / len(structure)
    force_off = np.abs(label.forces - forces).max()
    print(f"{name}: {off * 1e3:+.3f} meV/atom, {force_off * 1e3:.2f} meV/Å, {np.abs(forces).max():.2f} eV/Å")
    assert abs(off) < ENERGY
    assert force_off < FORCE
    assert np.abs(forces).max() > 20 * FORCE
    ours = {label.charge_scheme: label.charges, **label.other_charges}
    for scheme in IN_SPACE:
        assert np.abs(ours[scheme] - charges[scheme]).max() < CHARGE, scheme

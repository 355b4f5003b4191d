"""The names that hpcal gives to things in extended XYZ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from hpcal.core.label import Label
from hpcal.core.structure import Structure

LABEL_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "energy": ("REF_energy", "energy"),
    "forces": ("REF_forces", "forces", "force"),
    "stress": ("REF_stress", "stress"),
    "dipole": ("REF_dipole", "dipole"),
    "dipole_origin": ("REF_dipole_origin",),
    "virial": ("REF_virial", "REF_virials", "virial", "virials"),
    "charges": ("REF_charges", "charges", "charge"),
    "charge_scheme": ("REF_charge_scheme",),
    "quadrupole": ("REF_quadrupole",),
}
"""Names under which each part of a label is looked for; the first is the one that is written."""

OTHER_CHARGES: Final = "REF_charges_"
"""Begin of the column of charges by a further scheme, whose name follows."""

CHARGE_KEYS: Final = ("charge", "total_charge")
MULTIPLICITY_KEYS: Final = ("multiplicity", "total_spin", "spin")
"""The first is ours; MACE reads ``total_charge`` and ``total_spin`` (2S + 1), OMol25 has ``spin``."""

STRUCTURE_KEYS: Final = frozenset({"Lattice", "Properties", "pbc", "charge", "multiplicity"})
RESERVED: Final = STRUCTURE_KEYS | {"level"} | {k for keys in LABEL_KEYS.values() for k in keys}


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledFrame:
    """A labelled structure, and what else is said of it.

    Attributes:
        info: further keys of the comment line, such as ``split``, ``generation``, ``origin``,
            ``config_type``; texts when read.
    """

    structure: Structure
    label: Label
    info: Mapping[str, Any] = field(default_factory=dict)

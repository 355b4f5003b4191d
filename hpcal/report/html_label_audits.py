"""Section of the report on the audits of labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from hpcal.report.data import ReportData
from hpcal.report.page import Cell, Section, shown, table, text
from hpcal.store.label_audits import AuditSummary

UNITS: Final[Mapping[str, str]] = {
    "finite_difference": "eV/Å",
    "other_guess": "eV",
}
"""Of the values of audits that hpcal's own labelers make; others have none, or a plugin knows it."""
MEANINGS: Final[Mapping[str, str]] = {
    "finite_difference": "force along a random direction against the slope of the energy",
    "other_guess": "how much lower an SCF from another guess ends",
    "stability": "whether the orbitals are a minimum",
    "fod": "N_FOD, electrons in fractional occupations",
    "t1": "T1 of CCSD, one determinant is poor above 0.02",
}


def section(data: ReportData) -> Section:
    """What the audits of labels found."""
    lead = text(
        "A share of the labels (label.checks.audit_share) gets further calculations, drawn by the structure "
        "alone. A label that fails one is not learned from, and its structure is set aside. Audits that "
        "allow everything only inform.",
        "lead",
    )
    rows: list[list[Cell]] = [
        [
            found.name,
            MEANINGS.get(found.name),
            found.made,
            found.failed,
            _with_unit(found.name, found.worst),
            found.worst_structure,
            _limit(found),
        ]
        for found in data.label_audits
    ]
    head = ("audit", "", "labels", "failed", "largest value", "of structure", "allowed")
    body = (
        lead + table(head, rows, "tables label, rejection (diagnostics: audits)")
        if rows
        else lead + text("No label has been audited yet.", "nothing")
    )
    return Section(anchor="label-audits", title="Audits of labels", body=body)


def _limit(found: AuditSummary) -> str | None:
    if found.limits is None:
        return None if found.worst is None else "informs"
    low, high = found.limits
    limits = shown(high) if low == high else f"{shown(low)} to {shown(high)}"
    return _measured(limits, found.name)


def _with_unit(name: str, value: float | None) -> str | None:
    return None if value is None else _measured(shown(float(value)), name)


def _measured(number: str, name: str) -> str:
    """A number with the unit of an audit, on one line."""
    return f"{number}\u00a0{UNITS[name]}" if name in UNITS else number

"""The audits of labels: further calculations that a share of them gets, summed up by name.

Not the audit stream: what is summed up here tells how good labels are, not how good ensembles are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import String, cast, select
from sqlalchemy.orm import Session

from hpcal.store.tables import LabelRow, RejectionRow

KEY: Final = "audits"
"""Key of the diagnostics of a label, or of the rejection by an audit: name → value, limit, passed."""


@dataclass(frozen=True, kw_only=True)
class AuditSummary:
    """All audits of one name.

    Attributes:
        name: such as ``finite_difference``.
        made: how many labels got it.
        failed: how many were turned away by it.
        worst: largest value, in the unit of the audit, or None where it gives none.
        worst_structure: the structure that has it.
        limits: smallest and largest limit, or None for one that only informs.
    """

    name: str
    made: int
    failed: int
    worst: float | None
    worst_structure: int | None
    limits: tuple[float, float] | None


def label_audits(session: Session) -> list[AuditSummary]:
    """Audits by name, those of rejected labels included."""
    found: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    for structure_id, audits in _records(session):
        for name, record in audits.items():
            found.setdefault(name, []).append((structure_id, record))
    return [_summary(name, records) for name, records in sorted(found.items())]


def _records(session: Session) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for row in (LabelRow, RejectionRow):
        # The text narrows the search inside the database: few labels are audited.
        audited = cast(row.diagnostics, String).like(f'%"{KEY}"%')
        for structure_id, diagnostics in session.execute(
            select(row.structure_id, row.diagnostics).where(audited).order_by(row.id)
        ):
            audits = diagnostics.get(KEY)
            if isinstance(audits, Mapping):
                yield structure_id, audits


def _summary(name: str, records: list[tuple[int, Mapping[str, Any]]]) -> AuditSummary:
    values = [(r["value"], i) for i, r in records if r.get("value") is not None]
    limits = [r["limit"] for _, r in records if r.get("limit") is not None]
    worst, structure_id = max(values, key=lambda found: found[0], default=(None, None))
    return AuditSummary(
        name=name,
        made=len(records),
        failed=sum(not r["passed"] for _, r in records),
        worst=worst,
        worst_structure=structure_id,
        limits=(min(limits), max(limits)) if limits else None,
    )

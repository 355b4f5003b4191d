"""All checks of labelled data in one report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from hpcal.labeling.checks import ChecksSettings
from hpcal.report.integrity.balance import balance_findings
from hpcal.report.integrity.collection import Collection
from hpcal.report.integrity.coverage import coverage, coverage_findings
from hpcal.report.integrity.duplicates import duplicate_findings
from hpcal.report.integrity.finding import Finding, Severity
from hpcal.report.integrity.outliers import outlier_findings
from hpcal.report.integrity.shapes import shapes
from hpcal.report.integrity.states import state_findings
from hpcal.report.integrity.twins import find_twins
from hpcal.report.integrity.units import unit_findings

ORDER: Final = (Severity.ERROR, Severity.WARNING, Severity.NOTE)


@dataclass(frozen=True, kw_only=True)
class Aims:
    """What data are measured against.

    Attributes:
        cutoff: of the potential they are for, Å.
        near: largest displacement of an atom in a near-duplicate, Å.
        checks: the gates of labels.
        gated: whether the labels should have passed them.
        limit: examples of each finding.
    """

    cutoff: float
    near: float
    checks: ChecksSettings
    gated: bool
    limit: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found.

    Attributes:
        what: names of what was checked.
        collection: the structures; None where there are none.
        findings: the worst first.
        coverage: JSON values, empty without structures.
    """

    what: tuple[str, ...]
    collection: Collection | None
    findings: tuple[Finding, ...]
    coverage: dict[str, Any]

    @property
    def errors(self) -> bool:
        """Whether any finding is an error."""
        return any(finding.severity is Severity.ERROR for finding in self.findings)

    def record(self) -> dict[str, Any]:
        """The report as JSON values, in eV and Å."""
        counts = Counter(str(finding.severity) for finding in self.findings)
        return {
            "checked": list(self.what),
            "structures": 0 if self.collection is None else len(self.collection),
            "severities": {str(severity): counts[str(severity)] for severity in ORDER},
            "findings": [finding.record(self.collection) for finding in self.findings],
            "coverage": self.coverage,
        }


def examine(collection: Collection, aims: Aims) -> tuple[list[Finding], dict[str, Any]]:
    """Findings on labelled structures, and what they cover."""
    seen = shapes(collection, aims.cutoff)
    covered = coverage(collection, seen, aims.cutoff)
    findings = [
        *state_findings(collection, limit=aims.limit),
        *duplicate_findings(
            collection, find_twins(collection, aims.near), near_A=aims.near, limit=aims.limit
        ),
        *unit_findings(collection),
        *outlier_findings(collection, seen, aims.checks, limit=aims.limit),
        *balance_findings(collection, aims.checks, gated=aims.gated, limit=aims.limit),
        *coverage_findings(covered, seen, limit=aims.limit),
    ]
    return findings, covered


def report_of(
    what: Sequence[str], collection: Collection | None, aims: Aims, more: Sequence[Finding] = ()
) -> Report:
    """The report on a collection; ``more`` was found elsewhere (rows, files)."""
    found, covered = ([], {}) if collection is None else examine(collection, aims)
    every = [*more, *found]
    every.sort(key=lambda finding: ORDER.index(finding.severity))
    return Report(what=tuple(what), collection=collection, findings=tuple(every), coverage=covered)

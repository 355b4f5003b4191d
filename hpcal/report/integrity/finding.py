"""What a check of data finds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from hpcal.core.arrays import AnyArray
from hpcal.report.integrity.collection import Collection


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    """A model trained or tested on these data learns or tells something wrong."""
    WARNING = "warning"
    """Likely unwanted; someone has to look."""
    NOTE = "note"
    """Worth knowing."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One case of a finding.

    Attributes:
        where: indices of the frames in the collection; empty for what is not a frame.
        detail: what is there, with its numbers.
        value: the number that the cases are ordered by, or None.
    """

    where: tuple[int, ...] = ()
    detail: str
    value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One kind of defect.

    Attributes:
        kind: short stable name.
        severity: how bad it is.
        count: all cases.
        meaning: what it means and what to do, in one or two sentences.
        examples: the worst cases, at most as many as were asked for.
    """

    kind: str
    severity: Severity
    count: int
    meaning: str
    examples: tuple[Example, ...] = ()

    def record(self, collection: Collection | None) -> dict[str, Any]:
        """The finding as JSON values; ``collection`` holds the frames of its examples."""
        return {
            "kind": self.kind,
            "severity": str(self.severity),
            "count": self.count,
            "meaning": self.meaning,
            "examples": [
                {
                    "where": [] if collection is None else [collection.place(i) for i in example.where],
                    "detail": example.detail,
                    "value": example.value,
                }
                for example in self.examples
            ],
        }


def worst(
    kind: str,
    severity: Severity,
    meaning: str,
    cases: Iterable[Example],
    *,
    limit: int,
    count: int | None = None,
    smallest: bool = False,
) -> list[Finding]:
    """A finding with its worst cases (largest value first, or smallest), or nothing without any case."""
    found = list(cases)
    if not found:
        return []
    sign = 1.0 if smallest else -1.0
    found.sort(key=lambda case: (sign * (case.value or 0.0), case.where))
    return [
        Finding(
            kind=kind,
            severity=severity,
            count=len(found) if count is None else count,
            meaning=meaning,
            examples=tuple(found[:limit]),
        )
    ]


def largest(index: Sequence[int] | AnyArray, values: AnyArray, limit: int) -> list[int]:
    """Those of ``index`` with the largest ``values`` (over all frames), largest first."""
    index = np.asarray(index, dtype=np.int64)
    order = np.argsort(-np.asarray(values)[index], kind="stable")[:limit]
    return [int(i) for i in index[order]]

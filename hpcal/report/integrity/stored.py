"""Findings on the store of a campaign and the files it knows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from hpcal.report.integrity.collection import Collection
from hpcal.report.integrity.finding import Example, Finding, Severity
from hpcal.store.integrity_read import (
    Contradiction,
    StoredFile,
    contradictions,
    stored_files,
    stored_labels,
)
from hpcal.store.session import Session

MEANING: Final = {
    "damaged_store": "The database finds its own file damaged. Take it back from a copy; `hpcal export` may "
    "still save what can be read.",
    "dangling_references": "Rows refer to rows that are not there: the store was changed by another program.",
    "unknown_state": "A state that the transition tables do not have: the store was changed by another "
    "program or a newer hpcal.",
    "labelled_without_label": "Structures count as labelled without a label; their result is lost. Take the "
    "store back from a copy.",
    "label_of_unlabelled": "Labels of structures that are not labelled: they train, but count as unfinished.",
    "rejected_without_reason": "Structures were turned away and nothing says why.",
    "label_in_other_split": "A label is of another split than its structure, which may leak test data into "
    "training.",
    "split_of_walker": "A frame is of another split than its walker: correlated frames may be on both sides.",
    "done_without_attempt": "Tasks count as done, but no attempt at them ended so.",
    "dispatched_without_attempt": "Tasks count as dispatched, but no attempt is open; `hpcal resume` "
    "starts them again.",
    "shard_count": "A shard does not hold as many structures as there are labels in its range.",
    "dataset_count": "A data set was counted otherwise than its labels are.",
    "trained_on_others": "A model learned from structures outside the training split of its data set: its "
    "errors on them say nothing.",
}


def campaign_collection(session: Session) -> Collection | None:
    """All labels of a campaign, or None without any. Raises StoreError for a damaged store."""
    found = stored_labels(session)
    if found is None:
        return None
    return Collection(
        data=found.data,
        levels=found.levels,
        level_names=found.level_names,
        families=found.walkers,
        sources=np.zeros(len(found.data), dtype=np.int64),
        source_names=(),
        ids=found.data.ids,
    )


def row_findings(session: Session, *, limit: int) -> list[Finding]:
    """Rows that contradict each other or the transition tables."""
    found: dict[str, list[Contradiction]] = {}
    for case in contradictions(session):
        found.setdefault(case.kind, []).append(case)
    return [
        Finding(
            kind=kind,
            severity=Severity.WARNING if kind == "dispatched_without_attempt" else Severity.ERROR,
            count=sum(case.count for case in cases),
            meaning=MEANING[kind],
            examples=tuple(_examples(cases))[:limit],
        )
        for kind, cases in found.items()
    ]


def _examples(cases: list[Contradiction]) -> Iterator[Example]:
    for case in cases:
        if not case.ids:
            yield Example(detail=case.detail)
        for row in case.ids:
            yield Example(detail=f"{case.table} {row}: {case.detail}")


def file_findings(session: Session, root: Path, *, limit: int) -> list[Finding]:
    """Shards and models that are missing, or whose bytes are not those that were recorded."""
    bad = [(file, problem) for file in stored_files(session) if (problem := _problem(root, file))]
    result = []
    for kind, meaning in (
        (
            "missing_files",
            "Files that the store knows are not there. `hpcal resume` writes a shard again from the rows and "
            "trains a model again; or copy them back.",
        ),
        (
            "changed_files",
            "Files whose bytes are not those that were recorded: cut short, damaged or overwritten. Nothing "
            "reads them; copy them back.",
        ),
    ):
        cases = [f"{f.name}, {f.path}: {p}" for f, p in bad if (p == "missing") == (kind == "missing_files")]
        if cases:
            result.append(
                Finding(
                    kind=kind,
                    severity=Severity.ERROR,
                    count=len(cases),
                    meaning=meaning,
                    examples=tuple(Example(detail=case) for case in cases[:limit]),
                )
            )
    return result


def _problem(root: Path, file: StoredFile) -> str | None:
    path = root / file.path
    if not path.is_file():
        return "missing"
    try:
        with path.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if digest == file.sha256:
        return None
    size = path.stat().st_size
    return f"{size} bytes with SHA-256 {digest[:12]}…, not {file.sha256[:12]}…"

"""Rows of the store, made singly."""

from __future__ import annotations

import time

from hpcal.core.label import Label
from hpcal.core.walker import Split
from hpcal.store.labels import NewLabel, add_labels
from hpcal.store.rows import label_columns
from hpcal.store.session import Session
from hpcal.store.tables import LabelRow, StructureRow


def label_row(
    label: Label, *, structure_id: int, split: Split, level_id: int, seq: int | None, attempt_id: int | None
) -> LabelRow:
    """A new row for a label."""
    columns = {name: values[0] for name, values in label_columns([label]).items()}
    return LabelRow(
        **columns | {"diagnostics": dict(label.diagnostics)},
        seq=seq,
        structure_id=structure_id,
        split=split,
        level_of_theory_id=level_id,
        attempt_id=attempt_id,
        created=time.time(),
    )


def add_label(
    session: Session, structure: StructureRow, label: Label, *, level_id: int, counted: bool = True
) -> None:
    """A label that was given with its structure."""
    new = NewLabel(structure_id=structure.id, split=structure.split, label=label)
    add_labels(session, [new], level_id=level_id, counted=counted)

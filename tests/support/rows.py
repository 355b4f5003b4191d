"""Rows of the store, made singly."""

from __future__ import annotations

import time

from hpcal.core.label import Label
from hpcal.core.walker import Split
from hpcal.store.rows import label_columns
from hpcal.store.tables import LabelRow


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

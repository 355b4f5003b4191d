"""The results of an attempt on their way into the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpcal.engine.context import Context
from hpcal.store.session import Session
from hpcal.store.tables import AttemptRow, TaskRow

Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Completed:
    """The results of one attempt, about to be written."""

    session: Session
    context: Context
    task: TaskRow
    attempt: AttemptRow
    values: Sequence[Any]

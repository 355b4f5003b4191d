"""The session type, for rooms that pass one on without knowing what is behind it, and a fast way to ask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import CursorResult, Executable
from sqlalchemy.orm import Session

__all__ = ["Session", "ask"]


def ask(
    session: Session, query: Executable, parameters: Mapping[str, Any] | None = None
) -> CursorResult[*tuple[Any, ...]]:
    """Answers a query for columns, spared what a session does for whole rows.

    The planner asks small questions many times a second: together with a query that is built once, this
    takes a sixth of the time of ``session.execute``.
    """
    session.flush()
    return session.connection().execute(query, parameters)

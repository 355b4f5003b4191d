"""The session type, for rooms that pass one on without knowing what is behind it."""

from sqlalchemy.orm import Session

__all__ = ["Session"]

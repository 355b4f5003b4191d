"""What a history raises that shows a fault of hpcal."""

from __future__ import annotations


class Violation(AssertionError):
    """A promise that was not kept."""

"""When the batch job of a worker ends."""

from __future__ import annotations

import os
import time
from typing import Final

BLOCK_END: Final = "HPCAL_BLOCK_END"
"""Seconds since the epoch by the node's clock; set as a batch job starts."""


def seconds_left(margin: float) -> float | None:
    """Seconds that work may still go on in this batch job, or None where none ends.

    Args:
        margin: seconds before the end at which work stops.
    """
    end = os.environ.get(BLOCK_END)
    return None if not end else max(0.0, float(end) - time.time() - margin)

"""Random streams: every draw of a campaign is keyed by its seed and by what it is for."""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, purpose: str, *numbers: int) -> int:
    """A seed of 63 bits for one purpose; other purposes and numbers give independent ones."""
    text = ":".join([str(seed), purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def stream(seed: int, purpose: str, *numbers: int) -> np.random.Generator:
    """The generator of one purpose."""
    return np.random.default_rng(derive(seed, purpose, *numbers))

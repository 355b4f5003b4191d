"""How a broken promise is said, and the comparisons that all checks share."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike


class ConformanceError(AssertionError):
    """A part breaks a promise of its protocol; the message says which, by how much and what is allowed."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The part under check.

    Attributes:
        name: how messages call it, such as ``labeler 'xtb'``.
    """

    name: str

    def promises(self, promise: str, kept: bool, seen: str) -> None:
        """Raises ConformanceError unless a promise is kept; ``seen`` is what was found instead."""
        if not kept:
            raise self.broken(promise, seen)

    def broken(self, promise: str, seen: str) -> ConformanceError:
        """The error that says that a promise is broken."""
        return ConformanceError(f"{self.name} breaks a promise: {promise}. Found: {seen}")

    def agrees(
        self, promise: str, found: ArrayLike, expected: ArrayLike, *, within: float, unit: str = ""
    ) -> None:
        """Raises ConformanceError unless numbers agree; those that are not numbers agree with each other."""
        a, b = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
        self.promises(promise, a.shape == b.shape, f"shape {a.shape}, expected {b.shape}")
        both_nan = np.isnan(a) & np.isnan(b)
        apart = np.where(both_nan, 0.0, np.abs(a - b))
        apart = np.where(np.isnan(apart), np.inf, apart)
        if apart.size == 0 or float(apart.max()) <= within:
            return
        at = np.unravel_index(int(apart.argmax()), apart.shape)
        where = f" at {tuple(int(i) for i in at)}" if at else ""
        unit = f" {unit}" if unit else ""
        raise self.broken(
            promise,
            f"{a[at]:.10g}{unit}{where}, expected {b[at]:.10g}{unit}; off by {apart[at]:.3g}{unit}, "
            f"tolerance {within:g}{unit}",
        )

    def repeats(self, promise: str, found: bytes, expected: bytes, seen: str) -> None:
        """Raises ConformanceError unless two records are the same bit for bit."""
        if found != expected:
            where = _first_difference(found, expected)
            raise self.broken(
                promise,
                f"{seen} (records of {len(found)} and {len(expected)} bytes differ from byte {where}); "
                "tolerance: none, bit for bit",
            )

    def refuses(
        self, promise: str, call: Callable[[], Any], errors: type[Exception] | tuple[type[Exception], ...]
    ) -> None:
        """Raises ConformanceError unless a call raises one of the errors."""
        names = errors.__name__ if isinstance(errors, type) else " or ".join(e.__name__ for e in errors)
        try:
            value = call()
        except errors:
            return
        except Exception as error:
            raise self.broken(promise, f"{type(error).__name__} ({error}), not {names}") from error
        raise self.broken(promise, f"it went through and gave a {type(value).__name__}, expected {names}")


@contextmanager
def other_global_state(seed: int) -> Iterator[None]:
    """Global random generators in some other state, so that a part that draws from them shows it."""
    python, numpy, pytorch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(pytorch)


def _first_difference(a: bytes, b: bytes) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))

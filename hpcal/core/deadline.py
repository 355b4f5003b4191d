"""When a piece of work has to stop: by the clock, by a count of steps, or because it is told to."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


def never() -> bool:
    """A stop request that never comes."""
    return False


@dataclass
class StopFile:
    """True once a file exists; looks at most every ``interval`` seconds, as many workers share it."""

    path: Path
    interval: float = 0.5
    _next: float = 0.0
    _seen: bool = False

    def __call__(self) -> bool:
        now = time.monotonic()
        if not self._seen and now >= self._next:
            self._next = now + self.interval
            self._seen = self.path.exists()
        return self._seen


@dataclass(frozen=True, kw_only=True)
class Deadline:
    """Asked between steps or structures: may I go on?

    Attributes:
        at: moment on ``time.monotonic()`` when to stop, or None.
        steps: budget of steps that a piece of work may make, or None; makes inline runs
            independent of the clock.
        stop: says whether an orderly stop was asked for.
    """

    at: float | None = None
    steps: int | None = None
    stop: Callable[[], bool] = field(default=never)

    @classmethod
    def after(
        cls, seconds: float | None, *, steps: int | None = None, stop: Callable[[], bool] = never
    ) -> Deadline:
        """A deadline that many seconds from now."""
        at = None if seconds is None else time.monotonic() + seconds
        return cls(at=at, steps=steps, stop=stop)

    def expired(self, steps_done: int = 0) -> bool:
        """Whether work has to stop after ``steps_done`` steps."""
        if self.steps is not None and steps_done >= self.steps:
            return True
        if self.at is not None and time.monotonic() >= self.at:
            return True
        return self.stop()

    def interrupted(self) -> bool:
        """Whether an orderly stop was asked for, which is not the same as being out of time."""
        return self.stop()

    def remaining(self) -> float | None:
        """Seconds left by the clock, or None without such a limit."""
        return None if self.at is None else max(0.0, self.at - time.monotonic())

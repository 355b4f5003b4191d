"""What can go wrong, and how often in one history."""

from __future__ import annotations

import random
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Final


class Fate(StrEnum):
    """What becomes of one attempt on its worker."""

    GOOD = "good"
    """It comes to its end and says so."""
    FAILED = "failed"
    """It fails after some of its records, with a class."""
    LOST = "lost"
    """Its worker dies after some of its records."""
    LATE = "late"
    """It counts as lost, but goes on and comes to its end."""
    STOPPED = "stopped"
    """It is asked to stop after some of its records."""
    TRUNCATED = "truncated"
    """It reports its end, but the end of its spool is gone."""
    FULL = "full"
    """The disk of its node fills after some of its records."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Shares of attempts, reports, hosts and writes that faults happen to.

    Attributes:
        failed, lost, late, stopped, truncated, full: shares of attempts, see :class:`Fate`.
        torn: share of the attempts that die which leave half a record.
        twice: share of reports that come twice.
        slow: share of hosts that take ten times as long.
        bad: share of hosts on which every attempt fails.
        strays: share of running attempts that survive their controller.
        store_full: share of transactions at which the disk of the store is full.
        file_full: share of the controller's files at which its disk is full.
        stop: share of steps at which somebody asks for an orderly stop.
        damage: share of starts of a controller before which a shard or a member file is damaged.
    """

    failed: float = 0.0
    lost: float = 0.0
    late: float = 0.0
    stopped: float = 0.0
    truncated: float = 0.0
    full: float = 0.0
    torn: float = 0.0
    twice: float = 0.0
    slow: float = 0.0
    bad: float = 0.0
    strays: float = 0.0
    store_full: float = 0.0
    file_full: float = 0.0
    stop: float = 0.0
    damage: float = 0.0

    @classmethod
    def draw(cls, rng: random.Random) -> Rates:
        """The rates of one history: most faults are absent from it, some are common."""
        return cls(
            **{
                field.name: _HIGHEST[field.name] * rng.random() if rng.random() < 0.4 else 0.0
                for field in fields(cls)
            }
        )

    def fate(self, rng: random.Random) -> Fate:
        """What becomes of the next attempt."""
        at = rng.random()
        for fate in Fate:
            if fate is Fate.GOOD:
                continue
            at -= getattr(self, fate.value)
            if at < 0:
                return fate
        return Fate.GOOD


_HIGHEST: Final = {
    "failed": 0.4,
    "lost": 0.5,
    "late": 0.6,
    "stopped": 0.2,
    "truncated": 0.3,
    "full": 0.3,
    "torn": 1.0,
    "twice": 0.4,
    "slow": 0.6,
    "bad": 0.5,
    "strays": 1.0,
    "store_full": 0.02,
    "file_full": 0.03,
    "stop": 0.004,
    "damage": 0.5,
}
"""Highest rate that is drawn for each fault."""
NO_FAULTS: Final = Rates()

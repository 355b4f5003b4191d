"""What a history came to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Outcome:
    """What a history came to.

    Attributes:
        seed: of the history.
        ends: how its controllers ended, by word.
        kills: at which steps they were killed.
        fates: what befell attempts.
        commits: transactions that were looked at.
        without_a_member: ensembles that were trained without one of their members.
        damaged: files that lost their end.
        steps: what happened, for a person.
    """

    seed: int
    ends: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    fates: Counter[str] = field(default_factory=Counter)
    commits: int = 0
    without_a_member: int = 0
    damaged: int = 0
    steps: list[str] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        """Adds the counts of another history."""
        self.ends += other.ends
        self.kills += other.kills
        self.fates += other.fates
        self.commits += other.commits
        self.without_a_member += other.without_a_member
        self.damaged += other.damaged

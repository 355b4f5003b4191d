"""What the planner can ask for: the actions of a plan."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Relax:
    """Relax a seed to a minimum."""

    structure_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class CheckMinimum:
    """Look at the curvature of a relaxed structure: it may be a saddle point."""

    minimum_id: int


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """Make first structures around a minimum."""

    entry: int
    minimum_id: int
    count: int


@dataclass(frozen=True, kw_only=True)
class LabelChunk:
    """Label these structures in one task.

    Attributes:
        seconds: what each is expected to take; empty where that is not known.
    """

    structure_ids: tuple[int, ...]
    seconds: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Refuse:
    """Set waiting structures aside whose label fits into no batch job."""

    structure_ids: tuple[int, ...]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train the next generation on everything accepted so far."""

    generation: int
    start_from: int | None


@dataclass(frozen=True, kw_only=True)
class GoOn:
    """Let an ensemble that has its quorum go on without the members that are late."""

    ensemble_id: int


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Evaluate ensembles on labelled structures; ``decide`` on the promotion of one of them."""

    pairs: tuple[tuple[int, tuple[int, ...]], ...]
    decide: int | None


@dataclass(frozen=True, kw_only=True)
class Spawn:
    """Give birth to walkers."""

    entry: int
    count: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Advance walkers under an ensemble."""

    entry: int
    walker_ids: tuple[int, ...]
    ensemble_id: int


@dataclass(frozen=True, kw_only=True)
class Rescore:
    """Score waiting structures again under a new ensemble."""

    structure_ids: tuple[int, ...]
    ensemble_id: int


@dataclass(frozen=True, kw_only=True)
class Select:
    """Choose a batch among candidates."""

    structure_ids: tuple[int, ...]
    budget: int
    ensemble_id: int


@dataclass(frozen=True, kw_only=True)
class Finish:
    """The campaign is done."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class Fail:
    """The campaign cannot go on."""

    reason: str


Action = (
    Relax
    | CheckMinimum
    | Bootstrap
    | LabelChunk
    | Refuse
    | Train
    | GoOn
    | Evaluate
    | Spawn
    | Sample
    | Rescore
    | Select
    | Finish
    | Fail
)

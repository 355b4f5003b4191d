"""Which state may follow which: the tables that the store enforces and the documentation draws."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from hpcal.core.errors import TransitionError


class StructureState(StrEnum):
    """Where a structure stands."""

    CANDIDATE = "candidate"
    WAITING = "waiting"
    CLAIMED = "claimed"
    LABELLED = "labelled"
    REJECTED = "rejected"
    DROPPED = "dropped"
    QUARANTINED = "quarantined"


class TaskState(StrEnum):
    """Where a task stands; each attempt at it is a row of its own."""

    QUEUED = "queued"
    DISPATCHED = "dispatched"
    DONE = "done"
    FAILED = "failed"
    LOST = "lost"


class WalkerState(StrEnum):
    """Where a walker stands."""

    IDLE = "idle"
    CLAIMED = "claimed"
    ENDED = "ended"


class EnsembleState(StrEnum):
    """Where an ensemble stands."""

    TRAINING = "training"
    TRAINED = "trained"
    PROMOTED = "promoted"
    REFUSED = "refused"
    FAILED = "failed"


class CampaignState(StrEnum):
    """Where the campaign stands."""

    RUNNING = "running"
    STOPPED = "stopped"
    FINISHED = "finished"
    FAILED = "failed"


Table = Mapping[StrEnum, frozenset[StrEnum]]

S, T, W, E, C = StructureState, TaskState, WalkerState, EnsembleState, CampaignState

STRUCTURE: Final[Table] = {
    S.CANDIDATE: frozenset({S.WAITING, S.DROPPED, S.QUARANTINED}),
    S.WAITING: frozenset({S.CLAIMED, S.DROPPED, S.QUARANTINED}),
    S.CLAIMED: frozenset({S.LABELLED, S.REJECTED, S.WAITING, S.QUARANTINED}),
    S.LABELLED: frozenset(),
    S.REJECTED: frozenset(),
    S.DROPPED: frozenset(),
    S.QUARANTINED: frozenset(),
}
"""A structure; ``claimed → waiting`` when an attempt is lost."""

TASK: Final[Table] = {
    T.QUEUED: frozenset({T.DISPATCHED, T.FAILED, T.DONE}),
    T.DISPATCHED: frozenset({T.DONE, T.FAILED, T.LOST}),
    T.LOST: frozenset({T.QUEUED, T.FAILED, T.DONE}),
    T.DONE: frozenset(),
    T.FAILED: frozenset(),
}
"""A task; ``lost → queued`` for the next attempt, ``lost → done`` for a late result."""

WALKER: Final[Table] = {
    W.IDLE: frozenset({W.CLAIMED, W.ENDED}),
    W.CLAIMED: frozenset({W.IDLE, W.ENDED}),
    W.ENDED: frozenset(),
}

ENSEMBLE: Final[Table] = {
    E.TRAINING: frozenset({E.TRAINED, E.FAILED}),
    E.TRAINED: frozenset({E.PROMOTED, E.REFUSED, E.FAILED}),
    E.PROMOTED: frozenset({E.FAILED}),
    E.REFUSED: frozenset({E.FAILED}),
    E.FAILED: frozenset(),
}
"""An ensemble; ``failed`` after its training also where damaged files could not be made again."""

CAMPAIGN: Final[Table] = {
    C.RUNNING: frozenset({C.STOPPED, C.FINISHED, C.FAILED}),
    C.STOPPED: frozenset({C.RUNNING}),
    C.FAILED: frozenset({C.RUNNING}),
    C.FINISHED: frozenset({C.RUNNING}),
}

TABLES: Final[Mapping[type[StrEnum], Table]] = {
    StructureState: STRUCTURE,
    TaskState: TASK,
    WalkerState: WALKER,
    EnsembleState: ENSEMBLE,
    CampaignState: CAMPAIGN,
}

UNFINISHED: Final = (S.CANDIDATE, S.WAITING, S.CLAIMED)
"""Structures that something still happens to."""
OUTSTANDING: Final = (T.QUEUED, T.DISPATCHED, T.LOST)
"""Tasks that something still happens to."""


def check(kind: type[StrEnum], old: str, new: StrEnum, what: str) -> None:
    """Refuses a change that the tables do not allow.

    Raises:
        TransitionError: naming the row and both states.
    """
    if new not in TABLES[kind][kind(old)]:
        raise TransitionError(f"{what} cannot go from {old} to {new}")


def sources(new: StrEnum) -> tuple[StrEnum, ...]:
    """States from which a state can be reached."""
    table = TABLES[type(new)]
    return tuple(old for old, nexts in table.items() if new in nexts)


def mermaid(kind: type[StrEnum]) -> str:
    """A table as a Mermaid state diagram, for the documentation."""
    lines = ["stateDiagram-v2"]
    for old, nexts in TABLES[kind].items():
        lines += [f"    {old} --> {new}" for new in sorted(nexts)]
        if not nexts:
            lines.append(f"    {old} --> [*]")
    return "\n".join(lines)

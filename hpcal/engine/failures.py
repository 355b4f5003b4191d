"""What is done about a failure: one table by class, with caps, as pure functions.

=========  ==============================  ===========================  ======================
class      until its cap                   cap                          then
=========  ==============================  ===========================  ======================
input      nothing: it fails every time    none                         quarantined; given up
physics    nothing: the labeler's ladder   none                         rejected; given up
           of settings was the retry
resource   again in a larger slot          ``max_failures``, or the     quarantined; given up
                                           largest pool if further
node       again wherever there is room    ``max_losses``               quarantined; given up
bug        again                           ``max_failures``             quarantined; the stage
                                                                        stops
=========  ==============================  ===========================  ======================

The last column says what becomes of a structure, then of a whole task. A task of several
structures that is given up is parted into tasks of one structure each; the structure of a task of
its own that is given up is set aside (see :mod:`hpcal.engine.claims`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from typing import Final

from hpcal.core.errors import FailureClass
from hpcal.engine.context import Context
from hpcal.engine.tasks import STAGES
from hpcal.store.failures import Broken, HostAttempt
from hpcal.store.tables import TaskRow

FAILURES_IN_A_ROW: Final = 3
"""Attempts that one host must fail, one after the other, before it is set aside.

Two of them must be of tasks without a structure in common: one task or structure that kills its
worker is no fault of the host.
"""


class Answer(StrEnum):
    """What is done after a failure."""

    AGAIN = "again"
    """Another attempt of the same size."""
    LARGER = "larger"
    """Another attempt in a larger slot."""
    ELSEWHERE = "elsewhere"
    """Another attempt wherever there is room; a host that fails several is set aside."""
    REJECT = "reject"
    """The structure is rejected, with the reason."""
    QUARANTINE = "quarantine"
    """The structure is set aside, with the reason."""
    GIVE_UP = "give_up"
    """The task has failed; walkers that it had claimed wait again, structures are tried alone."""
    STOP = "stop"
    """The task has failed, and so has its stage."""

    @property
    def retries(self) -> bool:
        """Whether there is another attempt."""
        return self in (Answer.AGAIN, Answer.LARGER, Answer.ELSEWHERE)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The answers to one class of failures.

    Attributes:
        retry: until the cap; None for no retry at all.
        structure: what then becomes of a structure.
        task: what then becomes of a task.
    """

    retry: Answer | None
    structure: Answer
    task: Answer


POLICIES: Final[Mapping[FailureClass, Policy]] = {
    FailureClass.INPUT: Policy(retry=None, structure=Answer.QUARANTINE, task=Answer.GIVE_UP),
    FailureClass.PHYSICS: Policy(retry=None, structure=Answer.REJECT, task=Answer.GIVE_UP),
    FailureClass.RESOURCE: Policy(retry=Answer.LARGER, structure=Answer.QUARANTINE, task=Answer.GIVE_UP),
    FailureClass.NODE: Policy(retry=Answer.ELSEWHERE, structure=Answer.QUARANTINE, task=Answer.GIVE_UP),
    FailureClass.BUG: Policy(retry=Answer.AGAIN, structure=Answer.QUARANTINE, task=Answer.STOP),
}


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What was tried so far, the failure in question included.

    Attributes:
        failures: failures that were not the node's.
        losses: failures of nodes, lost attempts included.
        size: times that the slot was enlarged.
        larger: whether the site has a larger pool than the one it failed in.
    """

    failures: int = 0
    losses: int = 0
    size: int = 0
    larger: bool = False


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The caps (``tasks.max_failures`` and ``tasks.max_losses`` of a campaign)."""

    max_failures: int
    max_losses: int


def answer_task(failure: FailureClass, tried: Tried, limits: Limits) -> Answer:
    """What is done about a task whose attempt failed as a whole."""
    policy = POLICIES[failure]
    return policy.retry if policy.retry and _below_cap(failure, tried, limits) else policy.task


def answer_structure(failure: FailureClass, tried: Tried, limits: Limits) -> Answer:
    """What is done about one structure that broke; the others of its task are not concerned."""
    policy = POLICIES[failure]
    return policy.retry if policy.retry and _below_cap(failure, tried, limits) else policy.structure


def _below_cap(failure: FailureClass, tried: Tried, limits: Limits) -> bool:
    if failure is FailureClass.RESOURCE:
        return tried.larger or tried.size + 1 < limits.max_failures
    if failure is FailureClass.NODE:
        return tried.losses < limits.max_losses
    return tried.failures < limits.max_failures


def limits_of(context: Context) -> Limits:
    """The caps of a campaign."""
    settings = context.spec.file.tasks
    return Limits(max_failures=settings.max_failures, max_losses=settings.max_losses)


def tried(context: Context, task: TaskRow, structure: Broken | None = None) -> Tried:
    """What was tried with a task, or with one structure of it that has failed so many times."""
    stage, pool = STAGES[task.kind], context.dispatcher.pool
    larger = pool(stage, task.size + 1) != pool(stage, task.size)
    counts = task if structure is None else structure
    return Tried(failures=counts.failures, losses=counts.losses, size=task.size, larger=larger)


def last_line(text: str) -> str:
    """The last line of what was said of a failure, such as the end of a traceback."""
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no reason was given"


@dataclass(frozen=True, kw_only=True)
class BadHost:
    """Why a host is set aside: how many attempts in a row it failed, and the last reason."""

    count: int
    reason: str


def bad_host(endings: Sequence[HostAttempt]) -> BadHost | None:
    """Whether a host fails everything that it is given.

    Attempts that were under way together fall together with their node, so that they count once:
    a failure counts if its attempt was sent out after the one before it was recorded. Both times
    are the controller's: clocks of two machines are not compared.

    Args:
        endings: attempts on one host, in any order.
    """
    ordered = sorted(endings, key=lambda e: (e.recorded, e.dispatched))
    last_success = max((i for i, e in enumerate(ordered) if not e.node), default=-1)
    row: list[HostAttempt] = []
    for ending in ordered[last_success + 1 :]:
        if not row or ending.dispatched >= row[-1].recorded:
            row.append(ending)
    if len(row) < FAILURES_IN_A_ROW or not _of_two(row):
        return None
    return BadHost(count=len(row), reason=row[-1].reason)


def _of_two(row: Sequence[HostAttempt]) -> bool:
    """Whether two attempts are of tasks without a structure in common."""
    tasks = {ending.task_id: ending.structures for ending in row}
    return any(one.isdisjoint(other) for one, other in combinations(tasks.values(), 2))

"""How an attempt ended: what its spool holds and what its report says, taken together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcal.core.errors import FailureClass, FormatError
from hpcal.engine.claims import PARTIAL
from hpcal.engine.dispatch import Report
from hpcal.engine.late import Mark, mark_of
from hpcal.engine.spool import read_spool
from hpcal.engine.tasks import END
from hpcal.store.tables import AttemptRow, TaskRow
from hpcal.store.transitions import TaskState


@dataclass(frozen=True, kw_only=True)
class Results:
    """What the spool of an attempt holds.

    Attributes:
        values: its records.
        complete: whether the attempt came to its end.
        problem: why the file cannot be read, or empty.
        mark: of the file before it was read.
    """

    values: list[Any]
    complete: bool
    problem: str = ""
    mark: Mark | None = None


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How an attempt ended.

    Attributes:
        state: of the attempt.
        failure: its class, or None.
        text: what happened.
    """

    report: Report
    attempt: AttemptRow
    task: TaskRow
    results: Results
    state: TaskState
    failure: FailureClass | None
    text: str

    @classmethod
    def of(cls, report: Report, attempt: AttemptRow, task: TaskRow, results: Results) -> Ended:
        """The verdict on an attempt from its report and its results."""
        state, failure, text = _verdict(task, results, report)
        return cls(
            report=report,
            attempt=attempt,
            task=task,
            results=results,
            state=state,
            failure=failure,
            text=text,
        )

    @property
    def whole(self) -> bool:
        """Whether it came to its end."""
        return self.results.complete and self.report.failure is None

    @property
    def reason(self) -> str:
        """The exit reason of the attempt."""
        return self.text if self.failure is None else f"{self.failure}: {self.text}"

    @property
    def seconds(self) -> float | None:
        """How long it took, where that is known."""
        start, end = self.report.start, self.report.end
        return None if start is None or end is None else end - start

    @property
    def short_of_room(self) -> frozenset[int]:
        """Structures that ran out of memory or time."""
        return frozenset(
            v["structure_id"] for v in self.results.values
            if isinstance(v, dict) and v.get("failure") == FailureClass.RESOURCE
        )  # fmt: skip


def _verdict(task: TaskRow, results: Results, report: Report) -> tuple[TaskState, FailureClass | None, str]:
    """State of an attempt, class of its failure if it failed, and what happened."""
    if results.complete and report.failure is None:
        if task.kind in PARTIAL and results.values and all(_by_node(v) for v in results.values):
            return TaskState.FAILED, FailureClass.NODE, str(results.values[-1]["message"])
        return TaskState.DONE, None, "done"
    if report.interrupted:
        return TaskState.LOST, None, report.message
    if report.lost:
        return TaskState.LOST, FailureClass.NODE, report.message
    if report.failure is None:
        text = f"its results did not arrive{': ' + results.problem if results.problem else ''}"
        return TaskState.LOST, FailureClass.NODE, text
    return TaskState.FAILED, report.failure, report.message or "no reason was given"


def read_results(path: Path, attempt_id: int) -> Results:
    """What the spool of an attempt holds; one that cannot be read holds nothing, and says why."""
    mark = mark_of(path)
    try:
        spool = read_spool(path)
    except (OSError, FormatError) as error:
        return Results(values=[], complete=False, problem=str(error), mark=mark)
    if spool.attempt != attempt_id:
        return Results(values=[], complete=False, mark=mark)
    values = [v for v in spool.values if not (isinstance(v, dict) and END in v)]
    return Results(values=values, complete=len(values) < len(spool.values), mark=mark)


def _by_node(value: Any) -> bool:
    return isinstance(value, dict) and value.get("failure") == FailureClass.NODE

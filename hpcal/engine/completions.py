"""Recording how attempts ended: results first, then what becomes of the task."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpcal.core.errors import FailureClass, FormatError
from hpcal.engine.context import Context
from hpcal.engine.dispatch import Report
from hpcal.engine.records import Completed, record
from hpcal.engine.spool import read_spool
from hpcal.engine.tasks import END
from hpcal.store import ensembles, structures, tasks, walkers
from hpcal.store.database import add_event
from hpcal.store.session import Session
from hpcal.store.tables import AttemptRow, TaskRow
from hpcal.store.transitions import EnsembleState, StructureState, TaskState

PARTIAL = ("label", "relax")
"""Kinds whose records each stand for themselves: half an attempt is worth keeping."""


class Completions:
    """Writes the results of attempts into the store, in groups."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def record(self, reports: Sequence[Report]) -> list[str]:
        """Records reports in one durable transaction, then removes their files."""
        messages: list[str] = []
        done: list[Path] = []
        with self._context.store.write() as session:
            for report in reports:
                attempt, task = tasks.attempt_and_task(session, report.attempt_id)
                messages += self._one(session, task, attempt, report)
                done.append(self._context.folders.root / (attempt.spool or ""))
        for spool in done:
            spool.unlink(missing_ok=True)
            spool.with_suffix(".task").unlink(missing_ok=True)
        return messages

    def recover(self) -> list[str]:
        """After a controller has gone: adopts what its attempts spooled, the rest is lost."""
        with self._context.store.session() as session:
            left = [attempt.id for attempt in tasks.open_attempts(session)]
        # The end of a controller is no fault of its tasks and counts against none of them.
        messages = self.record(
            [Report(attempt_id=i, interrupted=True, message="its controller ended") for i in left]
        )
        self._sweep()
        return messages

    def _sweep(self) -> None:
        """Removes files of attempts that are recorded: a crash may come before their removal."""
        folders = self._context.folders
        for pattern in ("*.spool", "*.task"):
            for file in folders.tasks.glob(pattern):
                file.unlink(missing_ok=True)
        for scratch in folders.scratch.iterdir():
            shutil.rmtree(scratch, ignore_errors=True)

    def _one(self, session: Session, task: TaskRow, attempt: AttemptRow, report: Report) -> list[str]:
        values, complete = self._results(attempt)
        ended_well = complete and report.failure is None
        messages = []
        if ended_well or task.kind in PARTIAL:
            messages += record(
                Completed(session=session, context=self._context, task=task, attempt=attempt, values=values)
            )
        where = {"host": report.host, "pid": report.pid, "block": report.block,
                 "start": report.start, "end": report.end}  # fmt: skip
        if ended_well:
            tasks.end_attempt(attempt, TaskState.DONE, "done", **where)
            tasks.finish(task, _seconds(report))
            self._give_back(session, task)
        elif report.interrupted or report.lost:
            tasks.end_attempt(attempt, TaskState.LOST, report.message, **where)
            tasks.lose(task)
            messages += self._lost(session, task, report)
        else:
            failure = report.failure or FailureClass.NODE
            text = report.message or "the results did not arrive"
            tasks.end_attempt(attempt, TaskState.FAILED, f"{failure}: {text}", **where)
            messages += self._failed(session, task, failure, text)
        return messages

    def _results(self, attempt: AttemptRow) -> tuple[list[Any], bool]:
        """The records of an attempt, and whether it came to its end."""
        path = self._context.folders.root / (attempt.spool or "")
        try:
            spool = read_spool(path)
        except (FileNotFoundError, FormatError):
            return [], False
        if spool.attempt != attempt.id:
            return [], False
        values = [v for v in spool.values if not (isinstance(v, dict) and END in v)]
        return values, len(values) < len(spool.values)

    def _lost(self, session: Session, task: TaskRow, report: Report) -> list[str]:
        if report.interrupted:
            tasks.requeue(task)
            return []
        task.losses += 1
        text = f"task {task.id} ({task.kind}) was lost: {report.message}"
        add_event(session, self._context.store.epoch, "lost", text, task_id=task.id)
        if task.losses < self._context.spec.file.tasks.max_losses:
            tasks.requeue(task)
            return [text]
        return [text, *self._give_up(session, task, FailureClass.NODE, report.message)]

    def _failed(self, session: Session, task: TaskRow, failure: FailureClass, text: str) -> list[str]:
        task.failures += 1
        add_event(
            session, self._context.store.epoch, "failed", text, task_id=task.id, failure_class=str(failure)
        )
        message = f"task {task.id} ({task.kind}) failed ({failure}): {text.strip().splitlines()[-1]}"
        final = failure is FailureClass.INPUT or task.failures >= self._context.spec.file.tasks.max_failures
        if not final:
            tasks.lose(task)
            tasks.requeue(task)
            return [message]
        return [message, *self._give_up(session, task, failure, text)]

    def _give_up(self, session: Session, task: TaskRow, failure: FailureClass, text: str) -> list[str]:
        tasks.fail(task, failure, text)
        self._give_back(session, task)
        if task.kind == "train":
            ensemble = ensembles.get(session, task.inputs["ensemble_id"])
            if ensemble.state is EnsembleState.TRAINING:
                ensembles.move(ensemble, EnsembleState.FAILED)
        return [f"task {task.id} ({task.kind}) is given up"]

    def _give_back(self, session: Session, task: TaskRow) -> None:
        """Structures and walkers that a task claimed and did not finish wait again."""
        if task.kind in PARTIAL:
            ids = task.inputs["structure_ids"]
            states = structures.states_of(session, ids)
            left = [i for i in ids if states[i] is StructureState.CLAIMED]
            structures.move(session, left, StructureState.WAITING)
        elif task.kind == "sample":
            walkers.release(session, task.inputs["walker_ids"])


def _seconds(report: Report) -> float | None:
    if report.start is None or report.end is None:
        return None
    return report.end - report.start

"""Recording how attempts ended: results first, then what becomes of the task."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hpcal.core.errors import CampaignFailed, FailureClass
from hpcal.core.label import Label
from hpcal.engine import quorum, repair
from hpcal.engine.claims import PARTIAL, give_back, left, part
from hpcal.engine.completed import Completed
from hpcal.engine.context import Context
from hpcal.engine.dispatch import Report, now
from hpcal.engine.endings import Ended, Results, read_results
from hpcal.engine.failures import Answer, BadHost, answer_task, bad_host, last_line, limits_of, tried
from hpcal.engine.late import KEPT_SECONDS, KeptSpools, files_in
from hpcal.engine.records import record_all
from hpcal.engine.tasks import STAGES
from hpcal.store import campaigns, ensembles, failures, labels, structures, tasks
from hpcal.store.database import add_event
from hpcal.store.session import Session
from hpcal.store.tables import AttemptRow, TaskRow
from hpcal.store.transitions import CampaignState, StructureState, TaskState


@dataclass(kw_only=True)
class _After:
    """What a transaction leaves to be done once it is durable."""

    gone: list[Path] = field(default_factory=list)
    kept: list[tuple[int, Path, Results]] = field(default_factory=list)
    forgotten: list[int] = field(default_factory=list)
    suspects: set[str] = field(default_factory=set)
    hosts: dict[str, BadHost] = field(default_factory=dict)
    tried_again: bool = False


class Completions:
    """Writes the results of attempts into the store, in groups."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._spools = KeptSpools()
        self._aside: set[str] = set()

    def record(self, reports: Sequence[Report]) -> list[str]:
        """Records reports in one durable transaction, then removes files that nothing is missing from.

        A report of an attempt that has ended already, or that the store does not know, changes
        nothing but for results that it brings late.

        Raises:
            CampaignFailed: a file cannot be made again, or the last host of a pool is set aside.
        """
        messages = self._mend_for(reports)
        after = _After()
        with self._context.store.write() as session:
            messages += self._reported(session, [self._classed(report) for report in reports], after)
            session.flush()
            for host in sorted(after.suspects - self._aside):
                messages += self._judge(session, host, after)
        self._tidy(after)
        self._set_aside(after)
        # A task that would be tried again may have been finished by an attempt that was lost before.
        return messages + (self.late(look=True) if after.tried_again else [])

    def late(self, *, look: bool = False) -> list[str]:
        """Records what attempts that count as lost have finished since; the first result wins.

        Args:
            look: also if the last look was a moment ago.
        """
        due = self._worth_reading(self._spools.due(now=look))
        if not due:
            return []
        messages: list[str] = []
        after = _After()
        with self._context.store.write() as session:
            for attempt_id in due:
                found = failures.find_attempts(session, [attempt_id]).get(attempt_id)
                if found is None:
                    after.forgotten.append(attempt_id)
                else:
                    messages += self._adopt(session, *found, after)
        self._tidy(after)
        return messages

    def recover(self) -> list[str]:
        """After a controller has gone: adopts what its attempts spooled, the rest is lost.

        Damaged shards and members are found here, before anything is given to a worker.

        Raises:
            CampaignFailed: as for :meth:`record`.
        """
        with self._context.store.session() as session:
            open_ids = [attempt.id for attempt in tasks.open_attempts(session)]
        # The end of a controller is no fault of its tasks and counts against none of them.
        messages = self.record(
            [Report(attempt_id=i, interrupted=True, message="its controller ended") for i in open_ids]
        )
        self._sweep()
        messages += self.late(look=True)
        with self._context.store.write() as session:
            messages += quorum.settle_open(session, self._context)
        return [*messages, *self._mended()]

    def _sweep(self) -> None:
        """Removes files of attempts that are recorded: a crash may come before their removal."""
        gone: list[Path] = []
        with self._context.store.session() as session:
            for path, task_id, number in files_in(self._context.folders):
                found = failures.numbered_attempt(session, task_id, number)
                attempt = None if found is None else found[0]
                # What a controller that has taken over dispatched since is none of this one's business.
                if attempt is None or attempt.state is TaskState.DISPATCHED:
                    continue
                if path.suffix == ".spool" and attempt.state is TaskState.LOST:
                    self._spools.keep(attempt.id, path)
                else:
                    gone.append(path)
        for path in gone:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _tidy(self, after: _After) -> None:
        """Files of what has just become durable."""
        for path in after.gone:
            path.unlink(missing_ok=True)
            path.with_suffix(".task").unlink(missing_ok=True)
        for attempt_id, path, results in after.kept:
            self._spools.keep(attempt_id, path, mark=results.mark, ready=results.complete)
            path.with_suffix(".task").unlink(missing_ok=True)
        for attempt_id in after.forgotten:
            self._spools.forget(attempt_id)

    def _worth_reading(self, due: Mapping[int, bool]) -> list[int]:
        """Attempts whose spool has changed, or counts now although it has not."""
        if not due:
            return []
        chosen = [attempt_id for attempt_id, changed in due.items() if changed]
        with self._context.store.session() as session:
            for attempt_id in (i for i, changed in due.items() if not changed):
                found = failures.find_attempts(session, [attempt_id]).get(attempt_id)
                if found is None or _idle(found[1]) or _long_over(found[1]):
                    chosen.append(attempt_id)
        return sorted(chosen)

    # One attempt

    def _classed(self, report: Report) -> Report:
        """A file of the campaign's own that was damaged has been set right: no fault of the input."""
        ours = report.damaged and repair.concerns(self._context, report.message)
        return replace(report, failure=FailureClass.NODE) if ours else report

    def _reported(self, session: Session, reports: Sequence[Report], after: _After) -> list[str]:
        found = failures.find_attempts(session, [report.attempt_id for report in reports])
        messages: list[str] = []
        ended: dict[int, Ended] = {}
        late: list[int] = []
        again: list[int] = []
        for report in reports:
            if report.attempt_id not in found:
                messages.append(self._unknown(session, report))
                continue
            attempt, task = found[report.attempt_id]
            if attempt.state is not TaskState.DISPATCHED:
                late.append(attempt.id)
            elif attempt.id in ended:
                again.append(attempt.id)
            else:
                ended[attempt.id] = Ended.of(
                    report, attempt, task, read_results(self._spool(attempt), attempt.id)
                )
        # What was finished late counts before a later attempt at the same structure that failed.
        for attempt_id in dict.fromkeys(late):
            messages += self._adopt(session, *found[attempt_id], after)
        messages += self._write(session, list(ended.values()))
        messages += self._close(session, list(ended.values()), after)
        for attempt_id in dict.fromkeys(again):
            messages += self._adopt(session, *found[attempt_id], after)
        return messages

    def _unknown(self, session: Session, report: Report) -> str:
        text = f"a report of attempt {report.attempt_id}, which is not in the store, was put aside"
        add_event(session, self._context.store.epoch, "unknown_report", text)
        return text

    def _write(self, session: Session, ended: Sequence[Ended]) -> list[str]:
        """Writes the results of attempts, in their order; of most kinds only whole ones count."""
        context, messages, group = self._context, [], []
        for one in ended:
            if one.results.problem:
                text = (
                    f"the results of attempt {one.attempt.id} cannot be read: {one.results.problem}; "
                    "they are redone"
                )
                add_event(session, context.store.epoch, "spool_unreadable", text, task_id=one.task.id)
                messages.append(text)
            elif not one.whole and one.task.kind not in PARTIAL:
                continue
            elif repair.is_restoration(one.task):
                messages.append(repair.restored(session, context, one.task, one.results.values))
            else:
                group.append(
                    Completed(
                        session=session,
                        context=context,
                        task=one.task,
                        attempt=one.attempt,
                        values=one.results.values,
                    )
                )
        return messages + record_all(group)

    def _close(self, session: Session, ended: Sequence[Ended], after: _After) -> list[str]:
        """What becomes of attempts and their tasks."""
        messages: list[str] = []
        done: list[tuple[TaskRow, float | None]] = []
        for one in ended:
            attempt, task, report, path = one.attempt, one.task, one.report, self._spool(one.attempt)
            after.tried_again |= one.state is not TaskState.DONE
            if one.state is TaskState.LOST and (report.host is None or one.failure is not None):
                after.kept.append((attempt.id, path, one.results))
            else:
                after.gone.append(path)
            where = {"host": report.host, "pid": report.pid, "block": report.block,
                     "start": report.start, "end": report.end}  # fmt: skip
            if one.failure is not None:
                where["end"] = report.end or now()
            tasks.end_attempt(attempt, one.state, one.reason, **where)
            if one.failure is not None:
                if one.failure is FailureClass.NODE and report.host is not None:
                    after.suspects.add(report.host)
                lost = one.state is TaskState.LOST
                messages += self._failed(session, attempt, task, one.failure, one.text, lost=lost)
            elif one.state is TaskState.LOST:
                tasks.lose(task)
                tasks.requeue(task)
            elif one.short_of_room and left(session, [task]).intersection(one.short_of_room):
                messages.append(self._enlarged(session, task))
            else:
                done.append((task, one.seconds))
        for task, seconds in done:
            tasks.finish(task, seconds, epoch=self._context.store.epoch)
        give_back(session, [task for task, _ in done])
        over = [one.task for one in ended if _over(one.task)]
        return messages + quorum.settle_all(session, self._context, over)

    def _spool(self, attempt: AttemptRow) -> Path:
        return self._context.folders.root / (attempt.spool or "")

    # Late results

    def _adopt(self, session: Session, attempt: AttemptRow, task: TaskRow, after: _After) -> list[str]:
        """What an attempt that has ended already, as far as the store knows, has left in its spool."""
        path = self._spool(attempt)
        results = read_results(path, attempt.id)
        if attempt.state is not TaskState.LOST:
            after.forgotten.append(attempt.id)
            return []
        if _long_over(task):
            after.gone.append(path)
            after.forgotten.append(attempt.id)
        finishes = results.complete and _idle(task)
        values = self._new(session, attempt, task, results, whole=finishes)
        messages = []
        if task.kind == "train" and task.state is TaskState.FAILED and results.complete:
            messages = quorum.came_late(session, self._context, task, results.values)
            after.gone.append(path)
            after.forgotten.append(attempt.id)
        if values:
            late = Report(attempt_id=attempt.id)
            shown = Results(values=values, complete=True)
            messages = self._write(session, [Ended.of(late, attempt, task, shown)])
            text = (
                f"attempt {attempt.id} at task {task.id} ({task.kind}) had been lost; its results came late"
            )
            add_event(session, self._context.store.epoch, "late_result", text, task_id=task.id)
            messages.append(text)
        if finishes:
            tasks.end_attempt(attempt, TaskState.DONE, "done; its results came late")
            tasks.finish(task, None, epoch=self._context.store.epoch)
            give_back(session, [task])
            messages += quorum.settle_all(session, self._context, [task])
            after.gone.append(path)
            after.forgotten.append(attempt.id)
        elif attempt.id not in after.forgotten:
            waits = Results(values=[], complete=results.complete and not _over(task), mark=results.mark)
            after.kept.append((attempt.id, path, waits))
        return messages

    def _new(
        self, session: Session, attempt: AttemptRow, task: TaskRow, results: Results, *, whole: bool
    ) -> list[Any]:
        """Records of a late spool that the store has not seen yet; what broke is tried again anyway."""
        if task.kind not in PARTIAL:
            return results.values if whole else []
        values = [v for v in results.values if "failure" not in v]
        states = structures.states_of(session, [v["structure_id"] for v in values])
        new = [v for v in values if self._is_new(session, attempt, v, states[v["structure_id"]])]
        # Given back meanwhile: it is claimed for the attempt that has its result.
        waiting = [v["structure_id"] for v in new if states[v["structure_id"]] is StructureState.WAITING]
        structures.move(session, waiting, StructureState.CLAIMED)
        return new

    def _is_new(
        self, session: Session, attempt: AttemptRow, value: Mapping[str, Any], state: StructureState
    ) -> bool:
        if state in (StructureState.CLAIMED, StructureState.WAITING):
            return True
        if not isinstance(value.get("result"), Label):
            return False
        # Not used, as another one was first or the structure was turned away; said once.
        structure_id = value["structure_id"]
        first = labels.attempt_of(session, structure_id, self._context.level_id)
        return first != attempt.id and not failures.told_of(session, structure_id, attempt.id)

    # Failures

    def _failed(
        self,
        session: Session,
        attempt: AttemptRow,
        task: TaskRow,
        failure: FailureClass,
        text: str,
        *,
        lost: bool,
    ) -> list[str]:
        if failure is FailureClass.NODE:
            task.losses += 1
        else:
            task.failures += 1
        add_event(
            session, self._context.store.epoch, "lost" if lost else "failed", text,
            task_id=task.id, failure_class=str(failure),
        )  # fmt: skip
        verb = "was lost" if lost else f"failed ({failure})"
        message = f"task {task.id} ({task.kind}) {verb}: {last_line(text)}"
        answer = answer_task(failure, tried(self._context, task), limits_of(self._context))
        if answer is Answer.LARGER:
            return [message, self._enlarged(session, task)]
        if answer.retries:
            tasks.lose(task)
            tasks.requeue(task)
            return [message]
        # A bug stops the stage: its structures are innocent, and wait for what comes after it.
        if task.kind in PARTIAL and answer is not Answer.STOP:
            return [message, *part(session, self._context, attempt, failure, text)]
        return [message, *self._give_up(session, task, failure, text)]

    def _enlarged(self, session: Session, task: TaskRow) -> str:
        """Sends what is left of a task to a larger slot."""
        task.size += 1
        tasks.lose(task)
        tasks.requeue(task)
        stage = STAGES[task.kind]
        pool = self._context.dispatcher.pool(stage, task.size)
        text = (
            f"task {task.id} ({task.kind}) ran out of memory or time: its rest goes to pool {pool!r} with "
            f"{2**task.size} times the time budget"
        )
        add_event(session, self._context.store.epoch, "enlarged", text, task_id=task.id, size=task.size)
        return text

    def _give_up(self, session: Session, task: TaskRow, failure: FailureClass, text: str) -> list[str]:
        tasks.fail(task, failure, text, epoch=self._context.store.epoch)
        give_back(session, [task])
        messages = [f"task {task.id} ({task.kind}) is given up"]
        if task.kind == "train":
            if repair.is_restoration(task):
                ensemble = ensembles.get(session, task.inputs["ensemble_id"])
                why = f"training again failed: {last_line(text)}"
                messages.append(repair.replaced(session, self._context, ensemble, why))
            else:
                quorum.give_up(session, task, failure, last_line(text))
        return messages

    # Files and hosts

    def _mend_for(self, reports: Sequence[Report]) -> list[str]:
        """Sets right the campaign's own files if an attempt has found one of them damaged."""
        found = [r for r in reports if r.damaged and repair.concerns(self._context, r.message)]
        return self._mended() if found else []

    def _mended(self) -> list[str]:
        try:
            return repair.mend(self._context)
        except CampaignFailed as error:
            self._end(str(error))
            raise

    def _judge(self, session: Session, host: str, after: _After) -> list[str]:
        """Sets a host aside that fails everything it is given."""
        epoch = self._context.store.epoch
        found = bad_host(failures.attempts_on(session, host, epoch))
        if found is None:
            return []
        after.hosts[host] = found
        text = (
            f"host {host} is set aside: the last {found.count} attempts on it failed one after the other, "
            f"the last one with: {last_line(found.reason)}"
        )
        add_event(session, epoch, "host_set_aside", text, host=host, count=found.count, reason=found.reason)
        return [text]

    def _set_aside(self, after: _After) -> None:
        for host, found in after.hosts.items():
            self._aside.add(host)
            pools = self._context.dispatcher.set_aside(host)
            if pools:
                reason = (
                    f"host {host} failed {found.count} attempts in a row ({last_line(found.reason)}), and "
                    f"the pools {', '.join(pools)} have no other host; mend it, or give another --site, and "
                    f"go on with `hpcal resume {self._context.folders.root}`"
                )
                self._end(reason)
                raise CampaignFailed(reason)

    def _end(self, reason: str) -> None:
        with self._context.store.write() as session:
            campaigns.move(session, CampaignState.FAILED, reason)


def _idle(task: TaskRow) -> bool:
    return task.state in (TaskState.QUEUED, TaskState.LOST)


def _over(task: TaskRow) -> bool:
    return task.state in (TaskState.DONE, TaskState.FAILED)


def _long_over(task: TaskRow) -> bool:
    return _over(task) and time.time() - (task.finished or 0.0) > KEPT_SECONDS

"""The controller: completions come in, are recorded, the planner says what next, tasks go out."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final, Protocol

from hpcal.core.codec import pack
from hpcal.core.errors import CampaignFailed, FencedError, Interrupted, StoreError
from hpcal.engine import actions, quorum, repair, snapshot
from hpcal.engine.completions import Completions
from hpcal.engine.context import Context
from hpcal.engine.dispatch import Assignment
from hpcal.engine.payloads import payload
from hpcal.engine.plan import plan
from hpcal.engine.steps import Fail, Finish, GoOn
from hpcal.engine.tasks import STAGES
from hpcal.engine.view import View
from hpcal.store import campaigns, tasks
from hpcal.store.database import Store
from hpcal.store.lease import BEAT_SECONDS
from hpcal.store.session import Session
from hpcal.store.tables import TaskRow
from hpcal.store.transitions import CampaignState, TaskState

TICK_SECONDS: Final = 1.0
"""How long the loop waits for a completion before it looks around."""
DRAIN_SECONDS: Final = 45.0
"""How long an orderly stop waits for tasks to end."""


class Observer(Protocol):
    """Is told what happens; the progress display is one."""

    def message(self, text: str) -> None:
        """Something that a person would want to know."""
        ...

    def update(self, view: View) -> None:
        """Where the campaign stands now."""
        ...


class Silent:
    """An observer that looks away."""

    def message(self, text: str) -> None:
        """Something happened."""

    def update(self, view: View) -> None:
        """Where the campaign stands now."""


class Controller:
    """Runs a campaign until a stop rule, a failure or a request to stop ends it.

    All state is in the store. What is here can be lost at any moment. Who holds the campaign shows
    meanwhile that it lives; see :func:`beating`.
    """

    def __init__(self, context: Context, observer: Observer | None = None) -> None:
        self._context = context
        self._observer: Observer = observer if observer is not None else Silent()
        self._completions = Completions(context)
        self._running: dict[int, int] = {}

    def run(self) -> str:
        """Runs to the end; returns the reason for which the campaign is finished.

        Raises:
            Interrupted: by SIGINT, SIGTERM or ``hpcal stop``; everything finished is kept.
            CampaignFailed: it cannot go on; the message holds the cause.
            FencedError: another controller has taken over.
        """
        context = self._context
        context.folders.stop_file.unlink(missing_ok=True)
        with context.store.write() as session:
            campaigns.move(session, CampaignState.RUNNING)
        with repair.disk_told(context.folders.root), self._signals():
            self._say(self._completions.recover())
            self._dispatch_queued()
            return self._loop()

    def _loop(self) -> str:
        # A deterministic campaign plans once after each completion; what an interrupted one
        # recovered must not be planned on before the task it belongs to is complete.
        wait_first = self._context.dispatcher.virtual and bool(self._running) and self._planned()
        while True:
            if self._stop_requested():
                self._drain()
            if not wait_first:
                end = self._plan()
                if end is not None:
                    return end
            wait_first = False
            self._collect(TICK_SECONDS)

    def _plan(self) -> str | None:
        """Plans and dispatches; the reason if that was the end."""
        context = self._context
        with context.store.write() as session:
            view = snapshot.take(session, context)
            if context.dispatcher.virtual:
                campaigns.campaign(session).planned = tasks.ended(session)
            made: list[TaskRow] = []
            said: list[str] = []
            for action in plan(view, context.spec):
                if isinstance(action, Finish):
                    campaigns.move(session, CampaignState.FINISHED, action.reason)
                    return action.reason
                if isinstance(action, Fail):
                    campaigns.move(session, CampaignState.FAILED, action.reason)
                    failure = action.reason
                    break
                if isinstance(action, GoOn):
                    said.append(quorum.go_on(session, context, action.ensemble_id))
                    continue
                made += actions.apply(action, session, context)
            else:
                failure = None
            going = repair.ready(session, made, context.store.epoch)
            assignments = [self._assign(session, task) for task in going]
        if failure is not None:
            raise CampaignFailed(failure)
        self._say(said)
        for assignment in assignments:
            self._submit(assignment)
        self._observer.update(view)
        return None

    def _planned(self) -> bool:
        """Whether the last completion was planned on before the controller ended."""
        with self._context.store.session() as session:
            return campaigns.campaign(session).planned == tasks.ended(session)

    def _collect(self, timeout: float) -> bool:
        """Records what has come in, and tries again what was lost; whether there was anything."""
        reports = self._context.dispatcher.wait(timeout)
        late = self._completions.late()
        self._say(late)
        if not reports:
            return bool(late)
        for report in reports:
            self._running.pop(report.attempt_id, None)
        self._say(self._completions.record(reports))
        if not self._stop_requested():
            self._dispatch_queued()
        return True

    def _dispatch_queued(self) -> None:
        with self._context.store.session() as session:
            if not tasks.any_queued(session):
                return
        with self._context.store.write() as session:
            waiting = tasks.unfinished(session, TaskState.QUEUED)
            going = repair.ready(session, waiting, self._context.store.epoch)
            assignments = [self._assign(session, task) for task in going]
        for assignment in assignments:
            self._submit(assignment)

    def _submit(self, assignment: Assignment) -> None:
        self._running[assignment.attempt_id] = assignment.task_id
        self._context.dispatcher.submit(assignment)

    def _assign(self, session: Session, task: TaskRow) -> Assignment:
        """The next attempt at a task: its row, and its inputs in a file."""
        context, folders, settings = self._context, self._context.folders, self._context.spec.file.tasks
        # The site of now need not have the pool of the site that the task was made on.
        task.pool = context.dispatcher.pool(STAGES[task.kind], task.size)
        attempt = tasks.dispatch(session, task, epoch=context.store.epoch, executor=task.pool)
        stem = folders.tasks / f"{task.id:08d}-{attempt.number}"
        attempt.log, attempt.spool = f"tasks/{stem.name}.log", f"tasks/{stem.name}.spool"
        session.flush()
        inputs = stem.with_suffix(".task")
        inputs.write_bytes(pack(payload(session, context, task)))
        virtual = context.dispatcher.virtual
        seconds = {"sample": settings.sample_seconds, "train": settings.train_seconds}.get(task.kind)
        # A spool of this name can only be left by a controller that was killed before its commit.
        stem.with_suffix(".spool").unlink(missing_ok=True)
        return Assignment(
            attempt_id=attempt.id,
            task_id=task.id,
            epoch=context.store.epoch,
            kind=task.kind,
            pool=task.pool,
            priority=task.priority,
            payload=str(inputs),
            spool=str(stem.with_suffix(".spool")),
            log=str(stem.with_suffix(".log")),
            scratch=str(folders.scratch / stem.name),
            stop_file=str(folders.stop_file),
            seconds=None if virtual or seconds is None else seconds * 2**task.size,
            size=task.size,
            steps=settings.sample_steps if virtual and task.kind == "sample" else None,
            virtual=virtual,
        )

    def _stop_requested(self) -> bool:
        return self._context.folders.stop_file.exists()

    def _drain(self) -> None:
        """Ends in good order: tasks stop by themselves, their results are kept."""
        self._observer.message("stopping: tasks end at their next structure or step")
        deadline = time.monotonic() + DRAIN_SECONDS
        while self._running and time.monotonic() < deadline:
            self._collect(TICK_SECONDS)
        with self._context.store.write() as session:
            campaigns.move(session, CampaignState.STOPPED, "stopped on request")
        raise Interrupted(f"stopped in good order; go on with `hpcal resume {self._context.folders.root}`")

    def _say(self, messages: Sequence[str]) -> None:
        for text in messages:
            self._observer.message(text)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM ask for an orderly stop."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(_number: int, _frame: FrameType | None) -> None:
            self._context.folders.stop_file.touch()

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def beating(store: Store) -> Iterator[None]:
    """Shows that this process lives and holds the campaign, also while it is busy or waits."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            try:
                store.beat()
            except FencedError:
                return
            except StoreError:
                continue  # a full disk or a long lock may pass

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def request_stop(root: Path) -> None:
    """Asks the controller of a campaign for an orderly stop."""
    (root / "stop").touch()

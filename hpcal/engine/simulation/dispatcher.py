"""The dispatcher of simulated campaigns."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from hpcal.engine.dispatch import Assignment, Report
from hpcal.engine.simulation.hooks import step
from hpcal.engine.simulation.violation import Violation
from hpcal.engine.simulation.world import START_S, Host, Running, World

IDLE_LIMIT: Final = 40
"""Looks around without anything under way after which the controller counts as stuck."""


class SimulatedDispatcher:
    """Carries assignments to the virtual hosts of a world.

    Attributes:
        delivered: attempts whose first report the controller has taken.
        outstanding: attempts that it still waits for.
    """

    def __init__(
        self,
        world: World,
        slots: Mapping[str, int],
        *,
        virtual: bool = False,
        on_delivery: Callable[[list[Report]], None] = lambda _reports: None,
        on_submit: Callable[[Assignment], None] = lambda _assignment: None,
        on_wait: Callable[[SimulatedDispatcher], None] = lambda _dispatcher: None,
    ) -> None:
        self.virtual = virtual
        self.outstanding: set[int] = set()
        self.delivered: set[int] = set()
        self._world = world
        self._slots = dict(slots)
        self._free = dict(slots)
        self._queues: dict[str, deque[Assignment]] = {pool: deque() for pool in slots}
        self._running: list[Running] = []
        self._reports: list[Report] = []
        self._on_delivery, self._on_submit, self._on_wait = on_delivery, on_submit, on_wait
        self._aside: set[str] = set()
        self._idle = 0

    def slots(self) -> Mapping[str, int]:
        """Workers by pool."""
        return self._slots

    def pool(self, wanted: str, size: int = 0) -> str:
        """The pool that serves for ``wanted``; for more memory or time the large one where there is one."""
        large = f"{wanted}_large"
        if size and large in self._slots:
            return large
        return wanted if wanted in self._slots else "sample"

    def room(self, wanted: str) -> float | None:  # noqa: ARG002
        """No limit: its nodes have no walltime."""
        return None

    def set_aside(self, host: str) -> tuple[str, ...]:
        """Gives a host no more work; every pool has all hosts."""
        self._world.say(f"{host} is set aside")
        self._aside.add(host)
        return () if self._hosts() else tuple(self._slots)

    def _hosts(self) -> list[Host]:
        return [host for host in self._world.hosts if host.name not in self._aside]

    def submit(self, assignment: Assignment) -> None:
        """Accepts an assignment."""
        step("before a submission")
        self._on_submit(assignment)
        self.outstanding.add(assignment.attempt_id)
        self._queues[assignment.pool].append(assignment)
        self._fill(assignment.pool)
        step("after a submission")

    def wait(self, timeout: float) -> list[Report]:
        """Lets things happen until there is a report, or the time is over."""
        step("before waiting")
        self._on_wait(self)
        world = self._world
        limit = world.clock + timeout
        # Most looks around find nothing: so short a wait is seldom played out.
        patient = world.rng.random() < 0.95
        while not self._reports:
            following = world.next_event()
            if following is None or (following > limit and not patient):
                world.advance(limit)
                break
            world.advance(max(limit, following))
        self._gather()
        reports = self._take()
        step("after waiting")
        return reports

    def _gather(self) -> None:
        """Completions close to each other come together."""
        window = self._world.clock + self._world.gather_s * self._world.rng.random()
        while self._reports and (following := self._world.next_event()) is not None and following <= window:
            self._world.advance(window)

    def _take(self) -> list[Report]:
        reports, self._reports = self._reports, []
        self._idle = 0 if reports or self.outstanding else self._idle + 1
        if self._idle > IDLE_LIMIT:
            raise Violation("the controller waits although nothing is under way")
        for report in reports:
            self.outstanding.discard(report.attempt_id)
            self.delivered.add(report.attempt_id)
        self._on_delivery(reports)
        return reports

    def close(self) -> None:
        """The controller has ended, in whatever way: its workers with it, or some of them later."""
        for run in self._running:
            self._world.orphan(run)
        for queue in self._queues.values():
            for assignment in queue:
                if self._world.rng.random() < 0.5 * self._world.rates.strays:
                    self._begin(assignment, deliver=False)
            queue.clear()
        self._running.clear()

    def _fill(self, pool: str) -> None:
        while self._free[pool] > 0 and self._queues[pool]:
            self._free[pool] -= 1
            self._begin(self._queues[pool].popleft(), deliver=True)

    def _begin(self, assignment: Assignment, *, deliver: bool) -> None:
        world = self._world
        run = Running(
            assignment=assignment,
            host=world.rng.choice(self._hosts() or world.hosts),
            deliver=self._deliver if deliver else None,
        )
        if deliver:
            run.free = lambda: self._freed(assignment.pool)
            self._running.append(run)
        world.after(START_S * (1 + world.rng.random()), lambda: world.begin(run) if not run.ended else None)

    def _deliver(self, report: Report) -> None:
        self._reports.append(report)

    def _freed(self, pool: str) -> None:
        self._free[pool] += 1
        self._fill(pool)

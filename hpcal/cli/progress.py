"""What a running campaign shows: a live display in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hpcal.engine.loop import Observer
from hpcal.engine.view import View

STATUS_SECONDS: Final = 10.0
"""Plain output has at most one line of status in so many seconds."""
RATE_SECONDS: Final = 120.0
"""Time over which the rate of labels is taken."""

Clock = Callable[[], float]


@contextmanager
def observer(out: TextIO | None = None) -> Iterator[Observer]:
    """The observer that fits an output, by default the standard one."""
    stream = sys.stdout if out is None else out
    if not stream.isatty():
        yield PlainLines(stream)
        return
    console = Console(file=stream)
    with Live(console=console, refresh_per_second=2, transient=True) as live:
        yield LiveDisplay(live, console)


class Rate:
    """Labels per minute over the last two minutes."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def at(self, now: float, labels: int) -> float | None:
        """The rate after so many labels, or None before there is one."""
        if not self._seen or self._seen[-1][1] != labels:
            self._seen.append((now, labels))
        while len(self._seen) > 2 and now - self._seen[0][0] > RATE_SECONDS:
            self._seen.popleft()
        start, first = self._seen[0]
        if now - start < 1.0 or labels == first:
            return None
        return 60.0 * (labels - first) / (now - start)


class PlainLines:
    """A line a message, and now and then one on where the campaign stands."""

    def __init__(self, out: TextIO, clock: Clock = time.monotonic) -> None:
        self._out, self._clock = out, clock
        self._start = clock()
        self._due = self._start + STATUS_SECONDS
        self._rate = Rate()
        self._last = ""

    def message(self, text: str) -> None:
        """Something that a person would want to know."""
        self._line(_first_line(text))

    def update(self, view: View) -> None:
        """Where the campaign stands now; printed if it is time and something has changed."""
        now = self._clock()
        rate = self._rate.at(now, view.labels)
        if now < self._due:
            return
        text = ", ".join([*(f"{name} {value}" for name, value in stands(view)), *_rated(rate)])
        if text != self._last:
            self._line(text)
            self._last = text
        self._due = now + STATUS_SECONDS

    def _line(self, text: str) -> None:
        # Output that nobody reads any more must not end a campaign.
        with suppress(OSError):
            print(f"[{elapsed(self._clock() - self._start)}] {text}", file=self._out, flush=True)


class LiveDisplay:
    """A table that is drawn anew, with messages running above it."""

    def __init__(self, live: Live, console: Console, clock: Clock = time.monotonic) -> None:
        self._live, self._console, self._clock = live, console, clock
        self._start = clock()
        self._rate = Rate()

    def message(self, text: str) -> None:
        """Something that a person would want to know."""
        self._console.print(Text(f"[{elapsed(self._clock() - self._start)}] {_first_line(text)}"))

    def update(self, view: View) -> None:
        """Where the campaign stands now."""
        now = self._clock()
        table = Table.grid(padding=(0, 2))
        for name, value in stands(view):
            table.add_row(Text(name, style="dim"), Text(value))
        for text in _rated(self._rate.at(now, view.labels)):
            table.add_row(Text("rate", style="dim"), Text(text))
        table.add_row(Text("pools", style="dim"), Text("  ".join(busy(view))))
        self._live.update(Group(Text(elapsed(now - self._start), style="dim"), table))


def stands(view: View) -> list[tuple[str, str]]:
    """What there is to say of a snapshot, in the order of the flow."""
    generation = "none yet" if view.current is None else str(view.current.generation)
    if view.newest is not None and view.newest != view.current:
        generation += f" (generation {view.newest.generation} {view.newest.state})"
    rows = [("generation", generation)]
    if view.seeds:
        rows.append(("seeds", f"{len(view.seeds)} to relax"))
    alive = sum(entry.alive for entry in view.walkers)
    if alive:
        rows.append(("walkers", str(alive)))
    queues = {
        "candidates": view.n_candidates,
        "waiting": view.n_waiting + len(view.waiting_audit),
        "labelling": view.n_claimed,
    }
    rows += [(name, str(count)) for name, count in queues.items() if count]
    rows.append(("labels", f"{view.labels} ({view.audit_labels} audit)"))
    if view.audit is not None:
        rows.append(
            (
                "audit RMSE",
                f"{1000 * view.audit.energy_rmse:.2f} meV/atom {1000 * view.audit.force_rmse:.1f} meV/Å "
                f"({view.audit.count})",
            )
        )
    return rows


def busy(view: View) -> list[str]:
    """Tasks that can be running over the slots of each pool, and those queued behind them."""
    parts = []
    for pool, slots in view.slots.items():
        tasks = view.pools.get(pool, 0)
        queued = f" +{tasks - slots}" if tasks > slots else ""
        parts.append(f"{pool} {min(tasks, slots)}/{slots}{queued}")
    return parts


def elapsed(seconds: float) -> str:
    """Time since the start, such as ``  12 s`` or ``1:02:03``."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole:4d} s"
    minutes, whole = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{whole:02d}" if hours else f"{minutes:3d}:{whole:02d}"


def _rated(rate: float | None) -> list[str]:
    return [] if rate is None else [f"{rate:.1f} labels a minute"]


def _first_line(text: str) -> str:
    """A message in one line; what follows is in the store and the log of the attempt."""
    lines = text.strip().splitlines()
    return lines[0] if len(lines) == 1 else f"{lines[0]} … {lines[-1]}" if lines else ""

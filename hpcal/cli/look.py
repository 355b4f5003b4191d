"""``hpcal status``, ``trace`` and ``report``: looking at a campaign without disturbing it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import click

from hpcal.cli.folders import holder, reading
from hpcal.cli.publish import published
from hpcal.sites.chain import chain_status
from hpcal.store.transitions import CampaignState

WATCH_SECONDS: Final = 5.0


def status(root: Path, *, as_json: bool, watch: bool) -> None:
    """Prints where a campaign stands; again and again where it is watched. Raises InputError."""
    if watch:
        _watch(root, as_json=as_json)
    else:
        click.echo(_look(root, as_json=as_json).text)


@dataclass(frozen=True, kw_only=True)
class Look:
    """One look at a campaign: what is shown of it, and whether it goes on."""

    text: str
    running: bool


def _look(root: Path, *, as_json: bool) -> Look:
    from hpcal.report.failures import word
    from hpcal.report.status import campaign_status, status_text

    found = published(root)
    if found is None:
        with reading(root) as store:
            found = campaign_status(store, root)
    runner, chain = holder(root), chain_status(root)
    goes_on = chain is not None and chain.goes_on
    dead = found["state"] == CampaignState.RUNNING and (runner is None or runner.gone)
    if dead:
        found["next"] = f"hpcal resume {word(root)}"
    if goes_on:
        found["next"] = None
    found["controller"] = None if chain is None else asdict(chain)
    text = json.dumps(found) if as_json else status_text(found).rstrip("\n")
    running = found["state"] == CampaignState.RUNNING and not dead
    # The end of a chain is no news where a controller runs without it, or has nothing left to do.
    ended_is_news = not running and found["state"] != CampaignState.FINISHED
    if chain is not None and (goes_on or ended_is_news) and not as_json:
        text = f"{text}\n\n{chain.sentence}"
    if dead and not goes_on and not as_json:
        text = f"{text}\n\nits controller is dead: go on with `{found['next']}`"
    return Look(text=text, running=goes_on or running)


def _watch(root: Path, *, as_json: bool) -> None:
    """Looks again every few seconds until the campaign ends, its controller dies, or Ctrl-C."""
    look = _look(root, as_json=as_json)
    with _shown(as_json=as_json) as show, suppress(KeyboardInterrupt):  # the usual end of watching
        while look.running:
            show(look.text)
            time.sleep(WATCH_SECONDS)
            look = _look(root, as_json=as_json)
    click.echo(look.text)


@contextmanager
def _shown(*, as_json: bool) -> Iterator[Callable[[str], None]]:
    """Where the looks before the last one go: redrawn in a terminal, else one below the other."""
    if as_json or not sys.stdout.isatty():
        yield _Below(gap="" if as_json else "\n")
        return
    from rich.live import Live
    from rich.text import Text

    with Live(transient=True, auto_refresh=False, vertical_overflow="crop") as live:
        yield lambda text: live.update(Text(text), refresh=True)


class _Below:
    """Prints what has changed since it was printed last."""

    def __init__(self, gap: str) -> None:
        self._gap, self._last = gap, ""

    def __call__(self, text: str) -> None:
        if text != self._last:
            click.echo(f"{text}{self._gap}")
        self._last = text


def trace(root: Path, what: str, *, as_json: bool) -> None:
    """Prints the life of a structure, model, ensemble, data set or task. Raises InputError."""
    from hpcal.report.lineage import trace as traced
    from hpcal.report.lineage_text import trace_text

    with reading(root) as store:
        found = traced(store, what)
    click.echo(json.dumps(found) if as_json else trace_text(found).rstrip("\n"))


def report(root: Path, out: Path | None) -> None:
    """Writes the HTML report. Raises InputError."""
    from hpcal.report.html import write_report

    path = root / "report.html" if out is None else out
    with reading(root) as store:
        write_report(store, path)
    click.echo(f"report: {path}")

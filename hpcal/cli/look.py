"""``hpcal status``, ``trace`` and ``report``: looking at a campaign without disturbing it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Final

import click

from hpcal.cli.folders import holder, reading
from hpcal.store.database import Store

WATCH_SECONDS: Final = 5.0


def status(root: Path, *, as_json: bool, watch: bool) -> None:
    """Prints where a campaign stands; again and again where it is watched. Raises InputError."""
    with reading(root) as store:
        while True:
            found = _status(store)
            if watch and not as_json:
                click.clear()
            _print_status(root, store, found, as_json=as_json)
            if not watch or found["state"] != "running":
                return
            try:
                time.sleep(WATCH_SECONDS)
            except KeyboardInterrupt:  # the usual end of watching
                return


def _status(store: Store) -> dict[str, Any]:
    from hpcal.report.status import campaign_status

    return campaign_status(store)


def _print_status(root: Path, store: Store, found: dict[str, Any], *, as_json: bool) -> None:
    from hpcal.report.status import status_text

    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(status_text(found), nl=False)
    with store.session() as session:
        runner = holder(session)
    if found["state"] == "running" and (runner is None or runner.gone):
        click.echo(f"\nits controller is dead: go on with `hpcal resume {root}`")


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

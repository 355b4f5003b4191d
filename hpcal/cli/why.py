"""``hpcal why``: what happened to a task, and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import click

from hpcal.cli.folders import reading
from hpcal.report.why import why as explained
from hpcal.report.why import why_text


def why(root: Path, what: str, *, as_json: bool) -> None:
    """Prints what happened to a task. Raises InputError for an id that is not there."""
    with reading(root) as store:
        found = explained(store, root, what)
    click.echo(json.dumps(found) if as_json else why_text(found))

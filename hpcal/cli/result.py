"""What a campaign has come to: a summary, its report, and its ensemble ready for use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from hpcal.cli.ensembles import ensemble_of, save_ensemble
from hpcal.cli.folders import reading
from hpcal.core.errors import HpcalError
from hpcal.store.database import Store


def print_result(root: Path) -> None:
    """Prints the summary, writes ``report.html`` and ``ensemble/`` in the campaign's folder.

    Raises:
        InputError: there is no campaign.
    """
    from hpcal.report.status import campaign_status

    with reading(root) as store:
        status = campaign_status(store)
        click.echo("\n".join(summary(status)))
        if status["generation"]:
            _write_ensemble(store, root)
        _write_report(store, root)


def summary(status: Mapping[str, Any]) -> list[str]:
    """The result of a campaign in a few aligned lines."""
    labels, history = status["labels"], status["history"]
    rows = {
        "labels": f"{labels['accepted']} accepted, {labels['rejected'] + labels['failed']} turned away",
        "generations": f"{len({entry['generation'] for entry in history})} trained, "
        f"{status['generation']} promoted last",
        "audit": _errors(status["ensemble"]),
    }
    current = next((e for e in reversed(history) if e["promoted"]), None)
    if current is not None and current["reference"]["count"]:
        rows["reference"] = _errors(current["reference"])
    rows["QM calls"] = f"{status['qm_calls']}"
    rows["wall time"] = _hours(status["active_hours"])
    width = max(map(len, rows))
    return [f"{name:<{width}}  {text}" for name, text in rows.items()]


def _errors(found: Mapping[str, Any]) -> str:
    if not found["count"]:
        return "no labels to tell errors from"
    energy, force = found["energy_rmse_ev_per_atom"], found["force_rmse_ev_per_ang"]
    parts = [] if energy is None else [f"energy RMSE {1000 * energy:.2f} meV/atom"]
    parts += [] if force is None else [f"force RMSE {1000 * force:.1f} meV/Å"]
    return f"{', '.join(parts)} on {found['count']} structures"


def _hours(hours: float) -> str:
    seconds = round(hours * 3600)
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def _write_report(store: Store, root: Path) -> None:
    from hpcal.report.html import write_report

    try:
        click.echo(f"report: {write_report(store, root / 'report.html')}")
    except HpcalError as error:
        click.echo(f"note: the report was not written: {error}", err=True)


def _write_ensemble(store: Store, root: Path) -> None:
    try:
        path = save_ensemble(ensemble_of(store, root), root / "ensemble")
    except HpcalError as error:
        click.echo(f"note: the ensemble was not written: {error}", err=True)
        return
    click.echo(f"ensemble: {path}")
    click.echo(
        f"use it: from hpcal.ase import EnsembleCalculator; atoms.calc = EnsembleCalculator({str(path)!r})"
    )

"""The report of a campaign: one HTML file with pictures that needs nothing outside itself."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from hpcal.core.errors import InputError
from hpcal.report import html_accuracy, html_history
from hpcal.report.data import ReportData, gather
from hpcal.report.page import Section, duration, page, pairs, shown, text, tiles
from hpcal.store.database import Store


def write_report(store: Store, path: Path) -> Path:
    """Writes the report of a campaign at any stage of it.

    Args:
        store: opened for reading or writing.
        path: the file; its folder is made, and an older report is replaced whole.

    Returns:
        The path.

    Raises:
        InputError: the store holds no campaign, or the file cannot be written.
    """
    content = render_report(gather(store))
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(content, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise InputError(f"the report cannot be written to {path}: {error.strerror or error}") from error
    return path


def render_report(data: ReportData) -> str:
    """The report as HTML."""
    sections = [_campaign(data), *html_accuracy.sections(data), *html_history.sections(data)]
    return page(f"{data.campaign.name} - hpcal report", _header(data), sections, _footer(data))


def _header(data: ReportData) -> str:
    status = data.status
    state = escape(status["state"])
    reason = status["stop_reason"]
    stage = f"generation {status['generation']}" if data.current else "no ensemble has been promoted yet"
    head = (
        f'<h1>{escape(status["name"])}<span class="state {state}">{state}</span></h1>'
        f'<p class="soft">{escape(_level(data))} · {escape(stage)}</p>'
    )
    why = f'<p class="reason"><b>Why it ended.</b> {escape(reason)}</p>' if reason else ""
    return head + why + tiles(_tiles(data))


def _tiles(data: ReportData) -> list[tuple[str, str]]:
    status = data.status
    labels, errors = status["labels"], status["ensemble"]
    found = [
        (shown(labels["accepted"]), f"labels accepted, {shown(labels['pending'])} pending"),
        (shown(status["structures"]["total"]), "structures seen"),
        (shown(status["qm_calls"]), "QM calls, relaxations and Hessians included"),
        (duration(3600 * status["active_hours"]), "that the campaign ran"),
    ]
    if errors["force_rmse_ev_per_ang"] is not None:
        interval = errors["force_rmse_ev_per_ang_interval"]
        spread = f", 95 % {interval[0]:.3f} to {interval[1]:.3f}" if interval else ""
        found.insert(1, (f"{errors['force_rmse_ev_per_ang']:.3f}", f"eV/Å force RMSE, audit test{spread}"))
    if errors["energy_rmse_ev_per_atom"] is not None:
        found.insert(
            2, (f"{1000 * errors['energy_rmse_ev_per_atom']:.2f}", "meV/atom energy RMSE, audit test")
        )
    return found


def _level(data: ReportData) -> str:
    level = data.campaign.level
    if level is None:
        return "level of theory not recorded yet"
    basis = (level.get("settings") or {}).get("basis")
    method = f"{level['method']}/{basis}" if basis else str(level["method"])
    return f"{method} ({level['code']} {level['version']})"


def _campaign(data: ReportData) -> Section:
    campaign, status = data.campaign, data.status
    spec = campaign.spec
    threshold = status["threshold"]
    entries = {
        "potential": _named(spec.get("potential"), "kind"),
        "samplers": ", ".join(_named(block, "sampler") for block in spec.get("sampling") or []) or None,
        "uncertainty": f"{status['metric']}, threshold {threshold:.4g}" if threshold is not None else None,
        "selection": _named(spec.get("selection"), "method"),
        "stops at": ", ".join(f"{key} {value}" for key, value in (spec.get("stop") or {}).items()) or None,
        "site": status["site"],
        "begun": datetime.fromtimestamp(campaign.created, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "run": campaign.run_id,
        "hpcal": campaign.hpcal_version,
    }
    known = {name: value for name, value in entries.items() if value}
    structures = {s: n for s, n in status["structures"].items() if n}
    note = "Structures: " + ", ".join(f"{shown(n)} {state}" for state, n in structures.items()) + "."
    body = pairs(known, "tables campaign, ensemble") + (text(note, "note") if structures else "")
    return Section(anchor="campaign", title="Campaign", body=body)


def _named(block: object, key: str) -> str:
    """A block of the campaign file in a few words: its name, then what else it says."""
    if not isinstance(block, dict):
        return ""
    others = [f"{k} {_value(v)}" for k, v in block.items() if k != key]
    name = str(block.get(key, "default"))
    return f"{name} ({', '.join(others)})" if others else name


def _value(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{k} {_value(v)}" for k, v in value.items())
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return str(value)


def _footer(data: ReportData) -> str:
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        f"Made {made} from the store of run {escape(data.campaign.run_id)}. Every number sums up rows of the "
        "tables that are named under it; <code>hpcal trace DIR ID</code> shows the rows of one structure, "
        "model, ensemble, data set or task."
    )

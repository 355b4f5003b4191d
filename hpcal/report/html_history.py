"""Sections of the report on what the campaign did: labels, failures, walkers, machines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime

from hpcal.report import html_label_audits
from hpcal.report.data import ReportData
from hpcal.report.page import Cell, Section, duration, figure, folded, number_of, table, text
from hpcal.report.pictures import stacked_bars
from hpcal.report.timeline import timeline
from hpcal.store.history import Counts
from hpcal.store.transitions import WalkerState


def sections(data: ReportData) -> list[Section]:
    """Labels and their audits, failures, walkers, machines, events."""
    return [
        _labels(data),
        html_label_audits.section(data),
        _failures(data),
        _walkers(data),
        _machines(data),
        _events(data),
    ]


def _labels(data: ReportData) -> Section:
    status = data.status
    labels, share = status["labels"], status["audit_share"]
    body = text(
        f"{number_of(labels['accepted'], 'label')} accepted"
        + (f", {share:.1%} of them for the audit" if share is not None else "")
        + f"; {number_of(status['candidates_dropped'], 'candidate')} dropped by rescoring before any choice"
        + f"; {number_of(status['labels_saved'], 'calculation')} saved on structures that had been chosen, "
        "as a later ensemble was sure of them.",
        "lead",
    )
    picture = stacked_bars(
        data.label_origins,
        xlabel="generation in which the structure was found",
        ylabel="accepted labels",
        alt="Accepted labels by generation and origin: " + _words(data.label_origins),
    )
    if picture is not None:
        body += figure(picture, "Accepted labels by the generation of the ensemble that drove the sampling.")
    origins = sorted({origin for _, origin in data.label_origins})
    body += _by_generation(data, origins)
    body += folded("Decisions", _counted(("decision", "rule"), data.decisions, "table selection"))
    body += folded(
        "Structures by origin", _counted(("origin", "state"), data.structure_origins, "table structure")
    )
    return Section(anchor="labels", title="Labels", body=body)


def _by_generation(data: ReportData, origins: list[str]) -> str:
    saved = {key[0]: n for key, n in data.saved.items()}
    generations = sorted({g for g, _ in data.label_origins} | {g for g in saved if g is not None})
    rows: list[list[Cell]] = [
        [str(g), *(data.label_origins.get((g, o), 0) for o in origins), saved.get(g, 0)] for g in generations
    ]
    source = (
        "tables label, structure (generation, origin); saved: selection (dropped by rescore after chosen)"
    )
    return table(("generation", *origins, "saved by rescoring"), rows, source)


def _words(counts: Counts) -> str:
    totals: dict[str, int] = defaultdict(int)
    for key, n in counts.items():
        totals[str(key[-1])] += n
    return ", ".join(f"{n} {word}" for word, n in totals.items()) or "none"


def _counted(head: tuple[str, ...], counts: Counts, source: str) -> str:
    rows: list[list[Cell]] = [[*(_plain(k) for k in key), n] for key, n in counts.items()]
    return table((*head, "number"), rows, source)


def _plain(key: object) -> str:
    return "–" if key is None else str(key)


def _failures(data: ReportData) -> Section:
    labels = data.status["labels"]
    body = text(
        f"{number_of(labels['rejected'], 'structure')} turned away by the labeler or its checks, "
        f"{labels['failed']} set aside. One bad structure never stops a campaign.",
        "lead",
    )
    rejected: list[list[Cell]] = [[r.code, r.failure_class, r.count, r.example] for r in data.rejections]
    body += "<h3>Rejections</h3>" + table(
        ("code", "class", "structures", "for instance"), rejected, "table rejection"
    )
    failed: list[list[Cell]] = [
        [f["what"], f["kind"], f["failure_class"], f["count"], f["cause"], f["task_id"]]
        for f in data.status["failures"]
        if f["what"] in ("task", "quarantine")
    ]
    body += "<h3>Failed tasks and quarantined structures</h3>" + table(
        ("what", "kind", "class", "number", "cause", "last task"),
        failed,
        "tables task (state failed), structure (state quarantined)",
    )
    body += "<h3>Attempts that failed or were lost</h3>" + _counted(
        ("task", "attempt", "reason"), data.attempt_endings, "table attempt; a lost one is tried again"
    )
    aside: list[list[Cell]] = [
        [h["host"], _moment(h["time"]), h["message"]] for h in data.status["hosts_set_aside"]
    ]
    if aside:
        body += "<h3>Hosts set aside</h3>" + table(("host", "UTC", ""), aside, "table event (host_set_aside)")
    return Section(anchor="failures", title="Failures", body=body)


def _walkers(data: ReportData) -> Section:
    by_generation: Counts = defaultdict(int)
    by_sampler: Counts = defaultdict(int)
    for (sampler, split, generation, state, reason), n in data.walker_ends.items():
        end = reason or "no reason" if state == WalkerState.ENDED else "alive"
        by_generation[generation, end] += n
        by_sampler[sampler, split, end] += n
    walkers = data.status["walkers"]
    ended = sum(walkers["ended"].values())
    body = text(f"{number_of(ended, 'walker')} ended, {walkers['alive']} alive.", "lead")
    picture = stacked_bars(
        by_generation,
        xlabel="generation in which the walker was born",
        ylabel="walkers",
        alt="Walkers by generation of birth and end: " + _words(by_generation),
    )
    if picture is not None:
        caption = (
            "A quiet walker was started under the current ensemble and reached its full time without "
            "crossing the threshold."
        )
        body += figure(picture, caption)
    body += _counted(("sampler", "split", "end"), dict(sorted(by_sampler.items())), "table walker")
    return Section(anchor="walkers", title="Walkers", body=body)


def _machines(data: ReportData) -> Section:
    picture = timeline(data.attempts, data.pools, data.ensembles)
    if picture is None:
        body = text("No attempt has ended yet.", "nothing")
    else:
        caption = (
            "Attempts of each pool; the axis on the left ends at the slots. Triangles: an ensemble was "
            "promoted. Dotted lines: another controller took over; the time between the two is left out."
        )
        body = figure(picture, caption)
    pools: list[list[Cell]] = [
        [name, pool["slots"], duration(3600 * pool["busy_hours"]), _percent(pool["busy_fraction"])]
        for name, pool in data.status["pools"].items()
    ]
    body += table(
        ("pool", "slots", "slot time at work", "busy"),
        pools,
        "tables attempt, campaign (site); busy: time in attempts over slots and the time the campaign ran",
    )
    body += "<h3>Work by kind of task</h3>" + _kinds(data)
    return Section(anchor="machines", title="Machines", body=body)


def _kinds(data: ReportData) -> str:
    attempts, tasks = data.attempts, data.status["tasks"]
    rows: list[list[Cell]] = []
    for kind, states in tasks.items():
        mine = attempts.kind == kind
        time = duration(float(attempts.seconds[mine].sum()))
        rows.append([kind, _states(states), int(mine.sum()), time, int(attempts.qm_calls[mine].sum())])
    return table(("kind", "tasks", "attempts", "slot time", "QM calls"), rows, "tables task, attempt")


def _states(states: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {state}" for state, n in states.items())


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.0%}"


def _events(data: ReportData) -> Section:
    rows: list[list[Cell]] = [[_moment(time), kind, message] for time, kind, message in data.events]
    body = table(("UTC", "event", ""), rows, "table event")
    changed: list[list[Cell]] = [
        [_moment(change["time"]), "; ".join(" ".join(line.split()) for line in change["lines"])]
        for change in data.status["changes"]
    ]
    if changed:
        source = "table event (changed): accepted by --accept-changes or hpcal extend"
        body += "<h3>Changes of the campaign file</h3>" + table(("UTC", "lines"), changed, source)
    return Section(anchor="events", title="Events", body=body)


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")

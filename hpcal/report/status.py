"""Where a campaign stands, as JSON values and as text for a terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from hpcal.core.walker import Split
from hpcal.engine.dispatch import waiting_words
from hpcal.report.failures import changes, failure_lines, failures, hosts_set_aside, word
from hpcal.report.utilisation import active_intervals, active_seconds, node_hours, pool_use
from hpcal.store import history, measurements
from hpcal.store.database import Store
from hpcal.store.ensembles import errors_of
from hpcal.store.error_summary import NO_ERRORS
from hpcal.store.history import CampaignRecord, Counts, EnsembleRecord
from hpcal.store.measurements import Attempts
from hpcal.store.session import Session
from hpcal.store.transitions import UNFINISHED, CampaignState, StructureState, WalkerState

SHOWN_CAUSES: Final = 8
SHOWN_CHANGES: Final = 3
SHOWN_GENERATIONS: Final = 8
EVALUATED: Final = (Split.TEST, Split.REFERENCE)


def campaign_status(store: Store, root: Path | None = None) -> dict[str, Any]:
    """Where the campaign stands; the JSON of ``hpcal status --json``.

    Energies are in eV, forces in eV/Å, times in hours unless the key says otherwise. Values that
    nothing is known of yet are null. Errors of ``ensemble`` and of every entry of ``history`` are
    on the current audit test group; see :func:`hpcal.store.error_summary.error_summary`.

    Args:
        root: folder of the campaign, for the commands to type next; ``DIR`` stands for it without.

    Raises:
        InputError: the store holds no campaign.
    """
    with store.session() as session:
        campaign = history.campaign(session)
        ensembles = [e for e in history.ensembles(session) if e.trained]
        attempts = measurements.attempts(session)
        work = _work(session, campaign, attempts)
        status = (
            _head(campaign, ensembles)
            | _structures(session)
            | work
            | _mishaps(session, campaign, sorted(work["tasks"]), root)
            | _learning(session, campaign, ensembles, attempts)
        )
    minutes = status["active_hours"] * 60
    rate = status["labels"]["accepted"] / minutes if minutes > 0 else None
    return status | {"label_rate_per_minute": rate}


def newest(ensembles: list[EnsembleRecord]) -> EnsembleRecord | None:
    """The ensemble that was promoted last, or None."""
    return next((e for e in reversed(ensembles) if e.promoted), None)


def pools_of(campaign: CampaignRecord) -> Mapping[str, Mapping[str, Any]]:
    """Pools of the recorded site."""
    pools: Mapping[str, Mapping[str, Any]] = campaign.site.get("pools", {})
    return pools


def _head(campaign: CampaignRecord, ensembles: list[EnsembleRecord]) -> dict[str, Any]:
    current = newest(ensembles)
    return {
        "name": campaign.name,
        "state": campaign.state,
        "stop_reason": campaign.stop_reason,
        "generation": current.generation if current else 0,
        "threshold": current.threshold if current else None,
        "metric": current.metric if current else None,
        "level_of_theory": campaign.level,
        "site": campaign.site.get("name"),
        "hpcal_version": campaign.hpcal_version,
    }


def _structures(session: Session) -> dict[str, Any]:
    by_state: dict[str, int] = dict.fromkeys(map(str, StructureState), 0)
    for (_, state), n in history.structure_counts(session).items():
        by_state[state] += n
    accepted, retracted = history.label_counts(session)
    pending = history.unfinished_counts(session)
    total = sum(accepted.values())
    saved = sum(history.labels_saved(session).values())
    audit = sum(n for (split,), n in accepted.items() if Split(split).audit)
    return {
        "structures": by_state | {"total": sum(by_state.values())},
        "labels": {
            "accepted": total,
            "rejected": by_state[StructureState.REJECTED],
            "failed": by_state[StructureState.QUARANTINED],
            "pending": sum(n for key, n in pending.items() if _awaits_label(*key)),
            "retracted": retracted,
            "held": history.labels_held(session),
        },
        "labels_by_split": {split: n for (split,), n in accepted.items()},
        "labels_by_origin": _summed(history.label_origins(session), 1),
        "candidates_dropped": history.dropped_by_rescoring(session) - saved,
        "labels_saved": saved,
        "audit_share": audit / total if total else None,
    }


def _awaits_label(state: str, origin: str) -> bool:
    """Seeds wait to be relaxed, not to be labelled."""
    return state in (StructureState.WAITING, StructureState.CLAIMED) and origin != "seed"


def _work(session: Session, campaign: CampaignRecord, attempts: Attempts) -> dict[str, Any]:
    tasks: dict[str, dict[str, int]] = defaultdict(dict)
    for (kind, state), n in history.task_counts(session).items():
        tasks[kind][state] = n
    walkers = history.walker_counts(session)
    intervals = active_intervals(attempts)
    active = active_seconds(intervals)
    pools = pool_use(attempts, pools_of(campaign), intervals)
    waiting = history.waiting_blocks(session) if campaign.state == CampaignState.RUNNING else {}
    return {
        "tasks": dict(tasks),
        "walkers": {
            "alive": sum(n for (state, _), n in walkers.items() if state != WalkerState.ENDED),
            "ended": {
                reason or "": n for (state, reason), n in walkers.items() if state == WalkerState.ENDED
            },
        },
        "attempts": _tally(attempts.state.tolist()),
        "qm_calls": int(attempts.qm_calls.sum()),
        "pools": {name: use | {"waiting": waiting.get(name, {})} for name, use in pools.items()},
        "active_hours": active / 3600,
    }


def _mishaps(
    session: Session, campaign: CampaignRecord, kinds: list[str], root: Path | None
) -> dict[str, Any]:
    """What went wrong and what was changed, with the command that goes on with it."""
    failed = campaign.state == CampaignState.FAILED
    stopped = campaign.stop_reason if failed else None
    resume = f"hpcal resume {word(root)}"
    return {
        "failures": failures(session, kinds, stopped, word(root)),
        "hosts_set_aside": hosts_set_aside(session),
        "changes": changes(session),
        "next": resume if campaign.state in (CampaignState.FAILED, CampaignState.STOPPED) else None,
    }


def _learning(
    session: Session, campaign: CampaignRecord, ensembles: list[EnsembleRecord], attempts: Attempts
) -> dict[str, Any]:
    current = newest(ensembles)
    errors = {ensemble.id: ensemble.errors or errors_of(session, ensemble.id) for ensemble in ensembles}
    now = errors[current.id][Split.TEST] if current else NO_ERRORS
    identity = {"id": current.id, "generation": current.generation} if current else {}
    hours = node_hours(attempts, pools_of(campaign), np.array([e.closed for e in ensembles]))
    entries = [
        {
            "ensemble_id": ensemble.id,
            "generation": ensemble.generation,
            "revision": ensemble.revision,
            "state": ensemble.state,
            "promoted": ensemble.promoted,
            "decision": ensemble.decision,
            "labels": ensemble.labels,
            "n_train": ensemble.n_train,
            "n_validation": ensemble.n_validation,
            "node_hours": spent,
            "threshold": ensemble.threshold,
            "members": ensemble.members,
            "members_planned": ensemble.planned,
            "members_missing": {str(member): why for member, why in ensemble.missing.items()},
            "audit": errors[ensemble.id][Split.TEST],
            "reference": errors[ensemble.id][Split.REFERENCE],
        }
        for ensemble, spent in zip(ensembles, hours, strict=True)
    ]
    return {"ensemble": identity | dict(now), "history": entries}


def _summed(counts: Counts, place: int) -> dict[str, int]:
    """Counts over one of the grouped columns alone."""
    found: dict[str, int] = defaultdict(int)
    for key, n in counts.items():
        found[key[place]] += n
    return dict(found)


def _tally(words: list[str]) -> dict[str, int]:
    return {word: words.count(word) for word in sorted(set(words))}


def status_text(status: Mapping[str, Any]) -> str:
    """A status in a few aligned lines for a terminal."""
    blocks = (
        _headline(status),
        _text_rows(status),
        _text_history(status),
        failure_lines(status["failures"], SHOWN_CAUSES),
        _text_hosts(status),
        _text_changes(status),
        _text_next(status),
    )
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _headline(status: Mapping[str, Any]) -> list[str]:
    reason = f": {status['stop_reason']}" if status["stop_reason"] else ""
    site = f" on {status['site']}" if status["site"] else ""
    generation = status["generation"]
    stage = f"generation {generation}" if generation else "no ensemble yet"
    return [f"{status['name']}{site}, {status['state']}{reason} ({stage})"]


def _text_rows(status: Mapping[str, Any]) -> list[str]:
    labels, structures, walkers = status["labels"], status["structures"], status["walkers"]
    share = status["audit_share"]
    rate = status["label_rate_per_minute"]
    rows = {
        "labels": (
            f"{labels['accepted']} accepted, {labels['pending']} pending, {labels['rejected']} rejected, "
            f"{labels['failed']} set aside"
            + (f", {labels['retracted']} taken back" if labels["retracted"] else "")
        ),
        "": _joined(
            None if share is None else f"{share:.0%} audit",
            f"{status['labels_saved']} saved by rescoring" if status["labels_saved"] else None,
            None if rate is None else f"{rate:.3g} a minute",
            f"{status['qm_calls']} QM calls",
        ),
        "held": _text_held(labels["held"]),
        "structures": f"{structures['total']}"
        + _listed({state: structures[state] for state in UNFINISHED if structures[state]}),
        "walkers": f"{walkers['alive']} alive{_listed(walkers['ended'], 'ended')}",
        "errors": _text_errors(status["ensemble"]),
        "threshold": "none yet"
        if status["threshold"] is None
        else f"{status['metric']} {status['threshold']:.4g}",
        "tasks": "; ".join(
            f"{kind} " + ", ".join(f"{n} {state}" for state, n in states.items())
            for kind, states in status["tasks"].items()
        )
        or "none yet",
        "pools": "; ".join(_text_pool(name, pool) for name, pool in status["pools"].items()) or "none",
    }
    width = max(map(len, rows))
    return [f"{name:<{width}}  {text}" for name, text in rows.items() if text]


def _text_held(count: int) -> str:
    if not count:
        return ""
    one = count == 1
    return (
        f"{count} {'label waits' if one else 'labels wait'} for the other multiplicities of "
        f"{'its geometry' if one else 'their geometries'}"
    )


def _text_errors(errors: Mapping[str, Any]) -> str:
    if not errors["count"]:
        return "no audit labels to tell from yet"
    interval = errors["force_rmse_ev_per_ang_interval"]
    spread = f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
    return (
        f"energy RMSE {_scaled(errors['energy_rmse_ev_per_atom'], 1000, '.2f')} meV/atom, "
        f"force RMSE {_scaled(errors['force_rmse_ev_per_ang'], 1, '.3f')}{spread} eV/Å "
        f"on {errors['count']} audit test labels"
    )


def _text_pool(name: str, pool: Mapping[str, Any]) -> str:
    slots = "unknown slots" if pool["slots"] is None else f"{pool['slots']} slots"
    busy = "" if pool["busy_fraction"] is None else f" {pool['busy_fraction']:.0%} busy"
    waits = f" while {waiting_words(pool['waiting'])}" if pool["waiting"] else ""
    return f"{name} {slots}{busy}{waits}"


def _text_history(status: Mapping[str, Any]) -> list[str]:
    entries = status["history"][-SHOWN_GENERATIONS:]
    if not entries:
        return []
    head = ("generation", "labels", "node hours", "E meV/atom", "F eV/Å", "F ref eV/Å", "state")
    rows = [
        (
            str(entry["generation"]) + (f".{entry['revision']}" if entry["revision"] else ""),
            str(entry["labels"]),
            f"{entry['node_hours']:.3g}",
            _scaled(entry["audit"]["energy_rmse_ev_per_atom"], 1000, ".2f"),
            _scaled(entry["audit"]["force_rmse_ev_per_ang"], 1, ".3f"),
            _scaled(entry["reference"]["force_rmse_ev_per_ang"], 1, ".3f"),
            entry["state"] + _text_size(entry),
        )
        for entry in entries
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    return ["  ".join(f"{cell:>{w}}" for cell, w in zip(row, widths, strict=True)) for row in (head, *rows)]


def _text_size(entry: Mapping[str, Any]) -> str:
    there, planned = entry["members"], entry["members_planned"]
    return "" if there == planned else f", {there} of {planned} members"


def _text_hosts(status: Mapping[str, Any]) -> list[str]:
    lines = [f"  {found['message']}" for found in status["hosts_set_aside"]]
    return ["hosts set aside", *lines] if lines else []


def _text_changes(status: Mapping[str, Any]) -> list[str]:
    """The latest changes of the campaign file, a line each."""
    every = status["changes"]
    lines = [
        f"  {_when(change['time'])}  " + "; ".join(" ".join(line.split()) for line in change["lines"])
        for change in every[-SHOWN_CHANGES:]
    ]
    earlier = len(every) - SHOWN_CHANGES
    if earlier > 0:
        lines.insert(0, f"  {earlier} earlier; see the report")
    return ["changes of the campaign file", *lines] if lines else []


def _text_next(status: Mapping[str, Any]) -> list[str]:
    if status["next"] is None:
        return []
    first = "mend what stopped it, then " if status["state"] == CampaignState.FAILED else ""
    return [f"{first}go on with `{status['next']}`"]


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%MZ")


def _listed(counts: Mapping[str, int], what: str = "") -> str:
    if not counts:
        return ""
    head = f"; {sum(counts.values())} {what}" if what else ""
    return f"{head} ({', '.join(f'{n} {name}' for name, n in counts.items())})"


def _joined(*parts: str | None) -> str:
    return ", ".join(part for part in parts if part)


def _scaled(value: float | None, factor: float, form: str) -> str:
    return "-" if value is None else format(value * factor, form)

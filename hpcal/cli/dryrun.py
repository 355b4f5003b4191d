"""``hpcal plan``: what a campaign would do next, and what that may cost. Nothing is changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any, Final

import click

from hpcal.cli.folders import begun, reading
from hpcal.core.errors import InputError
from hpcal.engine import snapshot
from hpcal.engine.campaign import CampaignSpec, read_campaign
from hpcal.engine.context import Context, Folders
from hpcal.engine.dispatch import Assignment, Report
from hpcal.engine.plan import plan as planned
from hpcal.engine.seeds import Start
from hpcal.engine.start import check, recorded_spec, recorded_state
from hpcal.engine.states import expanded, labels_each, learned_each
from hpcal.engine.steps import (
    Action,
    Bootstrap,
    CheckMinimum,
    Evaluate,
    Fail,
    Finish,
    GoOn,
    LabelChunk,
    Refuse,
    Relax,
    Rescore,
    Sample,
    Select,
    Spawn,
    Train,
)
from hpcal.engine.view import View
from hpcal.store import campaigns, labels, measurements, queries, structures
from hpcal.store.database import Store
from hpcal.store.transitions import CampaignState

RELAXATION_GRADIENTS: Final = 60
"""Gradients that the relaxation of a small molecule takes, for the estimate."""
DEFAULT_SLOTS: Final = {"label": 2, "sample": 1, "train": 1}


def plan(what: Path, *, as_json: bool) -> None:
    """Prints what a campaign file, or the campaign of a folder, would do next. Raises InputError."""
    if what.is_dir():
        if not begun(what):
            raise InputError(f"{what} holds no campaign: give a campaign file, or the folder of a campaign")
        found = plan_folder(what)
    else:
        found = plan_file(what)
    click.echo(json.dumps(found) if as_json else _text(found))


def plan_file(path: Path) -> dict[str, Any]:
    """A campaign that has not begun: checks it whole. Raises InputError."""
    spec = read_campaign(path)
    start, level = check(spec)
    ids = tuple(range(1, len(start.seeds) + 1))
    waiting = () if spec.relaxes else tuple(enumerate(expanded(spec.label.states, start.seeds), start=1))
    view = View(
        seeds=ids if spec.relaxes else (),
        minima=() if spec.relaxes else ids,
        waiting=tuple(number for number, _ in waiting),
        n_waiting=len(waiting),
        learnable=len(start.given),
        labels=len(start.given),
        slots=DEFAULT_SLOTS,
    )
    return {
        "campaign": spec.name,
        "state": "new",
        "level_of_theory": level.as_dict(),
        "states": None if spec.label.states is None else spec.label.states.model_dump(mode="json"),
        "seeds": len(start.seeds),
        "relaxed": spec.relaxes,
        "given_labels": len(start.given),
        "reference": len(start.reference),
        "bootstrap": [
            {"sampler": b.part.name, "count": b.count} for b in spec.bootstrap if b.part is not None
        ],
        "sampling": [{"sampler": s.part.name, "walkers": s.walkers} for s in spec.sampling],
        "stop": _stop(spec),
        "notes": list(start.notes),
        "next": _steps(planned(view, spec), spec),
        "estimate": _estimate(spec, start),
    }


def _stop(spec: CampaignSpec) -> dict[str, Any]:
    rules = ("labels", "generations", "quiet_generations", "force_rmse_eV_per_A", "energy_rmse_meV_per_atom")
    found = {rule: getattr(spec.file.stop, rule) for rule in rules}
    return {rule: value for rule, value in found.items() if value is not None}


def _estimate(spec: CampaignSpec, start: Start) -> dict[str, Any]:
    """QM calls, at most: all seeds are taken as minima of their own."""
    size = max((len(s) for s in start.seeds), default=0)
    minima = len(start.seeds)
    bootstrap = sum(b.count for b in spec.bootstrap if b.part is not None)
    hessians = sum(
        6 * size * min(minima, b.count)
        for b in spec.bootstrap
        if b.part is not None and "hessian_step_A" in type(b.part.settings).model_fields
    )
    if spec.relaxes and any(b.part is not None and b.part.plugin.needs_minimum for b in spec.bootstrap):
        hessians += 6 * size * minima  # relaxed structures may be saddle points
    relaxations = RELAXATION_GRADIENTS * minima if spec.relaxes else 0
    made, learned = labels_each(spec.label.states), learned_each(spec.label.states)
    total = _label_budget(spec, learned * (minima + bootstrap), len(start.given))
    new = None if total is None else max(0, total - len(start.given))
    asked = None if new is None else ceil(new * made / learned)
    calls = {"labels": asked, "relaxations": relaxations, "hessians": hessians}
    known = [n for n in calls.values() if n is not None]
    return {
        "labels": total,
        "qm_calls": {**calls, "total": None if new is None else sum(known)},
        "node_hours": None,
    }


def _label_budget(spec: CampaignSpec, first: int, given: int) -> int | None:
    """Labels at the end of the campaign, about; None where no rule bounds them."""
    stop = spec.file.stop
    by_generations = None
    if stop.generations is not None:
        learned = given + first + (stop.generations - 1) * spec.selection.batch
        by_generations = round(learned / (1.0 - spec.selection.audit_share))
    bounds = [bound for bound in (stop.labels, by_generations) if bound is not None]
    return min(bounds) if bounds else None


def plan_folder(root: Path) -> dict[str, Any]:
    """The campaign of a folder, from a snapshot of its store. Raises InputError."""
    from hpcal.report.status import campaign_status

    with reading(root) as store:
        spec = recorded_spec(store)
        state, reason = recorded_state(store)
        context = _context(store, root, spec)
        with store.session() as session:
            view = snapshot.take(session, context)
            seconds = queries.seconds_per_unit(session, ("label",)).get("label")
            attempts = measurements.attempts(session)
            label_calls = int(attempts.qm_calls[attempts.kind == "label"].sum())
        status = campaign_status(store)
    finished = state is CampaignState.FINISHED
    actions = [Finish(reason=reason or "finished")] if finished else planned(view, spec)
    return {
        "campaign": spec.name,
        "state": str(state),
        "stop_reason": reason,
        "level_of_theory": context.level.as_dict(),
        "generation": status["generation"],
        "labels": status["labels"],
        "stop": _stop(spec),
        "next": _steps(actions, spec),
        "estimate": _remaining(spec, status, label_calls, seconds, finished=finished),
    }


def _context(store: Store, root: Path, spec: CampaignSpec) -> Context:
    with store.session() as session:
        row = campaigns.campaign(session)
        if row.level_of_theory_id is None:
            raise InputError(f"{root} holds a campaign that was never begun")
        pools = row.site.get("pools", {})
        slots = {name: int(pool["slots"]) for name, pool in pools.items()} or DEFAULT_SLOTS
        return Context(
            spec=spec,
            store=store,
            folders=Folders(root=root.resolve()),
            dispatcher=Nobody(slots, virtual=bool(row.site.get("inline", False))),
            level=labels.level_by_id(session, row.level_of_theory_id),
            level_id=row.level_of_theory_id,
            elements=structures.elements(session),
        )


def _remaining(
    spec: CampaignSpec,
    status: Mapping[str, Any],
    label_calls: int,
    seconds: float | None,
    *,
    finished: bool,
) -> dict[str, Any]:
    """What is left, at what labels have cost so far."""
    done = status["labels"]["accepted"]
    budget = spec.file.stop.labels
    left = 0 if finished else None if budget is None else max(0, budget - done)
    spent = _node_hours(status)
    calls = None if left is None or not done else round(left * label_calls / done)
    return {
        "labels": left,
        "qm_calls": {"total": calls},
        "seconds_per_label": seconds,
        "node_hours_so_far": spent,
        "node_hours": None if left is None or not done else left * spent / done,
    }


def _node_hours(status: Mapping[str, Any]) -> float:
    return float(status["history"][-1]["node_hours"]) if status["history"] else 0.0


@dataclass(frozen=True)
class Nobody:
    """The slots of a site without its workers; see ``engine.dispatch.Dispatcher``."""

    _slots: Mapping[str, int]
    virtual: bool

    def slots(self) -> Mapping[str, int]:
        """Workers by pool."""
        return self._slots

    def pool(self, wanted: str, size: int = 0) -> str:  # noqa: ARG002
        """The pool that serves for ``wanted``."""
        return wanted if wanted in self._slots else "sample"

    def room(self, wanted: str) -> float | None:  # noqa: ARG002
        """No limit."""
        return None

    def set_aside(self, host: str) -> tuple[str, ...]:  # noqa: ARG002
        """There are no hosts."""
        return ()

    def submit(self, assignment: Assignment) -> None:
        """Refuses: nothing is carried out in a dry run."""
        raise RuntimeError(f"a dry run carries out nothing (attempt {assignment.attempt_id})")

    def wait(self, timeout: float) -> list[Report]:  # noqa: ARG002
        """Nothing comes in."""
        return []

    def close(self) -> None:
        """There is nothing to end."""


def _steps(actions: Sequence[Action], spec: CampaignSpec) -> list[dict[str, Any]]:
    """Actions, those of a kind together, with a sentence each."""
    kinds: dict[type, list[Action]] = {}
    for action in actions:
        kinds.setdefault(type(action), []).append(action)
    steps = []
    for kind, found in kinds.items():
        units = sum(_units(action) for action in found)
        sentence = _sentence(found, units, spec)
        steps.append({"action": kind.__name__, "tasks": len(found), "units": units, "sentence": sentence})
    return steps


def _units(action: Action) -> int:
    values = asdict(action)
    for name in ("structure_ids", "walker_ids", "pairs"):
        if name in values:
            return len(values[name])
    return int(values.get("count", 1))


def _sentence(found: Sequence[Action], units: int, spec: CampaignSpec) -> str:
    tasks = f"in {len(found)} task{'s' if len(found) > 1 else ''}"
    first = found[0]
    if isinstance(first, Finish | Fail):
        return f"{type(first).__name__.lower()}: {first.reason}"
    if isinstance(first, Train):
        return f"train generation {first.generation}"
    if isinstance(first, Select):
        return f"choose at most {first.budget} of {units} candidates"
    if isinstance(first, Spawn):
        return f"start {units} walkers, first of {spec.sampling[first.entry].part.name}"
    return _PLAIN[type(first)].format(units=units, tasks=tasks, n=len(found))


_PLAIN: Final[Mapping[type, str]] = {
    Relax: "relax {units} seeds to minima {tasks}",
    CheckMinimum: "look at the curvature of {units} relaxed structures {tasks}",
    Bootstrap: "make {units} bootstrap structures around {n} minima",
    LabelChunk: "label {units} structures {tasks}",
    Refuse: "set {units} structures aside whose label fits into no batch job",
    GoOn: "let an ensemble go on without the members that are late",
    Evaluate: "evaluate {units} ensembles on labels that they have not seen",
    Sample: "advance {units} walkers {tasks}",
    Rescore: "score {units} waiting structures again",
}


def _text(found: Mapping[str, Any]) -> str:
    level, estimate = found["level_of_theory"], found["estimate"]
    lines = [
        f"campaign {found['campaign']} ({found['state']}), labels of {level['method']} ({level['code']})"
    ]
    if found["state"] == "new":
        relaxed = ", relaxed first" if found["relaxed"] else ""
        lines.append(f"  starts from {found['seeds']} seeds{relaxed}, {found['given_labels']} given labels")
        lines += [_states_text(found["states"])] if found["states"] else []
        lines += [f"  bootstrap: {b['count']} structures by {b['sampler']}" for b in found["bootstrap"]]
        lines += [f"  sampling: {s['walkers']} walkers of {s['sampler']}" for s in found["sampling"]]
        lines += [f"  reference: {found['reference']} structures"] if found["reference"] else []
    else:
        lines.append(f"  generation {found['generation']}, {found['labels']['accepted']} labels")
    lines.append("  stops at: " + ", ".join(f"{rule} {value}" for rule, value in found["stop"].items()))
    lines.append("next")
    lines += [f"  {step['sentence']}" for step in found["next"]] or ["  wait for what is under way"]
    return "\n".join([*lines, "estimate", *_estimate_text(found["state"] == "new", estimate)])


def _states_text(states: Mapping[str, Any]) -> str:
    charges = ", ".join(f"{charge:+d}" if charge else "0" for charge in states["charges"])
    listed = states["multiplicities"]
    spins = (
        "the lowest multiplicity" if listed == "lowest" else f"multiplicities {', '.join(map(str, listed))}"
    )
    kept = "all are learned from" if states["keep"] == "all" else "the lowest of each charge is learned from"
    return f"  every geometry with charges {charges} (relative to its own) and {spins}; {kept}"


def _estimate_text(new: bool, estimate: Mapping[str, Any]) -> list[str]:
    total = estimate["qm_calls"]["total"]
    labels = "open-ended" if estimate["labels"] is None else f"about {estimate['labels']}"
    lines = [f"  labels {'at the end' if new else 'still to come'}: {labels}"]
    if new:
        calls = estimate["qm_calls"]
        parts = (
            f"labels {'?' if calls['labels'] is None else calls['labels']}, relaxations about "
            f"{calls['relaxations']}, Hessians at most {calls['hessians']}"
        )
        lines.append(f"  QM calls: {'open-ended' if total is None else f'about {total}'} ({parts})")
        return lines
    if total is not None:
        lines.append(f"  QM calls: about {total}, at the rate so far")
    if estimate["node_hours"] is not None:
        lines.append(
            f"  node-hours: about {estimate['node_hours']:.3g} ({estimate['node_hours_so_far']:.3g} so far)"
        )
    return lines

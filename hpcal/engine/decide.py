"""What follows from an evaluation: the threshold of an ensemble, and whether it is promoted."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from hpcal.core.plugins import Group, find
from hpcal.core.walker import Split
from hpcal.engine import siblings
from hpcal.engine.context import Context
from hpcal.engine.plan import quiet_rounds
from hpcal.engine.promotion import Gate, gate
from hpcal.engine.snapshot import MIN_CALIBRATION, current_ensemble
from hpcal.store import ensembles, queries, structures
from hpcal.store.database import add_event
from hpcal.store.session import Session
from hpcal.store.tables import EnsembleRow, ScoreRow
from hpcal.store.transitions import EnsembleState, StructureState
from hpcal.uncertainty.calibration import Calibration, CalibrationSettings, calibrate

KEPT_GENERATIONS: Final = 2
"""Audit frames of the dynamics of this many former generations still wait for labels."""


def decide(session: Session, context: Context, ensemble_id: int) -> str:
    """Sets the threshold of an evaluated ensemble and lets the gate decide; returns the verdict."""
    ensemble = ensembles.get(session, ensemble_id)
    if ensemble.state is not EnsembleState.TRAINED:
        return f"generation {ensemble.generation} was decided before"
    current = current_ensemble(session)
    previous = None if current is None else ensembles.get(session, current.id)
    verdict = _gate(session, context, ensemble, previous)
    threshold = _threshold(session, context, ensemble, previous)
    ensembles.move(
        ensemble,
        EnsembleState.PROMOTED if verdict.promoted else EnsembleState.REFUSED,
        decided=time.time(),
        decision=verdict.reason,
        threshold=threshold.value,
        bias_width=threshold.bias_width,
        calibration=threshold.record,
        quiet_rounds=0 if current is None else quiet_rounds(current, context.spec),
    )
    if verdict.promoted:
        _drop_surplus_audit(session, context, ensemble)
    word = "promoted" if verdict.promoted else "refused"
    message = f"generation {ensemble.generation} {word}: {verdict.reason}; {threshold.sentence}"
    members = ensembles.members_of(session, ensemble.id)
    there = sum(member.path is not None for member in members)
    if there < len(members):
        message += f"; {there} of {len(members)} members"
    add_event(session, context.store.epoch, word, message, ensemble_id=ensemble.id)
    return message


def _drop_surplus_audit(session: Session, context: Context, ensemble: EnsembleRow) -> None:
    """Audit frames for which there were no labels give way to those of newer dynamics."""
    old = ensemble.generation - KEPT_GENERATIONS
    policy = context.spec.label.states
    waiting = queries.audit_waiting(session, up_to=old)
    begun = siblings.begun(session, policy, waiting)
    surplus = [i for i in waiting if i not in begun]
    for structure_id in surplus:
        reason = f"surplus: audit frame of dynamics up to generation {old}, for which there was no label"
        structures.move(session, [structure_id], StructureState.DROPPED, reason=reason)
        structures.add_decision(
            session, structure_id, "dropped", "audit_surplus", reason, ensemble_id=ensemble.id
        )
    siblings.drop(session, policy, surplus)


def _gate(session: Session, context: Context, ensemble: EnsembleRow, previous: EnsembleRow | None) -> Gate:
    rule = context.spec.file.promotion
    if previous is None:
        return gate(None, None, 0, rule)
    mine = queries.errors(session, ensemble.id, queries.AUDITING)
    before = queries.errors(session, previous.id, queries.AUDITING, like=ensemble.id)
    if mine is None or before is None:
        return gate(None, 0.0, 0, rule)
    return gate(mine.force_rmse, before.force_rmse, min(mine.count, before.count), rule)


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """The threshold of an ensemble, the width of its bias, and how they came about."""

    value: float
    bias_width: float
    record: dict[str, Any]
    sentence: str


def _threshold(
    session: Session, context: Context, ensemble: EnsembleRow, previous: EnsembleRow | None
) -> Threshold:
    """Stated by the user, calibrated on the audit, or provisional before there is enough of one."""
    settings, floor = context.spec.calibration, float(find(Group.METRICS, context.spec.metric).floor)
    audit = queries.evaluated(session, ensemble.id, (Split.CALIBRATION,))
    provisional = len(audit) < MIN_CALIBRATION
    if provisional:
        learned = queries.evaluated(session, ensemble.id, (*queries.LEARNING, *queries.AUDITING))
        made = _calibrated(learned, settings, None, floor, "labels that were learned from")
        sentence = f"provisional: {made.sentence}"
    else:
        known = None if previous is None else previous.threshold
        made = _calibrated(audit, settings, known, floor)
        sentence = made.sentence
    value, stated = made.threshold, context.spec.file.uncertainty.threshold
    if stated != "calibrated":
        value, sentence = float(stated), f"threshold {stated:g} as stated"
    record = {**asdict(made), "sentence": sentence, "provisional": provisional}
    return Threshold(value=value, bias_width=made.bias_width, record=record, sentence=sentence)


def _calibrated(
    rows: list[ScoreRow],
    settings: CalibrationSettings,
    previous: float | None,
    floor: float,
    frames: str = "audit frames",
) -> Calibration:
    by_force = settings.error_kind == "force_rmse"
    errors = [row.force_rmse if by_force else row.committee_error for row in rows]
    known = [i for i, error in enumerate(errors) if error is not None]
    return calibrate(
        np.array([rows[i].value for i in known]),
        np.array([errors[i] for i in known], dtype=np.float64),
        np.array([rows[i].energy_std or 0.0 for i in known]),
        settings,
        previous,
        metric_floor=floor,
        frames=frames,
    )

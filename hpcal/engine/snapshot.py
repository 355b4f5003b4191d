"""Taking the planner's snapshot of the store."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from hpcal.core.walker import Split
from hpcal.engine import label_time, quorum
from hpcal.engine.campaign import CampaignSpec
from hpcal.engine.context import Context
from hpcal.engine.failures import last_line
from hpcal.engine.plan import CANDIDATE_BATCHES, QUEUE_DEPTH, stop_reason
from hpcal.engine.tasks import WORK
from hpcal.engine.view import AuditErrors, EnsembleView, EntryView, Gap, TrainingView, View
from hpcal.store import ensembles, failures, measurements, queries, structures, tasks
from hpcal.store import labels as store_labels
from hpcal.store.session import Session
from hpcal.store.tables import EnsembleRow
from hpcal.store.transitions import EnsembleState, StructureState, TaskState

ALL_FAILED = 3
"""Tasks of one kind that fail in a row before the stage counts as failed."""
ALL_REJECTED = 20
"""Structures turned away in a row before labelling counts as failed."""
ALL_BROKEN = 200
"""Walkers broken in a row before sampling counts as failed."""
GONE = (StructureState.DROPPED, StructureState.QUARANTINED)
GAP_LIMIT = 20_000
FORETOLD = 1000
"""Structures of one queue whose times are foretold in one call of the planner."""
WAITING, CANDIDATE, CLAIMED = StructureState.WAITING, StructureState.CANDIDATE, StructureState.CLAIMED
MIN_CALIBRATION = 10
"""Calibration labels below which the threshold is provisional, from the labels learned from."""


def take(session: Session, context: Context) -> View:
    """The snapshot for one call of the planner."""
    spec, dispatcher = context.spec, context.dispatcher
    live = tuple(state for state in EnsembleState if state is not EnsembleState.FAILED)
    newest = _ensemble(queries.newest_ensemble(session, *live), session)
    driving = newest is not None and newest.state is EnsembleState.PROMOTED
    current = newest if driving else current_ensemble(session)
    kinds: Counter[str] = Counter()
    pools: Counter[str] = Counter()
    for row in queries.outstanding(session):
        kinds[row.kind] += row.count
        pools[row.pool] += row.count
    slots, last_seq = dispatcher.slots(), newest.last_seq if newest else 0
    unfinished, alive = queries.unfinished(session), queries.alive_walkers(session)
    total, learned = queries.label_totals(session), queries.label_totals(session, last_seq)
    claimed_audit = unfinished.count(CLAIMED, origins=queries.AUDIT_ORIGINS)
    view = View(
        **_queues(session, spec, unfinished, slots.get("label", 1), current),
        **(_beginning(session, spec) if newest is None else {}),
        n_waiting=unfinished.count(WAITING, origins=queries.LEARNING_ORIGINS),
        n_candidates=unfinished.count(CANDIDATE),
        n_claimed=unfinished.count(CLAIMED, origins=queries.LEARNING_ORIGINS) + claimed_audit,
        labels=sum(total.values()),
        audit_labels=sum(total[split] for split in queries.AUDITING) + claimed_audit,
        learnable=sum(total[split] - learned[split] for split in queries.LEARNING),
        tasks=kinds,
        pools=pools,
        slots=slots,
        label_room=dispatcher.room("label"),
        seconds={} if dispatcher.virtual else queries.seconds_per_unit(session, ("label",)),
        current=current,
        newest=newest,
        training=_training(session, context, newest),
        walkers=tuple(
            EntryView(
                idle=queries.idle_walkers(session, entry, 4096) if alive.idle(entry) else (),
                alive=alive.alive(entry, queries.LEARNING),
            )
            for entry in range(len(spec.sampling))
        ),
        audit=_audit(session, current),
        failed_stage=failed_stage(session, context.store.epoch),
    )
    if _gaps_matter(view, spec):
        view = replace(view, gaps=_gaps(session, newest, context.level_id))
    return _timed(view, session, context)


def _timed(view: View, session: Session, context: Context) -> View:
    """The view with what is known of the time of labels, where durations are real and labels can go out."""
    free = QUEUE_DEPTH * view.slots.get("label", 1) - view.pools.get("label", 0)
    most = min(FORETOLD, max(0, free) * context.spec.file.tasks.max_label_chunk)
    waiting = (*view.waiting[:most], *view.waiting_audit[:most])
    if context.dispatcher.virtual or not waiting:
        return view
    times = label_time.fit(measurements.label_seconds(session, context.level_id))
    if times is None:
        return view
    return replace(view, label_times=times, formulas=measurements.formulas(session, waiting))


def _queues(
    session: Session, spec: CampaignSpec, known: queries.Unfinished, slots: int, current: EnsembleView | None
) -> dict[str, Any]:
    """Heads of the queues; one that is empty is not asked for."""
    labels = spec.file.tasks.max_label_chunk * QUEUE_DEPTH * slots
    generation = current.generation if current is not None else 0
    most = CANDIDATE_BATCHES * spec.selection.batch

    def head(origins: tuple[str, ...], limit: int) -> tuple[int, ...]:
        there = known.count(WAITING, origins=origins)
        return queries.queue(session, WAITING, origins, limit) if there else ()

    sampled = known.count(CANDIDATE, WAITING, origins=("sample",))
    fresh = known.count(CANDIDATE, origins=("sample",))
    return {
        "seeds": head(("seed",), 1000),
        "waiting": head(queries.LEARNING_ORIGINS, labels),
        "waiting_audit": head(queries.AUDIT_ORIGINS, labels),
        "candidates": queries.scored_by(session, generation, most, stale=False) if fresh else (),
        "stale": queries.scored_by(session, generation, 4 * most, stale=True) if sampled else (),
    }


def _beginning(session: Session, spec: CampaignSpec) -> dict[str, Any]:
    """What the planner must see before the first training."""
    made = tasks.inputs_of(session, "bootstrap")
    return {
        "minima": _minima(session),
        "unchecked": _unchecked(session, spec),
        "bootstrapped": frozenset((int(i["entry"]), int(i["minimum_id"])) for i in made),
        "turned_away": _turned_away(session),
    }


def current_ensemble(session: Session) -> EnsembleView | None:
    """The promoted ensemble that drives sampling."""
    return _ensemble(queries.newest_ensemble(session, EnsembleState.PROMOTED), session)


def _ensemble(found: tuple[EnsembleRow, int] | None, session: Session) -> EnsembleView | None:
    if found is None:
        return None
    row, last_seq = found
    ended, crossed = queries.walker_ends(session, row.generation)
    return EnsembleView(
        id=row.id,
        generation=row.generation,
        state=row.state,
        last_seq=last_seq,
        quiet_rounds=row.quiet_rounds,
        ended=ended,
        crossed=crossed,
    )


def _training(session: Session, context: Context, newest: EnsembleView | None) -> TrainingView | None:
    if newest is None or newest.state is not EnsembleState.TRAINING:
        return None
    return quorum.progress(session, context, newest.id)


def _minima(session: Session) -> tuple[int, ...]:
    """Where bootstraps start: relaxed minima, or the seeds as given where nothing is relaxed."""
    rows = structures.of_origin(session, "minimum", "given")
    return tuple(row.id for row in rows if row.state not in GONE)


def _unchecked(session: Session, spec: CampaignSpec) -> tuple[int, ...]:
    """Relaxed structures that may be saddle points, where a bootstrap needs minima."""
    if not any(b.part is not None and b.part.plugin.needs_minimum for b in spec.bootstrap):
        return ()
    checked = {int(i["minimum_id"]) for i in tasks.inputs_of(session, "curvature")}
    relaxed = (r for r in structures.of_origin(session, "minimum") if r.state not in GONE)
    return tuple(row.id for row in relaxed if row.id not in checked)


def _gaps_matter(view: View, spec: CampaignSpec) -> bool:
    """Gaps are looked for before a decision and before the end: their query grows with the history."""
    if view.newest is None or view.outstanding("evaluate"):
        return False
    undecided = view.newest.state is EnsembleState.TRAINED
    return undecided or (not view.tasks and stop_reason(view, spec) is not None)


def _gaps(session: Session, newest: EnsembleView | None, level_id: int) -> tuple[Gap, ...]:
    """What evaluations are missing, newest ensemble first.

    An ensemble that waits for its decision also looks at what it learned from while the audit is
    too small to set a threshold on.
    """
    if newest is None:
        return ()
    calibration = queries.labels_after(session, 0, (Split.CALIBRATION,))
    found = []
    for row in queries.ensembles(session, *_EVALUATED):
        splits = [*queries.AUDITING, Split.REFERENCE]
        if row.id == newest.id and calibration < MIN_CALIBRATION:
            splits += queries.LEARNING
        missing = queries.unevaluated(session, row.id, splits, GAP_LIMIT, level_id=level_id)
        if missing:
            found.append(Gap(ensemble_id=row.id, structure_ids=missing))
    return tuple(found)


_EVALUATED = (EnsembleState.TRAINED, EnsembleState.PROMOTED, EnsembleState.REFUSED)


def _audit(session: Session, current: EnsembleView | None) -> AuditErrors | None:
    summaries = {} if current is None else ensembles.summaries(session, current.id)
    errors = summaries.get(Split.TEST)
    if errors is None or errors["force_rmse_ev_per_ang"] is None:
        return None
    return AuditErrors(
        count=errors["count"],
        force_rmse=errors["force_rmse_ev_per_ang"],
        energy_rmse=errors["energy_rmse_ev_per_atom"],
    )


def _turned_away(session: Session) -> str:
    """What became of the first structures, should there be nothing to learn from."""
    away = failures.seeds_set_aside(session)
    if away is not None:
        return f"stage relax set all {away.count} seeds aside, such as: {away.example}"
    away = failures.all_turned_away(session)
    if away is not None:
        return f"stage label turned all {away.count} structures away, such as: {away.example}"
    reason = store_labels.taken_back(session)
    return "" if reason is None else f"labels were taken back, such as one that is {reason}"


def failed_stage(session: Session, epoch: int) -> str | None:
    """A sentence if everything in a stage fails: one bad structure never stops a campaign.

    Only what happened under the epoch counts, so that a repaired campaign can be resumed.
    """
    failed = queries.failed_kinds(session, epoch)
    for kind in (kind for kind in WORK if kind in failed):
        bug = failures.stopped_by_bug(session, kind, epoch)
        if bug is not None:
            log = failures.last_log(session, bug.id)
            return (
                f"stage {kind}: task {bug.id} failed every time by a fault of hpcal or of a plugin: "
                f"{last_line(bug.error or '')}; its traceback is in {log}"
            )
        if kind == "train":
            continue  # one ensemble has several tasks, and does without some of them: ensembles count
        states = queries.last_task_states(session, kind, epoch, ALL_FAILED)
        if len(states) == ALL_FAILED and all(state is TaskState.FAILED for state, _ in states):
            cause = next((error for _, error in states if error), "no cause was recorded")
            return f"stage {kind}: the last {ALL_FAILED} tasks failed: {last_line(cause)}"
    if "train" in failed and queries.failed_in_a_row(session) >= ALL_FAILED:
        trainings = queries.last_task_states(session, "train", epoch, ALL_FAILED * 8)
        told = [error for state, error in trainings if state is TaskState.FAILED and error]
        errors = [error for error in told if not error.startswith(quorum.NOT_NEEDED)] or told
        if errors:
            return f"stage train: the last {ALL_FAILED} ensembles failed: {last_line(errors[0])}"
    rejected, example = queries.rejected_since_label(session, epoch)
    if rejected >= ALL_REJECTED:
        return f"stage label: {rejected} structures in a row were turned away, such as: {example}"
    ends = queries.last_ends(session, epoch, ALL_BROKEN)
    if len(ends) == ALL_BROKEN and all(end in queries.BROKEN for end in ends):
        common = Counter(str(end) for end in ends).most_common(1)[0][0]
        return (
            f"stage sample: the last {ALL_BROKEN} walkers broke, most often by {common}; use a lower "
            "temperature, a weaker bias, or a larger bootstrap"
        )
    return None

"""The planner: what to do next, as a pure function of a snapshot and the campaign.

It decides when and how much. It never waits, reads no clock and no file, and draws no numbers:
the same view gives the same actions, in a campaign, a dry run or a simulation.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from math import ceil

from hpcal.engine import label_time
from hpcal.engine.campaign import CampaignSpec
from hpcal.engine.states import labels_each
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
from hpcal.engine.view import EnsembleView, View
from hpcal.store.transitions import EnsembleState

QUEUE_DEPTH = 2
"""Outstanding labelling tasks per slot: a queued task cannot be called back from Parsl."""
CANDIDATE_BATCHES = 4
WAITING_BATCHES = 2
"""Backpressure: batches of candidates or waiting structures at which sampling stalls."""

LATE = 2.0
"""Once the quorum is there, the other members have this many times as long as the longest training of
those that are there took."""

QUIET_BACKSTOP = 10
"""Quiet generations that end a campaign which gives no such rule: nothing is left to find."""


def plan(view: View, spec: CampaignSpec) -> list[Action]:
    """What to do next.

    Args:
        view: the snapshot.
        spec: the checked campaign.

    Returns:
        Actions to record as tasks and dispatch, in order of urgency; empty while all there is to
        do is under way.
    """
    failed = view.failed_stage or _label_too_long(view)
    if failed is not None:
        return [Fail(reason=failed)]
    if view.current is None and view.newest is None:
        return _begin(view, spec)
    reason = stop_reason(view, spec)
    if reason is not None:
        return _close(view, spec, reason)
    return [
        *_go_on(view, spec),
        *_evaluate(view),
        *_train(view, spec),
        *_rescore(view),
        *_select(view, spec),
        *_label(view, spec),
        *_sample(view, spec),
    ]


def _label_too_long(view: View) -> str | None:
    """A sentence if labels, as measured, do not fit into the batch jobs of their pool."""
    seconds, room, times = view.seconds.get("label"), view.label_room, view.label_times
    if seconds is None or room is None or seconds <= room:
        return None
    if times is not None and any(times.expected(formula) <= room for formula in view.formulas.values()):
        return None
    return f"a label takes about {seconds:.0f} s, {_no_room(room)}"


def _no_room(room: float) -> str:
    return (
        f"and a batch job of the pool label leaves {room:.0f} s for one (its walltime less walltime_margin); "
        "give the pool a longer walltime or more cores_per_worker, or name a larger pool in the site file"
    )


def stop_reason(view: View, spec: CampaignSpec) -> str | None:
    """The stop rule that holds, or None."""
    stop, current, newest = spec.file.stop, view.current, view.newest
    if stop.labels is not None and view.labels >= stop.labels:
        return f"label budget: {view.labels} labels accepted"
    decided = newest is not None and newest.state in (EnsembleState.PROMOTED, EnsembleState.REFUSED)
    if (
        stop.generations is not None
        and newest is not None
        and decided
        and newest.generation >= stop.generations
    ):
        return f"generations: {newest.generation} trained and evaluated"
    if current is not None:
        rounds = quiet_rounds(current, spec)
        if rounds >= (stop.quiet_generations or QUIET_BACKSTOP):
            walkers = f"{stop.quiet_walkers} walkers"
            return f"quiet: {rounds} rounds of {walkers} in a row with hardly one over the threshold"
    if view.audit is not None and view.audit.count >= stop.min_test:
        target, limit = view.audit.force_rmse, stop.force_rmse_eV_per_A
        if limit is not None and target <= limit:
            return f"error target: force RMSE {target:.4f} eV/Å on {view.audit.count} audit test labels"
        energy, bound = 1000 * view.audit.energy_rmse, stop.energy_rmse_meV_per_atom
        if bound is not None and energy <= bound:
            return f"error target: energy RMSE {energy:.2f} meV/atom on {view.audit.count} audit test labels"
    return None


def quiet_rounds(ensemble: EnsembleView, spec: CampaignSpec) -> int:
    """Quiet rounds in a row, those before this ensemble included.

    A round is ``quiet_walkers`` walkers born under the ensemble that have ended; it is quiet if at
    most ``quiet_share`` of all ended so far have crossed.
    """
    stop = spec.file.stop
    rounds = ensemble.ended // stop.quiet_walkers
    if rounds == 0:
        noisy = ensemble.crossed > stop.quiet_share * stop.quiet_walkers
        return 0 if noisy else ensemble.quiet_rounds
    if ensemble.crossed > stop.quiet_share * ensemble.ended:
        return 0
    return ensemble.quiet_rounds + rounds


def _begin(view: View, spec: CampaignSpec) -> list[Action]:
    """Seeds to minima to bootstrap structures to the first training."""
    actions: list[Action] = [Relax(structure_ids=(seed,)) for seed in view.seeds]
    if view.seeds or view.outstanding("relax"):
        return actions
    actions += [CheckMinimum(minimum_id=minimum) for minimum in view.unchecked]
    if view.unchecked or view.outstanding("curvature"):
        return [*actions, *_label(view, spec)]
    pairs = [
        (entry, minimum)
        for entry, block in enumerate(spec.bootstrap)
        if block.part is not None
        for minimum in view.minima
    ]
    actions += [
        Bootstrap(entry=entry, minimum_id=minimum, count=count)
        for entry, minimum in pairs
        if (entry, minimum) not in view.bootstrapped
        and (count := _share_of(spec.bootstrap[entry].count, view.minima.index(minimum), len(view.minima)))
    ]
    actions += _label(view, spec)
    if actions or view.outstanding("bootstrap", "label", "train"):
        return actions
    if not view.learnable:
        cause = view.turned_away or "see `hpcal status` for the rejections"
        return [Fail(reason=f"the bootstrap gave no label to learn from: {cause}")]
    return [Train(generation=1, start_from=None)]


def _share_of(total: int, index: int, parts: int) -> int:
    """Part ``index`` of ``total`` things dealt out evenly to ``parts``."""
    return total // parts + (index < total % parts)


def _evaluate(view: View) -> Iterator[Action]:
    newest = view.newest
    if newest is None or newest.state is not EnsembleState.TRAINED or view.outstanding("evaluate"):
        return
    pairs = tuple((gap.ensemble_id, gap.structure_ids) for gap in view.gaps)
    yield Evaluate(pairs=pairs, decide=newest.id)


def _go_on(view: View, spec: CampaignSpec) -> Iterator[Action]:
    """Late members: an ensemble is not held up by a slow or lost worker once its quorum is there."""
    training = view.training
    if training is None or training.longest is None:
        return
    enough = training.trained >= spec.quorum(training.members)
    if enough and training.waited > LATE * training.longest:
        yield GoOn(ensemble_id=training.ensemble_id)


def _train(view: View, spec: CampaignSpec) -> Iterator[Action]:
    newest, current = view.newest, view.current
    if newest is None or newest.state in (EnsembleState.TRAINING, EnsembleState.TRAINED):
        return
    quiet = current is not None and quiet_rounds(current, spec) > current.quiet_rounds
    settled = quiet and not (view.n_waiting or view.n_claimed or view.n_candidates)
    if view.learnable >= spec.selection.batch or (settled and view.learnable):
        yield Train(generation=newest.generation + 1, start_from=None if current is None else current.id)


def _rescore(view: View) -> Iterator[Action]:
    if view.current is not None and view.stale and not view.outstanding("rescore"):
        yield Rescore(structure_ids=view.stale, ensemble_id=view.current.id)


def _select(view: View, spec: CampaignSpec) -> Iterator[Action]:
    if view.current is None or view.outstanding("select", "rescore") or not view.candidates:
        return
    # A batch and the budget are labels; a geometry takes one for each of its electronic states.
    batch, each = spec.selection.batch, labels_each(spec.label.states)
    idle = view.n_waiting == 0 and not view.outstanding("label")
    geometries = ceil(batch / each)
    enough = len(view.candidates) >= (max(1, geometries // 4) if idle else geometries)
    quiet = quiet_rounds(view.current, spec) > view.current.quiet_rounds
    budget = ceil(min(batch, _open_budget(view, spec) - view.n_waiting) / each)
    if view.n_waiting < batch and (enough or quiet) and budget > 0:
        yield Select(structure_ids=view.candidates, budget=budget, ensemble_id=view.current.id)


def _open_budget(view: View, spec: CampaignSpec) -> int:
    """Labels that may still be asked for, those under way taken off."""
    limit = spec.file.stop.labels
    return 10**9 if limit is None else limit - view.labels - view.n_claimed


def _label(view: View, spec: CampaignSpec) -> Iterator[Action]:
    slots = view.slots.get("label", 1)
    tasks = QUEUE_DEPTH * slots - view.pools.get("label", 0)
    if tasks <= 0:
        return
    refused = _out_of_reach(view)
    yield from refused
    gone = {structure_id for action in refused for structure_id in action.structure_ids}
    chosen = [structure_id for structure_id in _to_label(view, spec) if structure_id not in gone]
    if view.label_times is not None:
        chosen = [structure_id for structure_id in chosen if structure_id in view.formulas]
    yield from islice(_chunks(view, spec, chosen, slots), tasks)


def _out_of_reach(view: View) -> list[Refuse]:
    """Waiting structures whose label almost certainly takes longer than a batch job lasts."""
    times, room = view.label_times, view.label_room
    if times is None or room is None:
        return []
    found: dict[str, list[int]] = {}
    for structure_id, formula in view.formulas.items():
        found.setdefault(formula, []).append(structure_id)
    return [
        Refuse(
            structure_ids=tuple(ids),
            reason=f"a label of {formula} takes about {times.expected(formula):.0f} s, as {times.labels} "
            f"labels foretell, {_no_room(room)}",
        )
        for formula, ids in found.items()
        if times.least(formula) > room
    ]


def _to_label(view: View, spec: CampaignSpec) -> list[int]:
    """Which structures go next: audit frames as soon as they fall behind their share."""
    share, open_budget = spec.selection.audit_share, _open_budget(view, spec)
    learning, audit = list(view.waiting), list(view.waiting_audit)
    asked, audited = view.labels + view.n_claimed, view.audit_labels
    chosen: list[int] = []
    while len(chosen) < open_budget and (learning or audit):
        if audit and audited + 1 <= share * (asked + 1):
            chosen.append(audit.pop(0))
            audited += 1
        elif learning:
            chosen.append(learning.pop(0))
        else:
            break
        asked += 1
    return chosen


def _chunks(view: View, spec: CampaignSpec, chosen: list[int], slots: int) -> Iterator[LabelChunk]:
    """Tasks of as many structures as fill the aimed duration, but work for every slot."""
    tasks, mean, times = spec.file.tasks, view.seconds.get("label"), view.label_times
    aim = tasks.label_seconds if view.label_room is None else min(tasks.label_seconds, view.label_room)
    most = max(1, min(tasks.max_label_chunk, ceil(len(chosen) / slots)))
    seconds: list[float] = []
    if times is None:
        by_mean = most if not mean else max(1, int(aim / mean))
        sizes = [min(by_mean, most)] * len(chosen)
    else:
        each = {formula: round(times.expected(formula), 3) for formula in set(view.formulas.values())}
        seconds = [each[view.formulas[structure_id]] for structure_id in chosen]
        sizes = label_time.chunks(seconds, aim=aim, most=most)
    start = 0
    for size in sizes:
        if start >= len(chosen):
            break
        end = start + size
        yield LabelChunk(structure_ids=tuple(chosen[start:end]), seconds=tuple(seconds[start:end]))
        start = end


def _sample(view: View, spec: CampaignSpec) -> Iterator[Action]:
    if view.current is None or _stalled(view, spec):
        return
    free = view.slots.get("sample", 1) - view.outstanding("sample")
    for entry, (block, seen) in enumerate(zip(spec.sampling, view.walkers, strict=True)):
        missing = block.walkers - seen.alive
        if missing > 0:
            yield Spawn(entry=entry, count=missing)
    # The entry whose walkers have waited in greatest number goes first.
    order = sorted(range(len(view.walkers)), key=lambda e: (-len(view.walkers[e].idle), e))
    for entry in order[: max(0, free)]:
        idle = view.walkers[entry].idle
        if idle:
            size = _walkers_in_task(spec, entry)
            yield Sample(entry=entry, walker_ids=idle[:size], ensemble_id=view.current.id)


def _walkers_in_task(spec: CampaignSpec, entry: int) -> int:
    """A batch that advances together and its reserve."""
    batch: int = getattr(spec.sampling[entry].part.settings, "batch", spec.sampling[entry].walkers)
    return max(1, round(batch * (1 + spec.file.tasks.reserve)))


def _stalled(view: View, spec: CampaignSpec) -> bool:
    """Whether more samples would only pile up."""
    batch = spec.selection.batch
    return (
        view.n_candidates >= CANDIDATE_BATCHES * batch
        or view.n_waiting >= WAITING_BATCHES * batch
        or _open_budget(view, spec) <= view.n_waiting
    )


def _close(view: View, spec: CampaignSpec, reason: str) -> list[Action]:
    """Drain, learn from the last labels, evaluate every ensemble on all audit labels, finish."""
    newest = view.newest
    actions = [*_go_on(view, spec), *_evaluate(view)]
    if actions or sum(view.tasks.values()):
        return actions
    if newest is not None and newest.state is EnsembleState.TRAINED:
        return actions
    closing_training = reason.startswith(("label budget", "quiet")) and view.learnable
    if closing_training and newest is not None:
        start = None if view.current is None else view.current.id
        return [Train(generation=newest.generation + 1, start_from=start)]
    if view.gaps:
        pairs = tuple((gap.ensemble_id, gap.structure_ids) for gap in view.gaps)
        return [Evaluate(pairs=pairs, decide=None)]
    return [Finish(reason=reason)]

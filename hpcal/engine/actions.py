"""Turning the planner's actions into rows: tasks with frozen inputs, claims, births."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import singledispatch
from math import ceil

from hpcal.core.protocols import MemberSpec
from hpcal.core.settings import draw
from hpcal.core.walker import Split
from hpcal.engine import siblings, steps
from hpcal.engine.context import Context
from hpcal.engine.splits import audit_steps, walker_split
from hpcal.engine.streams import derive, stream
from hpcal.exchange.hdf5 import write_shard
from hpcal.store import ensembles, labels, queries, structures, tasks, walkers
from hpcal.store.database import add_event
from hpcal.store.session import Session
from hpcal.store.tables import EnsembleRow, TaskRow
from hpcal.store.transitions import EnsembleState, StructureState

STARTS = 500
"""Newest labelled structures that walkers start from."""


@singledispatch
def apply(action: object, session: Session, context: Context) -> list[TaskRow]:  # noqa: ARG001
    """Writes what an action asks for; returns the new tasks."""
    raise TypeError(f"{type(action).__name__} is no action that makes rows")


@apply.register
def _(action: steps.Relax, session: Session, context: Context) -> list[TaskRow]:
    structures.move(session, action.structure_ids, StructureState.CLAIMED)
    return [_task(session, context, "relax", "label", {"structure_ids": action.structure_ids}, units=1)]


@apply.register
def _(action: steps.CheckMinimum, session: Session, context: Context) -> list[TaskRow]:
    return [_task(session, context, "curvature", "label", asdict(action), units=1)]


@apply.register
def _(action: steps.Bootstrap, session: Session, context: Context) -> list[TaskRow]:
    return [_task(session, context, "bootstrap", "label", asdict(action), units=action.count)]


@apply.register
def _(action: steps.LabelChunk, session: Session, context: Context) -> list[TaskRow]:
    ids = action.structure_ids
    structures.move(session, ids, StructureState.CLAIMED)
    inputs = {"structure_ids": ids} | ({"seconds": action.seconds} if action.seconds else {})
    return [_task(session, context, "label", "label", inputs, units=len(ids), priority=1)]


@apply.register
def _(action: steps.Refuse, session: Session, context: Context) -> list[TaskRow]:
    structures.move(session, action.structure_ids, StructureState.QUARANTINED, reason=action.reason)
    siblings.settle(session, context.spec.label.states, context.level_id, action.structure_ids)
    n = len(action.structure_ids)
    add_event(session, context.store.epoch, "refused", f"{n} structures set aside: {action.reason}")
    return []


@apply.register
def _(action: steps.Train, session: Session, context: Context) -> list[TaskRow]:
    last_seq = queries.last_commit(session)
    _add_shard(session, context, last_seq)
    totals = queries.label_totals(session)
    dataset = ensembles.add_dataset(
        session,
        generation=action.generation,
        level_id=context.level_id,
        last_seq=last_seq,
        n_train=totals[Split.TRAIN],
        n_validation=totals[Split.VALIDATION],
    )
    count = context.spec.potential.build().n_members
    members = [
        MemberSpec(index=i, seed=derive(context.spec.seed, "member", dataset.id, i)) for i in range(count)
    ]
    ensemble = ensembles.add_ensemble(
        session,
        generation=action.generation,
        revision=ensembles.revisions(session, action.generation),
        kind=context.spec.potential.name,
        dataset_id=dataset.id,
        predecessor_id=action.start_from,
        metric=context.spec.metric,
        members=members,
    )
    # All members share one worker's descriptors on a laptop; more workers take members of their own.
    parts = min(context.dispatcher.slots().get("train", 1), count)
    return [_training(session, context, ensemble, members[part::parts]) for part in range(parts)]


def _training(
    session: Session, context: Context, ensemble: EnsembleRow, members: Sequence[MemberSpec]
) -> TaskRow:
    """A task that trains some members of an ensemble, which name it."""
    inputs = {"ensemble_id": ensemble.id, "members": [asdict(m) for m in members]}
    task = _task(session, context, "train", "train", inputs, units=len(members))
    ensembles.assign(session, ensemble.id, [m.index for m in members], task.id)
    return task


def _add_shard(session: Session, context: Context, last_seq: int) -> None:
    """Writes what was labelled since the last shard into a new one."""
    known = labels.shards(session, context.level_id)
    after = known[-1].last_seq if known else 0
    dataset = labels.dataset_between(session, context.level, context.level_id, after, last_seq)
    if dataset is None:
        return
    path = context.folders.shards / f"{after + 1:08d}-{last_seq:08d}.h5"
    # A controller killed between file and transaction leaves a file that no row knows.
    path.unlink(missing_ok=True)
    digest = write_shard(path, dataset)
    ensembles.add_shard(
        session,
        path=str(path.relative_to(context.folders.root)),
        sha256=digest,
        first_seq=after + 1,
        last_seq=last_seq,
        count=len(dataset),
        level_id=context.level_id,
    )


@apply.register
def _(action: steps.Evaluate, session: Session, context: Context) -> list[TaskRow]:
    groups = [{"ensemble_id": e, "structure_ids": list(ids)} for e, ids in action.pairs]
    inputs = {"groups": groups, "decide": action.decide}
    units = sum(len(ids) for _, ids in action.pairs)
    return [_task(session, context, "evaluate", "score", inputs, units=max(1, units))]


@apply.register
def _(action: steps.Rescore, session: Session, context: Context) -> list[TaskRow]:
    return [_task(session, context, "rescore", "score", asdict(action), units=len(action.structure_ids))]


@apply.register
def _(action: steps.Select, session: Session, context: Context) -> list[TaskRow]:
    shards = labels.shards(session, context.level_id)
    last_seq = shards[-1].last_seq if shards else 0
    inputs = {**asdict(action), "last_seq": last_seq, "known": _known(session, last_seq)}
    return [_task(session, context, "select", "score", inputs, units=len(action.structure_ids))]


def _known(session: Session, after: int) -> list[int]:
    """What no shard holds but counts as known: newer labels, audit labels, what waits for a label."""
    newer = queries.labelled_ids(session, queries.LEARNING, after=after)
    audit = queries.labelled_ids(session, queries.AUDITING, after=0)
    waiting = structures.ids_in_states(session, (StructureState.WAITING, StructureState.CLAIMED))
    return [*newer, *audit, *waiting]


@apply.register
def _(action: steps.Spawn, session: Session, context: Context) -> list[TaskRow]:
    ensemble = _current(session)
    part = context.spec.sampling[action.entry].part
    sampler, splits = part.build(), context.spec.file.splits
    starts = _starts(session)
    audits = queries.alive_walkers(session).alive(action.entry, queries.AUDITING)
    most_audits = ceil(splits.audit_walkers * context.spec.sampling[action.entry].walkers)
    for _ in range(action.count):
        number = walkers.count(session) + 1
        rng = stream(context.spec.seed, "walker", number)
        # Learning walkers end when they cross and audit walkers do not: without a cap these would
        # take over the population.
        split = walker_split(rng, splits, audit=audits < most_audits)
        audits += split.audit
        frames = audit_steps(rng, splits.audit_frames, sampler.steps_full()) if split.audit else ()
        walkers.add_walker(
            session,
            entry=action.entry,
            sampler=part.name,
            structure_id=starts[int(rng.integers(len(starts)))],
            split=split,
            stream=derive(context.spec.seed, "noise", number),
            temperature=draw(getattr(part.settings, "temperature_K", 300.0), rng),
            steps_full=sampler.steps_full(),
            frames_at=list(frames),
            parameters={},
            ensemble_id=ensemble.id,
            generation=ensemble.generation,
        )
    return []


def _starts(session: Session) -> list[int]:
    """Structures that walkers may be born from: training ones, or where there is none, validation ones."""
    for split in (Split.TRAIN, Split.VALIDATION):
        minima = [
            row.id
            for row in structures.of_origin(session, "minimum", "given")
            if row.state is StructureState.LABELLED and row.split is split
        ]
        # One that is not of the lowest multiplicity was labelled and is not learned from.
        learned = labels.accepted_among(session, minima)
        starts = sorted({*learned, *walkers.seed_pool(session, split, STARTS)})
        if starts:
            return starts
    raise LookupError("there is no labelled structure to start a walker from")


@apply.register
def _(action: steps.Sample, session: Session, context: Context) -> list[TaskRow]:
    ids, ensemble_id = list(action.walker_ids), action.ensemble_id
    if context.spec.sampling[action.entry].part.plugin.pins_ensemble:
        rows = walkers.rows_of(session, ids)
        pinned = rows[ids[0]].ensemble_id
        ids = [i for i in ids if rows[i].ensemble_id == pinned]
        ensemble_id = pinned if pinned is not None else ensemble_id
    walkers.claim(session, ids)
    inputs = {"entry": action.entry, "walker_ids": ids, "ensemble_id": ensemble_id}
    return [_task(session, context, "sample", "sample", inputs, units=len(ids), priority=2)]


def _current(session: Session) -> EnsembleRow:
    found = queries.newest_ensemble(session, EnsembleState.PROMOTED)
    if found is None:
        raise LookupError("there is no promoted ensemble")
    return found[0]


def _task(
    session: Session,
    context: Context,
    kind: str,
    pool: str,
    inputs: Mapping[str, object],
    *,
    units: int,
    priority: int = 0,
) -> TaskRow:
    where = context.dispatcher.pool(pool)
    frozen = {k: list(v) if isinstance(v, tuple) else v for k, v in inputs.items()}
    return tasks.add_task(session, kind, where, frozen, units=units, priority=priority)

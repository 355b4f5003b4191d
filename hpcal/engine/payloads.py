"""From a task's frozen inputs, which are ids, to what its worker needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from hpcal.engine.context import Context
from hpcal.engine.streams import derive
from hpcal.engine.work.context import manifest_record
from hpcal.store import ensembles, labels, structures, walkers
from hpcal.store.session import Session
from hpcal.store.tables import TaskRow
from hpcal.store.transitions import StructureState

Payload = dict[str, Any]


def payload(session: Session, context: Context, task: TaskRow) -> Payload:
    """What the next attempt at a task is given; what earlier attempts finished is left out."""
    return BUILDERS[task.kind](session, context, task)


def _relax(session: Session, context: Context, task: TaskRow) -> Payload:
    return {"label": context.spec.seed_level.as_dict(), "structures": _open(session, task)}


def _label(session: Session, context: Context, task: TaskRow) -> Payload:
    return {"label": context.spec.label.as_dict(), "structures": _open(session, task)}


def _open(session: Session, task: TaskRow) -> list[Payload]:
    """The structures of a task that still wait for their result."""
    ids: Sequence[int] = task.inputs["structure_ids"]
    states = structures.states_of(session, ids)
    left = [i for i in ids if states[i] is StructureState.CLAIMED]
    expected = dict(zip(ids, task.inputs.get("seconds", ()), strict=False))
    return [
        {"id": i, "structure": s, **({"seconds": expected[i]} if i in expected else {})}
        for i, s in structures.structures_of(session, left)
    ]


def _bootstrap(session: Session, context: Context, task: TaskRow) -> Payload:
    inputs = task.inputs
    part = context.spec.bootstrap[inputs["entry"]].part
    if part is None:
        raise LookupError(f"bootstrap entry {inputs['entry']} is a file, not a generator")
    ((_, seed),) = structures.structures_of(session, [inputs["minimum_id"]])
    return {
        "generator": part.as_dict(),
        "label": context.spec.seed_level.as_dict(),
        "seed": seed,
        "count": inputs["count"],
        "stream": derive(context.spec.seed, "bootstrap", inputs["entry"], inputs["minimum_id"]),
    }


def _curvature(session: Session, context: Context, task: TaskRow) -> Payload:
    ((_, structure),) = structures.structures_of(session, [task.inputs["minimum_id"]])
    return {"label": context.spec.seed_level.as_dict(), "structure": structure}


def _train(session: Session, context: Context, task: TaskRow) -> Payload:
    ensemble = ensembles.get(session, task.inputs["ensemble_id"])
    last_seq = ensembles.dataset_of(session, ensemble).last_seq
    members = [dict(m) for m in task.inputs["members"]]
    files = []
    starts = ensembles.starts(session, ensemble, [member["index"] for member in members])
    for member in members:
        start = starts.get(member["index"])
        if start is not None:
            member["start_from"] = str(context.folders.root / (start.path or ""))
            files.append({"path": member["start_from"], "sha256": start.sha256})
    return {
        "shards": _shards(session, context, last_seq),
        "potential": context.spec.potential.as_dict(),
        "elements": list(context.elements),
        "members": members,
        "starts": files,
        "stream": derive(context.spec.seed, "train", ensemble.id),
        "checkpoint": str(context.folders.models / f"ensemble-{ensemble.id}" / f"task-{task.id}"),
    }


def _shards(session: Session, context: Context, last_seq: int) -> list[Payload]:
    return [
        {"path": str(context.folders.root / row.path), "sha256": row.sha256}
        for row in labels.shards(session, context.level_id)
        if row.last_seq <= last_seq
    ]


def _sample(session: Session, context: Context, task: TaskRow) -> Payload:
    ensemble = ensembles.get(session, task.inputs["ensemble_id"])
    found = walkers.walkers_of(session, task.inputs["walker_ids"])
    # A walker takes the width that belongs to the ensemble of this segment.
    width = {"bias_width": ensemble.bias_width}
    return {
        "sampler": context.spec.sampling[task.inputs["entry"]].part.as_dict(),
        **_scoring(session, context, ensemble.id),
        "threshold": ensemble.threshold,
        "walkers": [replace(w, state={**w.state, **width}) for w in found],
        "stream": derive(context.spec.seed, "sample", task.id),
    }


def _evaluate(session: Session, context: Context, task: TaskRow) -> Payload:
    groups = []
    for group in task.inputs["groups"]:
        ensemble = ensembles.get(session, group["ensemble_id"])
        found = labels.labelled(session, context.level, context.level_id, ids=group["structure_ids"])
        items = [
            {"id": row.id, "structure": structure, "energy": label.energy, "forces": label.forces}
            for row, structure, label in found
        ]
        manifest = manifest_record(ensembles.manifest_of(session, ensemble, str(context.folders.root)))
        groups.append({"ensemble_id": ensemble.id, "ensemble": manifest, "structures": items})
    return {"metric": context.spec.metric, "groups": groups}


def _rescore(session: Session, context: Context, task: TaskRow) -> Payload:
    ids = task.inputs["structure_ids"]
    return {
        **_scoring(session, context, task.inputs["ensemble_id"]),
        "structures": [{"id": i, "structure": s} for i, s in structures.structures_of(session, ids)],
    }


def _select(session: Session, context: Context, task: TaskRow) -> Payload:
    ids = task.inputs["structure_ids"]
    values = structures.latest_values(session, ids)
    return {
        **_scoring(session, context, task.inputs["ensemble_id"]),
        "selector": context.spec.selection.part.as_dict(),
        "candidates": [
            {"id": i, "structure": s, "value": values.get(i)}
            for i, s in structures.structures_of(session, ids)
        ],
        "shards": _shards(session, context, task.inputs["last_seq"]),
        "known": [{"structure": s} for _, s in structures.structures_of(session, task.inputs["known"])],
        "budget": task.inputs["budget"],
        "stream": derive(context.spec.seed, "select", task.id),
    }


def _scoring(session: Session, context: Context, ensemble_id: int) -> Payload:
    ensemble = ensembles.get(session, ensemble_id)
    manifest = ensembles.manifest_of(session, ensemble, str(context.folders.root))
    return {"ensemble": manifest_record(manifest), "metric": context.spec.metric}


BUILDERS: Final[Mapping[str, Callable[[Session, Context, TaskRow], Payload]]] = {
    "relax": _relax,
    "curvature": _curvature,
    "bootstrap": _bootstrap,
    "label": _label,
    "train": _train,
    "sample": _sample,
    "evaluate": _evaluate,
    "rescore": _rescore,
    "select": _select,
}

"""The whole life of one structure, walker, task, data set, ensemble or model, from its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from hpcal.core.errors import InputError
from hpcal.core.plugins import nearest
from hpcal.core.walker import Split
from hpcal.store import lineage as rows
from hpcal.store import lineage_ensembles as learned
from hpcal.store import measurements
from hpcal.store.database import Store
from hpcal.store.error_summary import error_summary
from hpcal.store.session import Session

Trace = dict[str, Any]
ID_DIGITS: Final = 18
"""Digits that any id has at most: more do not fit into a column of the store."""
EVALUATED: Final = (Split.TEST, Split.CALIBRATION, Split.REFERENCE)


def trace(store: Store, id: str) -> Trace:  # noqa: A002 - the word of the command line
    """The whole life of one thing; the JSON of ``hpcal trace --json``.

    Args:
        id: ``12`` for a structure, else typed: ``walker:7``, ``task:17``, ``dataset:4``,
            ``ensemble:2``, ``model:3``.

    Returns:
        ``kind`` and ``id``, then by kind. A structure has ``structure, origin, scores, selection,
        attempts, label, other_labels, rejections, datasets, models, events``. Energies are in eV,
        lengths in Å, forces in eV/Å, times in seconds since the epoch, simulated times in fs.

    Raises:
        InputError: no such kind or row; says which exist.
    """
    kind, number = parse_id(id)
    with store.session() as session:
        found = _TRACERS[kind](session, number)
        if found is None:
            raise InputError(_missing(session, kind, number))
        return {"kind": kind, "id": number} | found


def parse_id(id: str) -> tuple[str, int]:  # noqa: A002
    """Kind and row number of an id of the command line. Raises InputError for any other text."""
    kind, colon, number = id.strip().rpartition(":")
    kind = kind if colon else "structure"
    if kind not in rows.KINDS:
        raise InputError(f"{id!r} names no kind of row: {kind!r} is unknown{nearest(kind, rows.KINDS)}")
    if not number.isascii() or not number.isdigit():
        raise InputError(
            f"{id!r} is no id: give a number for a structure, such as 12, or a typed one, such as model:3"
        )
    if len(number) > ID_DIGITS:
        raise InputError(f"no such {kind}: {number[:40]} is more than any id")
    return kind, int(number)


def _missing(session: Session, kind: str, number: int) -> str:
    count, low, high = rows.known_ids(session, kind)
    if not count:
        return f"there is no {kind} {number}: this campaign has no {kind} yet"
    return f"there is no {kind} {number}: this campaign has {count}, numbered {low} to {high}"


def _structure(session: Session, number: int) -> Trace | None:
    structure = rows.structure(session, number)
    if structure is None:
        return None
    labels = rows.labels(session, number)
    label = labels[0] if labels else None
    return {
        "structure": structure,
        "origin": _origin(session, structure),
        "scores": rows.scores(session, number),
        "selection": rows.selections(session, number),
        "attempts": rows.label_attempts(session, number),
        "label": label,
        "other_labels": labels[1:],
        "rejections": rows.rejections(session, number),
        "datasets": learned.datasets_with(session, label) if label else [],
        "models": learned.models_trained_on(session, label) if label else [],
        "events": rows.events(session, structure_id=number),
    }


def _origin(session: Session, structure: Mapping[str, Any]) -> Trace:
    number = structure["id"]
    makes_others = structure["origin"] in ("seed", "minimum", "saddle")
    return {
        "origin": structure["origin"],
        "generation": structure["generation"],
        "step": structure["step"],
        "time_fs": structure["time_fs"],
        "parent": rows.short_structure(session, structure["parent_id"]),
        "walker": rows.walker(session, structure["walker_id"]),
        "segment": rows.segment(session, structure["segment_id"]),
        "task": rows.task(session, structure["task_id"]),
        "task_attempts": rows.attempts(session, structure["task_id"]) if structure["task_id"] else [],
        "children": rows.children(session, number) if makes_others else [],
    }


def _walker(session: Session, number: int) -> Trace | None:
    walker = rows.walker(session, number)
    if walker is None:
        return None
    return {
        "walker": walker,
        "seed": rows.short_structure(session, walker["seed_structure_id"]),
        "segments": rows.segments_of_walker(session, number),
        "structures": rows.structures_of_walker(session, number),
    }


def _task(session: Session, number: int) -> Trace | None:
    task = rows.task(session, number, inputs=True)
    if task is None:
        return None
    return {
        "task": task,
        "attempts": rows.attempts(session, number),
        "structures": rows.structures_of_task(session, number),
        "segments": rows.segments_of_task(session, number),
        "models": learned.models_of_task(session, number),
        "products": rows.products(session, number),
        "events": rows.events(session, task_id=number),
    }


def _dataset(session: Session, number: int) -> Trace | None:
    dataset = learned.dataset(session, number)
    if dataset is None:
        return None
    return {
        "dataset": dataset,
        "composition": learned.dataset_composition(session, dataset),
        "shards": learned.dataset_shards(session, dataset),
        "ensembles": learned.ensembles_on(session, number),
    }


def _ensemble(session: Session, number: int) -> Trace | None:
    ensemble = learned.ensemble(session, number)
    if ensemble is None:
        return None
    errors = measurements.family_errors(session, EVALUATED, ensemble_id=number)
    return {
        "ensemble": ensemble,
        "dataset": learned.dataset(session, ensemble["dataset_id"]),
        "predecessor": learned.ensemble(session, ensemble["predecessor_id"]),
        "successors": learned.successors(session, number),
        "members": learned.members(session, number),
        "errors": {str(split): error_summary(errors.of(number, split)) for split in EVALUATED},
        "uses": learned.ensemble_uses(session, number),
    }


def _model(session: Session, number: int) -> Trace | None:
    model = learned.model(session, number)
    if model is None:
        return None
    ensemble = learned.ensemble(session, model["ensemble_id"])
    dataset = learned.dataset(session, ensemble["dataset_id"]) if ensemble else None
    own_bag, ids = learned.trained_on(session, number, dataset) if dataset else (False, ())
    return {
        "model": model,
        "ensemble": ensemble,
        "dataset": dataset,
        "trained_on": {
            "count": len(ids),
            "recorded_bag": own_bag,
            "structure_ids": [int(i) for i in ids],
        },
        "task": rows.task(session, model["task_id"]),
        "attempts": rows.attempts(session, model["task_id"]) if model["task_id"] else [],
    }


_TRACERS: Final[Mapping[str, Callable[[Session, int], Trace | None]]] = {
    "structure": _structure,
    "walker": _walker,
    "task": _task,
    "dataset": _dataset,
    "ensemble": _ensemble,
    "model": _model,
}

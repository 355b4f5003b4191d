"""Tasks that ask a labeler: labels, relaxations and bootstrap structures."""

from __future__ import annotations

import atexit
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hpcal.core.errors import FailureClass, TaskFailure
from hpcal.core.plugins import Group
from hpcal.core.structure import Structure
from hpcal.engine.work.context import Work, WorkInterrupted, build
from hpcal.labeling.checks import ChecksSettings
from hpcal.labeling.forces import as_forces
from hpcal.labeling.make import ReadyLabeler, make_labeler
from hpcal.labeling.screen import Screen
from hpcal.sampling.relaxation import downhill, relax

_labelers: dict[str, ReadyLabeler] = {}


def label(work: Work) -> None:
    """Labels structures, one record each, in order; stops between structures.

    Once there is a result, structures that are expected to take longer than what is left are passed
    over, for another task; the first is always tried, so that no task ends with nothing.
    """
    labeler = _labeler(work)
    for number, item in enumerate(work.inputs["structures"]):
        if work.deadline.expired():
            break
        left = work.deadline.remaining()
        if number and left is not None and item.get("seconds", 0.0) > left:
            continue
        work.spool.append({"structure_id": item["id"], **_one_label(labeler, item["structure"], work)})
    else:
        return
    if work.deadline.interrupted():
        raise WorkInterrupted


def _one_label(labeler: ReadyLabeler, structure: Structure, work: Work) -> dict[str, Any]:
    try:
        return {"result": labeler.label(structure, work.deadline)}
    except TaskFailure as failure:
        if work.cut_short(failure):
            raise WorkInterrupted from None
        return {"failure": failure.failure_class, "message": str(failure)}


def relax_seeds(work: Work) -> None:
    """Relaxes seeds to minima."""
    labeler = _labeler(work)
    for item in work.inputs["structures"]:
        forces = as_forces(labeler, work.deadline)
        record: dict[str, Any] = {"structure_id": item["id"]}
        try:
            found = relax(item["structure"], forces)
            record |= {
                "structure": found.structure,
                "energy": found.energy,
                "converged": found.converged,
                "same_bonds": found.same_bonds,
                "steps": found.steps,
            }
        except TaskFailure as failure:
            if work.cut_short(failure):
                raise WorkInterrupted from None
            record |= {"failure": failure.failure_class, "message": str(failure)}
        work.spool.append({**record, "qm_calls": forces.calls})


def bootstrap(work: Work) -> None:
    """Makes first structures around a minimum."""
    generator = build(Group.SAMPLERS, work.inputs["generator"])
    labeler = _labeler(work)
    forces = as_forces(labeler, work.deadline)
    rng = np.random.default_rng(work.inputs["stream"])
    record: dict[str, Any] = {"structures": [], "message": ""}
    try:
        made = generator.generate(work.inputs["seed"], work.inputs["count"], forces, rng)
        record["structures"] = list(made)
    except TaskFailure as failure:
        if work.cut_short(failure):
            raise WorkInterrupted from None
        if failure.failure_class is not FailureClass.PHYSICS:
            raise
        record["message"] = str(failure)
    work.spool.append({**record, "qm_calls": forces.calls})


def curvature(work: Work) -> None:
    """Whether a relaxed structure is a minimum; if not, the structures to both sides of the saddle."""
    structure: Structure = work.inputs["structure"]
    forces = as_forces(_labeler(work), work.deadline)
    try:
        mode = downhill(structure, forces)
    except TaskFailure as failure:
        if work.cut_short(failure):
            raise WorkInterrupted from None
        raise
    beside = [] if mode is None else [structure.positions + sign * mode for sign in (1.0, -1.0)]
    seeds = [structure.with_positions(positions) for positions in beside]
    work.spool.append({"seeds": seeds, "qm_calls": forces.calls})


def _labeler(work: Work) -> ReadyLabeler:
    return labeler_of(work.inputs["label"], work.threads, work.log, memory_MB=work.memory_MB)


def labeler_of(
    record: Mapping[str, Any],
    threads: int,
    log: Path,
    *,
    memory_MB: float | None = None,  # noqa: N803 - units are spelled as they are
) -> ReadyLabeler:
    """The labeler of a record within a slot's threads and memory, kept by this worker from task to task."""
    key = json.dumps([record, threads, memory_MB], sort_keys=True, default=str)
    if key not in _labelers:
        checks = ChecksSettings.model_validate(record["checks"])
        screen = Screen.of(record["screen"]) if "screen" in record else None
        made = make_labeler(
            record["name"],
            record["settings"],
            checks,
            screen=screen,
            threads=threads,
            memory_MB=memory_MB,
            log=log,
        )
        _labelers[key] = made.__enter__()
    return _labelers[key]


@atexit.register
def close_labelers() -> None:
    """Ends the child processes of this worker's labelers."""
    for labeler in _labelers.values():
        labeler.__exit__(None, None, None)
    _labelers.clear()

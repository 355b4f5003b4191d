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
from hpcal.core.protocols import ForceFunction
from hpcal.core.structure import Structure
from hpcal.engine.work.context import Work, WorkInterrupted, build
from hpcal.labeling.checks import CheckedLabeler, ChecksSettings
from hpcal.labeling.forces import as_forces
from hpcal.labeling.make import make_labeler
from hpcal.sampling.relaxation import downhill, relax

_labelers: dict[str, CheckedLabeler] = {}


def label(work: Work) -> None:
    """Labels structures, one record each, in order; stops between structures."""
    labeler = labeler_of(work.inputs["label"], work.threads, work.log)
    for item in work.inputs["structures"]:
        if work.deadline.expired():
            break
        work.spool.append({"structure_id": item["id"], **_one_label(labeler, item["structure"], work)})
    else:
        return
    if work.deadline.interrupted():
        raise WorkInterrupted


def _one_label(labeler: CheckedLabeler, structure: Structure, work: Work) -> dict[str, Any]:
    try:
        return {"result": labeler.label(structure, work.deadline)}
    except TaskFailure as failure:
        if work.deadline.interrupted():
            raise WorkInterrupted from None
        return {"failure": failure.failure_class, "message": str(failure)}


def relax_seeds(work: Work) -> None:
    """Relaxes seeds to minima."""
    labeler = labeler_of(work.inputs["label"], work.threads, work.log)
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
            if work.deadline.interrupted():
                raise WorkInterrupted from None
            record |= {"failure": failure.failure_class, "message": str(failure)}
        work.spool.append({**record, "qm_calls": forces.calls})


def bootstrap(work: Work) -> None:
    """Makes first structures around a minimum."""
    generator = build(Group.SAMPLERS, work.inputs["generator"])
    labeler = labeler_of(work.inputs["label"], work.threads, work.log)
    forces = as_forces(labeler, work.deadline)
    rng = np.random.default_rng(work.inputs["stream"])
    seed = work.inputs["seed"]
    record: dict[str, Any] = {"structures": [], "seeds": [], "message": ""}
    try:
        record["structures"] = list(generator.generate(seed, work.inputs["count"], forces, rng))
    except TaskFailure as failure:
        if work.deadline.interrupted():
            raise WorkInterrupted from None
        if failure.failure_class is not FailureClass.PHYSICS:
            raise
        record["message"] = str(failure)
        if generator.needs_minimum:
            record["seeds"] = _off_saddle(seed, forces)
    work.spool.append({**record, "qm_calls": forces.calls})


def _off_saddle(structure: Structure, forces: ForceFunction) -> list[Structure]:
    """Both sides of a saddle point: relaxations may end on one, and the minima are beside it."""
    mode = downhill(structure, forces)
    if mode is None:
        return []
    return [structure.with_positions(structure.positions + sign * mode) for sign in (1.0, -1.0)]


def labeler_of(record: Mapping[str, Any], threads: int, log: Path) -> CheckedLabeler:
    """The labeler of a record, kept by this worker from task to task."""
    key = json.dumps([record, threads], sort_keys=True, default=str)
    if key not in _labelers:
        checks = ChecksSettings.model_validate(record["checks"])
        made = make_labeler(record["name"], record["settings"], checks, threads=threads, log=log)
        _labelers[key] = made.__enter__()
    return _labelers[key]


@atexit.register
def close_labelers() -> None:
    """Ends the child processes of this worker's labelers."""
    for labeler in _labelers.values():
        labeler.__exit__(None, None, None)
    _labelers.clear()

"""Tasks of the ensemble: training, evaluation, scores, selection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpcal.core.arrays import FloatArray
from hpcal.core.batch import Batch
from hpcal.core.ensemble import MemberFile, verify
from hpcal.core.errors import TaskFailure
from hpcal.core.plugins import Group, find
from hpcal.core.protocols import Choice, MemberSpec, Pool, Potential
from hpcal.core.structure import Structure
from hpcal.engine.work.context import Work, WorkInterrupted, build, chunks, ensemble_of
from hpcal.exchange.hdf5 import read_snapshot
from hpcal.uncertainty.calibration import energy_error, force_rmse
from hpcal.uncertainty.scorer import EnsembleScorer


def train(work: Work) -> None:
    """Trains members of an ensemble on a snapshot of shards."""
    inputs = work.inputs
    dataset = read_snapshot([(Path(shard["path"]), shard["sha256"]) for shard in inputs["shards"]])
    trainer = build(Group.POTENTIALS, inputs["potential"]).trainer(inputs["elements"], inputs["stream"])
    verify([MemberFile(**start) for start in inputs["starts"]])
    members = [MemberSpec(**member) for member in inputs["members"]]
    checkpoint = Path(inputs["checkpoint"])
    before = _written(checkpoint)
    try:
        results = trainer.fit(dataset, members, work.deadline, checkpoint)
    except TaskFailure as failure:
        # Out of time is no failure where there was progress: the next attempt goes on from there.
        if work.cut_short(failure) or (work.deadline.expired() and _written(checkpoint) > before):
            raise WorkInterrupted from None
        raise
    for result in results:
        work.spool.append(
            {
                "index": result.index,
                "path": result.path,
                "sha256": result.sha256,
                "metrics": dict(result.metrics),
                "trained_on": list(result.trained_on),
            }
        )


def _written(folder: Path) -> float:
    """When a checkpoint was last written; 0 without one."""
    return max((file.stat().st_mtime for file in folder.glob("*")), default=0.0)


def evaluate(work: Work) -> None:
    """Scores and errors of ensembles on labelled structures."""
    for group in work.inputs["groups"]:
        potential = ensemble_of(group["ensemble"])
        scorer = scorer_of(work.inputs["metric"], potential)
        for items in chunks(group["structures"]):
            work.go_on()
            batch = batch_of([item["structure"] for item in items], potential)
            energies = potential.energies(batch).T.cpu().numpy()
            forces = potential.forces(batch).cpu().numpy()
            for item, score, members, force in zip(
                items, scorer.scores(batch), energies, forces, strict=True
            ):
                work.spool.append(
                    {
                        "ensemble_id": group["ensemble_id"],
                        "structure_id": item["id"],
                        "scores": score,
                        **_errors(item, members, force),
                    }
                )


def _errors(item: Mapping[str, Any], energies: FloatArray, forces: FloatArray) -> dict[str, Any]:
    """Errors of (M,) member energies and (N, 3) mean forces against the label."""
    reference, n_atoms = item["forces"], len(item["structure"])
    energy = float(energies.mean())
    record: dict[str, Any] = {
        "energy": energy,
        "energy_error": energy - item["energy"],
        "committee_error": energy_error(energies, item["energy"], n_atoms),
    }
    if reference is not None:
        difference = forces[:n_atoms] - reference
        record["force_mae"] = float(np.abs(difference).mean())
        record["force_rmse"] = force_rmse(forces[:n_atoms], reference)
    return record


def rescore(work: Work) -> None:
    """Scores of structures under another ensemble."""
    potential = ensemble_of(work.inputs["ensemble"])
    scorer = scorer_of(work.inputs["metric"], potential)
    for items in chunks(work.inputs["structures"]):
        work.go_on()
        scores = scorer.scores(batch_of([item["structure"] for item in items], potential))
        for item, score in zip(items, scores, strict=True):
            work.spool.append({"structure_id": item["id"], "scores": score})


def select(work: Work) -> None:
    """Chooses a batch among candidates, knowing what is labelled or waiting."""
    inputs = work.inputs
    potential = ensemble_of(inputs["ensemble"])
    selector = build(Group.SELECTORS, inputs["selector"])
    known = [item["structure"] for item in inputs["known"]]
    shards = [(Path(shard["path"]), shard["sha256"]) for shard in inputs["shards"]]
    if shards:
        known += read_snapshot(shards).structures()
    work.go_on()
    candidates = inputs["candidates"]
    pool = Pool(
        ids=np.array([item["id"] for item in candidates], dtype=np.int64),
        features=mean_features([item["structure"] for item in candidates], potential),
        values=np.array([item["value"] for item in candidates]),
    )
    rng = np.random.default_rng(inputs["stream"])
    choices: Sequence[Choice] = selector.select(pool, mean_features(known, potential), inputs["budget"], rng)
    for choice in choices:
        work.spool.append(
            {
                "structure_id": choice.structure_id,
                "chosen": choice.chosen,
                "reason": choice.reason,
                "rank": choice.rank,
                "distance": choice.distance,
            }
        )


def mean_features(structures: Sequence[Structure], potential: Potential) -> FloatArray:
    """(n, F) descriptors of whole structures: the mean over atoms."""
    rows = []
    for items in chunks(structures):
        batch = batch_of(items, potential)
        features = potential.features(batch).sum(dim=1) / batch.n_atoms[:, None]
        rows.append(features.double().cpu().numpy())
    return np.concatenate(rows) if rows else np.zeros((0, 0))


def scorer_of(metric: str, potential: Potential, threshold: float = np.inf) -> EnsembleScorer:
    """The campaign's metric on an ensemble."""
    return EnsembleScorer(potential=potential, metric=find(Group.METRICS, metric)(), threshold=threshold)


def batch_of(structures: Sequence[Structure], potential: Potential) -> Batch:
    """The structures on the potential's device."""
    return Batch.of(structures, device=potential.device, dtype=potential.dtype)

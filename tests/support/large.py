"""A store as a long campaign leaves it: a million structures and five times as many rows.

The rows are made up, but they stand in the proportions and states of a real campaign, so that
every query of the planner, of ``status`` and of ``trace`` meets what it would meet.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from hpcal.core.ensemble import file_sha256
from hpcal.core.label import LevelOfTheory
from hpcal.store import bulk, campaigns
from hpcal.store.database import Store
from hpcal.store.error_summary import NO_ERRORS
from hpcal.store.rows import level_id
from hpcal.store.tables import (
    AttemptRow,
    Base,
    Campaign,
    DatasetRow,
    EnsembleRow,
    LabelRow,
    ModelRow,
    ScoreRow,
    SegmentRow,
    SelectionRow,
    ShardRow,
    StructureRow,
    TaskRow,
    WalkerRow,
)

LEVEL = LevelOfTheory(code="test", version="1", method="made up")
ATOMS = 20
FILE_BYTES = 400_000
UNFINISHED = 600
"""Structures that wait, are candidates or claimed: as many in a long history as in a short one."""


def make_store(folder: Path, n: int, *, spec: dict, url: str | None = None) -> Store:
    """A campaign with ``n`` structures, open for writing under a lease.

    A fifth of the structures is labelled, a tenth of these audit; about 5 n rows in all.
    """
    store = Store.create(folder, url)
    with store.write() as session:
        campaigns.add_campaign(session, name="large", spec=spec, spec_folder=str(folder), site={"pools": {}})
        level = level_id(session, LEVEL)
        campaigns.campaign(session).level_of_theory_id = level
    store.acquire()
    rng = np.random.default_rng(0)
    n_generations = max(20, n // 10_000)
    walkers, tasks, labels = n // 10, n // 20, n // 5
    with store.write() as session:

        def add(row: type[Base], **columns):
            columns = {k: v if isinstance(v, list) else [v] * len(columns["id"]) for k, v in columns.items()}
            bulk.insert_rows(session, row, list(columns), zip(*columns.values(), strict=True))

        def ids(count: int) -> list[int]:
            return list(range(1, count + 1))

        per = max(1, labels // n_generations)
        generations = ids(n_generations)
        add(
            DatasetRow,
            id=generations,
            generation=generations,
            level_of_theory_id=level,
            last_seq=[g * per for g in generations],
            n_train=[int(0.8 * g * per) for g in generations],
            n_validation=[int(0.1 * g * per) for g in generations],
            created=1e9,
            origins=json.dumps({"train": {"sample": 1}}),
        )
        add(
            EnsembleRow,
            id=generations,
            generation=generations,
            revision=0,
            state="promoted",
            kind="morse",
            dataset_id=generations,
            hash="0" * 64,
            created=1e9,
            decided=1e9,
            decision="better",
            metric="force_std",
            threshold=0.1,
            bias_width=0.1,
            quiet_rounds=0,
            errors=json.dumps({"test": NO_ERRORS, "reference": NO_ERRORS}),
        )
        members = ids(n_generations * 8)
        add(
            ModelRow,
            id=members,
            ensemble_id=[(i - 1) // 8 + 1 for i in members],
            member=[(i - 1) % 8 for i in members],
            seed=members,
            path=[f"models/{i}" for i in members],
            sha256=[_file(folder / "models" / str(i)) for i in members],
            metrics="{}",
        )
        add(
            ShardRow,
            id=generations,
            path=[f"shards/{g}.h5" for g in generations],
            sha256=[_file(folder / "shards" / f"{g}.h5") for g in generations],
            first_seq=[(g - 1) * per + 1 for g in generations],
            last_seq=[g * per for g in generations],
            count=per,
            level_of_theory_id=level,
        )
        kinds = [("label", "sample", "sample", "rescore")[i % 4] for i in range(tasks)]
        add(
            TaskRow,
            id=ids(tasks),
            kind=kinds,
            pool=["label" if k == "label" else "sample" for k in kinds],
            state="done",
            priority=0,
            inputs=json.dumps({"structure_ids": [1]}),
            units=4,
            size=0,
            created=1e9,
            finished=1e9,
            epoch=1,
            seconds=rng.uniform(1, 20, tasks).tolist(),
            failures=0,
            losses=0,
        )
        add(
            AttemptRow,
            id=ids(tasks),
            task_id=ids(tasks),
            number=1,
            epoch=1,
            executor="label",
            state="done",
            dispatched=[1e9 + i for i in range(tasks)],
            start=[1e9 + i for i in range(tasks)],
            end=[1e9 + i + 10.0 for i in range(tasks)],
            host="node1",
            qm_calls=4,
            exit_reason="done",
        )
        splits = np.array(["train", "validation", "calibration", "test"])[
            np.searchsorted([0.8, 0.9, 0.95], rng.random(walkers))
        ].tolist()
        # The first structure is the seed of all; it is added before its walkers.
        numbers = np.array([6] * 6 + [1] * 10 + [8] * 2 + [7] * 2, dtype="u1").tobytes()
        noise = rng.normal(size=(1000, ATOMS, 3))
        shared = {
            "n_atoms": ATOMS,
            "formula": "C6H10N2O2",
            "numbers": numbers,
            "pbc": 0,
            "charge": 0,
            "multiplicity": 1,
            "created": 1e9,
            "failures": 0,
            "priority": 0.0,
        }
        add(
            StructureRow,
            id=[1],
            hash="0",
            state="labelled",
            origin="minimum",
            split="train",
            positions=noise[0].tobytes(),
            generation=0,
            **shared,
        )
        alive = min(200, walkers // 2)
        add(
            WalkerRow,
            id=ids(walkers),
            state=["ended"] * (walkers - alive) + ["idle"] * alive,
            structure_id=1,
            entry=0,
            sampler="langevin",
            split=splits,
            stream=ids(walkers),
            temperature=300.0,
            steps_full=1000,
            frames_at="[]",
            step=500,
            parameters="{}",
            ensemble_id=1,
            generation=[1 + i * n_generations // walkers for i in range(walkers)],
            created=1e9,
            end_reason=["crossed"] * (walkers - alive) + [None] * alive,
        )
        segments = ids(2 * walkers)
        add(
            SegmentRow,
            id=segments,
            walker_id=[(i - 1) // 2 + 1 for i in segments],
            attempt_id=[(i - 1) % tasks + 1 for i in segments],
            ensemble_id=1,
            start_step=0,
            end_step=250,
            end_reason=[None, "crossed"] * walkers,
        )
        _structures(add, n, labels, walkers, tasks, splits, noise, shared, n_generations)
        structure = [int(i) for i in np.linspace(2, n - UNFINISHED - 1, labels)]
        seen = dict.fromkeys(set(splits), 0)
        within = []
        for i in structure:
            seen[splits[i % walkers]] += 1
            within.append(seen[splits[i % walkers]])
        add(
            LabelRow,
            id=ids(labels),
            seq=ids(labels),
            split_seq=within,
            structure_id=structure,
            level_of_theory_id=level,
            attempt_id=[i % tasks + 1 for i in range(labels)],
            split=[splits[i % walkers] for i in structure],
            energy=rng.normal(size=labels).tolist(),
            forces=noise[1].tobytes(),
            diagnostics="{}",
            qm_calls=1,
            created=1e9,
        )
        scores = list(range(2, n + 1))
        add(
            ScoreRow,
            id=scores,
            structure_id=scores,
            ensemble_id=[min(n_generations, 1 + i * n_generations // n) for i in scores],
            task_id=[i % tasks + 1 for i in scores],
            purpose="sample",
            metric="force_std",
            value=rng.uniform(0, 1, n - 1).tolist(),
            threshold=0.1,
        )
        audit = [s for s in structure if splits[s % walkers] == "test"]
        pairs = [(e, s) for e in generations for s in audit]
        add(
            ScoreRow,
            id=list(range(n + 1, n + 1 + len(pairs))),
            structure_id=[s for _, s in pairs],
            ensemble_id=[e for e, _ in pairs],
            task_id=1,
            purpose="evaluate",
            metric="force_std",
            value=0.1,
            threshold=0.1,
            energy_std=0.01,
            force_std=0.1,
            energy=-1.0,
            energy_error=0.01,
            committee_error=0.02,
            force_mae=0.05,
            force_rmse=0.08,
            split="test",
            family=[s % walkers + 1 for _, s in pairs],
            n_atoms=ATOMS,
        )
        more = list(range(2, n + 1))
        add(
            ScoreRow,
            id=[n + len(pairs) + s for s in more],
            structure_id=more,
            ensemble_id=[i % n_generations + 1 for i in more],
            task_id=[i % tasks + 1 for i in more],
            purpose="rescore",
            metric="force_std",
            value=0.1,
            threshold=0.1,
        )
        add(
            SelectionRow,
            id=more,
            structure_id=more,
            task_id=[i % tasks + 1 for i in more],
            ensemble_id=[i % n_generations + 1 for i in more],
            decision=["chosen" if i % 5 == 0 else "passed_over" for i in more],
            rule="farthest_point",
            value=0.2,
            threshold=0.1,
            rank=1,
            distance=0.3,
            competitors=100,
            reason="far from what is known",
        )
    return store


def _structures(add, n, labels, walkers, tasks, splits, noise, shared, generations) -> None:
    for start in range(2, n + 1, 100_000):
        block = list(range(start, min(n + 1, start + 100_000)))
        last = n - UNFINISHED
        labelled = {int(i) for i in np.linspace(2, last - 1, labels)}
        tail = ("waiting", "candidate", "claimed")
        state = [tail[i % 3] if i > last else "labelled" if i in labelled else "dropped" for i in block]
        generation = [min(generations, 1 + i * generations // n) for i in block]
        add(
            StructureRow,
            id=block,
            hash=[f"{i:064x}" for i in block],
            state=state,
            origin=["audit" if splits[i % walkers] in ("calibration", "test") else "sample" for i in block],
            split=[splits[i % walkers] for i in block],
            positions=[noise[i % 1000].tobytes() for i in block],
            generation=generation,
            scored_generation=generation,
            walker_id=[i % walkers + 1 for i in block],
            segment_id=[i % (2 * walkers) + 1 for i in block],
            task_id=[i % tasks + 1 for i in block],
            step=100,
            time_fs=50.0,
            fingerprint=[float(i) for i in block],
            **shared,
        )


def _file(path: Path) -> str:
    """A file of the size that a member or a shard has; returns its hash."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(path.name.encode() * (FILE_BYTES // len(path.name)))
    return file_sha256(path)


def row_count(store: Store) -> int:
    """Rows in all tables."""
    with store.session() as session:
        return sum(session.query(table.class_).count() for table in Base.registry.mappers)


__all__ = ["LEVEL", "Campaign", "make_store", "row_count"]

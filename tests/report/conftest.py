"""A plausible campaign, written through the real tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.rows import label_row

from hpcal.core.errors import FailureClass
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure
from hpcal.core.walker import Split, WalkerEnd
from hpcal.store.database import Store, add_event
from hpcal.store.rows import blob, family, level_id, structure_row
from hpcal.store.session import Session
from hpcal.store.tables import (
    SCHEMA_VERSION,
    AttemptRow,
    Campaign,
    DatasetRow,
    EnsembleRow,
    LabelRow,
    ModelRow,
    RejectionRow,
    ScoreRow,
    SegmentRow,
    SelectionRow,
    ShardRow,
    StructureRow,
    TaskRow,
    WalkerRow,
)
from hpcal.store.transitions import CampaignState, EnsembleState, StructureState, TaskState, WalkerState

LEVEL = LevelOfTheory(code="tblite", version="0.4.0", method="GFN2-xTB")
WATER = ([8, 1, 1], [[0, 0, 0.12], [0, 0.76, -0.48], [0, -0.76, -0.48]])
METHANE = (
    [6, 1, 1, 1, 1],
    [[0, 0, 0], [0.63, 0.63, 0.63], [-0.63, -0.63, 0.63], [-0.63, 0.63, -0.63], [0.63, -0.63, -0.63]],
)
SITE = {
    "name": "laptop",
    "pools": {
        "label": {"slots": 2, "workers_per_node": 2},
        "sample": {"slots": 1, "workers_per_node": 1},
        "train": {"slots": 1, "workers_per_node": 1},
    },
}
SPEC = {
    "name": "water",
    "potential": {"kind": "ani", "members": 2},
    "sampling": [{"sampler": "udd", "walkers": 8}],
    "uncertainty": {"metric": "force_std", "calibration": {"error": 0.25}},
    "selection": {"method": "farthest_point", "batch": 6},
    "stop": {"labels": 100},
}
START = 1_700_000_000.0


@dataclass
class Author:
    """Writes rows with a clock of its own; ``pace`` is the length of a task in seconds."""

    session: Session
    rng: np.random.Generator
    clock: float = START
    epoch: int = 1
    seq: int = 0
    level: int = 0
    pace: float = 60.0
    ids: SimpleNamespace = field(default_factory=SimpleNamespace)

    def add(self, row: Any) -> Any:
        self.session.add(row)
        self.session.flush()
        return row

    def structure(self, origin: str, state: StructureState, split: Split, **columns: Any) -> StructureRow:
        numbers, positions = WATER if self.rng.random() < 0.5 else METHANE
        shaken = np.array(positions, dtype=float) + self.rng.normal(0, 0.05, (len(numbers), 3))
        value = Structure(numbers=np.array(numbers), positions=shaken)
        return self.add(structure_row(value, origin=origin, state=state, split=split, **columns))

    def task(self, kind: str, pool: str, state: TaskState = TaskState.DONE, **columns: Any) -> TaskRow:
        row = TaskRow(
            kind=kind, pool=pool, state=state, units=1, created=self.clock, **{"inputs": {}, **columns}
        )
        return self.add(row)

    def attempt(
        self,
        task: TaskRow,
        state: TaskState = TaskState.DONE,
        *,
        seconds: float | None = None,
        **columns: Any,
    ) -> AttemptRow:
        begin = self.clock + 1
        self.clock = begin + (self.pace if seconds is None else seconds)
        lost = state is TaskState.LOST
        values = {
            "number": 1,
            "epoch": self.epoch,
            "executor": task.pool,
            "host": "node7",
            "pid": 4242,
            "dispatched": begin - 1,
            "start": begin,
            "end": None if lost else self.clock,
        }
        return self.add(AttemptRow(task_id=task.id, state=state, **{**values, **columns}))

    def label(self, structure: StructureRow, attempt: AttemptRow | None) -> LabelRow:
        value = Label(
            energy=-100.0 * structure.n_atoms + float(self.rng.normal(0, 0.3)),
            forces=self.rng.normal(0, 1, (structure.n_atoms, 3)),
            level=LEVEL,
            diagnostics={"checks": ["net_force"]},
        )
        self.seq += attempt is not None
        row = label_row(
            value,
            structure_id=structure.id,
            split=structure.split,
            level_id=self.level,
            seq=None if attempt is None else self.seq,
            attempt_id=None if attempt is None else attempt.id,
        )
        return self.add(row)

    def labelled(self, origin: str, split: Split, count: int, **columns: Any) -> list[StructureRow]:
        """Structures with labels from one task."""
        rows = [self.structure(origin, StructureState.LABELLED, split, **columns) for _ in range(count)]
        task = self.task("label", "label", inputs={"structure_ids": [r.id for r in rows]})
        attempt = self.attempt(task, qm_calls=count)
        for row in rows:
            self.label(row, attempt)
        return rows

    def score(
        self, structure: StructureRow, ensemble: EnsembleRow, purpose: str, value: float, **columns: Any
    ) -> ScoreRow:
        return self.add(
            ScoreRow(
                structure_id=structure.id,
                ensemble_id=ensemble.id,
                purpose=purpose,
                metric="force_std",
                value=value,
                threshold=ensemble.threshold,
                energy_std=value / 20,
                force_std=value,
                **columns,
                **(
                    {"split": structure.split, "family": family(structure), "n_atoms": structure.n_atoms}
                    if purpose == "evaluate"
                    else {}
                ),
            )
        )

    def evaluate(self, ensemble: EnsembleRow, structures: list[StructureRow], scale: float) -> None:
        for row in structures:
            value = float(self.rng.lognormal(np.log(scale), 0.6))
            rmse = value * float(self.rng.lognormal(0, 0.4))
            energy = float(self.rng.normal(0, 0.04 * scale * row.n_atoms))
            self.score(
                row,
                ensemble,
                "evaluate",
                value,
                energy_error=energy,
                committee_error=abs(energy),
                force_mae=0.7 * rmse,
                force_rmse=rmse,
            )

    def walker(
        self, split: Split, generation: int, seed: StructureRow, ensemble: EnsembleRow, **columns: Any
    ) -> WalkerRow:
        values = {
            "state": WalkerState.IDLE,
            "structure_id": seed.id,
            "entry": 0,
            "sampler": "udd",
            "stream": 5,
            "temperature": 350.0,
            "steps_full": 1000,
            "frames_at": [],
            "parameters": {},
            "created": self.clock,
            "ensemble_id": ensemble.id,
        }
        return self.add(WalkerRow(split=split, generation=generation, **{**values, **columns}))

    def ensemble(self, generation: int, state: EnsembleState, predecessor: EnsembleRow | None) -> EnsembleRow:
        counts = {
            split: self.session.query(LabelRow)
            .filter(LabelRow.split == split, LabelRow.seq.is_not(None))
            .count()
            for split in (Split.TRAIN, Split.VALIDATION)
        }
        dataset = self.add(
            DatasetRow(
                generation=generation,
                level_of_theory_id=self.level,
                last_seq=self.seq,
                n_train=counts[Split.TRAIN],
                n_validation=counts[Split.VALIDATION],
                created=self.clock,
            )
        )
        done = state is not EnsembleState.TRAINING
        decided = state in (EnsembleState.PROMOTED, EnsembleState.REFUSED)
        row = self.add(
            EnsembleRow(
                generation=generation,
                state=state,
                kind="ani",
                dataset_id=dataset.id,
                metric="force_std",
                predecessor_id=predecessor.id if predecessor else None,
                created=self.clock,
                hash=f"{generation:064x}" if done else None,
                threshold=0.4 / generation if decided else None,
                decision=f"generation {generation} was {state} & <compared>" if decided else None,
                calibration={"sentence": "threshold catches 98% of the failures"} if decided else None,
            )
        )
        task = self.task("train", "train", inputs={"ensemble_id": row.id})
        if done:
            self.attempt(task, seconds=5 * self.pace)
            row.decided = self.clock
        for member in range(2):
            self.add(
                ModelRow(
                    ensemble_id=row.id,
                    member=member,
                    seed=10 * generation + member,
                    metrics={"loss": 0.1},
                    task_id=task.id,
                    path=f"models/{row.id}-{member}.pt" if done else None,
                    sha256="ab" * 32 if done else None,
                )
            )
        return row


def write_campaign(
    session: Session, *, batch: int = 6, audit: int = 6, generations: int = 3, seed: int = 1
) -> SimpleNamespace:
    """Writes a running campaign; the last but one generation is refused, one more is in training."""
    author = Author(session=session, rng=np.random.default_rng(seed))
    author.level = level_id(session, LEVEL)
    ids = author.ids
    session.add(
        Campaign(
            name="water",
            run_id="abc123",
            schema_version=SCHEMA_VERSION,
            hpcal_version="0.1.0",
            created=START,
            spec=SPEC,
            spec_folder="/tmp",
            site=SITE,
            state=CampaignState.RUNNING,
            level_of_theory_id=author.level,
        )
    )
    _beginning(author, batch)
    evaluated: list[StructureRow] = [
        author.structure("reference", StructureState.LABELLED, Split.REFERENCE) for _ in range(audit)
    ]
    for row in evaluated:
        author.label(row, None)
    ids.reference = evaluated[0].id
    current: EnsembleRow | None = None
    made: list[EnsembleRow] = []
    for generation in range(1, generations + 1):
        refused = generation == generations - 1 and generations > 2
        ensemble = author.ensemble(
            generation, EnsembleState.REFUSED if refused else EnsembleState.PROMOTED, current
        )
        made.append(ensemble)
        current = current if refused else ensemble
        assert current is not None
        _round(author, current, generation, batch)
        audited = _audit(author, current, generation, audit)
        evaluated += audited
        if generation == 1:
            author.clock += 7200  # another controller takes over after a while
            author.epoch = 2
    for ensemble in made:
        worse = 2.0 if ensemble.state is EnsembleState.REFUSED else 1.0
        author.evaluate(ensemble, evaluated, worse * 0.3 / ensemble.generation)
    author.ensemble(generations + 1, EnsembleState.TRAINING, current)
    _mishaps(author, made[-1])
    author.add(
        ShardRow(
            path="shards/1.h5",
            sha256="cd" * 32,
            first_seq=1,
            last_seq=author.seq,
            count=9,
            level_of_theory_id=author.level,
        )
    )
    return ids


def _beginning(author: Author, batch: int) -> None:
    """Seeds, minima and bootstrap structures."""
    ids = author.ids
    relax = author.task("relax", "label")
    author.attempt(relax, qm_calls=40)
    seed = author.structure("seed", StructureState.DROPPED, Split.TRAIN, reason="relaxed to structure 2")
    author.structure("seed", StructureState.WAITING, Split.TRAIN)
    minimum = author.labelled("minimum", Split.TRAIN, 1, parent_id=seed.id, task_id=relax.id)[0]
    first = author.labelled("bootstrap", Split.TRAIN, batch, parent_id=minimum.id)
    held = author.labelled("bootstrap", Split.VALIDATION, max(1, batch // 4), parent_id=minimum.id)
    for row in (minimum, *first, *held):
        author.add(SelectionRow(structure_id=row.id, decision="bootstrap", rule="bootstrap", reason="all"))
    ids.seed, ids.minimum, ids.bootstrap, ids.validation = seed.id, minimum.id, first[0].id, held[0].id
    ids.seed_row = seed


def _round(author: Author, ensemble: EnsembleRow, generation: int, batch: int) -> None:
    """Sampled structures of one generation: chosen and labelled, passed over, dropped."""
    ids, seed = author.ids, author.session.get_one(StructureRow, author.ids.minimum)
    task = author.task("sample", "sample")
    attempt = author.attempt(task, seconds=3 * author.pace)
    select = author.task("select", "sample")
    author.attempt(select, seconds=2)
    ends = [WalkerEnd.CROSSED] * batch + [WalkerEnd.QUIET] * generation + [WalkerEnd.OVERLAP]
    origin: list[dict[str, Any]] = []
    for end in ends:
        walker = author.walker(
            Split.TRAIN,
            generation,
            seed,
            ensemble,
            state=WalkerState.ENDED,
            step=400,
            end_reason=end,
            end_detail="it is over",
            end_generation=generation,
        )
        segment = author.add(
            SegmentRow(
                walker_id=walker.id,
                attempt_id=attempt.id,
                ensemble_id=ensemble.id,
                start_step=0,
                end_step=400,
                end_reason=end,
                max_trigger=0.5,
                bias_ratio=0.3,
            )
        )
        origin.append(
            {
                "generation": generation,
                "walker_id": walker.id,
                "segment_id": segment.id,
                "task_id": task.id,
                "step": 400,
                "time_fs": 200.0,
            }
        )
    chosen = [author.labelled("sample", Split.TRAIN, 1, **columns)[0] for columns in origin[:batch]]
    threshold = ensemble.threshold or 0.0
    decide = {
        "task_id": select.id,
        "ensemble_id": ensemble.id,
        "threshold": threshold,
        "competitors": batch + 3,
    }
    for rank, row in enumerate(chosen):
        author.score(row, ensemble, "sample", threshold * 1.5)
        author.add(
            SelectionRow(
                structure_id=row.id,
                decision="chosen",
                rule="farthest_point",
                rank=rank,
                distance=0.5,
                reason="farthest from all known",
                value=threshold * 1.5,
                **decide,
            )
        )
    passed = author.structure("sample", StructureState.DROPPED, Split.TRAIN, reason="too close", **origin[-1])
    author.score(passed, ensemble, "sample", threshold * 1.1)
    author.add(
        SelectionRow(
            structure_id=passed.id,
            decision="passed_over",
            rule="farthest_point",
            reason="too close",
            **decide,
        )
    )
    saved = author.structure(
        "sample", StructureState.DROPPED, Split.TRAIN, reason="certain now", **origin[-1]
    )
    fresh = author.structure(
        "sample", StructureState.DROPPED, Split.TRAIN, reason="certain now", **origin[-1]
    )
    author.add(
        SelectionRow(structure_id=saved.id, decision="chosen", rule="farthest_point", reason="far", **decide)
    )
    for row in (saved, fresh):
        author.score(row, ensemble, "rescore", threshold * 0.5)
        author.add(
            SelectionRow(structure_id=row.id, decision="dropped", rule="rescore", reason="certain", **decide)
        )
    ids.sample, ids.passed, ids.saved, ids.walker, ids.sample_task = (
        chosen[-1].id,
        passed.id,
        saved.id,
        origin[batch - 1]["walker_id"],
        task.id,
    )


def _audit(author: Author, ensemble: EnsembleRow, generation: int, count: int) -> list[StructureRow]:
    seed = author.session.get_one(StructureRow, author.ids.minimum)
    found = []
    for i in range(count):
        split = Split.CALIBRATION if i % 2 else Split.TEST
        walker = author.walker(split, generation, seed, ensemble, frames_at=[100, 300])
        found += author.labelled(
            "audit", split, 2, generation=generation, walker_id=walker.id, step=100, time_fs=50.0
        )
    for row in found:
        author.add(
            SelectionRow(structure_id=row.id, decision="audit", rule="audit_stream", reason="drawn uniformly")
        )
    author.ids.audit = found[0].id
    return found


def _audit_labels(author: Author) -> None:
    """What the audits of three labels found; none turned its label away."""
    rows = author.session.query(LabelRow).filter(LabelRow.seq.is_not(None)).order_by(LabelRow.seq).limit(3)
    for row, error in zip(rows, (0.0011, 0.0042, 0.0007), strict=True):
        row.diagnostics = {
            **row.diagnostics,
            "audits": {
                "finite_difference": {"value": error, "limit": 0.0075, "passed": True},
                "stability": {"value": None, "limit": None, "passed": True},
                "fod": {"value": 10 * error, "limit": None, "passed": True},
            },
        }


def _mishaps(author: Author, ensemble: EnsembleRow) -> None:
    """What goes wrong: rejection, quarantine, a lost attempt, a failed task; and what is under way."""
    ids = author.ids
    rejected = author.structure(
        "sample", StructureState.REJECTED, Split.TRAIN, reason="scf_not_converged: no"
    )
    task = author.task("label", "label", inputs={"structure_ids": [rejected.id]})
    author.attempt(task, TaskState.LOST, exit_reason="the node went away")
    attempt = author.attempt(task, number=2, qm_calls=7)
    author.add(
        RejectionRow(
            structure_id=rejected.id,
            level_of_theory_id=author.level,
            attempt_id=attempt.id,
            failure_class=FailureClass.PHYSICS,
            code="scf_not_converged",
            diagnostics={},
            qm_calls=7,
            message="<b>no convergence</b> & more",
            created=author.clock,
        )
    )
    add_event(author.session, 2, "label_failed", "it broke", structure_id=rejected.id, task_id=task.id)
    broken = author.structure(
        "sample", StructureState.QUARANTINED, Split.TRAIN, reason="input: odd electrons"
    )
    author.structure("sample", StructureState.CANDIDATE, Split.TRAIN)
    author.structure("sample", StructureState.WAITING, Split.TRAIN)
    author.structure("audit", StructureState.CLAIMED, Split.TEST)
    for i in range(2):
        failed = author.task(
            "label",
            "label",
            TaskState.FAILED,
            inputs={"structure_ids": [broken.id, 10 * broken.id]},
            failure_class=FailureClass.BUG,
            error=f"KeyError: 'x'\n  in line {i}",
        )
        author.attempt(failed, TaskState.FAILED, exit_reason="KeyError: 'x'")
    taken = author.labelled("sample", Split.TRAIN, 1, generation=ensemble.generation)[0]
    author.session.query(LabelRow).filter(LabelRow.structure_id == taken.id).one().retracted = "wrong spin"
    bag = (
        author.session.query(ModelRow).filter(ModelRow.ensemble_id == ensemble.id, ModelRow.member == 1).one()
    )
    bag.trained_on = blob([ids.bootstrap, ids.bootstrap, ids.minimum], "<i8")
    ids.quarantined = broken.id
    _audit_labels(author)
    ids.rejected, ids.rejected_task, ids.retracted, ids.failed_task, ids.bag_model = (
        rejected.id,
        task.id,
        taken.id,
        failed.id,
        bag.id,
    )


@pytest.fixture(scope="session")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A store with a campaign under way, opened read-only, and ids of telling rows."""
    folder: Path = tmp_path_factory.mktemp("campaign")
    writer = Store.create(folder)
    with writer.write() as session:
        ids = write_campaign(session)
    writer.close()
    store = Store.read(folder)
    yield SimpleNamespace(store=store, ids=ids, folder=folder)
    store.close()


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[Store]:
    """A store that holds a campaign and nothing else."""
    store = Store.create(tmp_path / "begun")
    with store.write() as session:
        session.add(
            Campaign(
                name="begun",
                run_id="r",
                schema_version=SCHEMA_VERSION,
                hpcal_version="0.1.0",
                created=START,
                spec={"name": "begun"},
                spec_folder="/tmp",
                site={},
                state=CampaignState.STOPPED,
            )
        )
    yield store
    store.close()

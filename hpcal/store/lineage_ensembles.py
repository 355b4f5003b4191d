"""Read-only questions to the store about one data set, ensemble or member; see ``lineage``."""

from __future__ import annotations

from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from hpcal.core.arrays import IntArray
from hpcal.core.walker import Split
from hpcal.store.lineage import Record, by_word, record
from hpcal.store.tables import (
    Base,
    DatasetRow,
    EnsembleRow,
    LabelRow,
    LevelOfTheoryRow,
    ModelRow,
    ScoreRow,
    SegmentRow,
    SelectionRow,
    ShardRow,
    StructureRow,
    WalkerRow,
)


def datasets_with(session: Session, label: Record) -> list[Record]:
    """Data sets whose rule takes in a label, oldest first; none for labels that never train."""
    if label["seq"] is None or not Split(label["split"]).learns:
        return []
    rows = session.scalars(
        select(DatasetRow)
        .where(
            DatasetRow.last_seq >= label["seq"],
            DatasetRow.level_of_theory_id == label["level_of_theory_id"],
        )
        .order_by(DatasetRow.id)
    )
    return [_dataset(row) | {"split": label["split"]} for row in rows]


def models_trained_on(session: Session, label: Record) -> list[Record]:
    """Trained members whose bag holds the structure of a label; one without a list saw all of train."""
    ids = [dataset["id"] for dataset in datasets_with(session, label)]
    rows = session.execute(
        select(ModelRow, EnsembleRow)
        .join(EnsembleRow, EnsembleRow.id == ModelRow.ensemble_id)
        .where(EnsembleRow.dataset_id.in_(ids), ModelRow.path.is_not(None))
        .order_by(ModelRow.id)
    ).yield_per(16)
    found = []
    for row, ensemble in rows:
        bag = _bag(row)
        seen = label["split"] == Split.TRAIN if bag is None else bool((bag == label["structure_id"]).any())
        if seen:
            found.append(
                record(row, "id", "ensemble_id", "member", "seed")
                | {"generation": ensemble.generation, "dataset_id": ensemble.dataset_id}
            )
    return found


def dataset(session: Session, dataset_id: int) -> Record | None:
    """A data set, or None."""
    row = session.get(DatasetRow, dataset_id)
    if row is None:
        return None
    level = session.get(LevelOfTheoryRow, row.level_of_theory_id)
    return _dataset(row) | {"level": None if level is None else level.record}


def dataset_composition(session: Session, data: Record) -> dict[str, dict[str, int]]:
    """Structures of a data set by split and origin, those taken back left out."""
    taken_back = session.scalar(select(LabelRow.id).where(LabelRow.retracted.is_not(None)).limit(1))
    counted = session.scalar(select(DatasetRow.origins).where(DatasetRow.id == data["id"]))
    if counted is not None and taken_back is None:
        return {split: dict(sorted(group.items())) for split, group in sorted(counted.items())}
    rows = session.execute(
        select(LabelRow.split, StructureRow.origin, func.count())
        .join(StructureRow, StructureRow.id == LabelRow.structure_id)
        .where(*_rule(data), LabelRow.retracted.is_(None))
        .group_by(LabelRow.split, StructureRow.origin)
        .order_by(LabelRow.split, StructureRow.origin)
    )
    found: dict[str, dict[str, int]] = {}
    for split, origin, n in rows:
        found.setdefault(str(split), {})[origin] = n
    return found


def dataset_shards(session: Session, data: Record) -> list[Record]:
    """Shards that hold labels of a data set."""
    rows = session.scalars(
        select(ShardRow)
        .where(
            ShardRow.first_seq <= data["last_seq"],
            ShardRow.level_of_theory_id == data["level_of_theory_id"],
        )
        .order_by(ShardRow.id)
    )
    return [record(row, "id", "path", "sha256", "first_seq", "last_seq", "count") for row in rows]


def ensemble(session: Session, ensemble_id: int | None) -> Record | None:
    """An ensemble, or None."""
    row = session.get(EnsembleRow, ensemble_id) if ensemble_id is not None else None
    return None if row is None else _ensemble(row)


def ensembles_on(session: Session, dataset_id: int) -> list[Record]:
    """Ensembles that were trained on a data set."""
    rows = session.scalars(
        select(EnsembleRow).where(EnsembleRow.dataset_id == dataset_id).order_by(EnsembleRow.id)
    )
    return [_ensemble(row) for row in rows]


def successors(session: Session, ensemble_id: int) -> list[int]:
    """Ensembles that were compared with this one at their promotion."""
    return list(session.scalars(select(EnsembleRow.id).where(EnsembleRow.predecessor_id == ensemble_id)))


def ensemble_uses(session: Session, ensemble_id: int) -> dict[str, Any]:
    """What an ensemble was used for: scores, decisions, segments and walkers, counted."""
    return {
        "scores": by_word(
            session,
            select(ScoreRow.purpose, func.count()).where(ScoreRow.ensemble_id == ensemble_id),
        ),
        "selection": by_word(
            session,
            select(SelectionRow.decision, func.count()).where(SelectionRow.ensemble_id == ensemble_id),
        ),
        "segments": _number(session, SegmentRow, SegmentRow.ensemble_id == ensemble_id),
        "walkers": _number(session, WalkerRow, WalkerRow.ensemble_id == ensemble_id),
    }


def model(session: Session, model_id: int) -> Record | None:
    """A member of an ensemble, or None."""
    row = session.get(ModelRow, model_id)
    return None if row is None else _model(row)


def members(session: Session, ensemble_id: int) -> list[Record]:
    """Members of an ensemble."""
    rows = session.scalars(
        select(ModelRow).where(ModelRow.ensemble_id == ensemble_id).order_by(ModelRow.member)
    )
    return [_model(row) for row in rows]


def models_of_task(session: Session, task_id: int) -> list[Record]:
    """Members that a task trained."""
    rows = session.scalars(select(ModelRow).where(ModelRow.task_id == task_id).order_by(ModelRow.id))
    return [_model(row) for row in rows]


def trained_on(session: Session, model_id: int, dataset: Record) -> tuple[bool, IntArray]:
    """Whether a member's bag is recorded, and the distinct structures that it learnt from.

    Without a record of its own a member saw all training structures of its data set.
    """
    row = session.get(ModelRow, model_id)
    bag = None if row is None else _bag(row)
    if bag is not None:
        return True, np.unique(bag)
    ids = session.scalars(
        select(LabelRow.structure_id)
        .where(*_rule(dataset, Split.TRAIN), LabelRow.retracted.is_(None))
        .order_by(LabelRow.structure_id)
    )
    return False, np.array(ids.all(), dtype=np.int64)


def _rule(dataset: Record, *splits: Split) -> tuple[ColumnElement[bool], ...]:
    return (
        LabelRow.split.in_(splits or (Split.TRAIN, Split.VALIDATION)),
        LabelRow.seq <= dataset["last_seq"],
        LabelRow.level_of_theory_id == dataset["level_of_theory_id"],
    )


def _dataset(row: DatasetRow) -> Record:
    return record(
        row, "id", "generation", "level_of_theory_id", "last_seq", "n_train", "n_validation", "created"
    )


def _ensemble(row: EnsembleRow) -> Record:
    names = (
        "id", "generation", "revision", "state", "kind", "dataset_id", "predecessor_id", "hash", "path",
        "created", "decided", "decision", "metric", "threshold", "bias_width", "calibration",
        "quiet_rounds",
    )  # fmt: skip
    return record(row, *names)


def _model(row: ModelRow) -> Record:
    return record(
        row, "id", "ensemble_id", "member", "seed", "task_id", "path", "sha256", "metrics", "missing"
    )


def _bag(row: ModelRow) -> IntArray | None:
    return None if row.trained_on is None else np.frombuffer(row.trained_on, dtype="<i8")


def _number(session: Session, table: type[Base], where: ColumnElement[bool]) -> int:
    return int(session.scalar(select(func.count()).select_from(table).where(where)) or 0)

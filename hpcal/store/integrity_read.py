"""Read-only questions to the store for ``hpcal check``: all labels, and rows that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import numpy as np
from sqlalchemy import ColumnElement, String, func, select, text, type_coerce
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import InstrumentedAttribute, Session

from hpcal.core.arrays import IntArray
from hpcal.core.dataset import Dataset
from hpcal.core.walker import Split
from hpcal.store.bulk_read import read_dataset
from hpcal.store.queries import LEARNING
from hpcal.store.rows import level_of
from hpcal.store.tables import (
    AttemptRow,
    Campaign,
    DatasetRow,
    EnsembleRow,
    LabelRow,
    LevelOfTheoryRow,
    ModelRow,
    RejectionRow,
    ShardRow,
    StructureRow,
    TaskRow,
    WalkerRow,
)
from hpcal.store.transitions import (
    CampaignState,
    EnsembleState,
    StructureState,
    TaskState,
    WalkerState,
)

SHOWN: Final = 1000
"""Ids of contradicting rows of one kind that are read; counting is left to the database."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredLabels:
    """All labels that were not taken back.

    Attributes:
        data: structures and labels, those of one level after those of another; its level is None.
        levels: (n,) places in ``level_names``.
        level_names: levels of theory.
        walkers: (n,) walker of each structure, -1 without one.
    """

    data: Dataset
    levels: IntArray
    level_names: tuple[str, ...]
    walkers: IntArray


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file that the store knows: a shard or the file of a model.

    Attributes:
        name: ``shard 3`` or ``model:5``.
        path: relative to the campaign's folder.
        sha256: what its bytes must hash to.
    """

    name: str
    path: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Contradiction:
    """Rows that cannot all be right.

    Attributes:
        kind: short stable name.
        table: whose rows ``ids`` are.
        count: all of them.
        ids: the first of them.
        detail: what is wrong with them.
    """

    kind: str
    table: str
    count: int
    ids: tuple[int, ...]
    detail: str


def stored_labels(session: Session) -> StoredLabels | None:
    """All labels at all levels of theory, or None without any. Raises StoreError for a damaged store."""
    parts: list[Dataset] = []
    levels: list[IntArray] = []
    names: list[str] = []
    for row in session.scalars(select(LevelOfTheoryRow).order_by(LevelOfTheoryRow.id)):
        level = level_of(row)
        found = read_dataset(session, level, row.id)
        if found is not None:
            parts.append(replace(found, level=None))
            levels.append(np.full(len(found), len(names)))
            names.append(str(level) if str(level) not in names else f"{level}, {level.hash[:8]}")
    if not parts:
        return None
    data = Dataset.concatenate(parts)
    query = select(StructureRow.id, StructureRow.walker_id).where(StructureRow.walker_id.is_not(None))
    walkers = {int(i): int(w) for i, w in session.execute(query) if w is not None}
    return StoredLabels(
        data=data,
        levels=np.concatenate(levels).astype(np.int64),
        level_names=tuple(names),
        walkers=np.array([walkers.get(int(i), -1) for i in data.ids], dtype=np.int64),
    )


def stored_files(session: Session) -> list[StoredFile]:
    """Shards and models with their hashes."""
    shards = session.execute(select(ShardRow.id, ShardRow.path, ShardRow.sha256).order_by(ShardRow.id))
    models = session.execute(
        select(ModelRow.id, ModelRow.path, ModelRow.sha256)
        .where(ModelRow.path.is_not(None), ModelRow.sha256.is_not(None))
        .order_by(ModelRow.id)
    )
    return [StoredFile(name=f"shard {i}", path=path, sha256=digest) for i, path, digest in shards] + [
        StoredFile(name=f"model:{i}", path=path or "", sha256=digest or "") for i, path, digest in models
    ]


def contradictions(session: Session) -> list[Contradiction]:
    """Rows that contradict each other, the transition tables, or themselves."""
    damaged = _damaged(session)
    if damaged:
        return damaged
    return [*_words(session), *_states(session), *_counts(session), *_trained(session)]


def _damaged(session: Session) -> list[Contradiction]:
    """What the database itself finds wrong with its pages and references, where it can say."""
    if session.get_bind().dialect.name != "sqlite":
        return []
    found = []
    try:
        said = [str(row[0]) for row in session.execute(text("PRAGMA quick_check(5)"))]
    except DatabaseError as error:
        said = [str(error.orig)]
    if said != ["ok"]:
        found.append(
            Contradiction(
                kind="damaged_store", table="store", count=len(said), ids=(), detail="; ".join(said)[:300]
            )
        )
        return found
    orphans = list(session.execute(text("PRAGMA foreign_key_check")))
    if orphans:
        tables = sorted({str(row[0]) for row in orphans})
        found.append(
            Contradiction(
                kind="dangling_references",
                table=tables[0],
                count=len(orphans),
                ids=tuple(int(row[1] or 0) for row in orphans[:SHOWN] if row[0] == tables[0]),
                detail=f"rows of {', '.join(tables)} refer to rows that are not there",
            )
        )
    return found


_WORDS: Final[tuple[tuple[InstrumentedAttribute[StrEnum], type[StrEnum], str], ...]] = (
    (StructureRow.state, StructureState, "structure"),
    (StructureRow.split, Split, "structure"),
    (TaskRow.state, TaskState, "task"),
    (AttemptRow.state, TaskState, "attempt"),
    (WalkerRow.state, WalkerState, "walker"),
    (EnsembleRow.state, EnsembleState, "ensemble"),
    (Campaign.state, CampaignState, "campaign"),
)


def _words(session: Session) -> Iterator[Contradiction]:
    """States that no transition table has."""
    for column, kind, table in _WORDS:
        word = type_coerce(column, String)
        known = {member.value for member in kind}
        counts = session.execute(select(word, func.count()).group_by(word))
        unknown = {str(w): int(n) for w, n in counts if w not in known}
        if unknown:
            ids = session.scalars(
                select(column.class_.id)
                .where(word.in_(list(unknown)))
                .order_by(column.class_.id)
                .limit(SHOWN)
            )
            yield Contradiction(
                kind="unknown_state",
                table=table,
                count=sum(unknown.values()),
                ids=tuple(ids),
                detail=f"{column.key} {', '.join(map(repr, unknown))} is not in the transition tables",
            )


def _states(session: Session) -> Iterator[Contradiction]:
    """States that do not go with what is there."""
    label = select(LabelRow.id).where(LabelRow.structure_id == StructureRow.id)
    rejection = select(RejectionRow.id).where(RejectionRow.structure_id == StructureRow.id)
    attempt = select(AttemptRow.id).where(AttemptRow.task_id == TaskRow.id)
    structure, task = StructureRow.id, TaskRow.id
    yield from _rows(
        session, structure, "structure", "labelled_without_label", "labelled, but no row holds the label",
        StructureRow.state == StructureState.LABELLED, ~label.exists(),
    )  # fmt: skip
    yield from _rows(
        session, structure, "structure", "label_of_unlabelled", "a label, but the structure is not labelled",
        StructureRow.state != StructureState.LABELLED,
        label.where(LabelRow.retracted.is_(None)).exists(),
    )  # fmt: skip
    yield from _rows(
        session, structure, "structure", "rejected_without_reason", "rejected, and nothing says why",
        StructureRow.state == StructureState.REJECTED, StructureRow.reason.is_(None), ~rejection.exists(),
    )  # fmt: skip
    yield from _rows(
        session, structure, "structure", "label_in_other_split", "the label is of another split",
        label.where(LabelRow.split != StructureRow.split).exists(),
    )  # fmt: skip
    yield from _rows(
        session, structure, "structure", "split_of_walker", "another split than the walker's",
        select(WalkerRow.id)
        .where(WalkerRow.id == StructureRow.walker_id, WalkerRow.split != StructureRow.split)
        .exists(),
    )  # fmt: skip
    yield from _rows(
        session, task, "task", "done_without_attempt", "done, but no attempt at it is",
        TaskRow.state == TaskState.DONE, ~attempt.where(AttemptRow.state == TaskState.DONE).exists(),
        attempt.exists(),
    )  # fmt: skip
    yield from _rows(
        session, task, "task", "dispatched_without_attempt", "dispatched, but no attempt is open",
        TaskRow.state == TaskState.DISPATCHED,
        ~attempt.where(AttemptRow.state == TaskState.DISPATCHED).exists(),
    )  # fmt: skip


def _rows(
    session: Session,
    column: InstrumentedAttribute[int],
    table: str,
    kind: str,
    detail: str,
    *conditions: ColumnElement[bool],
) -> Iterator[Contradiction]:
    ids = tuple(session.scalars(select(column).where(*conditions).order_by(column).limit(SHOWN)))
    if not ids:
        return
    count = len(ids)
    if count == SHOWN:
        count = session.scalar(select(func.count()).select_from(column.class_).where(*conditions)) or count
    yield Contradiction(kind=kind, table=table, count=count, ids=ids, detail=detail)


def _counts(session: Session) -> Iterator[Contradiction]:
    """Numbers that were written down against the rows that they count.

    A label may have been taken back since, so that each number has to lie between those of the labels
    that stand and of all.
    """
    for shard in session.scalars(select(ShardRow).order_by(ShardRow.id)):
        least, most = _labels(session, shard.level_of_theory_id, LEARNING, shard.first_seq, shard.last_seq)
        if not least <= shard.count <= most:
            yield Contradiction(
                kind="shard_count", table="shard", count=1, ids=(shard.id,),
                detail=f"{shard.path} is said to hold {shard.count} structures; there are {least} labels "
                f"from {shard.first_seq} to {shard.last_seq}",
            )  # fmt: skip
    for dataset in session.scalars(select(DatasetRow).order_by(DatasetRow.id)):
        for split, said in ((Split.TRAIN, dataset.n_train), (Split.VALIDATION, dataset.n_validation)):
            least, most = _labels(session, dataset.level_of_theory_id, (split,), 0, dataset.last_seq)
            if not least <= said <= most:
                yield Contradiction(
                    kind="dataset_count", table="dataset", count=1, ids=(dataset.id,),
                    detail=f"{said} {split} structures were counted; there are {least} labels up to "
                    f"{dataset.last_seq}",
                )  # fmt: skip


def _labels(
    session: Session, level_id: int, splits: Sequence[Split], first: int, last: int
) -> tuple[int, int]:
    """Labels that stand, and all labels, with commit numbers in a range."""
    query = select(func.count()).where(
        LabelRow.level_of_theory_id == level_id,
        LabelRow.split.in_(list(splits)),
        LabelRow.seq.between(first, last),
    )
    stand = session.scalar(query.where(LabelRow.retracted.is_(None))) or 0
    return stand, session.scalar(query) or 0


def _trained(session: Session) -> Iterator[Contradiction]:
    """Models whose weights learned from structures that are not for training."""
    query = (
        select(ModelRow.id, ModelRow.trained_on, DatasetRow.last_seq, DatasetRow.level_of_theory_id)
        .join(EnsembleRow, EnsembleRow.id == ModelRow.ensemble_id)
        .join(DatasetRow, DatasetRow.id == EnsembleRow.dataset_id)
        .where(ModelRow.trained_on.is_not(None))
        .order_by(ModelRow.id)
    )
    allowed: dict[tuple[int, int], frozenset[int]] = {}
    for model, blob, last, level_id in session.execute(query):
        if (last, level_id) not in allowed:
            allowed[last, level_id] = frozenset(
                session.scalars(
                    select(LabelRow.structure_id).where(
                        LabelRow.level_of_theory_id == level_id,
                        LabelRow.split == Split.TRAIN,
                        LabelRow.seq <= last,
                    )
                )
            )
        foreign = sorted(set(np.frombuffer(blob or b"", dtype="<i8").tolist()) - allowed[last, level_id])
        if foreign:
            yield Contradiction(
                kind="trained_on_others", table="model", count=1, ids=(model,),
                detail=f"learned from {len(foreign)} structures that are not of its training set, such as "
                f"structure {foreign[0]}",
            )  # fmt: skip

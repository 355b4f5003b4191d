"""Writing labels and rejections, and reading them as data sets."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from hpcal.core.dataset import Dataset
from hpcal.core.label import Label, LevelOfTheory, Rejection
from hpcal.core.structure import Structure
from hpcal.core.walker import Split
from hpcal.store.queries import LEARNING, last_commit
from hpcal.store.rows import label_of, label_row, level_of, structure_of
from hpcal.store.tables import LabelRow, LevelOfTheoryRow, RejectionRow, ShardRow, StructureRow


def add_label(
    session: Session,
    structure: StructureRow,
    label: Label,
    *,
    level_id: int,
    attempt_id: int | None,
    counted: bool = True,
) -> bool:
    """An accepted label; False if the structure already has one at this level (the first one wins).

    Args:
        counted: give it a commit number; labels of the fixed reference set have none.
    """
    if has_label(session, structure.id, level_id):
        return False
    seq = last_commit(session) + 1 if counted else None
    session.add(
        label_row(
            label,
            structure_id=structure.id,
            split=structure.split,
            level_id=level_id,
            seq=seq,
            attempt_id=attempt_id,
        )
    )
    session.flush()
    return True


def has_label(session: Session, structure_id: int, level_id: int) -> bool:
    """Whether a structure has a label at a level."""
    found = session.scalar(
        select(LabelRow.id).where(
            LabelRow.structure_id == structure_id, LabelRow.level_of_theory_id == level_id
        )
    )
    return found is not None


def add_rejection(
    session: Session, structure_id: int, rejection: Rejection, *, level_id: int, attempt_id: int | None
) -> None:
    """Why a structure has no label."""
    session.add(
        RejectionRow(
            structure_id=structure_id,
            level_of_theory_id=level_id,
            attempt_id=attempt_id,
            failure_class=rejection.failure_class,
            code=rejection.code,
            message=rejection.message,
            diagnostics=dict(rejection.diagnostics),
            qm_calls=rejection.qm_calls,
            created=time.time(),
        )
    )


def labelled(
    session: Session,
    level: LevelOfTheory,
    level_id: int,
    *,
    ids: Sequence[int] | None = None,
    after: int | None = None,
    up_to: int | None = None,
    splits: Sequence[Split] = tuple(Split),
) -> list[tuple[StructureRow, Structure, Label]]:
    """Labelled structures at a level, in the order of their commit numbers.

    Args:
        ids: only these structures.
        after: only labels with a higher commit number.
        up_to: only labels up to this commit number.
    """
    query = (
        select(StructureRow, LabelRow)
        .join(LabelRow, LabelRow.structure_id == StructureRow.id)
        .where(
            LabelRow.level_of_theory_id == level_id,
            LabelRow.retracted.is_(None),
            LabelRow.split.in_(splits),
        )
        .order_by(LabelRow.seq, LabelRow.id)
    )
    if ids is not None:
        query = query.where(StructureRow.id.in_(ids))
    if after is not None:
        query = query.where(LabelRow.seq > after)
    if up_to is not None:
        query = query.where(LabelRow.seq <= up_to)
    return [(row, structure_of(row), label_of(found, level)) for row, found in session.execute(query)]


def dataset_between(
    session: Session, level: LevelOfTheory, level_id: int, after: int, up_to: int
) -> Dataset | None:
    """Learning structures whose commit numbers lie in ``(after, up_to]``, or None without any."""
    found = labelled(session, level, level_id, after=after, up_to=up_to, splits=LEARNING)
    if not found:
        return None
    return Dataset.of(
        [structure for _, structure, _ in found],
        [label for _, _, label in found],
        ids=[row.id for row, _, _ in found],
        splits=[row.split for row, _, _ in found],
    )


def level_by_id(session: Session, level_id: int) -> LevelOfTheory:
    """A level of theory."""
    return level_of(session.get_one(LevelOfTheoryRow, level_id))


def shards(session: Session, level_id: int) -> list[ShardRow]:
    """All shards of a level, oldest first."""
    query = select(ShardRow).where(ShardRow.level_of_theory_id == level_id).order_by(ShardRow.first_seq)
    return list(session.scalars(query))


def attempt_of(session: Session, structure_id: int, level_id: int) -> int | None:
    """The attempt that labelled a structure."""
    return session.scalar(
        select(LabelRow.attempt_id).where(
            LabelRow.structure_id == structure_id, LabelRow.level_of_theory_id == level_id
        )
    )

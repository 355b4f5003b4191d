"""Writing labels and rejections, and reading them as data sets."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from sqlalchemy import func, select
from sqlalchemy.orm import InstrumentedAttribute

from hpcal.core.dataset import Dataset
from hpcal.core.label import Label, LevelOfTheory, Rejection
from hpcal.core.structure import Structure
from hpcal.core.walker import Split
from hpcal.store import bulk
from hpcal.store.bulk_read import read_dataset
from hpcal.store.queries import LEARNING, commit_numbers
from hpcal.store.rows import label_columns, label_of, level_of, structure_of
from hpcal.store.session import Session, ask
from hpcal.store.structures import PORTION, chunks
from hpcal.store.tables import LabelRow, LevelOfTheoryRow, RejectionRow, ShardRow, StructureRow

HELD: Final = "held back until its geometry has its other multiplicities"
"""Stands in ``label.retracted`` while it is open whether a label will be learned from."""


Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True, eq=False)
class NewLabel:
    """A label on its way into the store.

    Attributes:
        structure_id: the structure it belongs to.
        split: the split of that structure.
        attempt_id: the attempt that computed it, or None for one that was given.
    """

    structure_id: int
    split: Split
    label: Label
    attempt_id: int | None = None


def add_labels(
    session: Session, new: Sequence[NewLabel], *, level_id: int, counted: bool = True, held: bool = False
) -> list[bool]:
    """Adds accepted labels; False for a structure that already has one at this level (the first wins).

    Args:
        counted: give them commit numbers; labels of the fixed reference set have none.
        held: hold them back, without commit numbers, until :func:`accept` or :func:`take_back`.
    """
    taken = set(attempts_of(session, [n.structure_id for n in new], level_id))
    accepted: list[bool] = []
    fresh: list[NewLabel] = []
    for item in new:
        accepted.append(item.structure_id not in taken)
        if accepted[-1]:
            taken.add(item.structure_id)
            fresh.append(item)
    if not fresh:
        return accepted
    splits = [str(item.split) for item in fresh]
    numbered = counted and not held
    numbers = commit_numbers(session, splits) if numbered else {"seq": None, "split_seq": None}
    bulk.insert_columns(
        session,
        LabelRow,
        len(fresh),
        {
            **label_columns([item.label for item in fresh]),
            **numbers,
            "id": bulk.reserve_ids(session, LabelRow, len(fresh)),
            "structure_id": [item.structure_id for item in fresh],
            "level_of_theory_id": level_id,
            "attempt_id": [item.attempt_id for item in fresh],
            "split": splits,
            "created": time.time(),
            "retracted": HELD if held else None,
        },
    )
    return accepted


def held_back(session: Session, ids: Sequence[int], level_id: int) -> set[int]:
    """Those of some structures whose label at a level is held back."""
    return {
        found
        for part in chunks(ids)
        for found in session.scalars(
            select(LabelRow.structure_id).where(
                LabelRow.structure_id.in_(part),
                LabelRow.level_of_theory_id == level_id,
                LabelRow.retracted == HELD,
            )
        )
    }


def accepted_among(session: Session, ids: Sequence[int]) -> set[int]:
    """Those of some structures that have a label with a commit number."""
    return {
        found
        for part in chunks(ids)
        for found in session.scalars(
            select(LabelRow.structure_id).where(LabelRow.structure_id.in_(part), LabelRow.seq.is_not(None))
        )
    }


def energies_of(session: Session, ids: Sequence[int], level_id: int) -> dict[int, float]:
    """Energy, eV, of those of some structures that have a label at a level, whatever became of it."""
    return _values_of(session, ids, level_id, LabelRow.energy)


def accept(session: Session, structure_id: int, level_id: int) -> None:
    """Lets a label stand that was held back: it gets its commit numbers now."""
    row = _label_of(session, structure_id, level_id)
    numbers = commit_numbers(session, [str(row.split)])
    row.seq, row.split_seq, row.retracted = numbers["seq"][0], numbers["split_seq"][0], None
    session.flush()


_TAKEN_BACK: Final = (
    select(LabelRow.retracted).where(LabelRow.retracted.is_not(None), LabelRow.retracted != HELD).limit(1)
)


def taken_back(session: Session) -> str | None:
    """Why one of the labels that were turned away was, or None without any."""
    return ask(session, _TAKEN_BACK).scalar()


def take_back(session: Session, structure_id: int, level_id: int, reason: str) -> None:
    """Turns a label away that was held back; it stays recorded, without a commit number."""
    _label_of(session, structure_id, level_id).retracted = reason
    session.flush()


def _label_of(session: Session, structure_id: int, level_id: int) -> LabelRow:
    return session.scalars(
        select(LabelRow).where(LabelRow.structure_id == structure_id, LabelRow.level_of_theory_id == level_id)
    ).one()


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
        .order_by(LabelRow.seq.nulls_first(), LabelRow.id)
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
    found = read_dataset(session, level, level_id, splits=LEARNING, after=after, up_to=up_to)
    # A shard can be written again: it holds nothing that may change.
    return None if found is None else replace(found, origins=None, generations=None)


def origins_between(session: Session, level_id: int, after: int, up_to: int) -> list[tuple[Split, str, int]]:
    """Learning labels whose commit numbers lie in ``(after, up_to]``, counted by split and origin."""
    rows = session.execute(
        select(LabelRow.split, StructureRow.origin, func.count())
        .join(StructureRow, StructureRow.id == LabelRow.structure_id)
        .where(
            LabelRow.split.in_(LEARNING),
            LabelRow.seq > after,
            LabelRow.seq <= up_to,
            LabelRow.level_of_theory_id == level_id,
            LabelRow.retracted.is_(None),
        )
        .group_by(LabelRow.split, StructureRow.origin)
    )
    return [(split, origin, n) for split, origin, n in rows]


def level_by_id(session: Session, level_id: int) -> LevelOfTheory:
    """A level of theory."""
    return level_of(session.get_one(LevelOfTheoryRow, level_id))


def shards(session: Session, level_id: int) -> list[ShardRow]:
    """All shards of a level, oldest first."""
    query = select(ShardRow).where(ShardRow.level_of_theory_id == level_id).order_by(ShardRow.first_seq)
    return list(session.scalars(query))


def attempts_of(session: Session, ids: Sequence[int], level_id: int) -> dict[int, int | None]:
    """The attempt that labelled each of some structures, for those that have a label at a level."""
    return _values_of(session, ids, level_id, LabelRow.attempt_id)


def _values_of(
    session: Session, ids: Sequence[int], level_id: int, column: InstrumentedAttribute[Value]
) -> dict[int, Value]:
    """One column of the labels at a level of some structures, for those that have one."""
    return {
        structure_id: value
        for part in chunks(ids)
        for structure_id, value in ask(
            session,
            select(LabelRow.structure_id, column).where(
                LabelRow.structure_id.in_(part), LabelRow.level_of_theory_id == level_id
            ),
        )
    }


def hashes_at(session: Session, hashes: Sequence[str], level_id: int) -> set[str]:
    """Those of some content hashes whose structure has a label at a level."""
    return {
        found
        for start in range(0, len(hashes), PORTION)
        for found in session.scalars(
            select(StructureRow.hash)
            .join(LabelRow, LabelRow.structure_id == StructureRow.id)
            .where(
                StructureRow.hash.in_(hashes[start : start + PORTION]),
                LabelRow.level_of_theory_id == level_id,
            )
        )
    }


def attempt_of(session: Session, structure_id: int, level_id: int) -> int | None:
    """The attempt that labelled a structure."""
    return attempts_of(session, [structure_id], level_id).get(structure_id)

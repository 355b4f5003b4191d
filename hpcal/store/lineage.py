"""Read-only questions to the store about one row and what hangs on it.

Every function gives records: dictionaries of JSON values with the names of the columns, words as
plain strings, times in seconds since the epoch. Nothing here writes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from sqlalchemy import ColumnElement, Select, String, cast, func, select
from sqlalchemy.orm import Session

from hpcal.core import elements
from hpcal.store.rows import array, optional_array, structure_of
from hpcal.store.tables import (
    AttemptRow,
    Base,
    DatasetRow,
    EnsembleRow,
    EventRow,
    LabelRow,
    LevelOfTheoryRow,
    ModelRow,
    RejectionRow,
    ScoreRow,
    SegmentRow,
    SelectionRow,
    StructureRow,
    TaskRow,
    WalkerRow,
)

Record = dict[str, Any]

KINDS: Final[Mapping[str, type[Base]]] = {
    "structure": StructureRow,
    "walker": WalkerRow,
    "task": TaskRow,
    "dataset": DatasetRow,
    "ensemble": EnsembleRow,
    "model": ModelRow,
}
"""What can be traced."""
LISTED: Final = 1000
"""Most rows of one kind in a list; counts are always of all."""


def known_ids(session: Session, kind: str) -> tuple[int, int, int]:
    """Number of rows of a kind with the smallest and the largest id; zeros where there are none."""
    table: Any = KINDS[kind]
    number, low, high = session.execute(select(func.count(), func.min(table.id), func.max(table.id))).one()
    return int(number), int(low or 0), int(high or 0)


def structure(session: Session, structure_id: int) -> Record | None:
    """A structure with its geometry, Å, or None."""
    row = session.get(StructureRow, structure_id)
    if row is None:
        return None
    names = (
        "id", "state", "origin", "split", "generation", "reason", "formula", "n_atoms", "charge",
        "multiplicity", "hash", "created", "parent_id", "walker_id", "segment_id", "task_id", "step",
        "time_fs", "scored_generation",
    )  # fmt: skip
    value = structure_of(row)
    return record(row, *names) | {
        "symbols": [elements.symbol(int(z)) for z in value.numbers],
        "positions": value.positions.tolist(),
        "cell": None if value.cell is None else value.cell.tolist(),
        "pbc": list(value.pbc),
    }


def structures(session: Session, *where: ColumnElement[bool]) -> list[Record]:
    """Structures in short form."""
    names = ("id", "state", "origin", "split", "generation", "step", "time_fs", "reason")
    columns = [getattr(StructureRow, name) for name in names]
    rows = session.execute(select(*columns).where(*where).order_by(StructureRow.id).limit(LISTED))
    return [{name: _plain(v) for name, v in zip(names, row, strict=True)} for row in rows]


def short_structure(session: Session, structure_id: int | None) -> Record | None:
    """A structure in short form, or None."""
    found = structures(session, StructureRow.id == structure_id) if structure_id is not None else []
    return found[0] if found else None


def structures_of_walker(session: Session, walker_id: int) -> list[Record]:
    """Structures that a walker gave."""
    return structures(session, StructureRow.walker_id == walker_id)


def children(session: Session, structure_id: int) -> list[Record]:
    """Structures that were made from a seed or a minimum."""
    return structures(session, StructureRow.parent_id == structure_id)


def structures_of_task(session: Session, task_id: int) -> list[Record]:
    """Structures that a task made."""
    return structures(session, StructureRow.task_id == task_id)


def walker(session: Session, walker_id: int | None) -> Record | None:
    """A walker, or None."""
    row = session.get(WalkerRow, walker_id) if walker_id is not None else None
    names = (
        "id", "state", "sampler", "entry", "split", "structure_id", "temperature", "generation", "stream",
        "ensemble_id", "step", "steps_full", "frames_at", "created", "end_reason", "end_detail",
        "end_generation",
    )  # fmt: skip
    return None if row is None else _renamed(record(row, *names), structure_id="seed_structure_id")


def segment(session: Session, segment_id: int | None) -> Record | None:
    """A segment, or None."""
    found = _segments(session, SegmentRow.id == segment_id)
    return found[0] if found else None


def segments_of_walker(session: Session, walker_id: int) -> list[Record]:
    """What the tasks did with a walker, in order."""
    return _segments(session, SegmentRow.walker_id == walker_id)


def segments_of_task(session: Session, task_id: int) -> list[Record]:
    """What a task did with its walkers."""
    return _segments(session, AttemptRow.task_id == task_id)


def scores(session: Session, structure_id: int) -> list[Record]:
    """Scores of a structure in order, each with the generation of its ensemble."""
    names = (
        "id", "ensemble_id", "task_id", "purpose", "metric", "value", "threshold", "energy_std",
        "force_std", "energy", "energy_error", "committee_error", "force_mae", "force_rmse",
    )  # fmt: skip
    rows = session.execute(
        select(ScoreRow, EnsembleRow.generation)
        .join(EnsembleRow, EnsembleRow.id == ScoreRow.ensemble_id)
        .where(ScoreRow.structure_id == structure_id)
        .order_by(ScoreRow.id)
    )
    return [
        record(row, *names)
        | {
            "generation": generation,
            "above_threshold": None if row.threshold is None else row.value > row.threshold,
        }
        for row, generation in rows
    ]


def selections(session: Session, structure_id: int) -> list[Record]:
    """Decisions on a structure, in order."""
    names = (
        "id", "decision", "rule", "reason", "value", "threshold", "rank", "distance", "competitors",
        "ensemble_id", "task_id",
    )  # fmt: skip
    rows = session.scalars(
        select(SelectionRow).where(SelectionRow.structure_id == structure_id).order_by(SelectionRow.id)
    )
    return [record(row, *names) for row in rows]


def task(session: Session, task_id: int | None, *, inputs: bool = False) -> Record | None:
    """A task, with its frozen inputs if asked for, or None."""
    row = session.get(TaskRow, task_id) if task_id is not None else None
    names = (
        "id", "kind", "pool", "state", "units", "created", "finished", "seconds", "failures", "losses",
        "failure_class", "error",
    )  # fmt: skip
    if row is None:
        return None
    return record(row, *names) | ({"inputs": row.inputs} if inputs else {})


def attempts(session: Session, task_id: int) -> list[Record]:
    """Attempts at a task, in order."""
    return _attempts(session, AttemptRow.task_id == task_id)


def label_attempts(session: Session, structure_id: int) -> list[Record]:
    """Attempts at every labelling task that held a structure, those lost or failed included."""
    held = _label_tasks(session, structure_id)
    for row in (LabelRow, RejectionRow):
        held |= set(
            session.scalars(
                select(AttemptRow.task_id)
                .join(row, row.attempt_id == AttemptRow.id)
                .where(row.structure_id == structure_id)
            )
        )
    return _attempts(session, AttemptRow.task_id.in_(held))


def labels(session: Session, structure_id: int) -> list[Record]:
    """Labels of a structure with their levels of theory; the campaign's own first."""
    names = (
        "id", "seq", "structure_id", "split", "energy", "charge_scheme", "diagnostics", "qm_calls",
        "attempt_id", "created", "retracted", "level_of_theory_id",
    )  # fmt: skip
    rows = session.execute(
        select(LabelRow, LevelOfTheoryRow)
        .join(LevelOfTheoryRow, LevelOfTheoryRow.id == LabelRow.level_of_theory_id)
        .where(LabelRow.structure_id == structure_id)
        .order_by(LabelRow.seq.is_(None), LabelRow.id)
    )
    return [
        record(row, *names) | _forces(row) | {"level": level.record, "level_hash": level.hash}
        for row, level in rows
    ]


def rejections(session: Session, structure_id: int) -> list[Record]:
    """Why labelers turned a structure away, in order."""
    names = (
        "id", "failure_class", "code", "message", "diagnostics", "qm_calls", "attempt_id", "created",
        "level_of_theory_id",
    )  # fmt: skip
    rows = session.scalars(
        select(RejectionRow).where(RejectionRow.structure_id == structure_id).order_by(RejectionRow.id)
    )
    return [record(row, *names) for row in rows]


def events(session: Session, *, structure_id: int | None = None, task_id: int | None = None) -> list[Record]:
    """Events of a structure or a task, in order."""
    column = EventRow.task_id == task_id if structure_id is None else EventRow.structure_id == structure_id
    rows = session.scalars(select(EventRow).where(column).order_by(EventRow.id).limit(LISTED))
    return [record(row, "id", "time", "kind", "message", "data", "task_id", "structure_id") for row in rows]


def block_end(session: Session, *, pool: str, block: str, epoch: int) -> str | None:
    """How the batch job of a block ended, as the scheduler said; None if that was not heard."""
    rows = session.scalars(
        select(EventRow).where(EventRow.kind == "block_ended", EventRow.epoch == epoch).order_by(EventRow.id)
    )
    named = (row.message for row in rows if (row.data["pool"], row.data["block"]) == (pool, block))
    return next(named, None)


def products(session: Session, task_id: int) -> dict[str, Any]:
    """What a task gave: labelled and rejected structures, and scores and decisions counted."""
    own = select(AttemptRow.id).where(AttemptRow.task_id == task_id)
    labelled = session.scalars(
        select(LabelRow.structure_id).where(LabelRow.attempt_id.in_(own)).order_by(LabelRow.id).limit(LISTED)
    )
    turned_away = session.execute(
        select(RejectionRow.structure_id, RejectionRow.code)
        .where(RejectionRow.attempt_id.in_(own))
        .order_by(RejectionRow.id)
        .limit(LISTED)
    )
    return {
        "labelled": list(labelled),
        "rejected": [{"structure_id": i, "code": code} for i, code in turned_away],
        "scores": by_word(session, select(ScoreRow.purpose, func.count()).where(ScoreRow.task_id == task_id)),
        "selection": by_word(
            session, select(SelectionRow.decision, func.count()).where(SelectionRow.task_id == task_id)
        ),
    }


def record(row: Base, *names: str) -> Record:
    """Columns of a row by name."""
    return {name: _plain(getattr(row, name)) for name in names}


def by_word(session: Session, query: Select[*tuple[Any, ...]]) -> dict[str, int]:
    """Rows counted by the first column of a query; the last one counts."""
    column = next(iter(query.selected_columns))
    return {str(word): int(n) for word, n in session.execute(query.group_by(column).order_by(column))}


def _label_tasks(session: Session, structure_id: int) -> set[int]:
    """Labelling tasks whose frozen inputs name a structure."""
    # The text narrows the search inside the database; the list itself decides.
    rows = session.execute(
        select(TaskRow.id, TaskRow.inputs).where(
            TaskRow.kind == "label", cast(TaskRow.inputs, String).like(f"%{structure_id}%")
        )
    )
    return {task_id for task_id, inputs in rows if structure_id in inputs.get("structure_ids", ())}


def _attempts(session: Session, where: ColumnElement[bool]) -> list[Record]:
    names = (
        "id", "task_id", "number", "state", "executor", "epoch", "block", "host", "pid", "dispatched",
        "start", "end", "exit_reason", "qm_calls", "log",
    )  # fmt: skip
    rows = session.scalars(select(AttemptRow).where(where).order_by(AttemptRow.id))
    return [
        record(row, *names)
        | {"seconds": None if row.start is None or row.end is None else row.end - row.start}
        for row in rows
    ]


def _segments(session: Session, where: ColumnElement[bool]) -> list[Record]:
    names = (
        "id", "walker_id", "attempt_id", "ensemble_id", "start_step", "end_step", "end_reason", "detail",
        "max_trigger", "bias_ratio",
    )  # fmt: skip
    rows = session.execute(
        select(SegmentRow, AttemptRow.task_id, EnsembleRow.generation)
        .join(AttemptRow, AttemptRow.id == SegmentRow.attempt_id)
        .join(EnsembleRow, EnsembleRow.id == SegmentRow.ensemble_id)
        .where(where)
        .order_by(SegmentRow.id)
        .limit(LISTED)
    )
    return [
        record(row, *names) | {"task_id": task_id, "generation": generation}
        for row, task_id, generation in rows
    ]


def _forces(row: LabelRow) -> Record:
    """What a label holds besides its energy, in short."""
    forces = optional_array(row.forces, (-1, 3))
    return {
        "max_force": None if forces is None else float(np.linalg.norm(forces, axis=1).max()),
        "has_stress": row.stress is not None,
        "dipole": None if row.dipole is None else array(row.dipole).tolist(),
    }


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, str) else value


def _renamed(values: Record, **names: str) -> Record:
    return {names.get(key, key): value for key, value in values.items()}

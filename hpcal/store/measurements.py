"""Read-only questions to the store whose answer is many numbers: evaluations and attempts as arrays.

Nothing here writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from hpcal.core.arrays import AnyArray, BoolArray, FloatArray, IntArray
from hpcal.core.walker import Split
from hpcal.store.tables import AttemptRow, EnsembleRow, LabelRow, ScoreRow, StructureRow, TaskRow


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluations:
    """Scores of labelled structures, one row for each ensemble and structure; n rows.

    Attributes:
        structure_id: (n,).
        ensemble_id: (n,).
        split: (n,) strings.
        family: (n,) the walker it comes from, or minus the structure's id where there is none.
        n_atoms: (n,).
        formula: (n,) Hill formulas.
        value: (n,) uncertainty in the unit of the campaign's metric.
        energy_std: (n,) eV per square root of the number of atoms.
        force_std: (n,) eV/Å.
        label_energy: (n,) eV.
        energy_error: (n,) predicted less labelled, eV; NaN where unknown.
        committee_error: (n,) largest error of a member per square root of the number of atoms, eV;
            NaN where unknown.
        force_mae: (n,) over the components of a structure, eV/Å; NaN where a label has no forces.
        force_rmse: (n,) likewise.
    """

    structure_id: IntArray
    ensemble_id: IntArray
    split: AnyArray
    family: IntArray
    n_atoms: IntArray
    formula: AnyArray
    value: FloatArray
    energy_std: FloatArray
    force_std: FloatArray
    label_energy: FloatArray
    energy_error: FloatArray
    committee_error: FloatArray
    force_mae: FloatArray
    force_rmse: FloatArray

    def __len__(self) -> int:
        return len(self.structure_id)

    def where(self, mask: BoolArray) -> Evaluations:
        """The rows under a (n,) mask."""
        return Evaluations(**{f.name: getattr(self, f.name)[mask] for f in fields(self)})

    def of(self, ensemble_id: int | None, *splits: Split) -> Evaluations:
        """The rows of one ensemble on structures of the given splits."""
        return self.where((self.ensemble_id == ensemble_id) & np.isin(self.split, [str(s) for s in splits]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Attempts:
    """All attempts, in the order of their rows; n rows, times in seconds since the epoch.

    Attributes:
        executor: (n,) name of the pool.
        kind: (n,) kind of the task.
        state: (n,) strings.
        epoch: (n,) of the controller that sent it.
        dispatched: (n,).
        start: (n,) NaN where it has not started, or never told.
        end: (n,) NaN where it has not ended, or never told.
        qm_calls: (n,).
    """

    executor: AnyArray
    kind: AnyArray
    state: AnyArray
    epoch: IntArray
    dispatched: FloatArray
    start: FloatArray
    end: FloatArray
    qm_calls: IntArray

    def __len__(self) -> int:
        return len(self.epoch)

    @property
    def seconds(self) -> FloatArray:
        """(n,) wall time; 0 where start or end is unknown."""
        return np.nan_to_num(self.end - self.start, nan=0.0)


def evaluations(session: Session, splits: Sequence[Split], *, ensemble_id: int | None = None) -> Evaluations:
    """What every ensemble, or one of them, made of the labelled structures of some splits.

    Of several scores of one structure under one ensemble the latest counts.
    """
    known = session.execute(
        select(
            StructureRow.id,
            StructureRow.n_atoms,
            StructureRow.walker_id,
            StructureRow.formula,
            LabelRow.split,
            LabelRow.energy,
        )
        .join(LabelRow, LabelRow.structure_id == StructureRow.id)
        .where(LabelRow.split.in_(list(splits)), LabelRow.retracted.is_(None))
        .order_by(StructureRow.id, LabelRow.id)
    ).all()
    labelled = {row[0]: row for row in known}
    every = session.scalars(select(EnsembleRow.id)).all()
    scored = session.execute(
        select(
            ScoreRow.ensemble_id,
            ScoreRow.structure_id,
            ScoreRow.value,
            ScoreRow.energy_std,
            ScoreRow.force_std,
            ScoreRow.energy_error,
            ScoreRow.committee_error,
            ScoreRow.force_mae,
            ScoreRow.force_rmse,
        )
        .where(
            ScoreRow.ensemble_id.in_(every if ensemble_id is None else [ensemble_id]),
            ScoreRow.purpose == "evaluate",
        )
        .order_by(ScoreRow.id)
    )
    latest = {(row[0], row[1]): row for row in scored if row[1] in labelled}
    rows = [latest[key] for key in sorted(latest)]
    structures = [labelled[row[1]] for row in rows]
    scores = [_floats(row[i] for row in rows) for i in range(2, 9)]
    return Evaluations(
        ensemble_id=np.array([row[0] for row in rows], dtype=np.int64),
        structure_id=np.array([row[1] for row in rows], dtype=np.int64),
        n_atoms=np.array([s[1] for s in structures], dtype=np.int64),
        family=np.array([-s[0] if s[2] is None else s[2] for s in structures], dtype=np.int64),
        formula=np.array([s[3] for s in structures], dtype=str),
        split=np.array([str(s[4]) for s in structures], dtype=str),
        label_energy=_floats(s[5] for s in structures),
        value=scores[0],
        energy_std=scores[1],
        force_std=scores[2],
        energy_error=scores[3],
        committee_error=scores[4],
        force_mae=scores[5],
        force_rmse=scores[6],
    )


def attempts(session: Session) -> Attempts:
    """All attempts with the kind of their task."""
    rows = session.execute(
        select(
            AttemptRow.executor,
            TaskRow.kind,
            AttemptRow.state,
            AttemptRow.epoch,
            AttemptRow.dispatched,
            AttemptRow.start,
            AttemptRow.end,
            AttemptRow.qm_calls,
        )
        .join(TaskRow, TaskRow.id == AttemptRow.task_id)
        .order_by(AttemptRow.id)
    ).all()
    columns = list(zip(*rows, strict=True)) or [()] * 8
    return Attempts(
        executor=np.array(columns[0], dtype=str),
        kind=np.array(columns[1], dtype=str),
        state=np.array([str(s) for s in columns[2]], dtype=str),
        epoch=np.array(columns[3], dtype=np.int64),
        dispatched=_floats(columns[4]),
        start=_floats(columns[5]),
        end=_floats(columns[6]),
        qm_calls=np.array(columns[7], dtype=np.int64),
    )


def label_times(session: Session) -> FloatArray:
    """(n,) when the accepted labels were made, in the order of their commit numbers."""
    rows = session.scalars(select(LabelRow.created).where(LabelRow.seq.is_not(None)).order_by(LabelRow.seq))
    return np.array(rows.all(), dtype=np.float64)


def _floats(values: Iterable[Any]) -> FloatArray:
    return np.array([np.nan if v is None else v for v in values], dtype=np.float64)

"""Read-only questions to the store whose answer is many numbers: evaluations and attempts as arrays.

Nothing here writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from sqlalchemy import Double, String, bindparam, case, cast, func, select, type_coerce

from hpcal.core.arrays import AnyArray, BoolArray, FloatArray, IntArray
from hpcal.core.walker import Split
from hpcal.store.queries import EVALUATION, last_commit
from hpcal.store.session import Session, ask
from hpcal.store.structures import chunks
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
class FamilyErrors:
    """Errors of ensembles summed over the evaluated frames of one family; f families.

    Attributes:
        ensemble_id: (f,).
        split: (f,) strings.
        count: (f,) structures.
        energies: (f,) structures with an energy error e_i.
        energy_abs: (f,) Σ |e_i| / N_i, eV/atom.
        energy_sq: (f,) Σ (e_i / N_i)², (eV/atom)².
        atoms: (f,) Σ N_i over structures with forces.
        force_abs: (f,) Σ N_i MAE_i, eV/Å.
        force_sq: (f,) Σ N_i RMSE_i², (eV/Å)².
    """

    ensemble_id: IntArray
    split: AnyArray
    count: IntArray
    energies: IntArray
    energy_abs: FloatArray
    energy_sq: FloatArray
    atoms: FloatArray
    force_abs: FloatArray
    force_sq: FloatArray

    def of(self, ensemble_id: int | None, *splits: Split) -> FamilyErrors:
        """The families of one ensemble and the given splits."""
        mask = (self.ensemble_id == ensemble_id) & np.isin(self.split, [str(s) for s in splits])
        return FamilyErrors(**{f.name: getattr(self, f.name)[mask] for f in fields(self)})

    @classmethod
    def summed(cls, found: Evaluations) -> FamilyErrors:
        """The sums of single evaluations."""
        groups: dict[tuple[int, str, int], list[int]] = {}
        for i, key in enumerate(
            zip(found.ensemble_id.tolist(), found.split.tolist(), found.family.tolist(), strict=True)
        ):
            groups.setdefault(key, []).append(i)
        members = [np.array(rows) for rows in groups.values()]
        per_atom = found.energy_error / found.n_atoms
        forces = np.isfinite(found.force_rmse) & np.isfinite(found.force_mae)
        atoms = np.where(forces, found.n_atoms, 0.0)

        def total(values: FloatArray) -> FloatArray:
            return np.array([np.nansum(values[rows]) for rows in members], dtype=np.float64)

        return cls(
            ensemble_id=np.array([key[0] for key in groups], dtype=np.int64),
            split=np.array([key[1] for key in groups], dtype=str),
            count=np.array([len(rows) for rows in members], dtype=np.int64),
            energies=total(np.isfinite(per_atom).astype(np.float64)).astype(np.int64),
            energy_abs=total(np.abs(per_atom)),
            energy_sq=total(per_atom**2),
            atoms=total(atoms),
            force_abs=total(atoms * np.where(forces, found.force_mae, 0.0)),
            force_sq=total(atoms * np.where(forces, found.force_rmse, 0.0) ** 2),
        )


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


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelSeconds:
    """What labels took; n labels.

    Attributes:
        formula: (n,) Hill formulas.
        seconds: (n,) wall time, checks included.
        basis_functions: (n,) NaN where the label does not say.
    """

    formula: Sequence[str]
    seconds: FloatArray
    basis_functions: FloatArray

    def __len__(self) -> int:
        return len(self.seconds)


_SECONDS, _FUNCTIONS = (LabelRow.diagnostics[key].as_float() for key in ("seconds", "basis_functions"))
_LABEL_SECONDS: Final = (
    select(StructureRow.formula, _SECONDS, _FUNCTIONS)
    .join(StructureRow, StructureRow.id == LabelRow.structure_id)
    .where(
        LabelRow.seq > bindparam("after"),
        LabelRow.level_of_theory_id == bindparam("level_id"),
        LabelRow.attempt_id.is_not(None),
    )
    .order_by(LabelRow.seq)
)


def label_seconds(session: Session, level_id: int, *, last: int = 200) -> LabelSeconds:
    """What those of the newest labels took that were calculated here at a level.

    Args:
        last: how many are looked at, whoever made them; the cost does not grow with the history.
    """
    after = last_commit(session) - last
    rows = ask(session, _LABEL_SECONDS, {"after": after, "level_id": level_id}).all()
    formula, taken, size = _columns([row for row in rows if row[1] is not None and row[1] > 0], 3)
    return LabelSeconds(
        formula=tuple(formula),
        seconds=np.array(taken, dtype=np.float64),
        basis_functions=np.array(size, dtype=np.float64),
    )


_FORMULAS: Final = select(StructureRow.id, StructureRow.formula).where(
    StructureRow.id.in_(bindparam("ids", expanding=True))
)


def formulas(session: Session, ids: Sequence[int]) -> dict[int, str]:
    """Hill formulas of structures."""
    found: dict[int, str] = {}
    for part in chunks(ids):
        found |= dict(ask(session, _FORMULAS, {"ids": part}).all())
    return found


def family_errors(
    session: Session, splits: Sequence[Split], *, ensemble_id: int | None = None
) -> FamilyErrors:
    """Errors of every ensemble, or of one, summed by family; read from one index."""
    n = cast(ScoreRow.n_atoms, Double)
    per_atom = ScoreRow.energy_error / n
    with_forces = case((ScoreRow.force_rmse.is_not(None), n))
    taken_back = select(LabelRow.structure_id).where(LabelRow.retracted.is_not(None))
    wanted = session.scalars(select(EnsembleRow.id)).all() if ensemble_id is None else [ensemble_id]
    rows = session.execute(
        select(
            ScoreRow.ensemble_id,
            type_coerce(ScoreRow.split, String),
            func.count(),
            func.count(ScoreRow.energy_error),
            func.sum(func.abs(per_atom)),
            func.sum(per_atom * per_atom),
            func.sum(with_forces),
            func.sum(n * ScoreRow.force_mae),
            func.sum(n * ScoreRow.force_rmse * ScoreRow.force_rmse),
        )
        .where(
            ScoreRow.ensemble_id.in_(wanted),
            EVALUATION,
            ScoreRow.split.in_(list(splits)),
            ScoreRow.structure_id.not_in(taken_back),
        )
        .group_by(ScoreRow.ensemble_id, ScoreRow.split, ScoreRow.family)
        .order_by(ScoreRow.ensemble_id, ScoreRow.split, ScoreRow.family)
    ).all()
    ensemble, split, count, energies, *sums = _columns(rows, 9)
    energy_abs, energy_sq, atoms, force_abs, force_sq = (
        np.nan_to_num(np.array(column, dtype=np.float64)) for column in sums
    )
    return FamilyErrors(
        ensemble_id=np.array(ensemble, dtype=np.int64),
        split=np.array(split, dtype=str),
        count=np.array(count, dtype=np.int64),
        energies=np.array(energies, dtype=np.int64),
        energy_abs=energy_abs,
        energy_sq=energy_sq,
        atoms=atoms,
        force_abs=force_abs,
        force_sq=force_sq,
    )


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
            type_coerce(LabelRow.split, String),
            LabelRow.energy,
        )
        .join(LabelRow, LabelRow.structure_id == StructureRow.id)
        .where(LabelRow.split.in_(list(splits)), LabelRow.retracted.is_(None))
        .order_by(StructureRow.id, LabelRow.id)
    ).all()
    labelled = {row[0]: row for row in known}
    ids, atoms, family, formula, split, energy = _columns(labelled.values(), 6)
    scores = _latest_scores(session, splits, ensemble_id)
    structure_id = scores[1].astype(np.int64)
    place = np.searchsorted(np.array(ids, dtype=np.int64), structure_id)
    there = np.isin(structure_id, np.array(ids, dtype=np.int64))
    place, scores = place[there], scores[:, there]
    walkers = [-i if f is None else f for i, f in zip(ids, family, strict=True)]
    return Evaluations(
        ensemble_id=scores[0].astype(np.int64),
        structure_id=scores[1].astype(np.int64),
        n_atoms=np.array(atoms, dtype=np.int64)[place],
        family=np.array(walkers, dtype=np.int64)[place],
        formula=np.array(formula, dtype=str)[place],
        split=np.array(split, dtype=str)[place],
        label_energy=np.array(energy, dtype=np.float64)[place],
        value=scores[2],
        energy_std=scores[3],
        force_std=scores[4],
        energy_error=scores[5],
        committee_error=scores[6],
        force_mae=scores[7],
        force_rmse=scores[8],
    )


def _latest_scores(session: Session, splits: Sequence[Split], ensemble_id: int | None) -> FloatArray:
    """(9, n) evaluations by ensemble and structure, the latest of each; NaN for what is unknown."""
    labelled = select(LabelRow.structure_id).where(LabelRow.split.in_(list(splits)))
    # Naming the ensembles lets the index on (ensemble, purpose) answer.
    wanted = session.scalars(select(EnsembleRow.id)).all() if ensemble_id is None else [ensemble_id]
    rows = session.execute(
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
            ScoreRow.ensemble_id.in_(wanted),
            ScoreRow.purpose == "evaluate",
            ScoreRow.structure_id.in_(labelled),
        )
        .order_by(ScoreRow.ensemble_id, ScoreRow.purpose, ScoreRow.id)
    )
    table: FloatArray = np.array([np.array(c, dtype=np.float64) for c in _columns(rows, 9)])
    order = np.lexsort((np.arange(table.shape[1]), table[1], table[0]))
    table = table[:, order]
    if not table.shape[1]:
        return table
    last = np.append((np.diff(table[:2], axis=1) != 0).any(axis=0), True)
    latest: FloatArray = table[:, last]
    return latest


def attempts(session: Session) -> Attempts:
    """All attempts with the kind of their task."""
    # Tens of thousands of rows: as the driver gives them, without a Python object for each.
    table, task = AttemptRow.__table__.c, TaskRow.__table__.c
    found = session.connection().execute(
        select(
            table.executor,
            task.kind,
            type_coerce(table.state, String),
            table.epoch,
            table.dispatched,
            table.start,
            table.end,
            table.qm_calls,
        )
        .join(TaskRow.__table__, task.id == table.task_id)
        .order_by(table.id)
    )
    rows = found.cursor.fetchall()
    found.close()
    executor, kind, state, epoch, dispatched, start, end, qm_calls = _columns(rows, 8)
    return Attempts(
        executor=np.array(executor, dtype=str),
        kind=np.array(kind, dtype=str),
        state=np.array(state, dtype=str),
        epoch=np.array(epoch, dtype=np.int64),
        dispatched=np.array(dispatched, dtype=np.float64),
        start=np.array(start, dtype=np.float64),
        end=np.array(end, dtype=np.float64),
        qm_calls=np.array(qm_calls, dtype=np.int64),
    )


def _columns(rows: Iterable[Any], width: int) -> list[Sequence[Any]]:
    """Rows as columns; as many empty ones without rows."""
    return list(zip(*rows, strict=True)) or [()] * width

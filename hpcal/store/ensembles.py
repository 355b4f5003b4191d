"""Writing data sets, shards, ensembles and their members."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import bindparam, func, select

from hpcal.core.ensemble import EnsembleManifest, MemberFile
from hpcal.core.protocols import MemberResult, MemberSpec
from hpcal.core.walker import Split
from hpcal.store import transitions
from hpcal.store.error_summary import error_summary
from hpcal.store.labels import origins_between
from hpcal.store.measurements import family_errors
from hpcal.store.rows import blob
from hpcal.store.session import Session, ask
from hpcal.store.tables import DatasetRow, EnsembleRow, ModelRow, ShardRow, TaskRow
from hpcal.store.transitions import OUTSTANDING, EnsembleState

SUMMED: Final = (Split.TEST, Split.REFERENCE)
"""Groups on which errors of ensembles are reported."""


def add_shard(
    session: Session, *, path: str, sha256: str, first_seq: int, last_seq: int, count: int, level_id: int
) -> ShardRow:
    """An immutable file of labelled structures."""
    row = ShardRow(
        path=path,
        sha256=sha256,
        first_seq=first_seq,
        last_seq=last_seq,
        count=count,
        level_of_theory_id=level_id,
    )
    session.add(row)
    session.flush()
    return row


def add_dataset(
    session: Session, *, generation: int, level_id: int, last_seq: int, n_train: int, n_validation: int
) -> DatasetRow:
    """A data set, by its rule."""
    row = DatasetRow(
        origins=_origins(session, level_id, last_seq),
        generation=generation,
        level_of_theory_id=level_id,
        last_seq=last_seq,
        n_train=n_train,
        n_validation=n_validation,
        created=time.time(),
    )
    session.add(row)
    session.flush()
    return row


def _origins(session: Session, level_id: int, last_seq: int) -> dict[str, dict[str, int]]:
    """Structures of a new data set by split and origin: those of the last one, and what came since."""
    last = session.scalars(
        select(DatasetRow)
        .where(DatasetRow.level_of_theory_id == level_id, DatasetRow.origins.is_not(None))
        .order_by(DatasetRow.id.desc())
        .limit(1)
    ).first()
    known = {} if last is None or last.origins is None else last.origins
    after = 0 if last is None else last.last_seq
    counts = {split: dict(origins) for split, origins in known.items()}
    for split, origin, n in origins_between(session, level_id, after, last_seq):
        group = counts.setdefault(str(split), {})
        group[origin] = group.get(origin, 0) + n
    return counts


def add_ensemble(
    session: Session,
    *,
    generation: int,
    revision: int,
    kind: str,
    dataset_id: int,
    predecessor_id: int | None,
    metric: str,
    members: Sequence[MemberSpec],
) -> EnsembleRow:
    """An ensemble in training, with a row for each member."""
    row = EnsembleRow(
        generation=generation,
        revision=revision,
        state=EnsembleState.TRAINING,
        kind=kind,
        dataset_id=dataset_id,
        predecessor_id=predecessor_id,
        metric=metric,
        created=time.time(),
    )
    session.add(row)
    session.flush()
    session.add_all(
        ModelRow(ensemble_id=row.id, member=spec.index, seed=spec.seed, metrics={}) for spec in members
    )
    session.flush()
    return row


def add_member(session: Session, ensemble_id: int, result: MemberResult, *, task_id: int) -> None:
    """A trained member."""
    row = session.scalars(
        select(ModelRow).where(ModelRow.ensemble_id == ensemble_id, ModelRow.member == result.index)
    ).one()
    row.path, row.sha256 = result.path, result.sha256
    row.metrics = dict(result.metrics)
    row.task_id = task_id
    row.trained_on = blob(list(result.trained_on), "<i8") if result.trained_on else None


def assign(session: Session, ensemble_id: int, members: Iterable[int], task_id: int) -> None:
    """Names the task that trains some members."""
    chosen = set(members)
    for row in members_of(session, ensemble_id):
        if row.member in chosen:
            row.task_id = task_id


def mark_missing(session: Session, ensemble_id: int, members: Iterable[int], why: str) -> None:
    """Says why an ensemble goes on without some members, as far as they are not there after all."""
    chosen = set(members)
    for row in members_of(session, ensemble_id):
        if row.member in chosen and row.path is None:
            row.missing = why
    session.flush()


def in_training(session: Session) -> list[EnsembleRow]:
    """Ensembles of which members are still to come."""
    found = select(EnsembleRow).where(EnsembleRow.state == EnsembleState.TRAINING).order_by(EnsembleRow.id)
    return list(session.scalars(found))


def outstanding_trainings(session: Session, ensemble_id: int) -> list[TaskRow]:
    """Tasks that train members of an ensemble for the first time and have not come to their end."""
    ids = {row.task_id for row in members_of(session, ensemble_id)}
    found = [session.get_one(TaskRow, i) for i in sorted(i for i in ids if i is not None)]
    return [task for task in found if task.state in OUTSTANDING]


def starts(session: Session, ensemble: EnsembleRow, indices: Iterable[int]) -> dict[int, ModelRow]:
    """The earlier member that each member of an ensemble goes on from; none for one that begins anew.

    Member k goes on from the newest member k along the line of predecessors, so that lines of
    descent stay apart. Where that line never had one, it is the nearest member of the newest
    predecessor, the lower one of two. Ensembles that were given up are passed over: their files
    may be damaged.
    """
    wanted, found = list(indices), dict[int, ModelRow]()
    nearest: list[ModelRow] = []
    before = _predecessor(session, ensemble)
    while before is not None and len(found) < len(wanted):
        if before.state is not EnsembleState.FAILED:
            there = [row for row in members_of(session, before.id) if row.path is not None]
            nearest = nearest or there
            known = {row.member: row for row in there}
            found |= {k: known[k] for k in wanted if k in known and k not in found}
        before = _predecessor(session, before)
    for k in wanted:
        if k not in found and nearest:
            found[k] = min(nearest, key=lambda row: (abs(row.member - k), row.member))
    return found


def _predecessor(session: Session, ensemble: EnsembleRow) -> EnsembleRow | None:
    return None if ensemble.predecessor_id is None else get(session, ensemble.predecessor_id)


_SUMMARIES: Final = select(EnsembleRow.errors).where(EnsembleRow.id == bindparam("ensemble_id"))


def summaries(session: Session, ensemble_id: int) -> dict[str, dict[str, Any]]:
    """Error summaries of an ensemble by group, as they were summed up last."""
    return ask(session, _SUMMARIES, {"ensemble_id": ensemble_id}).scalar_one() or {}


def sum_errors(session: Session, ids: Iterable[int]) -> None:
    """Sums up the evaluations of ensembles anew, after some more have been recorded."""
    for ensemble_id in sorted(ids):
        get(session, ensemble_id).errors = errors_of(session, ensemble_id)


def errors_of(session: Session, ensemble_id: int) -> dict[str, dict[str, Any]]:
    """Error summary of an ensemble on each group, from its evaluations."""
    found = family_errors(session, SUMMED, ensemble_id=ensemble_id)
    return {str(split): error_summary(found.of(ensemble_id, split)) for split in SUMMED}


def members_of(session: Session, ensemble_id: int) -> list[ModelRow]:
    """Members in the order of their index."""
    query = select(ModelRow).where(ModelRow.ensemble_id == ensemble_id).order_by(ModelRow.member)
    return list(session.scalars(query))


def manifest_of(session: Session, ensemble: EnsembleRow, folder: str) -> EnsembleManifest:
    """The manifest of an ensemble whose members are trained.

    Args:
        folder: the campaign's folder; member paths are stored relative to it.
    """
    members = tuple(
        MemberFile(path=f"{folder}/{m.path}", sha256=m.sha256 or "")
        for m in members_of(session, ensemble.id)
        if m.path is not None
    )
    info = {
        "generation": ensemble.generation,
        "metric": ensemble.metric,
        "threshold": ensemble.threshold,
        "bias_width": ensemble.bias_width,
    }
    return EnsembleManifest(kind=ensemble.kind, members=members, info=info)


def get(session: Session, ensemble_id: int) -> EnsembleRow:
    """An ensemble by id."""
    return session.get_one(EnsembleRow, ensemble_id)


def dataset_of(session: Session, ensemble: EnsembleRow) -> DatasetRow:
    """The data set that an ensemble was trained on."""
    return session.get_one(DatasetRow, ensemble.dataset_id)


def move(ensemble: EnsembleRow, new: EnsembleState, **columns: Any) -> None:
    """Changes the state of an ensemble; further columns by name. Raises TransitionError."""
    transitions.check(EnsembleState, ensemble.state, new, f"ensemble {ensemble.id}")
    ensemble.state = new
    for name, value in columns.items():
        setattr(ensemble, name, value)


def revisions(session: Session, generation: int) -> int:
    """Ensembles of a generation so far, failed ones included."""
    query = select(func.count()).where(EnsembleRow.generation == generation)
    return session.scalar(query) or 0

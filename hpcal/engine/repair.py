"""Damaged files of a campaign: found by their hash, made again from the rows, never used as they are.

A shard is written again from the labels in the store: equal data give equal bytes, so that the
recorded hash must come out. A member is trained again with its seed and data. Where that gives
the recorded hash the ensemble is what it was; where it does not (another machine, several
threads, a GPU), the ensemble is given up and its predecessor takes over until the planner has
trained the generation anew. See docs/decisions/damaged-files.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from hpcal.core.ensemble import file_sha256
from hpcal.core.errors import CampaignFailed, FencedError, StoreError, TransitionError
from hpcal.engine.claims import give_back
from hpcal.engine.context import Context
from hpcal.exchange.atomic import sync_folder
from hpcal.exchange.hdf5 import write_shard
from hpcal.store import ensembles, failures, labels, queries, tasks
from hpcal.store.database import add_event
from hpcal.store.session import Session
from hpcal.store.tables import EnsembleRow, ModelRow, ShardRow, TaskRow
from hpcal.store.transitions import EnsembleState

READERS: Final = 4
"""Files that are hashed at a time; hashing lets other threads run."""
_ADVICE: Final = "Free space or raise the limit where that is the cause, then go on with"
RESTORE: Final = "restore"
"""Key in the inputs of a training whose members stand in for damaged ones."""


@contextmanager
def disk_told(root: Path) -> Iterator[None]:
    """Turns what the file system of the controller refuses into a sentence; what was written stays.

    Raises:
        StoreError: the disk is full, a quota or limit is reached, or the file system is broken.
    """
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"the campaign's folder cannot be written to: {_cause(error)}; nothing of this step was kept and "
            f"everything before it was. {_ADVICE} `hpcal resume {root}`"
        ) from error
    except (FencedError, TransitionError):
        raise
    except StoreError as error:
        raise StoreError(f"{error}. {_ADVICE} `hpcal resume {root}`") from error


def _cause(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    return f"{(error.strerror or str(error)).lower()}{where}"


def mend(context: Context) -> list[str]:
    """Compares all shards and members in use with their hashes, and sets right what differs.

    Returns:
        What a person would want to hear of it; nothing if every file is whole.

    Raises:
        CampaignFailed: a shard cannot be made again.
    """
    with context.store.session() as session:
        shards = failures.shard_rows(session)
        models = failures.used_models(session)
        under_way = restoring(session)
        session.expunge_all()
    recorded = {shard.path: shard.sha256 for shard in shards}
    recorded |= {model.path: model.sha256 or "" for model in models if model.path is not None}
    damaged = _damaged(context.folders.root, recorded)
    messages = [_rewrite(context, shard) for shard in shards if shard.path in damaged]
    lost: dict[int, list[ModelRow]] = {}
    for model in models:
        if model.path in damaged and model.ensemble_id not in under_way:
            lost.setdefault(model.ensemble_id, []).append(model)
    return messages + [_retrain(context, ensemble_id, rows) for ensemble_id, rows in lost.items()]


def concerns(context: Context, message: str) -> bool:
    """Whether a message on a bad file names one of the campaign's own."""
    return any(f"{folder}/" in message for folder in (context.folders.shards, context.folders.models))


def _damaged(root: Path, recorded: Mapping[str, str]) -> frozenset[str]:
    """Paths whose content is not what was recorded; missing files too."""

    def whole(path: str) -> bool:
        try:
            return file_sha256(root / path) == recorded[path]
        except OSError:
            return False

    with ThreadPoolExecutor(READERS) as readers:
        verdicts = readers.map(whole, recorded)
        return frozenset(path for path, good in zip(recorded, verdicts, strict=True) if not good)


def _rewrite(context: Context, shard: ShardRow) -> str:
    """Writes a shard again from the rows."""
    path = context.folders.root / shard.path
    with context.store.session() as session:
        level = labels.level_by_id(session, shard.level_of_theory_id)
        dataset = labels.dataset_between(
            session, level, shard.level_of_theory_id, shard.first_seq - 1, shard.last_seq
        )
    beside = path.with_suffix(".again")
    beside.unlink(missing_ok=True)
    digest = None
    # Shards of the first release were written in the first layout.
    for version in (2, 1):
        digest = None if dataset is None else write_shard(beside, dataset, version=version)
        if digest == shard.sha256:
            break
    if digest != shard.sha256:
        beside.unlink(missing_ok=True)
        raise CampaignFailed(
            f"shard {shard.path} is damaged, and what is written again from labels {shard.first_seq} to "
            f"{shard.last_seq} of the store has another hash ({(digest or 'none')[:12]}… instead of "
            f"{shard.sha256[:12]}…): labels were retracted, or the HDF5 library is another one; take the "
            "file back from a copy"
        )
    beside.replace(path)
    sync_folder(path.parent)
    text = f"shard {shard.path} was damaged; it was written again from the store, with the recorded hash"
    with context.store.write() as session:
        add_event(session, context.store.epoch, "shard_rewritten", text, shard_id=shard.id)
    return text


def _retrain(context: Context, ensemble_id: int, damaged: Sequence[ModelRow]) -> str:
    """Makes the trainings anew that damaged members came from."""
    numbers = sorted(model.member for model in damaged)
    with context.store.write() as session:
        ensemble = ensembles.get(session, ensemble_id)
        for task_id in sorted({model.task_id for model in damaged if model.task_id is not None}):
            # The whole group that was trained together: its sums are then taken in the same order.
            first = session.get_one(TaskRow, task_id)
            members = [m for m in numbers if any(m == given["index"] for given in first.inputs["members"])]
            inputs = {**first.inputs, RESTORE: members}
            pool = context.dispatcher.pool("train")
            tasks.add_task(session, "train", pool, inputs, units=len(first.inputs["members"]))
        text = (
            f"ensemble {ensemble_id} (generation {ensemble.generation}): the files of members "
            f"{', '.join(map(str, numbers))} are damaged; they are trained again, and nothing uses the "
            "ensemble until then"
        )
        add_event(
            session, context.store.epoch, "model_damaged", text, ensemble_id=ensemble_id, members=numbers
        )
    return text


def is_restoration(task: TaskRow) -> bool:
    """Whether a task trains members that stand in for damaged ones."""
    return task.kind == "train" and RESTORE in task.inputs


def restoring(session: Session) -> frozenset[int]:
    """Ensembles whose members are being trained again."""
    found = failures.outstanding_trainings(session)
    return frozenset(int(task.inputs["ensemble_id"]) for task in found if is_restoration(task))


def restored(session: Session, context: Context, task: TaskRow, values: Iterable[Mapping[str, Any]]) -> str:
    """Takes members that were trained again in place of the damaged ones, if they are the same."""
    ensemble = ensembles.get(session, task.inputs["ensemble_id"])
    rows = {model.member: model for model in ensembles.members_of(session, ensemble.id)}
    made = {int(value["index"]): value for value in values}
    other = []
    for member in task.inputs[RESTORE]:
        value = made.get(member)
        if value is None or value["sha256"] != rows[member].sha256:
            other.append(member)
        else:
            rows[member].path = str(value["path"]).removeprefix(f"{context.folders.root}/")
    if other:
        return replaced(
            session, context, ensemble, f"members {', '.join(map(str, other))} came out with another hash"
        )
    text = f"ensemble {ensemble.id}: the damaged members were trained again, with the recorded hashes"
    add_event(session, context.store.epoch, "model_restored", text, ensemble_id=ensemble.id)
    return text


def replaced(session: Session, context: Context, ensemble: EnsembleRow, why: str) -> str:
    """Gives up an ensemble whose files are damaged; its predecessor takes over."""
    text = (
        f"ensemble {ensemble.id} (generation {ensemble.generation}) was damaged and could not be made again "
        f"as it was: {why}; its predecessor takes over until the generation is trained anew"
    )
    if ensemble.state is EnsembleState.FAILED:
        return text
    before = f"{ensemble.decision}; later: " if ensemble.decision else ""
    ensembles.move(ensemble, EnsembleState.FAILED, decision=f"{before}damaged, {why}")
    session.flush()
    current = queries.newest_ensemble(session, EnsembleState.PROMOTED)
    pinning = [i for i, entry in enumerate(context.spec.sampling) if entry.part.plugin.pins_ensemble]
    failures.repin(session, pinning, ensemble.id, None if current is None else current[0].id)
    add_event(session, context.store.epoch, "ensemble_replaced", text, ensemble_id=ensemble.id)
    return text


def ready(session: Session, waiting: Sequence[TaskRow], epoch: int) -> list[TaskRow]:
    """Tasks that may go out: none that needs an ensemble which is being restored.

    Tasks of an ensemble that was given up end without a result; the planner makes new ones.
    """
    if not waiting:
        return []
    under_way = restoring(session)
    named = {task.id: _ensembles_of(session, task) for task in waiting}
    states = failures.ensemble_states(session, sorted({i for ids in named.values() for i in ids}))
    going = []
    for task in waiting:
        if task.kind != "train" and any(states[i] is EnsembleState.FAILED for i in named[task.id]):
            tasks.finish(task, None, epoch=epoch)
            give_back(session, [task])
        elif is_restoration(task) or not under_way.intersection(named[task.id]):
            going.append(task)
    return going


def _ensembles_of(session: Session, task: TaskRow) -> frozenset[int]:
    """Ensembles whose files a task reads."""
    if task.kind == "train":
        ensemble = ensembles.get(session, task.inputs["ensemble_id"])
        indices = [member["index"] for member in task.inputs["members"]]
        return frozenset(row.ensemble_id for row in ensembles.starts(session, ensemble, indices).values())
    if "groups" in task.inputs:
        return frozenset(int(group["ensemble_id"]) for group in task.inputs["groups"])
    found = task.inputs.get("ensemble_id")
    return frozenset() if found is None else frozenset({int(found)})

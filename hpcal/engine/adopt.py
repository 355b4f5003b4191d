"""Taking labelled or unlabelled structures from files into a campaign that has begun."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcal.core.dataset import Dataset
from hpcal.core.elements import symbol
from hpcal.core.errors import InputError
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure
from hpcal.core.walker import Split
from hpcal.engine.campaign import CampaignSpec
from hpcal.engine.pairing import build_labeler, check_structures
from hpcal.engine.splits import learning_split
from hpcal.engine.start import recorded_spec
from hpcal.engine.streams import stream
from hpcal.exchange.files import split_of
from hpcal.exchange.found import Found
from hpcal.store import bulk, campaigns, rows, structures
from hpcal.store.database import Store, add_event
from hpcal.store.session import Session
from hpcal.store.transitions import StructureState
from hpcal.store.twins import Twins

UNFINISHED = (StructureState.CANDIDATE, StructureState.WAITING)


@dataclass(frozen=True, kw_only=True)
class ImportResult:
    """What became of the structures of files.

    Attributes:
        labelled: taken with their labels, at the campaign's level of theory.
        unlabelled: taken, to be labelled.
        duplicates: left out, as a structure of that geometry is there or stands earlier in the files.
        other_level: taken with labels of another level, which no data set of the campaign holds.
    """

    labelled: int
    unlabelled: int
    duplicates: int
    other_level: int


@dataclass(frozen=True, kw_only=True, eq=False)
class _Item:
    structure: Structure
    label: Label | None
    split: Split


def import_found(root: Path, found: Sequence[Found], *, accept_unlabelled: bool) -> ImportResult:
    """Takes what files hold into the store of a campaign that nobody runs; all of it or nothing.

    Labels at the campaign's level of theory count as accepted, in the split that the file states or
    else one drawn by the campaign's seed. What was waiting for a label of the same geometry is
    dropped.

    Raises:
        InputError: an element, a state or a periodicity that the campaign's parts cannot take.
        CampaignHeld: a controller runs the campaign.
    """
    store = Store.open(root)
    try:
        store.acquire()
        spec = recorded_spec(store)
        items = [item for one in found for item in _items(one, spec, accept_unlabelled=accept_unlabelled)]
        if not items:
            raise InputError("there is nothing to import")
        with store.write() as session:
            _check(session, spec, [item.structure for item in items])
            result = _take(session, items)
            names = ", ".join(str(one.path) for one in found)
            message = (
                f"imported {result.labelled} labelled and {result.unlabelled} unlabelled structures from "
                f"{names}; {result.duplicates} duplicates left out, {result.other_level} at another level"
            )
            add_event(session, store.epoch, "imported", message, files=[str(one.path) for one in found])
        return result
    finally:
        store.release()
        store.close()


def _items(found: Found, spec: CampaignSpec, *, accept_unlabelled: bool) -> list[_Item]:
    items = []
    for number, frame in enumerate(found.frames):
        if frame.label is None and not accept_unlabelled:
            continue
        stated = frame.info.get("split")
        rng = stream(spec.seed, f"import {found.path.name}", number)
        split = learning_split(rng, spec.file.splits) if stated is None else split_of(stated, str(found.path))
        items.append(_Item(structure=frame.structure, label=frame.label, split=split))
    return items


def _check(session: Session, spec: CampaignSpec, incoming: Sequence[Structure]) -> None:
    check_structures(spec, build_labeler(spec), incoming)
    known = set(structures.elements(session))
    new = sorted({int(z) for s in incoming for z in s.numbers} - known)
    if new:
        listed = ", ".join(symbol(z) for z in new)
        raise InputError(
            f"{listed} does not occur in this campaign, and its ensembles know nothing of it: start a new "
            "campaign with these labels under `bootstrap: [{file: …}]`"
        )


def _take(session: Session, items: Sequence[_Item]) -> ImportResult:
    fresh, replaced = _without_twins(session, items)
    level_id = campaigns.campaign(session).level_of_theory_id or 0
    waiting = [item for item in fresh if item.label is None]
    by_level: dict[LevelOfTheory, list[_Item]] = {}
    for item in fresh:
        if item.label is not None:
            by_level.setdefault(item.label.level, []).append(item)
    labelled = other = 0
    for level, group in by_level.items():
        number = rows.level_id(session, level)
        own = number == level_id
        dataset = _dataset(group)
        ids = bulk.add_structures(session, dataset, origin="file", state=StructureState.LABELLED)
        reference = dataset.splits == str(Split.REFERENCE)
        for counted in (True, False):
            chosen = np.flatnonzero((own & ~reference) == counted)
            if len(chosen):
                part = _dataset([group[i] for i in chosen])
                bulk.add_labels(session, [ids[i] for i in chosen], part, level_id=number, counted=counted)
        labelled += len(group) * own
        other += len(group) * (not own)
    for item in waiting:
        structures.add_structure(
            session, item.structure, origin="file", state=StructureState.WAITING, split=item.split
        )
    for old in replaced:
        reason = "its geometry came in with a label from a file"
        structures.move(session, [old], StructureState.DROPPED, reason=reason)
        structures.add_decision(session, old, "dropped", "duplicate", reason)
    return ImportResult(
        labelled=labelled, unlabelled=len(waiting), duplicates=len(items) - len(fresh), other_level=other
    )


def _without_twins(session: Session, items: Sequence[_Item]) -> tuple[list[_Item], list[int]]:
    """What is new, and what waits in the store for a label that has come in."""
    twins = Twins(session, [item.structure for item in items])
    new_id, fresh, replaced = 0, [], []
    for item in items:
        twin = twins.of(item.structure)
        if twin is not None and twin > 0:
            state = structures.states_of(session, [twin])[twin]
            if item.label is None or state not in UNFINISHED:
                continue
            if twin in replaced:
                continue
            replaced.append(twin)
        elif twin is not None:
            continue
        new_id -= 1  # no row yet: a number that no row has
        twins.add(item.structure, new_id)
        fresh.append(item)
    return fresh, replaced


def _dataset(items: Sequence[_Item]) -> Dataset:
    return Dataset.of(
        [item.structure for item in items],
        [item.label for item in items if item.label is not None],
        splits=[item.split for item in items],
    )

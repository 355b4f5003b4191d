"""Taking labelled or unlabelled structures from files into a campaign that has begun."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpcal.core.elements import symbol
from hpcal.core.errors import InputError
from hpcal.core.label import Label
from hpcal.core.structure import Structure
from hpcal.core.walker import Split
from hpcal.engine import siblings
from hpcal.engine.campaign import CampaignSpec
from hpcal.engine.pairing import build_labeler, check_structures
from hpcal.engine.splits import learning_split
from hpcal.engine.start import recorded_spec
from hpcal.engine.streams import stream
from hpcal.exchange.files import split_of
from hpcal.exchange.found import Found
from hpcal.store import bulk, campaigns, labels, rows, structures
from hpcal.store.database import Store, add_event
from hpcal.store.labels import NewLabel
from hpcal.store.session import Session
from hpcal.store.tables import StructureRow
from hpcal.store.transitions import StructureState
from hpcal.store.twins import OTHER_LEVEL, Twins

UNFINISHED = (StructureState.CANDIDATE, StructureState.WAITING)
REPLACEABLE = ("sample", "bootstrap", "file")
"""Origins of structures that give way to one of their geometry that has a label."""


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
            result = _take(session, items, spec)
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


def _take(session: Session, items: Sequence[_Item], spec: CampaignSpec) -> ImportResult:
    level_id = campaigns.campaign(session).level_of_theory_id or 0
    own: list[_Item] = []
    others: dict[int, list[_Item]] = {}
    for item in items:
        number = level_id if item.label is None else rows.level_id(session, item.label.level)
        (own if number == level_id else others.setdefault(number, [])).append(item)
    fresh = _Fresh.among(session, own)
    for structure_id, item in fresh.labelled_here:
        _label_here(session, structure_id, item, level_id, spec)
    labelled = [item for item in fresh.items if item.label is not None]
    waiting = [item for item in fresh.items if item.label is None]
    for counted in (True, False):
        # Labels of the fixed reference set have no commit number.
        _add(session, [i for i in labelled if (i.split is not Split.REFERENCE) == counted], level_id, counted)
    for item in waiting:
        row = structures.add_structure(
            session, item.structure, origin="file", state=StructureState.WAITING, split=item.split
        )
        siblings.expand(session, spec.label.states, [row.id])
    for old in fresh.replaced:
        reason = "its geometry came in with a label from a file"
        structures.move(session, [old], StructureState.DROPPED, reason=reason)
        structures.add_decision(session, old, "dropped", "duplicate", reason)
    siblings.settle(session, spec.label.states, level_id, fresh.replaced)
    apart = sum(_add_apart(session, number, group) for number, group in others.items())
    taken = len(fresh.items) + len(fresh.labelled_here) + apart
    return ImportResult(
        labelled=len(labelled) + len(fresh.labelled_here),
        unlabelled=len(waiting),
        duplicates=len(items) - taken,
        other_level=apart,
    )


def _add(session: Session, items: Sequence[_Item], level_id: int, counted: bool) -> None:
    pairs = [(item.structure, item.label) for item in items if item.label is not None]
    splits = [item.split for item in items]
    bulk.add_labelled(session, pairs, splits, level_id, counted=counted, origin="file")


def _label_here(session: Session, structure_id: int, item: _Item, level_id: int, spec: CampaignSpec) -> None:
    """The very structure was there already, without its label."""
    if item.label is None:
        return
    row = structures.rows_of(session, [structure_id])[structure_id]
    path = (StructureState.WAITING, StructureState.CLAIMED, StructureState.LABELLED)
    for state in path[path.index(row.state) + 1 :] if row.state in path else path:
        structures.move(session, [structure_id], state)
    new = NewLabel(structure_id=structure_id, split=row.split, label=item.label)
    held = siblings.holds(spec.label.states)
    labels.add_labels(session, [new], level_id=level_id, held=held)
    siblings.settle(session, spec.label.states, level_id, [structure_id])


def _add_apart(session: Session, level_id: int, items: Sequence[_Item]) -> int:
    """Labels of another level: each with a structure of its own, which no data set holds."""
    known = labels.hashes_at(session, [item.structure.content_hash for item in items], level_id)
    fresh: dict[str, tuple[Structure, Label]] = {}
    for item in items:
        digest = item.structure.content_hash
        if digest not in known and item.label is not None:
            fresh.setdefault(digest, (item.structure, item.label))
    splits = [Split.TRAIN] * len(fresh)
    bulk.add_labelled(session, list(fresh.values()), splits, level_id, counted=False, origin=OTHER_LEVEL)
    return len(fresh)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fresh:
    """What of a file a campaign has not.

    Attributes:
        items: new geometries.
        labelled_here: labels for structures that are in the store, without one, to the last bit.
        replaced: structures that wait for a label of a geometry that came in with one.
    """

    items: list[_Item]
    labelled_here: list[tuple[int, _Item]]
    replaced: list[int]

    @classmethod
    def among(cls, session: Session, items: Sequence[_Item]) -> _Fresh:
        """Sorts items at the campaign's level by what the store has of their geometries."""
        found = cls(items=[], labelled_here=[], replaced=[])
        twins = Twins(session, [item.structure for item in items])
        known = [twins.of(item.structure) for item in items]
        there = structures.rows_of(session, sorted({twin for twin in known if twin is not None}))
        seen: set[int] = set()
        for number, item in enumerate(items, start=1):
            twin = twins.of(item.structure)
            row = None if twin is None else there.get(twin)
            if twin is None:
                found.items.append(item)
                twins.add(item.structure, -number)  # no row yet: a number that no row has
            elif row is not None and item.label is not None and row.id not in seen:
                seen.add(row.id)
                found._for_waiting(row, item)
        return found

    def _for_waiting(self, row: StructureRow, item: _Item) -> None:
        """A label for a geometry that waits for one; what audits or begins a campaign is not replaced."""
        if row.state not in UNFINISHED:
            return
        if row.hash == item.structure.content_hash:
            self.labelled_here.append((row.id, item))
        elif row.origin in REPLACEABLE and not row.split.audit:
            self.replaced.append(row.id)
            self.items.append(item)

"""Beginning a campaign in a folder, or taking up the one that is there."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from hpcal.core.errors import ConfigurationError, InputError, StoreError
from hpcal.core.label import LevelOfTheory
from hpcal.core.settings import Document
from hpcal.core.walker import Split
from hpcal.engine import siblings
from hpcal.engine.campaign import CampaignSpec, campaign_of
from hpcal.engine.context import Context, Folders
from hpcal.engine.dispatch import Dispatcher
from hpcal.engine.pairing import build_labeler, check_parts, check_structures
from hpcal.engine.seeds import Start, load_start
from hpcal.engine.splits import learning_split
from hpcal.engine.streams import stream
from hpcal.store import bulk, campaigns, labels, rows, structures
from hpcal.store.database import Store, add_event
from hpcal.store.location import LOCATION_FILE
from hpcal.store.session import Session
from hpcal.store.transitions import CampaignState, StructureState


def check(spec: CampaignSpec) -> tuple[Start, LevelOfTheory]:
    """Everything that can be wrong with a campaign before it runs.

    Raises:
        InputError: with one sentence on what and where.
    """
    check_parts(spec)
    labeler = build_labeler(spec)
    spec.seed_level.part.build()
    start = load_start(spec, labeler.level)
    check_structures(spec, labeler, start.structures)
    return start, labeler.level


def begin(
    spec: CampaignSpec,
    root: Path,
    dispatcher: Dispatcher,
    site: Mapping[str, Any],
    *,
    store_url: str | None = None,
) -> tuple[Context, tuple[str, ...]]:
    """Starts a campaign in a folder; returns it and notes for a person.

    Args:
        store_url: PostgreSQL URL of its store; None is SQLite in the folder.

    Raises:
        InputError: the campaign cannot be run as it is written.
        CampaignHeld: another controller was faster.
    """
    start, level = check(spec)
    folders = Folders(root=root.resolve())
    store = _new_store(folders, store_url)
    with _closed_on_failure(store):
        with store.write() as session:
            if campaigns.exists(session):
                raise InputError(f"{root} already holds a campaign")
            campaigns.add_campaign(
                session,
                name=spec.name,
                spec={**json.loads(json.dumps(spec.raw)), "name": spec.name},
                spec_folder=str(spec.folder),
                site=site,
            )
            level_id = rows.level_id(session, level)
            campaigns.campaign(session).level_of_theory_id = level_id
            _add_start(session, spec, start, level_id)
        store.acquire()
    context = Context(
        spec=spec,
        store=store,
        folders=folders,
        dispatcher=dispatcher,
        level=level,
        level_id=level_id,
        elements=start.elements,
    )
    return context, start.notes


def _new_store(folders: Folders, url: str | None) -> Store:
    """Makes the folders of a campaign and its store.

    Raises:
        InputError: the database cannot be used; the folder is as it was before, so that a corrected
            command can have it.
    """
    root = folders.root
    before = set(root.iterdir()) if root.is_dir() else None
    folders.make()
    try:
        return Store.create(root, url)
    except InputError:
        made = {folders.tasks, folders.shards, folders.models, folders.scratch} - (before or set())
        with suppress(OSError):
            if root / LOCATION_FILE not in (before or ()):
                (root / LOCATION_FILE).unlink(missing_ok=True)
            for folder in (*sorted(made), *(() if before is not None else (root,))):
                folder.rmdir()
        raise


def _add_start(session: Session, spec: CampaignSpec, start: Start, level_id: int) -> None:
    origin = "seed" if spec.relaxes else "given"
    begun = [
        structures.add_structure(
            session, seed, origin=origin, state=StructureState.WAITING, split=Split.TRAIN, priority=1e6
        ).id
        for seed in start.seeds
    ]
    splits = [
        item.split or learning_split(stream(spec.seed, "given", number), spec.file.splits)
        for number, item in enumerate(start.given)
    ]
    pairs = [(item.structure, item.label) for item in start.given]
    origins, notes = [item.origin for item in start.given], [item.note for item in start.given]
    bulk.add_labelled(session, pairs, splits, level_id, origin=origins, reason=notes)
    for taken in start.taken:
        add_event(session, 0, "labels_taken", taken.sentence, **taken.record)
    splits = [Split.REFERENCE] * len(start.reference)
    bulk.add_labelled(session, start.reference, splits, level_id, counted=False, origin="reference")
    if not spec.relaxes:
        # After what came with its label: that one is not labelled again.
        siblings.expand(session, spec.label.states, begun)


def take_up(
    root: Path,
    dispatcher: Dispatcher,
    *,
    spec: CampaignSpec | None = None,
    accept_changes: bool = False,
    site: Mapping[str, Any] | None = None,
) -> Context:
    """Takes up the campaign of a folder.

    Args:
        spec: the campaign file of now, to be compared with the recorded one; None to go on as recorded.
        accept_changes: go on with a changed file.
        site: the site of now, recorded in place of the former.

    Raises:
        ConfigurationError: the file has changed and that is not accepted.
        CampaignHeld: another controller holds the campaign.
    """
    folders = Folders(root=root.resolve())
    store = Store.open(folders.root)
    with _closed_on_failure(store):
        recorded = recorded_spec(store)
        if spec is not None and not accept_changes:
            refuse_changes(recorded, spec)
        if spec is not None:
            refuse_what_cannot_change(recorded, spec)
        chosen = spec if spec is not None else recorded
        store.acquire()
        folders.make()
        level = build_labeler(chosen).level
        with store.write() as session:
            row = campaigns.campaign(session)
            if row.level_of_theory_id is None:
                raise InputError(f"{root} holds a campaign that was never begun; remove the folder")
            recorded_level = labels.level_by_id(session, row.level_of_theory_id)
            if recorded_level != level:
                raise ConfigurationError(_other_level(recorded_level, level))
            if spec is not None and difference(recorded, spec):
                row.spec_folder = str(spec.folder)
                row.spec = {**json.loads(json.dumps(spec.raw)), "name": spec.name}
                add_event(session, store.epoch, "changed", "\n".join(difference(recorded, spec)))
                if row.state is CampaignState.FINISHED:
                    # What ended it may hold no more: from here on `resume` goes on, also after a kill.
                    campaigns.move(session, CampaignState.RUNNING)
                    campaigns.move(session, CampaignState.STOPPED, "changed after its end")
            if site is not None:
                row.site = dict(site)
            level_id = row.level_of_theory_id
            numbers = structures.elements(session)
    return Context(
        spec=chosen,
        store=store,
        folders=folders,
        dispatcher=dispatcher,
        level=level,
        level_id=level_id,
        elements=numbers,
    )


@contextmanager
def _closed_on_failure(store: Store) -> Iterator[None]:
    """Gives the lease back and closes the store of a campaign that cannot be begun or taken up."""
    try:
        yield
    except BaseException:
        with suppress(StoreError):
            store.release()
        store.close()
        raise


def recorded_spec(store: Store) -> CampaignSpec:
    """The campaign that a store records."""
    with store.session() as session:
        row = campaigns.campaign(session)
        return campaign_of(Document(row.spec, {}, "the recorded campaign"), Path(row.spec_folder))


def recorded_state(store: Store) -> tuple[CampaignState, str | None]:
    """State of the campaign of a store, and why it stopped."""
    with store.session() as session:
        row = campaigns.campaign(session)
        return row.state, row.stop_reason


def difference(old: CampaignSpec, new: CampaignSpec) -> list[str]:
    """Lines that differ between two campaign files, comments and order aside."""
    texts = [yaml.safe_dump(dict(s.raw), sort_keys=True).splitlines() for s in (old, new)]
    lines = difflib.unified_diff(texts[0], texts[1], lineterm="", n=0)
    return [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]


def refuse_changes(old: CampaignSpec, new: CampaignSpec) -> None:
    """Raises ConfigurationError with the difference if the campaign file has changed."""
    changed = difference(old, new)
    if changed:
        raise ConfigurationError(
            "the campaign file differs from the one that this folder was started with:\n  "
            + "\n  ".join(changed)
            + "\ngive --accept-changes to go on with it, or another --dir to start afresh"
        )


def refuse_what_cannot_change(old: CampaignSpec, new: CampaignSpec) -> None:
    """Raises ConfigurationError for changes that what is recorded already would contradict."""
    fixed = {
        "structures": (old.file.structures, new.file.structures),
        "bootstrap": (old.file.bootstrap, new.file.bootstrap),
        "potential.kind": (old.potential.name, new.potential.name),
        "label.states.keep": (siblings.holds(old.label.states), siblings.holds(new.label.states)),
        "uncertainty.metric": (old.metric, new.metric),
    }
    samplers = [entry.part.name for entry in old.sampling]
    kept = [entry.part.name for entry in new.sampling[: len(samplers)]]
    changed = [key for key, (a, b) in fixed.items() if a != b]
    changed += ["sampling"] if kept != samplers else []
    if changed:
        raise ConfigurationError(
            f"{', '.join(changed)}: cannot be changed in a campaign that has begun, as its rows were made "
            "with what was there (samplers can be added at the end of the list); start a new campaign "
            "in another --dir"
        )


def _other_level(recorded: LevelOfTheory, now: LevelOfTheory) -> str:
    return (
        f"the labels of this campaign are {recorded}, version {recorded.version}, and the labeler here "
        f"gives {now}, version {now.version}; two levels of theory are never mixed in one target: "
        "install the same version, or start a new campaign"
    )

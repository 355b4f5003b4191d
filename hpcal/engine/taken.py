"""Labels that a campaign takes over from another one, and where each of them came from."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from hpcal.core.errors import ConfigurationError, InputError
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure
from hpcal.core.walker import Split
from hpcal.engine.campaign import LabelSource
from hpcal.store import campaigns, ensembles, labels, queries
from hpcal.store.database import Store
from hpcal.store.session import Session
from hpcal.store.transitions import EnsembleState

_TRAINED = (EnsembleState.TRAINED, EnsembleState.PROMOTED, EnsembleState.REFUSED)


@dataclass(frozen=True, kw_only=True)
class Given:
    """A labelled structure that is there before a campaign begins.

    Attributes:
        structure: the structure.
        label: its label.
        split: the split that it keeps, or None where one is to be drawn.
        origin: ``file``; ``given`` for one that is a seed as well.
        note: where it came from, for a person, or None.
    """

    structure: Structure
    label: Label
    split: Split | None = None
    origin: str = "file"
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What was taken over from another campaign.

    Attributes:
        campaign: its name.
        run_id: its run.
        folder: where it lies.
        counts: labels of each split.
    """

    campaign: str
    run_id: str
    folder: str
    counts: dict[str, int]

    @property
    def count(self) -> int:
        """Labels in all."""
        return sum(self.counts.values())

    @property
    def sentence(self) -> str:
        """For a person."""
        splits = ", ".join(f"{n} {split}" for split, n in self.counts.items())
        return f"{self.count} labels taken from campaign {self.campaign} (run {self.run_id}): {splits}"

    @property
    def record(self) -> dict[str, Any]:
        """For the event that records it; JSON values."""
        return {
            "campaign": self.campaign,
            "run_id": self.run_id,
            "folder": self.folder,
            "count": self.count,
            "splits": self.counts,
        }


def take_labels(source: LabelSource, level: LevelOfTheory, key: str) -> tuple[list[Given], Taken]:
    """Reads accepted labels of another campaign, each with the split that it has there.

    The other store is opened read-only; labels that were taken back are left out.

    Args:
        source: which campaign, and which of its labels.
        level: level of theory of the campaign that takes them.
        key: where the source stands in the campaign file, for messages.

    Raises:
        InputError: there is no campaign, or it has no such labels.
        ConfigurationError: its labels are of another level of theory.
    """
    try:
        store = Store.read(source.folder)
    except InputError as error:
        raise InputError(f"{key}: {error}") from error
    try:
        with store.session() as session:
            return _read(session, source, level, key)
    finally:
        store.close()


def _read(session: Session, source: LabelSource, level: LevelOfTheory, key: str) -> tuple[list[Given], Taken]:
    if not campaigns.exists(session):
        raise InputError(f"{key}: {source.folder} holds no campaign that was begun")
    row = campaigns.campaign(session)
    if row.level_of_theory_id is None:
        raise InputError(f"{key}: {source.folder} holds a campaign that was never begun")
    there = labels.level_by_id(session, row.level_of_theory_id)
    if there != level:
        raise ConfigurationError(f"{key}: the labels of {source.folder} are {different_level(there, level)}")
    up_to = None if source.generation is None else _last_commit(session, source, key)
    found = labels.labelled(session, there, row.level_of_theory_id, up_to=up_to, splits=source.splits)
    if not found:
        raise InputError(
            f"{key}: {source.folder} has no accepted label of split {', '.join(source.splits)}; "
            f"`hpcal status {source.folder}` counts those it has"
        )
    given = [
        Given(
            structure=structure,
            label=_with_origin(label, row.name, row.run_id, found_row.id),
            split=found_row.split,
            note=f"structure {found_row.id} of campaign {row.name}, run {row.run_id}",
        )
        for found_row, structure, label in found
    ]
    counts = Counter(str(item.split) for item in given)
    taken = Taken(
        campaign=row.name,
        run_id=row.run_id,
        folder=str(source.folder.resolve()),
        counts={str(split): counts[split] for split in Split if counts[split]},
    )
    return given, taken


def _with_origin(label: Label, name: str, run_id: str, structure_id: int) -> Label:
    origin = {"campaign": name, "run_id": run_id, "structure_id": structure_id}
    return replace(label, diagnostics={**label.diagnostics, "taken_from": origin})


def _last_commit(session: Session, source: LabelSource, key: str) -> int:
    """Commit number up to which labels are in the data set of a generation."""
    trained = queries.ensembles(session, *_TRAINED)
    found = next((e for e in trained if e.generation == source.generation), None)
    if found is None:
        there = ", ".join(sorted({str(e.generation) for e in trained})) or "none"
        raise InputError(
            f"{key}: {source.folder} has no trained ensemble of generation {source.generation} "
            f"(there: {there})"
        )
    return ensembles.dataset_of(session, found).last_seq


def different_level(theirs: LevelOfTheory, ours: LevelOfTheory) -> str:
    """Names two levels of theory that are not the same, and in what they differ."""
    mine, other = ours.as_dict(), theirs.as_dict()
    differ = [name for name in ("code", "version", "method") if mine[name] != other[name]]
    settings = {**mine["settings"], **other["settings"]}
    differ += [f"settings.{k}" for k in settings if mine["settings"].get(k) != other["settings"].get(k)]
    return (
        f"{theirs}, version {theirs.version}, those of this campaign {ours}, version {ours.version} "
        f"(different: {', '.join(differ)}); two levels of theory are never mixed in one target: "
        "use the same labeler and settings, or label these structures again"
    )

"""What the parts of the controller share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hpcal.core.label import LevelOfTheory
from hpcal.engine.campaign import CampaignSpec
from hpcal.engine.dispatch import Dispatcher
from hpcal.store.database import Store


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where a campaign keeps its files."""

    root: Path

    @property
    def tasks(self) -> Path:
        """Inputs, spools and logs of attempts."""
        return self.root / "tasks"

    @property
    def shards(self) -> Path:
        """Immutable files of labelled structures."""
        return self.root / "shards"

    @property
    def models(self) -> Path:
        """Trained members, a folder for each ensemble."""
        return self.root / "models"

    @property
    def scratch(self) -> Path:
        """Scratch of attempts."""
        return self.root / "scratch"

    @property
    def stop_file(self) -> Path:
        """Its appearance asks for an orderly stop."""
        return self.root / "stop"

    def make(self) -> None:
        """Makes all folders."""
        for folder in (self.root, self.tasks, self.shards, self.models, self.scratch):
            folder.mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True, kw_only=True)
class Context:
    """A campaign under way.

    Attributes:
        spec: the checked campaign.
        store: its store, held for writing.
        folders: its files.
        dispatcher: what carries its tasks.
        level: level of theory of its labels.
        level_id: row of that level.
        elements: atomic numbers of its structures, ascending.
    """

    spec: CampaignSpec
    store: Store
    folders: Folders
    dispatcher: Dispatcher
    level: LevelOfTheory
    level_id: int
    elements: tuple[int, ...]

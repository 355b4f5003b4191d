"""``DIR/status.json``: where a campaign stands, for readers that cannot open its store."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Final

from hpcal.core.errors import HpcalError
from hpcal.engine.loop import Observer
from hpcal.engine.view import View
from hpcal.store.database import Store
from hpcal.store.lease_file import HolderRecord
from hpcal.store.location import STATUS_FILE, Location

INTERVAL_SECONDS: Final = 10.0


class Publisher:
    """An observer that publishes the status while a controller has its store to itself."""

    def __init__(self, observer: Observer, store: Store, root: Path) -> None:
        self._observer = observer
        self._store = store
        self._root = root
        self._due = 0.0

    def message(self, text: str) -> None:
        """Passes it on."""
        self._observer.message(text)

    def update(self, view: View) -> None:
        """Publishes the status every few seconds, and passes the view on."""
        self._observer.update(view)
        if time.monotonic() >= self._due:
            publish(self._store, self._root)
            self._due = time.monotonic() + INTERVAL_SECONDS


def publish(store: Store, root: Path) -> None:
    """Writes the status, whole or not at all; a disk that refuses it does not stop a campaign."""
    from hpcal.report.status import campaign_status

    part = root / f".{STATUS_FILE}.part"
    try:
        part.write_text(json.dumps(campaign_status(store, root), indent=1), encoding="utf-8")
        os.replace(part, root / STATUS_FILE)
    except (OSError, HpcalError):
        part.unlink(missing_ok=True)


def published(root: Path) -> dict[str, Any] | None:
    """The status that a live controller has published, where its store is its own; None otherwise.

    Raises:
        InputError: there is no campaign.
    """
    location = Location.of(root)
    holder = HolderRecord.read(root) if location.shared else None
    if holder is None or holder.known_dead or not (root / STATUS_FILE).is_file():
        return None
    found: dict[str, Any] = json.loads((root / STATUS_FILE).read_text(encoding="utf-8"))
    return found

"""A controller shows that it lives for as long as it has workers."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

from cli.helpers import hpcal

from hpcal.core.errors import Interrupted
from hpcal.engine.dispatch import InlineDispatcher


class Controller:
    """Ends at once."""

    def __init__(self, *_: object) -> None:
        pass

    def run(self) -> str:
        raise Interrupted("stopped in good order")


def beats(root: Path, within_s: float = 5.0) -> bool:
    """Whether the counter moves by which controllers on other hosts tell."""

    def counter() -> int:
        with closing(sqlite3.connect(root / "store.db")) as store:
            return int(store.execute("SELECT lease_counter FROM campaign").fetchone()[0])

    before, deadline = counter(), time.monotonic() + within_s
    while time.monotonic() < deadline:
        if counter() != before:
            return True
        time.sleep(0.02)
    return False


def test_nobody_takes_a_campaign_over_while_its_workers_start_or_end(here, monkeypatch):
    found = {}

    class Slow(InlineDispatcher):
        def __init__(self) -> None:
            super().__init__({}, lambda _: None)
            found["start"] = beats(here / "run")

        def close(self) -> None:
            found["end"] = beats(here / "run")

    monkeypatch.setattr("hpcal.engine.loop.BEAT_SECONDS", 0.05)
    monkeypatch.setattr("hpcal.cli.run.Machine.dispatcher", lambda *_: Slow())
    monkeypatch.setattr("hpcal.cli.run.Controller", Controller)
    result = hpcal("run", here / "tiny.yaml", "--dir", here / "run", "--inline")
    assert result.exit_code == 130, result.output
    assert found == {"start": True, "end": True}

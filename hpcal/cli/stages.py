"""What the commands of one stage share: its block, its records beside OUT, and how it is stopped."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

import click

from hpcal.core.errors import ConfigurationError, InputError
from hpcal.core.settings import Document, read_yaml
from hpcal.exchange.atomic import replacing

GRACE_SECONDS: Final = 45.0
"""How long a structure or step may take after a request to stop."""


def read_block(path: Path) -> tuple[Document, Path]:
    """The block of a stage, and the folder that its paths are relative to.

    Raises:
        ConfigurationError: no such file, or not a mapping.
    """
    document = read_yaml(path)
    if not isinstance(document.data, dict):
        raise ConfigurationError(
            f"{path}: a stage's file holds the keys of its block, such as `labeler: xtb`, not "
            f"{'a list: give one entry of it' if isinstance(document.data, list) else 'one value'}"
        )
    return document, path.resolve().parent


def record_path(out: Path) -> Path:
    """Where the records of an output go: beside it, with the extension ``.json``."""
    return out.with_suffix(".json") if out.suffix else out.with_name(f"{out.name}.json")


def refuse_inputs(out: Path, *inputs: Path) -> None:
    """Raises InputError if an output or its records would take the place of what is read."""
    records = record_path(out)
    for path in (out, records):
        if any(path.resolve() == given.resolve() for given in inputs):
            raise InputError(f"{path} is what is read, and would be written over: give another OUT")
    if records.is_dir():
        raise InputError(f"{records} is a folder, and the records of {out} go there: give another OUT")


def refuse_place(out: Path, *inputs: Path) -> None:
    """Refuses a file that cannot be written before any work is done for it.

    Raises:
        InputError: as :func:`refuse_inputs`; or ``out`` is a folder, or a file that no such command
            wrote, or in a folder that is not there or closed to the user.
    """
    refuse_inputs(out, *inputs)
    if out.is_dir():
        raise InputError(f"{out} is a folder; give the name of a file")
    if out.exists() and not record_path(out).exists():
        raise InputError(
            f"{out} exists without its records {record_path(out)}: it is not overwritten; give another OUT"
        )
    if not out.parent.is_dir():
        raise InputError(f"{out} cannot be written: there is no folder {out.parent}; make it first")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise InputError(f"{out} cannot be written: the folder {out.parent} is closed to you")


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Writes records whole. Raises InputError if the folder cannot be written to."""
    with replacing(path) as file:
        file.write((json.dumps(record, indent=1) + "\n").encode())


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM ask for an orderly stop: yields whether one came.

    A second one, or the end of the grace, interrupts at once.
    """
    asked = threading.Event()

    def ask(_number: int, _frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        click.echo("stopping at the next structure or step", err=True)
        timer.start()

    timer = threading.Timer(GRACE_SECONDS, os.kill, (os.getpid(), signal.SIGINT))
    timer.daemon = True
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)

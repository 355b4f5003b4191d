"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from hpcal.core.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of ``path`` when the block ends without an exception.

    The bytes and the name are on disk (fsync) when the block has ended; until then ``path`` is
    what it was before.

    Raises:
        InputError: ``path`` is a folder, or the folder that it is in does not exist or cannot be
            written to.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file")
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:12]}.part")
    try:
        file = temporary.open("xb")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}: {path.parent}") from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes names that were just put into a folder survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

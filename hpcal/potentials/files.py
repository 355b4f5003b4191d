"""Files of trained members and of checkpoints: hashed, without code, the same bytes for the same content.

A file is the line ``MAGIC``, the SHA-256 of what follows, and a record of :mod:`hpcal.core.codec`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from hpcal.core.codec import pack, unpack
from hpcal.core.errors import FormatError

MAGIC: Final = b"hpcal potential 1\n"
_DIGEST: Final = 32


def encode(content: Mapping[str, Any]) -> bytes:
    """The bytes of a file: arrays and JSON values under string keys."""
    body = pack(dict(content))
    return MAGIC + hashlib.sha256(body).digest() + body


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a file whole or not at all."""
    write_bytes(path, encode(content))


def write_member(folder: Path, index: int, suffix: str, data: bytes) -> tuple[Path, str]:
    """Writes a member under a name that holds its index and hash; path and SHA-256."""
    digest = hashlib.sha256(data).hexdigest()
    path = folder / f"member-{index}-{digest[:12]}.{suffix}"
    write_bytes(path, data)
    return path, digest


def read(path: Path, kind: str) -> dict[str, Any]:
    """The content of a file of one kind.

    Raises:
        FormatError: it cannot be read, is damaged, or holds something else.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FormatError(f"model file {path} cannot be read: {error}") from error
    body = data[len(MAGIC) + _DIGEST :]
    if not data.startswith(MAGIC):
        raise FormatError(f"{path} is no model file of hpcal: it does not begin with {MAGIC!r}")
    if hashlib.sha256(body).digest() != data[len(MAGIC) : len(MAGIC) + _DIGEST]:
        raise FormatError(
            f"model file {path} is damaged: its content does not match its checksum; restore it or retrain"
        )
    content = unpack(body)
    if not isinstance(content, dict) or content.get("kind") != kind:
        found = content.get("kind") if isinstance(content, dict) else None
        raise FormatError(f"{path} holds {found!r}, not {kind!r}")
    return content


def write_bytes(path: Path, data: bytes) -> None:
    """Writes bytes durably, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with scratch.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)

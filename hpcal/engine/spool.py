"""Results on their way: the file to which an attempt appends what it has finished.

::

    file    = MAGIC  record(identity)  record(value) …
    record  = length (u32)  CRC-32 of length and payload (u32)  payload (``hpcal.core.codec``)

Each record goes to the operating system as it is appended, so that it outlives the process, and
to the disk (fsync) at least once a second and at the end, so that it outlives the machine. What a
crash left half-written at the end is not read.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hpcal.core import codec
from hpcal.core.closing import Closing
from hpcal.core.errors import FailureClass, FormatError, TaskFailure
from hpcal.exchange.atomic import sync_folder

MAGIC: Final = b"hpcalsp"
VERSION: Final = 1
_START: Final = MAGIC + bytes([VERSION])
_PREFIX: Final = struct.Struct("<II")
_HEAD_BYTES: Final = 4096
BLOCK_VARIABLE: Final = "PARSL_WORKER_BLOCK_ID"
FLUSH_INTERVAL_S: Final = 1.0
"""Seconds after which an appended record is on the disk at the latest."""
BEAT_SECONDS: Final = 5.0
"""Seconds after which the file is touched at the latest: the attempt lives."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Spool:
    """What a spool file holds.

    Attributes:
        attempt: row of the attempt that wrote it, or None where not even that is readable.
        epoch: fencing epoch under which the attempt was dispatched.
        values: the records, in the order appended.
        ignored_bytes: length of the torn or damaged tail.
    """

    attempt: int | None
    epoch: int | None
    values: list[Any]
    ignored_bytes: int


class SpoolWriter(Closing):
    """Appends records to the spool of one attempt; a context manager.

    Raises:
        TaskFailure: class ``bug`` if the file exists, as then two processes run one attempt;
            class ``node`` if the disk is full or fails.
    """

    def __init__(
        self, path: Path, *, attempt: int, epoch: int, flush_interval_s: float = FLUSH_INTERVAL_S
    ) -> None:
        self._path = path
        self._interval = flush_interval_s
        self._lock = threading.Lock()
        self._dirty = threading.Event()
        self._closing = threading.Event()
        self._failure: OSError | None = None
        self._file = self._create()
        self._end = 0
        identity = {"attempt": attempt, "epoch": epoch, "block": os.environ.get(BLOCK_VARIABLE)}
        self._write(_START + _record(codec.pack(identity)))
        self._flusher = threading.Thread(target=self._beat, name="spool-flush", daemon=True)
        self._flusher.start()

    def append(self, value: Any) -> None:
        """Adds a record of anything that :mod:`hpcal.core.codec` packs."""
        record = _record(codec.pack(value))
        with self._lock:
            self._write(record)
        self._dirty.set()

    def flush(self) -> None:
        """Returns when all that was appended is on the disk."""
        with self._lock:
            self._dirty.clear()
            self._sync()

    def close(self) -> None:
        """Flushes and closes; a second call does nothing."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._dirty.set()
        self._flusher.join()
        try:
            self.flush()
        finally:
            os.close(self._file)

    def _create(self) -> int:
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            sync_folder(self._path.parent)
        except FileExistsError:
            raise TaskFailure(
                FailureClass.BUG, f"{self._path} exists: another process has run this attempt"
            ) from None
        except OSError as error:
            raise self._failed(error) from error
        return file

    def _write(self, data: bytes) -> None:
        """Writes all of it or nothing: a torn record would hide what is appended after it."""
        self._raise_failure()
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, self._end)
                os.lseek(self._file, self._end, os.SEEK_SET)
            raise self._failed(error) from error
        self._end += len(data)

    def _sync(self) -> None:
        self._raise_failure()
        try:
            os.fsync(self._file)
        except OSError as error:
            # A second fsync would succeed although the data are gone: the failure is kept.
            self._failure = error
            raise self._failed(error) from error

    def _beat(self) -> None:
        while not self._closing.is_set():
            if not self._dirty.wait(BEAT_SECONDS):
                with suppress(OSError):
                    os.utime(self._file)
            elif not self._closing.wait(self._interval):
                with suppress(TaskFailure):  # kept, and raised by the next append or at the end
                    self.flush()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failed(self._failure) from self._failure

    def _failed(self, error: OSError) -> TaskFailure:
        cause = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error)
        return TaskFailure(FailureClass.NODE, f"results cannot be written to {self._path}: {cause}")


def read_spool(path: Path) -> Spool:
    """What an attempt has finished, up to the first record that is torn or damaged.

    A file that does not exist, or ends before its first record, belongs to an attempt that has
    finished nothing.

    Raises:
        FormatError: written by a newer hpcal, or a whole record that this one cannot unpack.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        data = b""
    if data[: len(MAGIC)] == MAGIC and len(data) > len(MAGIC) and data[len(MAGIC)] > VERSION:
        raise FormatError(f"{path} was written by a newer hpcal (spool format {data[len(MAGIC)]})")
    if not data.startswith(_START):
        return Spool(attempt=None, epoch=None, values=[], ignored_bytes=len(data))
    payloads, end = _whole_records(data, len(_START))
    values = [codec.unpack(payload) for payload in payloads]
    identity = values.pop(0) if values else {}
    return Spool(
        attempt=identity.get("attempt"),
        epoch=identity.get("epoch"),
        values=values,
        ignored_bytes=len(data) - end,
    )


def begun_in(path: Path) -> str | None:
    """Block of the worker that began a spool; None where there is none, or its start is not readable yet."""
    try:
        with path.open("rb") as file:
            data = file.read(_HEAD_BYTES)
        payloads, _ = _whole_records(data, len(_START))
        block: str | None = codec.unpack(payloads[0]).get("block") if payloads else None
    except (OSError, FormatError):
        return None
    return block


def _record(payload: bytes) -> bytes:
    return _PREFIX.pack(len(payload), _checksum(payload)) + payload


def _checksum(payload: bytes) -> int:
    """Over the length too, so that a tail of zeros, as file systems leave, is no record."""
    return zlib.crc32(payload, zlib.crc32(len(payload).to_bytes(4, "little")))


def _whole_records(data: bytes, at: int) -> tuple[list[bytes], int]:
    payloads = []
    while at + _PREFIX.size <= len(data):
        length, checksum = _PREFIX.unpack_from(data, at)
        start = at + _PREFIX.size
        payload = data[start : start + length]
        if len(payload) < length or _checksum(payload) != checksum:
            break
        payloads.append(payload)
        at = start + length
    return payloads, at

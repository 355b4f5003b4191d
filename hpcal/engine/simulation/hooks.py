"""Steps of a controller at which it can be killed, paused, or meet a full disk.

The store and the functions that change files are wrapped from outside while a history runs, so
that the code under test knows nothing of it. Each controller runs in a thread of its own life;
whatever other threads do passes through untouched.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

from hpcal.store import lease
from hpcal.store.database import Store
from hpcal.store.session import Session

FILE_WRITES: Final = ("write_bytes", "write_text", "touch", "replace", "rename")
FILE_REMOVALS: Final = ("unlink",)


class Killed(BaseException):
    """The controller is killed here: what it holds in memory is gone."""


class Life:
    """One controller, from its start to its end of whatever kind.

    Attributes:
        root: the campaign's folder; files elsewhere are no steps.
        kill_at: number of the step at which it is killed, or None.
        pause_at: kind and number of the step at which it is paused, or None; kind ``any`` for all.
        counts: steps by kind.
        ended_at: the step at which it was killed.
        injected: it has met a full disk.
        stores: what it has opened.
        woken: it was paused, and another may have taken over.
    """

    def __init__(
        self,
        root: Path,
        *,
        kill_at: int | None = None,
        pause_at: tuple[str, int] | None = None,
        store_full: Callable[[], bool] = lambda: False,
        file_full: Callable[[], bool] = lambda: False,
        on_step: Callable[[str], None] = lambda _kind: None,
        on_commit: Callable[[], None] = lambda: None,
        on_pause: Callable[[], None] = lambda: None,
    ) -> None:
        self.root = root
        self.kill_at, self.pause_at = kill_at, pause_at
        self.counts: Counter[str] = Counter()
        self.ended_at: str | None = None
        self.injected = 0
        self.stores: list[Store] = []
        self.in_transaction = False
        self.woken = False
        self._store_full, self._file_full = store_full, file_full
        self._on_step, self._on_commit, self._on_pause = on_step, on_commit, on_pause
        self._inside = False

    @property
    def steps(self) -> int:
        """Steps so far."""
        return self.counts.total()

    @contextmanager
    def lived(self) -> Iterator[None]:
        """What this thread does in the block, this life does."""
        _LIVES[threading.get_ident()] = self
        try:
            yield
        finally:
            _LIVES.pop(threading.get_ident(), None)

    def step(self, kind: str) -> None:
        """Between two steps. Raises Killed if this life ends here, or has ended before."""
        if self.ended_at is not None:
            raise Killed(self.ended_at)
        if self._inside:
            return
        self.counts[kind] += 1
        self._inside = True
        try:
            self._on_step(kind)
            if self.steps == self.kill_at:
                self.ended_at = kind
                raise Killed(kind)
            if self._to_pause():
                self.pause_at, self.woken = None, True
                self._on_pause()
        finally:
            self._inside = False

    def _to_pause(self) -> bool:
        """Only one that holds the lease is paused, and never inside a transaction, which holds a lock."""
        if self.pause_at is None:
            return False
        kind, number = self.pause_at
        due = (self.steps if kind == "any" else self.counts[kind]) >= number
        return due and not self.in_transaction and self.counts["after the lease"] > 0

    def committed(self) -> None:
        """After a transaction."""
        self._inside = True
        try:
            self._on_commit()
        finally:
            self._inside = False
        self.step("committed")

    def fill_store(self, session: Session) -> None:
        """Now and then the disk is full at the end of a transaction."""
        if not self._store_full():
            return
        self.injected += 1
        connection = session.connection()
        # SQLite itself says that the disk is full, once its file may not grow.
        (pages,) = connection.exec_driver_sql("PRAGMA page_count").one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        connection.exec_driver_sql("CREATE TABLE filler AS SELECT randomblob(1000000) AS data")

    def fill_file(self) -> bool:
        """Whether the disk is full for the next file."""
        full = self._file_full()
        self.injected += full
        return full

    def owns(self, path: object) -> bool:
        """Whether a path lies in the campaign's folder."""
        return str(path).startswith(str(self.root))


_LIVES: dict[int, Life] = {}


def _life() -> Life | None:
    return _LIVES.get(threading.get_ident())


def step(kind: str) -> None:
    """A step of the controller of this thread, if it has one."""
    life = _life()
    if life is not None:
        life.step(kind)


def no_space(path: object) -> OSError:
    """What the operating system raises when a disk is full."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@contextmanager
def hooked() -> Iterator[None]:
    """Wraps the store and what changes files, for all lives."""
    with ExitStack() as stack:
        for name in FILE_WRITES:
            stack.enter_context(patch.object(Path, name, _writing(getattr(Path, name))))
        for name in FILE_REMOVALS:
            stack.enter_context(patch.object(Path, name, _removing(getattr(Path, name))))
        stack.enter_context(patch.object(shutil, "rmtree", _removing(shutil.rmtree)))
        stack.enter_context(patch.object(os, "replace", _writing(os.replace)))
        stack.enter_context(patch.object(Store, "write", _transaction(Store.write)))
        for name in ("open", "create"):
            stack.enter_context(patch.object(Store, name, _opening(getattr(Store, name))))
        stack.enter_context(patch.object(Store, "acquire", _acquiring(Store.acquire)))
        stack.enter_context(patch.object(lease, "process_alive", lambda *_: False))
        yield


def _writing(function: Any) -> Any:
    def wrapped(path: Any, *args: Any, **options: Any) -> Any:
        life = _life()
        if life is None or not life.owns(path):
            return function(path, *args, **options)
        life.step("before a file")
        if life.fill_file():
            if args and isinstance(args[0], bytes):
                function(path, args[0][: len(args[0]) // 2])
            raise no_space(path)
        result = function(path, *args, **options)
        life.step("after a file")
        return result

    return wrapped


def _removing(function: Any) -> Any:
    def wrapped(path: Any, *args: Any, **options: Any) -> Any:
        life = _life()
        if life is None or not life.owns(path):
            return function(path, *args, **options)
        life.step("before a removal")
        result = function(path, *args, **options)
        life.step("after a removal")
        return result

    return wrapped


def _transaction(function: Any) -> Any:
    @contextmanager
    def write(store: Store, *args: Any, **options: Any) -> Iterator[Session]:
        life = _life()
        if life is None:
            with function(store, *args, **options) as session:
                yield session
            return
        life.step("before a transaction")
        life.in_transaction = True
        try:
            with function(store, *args, **options) as session:
                if life.injected:
                    session.connection().exec_driver_sql("PRAGMA max_page_count = 4294967294")
                yield session
                life.step("before a commit")
                life.fill_store(session)
        finally:
            life.in_transaction = False
        life.committed()

    return write


def _opening(method: Any) -> Any:
    function = method.__func__

    def wrapped(cls: type[Store], *args: Any, **options: Any) -> Store:
        life = _life()
        if life is None:
            store: Store = function(cls, *args, **options)
            return store
        life.step("before the store is opened")
        store = function(cls, *args, **options)
        share_statements(store)
        life.stores.append(store)
        life.step("after the store is opened")
        return store

    return classmethod(wrapped)


_SHARED: dict[str, Any] = {}


def share_statements(store: Any) -> None:
    """Lets all stores of this process compile each statement once: histories open thousands."""
    engine = store._engine
    if not _SHARED:
        _SHARED.update(dialect=engine.dialect, cache=engine._compiled_cache)
    engine.dialect, engine._compiled_cache = _SHARED["dialect"], _SHARED["cache"]


def _acquiring(function: Any) -> Any:
    def wrapped(store: Store, *args: Any, **options: Any) -> Any:
        life = _life()
        if life is not None:
            life.step("before the lease")
        result = function(store, *args, **options)
        if life is not None:
            life.step("after the lease")
        return result

    return wrapped

"""What a piece of work is given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hpcal.core.deadline import Deadline
from hpcal.core.ensemble import EnsembleManifest, MemberFile, load_ensemble
from hpcal.core.errors import FailureClass, TaskFailure
from hpcal.core.plugins import Group, find
from hpcal.core.protocols import Potential
from hpcal.engine.spool import SpoolWriter

T = TypeVar("T")
CHUNK = 128
"""Structures evaluated side by side."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """One attempt on its worker.

    Attributes:
        inputs: the frozen inputs of the task.
        spool: where results go as they come.
        deadline: when to stop.
        log: file for what libraries print.
        scratch: folder for this attempt's own files.
        threads: threads that it may use.
        memory_MB: memory that it may use in units of 10⁶ bytes, or None where the site states none.
        virtual: whether budgets are in steps and half-done work is to be thrown away when
            interrupted, so that a campaign does not depend on the moment of an interruption.
        late: whether it began late in its batch job: if the deadline comes first, another job may do.
    """

    inputs: Mapping[str, Any]
    spool: SpoolWriter
    deadline: Deadline
    log: Path
    scratch: Path
    threads: int
    virtual: bool
    late: bool = False
    memory_MB: float | None = None  # noqa: N815

    def cut_short(self, failure: TaskFailure) -> bool:
        """Whether a failure only says that the work was asked to stop, or that its batch job ended."""
        if self.deadline.interrupted():
            return True
        out_of_time = self.deadline.remaining() == 0.0
        return self.late and out_of_time and failure.failure_class is FailureClass.RESOURCE

    def go_on(self) -> None:
        """To be called between pieces of work of which half an attempt is worth nothing.

        Raises:
            WorkInterrupted: it was asked to stop, or its batch job ends and another one may do.
            TaskFailure: it does not fit into a batch job (class ``resource``).
        """
        if self.deadline.interrupted() or (self.late and self.deadline.expired()):
            raise WorkInterrupted
        if self.deadline.remaining() == 0.0:
            text = "out of time: the walltime of its pool is too short for it"
            raise TaskFailure(FailureClass.RESOURCE, text)


class WorkInterrupted(Exception):
    """Work stopped before its end because it was asked to; it is to be tried again."""


def ensemble_of(record: Mapping[str, Any]) -> Potential:
    """The ensemble of a manifest in a task's inputs, from the worker's cache where it is there."""
    import torch

    manifest = EnsembleManifest(
        kind=record["kind"], members=tuple(MemberFile(**m) for m in record["members"])
    )
    return load_ensemble(manifest, device="cuda" if torch.cuda.is_available() else "cpu")


def manifest_record(manifest: EnsembleManifest) -> dict[str, Any]:
    """A manifest as an input of a task."""
    members = [{"path": m.path, "sha256": m.sha256} for m in manifest.members]
    return {"kind": manifest.kind, "members": members}


def build(group: Group, record: Mapping[str, Any]) -> Any:
    """The part that a record of name and settings describes."""
    plugin = find(group, record["name"])
    return plugin(plugin.Settings.model_validate(record["settings"]))


def chunks(items: Sequence[T], size: int = CHUNK) -> Iterator[Sequence[T]]:
    """The items in pieces of at most ``size``."""
    for start in range(0, len(items), size):
        yield items[start : start + size]

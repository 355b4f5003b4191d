"""A labeler ready for use: in a child process where it must be, with the checks around it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcal.core.plugins import Group, find
from hpcal.core.settings import Settings
from hpcal.labeling.checks import CheckedLabeler, ChecksSettings, LabelSource
from hpcal.labeling.isolated import IsolatedLabeler
from hpcal.labeling.wire import settings_of


def make_labeler(
    name: str,
    settings: Settings | Mapping[str, Any],
    checks: ChecksSettings | None = None,
    *,
    threads: int = 1,
    memory_MB: float | None = None,  # noqa: N803
    log: Path | None = None,
) -> CheckedLabeler:
    """The labeler of a short name, as a context manager.

    Args:
        name: short name (entry point ``hpcal.labelers``).
        settings: the labeler's settings, or a mapping of them.
        checks: what its labels must pass; the defaults if None.
        threads: threads of the child process. One in this process keeps its own number.
        memory_MB: memory limit of the child process in units of 10⁶ bytes, or None.
        log: file for the output of the child process.

    Raises:
        PluginError: no such labeler, or its package is not installed.
        InputError: the settings cannot be used.
    """
    kind = find(Group.LABELERS, name)
    checked = settings if isinstance(settings, Settings) else settings_of(kind, name, settings)
    labeler: LabelSource
    if kind.isolate:
        values = checked.model_dump(mode="json")
        labeler = IsolatedLabeler(name, values, threads=threads, memory_MB=memory_MB, log=log)
    else:
        labeler = kind(checked)
    return CheckedLabeler(labeler, ChecksSettings() if checks is None else checks)

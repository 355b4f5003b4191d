"""A labeler ready for use: in a child process where it must be, with the checks around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hpcal.core.plugins import Group, find
from hpcal.core.settings import Settings
from hpcal.labeling.checks import CheckedLabeler, ChecksSettings, LabelSource
from hpcal.labeling.isolated import IsolatedLabeler
from hpcal.labeling.screen import SCREENING, Screen, ScreenedLabeler
from hpcal.labeling.wire import settings_of

ReadyLabeler = CheckedLabeler | ScreenedLabeler
"""A labeler to use as a context manager."""


def make_labeler(
    name: str,
    settings: Settings | Mapping[str, Any],
    checks: ChecksSettings | None = None,
    *,
    screen: Screen | None = None,
    threads: int = 1,
    memory_MB: float | None = None,  # noqa: N803
    log: Path | None = None,
) -> ReadyLabeler:
    """The labeler of a short name, as a context manager.

    Args:
        name: short name (entry point ``hpcal.labelers``).
        settings: the labeler's settings, or a mapping of them.
        checks: what its labels must pass; the defaults if None.
        screen: a cheaper labeler that turns structures away first, or None.
        threads: threads of a child process. A labeler in this process keeps its own number.
        memory_MB: memory limit of a child process in units of 10⁶ bytes, or None.
        log: file for the output of child processes.

    Raises:
        PluginError: no such labeler, or its package is not installed.
        InputError: the settings cannot be used.
    """
    policy = ChecksSettings() if checks is None else checks
    make = partial(_source, threads=threads, memory_MB=memory_MB, log=log)
    labeler = _checked(name, settings, policy, make)
    if screen is None:
        return labeler
    return ScreenedLabeler(
        labeler, policy, _checked(screen.name, screen.settings, SCREENING, make), screen.policy
    )


def _checked(
    name: str,
    settings: Settings | Mapping[str, Any],
    checks: ChecksSettings,
    make: Callable[[str, Settings], LabelSource],
) -> CheckedLabeler:
    """A labeler with checks; one that is made of others gets ``make`` to build them by."""
    kind = find(Group.LABELERS, name)
    checked = settings if isinstance(settings, Settings) else settings_of(kind, name, settings)
    compose = getattr(kind, "compose", None)
    if compose is None:
        return CheckedLabeler(make(name, checked), checks)
    return CheckedLabeler(*compose(checked, make, checks))


def _source(
    name: str,
    settings: Settings,
    *,
    threads: int,
    memory_MB: float | None,  # noqa: N803
    log: Path | None,
) -> LabelSource:
    """The bare labeler, in a child process where it must be."""
    kind = find(Group.LABELERS, name)
    if not kind.isolate:
        labeler: LabelSource = kind(settings)
        return labeler
    values = settings.model_dump(mode="json")
    return IsolatedLabeler(name, values, threads=threads, memory_MB=memory_MB, log=log)

"""Parts found by short names through entry points, hpcal's own as well as third parties'."""

from __future__ import annotations

import difflib
import importlib.metadata
import re
from enum import StrEnum
from functools import cache
from typing import Any

from hpcal.core.errors import PluginError


class Group(StrEnum):
    """The kinds of parts that can be plugged in."""

    SAMPLERS = "hpcal.samplers"
    METRICS = "hpcal.metrics"
    SELECTORS = "hpcal.selectors"
    LABELERS = "hpcal.labelers"
    POTENTIALS = "hpcal.potentials"

    @property
    def singular(self) -> str:
        """Its name in a sentence."""
        return self.value.removeprefix("hpcal.").removesuffix("s")


@cache
def _entries(group: Group) -> dict[str, importlib.metadata.EntryPoint]:
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=str(group))}


def names(group: Group) -> tuple[str, ...]:
    """Short names of all parts of a kind, sorted."""
    return tuple(sorted(_entries(group)))


def find(group: Group, name: str) -> Any:
    """The class behind a short name.

    Raises:
        PluginError: no such part (names the nearest), or its package is not installed
            (says how to install it).
    """
    entries = _entries(group)
    if name not in entries:
        raise PluginError(f"unknown {group.singular} {name!r}{nearest(name, entries)}")
    try:
        return entries[name].load()
    except ImportError as error:
        missing = error.name or str(error)
        raise PluginError(
            f"{group.singular} {name!r} needs the package {missing!r}, which is not installed: "
            f"{how_to_install(missing)}"
        ) from error


def nearest(word: str, known: Any) -> str:
    """A phrase for error messages: the nearest known word, or all of them."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return "; known: " + ", ".join(sorted(known))


def how_to_install(module: str) -> str:
    """The command that installs a missing package: an extra of hpcal where one holds it."""
    package = module.split(".", maxsplit=1)[0].lower().replace("_", "-")
    for requirement in importlib.metadata.requires("hpcal") or ():
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower().replace("_", "-")
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", requirement)
        if name == package and extra:
            return f"pip install 'hpcal[{extra.group(1)}]'"
    return f"pip install {package}"

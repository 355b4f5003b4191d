"""``${NAME}`` in site files: values that belong to a person or a project, not to the machine."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from hpcal.core.errors import ConfigurationError
from hpcal.core.settings import Document

_REFERENCE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
LEFT_TO_THE_NODE: Final = ("worker_init", "scratch")
"""Keys whose variables are those of the node, and are filled in by its shell."""


def filled(document: Document, values: Mapping[str, str]) -> Any:
    """The data of a document with each ``${NAME}`` replaced.

    Args:
        values: given for this call, as by ``--set``; what is not there comes from the environment.

    Raises:
        ConfigurationError: a name without a value, with its line.
    """
    return _filled(document.data, (), document, values)


def used(data: Any, values: Mapping[str, str]) -> dict[str, str]:
    """Names that the data of a site file refer to, each with the value that it has now."""
    if isinstance(data, dict):
        parts = [used(value, values) for key, value in data.items() if key not in LEFT_TO_THE_NODE]
    elif isinstance(data, list):
        parts = [used(value, values) for value in data]
    else:
        names = _REFERENCE.findall(data) if isinstance(data, str) else []
        parts = [{name: values.get(name, os.environ.get(name, ""))} for name in names]
    return {name: value for part in parts for name, value in part.items()}


def _filled(data: Any, path: tuple[str | int, ...], document: Document, values: Mapping[str, str]) -> Any:
    if isinstance(data, dict):
        return {
            key: value if key in LEFT_TO_THE_NODE else _filled(value, (*path, key), document, values)
            for key, value in data.items()
        }
    if isinstance(data, list):
        return [_filled(value, (*path, i), document, values) for i, value in enumerate(data)]
    if not isinstance(data, str):
        return data

    def value_of(match: re.Match[str]) -> str:
        name = match[1]
        value = values.get(name, os.environ.get(name))
        if not value:
            raise document.fault(path, f"{match[0]} has no value; `export {name}=…`, or give --set {name}=…")
        return value

    return _REFERENCE.sub(value_of, data)


def parse_assignments(assignments: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` words of the command line as a mapping. Raises ConfigurationError."""
    values = {}
    for word in assignments:
        name, sign, value = word.partition("=")
        if not sign or not _REFERENCE.fullmatch(f"${{{name}}}") or not value:
            raise ConfigurationError(f"--set {word}: must be NAME=VALUE, such as ACCOUNT=m1234")
        values[name] = value
    return values

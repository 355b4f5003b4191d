"""Records between a worker and its labelling child: a length, then a record of ``hpcal.core.codec``.

The first record to the child is :func:`hello`; the child answers with its level of theory. Then
each request has one reply, in order. A reply is a dict with ``result``, or with ``failure``:
class, message and the type of the exception.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from hpcal.core.codec import pack
from hpcal.core.errors import ConfigurationError, InputError, PluginError, TaskFailure
from hpcal.core.protocols import Labeler
from hpcal.core.settings import Settings
from hpcal.labeling.failures import as_failure

LENGTH: Final = struct.Struct("<Q")
_INPUT_ERRORS: Final[dict[str, type[InputError]]] = {
    cls.__name__: cls for cls in (InputError, ConfigurationError, PluginError)
}


def hello(name: str, settings: Mapping[str, Any], memory_MB: float | None) -> dict[str, Any]:  # noqa: N803
    """The first record: which labeler to build, and the memory that it may use."""
    return {"labeler": name, "settings": dict(settings), "memory_MB": memory_MB}


def settings_of(kind: type[Labeler], name: str, values: Mapping[str, Any]) -> Settings:
    """The settings of a kind of labeler from JSON values.

    Raises:
        ConfigurationError: they do not fit it.
    """
    try:
        return kind.Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(f"settings of labeler {name!r}: {error}") from error


def send(fd: int, value: Any) -> None:
    """Writes one record.

    Raises:
        BrokenPipeError: nobody reads any more.
    """
    payload = pack(value)
    data = memoryview(LENGTH.pack(len(payload)) + payload)
    while data:
        data = data[os.write(fd, data) :]


def failure_record(error: BaseException) -> dict[str, Any]:
    """An exception as a reply."""
    failure = as_failure(error)
    return {
        "failure": {
            "class": failure.failure_class,
            "message": str(failure),
            "type": type(error).__name__,
        }
    }


def failure_of(record: Mapping[str, Any]) -> TaskFailure | InputError:
    """The exception of a reply; what is wrong with the user's settings keeps its type."""
    failure = record["failure"]
    kind = _INPUT_ERRORS.get(failure["type"])
    return kind(failure["message"]) if kind else TaskFailure(failure["class"], failure["message"])

"""Parts under check: found by name, built from settings, and what all settings promise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from hpcal.core.plugins import Group, find
from hpcal.core.settings import Settings
from hpcal.testing.conformance import Subject

UNKNOWN_KEY: Final = "no_setting_is_called_this"

Values = Settings | Mapping[str, Any] | None
"""Settings of a part, a mapping of them, or None for the defaults."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A class under check with checked settings.

    Attributes:
        subject: how messages call it.
        cls: the class.
        settings: what it is built from.
    """

    subject: Subject
    cls: Any
    settings: Settings

    def build(self) -> Any:
        """A new one."""
        return self.cls(self.settings)


def part_of(group: Group, part: str | type, values: Values) -> Part:
    """The part of a short name or class, its settings checked.

    Raises:
        ConformanceError: its settings break a promise.
        PluginError: no part has that name.
    """
    cls: Any = find(group, part) if isinstance(part, str) else part
    subject = subject_of(group, part)
    model = getattr(cls, "Settings", None)
    subject.promises(
        "its nested Settings are a subclass of hpcal.core.settings.Settings",
        isinstance(model, type) and issubclass(model, Settings),
        f"Settings is {model!r}",
    )
    if isinstance(values, Settings):
        settings = values
    else:
        settings = cls.Settings.model_validate({} if values is None else dict(values))
    check_settings(subject, settings)
    return Part(subject=subject, cls=cls, settings=settings)


def subject_of(group: Group, part: Any) -> Subject:
    """What messages call a part: by its short name, or by its class."""
    if isinstance(part, str):
        return Subject(name=f"{group.singular} {part!r}")
    cls = part if isinstance(part, type) else type(part)
    return Subject(name=f"{group.singular} {cls.__module__}.{cls.__qualname__}")


def check_settings(subject: Subject, settings: Settings) -> None:
    """What the settings of every part promise: no unknown keys, a description a field, JSON values.

    Raises:
        ConformanceError: one of them is broken.
    """
    for model in _models(type(settings)):
        subject.promises(
            "settings refuse unknown keys (extra='forbid'), nested ones too",
            model.model_config.get("extra") == "forbid",
            f"{model.__name__} has extra={model.model_config.get('extra')!r}",
        )
        bare = [name for name, field in model.model_fields.items() if not field.description]
        subject.promises(
            "every setting has a description", not bare, f"{model.__name__} has none for {', '.join(bare)}"
        )
    values = settings.model_dump(mode="json", by_alias=True)
    subject.refuses(
        "settings refuse unknown keys",
        _validating(type(settings), {**values, UNKNOWN_KEY: 1}),
        ValidationError,
    )
    again = type(settings).model_validate(values)
    subject.promises(
        "settings come back the same from their JSON values, which is how they reach a worker",
        again == settings,
        f"{again!r} from {settings!r}",
    )


def _validating(model: type[BaseModel], values: Mapping[str, Any]) -> Callable[[], BaseModel]:
    return lambda: model.model_validate(values)


def _models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """The model and all models nested in its fields, each once."""
    seen: set[type[BaseModel]] = set()
    waiting = [model]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        yield current
        for field in current.model_fields.values():
            waiting += _models_in(field.annotation)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in getattr(annotation, "__args__", ()) for m in _models_in(argument)]

"""Settings that users write: strict models, YAML with line numbers, one clear sentence on a fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hpcal.core.errors import ConfigurationError
from hpcal.core.plugins import nearest

Model = TypeVar("Model", bound="Settings")
Path_ = tuple[str | int, ...]


class Settings(BaseModel):
    """Base of everything that comes from a user's file: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Uniform(Settings):
    """A number drawn uniformly for each walker: ``{uniform: [low, high]}``."""

    uniform: tuple[float, float] = Field(description="lower and upper bound")

    def draw(self, rng: np.random.Generator) -> float:
        """One number."""
        return float(rng.uniform(*self.uniform))


Drawn = Annotated[float, Field(gt=0)] | Uniform
"""A positive number, or how to draw one."""


def draw(value: float | Uniform, rng: np.random.Generator) -> float:
    """A number from a setting that may be one or say how to draw one."""
    return value.draw(rng) if isinstance(value, Uniform) else float(value)


class Document:
    """A parsed YAML file that still knows on which line each key stands."""

    def __init__(self, data: Any, lines: Mapping[Path_, int], source: str) -> None:
        self.data = data
        self.lines = lines
        self.source = source

    def line(self, path: Sequence[str | int]) -> int | None:
        """Line of a key, or of the nearest enclosing one."""
        for end in range(len(path), -1, -1):
            found = self.lines.get(tuple(path[:end]))
            if found is not None:
                return found
        return None

    def fault(self, path: Sequence[str | int], message: str) -> ConfigurationError:
        """An error that names file, line and key."""
        line = self.line(path)
        where = f"{self.source}:{line}" if line is not None else self.source
        key = ".".join(str(p) for p in path)
        return ConfigurationError(f"{where}: {key + ': ' if key else ''}{message}")


def read_yaml(path: Path) -> Document:
    """Reads a YAML file.

    Raises:
        ConfigurationError: no such file, no YAML, or a key given twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigurationError(f"no such file: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Document:
    """Parses YAML text; ``source`` is its name in messages. Raises as :func:`read_yaml`."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigurationError(f"{source}{line}: not valid YAML: {problem}") from error
    lines: dict[Path_, int] = {}
    if node is None:
        return Document({}, lines, source)
    _walk(node, (), lines, source)
    return Document(yaml.safe_load(text), lines, source)


def _walk(node: yaml.Node, path: Path_, lines: dict[Path_, int], source: str) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            if here in lines:
                raise ConfigurationError(
                    f"{source}:{key.start_mark.line + 1}: {key.value}: given twice "
                    f"(first on line {lines[here]})"
                )
            lines[here] = key.start_mark.line + 1
            _walk(value, here, lines, source)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk(value, (*path, index), lines, source)


def validate(model: type[Model], document: Document, data: Any = None, at: Path_ = ()) -> Model:
    """Checks data of a document against a model.

    Args:
        data: the part to check; the whole document if None.
        at: where that part stands in the document.

    Raises:
        ConfigurationError: the first fault, with file, line and key; an unknown key names the
            nearest known one.
    """
    try:
        return model.model_validate(document.data if data is None else data)
    except ValidationError as error:
        faults = error.errors()
        fault = faults[0]
        if fault["type"] == "missing":
            # A mistyped key is missing under its right name too: the unknown one tells more.
            fault = next((f for f in faults if f["type"] == "extra_forbidden"), fault)
        place = tuple(p for p in fault["loc"] if not _is_union_branch(p))
        raise document.fault((*at, *place), _sentence(model, fault)) from None


def _is_union_branch(part: str | int) -> bool:
    """Pydantic names the branch of a union in the path; the user did not write it."""
    return isinstance(part, str) and (
        part[:1].isupper()
        or part.removeprefix("constrained-") in ("float", "int", "str", "bool")
        or "[" in part
    )


def _sentence(model: type[BaseModel], fault: Any) -> str:
    value = fault.get("input")
    if fault["type"] == "extra_forbidden":
        known = _fields_at(model, fault["loc"][:-1])
        return f"unknown key{nearest(str(fault['loc'][-1]), known)}"
    if fault["type"] == "missing":
        return "this key is missing"
    message = str(fault["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    shown = "" if isinstance(value, dict | list | BaseModel) else f" (given: {value!r})"
    return message + shown


def _fields_at(model: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """Known keys at a path of nested models; those of the outermost one where it is lost."""
    current: type[BaseModel] = model
    for part in path:
        if not isinstance(part, str) or part not in current.model_fields:
            continue
        for candidate in _models_in(current.model_fields[part].annotation):
            current = candidate
    return [f.alias or name for name, f in current.model_fields.items()]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for arg in getattr(annotation, "__args__", ()) for m in _models_in(arg)]

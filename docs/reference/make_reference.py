"""Writes the generated parts of this reference from the code.

::

    python docs/reference/make_reference.py           # rewrites the pages
    python docs/reference/make_reference.py --check   # exits 1 if one of them is out of date

A generated part stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``. Tables of keys
come from the pydantic models, commands from click, states and tables from the store. The picture of
the tables is drawn by ``draw_tables.py`` beside this file.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any, Final, Literal, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from sqlalchemy import MetaData

from hpcal.cli.main import cli
from hpcal.core.plugins import Group, find, names
from hpcal.core.settings import Uniform
from hpcal.engine import campaign_file
from hpcal.labeling.checks import ChecksSettings
from hpcal.sampling.dynamics import DynamicsSettings
from hpcal.sites.pool import Container, ControllerJob, JobKeys, Pool, Ranks
from hpcal.sites.schema import About, Site
from hpcal.store.tables import Base
from hpcal.store.transitions import (
    CampaignState,
    EnsembleState,
    StructureState,
    TaskState,
    WalkerState,
    mermaid,
)
from hpcal.uncertainty.calibration import CalibrationSettings

HERE: Final = Path(__file__).parent
PAGES: Final = ("campaign-file.md", "command-line.md", "data-model.md", "site-file.md")
PICTURE: Final = HERE.parent / "images" / "data_model.svg"
_PART: Final = re.compile(r"(<!-- begin ([\w.-]+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)
_BOUNDS: Final = {"gt": "> {}", "ge": "≥ {}", "lt": "< {}", "le": "≤ {}"}
_WORDS: Final = {int: "integer", float: "number", str: "text", bool: "true or false", Path: "path"}


# ── Keys of settings ─────────────────────────────────────────────────────────────────────────


def keys(model: type[BaseModel], *, without: type[BaseModel] | None = None) -> str:
    """A table of the keys of a model, those of nested ones included.

    Args:
        without: leave out keys that stand in the table of this model with the same default.
    """
    rows = _rows(model, "")
    known = set() if without is None else set(_rows(without, ""))
    own = [row for row in rows if row not in known]
    return table(("key", "type", "default", "description"), own) if own else "No keys of its own.\n"


def _rows(model: type[BaseModel], prefix: str) -> list[tuple[str, ...]]:
    rows = []
    for name, field in model.model_fields.items():
        key = prefix + (field.alias or name)
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, BaseModel):
            rows += _rows(nested, f"{key}.")
        else:
            rows.append((f"`{key}`", _type(field), _default(field), field.description or ""))
    return rows


def _type(field: FieldInfo) -> str:
    return ", ".join([_word(field.annotation), *_bounds(field.metadata)])


def _word(kind: Any) -> str:
    """An annotation in the words of a YAML file."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind in _WORDS:
        return _WORDS[kind]
    if kind is Uniform:
        return "`{uniform: [low, high]}`"
    if kind is NoneType:
        return "null"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "mapping"
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return " or ".join(f"`{word}`" for word in kind)
    if origin is Literal:
        return " or ".join(f"`{word}`" for word in arguments)
    if hasattr(kind, "__metadata__"):
        return ", ".join([_word(arguments[0]), *_bounds(kind.__metadata__)])
    if origin in (list, tuple):
        return f"list of {_word(arguments[0])}"
    if origin is dict:
        return "mapping"
    if arguments:
        return " or ".join(_word(part) for part in arguments)
    return getattr(kind, "__name__", str(kind))


def _bounds(metadata: Sequence[Any]) -> list[str]:
    """Limits of a number; they stand in the metadata or in a pydantic field there."""
    limits = [limit for part in metadata for limit in (part, *getattr(part, "metadata", ()))]
    return [
        form.format(f"{value:g}" if isinstance(value, float) else value)
        for limit in limits
        for name, form in _BOUNDS.items()
        if (value := getattr(limit, name, None)) is not None
    ]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return ""
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return "see there"
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_yaml(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{}" if not value else str(dict(value))
    if value == "":
        return '""'
    return f"{value:g}" if isinstance(value, float) else str(value)


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


# ── Plugins ──────────────────────────────────────────────────────────────────────────────────


def plugins(group: Group, stage: str | None = None) -> dict[str, Any]:
    """The parts of a kind that hpcal brings, third parties' left out."""
    found = {name: find(group, name) for name in names(group)}
    return {
        name: part
        for name, part in found.items()
        if part.__module__.startswith("hpcal.") and (stage is None or part.stage == stage)
    }


def parts(group: Group, stage: str | None = None, *, without: type[BaseModel] | None = None) -> str:
    """A section for each part: what it is, and its keys."""
    sections = []
    for name, part in plugins(group, stage).items():
        about = part.Settings if group is Group.POTENTIALS else part
        sections.append(f"### `{name}`\n\n{_summary(about)}\n\n{keys(part.Settings, without=without)}")
    return "\n".join(sections)


def metrics() -> str:
    """The metrics with their units."""
    rows = [
        (f"`{name}`", _summary(part), part.unit, f"{part.floor:g}", ", ".join(sorted(part.requires)))
        for name, part in plugins(Group.METRICS).items()
    ]
    return table(("metric", "meaning", "unit", "floor", "needs of the potential"), rows)


def _summary(thing: Any) -> str:
    """The first paragraph of a docstring, in one line."""
    paragraph = " ".join((thing.__doc__ or "").strip().split("\n\n")[0].split())
    without_links = re.sub(r",? see :\w+:`[^`]*`", "", paragraph)
    return without_links.replace("``", "`")


# ── Commands ─────────────────────────────────────────────────────────────────────────────────


def commands() -> str:
    """Every command with its options."""
    return "\n".join(_command(name, part) for name, part in cli.commands.items())


def _command(name: str, command: click.Command) -> str:
    context = click.Context(command, info_name=f"hpcal {name}")
    usage = " ".join([f"hpcal {name}", *command.collect_usage_pieces(context)])
    options = [
        option.get_help_record(context) for option in command.params if isinstance(option, click.Option)
    ]
    rows = [(f"`{record[0]}`", " ".join(record[1].split())) for record in options if record is not None]
    text = f"## `{name}`\n\n```text\n{usage}\n```\n\n{_help(command)}\n"
    if rows:
        text += "\n" + table(("option", "meaning"), rows)
    if isinstance(command, click.Group):
        for child, part in command.commands.items():
            text += "\n" + _command(f"{name} {child}", part).replace("## ", "### ", 1)
    return text


def _help(command: click.Command) -> str:
    paragraphs = (command.help or "").strip().split("\n\n")
    return "\n\n".join(" ".join(p.split()) for p in paragraphs)


# ── The store ────────────────────────────────────────────────────────────────────────────────


def diagram(kind: type[StrEnum]) -> str:
    """A transition table as a diagram."""
    return f"```mermaid\n{mermaid(kind)}\n```\n"


def picture() -> str:
    """The tables and what refers to what, as SVG."""
    return drawn(Base.metadata)


def drawn(metadata: MetaData) -> str:
    """Some tables as SVG. Raises KeyError for one that has no place in the picture."""
    spec = importlib.util.spec_from_file_location("draw_tables", HERE / "draw_tables.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{HERE / 'draw_tables.py'} cannot be read")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return str(module.picture(metadata))


def columns() -> str:
    """The tables and their columns; Alembic's own, which no class stands for, is left out."""
    rows = [
        (
            f"`{part.local_table.name}`",
            _summary(part.class_),
            ", ".join(f"`{column.name}`" for column in part.local_table.columns),
        )
        for part in Base.registry.mappers
    ]
    return table(("table", "one row is", "columns"), sorted(rows))


# ── Pages ────────────────────────────────────────────────────────────────────────────────────

MODELS: Final[Mapping[str, type[BaseModel]]] = {
    "campaign": campaign_file.CampaignFile,
    "structures": campaign_file.StructuresBlock,
    "checks": ChecksSettings,
    "dynamics": DynamicsSettings,
    "uncertainty": campaign_file.UncertaintyBlock,
    "calibration": CalibrationSettings,
    "splits": campaign_file.SplitsBlock,
    "promotion": campaign_file.PromotionBlock,
    "evaluate": campaign_file.EvaluateBlock,
    "stop": campaign_file.StopBlock,
    "tasks": campaign_file.TasksBlock,
    "job": JobKeys,
    "container": Container,
    "mpi": Ranks,
    "about": About,
}
STATES: Final = (StructureState, TaskState, WalkerState, EnsembleState, CampaignState)


def _top_level() -> str:
    rows = []
    for name, field in campaign_file.CampaignFile.model_fields.items():
        kind = field.annotation
        block = isinstance(kind, type) and issubclass(kind, BaseModel)
        described = field.description or (_summary(kind) if block else "")
        word = "mapping" if block else _type(field)
        default = "required" if field.is_required() else "" if block else _default(field)
        rows.append((f"`{name}`", word, default, described))
    return table(("key", "type", "default", "description"), rows)


PARTS: Final[Mapping[str, Callable[[], str]]] = {
    **{f"keys.{name}": partial(keys, model) for name, model in MODELS.items()},
    "keys.campaign": _top_level,
    "keys.site": partial(keys, Site, without=JobKeys),
    "keys.pool": partial(keys, Pool, without=JobKeys),
    "keys.controller": partial(keys, ControllerJob, without=JobKeys),
    "labelers": partial(parts, Group.LABELERS),
    "potentials": partial(parts, Group.POTENTIALS),
    "generators": partial(parts, Group.SAMPLERS, "bootstrap"),
    "samplers": partial(parts, Group.SAMPLERS, "sampling", without=DynamicsSettings),
    "selectors": partial(parts, Group.SELECTORS),
    "metrics": metrics,
    "commands": commands,
    "columns": columns,
    **{f"states.{kind.__name__}": partial(diagram, kind) for kind in STATES},
}


def filled(text: str) -> str:
    """A page with its generated parts made anew. Raises KeyError for an unknown one."""
    return _PART.sub(lambda part: f"{part[1]}{PARTS[part[2]]()}{part[3]}", text)


def outdated() -> dict[Path, str]:
    """Files that differ from what the code says now, with what should be in them."""
    wanted = {HERE / name: filled((HERE / name).read_text(encoding="utf-8")) for name in PAGES}
    wanted[PICTURE] = picture()
    return {
        path: text
        for path, text in wanted.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    }


def run(arguments: list[str]) -> int:
    """Rewrites pages and picture, or says which are out of date."""
    stale = outdated()
    if "--check" not in arguments:
        for path, text in stale.items():
            path.write_text(text, encoding="utf-8")
    names = ", ".join(path.name for path in stale)
    print(f"out of date: {names}" if stale else "everything is up to date")
    return int(bool(stale) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))

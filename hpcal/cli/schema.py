"""``hpcal config schema``: the JSON schema of campaign and site files, for editors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click
from pydantic import BaseModel

from hpcal.cli.check import kind_of
from hpcal.core.errors import InputError, PluginError
from hpcal.core.plugins import Group, find, names
from hpcal.core.settings import read_yaml
from hpcal.engine.campaign_file import CampaignFile
from hpcal.engine.states import StatesSettings
from hpcal.labeling.checks import ChecksSettings
from hpcal.labeling.screen import ScreenSettings
from hpcal.uncertainty.calibration import CalibrationSettings

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]


def print_schema(file: Path | None) -> None:
    """Prints the schema of campaign files, or of what a file is. Raises InputError."""
    kind = "campaign" if file is None else kind_of(read_yaml(file))
    if kind not in ("campaign", "site"):
        raise InputError(f"{file} holds the block `{kind}` of a campaign file: see the schema of that")
    click.echo(json.dumps(campaign_schema() if kind == "campaign" else site_schema(), indent=1))


def site_schema() -> Schema:
    """The schema of site files."""
    from hpcal.sites.schema import Site

    return {"$schema": DIALECT, **Site.model_json_schema()}


def campaign_schema() -> Schema:
    """The schema of campaign files, with a branch for each part that is installed."""
    schema: Schema = {"$schema": DIALECT, **CampaignFile.model_json_schema()}
    branches = _Branches(schema.setdefault("$defs", {}))
    checks = {"checks": branches.model("checks", ChecksSettings)}
    properties = schema["properties"]
    states = {"states": branches.model("states", StatesSettings)}
    labelers = branches.of(Group.LABELERS, "labeler", {**checks, "screen": _screen(), **states})
    properties["label"] |= labelers
    properties["potential"] |= branches.of(Group.POTENTIALS, "kind")
    properties["bootstrap"]["items"] = {
        "anyOf": [
            *branches.of(Group.SAMPLERS, "sampler", {"count": _COUNT}, stage="bootstrap")["anyOf"],
            {
                "type": "object",
                "properties": {"file": {"type": "string", "description": "labelled structures"}},
                "required": ["file"],
                "additionalProperties": False,
            },
        ]
    }
    properties["sampling"]["items"] = branches.of(
        Group.SAMPLERS, "sampler", {"walkers": _COUNT}, stage="sampling"
    )
    properties["selection"] |= branches.of(
        Group.SELECTORS, "method", {"batch": _COUNT, "audit_share": _SHARE}, default="farthest_point"
    )
    defs = schema["$defs"]
    level = defs["StructuresBlock"]["properties"]["level"]
    level["anyOf"] = [*labelers["anyOf"], {"type": "null"}]
    uncertainty = defs["UncertaintyBlock"]["properties"]
    uncertainty["metric"] |= {"enum": list(names(Group.METRICS))}
    uncertainty["calibration"] |= branches.model("calibration", CalibrationSettings)
    return schema


_COUNT: Final[Schema] = {"type": "integer", "minimum": 1}
_SHARE: Final[Schema] = {"type": "number", "minimum": 0, "exclusiveMaximum": 1}


def _screen() -> Schema:
    """The labeler that screens, whose settings are checked at load only, and its policy."""
    own = ScreenSettings.model_json_schema()["properties"]
    labeler = {"labeler": {"enum": list(names(Group.LABELERS))}}
    return {"type": "object", "properties": {**labeler, **own}, "required": ["labeler"]}


class _Branches:
    """Branches for plugins; what their settings define goes under names of their own."""

    def __init__(self, defs: Schema) -> None:
        self._defs = defs

    def model(self, prefix: str, model: type[BaseModel]) -> Schema:
        """The schema of a model, as a reference."""
        made = model.model_json_schema(ref_template=f"#/$defs/{prefix}.{{model}}")
        for name, part in made.pop("$defs", {}).items():
            self._defs[f"{prefix}.{name}"] = part
        self._defs[prefix] = made
        return {"$ref": f"#/$defs/{prefix}"}

    def of(
        self,
        group: Group,
        key: str,
        own: Mapping[str, Schema] | None = None,
        *,
        stage: str | None = None,
        default: str | None = None,
    ) -> Schema:
        """A choice among the plugins of a group.

        Args:
            key: the key that names the plugin.
            own: keys of the block that are not the plugin's.
            stage: only samplers of this stage.
            default: the plugin where the key is missing.
        """
        found = []
        for name in names(group):
            try:
                plugin = find(group, name)
            except PluginError:  # its package is not installed here
                continue
            if stage is None or plugin.stage == stage:
                names_it = {key: {"const": name}, **(own or {})}
                required = [] if name == default else [key]
                found.append(self._branch(f"{group.singular}.{name}", plugin, names_it, required))
        return {"anyOf": found}

    def _branch(self, prefix: str, plugin: Any, own: Mapping[str, Schema], required: list[str]) -> Schema:
        """The schema of a plugin's settings, with the keys of the block that are not the plugin's."""
        self.model(prefix, plugin.Settings)
        block = self._defs[prefix]
        block["title"] = prefix.partition(".")[2]
        block["properties"] = {**own, **block.get("properties", {})}
        block["required"] = [*required, *block.get("required", ())]
        return {"$ref": f"#/$defs/{prefix}"}

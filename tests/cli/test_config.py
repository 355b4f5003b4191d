"""Checking files, schemas for editors, and examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli.helpers import CAMPAIGN, hpcal

from hpcal.core.plugins import Group, names
from hpcal.exchange.shipped import shipped_folder

EXAMPLES = sorted(path.stem for path in shipped_folder("workflows").glob("*.yaml"))
SITES = sorted(path.stem for path in shipped_folder("site_configs").glob("*.yaml"))


def fits(value: Any, schema: dict[str, Any] | bool, root: dict[str, Any]) -> bool:
    """Whether a value is allowed by the part of JSON schema that is used here."""
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema:
        part = root
        for key in schema["$ref"].removeprefix("#/").split("/"):
            part = part[key]
        return fits(value, {**part, **{k: v for k, v in schema.items() if k != "$ref"}}, root)
    if "anyOf" in schema and not any(fits(value, branch, root) for branch in schema["anyOf"]):
        return False
    if "const" in schema and value != schema["const"]:
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    kinds = {
        "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None),
        "integer": int, "number": (int, float),
    }  # fmt: skip
    if "type" in schema and not isinstance(value, kinds[schema["type"]]):
        return False
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        if set(schema.get("required", ())) - value.keys():
            return False
        others = schema.get("additionalProperties", {})
        more = [v for k, v in value.items() if k not in properties]
        if not all(fits(v, others, root) for v in more):
            return False
        return all(fits(v, properties[k], root) for k, v in value.items() if k in properties)
    if isinstance(value, list) and "items" in schema:
        return all(fits(v, schema["items"], root) for v in value)
    return True


@pytest.fixture
def schema() -> dict[str, Any]:
    result = hpcal("config", "schema")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_the_schema_takes_campaigns(schema):
    assert fits(yaml.safe_load(CAMPAIGN), schema, schema)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_schema_takes_every_example(schema, name):
    text = (shipped_folder("workflows") / f"{name}.yaml").read_text()
    assert fits(yaml.safe_load(text), schema, schema)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("kind: morse", "kind: mors"),
        ("members: 2", "membres: 2"),
        ("sampler: langevin", "sampler: normal_modes"),
        ("walkers: 6", "walkers: six"),
        ("method: random", "method: at_random"),
        ("labeler: teacher, model: teacher", "labeler: teacher"),
        ("stop: ", "halt: "),
    ],
)
def test_the_schema_refuses_what_the_command_refuses(schema, here, old, new):
    text = CAMPAIGN.replace(old, new)
    assert not fits(yaml.safe_load(text), schema, schema)
    (here / "bad.yaml").write_text(text)
    result = hpcal("config", "check", "bad.yaml")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


def test_the_schema_knows_every_part(schema):
    for group, block in (
        (Group.LABELERS, "label"),
        (Group.POTENTIALS, "potential"),
        (Group.SELECTORS, "selection"),
    ):
        found = {branch["$ref"].rpartition(".")[2] for branch in schema["properties"][block]["anyOf"]}
        assert found == set(names(group))


def test_the_schema_of_a_site_file(here):
    (here / "site.yaml").write_text("pools: {label: {}, sample: {}, train: {}}\n")
    result = hpcal("config", "schema", "site.yaml")
    found = json.loads(result.stdout)
    assert fits(yaml.safe_load((here / "site.yaml").read_text()), found, found)
    assert not fits({"pools": {"label": {"max_workers": 1}}}, found, found)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (CAMPAIGN, "campaign tiny, 1 seeds"),
        (
            "pools: {label: {max_workers_per_node: 3}, sample: {}, train: {}}",
            "a site of kind local with slots label 3",
        ),
        ("{labeler: teacher, model: teacher}", "labels of morse"),
        ("{kind: morse, members: 4}", "potential morse of 4 members"),
        ("{sampler: langevin, walkers: 5}", "5 walkers of langevin"),
    ],
)
def test_files_of_every_kind_are_recognised(here, text, told):
    (here / "file.yaml").write_text(text)
    result = hpcal("config", "check", "file.yaml")
    assert result.exit_code == 0, result.stderr
    assert f"file.yaml: {told}" in result.stdout


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (CAMPAIGN.replace("seed: 3", "sed: 3"), "file.yaml:3: sed: unknown key; did you mean 'seed'?"),
        ("kind: local\npools:\n  label: {}\n  sample: {}\n  train: {max_blocs: 1}\n", "file.yaml:5: "),
        ("kind: morse\nmembers: two\n", "file.yaml:2: members: "),
        ("sampler: langevin\nwalkers: 0\n", "file.yaml:2: walkers: "),
        ("", "file.yaml"),
    ],
)
def test_a_fault_names_its_line(here, text, told):
    (here / "file.yaml").write_text(text)
    result = hpcal("config", "check", "file.yaml")
    assert result.exit_code == 2
    assert told in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_examples_are_listed_with_what_they_are_about():
    result = hpcal("init")
    assert result.exit_code == 0
    assert EXAMPLES
    for name in EXAMPLES:
        line = next(line for line in result.stdout.splitlines() if line.startswith(f"{name} "))
        assert len(line.split()) > 4


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_written_with_what_it_needs(tmp_path: Path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    result = hpcal("init", name)
    assert result.exit_code == 0, result.stderr
    assert f"hpcal run {name}.yaml" in result.stdout
    assert (tmp_path / "site_configs" / "local.yaml").is_file()
    campaign = yaml.safe_load((tmp_path / f"{name}.yaml").read_text())
    for named in (campaign["structures"].get("file"), campaign.get("evaluate", {}).get("reference")):
        assert named is None or (tmp_path / named).is_file()


def test_nothing_is_overwritten(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = EXAMPLES[0]
    assert hpcal("init", name).exit_code == 0
    (tmp_path / "site_configs" / "local.yaml").write_text("mine")
    assert hpcal("init", name).exit_code == 0
    assert (tmp_path / "site_configs" / "local.yaml").read_text() == "mine"
    (tmp_path / f"{name}.yaml").write_text("mine")
    result = hpcal("init", name)
    assert result.exit_code == 2
    assert "not overwritten" in result.stderr
    assert (tmp_path / f"{name}.yaml").read_text() == "mine"


@pytest.mark.parametrize("place", ["site_configs", "data"])
def test_a_file_in_the_place_of_a_folder_leaves_nothing_written(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / place).write_text("mine")
    result = hpcal("init", "quickstart")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"hpcal: {place} is a file, and {place}/")
    assert [path.name for path in tmp_path.iterdir()] == [place]


def test_an_unknown_example_names_the_nearest():
    result = hpcal("init", EXAMPLES[0][:-1])
    assert result.exit_code == 2
    assert f"did you mean {EXAMPLES[0]!r}?" in result.stderr


@pytest.mark.parametrize("name", SITES)
def test_the_schema_of_site_files_takes_every_shipped_one(here, name):
    path = shipped_folder("site_configs") / f"{name}.yaml"
    found = json.loads(hpcal("config", "schema", path).stdout)
    document = yaml.safe_load(path.read_text())
    assert fits(document, found, found)
    document["pools"]["label"]["partitoin"] = "x"
    assert not fits(document, found, found)

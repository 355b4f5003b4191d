"""The documentation says what the code does: generated parts, links, YAML and commands in it."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import click
import pytest
from sqlalchemy import Column, Integer, MetaData, Table

from hpcal.cli.main import cli
from hpcal.cli.sample import read_request
from hpcal.core.plugins import Group
from hpcal.core.settings import Document, parse_yaml, validate
from hpcal.engine.campaign import campaign_of, label_spec, part
from hpcal.engine.campaign_file import CampaignFile
from hpcal.sites.schema import Site
from hpcal.store.tables import Base

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CHANGELOG.md"])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
BASE = """
name: base
structures: {smiles: "O"}
label: {labeler: xtb}
potential: {kind: ani}
bootstrap: [{sampler: normal_modes, count: 10}]
sampling: [{sampler: udd}]
stop: {labels: 20}
"""


def blocks(*languages: str, without: tuple[str, ...] = ()) -> list:
    """Code blocks of all pages in a language."""
    return [
        pytest.param(found[2], id=f"{page.relative_to(ROOT)}:{number}")
        for page in PAGES
        if page.name not in without
        for number, found in enumerate(BLOCK.finditer(page.read_text(encoding="utf-8")), start=1)
        if found[1] in languages
    ]


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", DOCS / "reference" / "make_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_parts_and_the_picture_are_up_to_date(reference):
    stale = [str(path.relative_to(ROOT)) for path in reference.outdated()]
    assert not stale, "run `python docs/reference/make_reference.py`"


def test_the_picture_shows_every_table_and_every_reference(reference):
    drawn = reference.picture()
    tables = {name: t for name, t in Base.metadata.tables.items() if name != "alembic_version"}
    rows = re.findall(r">(\w+)</text>", drawn)
    for name in tables:
        assert rows.count(name) == 1, name
    for column in {column.name for t in tables.values() for column in t.columns if column.foreign_keys}:
        there = sum(column in t.columns and bool(t.columns[column].foreign_keys) for t in tables.values())
        assert rows.count(column) == there, column
    # A line for each reference ends in a dot on the track of its table.
    assert drawn.count("<circle") == sum(len(t.foreign_keys) for t in tables.values())


def test_a_table_without_a_place_in_the_picture_is_not_left_out(reference):
    metadata = MetaData()
    for table in Base.metadata.tables.values():
        table.to_metadata(metadata)
    Table("novelty", metadata, Column("id", Integer, primary_key=True))
    with pytest.raises(KeyError, match="novelty"):
        reference.drawn(metadata)


def test_every_generated_part_stands_on_a_page(reference):
    text = "".join((DOCS / "reference" / name).read_text(encoding="utf-8") for name in reference.PAGES)
    assert set(re.findall(r"<!-- begin ([\w.-]+) -->", text)) == set(reference.PARTS)


def headings(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    found = re.findall(r"^#+ +(.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        if not file.exists() or (anchor and anchor not in headings(file)):
            broken.append(target)
    assert not broken


def test_every_page_can_be_reached_from_the_index():
    seen, left = set(), [DOCS / "index.md"]
    while left:
        page = left.pop().resolve()
        if page in seen or page.suffix != ".md" or not page.exists():
            continue
        seen.add(page)
        links = LINK.findall(BLOCK.sub("", page.read_text(encoding="utf-8")))
        left += [page.parent / link.partition("#")[0] for link in links if not re.match(r"[a-z]+:", link)]
    written = {page.resolve() for page in DOCS.rglob("*.md")}
    assert {p.relative_to(DOCS) for p in written - seen} == set()


# The plugins of that page are examples, which nobody has installed.
@pytest.mark.parametrize("text", blocks("yaml", without=("plugins.md",)))
def test_yaml_is_accepted(text):
    document = parse_yaml(text, "the page")
    keys = set(document.data)
    if "pools" in keys:
        validate(Site, document)
    elif "labeler" in keys:
        label_spec(document, (), ROOT)
    elif "sampler" in keys:
        read_request(document, ROOT)
    elif "kind" in keys:
        part(document, (), Group.POTENTIALS, "kind", ROOT)
    else:
        assert keys <= set(CampaignFile.model_fields)
        whole = {**parse_yaml(BASE, "base").data, **document.data}
        campaign_of(Document(whole, {}, "the page"), ROOT)


@pytest.mark.parametrize("text", blocks("sh", "bash"))
def test_commands_are_known_with_their_options(text):
    lines = [line for line in text.splitlines() if line.strip()]
    calls = [shlex.split(line, comments=True) for line in lines if line.startswith("hpcal ")]
    for words in calls:
        command, name, rest = cli, "hpcal", words[1:]
        while isinstance(command, click.Group):
            name, rest = rest[0], rest[1:]
            assert name in command.commands, words
            command = command.commands[name]
        command.make_context(name, rest)


def test_no_placeholder_is_left() -> None:
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md")]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"^[A-Z]+_[A-Z_]+$|\bTODO\b|\bTBD\b", text, flags=re.MULTILINE), page


def test_python_of_the_readme_runs(tmp_path, monkeypatch) -> None:
    from hpcal.core.ensemble import EnsembleManifest, MemberFile, file_sha256
    from hpcal.potentials.morse import Morse

    folder = tmp_path / "quickstart" / "ensemble"
    folder.mkdir(parents=True)
    files = [Morse.write_member(folder / f"{i}.json", [1, 6, 7, 8], well_depth_eV=4.0 + i) for i in range(2)]
    members = tuple(MemberFile(path=str(f), sha256=file_sha256(f)) for f in files)
    EnsembleManifest(kind="morse", members=members).write(folder)
    (tmp_path / "workflows").symlink_to(ROOT / "workflows")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})

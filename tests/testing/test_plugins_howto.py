"""The example of docs/how-to/plugins.md works as it is printed."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import tomllib
from pathlib import Path

import pytest

from hpcal.core import plugins
from hpcal.core.plugins import Group

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "plugins.md"
TESTS = "tests/test_promises.py"


def blocks(language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The package of the page, as if it were installed."""
    for text in blocks("python"):
        name = text.splitlines()[0].removeprefix("# ")
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    project = tomllib.loads(blocks("toml")[0])["project"]
    info = tmp_path / f"hpcal_extras-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: hpcal-extras\nVersion: {project['version']}\n"
    )
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    plugins._entries.cache_clear()
    yield tmp_path
    plugins._entries.cache_clear()
    for name in [m for m in sys.modules if m.split(".")[0] == "hpcal_extras"]:
        del sys.modules[name]


def test_parts_are_found_by_their_names(package):
    assert plugins.find(Group.METRICS, "force_rms").unit == "eV/Å"
    assert plugins.find(Group.LABELERS, "lennard_jones").__name__ == "LennardJones"


def test_its_own_tests_pass(package, tmp_path):
    spec = importlib.util.spec_from_file_location("howto_tests", package / TESTS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tests = [f for name, f in vars(module).items() if name.startswith("test_")]
    assert len(tests) == 3
    for test in tests:
        test(**({"tmp_path": tmp_path} if "tmp_path" in inspect.signature(test).parameters else {}))


def test_the_page_names_every_check():
    text = PAGE.read_text(encoding="utf-8")
    checks = [name for name in importlib.import_module("hpcal.testing").__all__ if name.startswith("check_")]
    assert len(checks) == 7
    assert [name for name in checks if f"`{name}" not in text] == []

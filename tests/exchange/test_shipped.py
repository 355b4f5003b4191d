"""Examples and sites are found in a checkout and in an installed package, from one source."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import hpcal
from hpcal.core.errors import InputError
from hpcal.exchange.shipped import shipped_folder

ROOT = Path(__file__).parents[2]


def test_a_checkout_has_them_at_its_top(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hpcal, "__file__", str(ROOT / "hpcal" / "__init__.py"))
    assert shipped_folder("site_configs") == ROOT / "site_configs"
    assert shipped_folder("workflows") == ROOT / "workflows"


def test_an_installed_package_has_them_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hpcal, "__file__", str(tmp_path / "hpcal" / "__init__.py"))
    stranger = tmp_path / "workflows"  # another package beside it in site-packages
    stranger.mkdir()
    with pytest.raises(InputError, match="install hpcal again"):
        shipped_folder("workflows")
    inside = tmp_path / "hpcal" / "examples" / "workflows"
    inside.mkdir(parents=True)
    assert shipped_folder("workflows") == inside


@pytest.mark.slow
def test_the_wheel_holds_every_module_example_and_site(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("hpcal", "workflows", "site_configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "import sys, setuptools.build_meta as backend; print(backend.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as wheel:
        inside = set(wheel.namelist())
    expected = {str(path.relative_to(source)) for path in (source / "hpcal").rglob("*.py")}
    for name in ("workflows", "site_configs"):
        files = [path for path in (source / name).rglob("*") if path.is_file()]
        assert files
        expected |= {f"hpcal/examples/{path.relative_to(source)}" for path in files}
    assert expected - inside == set()

"""A campaign that ends in seconds, run by the command line itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cli.helpers import CAMPAIGN, WATER, hpcal, write_inputs, xyz


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with the files of the tiny campaign."""
    write_inputs(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished tiny campaign; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    file = write_inputs(folder)
    result = hpcal("run", file, "--dir", folder / "run", "--inline")
    assert result.exit_code == 0, result.stderr
    return folder / "run"


@pytest.fixture
def own_copy(finished: Path, here: Path) -> Path:
    """A copy of the finished campaign that may be changed."""
    return Path(shutil.copytree(finished, here / "run"))


@pytest.fixture
def many(here: Path) -> Path:
    """A file of 12 displaced water molecules, the fifth with atoms on top of each other."""
    rng = np.random.default_rng(5)
    frames = [WATER + rng.normal(scale=0.05, size=(3, 3)) for _ in range(12)]
    frames[4][1] = frames[4][0] + [0.2, 0.0, 0.0]
    path = here / "many.xyz"
    path.write_text(xyz(*frames))
    return path


@pytest.fixture
def labelled(many: Path, here: Path) -> Path:
    """Labels of those 12 by the teacher."""
    (here / "label.yaml").write_text("{labeler: teacher, model: teacher}\n")
    out = here / "labelled.extxyz"
    assert hpcal("label", many, out, "--config", here / "label.yaml").exit_code == 0
    return out


@pytest.fixture
def edited(here: Path) -> Callable[..., Path]:
    """Writes the tiny campaign with words of it replaced."""

    def write(*changes: tuple[str, str]) -> Path:
        text = CAMPAIGN
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = here / "changed.yaml"
        path.write_text(text)
        return path

    return write

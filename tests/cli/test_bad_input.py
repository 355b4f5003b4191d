"""Bad input: one clear sentence, exit code 2, no traceback, and no folder left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli.helpers import CAMPAIGN, WATER, hpcal, xyz

from hpcal.core.protocols import Capabilities
from hpcal.potentials.morse import Morse


def refused(result, *words: str) -> str:
    """The one sentence with which a command refused its input."""
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("hpcal: ")
    for word in words:
        assert word in lines[0]
    return lines[0]


def left_behind(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.is_dir() and p.name != "teacher"]


def run(file: Path, *args: object):
    return hpcal("run", file, "--inline", *args)


def test_an_unknown_key_names_line_and_nearest(edited, here):
    file = edited(("kind: morse, members", "kind: morse, membres"))
    refused(run(file), f"{file}:6: potential.membres: unknown key; did you mean 'members'?")
    assert not left_behind(here)


def test_an_unknown_part_names_the_nearest(edited, here):
    refused(run(edited(("kind: morse", "kind: mors"))), "unknown potential 'mors'; did you mean 'morse'?")
    assert not left_behind(here)


def test_a_campaign_file_that_is_not_there(here):
    refused(run(here / "nowhere.yaml"), "no such file", "nowhere.yaml")
    assert not left_behind(here)


def test_a_structure_file_that_is_not_there(edited, here):
    refused(run(edited(("water.xyz", "nowhere.xyz"))), "nowhere.xyz")
    assert not left_behind(here)


def test_a_file_that_is_no_yaml(here):
    (here / "bad.yaml").write_text("name: [\n")
    refused(run(here / "bad.yaml"), "bad.yaml", "not valid YAML")
    assert not left_behind(here)


@pytest.mark.parametrize(
    ("text", "what"), [("- {sampler: langevin}\n", "a list"), ("glycine\n", "one value")]
)
def test_a_campaign_file_without_keys(here, text, what):
    (here / "bad.yaml").write_text(text)
    refused(run(here / "bad.yaml"), "bad.yaml:1: a campaign file holds keys", what)


def test_a_value_is_named_as_the_user_wrote_it(here):
    """Not by the branch of the union that would have taken it."""
    text = (here / "tiny.yaml").read_text()
    assert "temperature_K: 1500" in text
    (here / "bad.yaml").write_text(text.replace("temperature_K: 1500", "temperature_K: -5"))
    refused(run(here / "bad.yaml"), "sampling.0.temperature_K: input should be greater than 0 (given: -5)")


def test_odd_electrons(here):
    (here / "water.xyz").write_text(xyz(WATER[:2], symbols="OH"))
    refused(run(here / "tiny.yaml"), "frame 1", "9 electrons", "multiplicity 1")
    assert not left_behind(here)


def test_coordinates_that_are_not_numbers(here):
    (here / "water.xyz").write_text(xyz(WATER, WATER + np.array([np.nan, 0.0, 0.0])))
    refused(run(here / "tiny.yaml"), "frame 2", "not")
    assert not left_behind(here)


def test_overlapping_atoms(here):
    positions = WATER.copy()
    positions[1] = [0.1, 0.0, 0.0]
    (here / "water.xyz").write_text(xyz(positions))
    refused(run(here / "tiny.yaml"), "frame 1", "overlap", "0.100")
    assert not left_behind(here)


def test_an_empty_structure_file(here):
    (here / "water.xyz").write_text("")
    refused(run(here / "tiny.yaml"), "water.xyz", "empty")
    assert not left_behind(here)


def test_an_element_that_the_labeler_does_not_cover(here):
    (here / "water.xyz").write_text(xyz(np.array([[0.0, 0, 0], [0, 0, 1.1]]), symbols="NN"))
    refused(run(here / "tiny.yaml"), "labeler teacher", "does not cover N")
    assert not left_behind(here)


def test_an_element_that_the_potential_does_not_cover(here, monkeypatch):
    limited = Capabilities(provides=frozenset({"energies", "member_forces"}), elements=frozenset({1}))
    monkeypatch.setattr(Morse, "capabilities", lambda self: limited)
    refused(run(here / "tiny.yaml"), "potential morse does not cover O")
    assert not left_behind(here)


def test_a_metric_that_the_potential_cannot_give(here, monkeypatch):
    energies = Capabilities(provides=frozenset({"energies"}))
    monkeypatch.setattr(Morse, "capabilities", lambda self: energies)
    line = refused(run(here / "tiny.yaml"), "force_std needs member_forces", "metrics that fit")
    assert "energy_std" in line
    assert not left_behind(here)


def test_a_sampler_that_the_potential_cannot_drive(edited, here, monkeypatch):
    plain = Capabilities(provides=frozenset({"energies", "member_forces"}))
    monkeypatch.setattr(Morse, "capabilities", lambda self: plain)
    refused(run(edited(("sampler: langevin", "sampler: udd"))), "udd", "differentiable", "langevin")
    assert not left_behind(here)


def test_a_site_that_is_not_there(here):
    refused(run(here / "tiny.yaml", "--site", "locl"), "no site 'locl'; did you mean 'local'?")
    assert not left_behind(here)


def test_a_folder_of_someone_else(here):
    (here / "mine").mkdir()
    (here / "mine" / "thesis.tex").write_text("dear")
    refused(run(here / "tiny.yaml", "--dir", "mine"), "mine is not empty", "thesis.tex", "--dir")
    assert [p.name for p in (here / "mine").iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_folder(here):
    refused(run(here / "tiny.yaml", "--dir", "water.xyz"), "water.xyz is a file")


@pytest.mark.parametrize(
    "args",
    [
        ["resume", "nowhere"],
        ["status", "nowhere"],
        ["stop", "nowhere"],
        ["trace", "nowhere", "1"],
        ["report", "nowhere"],
        ["export", "nowhere", "x.extxyz"],
        ["plan", "teacher"],
        ["evaluate", "nowhere", "water.xyz"],
        ["evaluate", "nowhere@latest", "water.xyz"],
    ],
)
def test_a_folder_without_a_campaign(here, args):
    before = sorted(here.rglob("*"))
    refused(hpcal(*args))
    assert sorted(here.rglob("*")) == before


def in_a_process(here: Path, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hpcal.cli.main", *args],
        cwd=here, capture_output=True, text=True, check=False, env={**os.environ, **variables},
    )  # fmt: skip


@pytest.mark.slow
def test_a_smiles_that_does_not_parse_prints_nothing_else(edited, here):
    file = edited(("{file: water.xyz}", '{smiles: "C1CC(="}'))
    done = in_a_process(here, "run", str(file))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("hpcal: ")
    assert "C1CC(=" in line
    assert not left_behind(here)


@pytest.mark.slow
def test_a_labeler_that_is_not_installed_says_how_to_install_it(edited, here):
    blocker = here / "blocker"
    blocker.mkdir()
    (blocker / "sitecustomize.py").write_text(
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'tblite':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
    )
    file = edited(("{labeler: teacher, model: teacher}", "{labeler: xtb}"))
    done = in_a_process(here, "run", str(file), PYTHONPATH=str(blocker))
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("hpcal: ")
    assert "tblite" in line
    assert "pip install 'hpcal[xtb]'" in line
    assert left_behind(here) == ["blocker"]


def test_the_unchanged_campaign_is_in_order(here):
    """What the other tests change is the only thing wrong with what they run."""
    (here / "same.yaml").write_text(CAMPAIGN)
    result = hpcal("config", "check", "same.yaml")
    assert result.exit_code == 0, result.stderr

"""Outputs of the commands on files: nothing that is read is written over; refusals come before the work."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli.helpers import hpcal

COMMANDS = {
    "label": ("--config", "label.yaml"),
    "sample": ("--model", "teacher", "--config", "sampler.yaml"),
    "score": ("--model", "teacher", "--metric", "force_std"),
}


@pytest.fixture(params=COMMANDS)
def command(request: pytest.FixtureRequest, many: Path, here: Path) -> tuple[str, tuple[str, ...]]:
    """A command on a file, and its options."""
    (here / "label.yaml").write_text("{labeler: teacher, model: teacher}\n")
    (here / "sampler.yaml").write_text("{sampler: langevin, walkers: 1, time_ps: 0.001, threshold: 0.1}\n")
    return request.param, COMMANDS[request.param]


def refused(result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    for word in words:
        assert word in line, line


def test_the_file_that_is_read_is_not_written_over(command, many):
    name, options = command
    before = many.read_bytes()
    refused(hpcal(name, many, many.parent / "." / "many.xyz", *options), "many.xyz is what is read")
    assert many.read_bytes() == before


def test_a_file_of_someone_else_is_not_written_over(command, many, here):
    name, options = command
    (here / "out.extxyz").write_text("mine")
    refused(hpcal(name, many, "out.extxyz", *options), "out.extxyz exists without its records out.json")
    assert (here / "out.extxyz").read_text() == "mine"


def test_a_folder_in_the_place_of_the_output(command, many, here):
    name, options = command
    (here / "out.extxyz").mkdir()
    refused(hpcal(name, many, "out.extxyz", *options), "out.extxyz is a folder")


def test_a_folder_that_is_not_there(command, many, here):
    name, options = command
    refused(hpcal(name, many, "nowhere/out.extxyz", *options), "there is no folder nowhere")
    assert not (here / "nowhere").exists()


@pytest.mark.parametrize(
    ("name", "out", "settings", "model"),
    [
        ("sample", "mine.extxyz", '{"sampler": "langevin", "threshold": 0.1}', ("--model", "teacher")),
        ("train", "mine", '{"kind": "morse", "members": 2, "steps": 5}', ()),
        ("label", "mine.extxyz", '{"labeler": "teacher", "model": "teacher"}', ()),
    ],
)
def test_records_do_not_take_the_place_of_the_settings(labelled, here, name, out, settings, model):
    """YAML holds JSON too, and the records are a JSON file beside OUT."""
    (here / "mine.json").write_text(settings)
    refused(hpcal(name, labelled, out, *model, "--config", "mine.json"), "mine.json is what is read")
    assert (here / "mine.json").read_text() == settings
    assert not (here / out).exists()


def test_converted_data_do_not_take_the_place_of_a_folder(labelled, here):
    (here / "out.h5").mkdir()
    refused(hpcal("import", labelled, "--to", "out.h5"), "out.h5 is a folder; give the name of a file")
    assert [p.name for p in here.iterdir() if p.name.endswith(".part")] == []

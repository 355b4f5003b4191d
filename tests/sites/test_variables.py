"""``${NAME}`` in site files comes from the command line or the environment, or is asked for in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcal.core.errors import ConfigurationError
from hpcal.sites.schema import Site, load_site, values_of_environment
from hpcal.sites.variables import parse_assignments

TEXT = """kind: slurm
account: ${ACCOUNT}
walltime: "01:00:00"
pools:
  label: {partition: "${PART}-${SIZE}", scratch: $TMPDIR/x, worker_init: "echo ${HOME}"}
  sample: {environment: {WHERE: "${HERE}"}, modules: ["gcc/${GCC}"]}
  train: {}
"""
VALUES = {"ACCOUNT": "m1", "PART": "cpu", "SIZE": "2", "GCC": "12", "HERE": "there"}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in VALUES:
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "site.yaml"
    path.write_text(TEXT)
    return path


def test_values_stand_wherever_they_are_named(file: Path) -> None:
    site = load_site(file, VALUES)
    assert {pool.account for pool in site.pools.values()} == {"m1"}
    assert site.pools["label"].partition == "cpu-2"
    assert site.pools["sample"].modules == ["gcc/12"]
    assert site.pools["sample"].environment == {"WHERE": "there"}


def test_what_the_shell_of_the_node_fills_in_is_left_alone(file: Path) -> None:
    site = load_site(file, VALUES)
    assert site.pools["label"].worker_init == "echo ${HOME}"
    assert site.pools["label"].scratch == "$TMPDIR/x"


def test_the_command_line_comes_before_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VALUES.items():
        monkeypatch.setenv(name, value)
    assert load_site(file).account == "m1"
    assert load_site(file, {"ACCOUNT": "m2"}).account == "m2"


@pytest.mark.parametrize("value", [None, ""])
def test_a_value_that_is_missing_is_asked_for(
    file: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is not None:
        monkeypatch.setenv("ACCOUNT", value)
    with pytest.raises(
        ConfigurationError, match=r"site\.yaml:2: account: \$\{ACCOUNT\} has no value; .*--set"
    ):
        load_site(file, {name: v for name, v in VALUES.items() if name != "ACCOUNT"})


def test_a_value_is_checked_like_what_stands_in_the_file(file: Path) -> None:
    with pytest.raises(ConfigurationError, match=r":2: account: must be one word.*given: 'my project'"):
        load_site(file, {**VALUES, "ACCOUNT": "my project"})


def test_assignments() -> None:
    assert parse_assignments(["A=1", "B_2=x=y", "A=3"]) == {"A": "3", "B_2": "x=y"}


@pytest.mark.parametrize("word", ["A", "A=", "=1", "1A=2", "A B=2"])
def test_an_assignment_that_is_none_is_refused(word: str) -> None:
    with pytest.raises(ConfigurationError, match="must be NAME=VALUE"):
        parse_assignments([word])


def test_a_site_without_references_needs_no_values(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("pools: {label: {}, sample: {}, train: {}}\n")
    assert isinstance(load_site(tmp_path / "s.yaml"), Site)


def test_what_the_environment_gave_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCOUNT", "m1234")
    monkeypatch.setenv("HOME_OF_NODE", "not this one")
    file = tmp_path / "site.yaml"
    file.write_text(
        "kind: slurm\naccount: ${ACCOUNT}\nworker_init: echo ${HOME_OF_NODE}\nwalltime: '01:00:00'\n"
        "pools: {label: {partition: '${PART}'}, sample: {}, train: {}}\n"
    )
    assert values_of_environment(file, {"PART": "gpu"}) == {"ACCOUNT": "m1234"}

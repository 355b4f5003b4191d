"""The Apptainer definitions: pinned, buildable without root, and with a check that works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from support.apptainer import SHELL, read_definition

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "containers"
NAMES = ("cpu", "cuda")
DEFINITIONS = [FOLDER / f"hpcal-{name}.def" for name in NAMES]
LOCKS = [FOLDER / f"requirements-{name}.txt" for name in NAMES]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = ("dispersion", "postgres")
"""Extras that the images hold."""
PYTHON = "3.11"
"""Of both images; the locks were resolved on it."""

definitions = pytest.mark.parametrize("path", DEFINITIONS, ids=NAMES)
locks = pytest.mark.parametrize("lock", LOCKS, ids=NAMES)


def pins(lock: Path) -> dict[str, Version]:
    lines = [line for line in lock.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    found = [re.fullmatch(r"([a-z0-9-]+)==(\S+)", line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    names = [match[1] for match in found]
    assert len(set(names)) == len(names)
    return {match[1]: Version(match[2]) for match in found}


def needed(requirement: str, extras: frozenset[str] = frozenset()) -> Requirement | None:
    """A requirement, if it holds for the images."""
    parsed = Requirement(requirement)
    images = {"python_version": PYTHON, "sys_platform": "linux", "platform_machine": "x86_64"}
    wanted = [{**images, "extra": extra} for extra in ("", *extras)]
    return parsed if parsed.marker is None or any(map(parsed.marker.evaluate, wanted)) else None


def test_every_definition_and_lock_is_tested():
    assert sorted(FOLDER.glob("*.def")) == DEFINITIONS
    assert sorted(FOLDER.glob("*.txt")) == LOCKS


def test_links_of_the_page_resolve():
    targets = re.findall(r"\]\(([^)#]+)", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert targets
    assert [target for target in targets if not (FOLDER / target).exists()] == []


@definitions
def test_sections_are_those_of_a_build_without_root(path):
    definition = read_definition(path)
    assert set(definition.sections) >= {"environment", "files", "labels", "post", "runscript", "test"}
    assert not re.search(r"\b(sudo|su|chown|mknod|mount)\b", definition.sections["post"])


def test_a_section_that_runs_on_the_host_is_refused(tmp_path):
    bad = tmp_path / "bad.def"
    bad.write_text("Bootstrap: docker\nFrom: python:3.11.11\n%setup\n    touch /etc/x\n")
    with pytest.raises(ValueError, match=r"bad\.def:3: section %setup"):
        read_definition(bad)


@definitions
def test_the_base_is_pinned(path):
    header = read_definition(path).header
    assert header["bootstrap"] == "docker"
    image, _, tag = header["from"].partition(":")
    # A whole version of Python and a named Debian; no tag that moves from one to the next.
    assert re.fullmatch(rf"{re.escape(PYTHON)}\.\d+-slim-[a-z]+", tag), (image, tag)
    assert "latest" not in path.read_text(encoding="utf-8")


@definitions
def test_shell_sections_are_shell(path):
    sections = read_definition(path).sections
    for name in [name for name in SHELL if name in sections]:
        script = re.sub(r"\{\{ \w+ \}\}", "argument", sections[name])
        done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
        assert done.returncode == 0, (name, done.stderr)
        assert not done.stderr, name


@definitions
def test_the_installation_ends_at_the_first_fault(path):
    commands = read_definition(path).sections["post"].splitlines()
    first = next(line.strip() for line in commands if line.strip())
    assert re.fullmatch(r"set -\w*e\w*", first)


@definitions
def test_arguments_are_those_that_are_used(path):
    sections = read_definition(path).sections
    given = re.findall(r"^\s*(\w+)=", sections.get("arguments", ""), re.MULTILINE)
    assert sorted(given) == sorted(set(re.findall(r"\{\{ (\w+) \}\}", sections["post"])))


@definitions
def test_what_is_copied_is_there_and_enough(path):
    lines = read_definition(path).sections["files"].splitlines()
    copied = dict(line.split() for line in lines if line.strip())
    assert [source for source in copied if not (ROOT / source).exists()] == []
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    for source in (
        *tools["setuptools"]["package-dir"].values(),
        "pyproject.toml",
        PROJECT["readme"],
        *PROJECT["license-files"],
    ):
        assert copied[source] == f"/opt/hpcal/{source}"
    lock = FOLDER / f"requirements-{path.stem.removeprefix('hpcal-')}.txt"
    assert copied[str(lock.relative_to(ROOT))] == "/opt/hpcal/requirements.txt"
    assert "-r /opt/hpcal/requirements.txt" in read_definition(path).sections["post"]


@definitions
def test_the_check_is_hpcals_own(path):
    sections = read_definition(path).sections
    copied = dict(line.split() for line in sections["files"].splitlines() if line.strip())
    assert sections["test"].split() == ["exec", "bash", copied["containers/check.sh"]]


@definitions
def test_labels_say_what_it_is(path):
    lines = read_definition(path).sections["labels"].splitlines()
    labels = dict(line.split(maxsplit=1) for line in lines if line.strip())
    assert labels["org.opencontainers.image.version"] == PROJECT["version"]
    assert labels["org.opencontainers.image.licenses"] == PROJECT["license"]
    assert str(path.relative_to(ROOT)) in labels["hpcal.source"]


@locks
def test_a_lock_names_no_server_and_no_folder(lock):
    assert not re.search(r"://|^-|@|file:", lock.read_text(encoding="utf-8"), re.MULTILINE)


@locks
def test_pins_are_in_the_ranges_of_the_project(lock):
    pinned = pins(lock)
    optional = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *(text for extra in EXTRAS for text in optional[extra])]:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{text} has no pin"
        assert requirement.specifier.contains(pinned[name]), (text, str(pinned[name]))
    assert Requirement(f"x{PROJECT['requires-python']}").specifier.contains(PYTHON)


@locks
def test_what_the_build_needs_is_pinned(lock):
    system = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
    for text in system["requires"]:  # the images build without isolation
        requirement = Requirement(text)
        assert requirement.specifier.contains(pins(lock)[canonicalize_name(requirement.name)])


@locks
def test_a_lock_is_whole(lock):
    """What a pinned package needs is pinned too, as far as that version is installed here."""
    pinned = pins(lock)
    asked = {"psycopg": frozenset({"binary"})}
    looked_at = 0
    for name, version in pinned.items():
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            continue
        if Version(installed.version).public != version.public:
            continue
        looked_at += 1
        for text in installed.requires or []:
            requirement = needed(text, asked.get(name, frozenset()))
            if requirement is not None:
                other = canonicalize_name(requirement.name)
                assert other in pinned, f"{name} needs {text}"
                assert requirement.specifier.contains(pinned[other], prereleases=True), (name, text)
    assert looked_at > 0


def test_the_locks_differ_in_pytorch_alone():
    cpu, cuda = map(pins, LOCKS)
    assert cpu["torch"].public == cuda["torch"].public
    assert cpu["torch"].local == "cpu"
    assert cuda["torch"].local is None
    assert {name for name in cuda if cuda[name] != cpu.get(name)} - {"torch"} == cuda.keys() - cpu.keys()
    assert cpu.keys() <= cuda.keys()
    added = cuda.keys() - cpu.keys()
    assert all(name.startswith(("nvidia-", "cuda-")) or name == "triton" for name in added)


@pytest.mark.slow
def test_the_check_passes_here(tmp_path):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment["TMPDIR"] = str(tmp_path)
    words = ["bash", str(FOLDER / "check.sh")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"hpcal {PROJECT['version']}\n" in done.stdout
    assert "check: passed" in done.stdout
    assert list(tmp_path.glob("hpcal*")) == []


def test_the_check_fails_with_an_hpcal_that_does(tmp_path):
    broken = tmp_path / "hpcal"
    broken.write_text("#!/bin/bash\ncase $1 in --version) ;; *) exit 1 ;; esac\n")
    broken.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", str(FOLDER / "check.sh")], env=environment, capture_output=True, check=False
    )
    assert done.returncode != 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("apptainer") is None, reason="there is no apptainer on PATH")
@definitions
def test_it_builds(path, tmp_path):
    image = tmp_path / f"{path.stem}.sif"
    subprocess.run(["apptainer", "build", str(image), str(path)], cwd=ROOT, check=True, timeout=3000)
    done = subprocess.run(
        ["apptainer", "exec", str(image), "hpcal", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"hpcal {PROJECT['version']}\n"

"""Every site that ships is valid, says where it comes from, and can be rendered anywhere."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import parsl
import pytest
import yaml
from cli.helpers import hpcal

from hpcal.core.errors import ConfigurationError
from hpcal.exchange.shipped import shipped_folder
from hpcal.sites.render import rendered, rendered_controller
from hpcal.sites.schema import load_site

FILES = sorted(shipped_folder("site_configs").glob("*.yaml"))
NAMES = [path.stem for path in FILES]
MACHINES = ("perlmutter", "polaris", "frontier", "aurora")
VALUES = {"ACCOUNT": "abc123"}


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No account in the environment, no commands of a scheduler."""
    monkeypatch.delenv("ACCOUNT", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)


def test_these_ship() -> None:
    assert set(NAMES) == {"local", "slurm", "pbs", *MACHINES}
    assert not list(shipped_folder("site_configs").glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_it_says_where_it_comes_from(path: Path) -> None:
    about = load_site(path.stem, VALUES).about
    assert about is not None
    assert about.source.startswith("https://")
    assert re.fullmatch(r"\d{4}\.\d{2}\.\d{2}", about.parsl)
    assert (about.status == "untested template") == (path.stem in MACHINES)


def test_the_version_of_parsl_that_is_tested_is_this_one() -> None:
    tested = {load_site(name, VALUES).about.parsl for name in NAMES if name not in MACHINES}
    if tested != {parsl.__version__}:
        pytest.skip(f"this is Parsl {parsl.__version__}, the sites were tested with {', '.join(tested)}")
    assert tested == {parsl.__version__}


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_it_holds_no_account(path: Path) -> None:
    document = yaml.safe_load(path.read_text())
    for block in (document, *document["pools"].values()):
        assert block.get("account") in (None, "${ACCOUNT}")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "local"])
def test_a_missing_account_is_asked_for(name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"{name}\.yaml:\d+: account: \$\{{ACCOUNT\}} has no value"):
        load_site(name)


@pytest.mark.parametrize("name", NAMES)
def test_it_renders(name: str) -> None:
    site = load_site(name, VALUES)
    scripts = rendered(site)
    assert list(scripts) == list(site.pools)
    for pool, script in scripts.items():
        assert f"{tempfile.gettempdir()}/" not in script.replace(sys.prefix, "")
        assert f"--max_workers_per_node={site.pools[pool].max_workers_per_node} " in script
        assert f"--cpu-affinity {site.pools[pool].cpu_affinity} " in script
        if site.kind != "local":
            assert "abc123" in script
            assert site.pools[pool].walltime in script
    if site.controller is not None:
        assert "abc123" in rendered_controller(site)


def test_the_machines_ask_for_what_their_pages_say() -> None:
    scripts = {name: rendered(load_site(name, VALUES)) for name in MACHINES}
    assert "#SBATCH --constraint=gpu" in scripts["perlmutter"]["train"]
    assert "#SBATCH --gpus-per-node=4" in scripts["perlmutter"]["train"]
    assert "#SBATCH --constraint=cpu" in scripts["perlmutter"]["label"]
    assert "#PBS -l select=1:ncpus=64:ngpus=4:system=polaris" in scripts["polaris"]["sample"]
    assert "#PBS -l filesystems=home:eagle" in scripts["polaris"]["label"]
    assert "export HPCAL_GPU_VENDOR=amd" in scripts["frontier"]["sample"]
    assert "#SBATCH --partition=batch" in scripts["frontier"]["label"]
    assert "export HPCAL_GPUS='0.0 0.1 1.0 1.1 2.0 2.1 3.0 3.1 4.0 4.1 5.0 5.1'" in scripts["aurora"]["train"]
    assert "#PBS -l filesystems=home:flare" in scripts["aurora"]["train"]


@pytest.mark.parametrize("name", NAMES)
def test_workers_have_distinct_cores_where_they_are_listed(name: str) -> None:
    for pool in load_site(name, VALUES).pools.values():
        if not pool.cpu_affinity.startswith("list:"):
            continue
        parts = pool.cpu_affinity.removeprefix("list:").split(":")
        assert len(parts) == pool.max_workers_per_node
        cores = [core for part in parts for core in _cores(part)]
        assert len(set(cores)) == len(cores)


def _cores(part: str) -> list[int]:
    found = []
    for span in part.split(","):
        first, _, last = span.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_config_check_says_what_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCOUNT", "abc123")
    result = hpcal("config", "check", path)
    assert result.exit_code == 0, result.stderr
    site = load_site(path.stem)
    assert f"a site of kind {site.kind} with slots label {site.slots('label')}" in result.stdout
    assert site.about.status in result.stdout

"""A Python file with a Parsl configuration of the user's own is a site like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli.helpers import hpcal

from hpcal.cli.run import Machine
from hpcal.core.errors import ConfigurationError
from hpcal.sites.parsl_config import parsl_config
from hpcal.sites.python_site import KIND, PythonSite
from hpcal.sites.render import rendered
from hpcal.sites.schema import load_site
from hpcal.sites.worker_init import RUN_VARIABLE

HEAD = """
from parsl.config import Config
from parsl.executors import HighThroughputExecutor, ThreadPoolExecutor
from parsl.providers import LocalProvider, SlurmProvider
from parsl.launchers import SimpleLauncher

def pool(label, provider=None, **keys):
    keys = {"max_workers_per_node": 2, "encrypted": True, "address": "127.0.0.1", **keys}
    return HighThroughputExecutor(label=label, provider=provider or LocalProvider(), **keys)
"""
GOOD = """
def config():
    own = LocalProvider(init_blocks=1, max_blocks=3, worker_init="export MINE=1")
    extra = pool("extra", mem_per_worker=4)
    return Config(executors=[pool("label", own), pool("sample"), pool("train"), extra])
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.py"
    path.write_text(HEAD + text)
    return path


def test_its_executors_are_the_pools(tmp_path: Path) -> None:
    site = load_site(write(tmp_path, GOOD))
    assert isinstance(site, PythonSite)
    assert list(site.pools) == ["label", "sample", "train", "extra"]
    assert {name: site.slots(name) for name in site.pools} == {
        "label": 6,
        "sample": 2,
        "train": 2,
        "extra": 2,
    }
    assert (site.pools["label"].memory_MB, site.pools["extra"].memory_MB) == (None, 4000)
    assert site.pool_name("score") == "sample"
    assert site.kind_of("label") == KIND
    assert site.room("label") is None


def test_its_configuration_is_made_anew_and_gets_what_a_campaign_needs(tmp_path: Path) -> None:
    site = load_site(write(tmp_path, GOOD))
    first, second = (parsl_config(site, tmp_path / "run", "run-7") for _ in range(2))
    assert first is not second
    assert first.executors[0].provider.worker_init == f"export {RUN_VARIABLE}=run-7\nexport MINE=1"
    assert (first.run_dir, first.retries, first.initialize_logging) == (str(tmp_path / "run"), 0, False)


def test_a_campaign_can_record_it(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD)
    record = Machine.of(str(file), inline=False, values={"A": "b"}).record()
    assert record["file"] == str(file)
    assert record["pools"]["label"] == {
        "slots": 6,
        "workers_per_node": 2,
        "cores_per_worker": 1,
        "kind": KIND,
    }
    again = Machine.again(record, None, inline=False)
    assert isinstance(again.site, PythonSite)
    assert again.values == {"A": "b"}


def test_its_scripts_are_shown_without_a_scheduler(tmp_path: Path) -> None:
    slurm = "SlurmProvider('big', account='abc', walltime='00:20:00', worker_init='load', init_blocks=1)"
    text = f"""
config = lambda: Config(executors=[pool("label", {slurm}), pool("sample"), pool("train")])
"""
    found = rendered(load_site(write(tmp_path, text)))
    assert "#SBATCH --partition=big" in found["label"]
    assert f"export {RUN_VARIABLE}=RUN_ID\nload" in found["label"]
    assert "process_worker_pool" in found["sample"]
    assert "JOBNAME" in found["train"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config = 3", "must be a parsl.Config or a function that returns one, not int"),
        ("", "not NoneType"),
        (
            "config = Config(executors=[pool('label'), pool('sample')])",
            "labelled train;.*there: label, sample",
        ),
        ("config = Config(executors=[ThreadPoolExecutor(label='label')])", "is a ThreadPoolExecutor"),
        ("config = Config(executors=[pool('label', encrypted=False)])", "is not encrypted"),
        ("def config(): return 1 / 0", "fails: ZeroDivisionError: division by zero"),
        ("config = (", "fails: SyntaxError"),
    ],
)
def test_what_cannot_serve_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"mine\.py.*{message}"):
        load_site(write(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no such file: .*none\.py"):
        load_site(tmp_path / "none.py")


def test_config_check_takes_it(tmp_path: Path) -> None:
    result = hpcal("config", "check", write(tmp_path, GOOD))
    assert result.exit_code == 0, result.stderr
    assert "a site of kind parsl with slots label 6, sample 2, train 2, extra 2" in result.stdout

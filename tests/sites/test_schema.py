"""Site files: sane defaults, every fault named with its line, names found where they should be."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcal.core.errors import ConfigurationError
from hpcal.sites.schema import Pool, Site, load_site, site_file

MINIMAL = "pools: {label: {}, sample: {}, train: {}}\n"


def load(folder: Path, text: str) -> Site:
    path = folder / "site.yaml"
    path.write_text(text)
    return load_site(path)


def test_the_shipped_local_site() -> None:
    site = load_site("local")
    assert site.kind == "local"
    assert {name: site.slots(name) for name in site.pools} == {"label": 2, "sample": 1, "train": 1}


def test_a_minimal_site_has_defaults(tmp_path: Path) -> None:
    site = load(tmp_path, MINIMAL)
    assert site.address == "127.0.0.1"
    assert site.encrypted
    assert site.pools["label"] == Pool()
    assert site.pool("label").walltime_s is None


def test_score_is_done_by_sample_unless_given(tmp_path: Path) -> None:
    site = load(tmp_path, "pools: {label: {}, sample: {max_workers_per_node: 3}, train: {}}\n")
    assert site.pool_name("score") == "sample"
    assert site.slots("score") == 3
    site = load(
        tmp_path, "pools: {label: {}, sample: {}, train: {}, score: {max_workers_per_node: 5}, mpi: {}}\n"
    )
    assert site.pool_name("score") == "score"
    assert site.slots("score") == 5
    assert site.pool_name("mpi") == "mpi"
    with pytest.raises(ConfigurationError, match="no pool 'tran'; did you mean 'train'"):
        site.pool("tran")


def test_slots_count_all_blocks(tmp_path: Path) -> None:
    site = load(tmp_path, "pools: {label: {max_blocks: 3, max_workers_per_node: 4}, sample: {}, train: {}}\n")
    assert site.slots("label") == 12


def test_a_walltime_in_seconds(tmp_path: Path) -> None:
    site = load(tmp_path, 'pools: {label: {walltime: "26:10:05"}, sample: {}, train: {walltime: null}}\n')
    assert site.pool("label").walltime_s == 26 * 3600 + 605


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "kind: slurm\npartition: main\n" + MINIMAL,
            r":1: kind: no such kind of site; there is 'local'.*'slurm'",
        ),
        (
            "pools:\n  label: {kind: pbs}\n  sample: {}\n  train: {}\n",
            r":2: pools.label.kind: no such kind.*'pbs'",
        ),
        ("pools: {label: {}, sample: {}}\n", r":1: pools: missing pools: train"),
        ("kind: local\n", r"pools: this key is missing"),
        ("", r"pools: this key is missing"),
        (
            "encrypted: false\n" + MINIMAL,
            r":1: encrypted: .*always encrypted, because what crosses it is executed",
        ),
        (
            "pools: {label: {encrypted: false}, sample: {}, train: {}}\n",
            r"pools.label.encrypted: .*always encrypted",
        ),
        (
            "pools:\n  label:\n    max_worker_per_node: 2\n  sample: {}\n  train: {}\n",
            r":3: pools.label.max_worker_per_node: unknown key; did you mean 'max_workers_per_node'",
        ),
        ("adress: 10.0.0.1\n" + MINIMAL, r":1: adress: unknown key; did you mean 'address'"),
        (
            "pools: {label: {max_workers_per_node: 0}, sample: {}, train: {}}\n",
            r"max_workers_per_node: .*given: 0",
        ),
        ("pools: {label: {walltime: 600}, sample: {}, train: {}}\n", r"walltime: .*HH:MM:SS"),
        ('pools: {label: {walltime: "1-00:00:00"}, sample: {}, train: {}}\n', r"walltime: .*HH:MM:SS"),
        (
            "pools: {label: {nodes_per_block: 2}, sample: {}, train: {}}\n",
            r"pool label: nodes_per_block is 2",
        ),
        (
            "pools: {label: {init_blocks: 2}, sample: {}, train: {}}\n",
            r"init_blocks \(2\) is above max_blocks \(1\)",
        ),
        (
            "pools: {label: {heartbeat_period: 9}, sample: {}, train: {}}\n",
            r"heartbeat_threshold \(10 s\) must be",
        ),
        ("pools: {Label: {}, label: {}, sample: {}, train: {}}\n", r"a pool's name .* not 'Label'"),
        (
            "pools: {label: {environment: {'A B': x}}, sample: {}, train: {}}\n",
            r"'A B' is no name of an environment",
        ),
        ("- a\n- b\n", r"site.yaml"),
        ("pools: {\n", r"site.yaml:\d+: not valid YAML"),
    ],
)
def test_a_fault_names_file_line_and_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"site\.yaml.*{message}|{message}") as caught:
        load(tmp_path, text)
    assert "site.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_are_looked_for_here_then_in_the_users_folder_then_among_the_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    shipped = site_file("local")
    users = tmp_path / "config" / "hpcal" / "sites" / "local.yaml"
    users.parent.mkdir(parents=True)
    users.write_text(MINIMAL)
    assert site_file("local") == users != shipped
    here = Path("site_configs") / "local.yaml"
    here.parent.mkdir()
    here.write_text(MINIMAL)
    assert site_file("local") == here
    (users.parent / "cluster.yaml").write_text(MINIMAL)
    assert load_site("cluster") == load_site(str(users.parent / "cluster.yaml")) == load_site(here)
    with pytest.raises(
        ConfigurationError, match=r"no site 'clustr'; did you mean 'cluster'.*there: cluster, local"
    ):
        load_site("clustr")
    with pytest.raises(ConfigurationError, match=r"no such file: .*none\.yaml"):
        load_site("none.yaml")


def test_home_is_searched_without_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / ".config" / "hpcal" / "sites" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(MINIMAL)
    assert site_file("mine") == file

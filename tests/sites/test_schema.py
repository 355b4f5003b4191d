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
    assert site.address is None
    assert site.on_one_machine
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
            "kind: lsf\n" + MINIMAL,
            r":1: kind: no such kind of site; there are .*'slurm'",
        ),
        (
            "pools:\n  label: {kind: Slurm}\n  sample: {}\n  train: {}\n",
            r":2: pools.label.kind: no such kind.*'Slurm'",
        ),
        ("kind: slurm\n" + MINIMAL, r"pool label: walltime is missing: a slurm job has a limit"),
        (
            'kind: slurm\nwalltime: "00:01:20"\n' + MINIMAL,
            r"walltime 00:01:20 less twice walltime_margin \(60 s\) leaves no time",
        ),
        (
            'kind: slurm\nwalltime: "00:15:00"\n'
            "pools: {label: {walltime_margin: 600}, sample: {}, train: {}}\n",
            r"pool label: .*a block takes no new tasks in its last two margins",
        ),
        (
            'kind: slurm\nwalltime: "01:00:00"\n'
            "pools: {label: {nodes_per_block: 4, launcher: single}, sample: {}, train: {}}\n",
            r"pool label: launcher: single starts workers on the first of 4 nodes only",
        ),
        (
            'kind: slurm\nwalltime: "01:00:00"\nselect_options: ngpus=4\n' + MINIMAL,
            r"select_options and filesystems are PBS's words",
        ),
        (
            'kind: slurm\nwalltime: "01:00:00"\nscheduler_options: --reservation=x\n' + MINIMAL,
            r"'--reservation=x', which is no `#SBATCH` line",
        ),
        (
            'kind: slurm\nwalltime: "01:00:00"\nscheduler_options: "#SBTACH --reservation=x"\n' + MINIMAL,
            r"'#SBTACH --reservation=x', which is no `#SBATCH` line",
        ),
        ('kind: slurm\nqueue: q\nwalltime: "01:00:00"\n' + MINIMAL, r"queue is PBS's word; on Slurm"),
        ('kind: pbs\nqos: q\nwalltime: "01:00:00"\n' + MINIMAL, r"are Slurm's words; on PBS give queue"),
        ("account: a b\n" + MINIMAL, r":1: account: must be one word.*given: 'a b'"),
        (
            "python: /x\nstaged_environment: e.tar\n" + MINIMAL,
            r"python and staged_environment: workers have one environment",
        ),
        ("python: ~/venv/bin/python\n" + MINIMAL, r":1: python: no shell reads it: give the whole path"),
        ("container: {image: $HOME/h.sif}\n" + MINIMAL, r"container.image: no shell reads it.*\$\{NAME\}"),
        ("staged_environment: e.zip\n" + MINIMAL, r"must be a .tar or .tar.gz file, not 'e.zip'"),
        (
            "pools: {label: {larger: big}, sample: {}, train: {}}\n",
            r"pool label: larger names 'big', which is no pool",
        ),
        (
            "pools: {label: {larger: train}, sample: {}, train: {larger: label}}\n",
            r"leads in a circle \(label → train → label\)",
        ),
        (
            "pools: {label: {gpus_per_node: 2, max_workers_per_node: 4}, sample: {}, train: {}}\n",
            r"is above the 2 GPUs of a node; workers would share one",
        ),
        (
            "pools: {label: {available_accelerators: [a, a]}, sample: {}, train: {}}\n",
            r"names a GPU twice",
        ),
        ("pools: {label: {cpu_affinity: blok}, sample: {}, train: {}}\n", r"must be none, block"),
        (
            "pools: {label: {mpi: {command: 'srun {n}', ranks: 2}}, sample: {}, train: {}}\n",
            r"only \{nodes\} and \{ranks\}",
        ),
        (
            "pools: {label: {launcher: srun, mpi: {command: srun, ranks: 2}}, sample: {}, train: {}}\n",
            r"a pool with mpi has one on the first node only",
        ),
        ("controller: {cores: 0}\n" + MINIMAL, r":1: controller.cores: .*given: 0"),
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
        ConfigurationError,
        match=r"no site 'clustr'; did you mean 'cluster'.*there: .*cluster, frontier",
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


def test_what_the_site_says_holds_for_every_pool_that_does_not_say_it(tmp_path: Path) -> None:
    site = load(
        tmp_path,
        """
kind: slurm
account: abc
walltime: "02:00:00"
environment: {A: "1", B: "1"}
worker_init: first
python: /site/python
pools:
  label: {walltime: "04:00:00", environment: {B: "2"}, worker_init: second}
  sample: {account: other, staged_environment: env.tar}
  train: {kind: local}
controller: {walltime: "10:00:00"}
""",
    )
    label, sample = site.pools["label"], site.pools["sample"]
    assert (label.account, label.walltime_s, label.worker_init) == ("abc", 4 * 3600, "first\nsecond")
    assert label.environment == {"A": "1", "B": "2"}
    assert (sample.account, sample.walltime_s, sample.python) == ("other", 2 * 3600, None)
    assert site.kind_of("train") == "local"
    assert not site.on_one_machine
    assert site.controller is not None
    assert (site.controller.account, site.controller.walltime_s) == ("abc", 36000)


def test_room_and_larger_pools(tmp_path: Path) -> None:
    site = load(
        tmp_path,
        """
kind: slurm
walltime: "01:00:00"
pools:
  label: {larger: big}
  big: {walltime: "04:00:00", larger: huge}
  huge: {walltime: "02:00:00"}
  sample: {larger: desk}
  desk: {kind: local}
  train: {}
""",
    )
    assert site.room("label") == 4 * 3600 - 60
    assert site.room("sample") is None
    assert [site.larger("label", size) for size in range(4)] == ["label", "big", "huge", "huge"]


def test_what_is_asked_of_a_node(tmp_path: Path) -> None:
    site = load(
        tmp_path,
        """
pools:
  label: {max_workers_per_node: 4, cores_per_worker: 3, mem_per_worker: 1.6}
  sample: {cores_per_node: 64, mem_per_node: 100, mem_per_worker: 1}
  train: {available_accelerators: ["0.0", "0.1"], gpus_per_node: 0}
""",
    )
    assert (site.pools["label"].cores_asked, site.pools["label"].memory_asked) == (12, 7)
    assert (site.pools["sample"].cores_asked, site.pools["sample"].memory_asked) == (64, 100)
    assert site.pools["train"].memory_asked is None
    assert [site.pools[name].memory_MB for name in ("label", "sample", "train")] == [1600, 1000, None]
    assert site.pools["train"].gpu_count == 2


def test_a_worker_has_its_share_of_a_node_whose_memory_alone_is_given() -> None:
    assert Pool(mem_per_node=256, max_workers_per_node=8).memory_MB == 32000


def test_slots_of_several_nodes_and_of_programs_of_several_ranks(tmp_path: Path) -> None:
    text = """
kind: slurm
walltime: "01:00:00"
pools:
  label: {nodes_per_block: 4, max_blocks: 2, mpi: {command: "mpirun -n {ranks}", ranks: 64}}
  sample: {nodes_per_block: 4, max_blocks: 2, max_workers_per_node: 3}
  train: {}
"""
    site = load(tmp_path, text)
    assert (site.slots("label"), site.slots("sample")) == (2, 24)

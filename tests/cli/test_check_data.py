"""``hpcal check`` on files and campaigns: what it prints, and its exit code."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from cli.helpers import hpcal

from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure
from hpcal.core.units import KCAL_PER_MOL
from hpcal.exchange.extxyz import LabelledFrame, write_labelled

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"


def kinds(output: str) -> dict[str, dict]:  # type: ignore[type-arg]
    return {finding["kind"]: finding for finding in json.loads(output)["findings"]}


def test_good_labels_have_no_errors(labelled: Path) -> None:
    result = hpcal("check", labelled.name)
    assert result.exit_code == 0, result.stderr
    assert "labelled structures" in result.stdout
    assert "coverage" in result.stdout
    assert "0 errors" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_two_files_that_share_a_frame(labelled: Path, here: Path) -> None:
    lines = labelled.read_text().splitlines(keepends=True)
    (here / "test.extxyz").write_text("".join(lines[5:10]))
    result = hpcal("check", labelled, here / "test.extxyz", "--json")
    assert result.exit_code == 1
    leak = kinds(result.stdout)["leaked_geometries"]
    assert leak["severity"] == "error"
    assert leak["examples"][0]["where"] == [
        {"file": "labelled.extxyz", "frame": 2},
        {"file": "test.extxyz", "frame": 1},
    ]
    record = json.loads(result.stdout)
    assert set(record) == {"checked", "structures", "severities", "findings", "coverage"}
    assert record["structures"] == 12
    assert record["severities"]["error"] == 1


def test_what_cannot_be_read_exits_2(here: Path, labelled: Path) -> None:
    (here / "torn.extxyz").write_text(labelled.read_text()[:-40])
    for words, said in (
        (("nowhere.extxyz",), "no such file or folder: nowhere.extxyz"),
        (("nowhere",), "no such file or folder: nowhere"),
        (("torn.extxyz",), "frame 11"),
        (("water.xyz",), "no label"),
        ((labelled, labelled), "named twice"),
        (("teacher",), "neither a campaign"),
        ((labelled, "--multiplicity", "high"), "lowest"),
    ):
        result = hpcal("check", *words)
        assert result.exit_code == 2, words
        assert said in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1


def test_a_finished_campaign_has_no_errors(finished: Path) -> None:
    result = hpcal("check", finished, "--json")
    record = json.loads(result.stdout)
    assert [f for f in record["findings"] if f["severity"] == "error"] == []
    assert result.exit_code == 0
    assert record["structures"] > 20
    assert record["coverage"]["elements"].keys() == {"H", "O"}
    assert set(record["coverage"]["splits"]) > {"train"}


def files(folder: Path, query: str) -> list[str]:
    with sqlite3.connect(folder / "store.db") as connection:
        return [str(row[0]) for row in connection.execute(query)]


def test_files_that_are_not_what_was_recorded(own_copy: Path) -> None:
    shard = own_copy / files(own_copy, "SELECT path FROM shard ORDER BY id")[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    models = [own_copy / path for path in files(own_copy, "SELECT path FROM model WHERE path IS NOT NULL")]
    models[0].unlink()
    content = bytearray(models[1].read_bytes())
    content[len(content) // 2] ^= 1
    models[1].write_bytes(content)
    result = hpcal("check", own_copy, "--json")
    assert result.exit_code == 1
    found = kinds(result.stdout)
    assert found["missing_files"]["count"] == 1
    assert models[0].name in found["missing_files"]["examples"][0]["detail"]
    assert found["changed_files"]["count"] == 2
    text = json.dumps(found["changed_files"]["examples"])
    assert shard.name in text
    assert models[1].name in text


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ("DELETE FROM label WHERE id = (SELECT max(id) FROM label)", "labelled_without_label"),
        (
            "UPDATE structure SET state = 'waiting' WHERE id = (SELECT max(structure_id) FROM label)",
            "label_of_unlabelled",
        ),
        ("UPDATE structure SET state = 'sold' WHERE id = 1", "unknown_state"),
        (
            "UPDATE label SET split = 'test' WHERE id = (SELECT min(id) FROM label WHERE split = 'train')",
            "label_in_other_split",
        ),
        ("UPDATE shard SET count = count + 1 WHERE id = 1", "shard_count"),
        ("UPDATE dataset SET n_train = n_train - 1 WHERE id = 1", "dataset_count"),
        ("UPDATE model SET trained_on = x'ffff000000000000' WHERE id = 1", "trained_on_others"),
        (
            "UPDATE structure SET split = CASE split WHEN 'test' THEN 'train' ELSE 'test' END "
            "WHERE id = (SELECT min(id) FROM structure WHERE walker_id IS NOT NULL)",
            "split_of_walker",
        ),
        ("UPDATE task SET state = 'dispatched' WHERE id = 1", "dispatched_without_attempt"),
        ("UPDATE attempt SET state = 'failed' WHERE task_id = 1", "done_without_attempt"),
        (
            "UPDATE label SET energy = energy + 400 WHERE id = (SELECT max(id) FROM label)",
            "absurd_energies",
        ),
    ],
)
def test_rows_that_contradict_each_other(own_copy: Path, change: str, kind: str) -> None:
    with sqlite3.connect(own_copy / "store.db") as connection:
        assert connection.execute(change).rowcount == 1
    connection.close()
    result = hpcal("check", own_copy, "--json")
    found = kinds(result.stdout)
    assert kind in found
    assert found[kind]["count"] >= 1
    assert result.exit_code == (0 if found[kind]["severity"] == "warning" else 1)


def test_a_torn_store_is_said_to_be_damaged(own_copy: Path) -> None:
    store = own_copy / "store.db"
    content = bytearray(store.read_bytes())
    half = len(content) // 2
    content[half : half + 8192] = bytes(8192)
    store.write_bytes(content)
    result = hpcal("check", own_copy)
    assert result.exit_code in (1, 2)
    assert "damaged" in result.stdout + result.stderr


def test_a_campaign_is_checked_by_itself(finished: Path, labelled: Path) -> None:
    result = hpcal("check", finished, labelled)
    assert result.exit_code == 2
    assert "hpcal export" in result.stderr


def rmd17(path: Path, name: str) -> Path:
    """Frames of the archive as extended XYZ in eV and Å."""
    with np.load(DATA / "rmd17" / name) as archive:
        numbers = archive["nuclear_charges"].astype(int)
        level = LevelOfTheory(code="orca", version="4.0", method="PBE", settings={"basis": "def2-SVP"})
        pairs = [
            (
                Structure(numbers=numbers, positions=x),
                Label(energy=float(e) * KCAL_PER_MOL, forces=f * KCAL_PER_MOL, level=level),
            )
            for x, e, f in zip(archive["coords"], archive["energies"], archive["forces"], strict=True)
        ]
    write_labelled(path, [LabelledFrame(structure=s, label=label) for s, label in pairs[:300]])
    return path


@pytest.mark.skipif(not (DATA / "rmd17").is_dir(), reason="no rMD17 data in ../shared/data")
def test_real_frames_of_dynamics_have_no_errors(here: Path) -> None:
    train = rmd17(here / "train.extxyz", "rmd17_ethanol_train_01.npz")
    test = rmd17(here / "test.extxyz", "rmd17_ethanol_test_01.npz")
    result = hpcal("check", train, test, "--json")
    assert result.exit_code == 0
    assert "leaked_geometries" not in kinds(result.stdout)


@pytest.mark.skipif(not (DATA / "ethanol_botnet").is_dir(), reason="no BOTNet data in ../shared/data")
def test_real_files_of_which_one_contains_the_other() -> None:
    folder = DATA / "ethanol_botnet"
    result = hpcal("check", folder / "train.xyz", folder / "train_eth_meth.xyz", "--json")
    assert result.exit_code == 1
    assert kinds(result.stdout)["leaked_geometries"]["count"] == 1000
    clean = hpcal("check", folder / "train.xyz", folder / "test_MD.xyz")
    assert clean.exit_code == 0


@pytest.mark.skipif(not (DATA / "zuo2020").is_dir(), reason="no data of Zuo et al. in ../shared/data")
def test_real_crystals_have_no_errors() -> None:
    folder = DATA / "zuo2020"
    result = hpcal("check", folder / "Si_test.xyz", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["coverage"]["periodic"] == 25


def test_levels_of_equal_name_in_two_files_are_mixed(labelled: Path, here: Path) -> None:
    structure = Structure(numbers=[1, 1], positions=[[0, 0, 0], [0, 0, 0.74]])
    for name, version in (("a", "4.2"), ("b", "5.0")):
        level = LevelOfTheory(code="orca", version=version, method="PBE")
        label = Label(energy=-31.0, forces=np.zeros((2, 3)), level=level)
        write_labelled(here / f"{name}.extxyz", [LabelledFrame(structure=structure, label=label)])
    found = kinds(hpcal("check", here / "a.extxyz", here / "b.extxyz", "--json").stdout)["mixed_levels"]
    assert found["severity"] == "error"
    assert "PBE (orca), version 4.2" in found["meaning"]
    assert "PBE (orca), version 5.0" in found["meaning"]


def test_options_that_mean_nothing_are_refused(labelled: Path, finished: Path) -> None:
    for words, said in (
        ((labelled, "--near", "nan"), "is no length"),
        ((labelled, "--cutoff", "inf"), "is no length"),
        ((finished, "--charge", "1"), "is a campaign, which states"),
    ):
        result = hpcal("check", *words)
        assert (result.exit_code, said in result.stderr) == (2, True), result.stderr

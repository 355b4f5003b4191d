"""More of a campaign that has come to its end: ``hpcal extend``."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from cli.helpers import CAMPAIGN, hpcal, write_inputs

STOP = "stop: {labels: 32, generations: 2}"


def query(root: Path, sql: str) -> list[tuple]:
    connection = sqlite3.connect(root / "store.db")
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def labels(root: Path) -> int:
    return query(root, "SELECT count(*) FROM label WHERE seq IS NOT NULL")[0][0]


def stop_rules(root: Path) -> dict:
    return json.loads(query(root, "SELECT spec FROM campaign")[0][0])["stop"]


@pytest.fixture(scope="session")
def at_40(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a campaign file and, under ``run``, the campaign, finished at 40 labels."""
    folder = tmp_path_factory.mktemp("forty")
    file = write_inputs(folder)
    file.write_text(CAMPAIGN.replace(STOP, "stop: {labels: 40}"))
    result = hpcal("run", file, "--dir", folder / "run", "--inline")
    assert result.exit_code == 0, result.stderr
    assert labels(folder / "run") == 40
    return folder


@pytest.fixture
def copied(at_40: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes copies of that campaign that may be changed."""
    monkeypatch.chdir(tmp_path)
    return lambda name: Path(shutil.copytree(at_40 / "run", tmp_path / name))


# What a row is when it is finished; later scores and models are rows of their own.
FINISHED_ROWS = (
    "SELECT * FROM label ORDER BY id LIMIT {label}",
    "SELECT id, hash, origin, split, state, reason, step, created FROM structure "
    "WHERE state IN ('labelled', 'rejected', 'dropped') AND id <= {structure} ORDER BY id",
    "SELECT * FROM score ORDER BY id LIMIT {score}",
    "SELECT * FROM selection ORDER BY id LIMIT {selection}",
    "SELECT * FROM attempt ORDER BY id LIMIT {attempt}",
    "SELECT * FROM task ORDER BY id LIMIT {task}",
    "SELECT id, generation, revision, state, dataset_id, hash, created, decided, decision, threshold, "
    "calibration FROM ensemble ORDER BY id LIMIT {ensemble}",
    "SELECT * FROM model ORDER BY id LIMIT {model}",
    "SELECT * FROM dataset ORDER BY id LIMIT {dataset}",
    "SELECT * FROM event ORDER BY id LIMIT {event}",
)
TABLES = (
    "label", "structure", "score", "selection", "attempt", "task", "ensemble", "model", "dataset", "event",
)  # fmt: skip


@pytest.mark.slow
def test_it_goes_on_to_the_new_limit_and_leaves_what_was_there_as_it_was(copied):
    root = copied("run")
    sizes = {table: query(root, f"SELECT count(*) FROM {table}")[0][0] for table in TABLES}
    before = [query(root, sql.format(**sizes)) for sql in FINISHED_ROWS]
    # A structure that was still waiting may well get its label now; one that was finished may not change.
    finished = {row[0] for row in before[1]}
    generation = query(root, "SELECT max(generation) FROM ensemble")[0][0]

    result = hpcal("extend", root, "--labels", "+20", "--inline")

    assert result.exit_code == 0, result.stderr
    assert "labels: 40" in result.stdout
    assert "labels: 60" in result.stdout
    assert query(root, "SELECT state, stop_reason FROM campaign") == [
        ("finished", "label budget: 60 labels accepted")
    ]
    assert labels(root) == 60
    for sql, rows in zip(FINISHED_ROWS, before, strict=True):
        now = query(root, sql.format(**sizes))
        assert (now if "FROM structure" not in sql else [r for r in now if r[0] in finished]) == rows
    # Sampling began again, and the last labels were learned from in a closing generation.
    assert query(root, "SELECT max(generation) FROM ensemble")[0][0] > generation
    last_seq = query(root, "SELECT last_seq FROM dataset ORDER BY id DESC LIMIT 1")[0][0]
    learned = "SELECT max(seq) FROM label WHERE split IN ('train', 'validation')"
    assert last_seq >= query(root, learned)[0][0]
    born = query(root, f"SELECT count(*) FROM segment WHERE ensemble_id >= {sizes['ensemble']}")
    assert born[0][0] > 0


@pytest.mark.slow
def test_it_is_deterministic(copied):
    found = []
    for name in ("one", "two"):
        root = copied(name)
        assert hpcal("extend", root, "--labels", "50", "--inline").exit_code == 0
        found.append(
            query(root, "SELECT seq, structure_id, energy, forces, split FROM label ORDER BY id")
            + query(root, "SELECT generation, state, hash, threshold FROM ensemble ORDER BY id")
            + query(root, "SELECT id, split, stream, step, positions, end_reason FROM walker ORDER BY id")
        )
    assert found[0] == found[1]


@pytest.mark.slow
def test_the_old_file_is_refused_afterwards_and_the_difference_is_on_record(copied, at_40):
    root = copied("run")
    assert hpcal("extend", root, "--labels", "60", "--no-run").exit_code == 0
    refused = hpcal("run", at_40 / "tiny.yaml", "--dir", root, "--inline")
    assert refused.exit_code == 2
    assert "-  labels: 60" in refused.stderr
    assert "+  labels: 40" in refused.stderr
    events = query(root, "SELECT message FROM event WHERE kind = 'changed'")
    assert events == [("-  labels: 40\n+  labels: 60",)]


@pytest.mark.slow
def test_without_running_it_waits_for_resume(copied):
    root = copied("run")
    result = hpcal("extend", root, "--labels", "44", "--no-run")
    assert result.exit_code == 0
    assert f"hpcal resume {root}" in result.stdout
    assert query(root, "SELECT state FROM campaign") == [("stopped",)]
    assert query(root, "SELECT lease_host FROM campaign") == [(None,)]
    assert labels(root) == 40
    assert hpcal("resume", root, "--inline").exit_code == 0
    assert labels(root) == 44
    assert query(root, "SELECT state FROM campaign") == [("finished",)]


@pytest.mark.slow
def test_a_sampler_is_added_at_the_end_with_paths_of_its_own_file(copied, tmp_path):
    root = copied("run")
    (tmp_path / "hot.yaml").write_text(
        "{sampler: langevin, walkers: 3, time_ps: 0.01, temperature_K: 2000}\n"
    )
    result = hpcal("extend", root, "--labels", "46", "--add-sampler", "hot.yaml", "--inline")
    assert result.exit_code == 0, result.stderr
    spec = json.loads(query(root, "SELECT spec FROM campaign")[0][0])
    assert [entry["walkers"] for entry in spec["sampling"]] == [6, 3]
    assert {entry for (entry,) in query(root, "SELECT DISTINCT entry FROM walker")} == {0, 1}
    assert query(root, "SELECT min(temperature) FROM walker WHERE entry = 1") == [(2000.0,)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), {}),
        (("--walkers", "9"), {"walkers": 9}),
        (("--walkers", "langevin=9"), {"walkers": 9}),
        (("--walkers", "0=9"), {"walkers": 9}),
        (("--generations", "7"), {"generations": 7}),
        (("--quiet-generations", "+3"), {"quiet_generations": 3}),
        (("--force-rmse", "0.0001"), {"force_rmse_eV_per_A": 0.0001}),
        (("--energy-rmse", "0.0001"), {"energy_rmse_meV_per_atom": 0.0001}),
    ],
)
def test_what_can_be_asked_for(copied, options, expected):
    root = copied("run")
    result = hpcal("extend", root, "--labels", "60", *options, "--no-run")
    assert result.exit_code == 0, result.stderr
    spec = json.loads(query(root, "SELECT spec FROM campaign")[0][0])
    assert {**spec["stop"], "walkers": spec["sampling"][0]["walkers"]} == {
        "walkers": 6, "labels": 60, **expected,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "nothing to extend"),
        (("--labels", "40"), "has 40 accepted labels already; give more than 40"),
        (("--labels", "12"), "give more than 40, or +12 for 12 more"),
        (("--labels", "many"), "give a whole number above 0"),
        (("--labels", "-3"), "give a whole number above 0"),
        (("--labels", "+0"), "give a whole number above 0"),
        (("--generations", "9"), "by another stop rule (label budget: 40 labels accepted)"),
        (("--labels", "60", "--generations", "1"), "generations already; give more than"),
        (("--labels", "60", "--walkers", "6"), "langevin has 6 walkers"),
        (("--labels", "60", "--walkers", "udd=9"), "names no sampler of this campaign"),
        (("--labels", "60", "--walkers", "langevin=x"), "no number of walkers"),
        (("--labels", "60", "--add-sampler", "nowhere.yaml"), "no such file: nowhere.yaml"),
        (("--labels", "60", "--add-sampler", "bad.yaml"), "unknown key"),
        (("--labels", "60", "--add-sampler", "list.yaml"), "one entry of `sampling`"),
        (("--labels", "60", "--add-sampler", "first.yaml"), "cannot be used in sampling"),
    ],
)
def test_what_is_not_more_is_refused_in_one_sentence_and_changes_nothing(copied, tmp_path, options, words):
    root = copied("run")
    (tmp_path / "bad.yaml").write_text("{sampler: langevin, tempreture_K: 300}\n")
    (tmp_path / "list.yaml").write_text("- {sampler: langevin}\n")
    (tmp_path / "first.yaml").write_text("{sampler: random_displacement}\n")
    before = query(root, "SELECT spec, state, lease_epoch FROM campaign")
    result = hpcal("extend", root, *options, "--inline")
    assert result.exit_code == 2
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert query(root, "SELECT spec, state, lease_epoch FROM campaign") == before


def test_a_tighter_target_only(copied):
    root = copied("run")
    assert hpcal("extend", root, "--labels", "60", "--force-rmse", "0.0002", "--no-run").exit_code == 0
    result = hpcal("extend", root, "--force-rmse", "0.0002", "--no-run")
    assert result.exit_code == 2
    assert "not below the recorded target of 0.0002 eV/Å" in result.stderr
    assert stop_rules(root)["force_rmse_eV_per_A"] == 0.0002


def test_a_running_campaign_is_not_extended(copied):
    root = copied("run")
    me = psutil.Process()
    connection = sqlite3.connect(root / "store.db")
    connection.execute(
        "UPDATE campaign SET state = 'running', lease_host = ?, lease_pid = ?, lease_process_start = ?",
        (socket.gethostname(), os.getpid(), me.create_time()),
    )
    connection.commit()
    connection.close()
    result = hpcal("extend", root, "--labels", "60")
    assert result.exit_code == 3
    assert str(os.getpid()) in result.stderr
    assert stop_rules(root) == {"labels": 40}


def test_there_must_be_a_campaign(tmp_path):
    result = hpcal("extend", tmp_path, "--labels", "60")
    assert result.exit_code == 2
    assert "no campaign" in result.stderr

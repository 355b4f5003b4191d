"""What a whole campaign promises, on one that ends in seconds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.campaigns import StopAfter, content, query, run_inline

from hpcal.core.errors import ConfigurationError, Interrupted

pytestmark = pytest.mark.stores


def slow(value):
    """One of several like it, of which the fast suite runs the others."""
    return pytest.param(value, marks=pytest.mark.slow)


def test_ends_by_its_own_stop_rule_with_every_structure_accounted_for(campaign_file, tmp_path):
    reason = run_inline(campaign_file(), tmp_path / "run")
    assert reason.startswith(("label budget", "generations"))
    root = tmp_path / "run"
    generations = [g for (g,) in query(root, "SELECT generation FROM ensemble WHERE state = 'promoted'")]
    assert len(generations) >= 2
    states = dict(query(root, "SELECT state, count(*) FROM structure GROUP BY state"))
    assert "claimed" not in states
    labelled = query(root, "SELECT count(*) FROM label WHERE seq IS NOT NULL")[0][0]
    assert states["labelled"] == labelled <= 40
    assert query(root, "SELECT count(*) FROM task WHERE state != 'done'")[0][0] == 0


def test_audit_labels_never_train(campaign_file, tmp_path):
    run_inline(campaign_file(), tmp_path / "run")
    root = tmp_path / "run"
    audit = {i for (i,) in query(root, "SELECT id FROM structure WHERE split IN ('calibration', 'test')")}
    assert audit
    import numpy as np

    trained = {
        int(i)
        for (blob,) in query(root, "SELECT trained_on FROM model WHERE trained_on IS NOT NULL")
        for i in np.frombuffer(blob, "<i8")
    }
    assert trained
    assert not trained & audit


@pytest.mark.slow
def test_audit_takes_its_share_of_the_labels(campaign_file, tmp_path):
    run_inline(campaign_file(), tmp_path / "run")
    total, audit = query(
        tmp_path / "run",
        "SELECT count(*), sum(CASE WHEN split IN ('calibration', 'test') THEN 1 ELSE 0 END) FROM label "
        "WHERE seq IS NOT NULL",
    )[0]
    assert 0 < audit <= 0.2 * total + 1


@pytest.mark.slow
def test_two_runs_of_one_seed_are_equal_bit_for_bit(campaign_file, tmp_path):
    file = campaign_file()
    run_inline(file, tmp_path / "a")
    run_inline(file, tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")


@pytest.mark.slow
@pytest.mark.parametrize("after", [slow(1), slow(4), slow(9), 14])
def test_a_run_stopped_anywhere_and_resumed_equals_the_uninterrupted_one(campaign_file, tmp_path, after):
    file = campaign_file()
    run_inline(file, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run_inline(file, tmp_path / "cut", StopAfter(after))
    run_inline(file, tmp_path / "cut")
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


RUN = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from support.campaigns import run_inline
run_inline(Path({file!r}), Path({root!r}))
"""


def start(file: Path, root: Path) -> subprocess.Popen:
    code = RUN.format(tests=str(Path(__file__).parents[1]), file=str(file), root=str(root))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("number", [slow(signal.SIGKILL), slow(signal.SIGINT)])
def test_a_run_whose_process_is_signalled_and_resumed_equals_the_uninterrupted_one(
    campaign_file, tmp_path, number
):
    file, root = campaign_file(), tmp_path / "cut"
    run_inline(file, tmp_path / "whole")
    process = start(file, root)
    # Once there are labels the campaign is in the middle of its work.
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if any((root / "tasks").glob("*")):
            break
        time.sleep(0.02)
    time.sleep(0.3)
    os.kill(process.pid, number)
    process.wait(60)
    run_inline(file, root)
    assert content(root) == content(tmp_path / "whole")


@pytest.mark.slow
def test_a_changed_campaign_file_is_refused_with_the_difference(campaign_file, tmp_path):
    run_inline(campaign_file(), tmp_path / "run")
    with pytest.raises(ConfigurationError, match=r"(?s)labels: 40.*labels: 50.*--accept-changes"):
        run_inline(campaign_file(stop="{labels: 50, generations: 3}"), tmp_path / "run")

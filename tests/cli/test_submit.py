"""``hpcal submit`` and the jobs that it hands in, with a Slurm that runs nothing."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cli.helpers import hpcal
from support.fake_slurm import FakeSlurm

from hpcal.cli import controller_job, run
from hpcal.core.errors import CampaignFailed, CampaignHeld, FencedError, Interrupted, StoreError
from hpcal.sites.block_end import BLOCK_END
from hpcal.sites.chain import Chain
from hpcal.store.database import Store
from hpcal.store.lease_file import HolderRecord
from hpcal.store.location import FILESYSTEM_VARIABLE

SITE = """
kind: local
pools: {label: {}, sample: {}, train: {}}
controller: {kind: slurm, walltime: "01:00:00", account: "${PAYS}"}
"""


@pytest.fixture
def slurm(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    (here / "cluster.yaml").write_text(SITE)
    return FakeSlurm(tmp_path / "slurm", monkeypatch)


def submit(*more: str, site: str = "cluster.yaml"):
    return hpcal("submit", "tiny.yaml", "--site", site, "--set", "PAYS=me", *more)


def chain() -> Chain:
    found = Chain.of(Path("tiny"))
    assert found is not None
    return found


def status() -> dict:
    result = hpcal("status", "tiny", "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


# ── Handing in ───────────────────────────────────────────────────────────────────────────────


def test_a_new_campaign_is_recorded_and_its_controller_waits(slurm):
    result = submit()
    assert result.exit_code == 0, result.stderr
    assert "its controller is job 101" in result.stdout
    assert slurm.marks() == {"101": f"hpcal:{chain().plan.run_id}:controller.1"}
    assert "#SBATCH --account=me" in Path("tiny/controller/1.sh").read_text()
    found = status()
    assert (found["state"], found["next"]) == ("stopped", None)
    assert (found["controller"]["job"], found["controller"]["state"]) == ("101", "pending")
    assert "controller job 101: pending" in hpcal("status", "tiny").stdout


def test_a_campaign_that_was_not_submitted_has_no_controller_job(own_copy):
    assert json.loads(hpcal("status", own_copy, "--json").stdout)["controller"] is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("cluster.yaml", 'controller: {kind: slurm, walltime: "01:00:00", account: "${PAYS}"}', ""),
         "no block `controller`"),
        (("cluster.yaml", "kind: slurm", "kind: local"), "its kind is local"),
        (("cluster.yaml", "${PAYS}", "${WHO}"), "WHO"),
        (("tiny.yaml", "labeler: teacher", "labeler: techer"), "techer"),
        (("water.xyz", "3\n", "4\n"), "water.xyz"),
    ],
)  # fmt: skip
def test_what_can_be_checked_is_checked_before_anything_is_submitted(slurm, change, sentence):
    name, old, new = change
    text = Path(name).read_text()
    assert old in text
    Path(name).write_text(text.replace(old, new))
    result = submit()
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert slurm.commands.calls("sbatch") == []


def test_a_site_is_needed(slurm):
    result = hpcal("submit", "tiny.yaml")
    assert result.exit_code == 2
    assert "--site" in result.stderr


def test_a_refused_job_fails_and_the_campaign_can_be_submitted_again(slurm):
    slurm.refuses("sbatch: error: Invalid account or account/partition combination specified")
    result = submit()
    assert result.exit_code == 1
    assert "Invalid account" in result.stderr
    assert "submit again" in result.stderr
    (slurm.folder / "refuse").unlink()
    assert submit().exit_code == 0
    assert len(slurm.marks()) == 1


def test_a_submitted_campaign_is_not_submitted_twice(slurm):
    assert submit().exit_code == 0
    result = submit()
    assert result.exit_code == 3
    assert "controller job 101 is pending" in result.stderr
    assert len(slurm.marks()) == 1


def test_a_chain_that_came_before_the_lease_is_found_after_it(slurm, monkeypatch):
    assert submit().exit_code == 0
    first = Path("tiny/controller/chain.json").read_text()
    # As for a second login node, which looked before the first one handed in.
    monkeypatch.setattr(Chain, "of", lambda _root: None)
    result = submit()
    assert result.exit_code == 3
    assert "controller job 101 is pending" in result.stderr
    assert len(slurm.marks()) == 1
    assert Path("tiny/controller/chain.json").read_text() == first


def test_a_record_of_a_chain_that_cannot_be_read_is_replaced(slurm):
    assert submit().exit_code == 0
    Path("tiny/controller/chain.json").write_text("{")
    assert submit().exit_code == 3  # its job is there all the same
    slurm.end("101")
    result = submit()
    assert result.exit_code == 0, result.stderr
    assert "does not say what was submitted" in result.stderr
    assert chain().plan.first == 2


def test_a_campaign_that_runs_is_not_submitted(slurm):
    assert submit().exit_code == 0
    slurm.end("101")
    store = Store.open(Path("tiny"))
    store.acquire()
    try:
        result = submit()
    finally:
        store.release()
        store.close()
    assert result.exit_code == 3
    assert "is run by process" in result.stderr


def test_a_changed_file_is_refused_unless_accepted(slurm):
    assert submit().exit_code == 0
    slurm.end("101")
    text = Path("tiny.yaml").read_text()
    Path("tiny.yaml").write_text(text.replace("labels: 32", "labels: 33"))
    result = submit()
    assert result.exit_code == 2
    assert "labels: 33" in result.stderr
    assert submit("--accept-changes").exit_code == 0


@pytest.mark.slow
def test_a_finished_campaign_says_so_and_submits_nothing(slurm, own_copy):
    result = hpcal("submit", "tiny.yaml", "--site", "cluster.yaml", "--set", "PAYS=me", "--dir", own_copy)
    assert result.exit_code == 0, result.stderr
    assert "is finished" in result.stdout
    assert slurm.marks() == {}


# ── Stopping ─────────────────────────────────────────────────────────────────────────────────


def test_stop_ends_a_chain_that_waits(slurm):
    submit()
    result = hpcal("stop", "tiny")
    assert result.exit_code == 0, result.stderr
    assert "cancelled controller jobs 101" in result.stdout
    assert slurm.marks() == {}
    assert status()["controller"]["reason"] == "stopped by `hpcal stop`"
    assert status()["next"] == "hpcal resume tiny"


def test_stop_where_the_scheduler_does_not_answer_keeps_jobs_from_running(slurm, monkeypatch):
    submit()
    slurm.is_silent()
    result = hpcal("stop", "tiny")
    assert result.exit_code == 0
    assert "will do nothing" in result.stderr
    slurm.is_silent(False)
    monkeypatch.setattr(run, "resume", pytest.fail)
    assert controller_job.main(["tiny", "1"]) == 0


# ── What a job does ──────────────────────────────────────────────────────────────────────────


@pytest.fixture
def job(slurm, monkeypatch) -> Callable[..., int]:
    """Runs the job that waits, as if its controller ended so; returns the exit code of the job."""

    def begin(ends: Callable[[], None], *, left_s: float = 3600) -> int:
        (job_id, mark), *_ = sorted(slurm.marks().items())
        slurm.run(job_id)
        monkeypatch.setenv("SLURM_JOB_ID", job_id)
        monkeypatch.setenv(BLOCK_END, str(time.time() + left_s))
        monkeypatch.setattr(run, "resume", lambda *_args, **_options: ends())
        code = controller_job.main(["tiny", mark.rpartition(".")[2]])
        slurm.end(job_id)
        monkeypatch.delenv("SLURM_JOB_ID")
        return code

    assert submit().exit_code == 0
    return begin


def raises(error: BaseException) -> Callable[[], None]:
    def end() -> None:
        raise error

    return end


def test_the_successor_is_there_before_the_campaign_goes_on(slurm, job):
    seen = []
    assert job(lambda: seen.append(slurm.marks())) == 0
    assert [mark.rpartition(".")[2] for mark in seen[0].values()] == ["1", "2"]


def test_a_finished_campaign_ends_the_chain(slurm, job):
    assert job(lambda: None) == 0
    assert slurm.marks() == {}
    assert chain().end_reason == "the campaign is finished"


def test_a_job_near_its_end_hands_over(slurm, job):
    assert job(raises(Interrupted("stopped"))) == 0
    assert [mark.rpartition(".")[2] for mark in slurm.marks().values()] == ["2"]
    assert chain().end_reason is None
    assert job(raises(KeyboardInterrupt())) == 0  # SIGTERM while the controller begins
    assert list(slurm.marks()) == ["103"]


def test_a_job_that_was_told_to_stop_ends_the_chain(slurm, job):
    def stopped() -> None:
        chain().ask_stop()
        raise Interrupted("stopped")

    assert job(stopped) == 0
    assert slurm.marks() == {}
    assert chain().end_reason == "stopped by `hpcal stop`"


@pytest.mark.parametrize(
    ("error", "code"),
    [(CampaignFailed("every label fails"), 1), (CampaignHeld("run by process 7 on n3"), 3)],
)
def test_what_the_next_job_cannot_mend_ends_the_chain(slurm, job, monkeypatch, error, code):
    monkeypatch.setattr(controller_job, "HELD_S", 0.0)
    assert job(raises(error)) == code
    assert slurm.marks() == {}
    assert chain().end_reason == str(error)


def test_a_job_that_finds_the_campaign_held_spares_the_controller_that_has_it(slurm, job, monkeypatch):
    monkeypatch.setattr(controller_job, "HELD_S", 0.0)
    live = slurm.add(f"hpcal:{chain().plan.run_id}:controller.0")
    assert job(raises(CampaignHeld("run by process 7 on n3"))) == 3
    assert list(slurm.marks()) == [live]


def test_a_job_of_an_earlier_submission_leaves_the_newer_chain_alone(slurm, job, monkeypatch):
    slurm.end("101")
    assert submit().exit_code == 0
    monkeypatch.setattr(run, "resume", pytest.fail)
    assert controller_job.main(["tiny", "1"]) == 0
    assert list(slurm.marks().values()) == [f"{chain().prefix}2"]
    assert chain().end_reason is None


@pytest.mark.extras
def test_a_database_that_does_not_answer_goes_to_the_next_job(slurm, job, monkeypatch):
    pytest.importorskip("psycopg")
    monkeypatch.setattr(controller_job, "OUTAGE_S", 0.0)
    resume = run.resume
    away = {"url": "postgresql+psycopg://me@127.0.0.1:9/none", "schema": "tiny"}
    Path("tiny/store.json").write_text(json.dumps(away))
    for _ in range(3):
        assert job(lambda: resume(Path("tiny"), site=None, inline=False)) == 1
        assert chain().end_reason is None
        assert len(slurm.marks()) == 1
    assert job(pytest.fail) == 1  # but not for ever
    assert slurm.marks() == {}
    assert "cannot be reached" in chain().end_reason


def test_a_snapshot_that_is_not_there_yet_goes_to_the_next_job(slurm, job, monkeypatch):
    monkeypatch.setattr(controller_job, "OUTAGE_S", 0.0)
    monkeypatch.setenv(FILESYSTEM_VARIABLE, "network")
    HolderRecord(host="n3", pid=7, process_start=1.0).show(Path("tiny"))
    resume = run.resume
    assert job(lambda: resume(Path("tiny"), site=None, inline=False)) == 1
    assert chain().end_reason is None
    assert len(slurm.marks()) == 1


@pytest.mark.extras
def test_a_new_campaign_whose_database_does_not_answer_is_a_fault_of_what_was_given(here):
    pytest.importorskip("psycopg")
    result = hpcal("run", "tiny.yaml", "--inline", "--store", "postgresql://me@127.0.0.1:9/none")
    assert result.exit_code == 2
    assert "cannot be reached" in result.stderr
    # A corrected command has the folder.
    assert not (here / "tiny").exists()
    (here / "tiny").mkdir()
    assert hpcal("run", "tiny.yaml", "--inline", "--store", "postgresql://me@127.0.0.1:9/none").exit_code == 2
    assert list((here / "tiny").iterdir()) == []


def test_a_store_that_answers_again_is_waited_for(slurm, job, monkeypatch):
    monkeypatch.setattr(controller_job, "_TRY_AGAIN_S", 0.01)
    read, tries = Store.read, []

    def reading(folder: Path) -> Store:
        tries.append(folder)
        if len(tries) < 3:
            raise StoreError("the database cannot be reached")
        return read(folder)

    monkeypatch.setattr(Store, "read", reading)
    assert job(lambda: None) == 0
    assert "the campaign is finished" in chain().end_reason
    assert json.loads(Path("tiny/controller/1.began").read_text())["progress"] is not None


def test_a_disk_that_takes_nothing_ends_the_chain_with_its_jobs(slurm, job, monkeypatch, capsys):
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    slurm.add(f"{chain().prefix}0", "PENDING")
    monkeypatch.setattr("hpcal.sites.chain.write_whole", full)
    assert job(raises(Interrupted("stopped"))) == 1
    assert slurm.marks() == {}
    said = capsys.readouterr()
    assert "the next controller job could not be submitted: [Errno 28] No space left" in said.out
    assert "controller does not say so: [Errno 28]" in said.err


def test_the_watch_survives_a_request_that_cannot_be_written(job, monkeypatch):
    tries = []

    def stop_own(_root: Path) -> None:
        tries.append(1)
        raise OSError(122, "Disk quota exceeded")

    def long() -> None:
        until = time.monotonic() + 20
        while len(tries) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        raise Interrupted("stopped")

    monkeypatch.setattr(controller_job, "_LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(controller_job, "_stop_own", stop_own)
    assert job(long, left_s=100) == 0
    assert len(tries) >= 2


def test_a_site_that_became_wrong_ends_the_chain_with_its_fault(slurm, job, monkeypatch):
    resume = run.resume
    Path("cluster.yaml").write_text("kind: local\npools: {}\n")
    assert job(lambda: resume(Path("tiny"), site=None, inline=False)) == 2
    assert slurm.marks() == {}
    assert "missing pools" in chain().end_reason


def test_three_failures_in_a_row_without_progress_end_the_chain(slurm, job):
    full = StoreError("the store could not be written: disk is full")
    for _ in range(3):
        assert job(raises(full)) == 1
        assert chain().end_reason is None
        assert len(slurm.marks()) == 1
    assert job(pytest.fail) == 1
    assert slurm.marks() == {}
    assert "controller jobs 101, 102, 103 ended without any task done" in chain().end_reason
    assert "disk is full" in chain().end_reason
    assert "disk is full" in hpcal("status", "tiny").stdout


def test_an_unexpected_error_goes_to_the_next_job(slurm, job, capsys):
    assert job(raises(ZeroDivisionError("a fault"))) == 1
    assert "Traceback" in capsys.readouterr().err
    assert len(slurm.marks()) == 1


def test_a_job_that_lost_the_campaign_leaves_the_chain_alone(slurm, job):
    assert job(raises(FencedError("process 7 on n3 has taken this campaign over"))) == 1
    assert len(slurm.marks()) == 1
    assert chain().end_reason is None


@pytest.mark.slow
def test_a_successor_that_was_not_taken_is_tried_again(slurm, job, monkeypatch):
    monkeypatch.setattr(controller_job, "_TRY_AGAIN_S", 0.2)
    slurm.refuses("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")

    def soon() -> None:
        (slurm.folder / "refuse").unlink()
        until = time.monotonic() + 20
        while len(slurm.marks()) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        raise Interrupted("stopped")

    assert job(soon) == 0
    assert [mark.rpartition(".")[2] for mark in slurm.marks().values()] == ["2"]


def test_without_a_successor_the_chain_ends_and_says_so(slurm, job):
    slurm.refuses("sbatch: error: Batch job submission failed: Access denied from compute nodes")
    assert job(raises(Interrupted("stopped"))) == 1
    assert "could not be submitted" in chain().end_reason
    assert "Access denied" in chain().end_reason


@pytest.mark.parametrize("asked", ["end of the job", "stop"])
def test_its_own_controller_is_asked_to_stop(job, asked):
    def long() -> None:
        store = Store.open(Path("tiny"))
        store.acquire()
        try:
            if asked == "stop":
                chain().ask_stop()
            until = time.monotonic() + 20
            while not Path("tiny/stop").exists():
                assert time.monotonic() < until
                time.sleep(0.05)
        finally:
            store.release()
            store.close()
        raise Interrupted("stopped")

    assert job(long, left_s=100 if asked == "end of the job" else 3600) == 0


@pytest.mark.slow
def test_a_controller_that_is_not_its_own_is_not_asked_to_stop(job):
    def elsewhere() -> None:
        store = Store.open(Path("tiny"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 1)  # that of the holder
            store.acquire()
        time.sleep(3)
        assert not Path("tiny/stop").exists()
        store.close()

    assert job(elsewhere, left_s=100) == 0


def test_a_folder_that_was_never_submitted_is_an_error(own_copy, capsys):
    assert controller_job.main([str(own_copy), "1"]) == 2
    assert "hpcal submit" in capsys.readouterr().err


@pytest.mark.slow
def test_status_of_a_campaign_that_runs_by_hand_has_no_word_on_the_old_chain(slurm):
    submit()
    hpcal("stop", "tiny")
    assert "controller jobs: ended (stopped by `hpcal stop`)" in hpcal("status", "tiny").stdout
    assert hpcal("resume", "tiny", "--inline").exit_code == 0
    assert "controller jobs" not in hpcal("status", "tiny").stdout
    assert status()["controller"]["state"] == "ended"

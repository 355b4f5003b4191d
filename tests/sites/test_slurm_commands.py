"""What is said to Slurm and understood of its answers, with commands that answer as a real 22.05 did."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from support.slurm import Commands

from hpcal.sites.answers import FORGOTTEN, End, Refused, how_ended
from hpcal.sites.scheduler import Job, SchedulerError, SchedulerState
from hpcal.sites.slurm_commands import Slurm

MARK = "hpcal:run:label.0.abc"
UNKNOWN = "slurm_load_jobs error: Invalid job id specified\n"
UNREACHABLE = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"
NO_ACCOUNTS = "Slurm accounting storage is disabled\n"


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Commands of a Slurm that knows no job and whose submissions are number 7."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr("hpcal.sites.slurm_commands._SEARCH_PAUSES_S", (0.0, 0.01))
    commands = Commands(tmp_path / "bin", monkeypatch)
    commands.says("sbatch", "7\n")
    commands.says("squeue")
    commands.says("scancel")
    commands.says("scontrol", err=UNKNOWN, exit_code=1)
    commands.says("sacct", err=NO_ACCOUNTS, exit_code=1)
    return commands


def row(job_id: str, state: str, *, code: int = 0, reason: str = "None", mark: str = "(null)") -> str:
    return f"{job_id}|{state}|{code}|{reason}|{mark}|\n"


def test_bytes_that_are_no_text_hide_no_job(commands: Commands) -> None:
    line = row("7", "RUNNING", mark=MARK)
    commands.write("squeue", "printf '6|PENDING|0|None|gr\\374n|\\n'", f"printf %s '{line}'")
    assert [job.id for job in Slurm().marked(MARK)] == ["7"]


def test_submission_carries_mark_and_predecessor(commands: Commands) -> None:
    assert Slurm().submit(Path("job.sh"), mark=MARK, after="6") == "7"
    assert commands.calls("sbatch") == [f"--parsable --comment={MARK} --dependency=afterany:6 job.sh"]


@pytest.mark.parametrize("out", ["7;cluster\n", "Welcome!\n --> checks passed\n7\n"])
def test_job_id_is_found_in_what_sites_print(commands: Commands, out: str) -> None:
    commands.says("sbatch", out)
    assert Slurm().submit(Path("job.sh"), mark=MARK) == "7"


@pytest.mark.parametrize(
    "words",
    [
        "sbatch: error: invalid partition specified: nope\n"
        "sbatch: error: Batch job submission failed: Invalid partition name specified",
        "sbatch: error: Batch job submission failed: Invalid account or account/partition combination "
        "specified",
        "sbatch: error: Batch job submission failed: Invalid qos specification",
        "sbatch: error: Batch job submission failed: Requested node configuration is not available",
        "sbatch: error: Batch job submission failed: Invalid feature specification",
        "sbatch: error: Memory specification can not be satisfied",
        "sbatch: error: Invalid generic resource (gres) specification",
        "sbatch: error: Invalid --time specification",
        "sbatch: unrecognized option '--foo'",
        "sbatch: error: Batch job submission failed: Requested time limit is invalid "
        "(missing or exceeds some limit)",
    ],
)
def test_refusals_for_good_are_told_from_failures(commands: Commands, words: str) -> None:
    commands.says("sbatch", err=words, exit_code=1)
    with pytest.raises(Refused) as refusal:
        Slurm().submit(Path("job.sh"), mark=MARK)
    assert words.splitlines()[0] in str(refusal.value)
    assert not commands.calls("squeue")  # there is nothing to find


@pytest.mark.parametrize(
    "words",
    [
        "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
        "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, "
        "user's size and/or time limits)",
        "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying",
        "",
    ],
)
def test_other_failures_are_no_refusals(commands: Commands, words: str) -> None:
    commands.says("sbatch", err=words, exit_code=1)
    with pytest.raises(SchedulerError, match="sbatch failed with exit code 1") as failure:
        Slurm().submit(Path("job.sh"), mark=MARK)
    assert not isinstance(failure.value, Refused)
    assert words in str(failure.value)
    # Only what may have arrived is searched for, as that takes time.
    assert bool(commands.calls("squeue")) == ("Socket timed out" in words or not words)


def test_late_submission_is_found_by_its_mark(commands: Commands) -> None:
    commands.says("sbatch", "8\n", after_s=5)
    commands.says("squeue", row("9", "PENDING", mark="hpcal:run:label.0") + row("8", "RUNNING", mark=MARK))
    assert Slurm(0.2).submit(Path("job.sh"), mark=MARK) == "8"


def test_late_submission_is_found_though_its_job_has_ended(commands: Commands) -> None:
    commands.says("sbatch", err="Socket timed out on send/recv operation", exit_code=1)
    commands.says("squeue", row("8", "FAILED", code=256, mark=MARK))
    assert Slurm().submit(Path("job.sh"), mark=MARK) == "8"


def test_submission_that_arrives_while_it_is_searched_is_found(commands: Commands, tmp_path: Path) -> None:
    commands.says("sbatch", "8\n", after_s=5)
    looked = tmp_path / "looked"
    commands.write(
        "squeue", f"[ -e {looked} ] && printf '%s' '{row('8', 'PENDING', mark=MARK)}'", f"touch {looked}"
    )
    assert Slurm(0.2).submit(Path("job.sh"), mark=MARK) == "8"
    assert len(commands.calls("squeue")) == 2


def test_submission_that_never_arrived_is_an_error_with_its_own_cause(commands: Commands) -> None:
    commands.says("sbatch", after_s=5)
    with pytest.raises(SchedulerError, match=r"sbatch did not answer within 0\.2 s"):
        Slurm(0.2).submit(Path("job.sh"), mark=MARK)
    commands.says("squeue", err=UNREACHABLE, exit_code=1)
    with pytest.raises(SchedulerError, match=r"sbatch did not answer within 0\.2 s"):
        Slurm(0.2).submit(Path("job.sh"), mark=MARK)


def test_variables_of_the_job_around_it_do_not_reach_a_submission(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_MEM_PER_CPU", "SLURM_CONF", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "1")
    commands.write("sbatch", "env > seen", "echo 7")
    monkeypatch.chdir(commands.folder)
    assert Slurm().submit(Path("job.sh"), mark=MARK) == "7"
    seen = {line.partition("=")[0] for line in (commands.folder / "seen").read_text().splitlines()}
    assert "SLURM_CONF" in seen
    assert not {"SLURM_JOB_ID", "SLURM_MEM_PER_CPU", "CUDA_VISIBLE_DEVICES"} & seen


def test_look_reads_states_reasons_codes_and_marks(commands: Commands) -> None:
    commands.says(
        "squeue",
        row("1", "PENDING", reason="Resources", mark=MARK)
        + row("2", "COMPLETING", code=15, mark="a|b")
        + row("3", "FAILED", code=768, reason="NonZeroExitCode")
        + row("4", "TIMEOUT", reason="TimeLimit", code=15)
        + row("5", "CANCELLED")
        + row("6", "SUSPENDED")
        + row("99", "RUNNING"),
    )
    pending, running, ended = SchedulerState.PENDING, SchedulerState.RUNNING, SchedulerState.ENDED
    assert Slurm().look(["1", "2", "3", "4", "5", "6"]) == {
        "1": Job(id="1", state=pending, reason="Resources", mark=MARK),
        "2": Job(id="2", state=running, mark="a|b"),
        "3": Job(id="3", state=ended, reason="FAILED (NonZeroExitCode)", exit_code=3),
        "4": Job(id="4", state=ended, reason="TIMEOUT (TimeLimit)", exit_code=143),
        "5": Job(id="5", state=ended, reason="CANCELLED", exit_code=0),
        "6": Job(id="6", state=running),
    }
    (call,) = commands.calls("squeue")
    assert f"--user={os.getuid()}" in call
    assert "--states=all" in call
    assert not commands.calls("scontrol")


# As in Slurm's page "Job State Codes", states and flags.
WAITING = [
    "PENDING", "CONFIGURING", "POWER_UP_NODE", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD",
    "SPECIAL_EXIT",
]  # fmt: skip
AT_WORK = ["RUNNING", "SUSPENDED", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED"]
OVER = {
    "COMPLETED": End.NORMAL,
    "TIMEOUT": End.TIMEOUT,
    "DEADLINE": End.TIMEOUT,
    "CANCELLED": End.CANCELLED,
    "REVOKED": End.CANCELLED,
    "PREEMPTED": End.LOST,
    "NODE_FAIL": End.LOST,
    "BOOT_FAIL": End.LOST,
    "FAILED": End.FAILED,
    "OUT_OF_MEMORY": End.FAILED,
    "LAUNCH_FAILED": End.FAILED,
    "RECONFIG_FAIL": End.FAILED,
}


def test_every_documented_state_is_understood(commands: Commands) -> None:
    states = [*WAITING, *AT_WORK, *OVER]
    commands.says("squeue", "".join(row(str(n), state) for n, state in enumerate(states)))
    jobs = dict(zip(states, Slurm().look([str(n) for n in range(len(states))]).values(), strict=True))
    assert {state: jobs[state].state for state in states} == {
        **dict.fromkeys(WAITING, SchedulerState.PENDING),
        **dict.fromkeys(AT_WORK, SchedulerState.RUNNING),
        **dict.fromkeys(OVER, SchedulerState.ENDED),
    }
    assert {state: how_ended(jobs[state]) for state in OVER} == OVER


def test_one_forgotten_id_among_several_ends_alone(commands: Commands) -> None:
    commands.says("squeue", row("1", "RUNNING"))
    jobs = Slurm().look(["1", "2"])
    assert jobs["1"].state is SchedulerState.RUNNING
    assert jobs["2"] == Job(id="2", state=SchedulerState.ENDED, reason=FORGOTTEN)


def test_controller_has_the_last_word_on_a_job_that_squeue_leaves_out(commands: Commands) -> None:
    commands.says(
        "scontrol",
        "JobId=2 JobName=x\n   JobState=NODE_FAIL Reason=None Dependency=(null)\n"
        f"   Requeue=0 ExitCode=1:0\n   Comment={MARK} \n",
    )
    assert Slurm().look(["2"])["2"] == Job(
        id="2", state=SchedulerState.ENDED, reason="NODE_FAIL", exit_code=1, mark=MARK
    )


def test_accounts_tell_how_forgotten_jobs_ended(commands: Commands) -> None:
    commands.says("sacct", "2|CANCELLED by 1000|0:15\n3|RUNNING|0:0\n")
    jobs = Slurm().look(["2", "3"])
    assert jobs["2"] == Job(id="2", state=SchedulerState.ENDED, reason="CANCELLED by 1000", exit_code=143)
    assert jobs["3"].reason == FORGOTTEN  # the accounts are behind
    assert "--jobs=2,3" in commands.calls("sacct")[0]


def test_accounts_that_do_not_answer_keep_no_job_alive(commands: Commands) -> None:
    commands.says("sacct", after_s=5)
    assert Slurm(0.2).look(["2"])["2"].reason == FORGOTTEN


@pytest.mark.parametrize("name", ["squeue", "scontrol"])
def test_a_controller_that_does_not_answer_ends_no_job(commands: Commands, name: str) -> None:
    commands.says(name, err=UNREACHABLE, exit_code=1)
    with pytest.raises(SchedulerError, match="Unable to contact slurm controller"):
        Slurm().look(["2"])
    commands.says(name, after_s=5)
    before = time.monotonic()
    with pytest.raises(SchedulerError, match=f"{name} did not answer within"):
        Slurm(0.2).look(["2"])
    assert time.monotonic() - before < 3


def test_marked_gives_live_jobs_of_one_run(commands: Commands) -> None:
    commands.says(
        "squeue",
        row("1", "RUNNING", mark=MARK)
        + row("2", "PENDING", mark="hpcal:run2:label.0")
        + row("3", "CANCELLED", mark=MARK)
        + row("4", "PENDING", mark="hpcal:run:controller"),
    )
    assert [job.id for job in Slurm().marked("hpcal:run:")] == ["1", "4"]


def test_cancelling_what_has_ended_is_no_error(commands: Commands) -> None:
    commands.says(
        "scancel",
        err="scancel: error: Kill job error on job id 2: Invalid job id specified\n"
        "scancel: error: Kill job error on job id 3: Job/step already completing or completed\n",
        exit_code=1,
    )
    Slurm().cancel(["1", "2", "3"])
    assert commands.calls("scancel") == ["1 2 3"]
    commands.says(
        "scancel", err="scancel: error: Kill job error on job id 1: Access/permission denied", exit_code=1
    )
    with pytest.raises(SchedulerError, match="permission denied"):
        Slurm().cancel(["1"])


def test_nothing_is_asked_for_no_jobs(commands: Commands) -> None:
    assert Slurm().look([]) == {}
    Slurm().cancel([])
    assert commands.log.read_text() == ""


def test_no_slurm_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SchedulerError, match="there is no command squeue here"):
        Slurm().marked("hpcal:")
    with pytest.raises(SchedulerError, match="there is no command sbatch here"):
        Slurm().submit(Path("job.sh"), mark=MARK)


@pytest.mark.parametrize(
    ("reason", "exit_code", "end"),
    [
        ("TIMEOUT (TimeLimit)", 143, End.TIMEOUT),
        ("CANCELLED by 1000", 0, End.CANCELLED),
        ("NODE_FAIL", 1, End.LOST),
        ("OUT_OF_MEMORY (OutOfMemory)", 137, End.FAILED),
        ("COMPLETED", 0, End.NORMAL),
        ("", 2, End.FAILED),
        (FORGOTTEN, None, End.NORMAL),
    ],
)
def test_how_a_job_ended(reason: str, exit_code: int | None, end: End) -> None:
    job = Job(id="1", state=SchedulerState.ENDED, reason=reason, exit_code=exit_code)
    assert how_ended(job) is end

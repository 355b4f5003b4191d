"""What hpcal makes of the answers of a PBS, the strange ones included."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.pbs_standin import StandIn, running_pbs

from hpcal.sites import pbs_commands
from hpcal.sites.answers import FORGOTTEN, End, Refused, how_ended
from hpcal.sites.pbs_commands import PBS
from hpcal.sites.scheduler import Job, Scheduler, SchedulerError, SchedulerState

MARK = "hpcal:run-1:label.0"
SLEEPER = "#!/bin/bash\nsleep 600\n"


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with running_pbs(tmp_path / "pbs", monkeypatch) as pbs:
        monkeypatch.setattr(pbs_commands, "_LATE_PAUSE_S", 0.2)
        yield pbs


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch scripts and output files are in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)


def script(text: str = SLEEPER, *directives: str) -> Path:
    path = Path("job.sh").absolute()
    first, _, rest = text.partition("\n")
    path.write_text("\n".join([first, *(f"#PBS {line}" for line in directives), rest]))
    return path


def until(name: str) -> str:
    """A command that waits for a file to appear here."""
    return f"while [ ! -e {Path(name).absolute()} ]; do sleep 0.05; done"


def look(pbs: Scheduler, id_: str) -> Job:
    return pbs.look([id_])[id_]


def replies(monkeypatch: pytest.MonkeyPatch, *answers: tuple[int, str, str]) -> list[list[str]]:
    """Puts answers (code, stdout, stderr) in place of PBS; returns the list of commands to come."""
    asked: list[list[str]] = []
    left = list(answers)

    def command(words: tuple[str, ...], timeout_s: float) -> subprocess.CompletedProcess[str]:
        asked.append(list(words))
        code, stdout, stderr = left.pop(0) if len(left) > 1 else left[0]
        return subprocess.CompletedProcess(list(words), code, stdout, stderr)

    monkeypatch.setattr(pbs_commands, "command", command)
    return asked


def test_a_job_from_submission_to_its_end(standin: StandIn) -> None:
    standin.set(start_delay_s=600)
    pbs = PBS()
    text = f"#!/bin/bash\n{until('go')}; echo out; echo err >&2; exit 3\n"
    id_ = pbs.submit(script(text, "-N try"), mark=MARK)
    assert look(pbs, id_) == Job(id=id_, state=SchedulerState.PENDING, mark=MARK)
    standin.set(start_delay_s=0)
    assert look(pbs, id_) == Job(id=id_, state=SchedulerState.RUNNING, mark=MARK)
    Path("go").touch()
    standin.wait_for(id_, "F")
    job = look(pbs, id_)
    assert (job.state, job.exit_code, job.mark) == (SchedulerState.ENDED, 3, MARK)
    assert re.fullmatch(r"Job run at .* on \(node01:ncpus=1\) and failed", job.reason)
    assert how_ended(job) is End.FAILED
    assert (Path("try.o0").read_text(), Path("try.e0").read_text()) == ("out\n", "err\n")


@pytest.mark.pbs
def test_walltime_is_told_from_failure(standin: StandIn) -> None:
    pbs = PBS()
    id_ = pbs.submit(script(SLEEPER, "-l walltime=00:00:01"), mark=MARK)
    standin.wait_for(id_, "F")
    job = look(pbs, id_)
    assert job.exit_code == -29
    assert job.reason.startswith("TIMEOUT (walltime exceeded): Job run at ")
    assert how_ended(job) is End.TIMEOUT
    assert not standin.processes()


@pytest.mark.parametrize(
    ("status", "comment", "how"),
    [
        (-29, "", End.TIMEOUT),
        (-27, "", End.FAILED),
        (-20, "", End.LOST),
        (-12, "", End.FAILED),
        (265, "Job run at noon and failed", End.FAILED),
        (271, "Job run at noon and terminated by me@login", End.CANCELLED),
        (0, "Job run at noon and finished", End.NORMAL),
    ],
)
def test_how_a_job_ended(monkeypatch: pytest.MonkeyPatch, status: int, comment: str, how: End) -> None:
    text = f'{{"Jobs":{{"7.pbs":{{"job_state":"F","Exit_status":{status},"comment":"{comment}"}}}}}}'
    replies(monkeypatch, (0, text, ""))
    job = look(PBS(), "7.pbs")
    assert (job.exit_code, how_ended(job)) == (status, how)
    assert comment in job.reason


@pytest.mark.parametrize("says_so", [True, False])
def test_job_history_disabled(standin: StandIn, says_so: bool) -> None:
    """`qstat -x` answers 0 and no jobs, which must not end those that run."""
    standin.set(history=False, history_says_so=says_so)
    pbs = PBS()
    assert not pbs.history()
    ids = [pbs.submit(script(), mark=f"{MARK}.{i}") for i in range(2)]
    assert {job.state for job in pbs.look(ids).values()} == {SchedulerState.RUNNING}
    pbs.cancel(ids[:1])
    standin.wait_for(ids[0], "F")
    jobs = pbs.look(ids)
    assert jobs[ids[0]] == Job(id=ids[0], state=SchedulerState.ENDED, reason=FORGOTTEN)
    assert jobs[ids[1]].state is SchedulerState.RUNNING


def test_history_answers_where_it_is_kept(standin: StandIn) -> None:
    pbs = PBS()
    assert pbs.history()
    pbs.submit(script("#!/bin/bash\n"), mark=MARK)  # is job 0
    assert pbs.history()
    standin.go_down(5)
    with pytest.raises(SchedulerError, match="cannot connect"):
        pbs.history()


def test_one_finished_id_purged_from_history(standin: StandIn) -> None:
    """Exit code 153 with the other jobs in the reply."""
    pbs = PBS()
    ids = [pbs.submit(script("#!/bin/bash\n"), mark=MARK), pbs.submit(script(), mark=f"{MARK}.1")]
    standin.wait_for(ids[0], "F")
    standin.set(purged=["0"])
    words = ["qstat", "-x", "-f", "-F", "json", *ids]
    assert subprocess.run(words, capture_output=True, check=False).returncode == 153
    jobs = pbs.look(ids)
    assert (jobs[ids[0]].state, jobs[ids[0]].reason) == (SchedulerState.ENDED, FORGOTTEN)
    assert jobs[ids[1]].state is SchedulerState.RUNNING


def test_only_the_first_of_several_jobs_is_printed(standin: StandIn) -> None:
    """Openpbs issue 2672."""
    standin.set(first_only=True)
    pbs = PBS()
    ids = [pbs.submit(script(), mark=f"{MARK}.{i}") for i in range(3)]
    jobs = pbs.look(ids)
    assert [jobs[id_].state for id_ in ids] == [SchedulerState.RUNNING] * 3
    assert [jobs[id_].mark for id_ in ids] == [f"{MARK}.{i}" for i in range(3)]
    assert len(pbs.marked(MARK)) == 3


def test_more_cpus_than_a_node_has_waits_for_ever_and_says_why(standin: StandIn) -> None:
    pbs = PBS()
    id_ = pbs.submit(script(SLEEPER, "-l select=1:ncpus=64"), mark=MARK)
    job = look(pbs, id_)
    assert job.state is SchedulerState.PENDING
    assert job.reason == "Can Never Run: Insufficient amount of resource: ncpus (R: 64 A: 4 T: 4)"


def test_unknown_queue_is_refused(standin: StandIn) -> None:
    with pytest.raises(Refused, match="qsub: Unknown queue"):
        PBS().submit(script(SLEEPER, "-q nowhere"), mark=MARK)
    with pytest.raises(Refused, match='Resource invalid in "select" specification: gpus'):
        PBS().submit(script(SLEEPER, "-l select=1:ncpus=1:gpus=1"), mark=MARK)
    assert not standin.jobs()


def test_too_many_jobs_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    replies(monkeypatch, (38, "", "qsub: would exceed queue workq's per-user limit of jobs in 'Q' state\n"))
    with pytest.raises(SchedulerError, match="per-user limit") as caught:
        PBS().submit(script(), mark=MARK)
    assert not isinstance(caught.value, Refused)


def test_server_down_ends_no_job(standin: StandIn) -> None:
    pbs = PBS()
    id_ = pbs.submit(script(), mark=MARK)
    standin.go_down(60)
    for question in (lambda: pbs.look([id_]), lambda: pbs.marked("hpcal:"), lambda: pbs.cancel([id_])):
        with pytest.raises(SchedulerError, match="cannot connect to server"):
            question()
    standin.set(down_until=0)
    assert look(pbs, id_).state is SchedulerState.RUNNING


@pytest.mark.pbs
def test_commands_that_hang_or_are_not_there(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    standin.set(qstat_takes_s=5)
    with pytest.raises(SchedulerError, match=r"qstat did not answer within 0\.3 s"):
        PBS(0.3).look(["1.pbs"])
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SchedulerError, match="there is no command qstat here"):
        PBS().look(["1.pbs"])
    with pytest.raises(SchedulerError, match="there is no command qsub here"):
        PBS().submit(script(), mark=MARK)


@pytest.mark.pbs
@pytest.mark.parametrize("late", ["qsub_answers_after_s", "qsub_queues_after_s"])
def test_a_submission_that_timed_out_is_found_by_its_mark(standin: StandIn, late: str) -> None:
    standin.set(**{late: 2.2})
    id_ = PBS(1.8).submit(script(), mark=MARK)
    assert [job["id"] for job in standin.jobs().values()] == [id_]


@pytest.mark.pbs
def test_a_submission_that_never_arrived(standin: StandIn) -> None:
    standin.go_down(600)
    with pytest.raises(SchedulerError, match="qsub"):
        PBS().submit(script(), mark=MARK)
    standin.set(down_until=0, qsub_queues_after_s=30)
    with pytest.raises(SchedulerError, match="qsub did not answer"):
        PBS(0.3).submit(script(), mark=MARK)


def test_a_mark_that_pbs_would_take_apart(standin: StandIn) -> None:
    with pytest.raises(SchedulerError, match="only letters"):
        PBS().submit(script(), mark="hpcal:a,b")
    assert not standin.jobs()


def test_marked_tells_jobs_of_other_runs_apart(standin: StandIn) -> None:
    pbs = PBS()
    ended = pbs.submit(script("#!/bin/bash\n"), mark="hpcal:a:label.0")
    standin.wait_for(ended, "F")
    ids = [pbs.submit(script(), mark=mark) for mark in ("hpcal:a:label.1", "hpcal:ab:label.1", "other")]
    assert [job.id for job in pbs.marked("hpcal:a:")] == ids[:1]
    assert [job.id for job in pbs.marked("hpcal:")] == ids[:2]
    assert pbs.marked("hpcal:b:") == []


def test_cancel_of_running_waiting_and_ended_jobs(standin: StandIn) -> None:
    pbs = PBS()
    ended = pbs.submit(script("#!/bin/bash\n"), mark="a")
    standin.wait_for(ended, "F")
    running = pbs.submit(script(), mark="b")
    waiting = pbs.submit(script(), mark="c", after=running)
    assert look(pbs, waiting).state is SchedulerState.PENDING
    pbs.cancel([ended, waiting, running, "99.pbs"])
    standin.wait_for(running, "F")
    jobs = pbs.look([ended, waiting, running])
    assert [how_ended(job) for job in jobs.values()] == [End.NORMAL, End.CANCELLED, End.CANCELLED]
    assert jobs[running].reason.startswith("CANCELLED (by qdel): Job run at")
    pbs.cancel([ended, waiting, running])
    assert not standin.processes()


def test_a_stuck_job_is_taken_off_the_books_only_when_cancelled_again(
    standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    standin.set(unending=["0"])
    pbs = PBS()
    id_ = pbs.submit(script(), mark=MARK)
    standin.wait_for(id_, "R")
    pbs.cancel([id_])
    pbs.cancel([id_])
    assert look(pbs, id_).state is SchedulerState.RUNNING  # still exiting
    monkeypatch.setattr(pbs_commands, "_STUCK_S", 0.0)
    pbs.cancel([id_])
    assert look(pbs, id_).state is SchedulerState.ENDED


@pytest.mark.pbs
def test_a_job_after_another(standin: StandIn) -> None:
    pbs = PBS()
    first = pbs.submit(script(f"#!/bin/bash\n{until('go')}; exit 1\n"), mark="a")
    second = pbs.submit(script("#!/bin/bash\n"), mark="b", after=first)
    assert look(pbs, second).state is SchedulerState.PENDING
    Path("go").touch()
    standin.wait_for(second, "F")
    jobs = standin.jobs()
    assert jobs["1"]["stime"] >= jobs["0"]["etime"]


@pytest.mark.parametrize("history", [True, False])
def test_a_job_after_one_that_has_ended(standin: StandIn, history: bool) -> None:
    """PBS refuses it, or holds it for ever."""
    standin.set(history=history)
    pbs = PBS()
    first = pbs.submit(script("#!/bin/bash\n"), mark="a")
    standin.wait_for(first, "F")
    second = pbs.submit(script("#!/bin/bash\n"), mark="b", after=first)
    standin.wait_for(second, "F")
    assert standin.jobs()["1"]["after"] == []


def test_variables_that_make_the_reply_no_json(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    standin.set(raw_json=True)
    monkeypatch.setenv("PBS_O_MAIL", "/x")
    monkeypatch.setenv("MAIL", "/var/mail/O'Neill,it's")
    monkeypatch.setenv("LANG", "005")
    pbs = PBS()
    ids = [pbs.submit(script("#!/bin/bash\nexit 4\n"), mark="a"), pbs.submit(script(), mark="b")]
    standin.wait_for(ids[0], "F")
    text = subprocess.run(["qstat", "-xf", "-F", "json", *ids], capture_output=True, text=True, check=True)
    assert "O\\'Neill\\,it\\'s" in text.stdout
    assert '"PBS_O_LANG":005' in text.stdout
    jobs = pbs.look(ids)
    assert (jobs[ids[0]].state, jobs[ids[0]].exit_code, jobs[ids[0]].mark) == (SchedulerState.ENDED, 4, "a")
    assert jobs[ids[0]].reason.endswith("on (node01:ncpus=1) and failed")
    assert (jobs[ids[1]].state, jobs[ids[1]].mark) == (SchedulerState.RUNNING, "b")


def test_a_shell_function_without_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        '{\n "Jobs":{\n  "7.pbs":{\n   "job_state":"R",\n   "Variable_List":{\n'
        '    "BASH_FUNC_module%%":() {  eval `x "job_state\\":\\"F\\""`\n},\n'
        '    "HPCAL_MARK":"m"\n   }\n  }\n }\n}'
    )
    replies(monkeypatch, (0, text, ""))
    assert look(PBS(), "7.pbs") == Job(id="7.pbs", state=SchedulerState.RUNNING, mark="m")


def test_a_reply_that_is_cut_short_ends_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = '{"Jobs":{"7.pbs":{"job_state":"R"},"8.pbs":{"Job_Name":"x"'
    asked = replies(monkeypatch, (0, cut, ""))
    assert set(PBS().look(["7.pbs", "8.pbs"])) == {"7.pbs"}
    assert asked[1][-1] == "8.pbs"
    replies(monkeypatch, (1, "", "qstat: Budget exceeded"))
    with pytest.raises(SchedulerError, match="exit code 1 and said: qstat: Budget exceeded"):
        PBS().look(["7.pbs"])


def test_ids_whose_server_is_spelled_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    replies(monkeypatch, (153, '{"Jobs":{"7.pbs":{"job_state":"R"}}}', "qstat: Unknown Job Id 8.pbs\n"))
    jobs = PBS().look(["7.pbs.cluster.org", "8.pbs.cluster.org"])
    assert [job.state for job in jobs.values()] == [SchedulerState.RUNNING, SchedulerState.ENDED]
    assert list(jobs) == ["7.pbs.cluster.org", "8.pbs.cluster.org"]


def test_a_site_that_greets_at_submission(monkeypatch: pytest.MonkeyPatch) -> None:
    replies(monkeypatch, (0, "Welcome, 3 nodes are free\n12.pbs\n\n", ""))
    assert PBS().submit(script(), mark=MARK) == "12.pbs"


def test_a_submission_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    job = f'{{"Jobs":{{"12.pbs":{{"job_state":"Q","Variable_List":"PBS_O_HOME=/x,HPCAL_MARK={MARK}"}}}}}}'
    replies(monkeypatch, (0, "", ""), (0, "12.pbs\n", ""), (0, job, ""))
    assert PBS().submit(script(), mark=MARK) == "12.pbs"


def test_a_deletion_that_fails_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    replies(monkeypatch, (1, "", ""))
    with pytest.raises(SchedulerError, match=r"qdel 12.pbs failed with exit code 1 and said: nothing"):
        PBS().cancel(["12.pbs"])


def test_nothing_is_asked_about_no_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = replies(monkeypatch, (0, "", ""))
    assert PBS().look([]) == {}
    PBS().cancel([])
    assert asked == []
    assert PBS().marked("hpcal:") == []
    assert asked[0][0] == "qselect"


def test_the_second_directive_is_not_heeded(standin: StandIn) -> None:
    PBS().submit(script(SLEEPER, "-l walltime=00:10:00", "-l walltime=00:20:00", "-q short"), mark=MARK)
    assert standin.jobs()["0"]["resources"]["walltime"] == "00:10:00"


def test_nothing_of_the_environment_is_exported(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_LOGIN_NODE", "x")
    id_ = PBS().submit(script("#!/bin/bash\nenv\npwd\n", "-o out", "-l select=1:ncpus=2:ngpus=1"), mark=MARK)
    standin.wait_for(id_, "F")
    said = Path("out").read_text().splitlines()
    assert "SECRET_OF_THE_LOGIN_NODE=x" not in said
    assert {f"PBS_JOBID={id_}", f"HPCAL_MARK={MARK}", "NCPUS=2", "CUDA_VISIBLE_DEVICES=0"} <= set(said)
    assert f"PBS_O_WORKDIR={Path.cwd()}" in said
    assert said[-1] == str(Path.home())

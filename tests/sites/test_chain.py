"""Controllers as a chain of batch jobs: scripts, submission, and when it is hopeless."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.fake_slurm import FakeSlurm

from hpcal.core.errors import ConfigurationError
from hpcal.sites.chain import Chain, chain_status
from hpcal.sites.chain_records import Began, Ended, Link, hopeless
from hpcal.sites.controller_script import controller_of, controller_script
from hpcal.sites.scheduler import SchedulerError
from hpcal.sites.schema import Site

RUN = "0123456789ab"
POOLS = {"label": {"kind": "local"}, "sample": {"kind": "local"}, "train": {"kind": "local"}}


def site(kind: str = "slurm", **controller: Any) -> Site:
    given = {"walltime": "01:00:00"} | controller
    return Site.model_validate({"kind": kind, "pools": POOLS, "controller": given})


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm(tmp_path / "slurm", monkeypatch)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_script_for_slurm_asks_for_what_the_site_says(root: Path) -> None:
    asked = site(
        partition="short", account="mine", qos="low", constraint="cpu", cores=2, mem=4, exclusive=True,
        scheduler_options="#SBATCH --reservation=x", modules=["python"], worker_init="echo ready",
        environment={"A": "b c"}, python="/opt/python",
    )  # fmt: skip
    text = controller_script(asked, root, 7)
    directives = {line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")}
    assert directives == {
        "job-name=hpcal.controller", f"output={root}/controller/7.out", "open-mode=append", "nodes=1",
        "ntasks=1", "cpus-per-task=2", "mem=4G", "time=01:00:00", "partition=short", "account=mine",
        "qos=low", "constraint=cpu", "exclusive", "no-requeue", "reservation=x",
    }  # fmt: skip
    lines = text.splitlines()
    order = ["export A='b c'", "module load python", "echo ready"]
    assert [line for line in lines if line in order] == order
    assert lines[-1] == f"exec /opt/python -P -m hpcal.cli.controller_job {root} 7"


def test_script_for_pbs_asks_for_what_the_site_says(root: Path) -> None:
    asked = site("pbs", queue="short", account="mine", mem=4, select_options="system=x", filesystems="home")
    text = controller_script(asked, root, 7)
    directives = {line.removeprefix("#PBS ") for line in text.splitlines() if line.startswith("#PBS")}
    assert directives == {
        "-N hpcal.control", "-S /bin/bash", "-m n", "-r n", "-j oe", "-k doe", f"-o {root}/controller/7.out",
        "-l walltime=01:00:00", "-l select=1:ncpus=1:mem=4gb:system=x", "-l filesystems=home", "-q short",
        "-A mine",
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "end"), [("slurm", "1700"), ("pbs", None)])
def test_script_tells_the_controller_when_its_job_ends(root: Path, kind: str, end: str | None) -> None:
    text = controller_script(site(kind, python="/bin/echo"), root, 1)
    script = text.replace("exec /bin/echo", "echo $(( HPCAL_BLOCK_END - $(date +%s) )) $HPCAL_BLOCK_END #")
    environment = {} if end is None else {"SLURM_JOB_END_TIME": end}
    said = subprocess.run(["bash"], input=script, capture_output=True, text=True, env=environment, check=True)
    left, at = said.stdout.split()
    assert at == end if end else 3595 <= int(left) <= 3600


@pytest.mark.parametrize(
    ("kind", "keys", "fault"),
    [
        ("slurm", {"walltime": None}, "walltime is missing"),
        ("slurm", {"walltime": "00:02:00"}, r"walltime_margin \(120 s\) leaves no time"),
        ("slurm", {"queue": "q"}, "queue is PBS's word"),
        ("pbs", {"partition": "p"}, "Slurm's words"),
        ("pbs", {"chain": "scrontab"}, "scrontab is Slurm's"),
        ("slurm", {"filesystems": "home"}, "PBS's words"),
        ("slurm", {"scheduler_options": "--reservation=x"}, "no `#SBATCH` line"),
        ("pbs", {"scheduler_options": "#PBS -l select=1:mem=9gb"}, "would not heed"),
        ("local", {}, "its kind is local.*`hpcal run`"),
    ],
)
def test_what_cannot_be_is_one_sentence(kind: str, keys: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigurationError, match=fault):
        controller_of(site(kind, **keys))


def test_a_site_without_the_block_says_what_to_add() -> None:
    with pytest.raises(ConfigurationError, match=r"no block `controller`.*`hpcal run`"):
        controller_of(Site.model_validate({"kind": "local", "pools": POOLS}))


def test_jobs_follow_each_other_until_the_end(
    root: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = Chain.prepare(root, site(), RUN)
    first = chain.begin(site())
    slurm.run(first)
    monkeypatch.setenv("SLURM_JOB_ID", first)
    second = chain.submit_successor(1)
    assert second is not None
    assert slurm.commands.calls("sbatch")[1].split()[-2:] == [
        f"--dependency=afterany:{first}",
        str(chain.folder / "2.sh"),
    ]
    assert slurm.marks() == {first: f"hpcal:{RUN}:controller.1", second: f"hpcal:{RUN}:controller.2"}
    assert chain.submit_successor(1) is None  # a job that was started twice has one successor
    assert "/2.out" in (chain.folder / "2.sh").read_text()
    foreign = slurm.add(f"hpcal:{RUN}:label.0.aa", "PENDING")
    chain.end("done")
    assert list(slurm.marks()) == [first, foreign]
    assert chain.end_reason == "done"


def test_a_new_chain_goes_on_counting_and_forgets_the_old_end(root: Path, slurm: FakeSlurm) -> None:
    old = Chain.prepare(root, site(), RUN)
    slurm.end(old.begin(site()))
    old.ask_stop()
    old.end("over")
    new = Chain.prepare(root, site(), RUN)
    assert (new.plan.first, new.stop_asked, new.end_reason, new.links()) == (2, False, None, [])
    new.begin(site())
    assert list(slurm.marks().values()) == [f"hpcal:{RUN}:controller.2"]


def test_status_follows_the_scheduler(root: Path, slurm: FakeSlurm) -> None:
    assert chain_status(root) is None
    chain = Chain.prepare(root, site(), RUN)
    first = chain.begin(site())
    found = chain_status(root)
    assert found is not None
    assert (found.job, found.state, found.next, found.goes_on) == (first, "pending", None, True)
    slurm.run(first)
    second = chain.submit(2, after=first)
    found = chain_status(root)
    assert found is not None
    assert found.sentence == f"controller job {first}: running; the next one, {second}, waits for its end"
    slurm.is_silent()
    found = chain_status(root)
    assert found is not None
    assert (found.state, found.goes_on) == ("unknown", False)
    assert "Socket timed out" in found.reason
    slurm.is_silent(False)
    slurm.end(first)
    slurm.end(second)
    found = chain_status(root)
    assert found is not None
    assert "submit the campaign again" in found.sentence


def test_an_end_that_cannot_be_recorded_still_cancels(
    root: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = Chain.prepare(root, site(), RUN)
    slurm.run(chain.begin(site()))
    (chain.folder / "ended.part").mkdir()
    with pytest.raises(OSError, match="ended"):
        chain.end("over")
    assert slurm.marks() == {}


def test_only_later_jobs_that_wait_are_cancelled_beside_another_controller(
    root: Path, slurm: FakeSlurm
) -> None:
    chain = Chain.prepare(root, site(), RUN)
    earlier, own, live, waits = (chain.submit(number) for number in (1, 2, 3, 4))
    slurm.run(live)
    chain.end("held", after=2)
    assert list(slurm.marks()) == [earlier, own, live]
    assert waits not in slurm.marks()


def test_a_job_is_submitted_though_its_id_cannot_be_kept(root: Path, slurm: FakeSlurm) -> None:
    chain = Chain.prepare(root, site(), RUN)
    (chain.folder / "1.submitted.part").mkdir()
    assert chain.begin(site()) in slurm.marks()


def test_an_image_for_all_pools_is_not_for_the_controller(root: Path) -> None:
    image = {"image": "/x.sif"}
    common = Site.model_validate(
        {"kind": "slurm", "container": image, "pools": POOLS, "controller": {"walltime": "01:00:00"}}
    )
    assert common.pools["label"].container is not None
    assert "apptainer" not in controller_script(common, root, 1)
    with pytest.raises(ConfigurationError, match="container is given, but the controller calls"):
        controller_of(site(container=image))


def test_a_record_that_cannot_be_read_says_what_to_do(root: Path) -> None:
    (root / "controller").mkdir()
    (root / "controller" / "chain.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"cancel the jobs .*`hpcal submit` writes it anew"):
        Chain.of(root)


# ── When a chain is hopeless ─────────────────────────────────────────────────────────────────

DIED, HANDED_OVER = None, Ended(exit_code=0, in_order=True, reason="the next one goes on")
FAILED = Ended(exit_code=1, in_order=False, reason="no space left")


def links(*each: tuple[int | None, Ended | None]) -> list[Link]:
    return [
        Link(
            number=number,
            job_id=str(100 + number),
            began=Began(job_id=str(100 + number), host="n1", progress=progress),
            ended=ended,
        )
        for number, (progress, ended) in enumerate(each)
    ]


def test_three_jobs_that_led_nowhere_end_the_chain() -> None:
    assert hopeless(links((5, FAILED), (5, DIED)), 5) is None
    why = hopeless(links((4, HANDED_OVER), (5, DIED), (5, DIED), (5, FAILED)), 5)
    assert why is not None
    assert "101, 102, 103" in why
    assert "no space left" in why


def test_progress_of_any_of_them_counts() -> None:
    assert hopeless(links((5, FAILED), (5, FAILED), (5, FAILED)), 6) is None
    assert hopeless(links((5, FAILED), (6, FAILED), (6, FAILED)), 6) is None


def test_jobs_that_waited_for_workers_to_their_end_are_given_more_time() -> None:
    assert hopeless(links(*[(5, HANDED_OVER)] * 9), 5) is None
    why = hopeless(links(*[(5, HANDED_OVER)] * 10), 5)
    assert why is not None
    assert "without any task done" in why


def test_a_job_that_never_began_is_one_that_led_nowhere() -> None:
    silent = [Link(number=n, job_id=str(n), began=None, ended=None) for n in range(3)]
    assert hopeless(silent, 5) is not None
    assert hopeless(silent, None) is not None


def test_a_store_that_stays_unreadable_is_no_progress() -> None:
    unread = links((5, HANDED_OVER), (None, FAILED), (None, FAILED), (None, FAILED))
    why = hopeless(unread, None)
    assert why is not None
    assert "101, 102, 103" in why
    assert hopeless(unread[:3], None) is None
    assert hopeless(links((3, FAILED), (4, FAILED), (None, FAILED), (None, DIED)), None) is not None
    assert hopeless(links((3, FAILED), (3, FAILED), (4, HANDED_OVER), (None, DIED)), None) is None


# ── scrontab ─────────────────────────────────────────────────────────────────────────────────

SCRONTAB = """\
case $1 in
  -l) [ -e {file} ] || {{ echo 'no crontab for me' >&2; exit 1; }}; cat {file};;
  *) cp "$1" {file};;
esac"""


def test_the_entry_of_scrontab_comes_and_goes(root: Path, slurm: FakeSlurm, tmp_path: Path) -> None:
    table = tmp_path / "table"
    slurm.commands.write("scrontab", *SCRONTAB.format(file=table).splitlines())
    cron = site(chain="scrontab", partition="cron")
    chain = Chain.prepare(root, cron, RUN)
    chain.begin(cron)
    lines = table.read_text().splitlines()
    assert lines[0] == f"# hpcal {RUN} begins"
    assert "#SCRON --partition=cron" in lines
    assert f"#SCRON --comment=hpcal:{RUN}:controller.cron" in lines
    assert lines[-2] == f"*/5 * * * * bash {root}/controller/cron.sh"
    assert (root / "controller" / "cron.sh").read_text().rstrip().endswith("cron")
    table.write_text(f"# my own\n{table.read_text()}0 * * * * mine\n")
    chain.begin(cron)  # submitted again: one entry
    assert table.read_text().count("begins") == 1
    chain.end("over")
    assert table.read_text() == "# my own\n0 * * * * mine\n"


def test_a_scrontab_that_is_refused_gives_the_lines_to_put_in_by_hand(root: Path, slurm: FakeSlurm) -> None:
    slurm.commands.says("scrontab", err="scrontab is disabled on this cluster", exit_code=1)
    cron = site(chain="scrontab")
    with pytest.raises(SchedulerError, match=r"(?s)disabled.*scrontab -e.*#SCRON --time=01:00:00.*cron.sh"):
        Chain.prepare(root, cron, RUN).begin(cron)

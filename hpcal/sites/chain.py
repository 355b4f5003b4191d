"""The controller of a campaign as a chain of batch jobs: their jobs and their records.

``DIR/controller`` holds the chain. Each file is written by one process only, whole or not at all:

| file | holds | written by |
| --- | --- | --- |
| ``chain.json`` | what was submitted (:class:`Plan`) | ``hpcal submit`` |
| ``job.sh`` | the script of all jobs, ``@NUMBER@`` in place of the job's place | ``hpcal submit`` |
| ``N.sh``, ``N.out`` | script and output of job N | who submitted it; the scheduler |
| ``N.submitted`` | its id | who submitted it |
| ``N.began``, ``N.ended`` | :class:`Began`, :class:`Ended` | job N |
| ``stop`` | nothing; its appearance asks for the end of the chain | ``hpcal stop`` |
| ``ended`` | why the chain has ended | who ended it |
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from hpcal.core.errors import ConfigurationError
from hpcal.sites import scrontab
from hpcal.sites.chain_records import Began, Ended, Link, Plan, next_number, read_record, write_whole
from hpcal.sites.controller_script import FOLDER, NUMBER, controller_of, controller_script, slurm_options
from hpcal.sites.scheduler import MARK, Job, Scheduler, SchedulerError, SchedulerState
from hpcal.sites.schema import Site
from hpcal.sites.strays import CONTROLLER, CRON, controller_number, own_job_id, same_job, scheduler_of


class Chain:
    """The chain of a campaign's controller jobs, as far as its folder and the scheduler tell.

    Args:
        root: folder of the campaign.
    """

    def __init__(self, root: Path, plan: Plan) -> None:
        self.root, self.plan = root.resolve(), plan
        self.folder = self.root / FOLDER
        scheduler = scheduler_of(plan.kind, plan.timeout_s)
        if scheduler is None:
            raise ConfigurationError(f"{self.folder / 'chain.json'} names no batch system: {plan.kind!r}")
        self.scheduler: Scheduler = scheduler

    @classmethod
    def of(cls, root: Path) -> Chain | None:
        """The chain of a campaign that was submitted, or None.

        Raises:
            ConfigurationError: its record cannot be read.
        """
        path = root / FOLDER / "chain.json"
        if not path.is_file():
            return None
        try:
            plan = Plan(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigurationError(
                f"{path} does not say what was submitted: {error}; cancel the jobs hpcal.controller of the "
                "campaign in the scheduler if there are any, then `hpcal submit` writes it anew"
            ) from error
        return cls(root, plan)

    @classmethod
    def planned(cls, root: Path, site: Site, run_id: str) -> Chain:
        """A chain of which nothing is written yet, to look for jobs that are there already.

        Raises:
            ConfigurationError: the site cannot run controllers as jobs.
        """
        job, kind = controller_of(site)
        folder = root.resolve() / FOLDER
        plan = Plan(
            run_id=run_id,
            kind=kind,
            chain=job.chain,
            timeout_s=job.cmd_timeout,
            margin_s=job.walltime_margin,
            first=next_number(folder),
        )
        return cls(root, plan)

    @classmethod
    def prepare(cls, root: Path, site: Site, run_id: str) -> Chain:
        """A new chain, in place of one that has ended; nothing is submitted yet.

        Raises:
            ConfigurationError: the site cannot run controllers as jobs.
            OSError: it cannot be written.
        """
        chain = cls.planned(root, site, run_id)
        chain.folder.mkdir(exist_ok=True)
        write_whole(chain.folder / "job.sh", controller_script(site, root))
        write_whole(chain.folder / "chain.json", json.dumps(asdict(chain.plan), indent=1))
        for name in ("stop", "ended"):
            (chain.folder / name).unlink(missing_ok=True)
        return chain

    def begin(self, site: Site) -> str:
        """Hands in the first job, or the entry of scrontab; returns what it is known as.

        Raises:
            SchedulerError: it was not taken.
            OSError: its script cannot be written.
        """
        if self.plan.chain == "batch":
            return self.submit(self.plan.first)
        job, _ = controller_of(site)
        options = slurm_options(job, self.folder / f"{CRON}.out")
        mark = f"{self.prefix}{CRON}"
        script = self._script(CRON)
        scrontab.install(
            self.plan.run_id, [*options, f"comment={mark}"], f"bash {script}", self.plan.timeout_s
        )
        return "an entry of scrontab"

    @property
    def prefix(self) -> str:
        """Begins the marks of its jobs."""
        return f"{MARK}{self.plan.run_id}:{CONTROLLER}."

    @property
    def own_id(self) -> str | None:
        """Id of the batch job in which this process runs."""
        return own_job_id(self.plan.kind)

    @property
    def stop_asked(self) -> bool:
        """Whether ``hpcal stop`` has asked for its end."""
        return (self.folder / "stop").exists()

    @property
    def end_reason(self) -> str | None:
        """Why it has ended, or None if it goes on."""
        try:
            return (self.folder / "ended").read_text(encoding="utf-8").strip()
        except OSError:
            return None

    def submit(self, number: int, *, after: str | None = None) -> str:
        """Hands in the job of a number; returns its id. Raises SchedulerError, or OSError for its script."""
        job_id = self.scheduler.submit(self._script(number), mark=f"{self.prefix}{number}", after=after)
        with suppress(OSError):  # the job is in; its id is only told
            write_whole(self.folder / f"{number}.submitted", json.dumps({"job_id": job_id}))
        return job_id

    def submit_successor(self, number: int) -> str | None:
        """Hands in the job after ``number``, which is this one; None if one is there already.

        Raises:
            SchedulerError: it was not taken.
            OSError: its script cannot be written.
        """
        if any((controller_number(job) or 0) > number for job in self.jobs()):
            return None
        return self.submit(number + 1, after=self.own_id)

    def jobs(self) -> list[Job]:
        """Its jobs that have not ended, in order. Raises SchedulerError."""
        found = self.scheduler.marked(self.prefix)
        jobs = [job for job in found if controller_number(job) is not None or job.mark.endswith(f".{CRON}")]
        return sorted(jobs, key=lambda job: controller_number(job) or 0)

    def ask_stop(self) -> None:
        """Asks for its end; a controller that runs sees it and stops in good order."""
        (self.folder / "stop").touch()

    def cancel_waiting(self) -> list[str]:
        """Cancels its jobs that wait; returns their ids. Raises SchedulerError."""
        waiting = [job.id for job in self._numbered() if job.state is SchedulerState.PENDING]
        self.scheduler.cancel(waiting)
        return waiting

    def end(self, reason: str, *, after: int | None = None) -> None:
        """Ends it: no job of it will run a controller again.

        Args:
            after: cancel only jobs that wait and come after that number; None cancels all others.

        Raises:
            SchedulerError: its jobs could not be cancelled; they will do nothing and end.
            OSError: the end could not be recorded; its jobs are cancelled.
        """
        try:
            write_whole(self.folder / "ended", f"{reason}\n")
        finally:
            self._cancel(after)

    def _cancel(self, after: int | None) -> None:
        if self.plan.chain == "scrontab":
            scrontab.remove(self.plan.run_id, self.plan.timeout_s)
        others = [job for job in self._numbered() if not same_job(job.id, self.own_id)]
        if after is not None:
            waiting = [job for job in others if job.state is SchedulerState.PENDING]
            others = [job for job in waiting if (controller_number(job) or 0) > after]
        self.scheduler.cancel([job.id for job in others])

    def began(self, number: int, began: Began) -> None:
        """Records that a job has begun. Raises OSError."""
        write_whole(self.folder / f"{number}.began", json.dumps(asdict(began)))

    def ended(self, number: int, ended: Ended) -> None:
        """Records how a job has ended. Raises OSError."""
        write_whole(self.folder / f"{number}.ended", json.dumps(asdict(ended)))

    def links(self) -> list[Link]:
        """What is known of its jobs so far, in order."""
        numbers = range(self.plan.first, next_number(self.folder))
        return [self._link(number) for number in numbers]

    def following(self) -> int:
        """The number of the next run of a scrontab's entry."""
        return next_number(self.folder)

    def _numbered(self) -> list[Job]:
        return [job for job in self.jobs() if controller_number(job) is not None]

    def _link(self, number: int) -> Link:
        parts = {
            name: read_record(self.folder / f"{number}.{name}") for name in ("submitted", "began", "ended")
        }
        submitted, began, ended = parts["submitted"], parts["began"], parts["ended"]
        return Link(
            number=number,
            job_id=None if submitted is None else str(submitted.get("job_id")),
            began=None if began is None else Began(**began),
            ended=None if ended is None else Ended(**ended),
        )

    def _script(self, number: int | str) -> Path:
        path = self.folder / f"{number}.sh"
        text = (self.folder / "job.sh").read_text(encoding="utf-8")
        write_whole(path, text.replace(NUMBER, str(number)))
        return path


@dataclass(frozen=True, kw_only=True)
class ChainStatus:
    """Where the controller jobs of a submitted campaign stand.

    Attributes:
        job: id of the job that runs, or else that waits; None if there is none.
        state: of that job, in the scheduler's words ``pending`` or ``running``; ``unknown`` where
            the scheduler does not answer; ``ended`` where there is none.
        next: id of the job after it, or None.
        reason: why the job waits, why the scheduler does not answer, or why the chain has ended.
    """

    job: str | None
    state: str
    next: str | None
    reason: str

    @property
    def goes_on(self) -> bool:
        """Whether a job runs the campaign or will."""
        return self.job is not None

    @property
    def sentence(self) -> str:
        """For a person."""
        why = f" ({self.reason})" if self.reason else ""
        if self.job is None:
            return f"controller jobs: {self.state}{why}"
        after = f"; the next one, {self.next}, waits for its end" if self.next else ""
        return f"controller job {self.job}: {self.state}{why}{after}"


def chain_status(root: Path) -> ChainStatus | None:
    """Where the chain of a campaign stands; None if it was not submitted."""
    chain = Chain.of(root)
    if chain is None:
        return None
    ended = chain.end_reason
    if ended is not None:
        return ChainStatus(job=None, state="ended", next=None, reason=ended)
    try:
        jobs = chain.jobs()
    except SchedulerError as error:
        return ChainStatus(job=None, state="unknown", next=None, reason=str(error))
    if not jobs:
        reason = "none is in the scheduler; submit the campaign again"
        return ChainStatus(job=None, state="ended", next=None, reason=reason)
    first, *others = jobs
    return ChainStatus(
        job=first.id,
        state=str(first.state),
        next=others[0].id if others else None,
        reason=first.reason if first.state is SchedulerState.PENDING else "",
    )

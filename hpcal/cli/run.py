"""``hpcal run`` and ``hpcal resume``: a campaign from its file, or from its folder, to its end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import click

from hpcal.cli.folders import begun, reading, refuse_foreign
from hpcal.cli.progress import observer
from hpcal.cli.publish import Publisher
from hpcal.cli.result import print_result
from hpcal.core.errors import CampaignFailed, HpcalError, InputError
from hpcal.engine.campaign import CampaignSpec, read_campaign
from hpcal.engine.context import Context
from hpcal.engine.dispatch import BlockEnd, BlocksWait, Dispatcher, InlineDispatcher
from hpcal.engine.loop import Controller, beating
from hpcal.engine.pairing import check_parts
from hpcal.engine.start import begin, difference, recorded_spec, recorded_state, refuse_changes, take_up
from hpcal.engine.tasks import run_attempt
from hpcal.sites.schema import Site, load_site, site_file, values_of_environment
from hpcal.store import campaigns
from hpcal.store.database import add_event
from hpcal.store.history import BLOCKS_WAIT
from hpcal.store.location import Location, checked_url
from hpcal.store.transitions import CampaignState

DEFAULT_SITE = "local"


def run(
    file: Path,
    *,
    site: str | None,
    folder: Path | None,
    accept_changes: bool,
    inline: bool,
    store_url: str | None = None,
    values: Mapping[str, str] | None = None,
) -> None:
    """Starts the campaign of a file, or resumes it where the folder holds it.

    Args:
        store_url: PostgreSQL URL for the store of a new campaign.
        values: stand for ``${NAME}`` in the site file, as by ``--set``.

    Raises:
        InputError: the file, its data or the folder cannot be used.
        CampaignHeld: another controller holds the campaign.
        CampaignFailed, Interrupted: how it ended.
    """
    spec = read_campaign(file)
    root = folder if folder is not None else Path(spec.name)
    if begun(root):
        _refuse_other_store(root, store_url)
        _resume(root, spec=spec, site=site, accept_changes=accept_changes, inline=inline, values=values)
        return
    refuse_foreign(root)
    if store_url is not None:
        checked_url(store_url)
    machine = Machine.of(site or DEFAULT_SITE, inline=inline, values=values)
    machine.check_folder(root)
    with _terminated_as_interrupted():
        context, notes = begin(spec, root, machine.nobody(), machine.record(), store_url=store_url)
        click.echo(f"campaign {spec.name} in {root}")
        for note in notes:
            click.echo(note)
        _carry_on(context, machine, root)


def resume(root: Path, *, site: str | None, inline: bool, values: Mapping[str, str] | None = None) -> None:
    """Resumes the campaign of a folder. Raises as :func:`run`."""
    with reading(root):
        pass
    _resume(root, spec=None, site=site, accept_changes=False, inline=inline, values=values)


def _resume(
    root: Path,
    *,
    spec: CampaignSpec | None,
    site: str | None,
    accept_changes: bool,
    inline: bool,
    values: Mapping[str, str] | None = None,
) -> None:
    with reading(root) as store:
        recorded = recorded_spec(store)
        if spec is not None and not accept_changes:
            refuse_changes(recorded, spec)
        state, reason = recorded_state(store)
        with store.session() as session:
            former = dict(campaigns.campaign(session).site)
    changed = spec is not None and difference(recorded, spec)
    if state is CampaignState.FINISHED and not changed:
        click.echo(f"campaign {recorded.name} is finished: {reason}")
        print_result(root)
        return
    if spec is not None and changed:
        check_parts(spec)
    machine = Machine.again(former, site, inline=inline, values=values)
    with _terminated_as_interrupted():
        context = take_up(
            root, machine.nobody(), spec=spec, accept_changes=accept_changes, site=machine.record()
        )
        click.echo(f"campaign {recorded.name} in {root} goes on")
        if not former.get("inline", False):
            _end_strays(context, former, machine)
        _carry_on(context, machine, root)


def _former_site(record: Mapping[str, Any]) -> str:
    return str(record.get("file") or record.get("name") or DEFAULT_SITE)


def _refuse_other_store(root: Path, url: str | None) -> None:
    """Raises InputError for a URL that is not that of a campaign's store."""
    location = Location.of(root)
    if url is not None and checked_url(url) != location.url:
        raise InputError(
            f"the campaign in {root} has its store in {location}, not in {url}: leave out --store"
        )


def _carry_on(context: Context, machine: Machine, root: Path) -> None:
    """Runs a campaign that this process holds to an end of whatever kind."""
    failure: HpcalError | None = None
    reason = ""
    try:
        with beating(context.store):  # workers may take minutes to start, and to end
            reason = _controlled(context, machine, root)
    except HpcalError as error:
        failure = error
    finally:
        context.store.release()
        context.store.close()
    if failure is None:
        click.echo(f"finished: {reason}")
    try:
        print_result(root)
    except HpcalError as error:
        if failure is None:
            raise
        click.echo(f"note: there is no summary: {error}", err=True)
    if failure is not None:
        raise failure


def _controlled(context: Context, machine: Machine, root: Path) -> str:
    """Runs a campaign with workers of its own, which have ended when this returns or raises."""
    with closing(machine.dispatcher(context)) as dispatcher, observer() as display:
        watched = Publisher(display, context.store, root) if context.store.location.shared else display
        return Controller(replace(context, dispatcher=dispatcher), watched).run()


def _end_strays(context: Context, former: Mapping[str, Any], machine: Machine) -> None:
    """Ends what a dead controller of this campaign has left running, so that it is not adopted twice."""
    from hpcal.cli.leftovers import end_leftovers, kinds_of

    with context.store.session() as session:
        run_id = campaigns.campaign(session).run_id
    try:
        with beating(context.store):
            for sentence in end_leftovers(run_id, kinds_of(context.folders.root, former, machine.record())):
                click.echo(sentence)
    except TimeoutError as error:
        context.store.release()
        raise CampaignFailed(f"{error}: end them, then resume") from error


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a campaign runs.

    Attributes:
        name: name of the site.
        file: its file, where the user gave a path and no name.
        site: the site.
        inline: whether all work is done in this process.
        values: given for ``${NAME}`` of the site file.
        environment: what the environment gave for the others.
    """

    name: str
    file: Path | None
    site: Site
    inline: bool
    values: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, name_or_path: str, *, inline: bool, values: Mapping[str, str] | None = None) -> Machine:
        """The machine of a site's name or file. Raises ConfigurationError."""
        site, found = load_site(name_or_path, values), site_file(name_or_path)
        named = found.stem == name_or_path
        file = None if named else found.resolve()
        return cls(
            name=found.stem,
            file=file,
            site=site,
            inline=inline,
            values=dict(values or {}),
            environment=values_of_environment(name_or_path, values or {}),
        )

    @classmethod
    def again(
        cls,
        record: Mapping[str, Any],
        site: str | None,
        *,
        inline: bool,
        values: Mapping[str, str] | None = None,
    ) -> Machine:
        """The recorded machine, with its values where none are given anew, or that of another site.

        What the environment gave is used where it gives nothing now.
        """
        former = _former_site(record)
        if site is not None and site != former:
            return cls.of(site, inline=inline, values=values)
        of_then = {n: v for n, v in record.get("environment", {}).items() if not os.environ.get(n)}
        given = {**record.get("values", {}), **(values or {})}
        machine = cls.of(former, inline=inline, values={**of_then, **given})
        return replace(machine, values=given, environment={**of_then, **machine.environment})

    def record(self) -> dict[str, Any]:
        """What the store keeps of it."""
        pools = {
            name: {
                "slots": self.site.slots(name),
                "workers_per_node": pool.max_workers_per_node,
                "cores_per_worker": pool.cores_per_worker,
                "kind": pool.kind or self.site.kind,
            }
            for name, pool in self.site.pools.items()
        }
        file = None if self.file is None else str(self.file)
        return {
            "name": self.name,
            "file": file,
            "inline": self.inline,
            "values": dict(self.values),
            "environment": dict(self.environment),
            "pools": pools,
        }

    def check_folder(self, root: Path) -> None:
        """Raises ConfigurationError for a folder in which the workers could not work."""
        if not self.inline:
            from hpcal.sites.parsl_config import check_folder

            check_folder(root)

    def nobody(self) -> InlineDispatcher:
        """Slots without workers, until the campaign is ours and they may start."""
        return InlineDispatcher({name: self.site.slots(name) for name in self.site.pools}, run_attempt)

    def dispatcher(self, context: Context) -> Dispatcher:
        """The workers of a campaign that this process holds."""
        if self.inline:
            return self.nobody()
        from hpcal.engine.parsl_dispatch import ParslDispatcher

        with context.store.session() as session:
            run_id = campaigns.campaign(session).run_id

        def keep(end: BlockEnd) -> None:
            """The scheduler's word on a job, for ``hpcal why``."""
            with context.store.write() as session:
                add_event(session, context.store.epoch, "block_ended", end.sentence, **asdict(end))

        def keep_waiting(waiting: BlocksWait) -> None:
            """The scheduler's word on jobs that have not started, for ``hpcal status``."""
            with context.store.write() as session:
                add_event(session, context.store.epoch, BLOCKS_WAIT, waiting.sentence, **asdict(waiting))

        return ParslDispatcher(self.site, context.folders.root / "parsl", run_id, keep, keep_waiting)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM counts as an interrupt also while workers start, as a batch system sends it at any time."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

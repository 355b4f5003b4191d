"""``hpcal submit``: the controller of a campaign as a chain of batch jobs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import click

from hpcal.cli.folders import begun, reading, refuse_foreign
from hpcal.cli.result import print_result
from hpcal.cli.run import Machine
from hpcal.core.errors import CampaignFailed, CampaignHeld, ConfigurationError, HpcalError
from hpcal.engine.campaign import CampaignSpec, read_campaign
from hpcal.engine.pairing import check_parts
from hpcal.engine.start import begin, difference, recorded_spec, recorded_state, refuse_changes, take_up
from hpcal.sites.chain import Chain
from hpcal.sites.controller_script import controller_of
from hpcal.sites.scheduler import SchedulerError
from hpcal.store import campaigns
from hpcal.store.database import Store
from hpcal.store.location import checked_url
from hpcal.store.transitions import CampaignState


def submit(
    file: Path,
    *,
    site: str,
    folder: Path | None,
    accept_changes: bool,
    store_url: str | None,
    values: Mapping[str, str],
) -> None:
    """Records a campaign in its folder, if it is new, and hands in the first job of its controller.

    Raises:
        InputError: the campaign, its folder or the site cannot be used; nothing was submitted.
        CampaignHeld: a controller holds the campaign, or was submitted for it before.
        CampaignFailed: the scheduler did not take the job.
    """
    spec = read_campaign(file)
    root = folder if folder is not None else Path(spec.name)
    machine = Machine.of(site, inline=False, values=values)
    controller_of(machine.site)
    machine.check_folder(root)
    if begun(root):
        if _finished(root, spec, accept_changes=accept_changes):
            return
        _refuse_submitted(root, _former(root))
        context = take_up(
            root, machine.nobody(), spec=spec, accept_changes=accept_changes, site=machine.record()
        )
    else:
        refuse_foreign(root)
        if store_url is not None:
            checked_url(store_url)
        context, notes = begin(spec, root, machine.nobody(), machine.record(), store_url=store_url)
        for note in notes:
            click.echo(note)
    # The lease is held until the job is in: nobody else submits meanwhile. What was submitted before
    # it was taken is found by the scheduler, also where the folder does not show it here yet.
    try:
        _hand_in(root, machine, context.store)
    finally:
        with suppress(HpcalError):
            context.store.release()
        context.store.close()


def _finished(root: Path, spec: CampaignSpec, *, accept_changes: bool) -> bool:
    """Whether there is nothing left to do; says so."""
    with reading(root) as store:
        recorded = recorded_spec(store)
        state, reason = recorded_state(store)
    if not accept_changes:
        refuse_changes(recorded, spec)
    if difference(recorded, spec):
        check_parts(spec)
    elif state is CampaignState.FINISHED:
        click.echo(f"campaign {recorded.name} is finished: {reason}")
        print_result(root)
        return True
    return False


def _former(root: Path) -> Chain | None:
    """The chain that was submitted before; None also where its record cannot be read, which is said."""
    try:
        return Chain.of(root)
    except ConfigurationError as error:
        click.echo(f"note: {error}", err=True)
        return None


def _refuse_submitted(root: Path, chain: Chain | None) -> None:
    """Raises CampaignHeld if jobs of a chain of controllers are there."""
    if chain is None:
        return
    try:
        jobs = chain.jobs()
    except SchedulerError as error:
        raise CampaignFailed(f"nothing is submitted, as the scheduler does not answer: {error}") from error
    if jobs:
        raise CampaignHeld(
            f"the campaign in {root} was submitted before: controller job {jobs[0].id} is {jobs[0].state}; "
            f"end it first with `hpcal stop {root}`"
        )


def _hand_in(root: Path, machine: Machine, store: Store) -> None:
    with store.session() as session:
        run_id = campaigns.campaign(session).run_id
    _refuse_submitted(root, Chain.planned(root, machine.site, run_id))
    try:
        chain = Chain.prepare(root, machine.site, run_id)
        known_as = chain.begin(machine.site)
    except (SchedulerError, OSError) as error:
        raise CampaignFailed(
            f"the controller was not submitted: {error}; the campaign is recorded in {root}: mend it and "
            "submit again"
        ) from error
    what = known_as if chain.plan.chain == "scrontab" else f"job {known_as}"
    click.echo(f"campaign in {root}: its controller is {what}")
    click.echo(f"look at it with `hpcal status {root}`, end it with `hpcal stop {root}`")

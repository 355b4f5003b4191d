"""``hpcal clean``: what a dead controller left behind, in the schedulers, on this host and in scratch."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from hpcal.cli.folders import reading
from hpcal.cli.leftovers import NAMES, end_leftovers, kinds_of
from hpcal.cli.run import Machine
from hpcal.core.errors import CampaignFailed, CampaignHeld, HpcalError
from hpcal.engine.context import Folders
from hpcal.engine.loop import beating
from hpcal.sites.chain import Chain
from hpcal.sites.probe import on_this_node
from hpcal.sites.scheduler import SchedulerError
from hpcal.sites.strays import scheduler_of, stray_jobs, strays
from hpcal.store import campaigns
from hpcal.store.database import Store


def clean(root: Path, *, dry_run: bool) -> None:
    """Lists what is left of a campaign that nobody runs, and ends or removes it.

    Raises:
        InputError: there is no campaign.
        CampaignHeld: a controller runs it, or waits in the scheduler.
        CampaignFailed: processes do not end.
    """
    with reading(root):
        pass
    store = Store.open(root)
    try:
        store.acquire()  # nobody starts it meanwhile
        with beating(store):
            found = _clean(root, store, dry_run=dry_run)
    finally:
        with suppress(HpcalError):
            store.release()
        store.close()
    if not found:
        click.echo(f"nothing is left of the campaign in {root}")


def _clean(root: Path, store: Store, *, dry_run: bool) -> bool:
    """Says what there is; whether there was anything."""
    _refuse_submitted(root)
    with store.session() as session:
        row = campaigns.campaign(session)
        run_id, site = row.run_id, dict(row.site)
    kinds = kinds_of(root, site)
    sentences = list(_seen(run_id, kinds)) if dry_run else []
    if not dry_run:
        try:
            for sentence in end_leftovers(run_id, kinds):
                click.echo(sentence)
                sentences.append(sentence)
        except TimeoutError as error:
            raise CampaignFailed(f"{error}: end them by hand") from error
    folders = [*_scratch(site, run_id), *sorted(Folders(root=root).scratch.glob("*"))]
    for path in folders:
        sentences.append(f"{'would remove' if dry_run else 'removed'} {path}")
        if not dry_run:
            _remove(path)
            click.echo(sentences[-1])
    if dry_run:
        for sentence in sentences:
            click.echo(sentence)
    return bool(sentences)


def _refuse_submitted(root: Path) -> None:
    """Raises CampaignHeld for a campaign whose next controller waits in the scheduler."""
    chain = Chain.of(root)
    if chain is None or chain.stop_asked or chain.end_reason is not None:
        return
    try:
        jobs = chain.jobs()
    except SchedulerError:
        return  # which is said with the strays
    if jobs:
        raise CampaignHeld(
            f"controller job {jobs[0].id} of this campaign is {jobs[0].state} and will go on with it; end "
            f"the chain first with `hpcal stop {root}`"
        )


def _seen(run_id: str, kinds: list[str]) -> Iterator[str]:
    """What there is in the schedulers and on this host."""
    for kind in kinds:
        scheduler = scheduler_of(kind)
        try:
            jobs = stray_jobs(scheduler, kind, run_id) if scheduler else []
        except SchedulerError as error:
            yield f"{NAMES[kind]} could not be asked for jobs of this campaign: {error}"
            continue
        for job in jobs:
            yield f"would cancel job {job.id} in {NAMES[kind]} ({job.mark}, {job.state})"
    for process in strays(run_id):
        yield f"would end process {process.pid} ({process.name()})"


def _scratch(site: Mapping[str, Any], run_id: str) -> Iterator[Path]:
    """Folders of this campaign under the scratch of pools, as far as they can be seen from here."""
    try:
        machine = Machine.again(site, None, inline=False)
    except HpcalError as error:
        click.echo(f"note: scratch of the site is not looked at: {error}", err=True)
        return
    for folder in sorted(filter(None, {pool.scratch_of(run_id) for pool in machine.site.pools.values()})):
        path = Path(on_this_node(folder))
        if "$" in str(path):
            click.echo(f"note: scratch {folder} is named by variables of the nodes; look there", err=True)
        elif path.is_dir():
            yield path


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

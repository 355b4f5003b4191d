"""``hpcal extend``: more labels, generations or samplers for a campaign that has come to an end."""

from __future__ import annotations

import socket
from pathlib import Path

import click

from hpcal.cli.folders import holder, reading
from hpcal.cli.run import Machine, _resume
from hpcal.core.errors import CampaignHeld
from hpcal.engine.campaign import CampaignSpec
from hpcal.engine.extend import Extension, extended
from hpcal.engine.start import difference, recorded_spec, take_up
from hpcal.store import campaigns
from hpcal.store.database import Store


def extend(root: Path, extension: Extension, *, site: str | None, run: bool, inline: bool) -> None:
    """Changes the recorded campaign of a folder by rule, then goes on with it.

    Args:
        run: go on at once; else the campaign waits for ``hpcal resume``.

    Raises:
        InputError: what is asked for is not more than what is there.
        CampaignHeld: a controller runs the campaign.
        CampaignFailed, Interrupted: how it ended.
    """
    with reading(root) as store:
        _refuse_running(store, root)
        with store.session() as session:
            former = dict(campaigns.campaign(session).site)
        machine = Machine.again(former, site, inline=inline)
        spec = extended(store, root, extension, machine.nobody())
        changes = difference(recorded_spec(store), spec)
    if not run:
        _record(root, machine, spec, moved=site is not None)
    click.echo(f"campaign {spec.name} in {root} is extended:")
    for line in changes:
        click.echo(f"  {line}")
    if not run:
        click.echo(f"go on with `hpcal resume {root}`")
        return
    _resume(root, spec=spec, site=site, accept_changes=True, inline=inline)


def _refuse_running(store: Store, root: Path) -> None:
    """Raises CampaignHeld at once where the holder is known to live; elsewhere the lease decides."""
    with store.session() as session:
        found = holder(root)
        name = campaigns.campaign(session).name
    if found is not None and found.host == socket.gethostname() and not found.gone:
        raise CampaignHeld(
            f"campaign {name!r} is run by process {found.pid} on {found.host}: a running campaign is not "
            f"extended; stop it with `hpcal stop {root}` first"
        )


def _record(root: Path, machine: Machine, spec: CampaignSpec, *, moved: bool) -> None:
    """Writes the changed campaign under the lease, and gives that back."""
    site = machine.record() if moved else None
    context = take_up(root, machine.nobody(), spec=spec, accept_changes=True, site=site)
    context.store.release()
    context.store.close()

"""``hpcal stop``: an orderly end."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Final

import click

from hpcal.cli.folders import Holder, holder, reading
from hpcal.core.errors import CampaignFailed, StoreError
from hpcal.engine.loop import request_stop
from hpcal.engine.start import recorded_state
from hpcal.sites.chain import Chain
from hpcal.sites.chain_records import STOPPED
from hpcal.sites.scheduler import SchedulerError
from hpcal.store.lease import WATCH_SECONDS
from hpcal.store.transitions import CampaignState

POLL_SECONDS: Final = 0.5
LIMIT_SECONDS: Final = 120.0
"""Longer than a controller drains."""


def stop(root: Path, *, wait: bool) -> None:
    """Asks the controller of a campaign to end, and waits for it; ends the chain of a submitted one.

    Raises:
        InputError: there is no campaign.
        CampaignFailed: the controller is dead, or does not end.
    """
    found = holder(root)
    state = _state(root, unknown_ok=found is not None)
    chain = Chain.of(root)
    if chain is not None and chain.end_reason is None:
        _stop_chain(chain, running=found is not None and not found.gone)
        if found is None or found.gone:
            return
    if found is None or (found.gone and state not in (CampaignState.RUNNING, None)):
        click.echo(f"{root} does not run ({state}): nothing to stop")
        return
    _refuse_dead(root, found)
    request_stop(root)
    if not wait:
        click.echo(f"asked process {found.pid} on {found.host} to stop")
        return
    click.echo(f"waiting for process {found.pid} on {found.host} to end")
    _wait(root, found, state)
    click.echo(f"stopped; go on with `hpcal resume {root}`")


def _stop_chain(chain: Chain, *, running: bool) -> None:
    """Sees to it that no controller job follows; the one that runs ends the chain as it ends."""
    chain.ask_stop()
    try:
        if running:
            ended = chain.cancel_waiting()
        else:
            ended = [job.id for job in chain.jobs()]
            chain.end(STOPPED)
    except SchedulerError as error:
        click.echo(
            f"note: controller jobs that wait will do nothing, but are not cancelled: {error}", err=True
        )
        return
    click.echo(f"cancelled controller jobs {', '.join(ended)}" if ended else "no controller job waits")


def _wait(root: Path, found: Holder, state: CampaignState | None) -> None:
    """Returns when the controller has gone; it may have the lease before it runs, and for a while after."""
    limit = time.monotonic() + LIMIT_SECONDS
    counter, seen = found.counter, time.monotonic()
    ran = stopped = False
    while time.monotonic() < limit:
        time.sleep(POLL_SECONDS)
        now = holder(root)
        if now is None or (now.host, now.pid) != (found.host, found.pid):
            return
        ran = ran or state is CampaignState.RUNNING
        state = _state(root, unknown_ok=True)
        stopped = ran and state not in (CampaignState.RUNNING, None)
        if now.gone and state is not CampaignState.RUNNING:
            return
        _refuse_dead(root, now)
        request_stop(root)  # one that only begins takes the first request for an old one
        if now.counter != counter:
            counter, seen = now.counter, time.monotonic()
        here = now.host == socket.gethostname()  # where its process is known to live
        if not here and time.monotonic() - seen > 2 * WATCH_SECONDS:
            if stopped:  # what only clears away shows no life
                return
            raise CampaignFailed(_dead(root, now))
    if stopped:
        return
    raise CampaignFailed(
        f"process {found.pid} on {found.host} was asked to stop {LIMIT_SECONDS:.0f} s ago and still runs: "
        "look at its output, or kill it; nothing finished is lost"
    )


def _state(root: Path, *, unknown_ok: bool) -> CampaignState | None:
    """As recorded; None, if that will do, where it cannot be read now."""
    try:
        with reading(root) as store:
            return recorded_state(store)[0]
    except StoreError:
        if unknown_ok:
            return None
        raise


def _refuse_dead(root: Path, found: Holder) -> None:
    if found.gone:
        raise CampaignFailed(_dead(root, found))


def _dead(root: Path, found: Holder) -> str:
    return (
        f"the controller of {root}, process {found.pid} on {found.host}, is dead: there is nothing to stop; "
        f"go on with `hpcal resume {root}`"
    )

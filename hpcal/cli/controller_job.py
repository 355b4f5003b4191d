"""What a batch job of ``hpcal submit`` runs: a link in a chain of controllers.

::

    python -m hpcal.cli.controller_job DIR NUMBER

It hands in its successor first, as a node that dies never comes to its last line. Then it resumes
the campaign, and stops in good order some time before the job ends, so that the successor finds the
lease given back. When the campaign has ended, for good or by ``hpcal stop``, it ends the chain. A
disk that is full or does not answer keeps it from none of this.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from hpcal.core.errors import (
    CampaignFailed,
    CampaignHeld,
    ConfigurationError,
    FencedError,
    HpcalError,
    InputError,
    Interrupted,
    StoreError,
)
from hpcal.sites.block_end import seconds_left
from hpcal.sites.chain import Chain
from hpcal.sites.chain_records import STOPPED, Began, Ended, hopeless
from hpcal.sites.scheduler import SchedulerError
from hpcal.sites.strays import CRON

HELD_S: Final = 60.0
"""How long it waits for another controller to end before it leaves the campaign to that one."""
OUTAGE_S: Final = 600.0
"""How long it waits for a store that cannot be reached before it leaves that to the next job."""
_LOOK_EVERY_S: Final = 1.0
_TRY_AGAIN_S: Final = 15.0


def main(arguments: list[str]) -> int:
    """Runs one link; returns its exit code."""
    root = Path(arguments[0])
    try:
        chain = Chain.of(root)
    except ConfigurationError as error:
        _say(f"hpcal: {error}", err=True)
        return error.exit_code
    if chain is None:
        _say(f"hpcal: {root} was not submitted; submit it with `hpcal submit`", err=True)
        return InputError.exit_code
    over = chain.end_reason or (STOPPED if chain.stop_asked else None)
    if over is not None:
        _say(f"the chain of controllers has ended: {over}")
        end_chain(chain, over)
        return 0
    number = chain.following() if arguments[1] == CRON else int(arguments[1])
    if number < chain.plan.first:
        _say("the campaign was submitted anew since; this job leaves it to the newer ones")
        return 0
    return _Link(chain, number).run()


def end_chain(chain: Chain, reason: str, *, after: int | None = None) -> None:
    """Ends a chain; says so where the scheduler does not answer or the end cannot be recorded.

    Args:
        after: cancel only jobs that wait and come after that number; None cancels all others.
    """
    try:
        chain.end(reason, after=after)
    except SchedulerError as error:
        _say(f"note: jobs of the chain are not cancelled, but will do nothing: {error}", err=True)
    except OSError as error:
        _say(f"note: the chain has ended, but {chain.folder} does not say so: {error}", err=True)


def _say(text: str, *, err: bool = False) -> None:
    with suppress(OSError):  # the job's output is on a disk as well
        click.echo(text, err=err)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a link came to its end.

    Attributes:
        last: whether that is the end of the chain.
        in_order: whether it left the campaign as planned.
        held: whether another controller has the campaign, whose job is not to be cancelled.
    """

    exit_code: int
    reason: str
    last: bool = False
    in_order: bool = False
    held: bool = False


class _Link:
    """A controller job under way."""

    def __init__(self, chain: Chain, number: int) -> None:
        self._chain, self._number = chain, number
        self._over = threading.Event()
        self._owed = chain.plan.chain == "batch"
        self._words = ""

    def run(self) -> int:
        """Runs the campaign as long as the job lasts; returns the exit code."""
        self._submit_successor()
        with self._watch():
            outcome = self._outcome()
        if self._owed and not outcome.last:
            reason = f"the next controller job could not be submitted: {self._words}"
            outcome = Outcome(exit_code=1, reason=reason, last=True)
        _say(f"controller job {self._number} ends: {outcome.reason}")
        ended = Ended(exit_code=outcome.exit_code, in_order=outcome.in_order, reason=outcome.reason)
        with _unwritten("the end"):
            self._chain.ended(self._number, ended)
        if outcome.last and not self._superseded():
            end_chain(self._chain, outcome.reason, after=self._number if outcome.held else None)
        return outcome.exit_code

    def _superseded(self) -> bool:
        """Whether the campaign was submitted anew since, so that its chain is another one."""
        try:
            chain = Chain.of(self._chain.root)
        except (ConfigurationError, OSError):
            return False
        return chain is not None and chain.plan.first > self._number

    def _outcome(self) -> Outcome:
        try:
            self._begin()
            self._resume()
        except (Interrupted, KeyboardInterrupt):
            if self._chain.stop_asked:
                return Outcome(exit_code=0, reason=STOPPED, last=True, in_order=True)
            return Outcome(exit_code=0, reason="the next one goes on", in_order=True)
        except FencedError as error:  # who has the campaign now decides on the chain too
            return Outcome(exit_code=error.exit_code, reason=str(error))
        except CampaignHeld as error:
            return Outcome(exit_code=error.exit_code, reason=str(error), last=True, held=True)
        except (CampaignFailed, InputError) as error:
            return Outcome(exit_code=error.exit_code, reason=str(error), last=True)
        except HpcalError as error:
            return Outcome(exit_code=error.exit_code, reason=str(error))
        except Exception as error:
            traceback.print_exc()
            return Outcome(exit_code=1, reason=f"unexpected {type(error).__name__}: {error}")
        return Outcome(exit_code=0, reason="the campaign is finished", last=True, in_order=True)

    def _begin(self) -> None:
        """Records the beginning. Raises CampaignFailed if the jobs before this one have led nowhere."""
        job_id, host = self._chain.own_id or "", socket.gethostname()
        _say(f"controller job {self._number} (job {job_id}) on {host}")
        self._wait_for_store()
        progress = _progress(self._chain.root)
        with _unwritten("the beginning"):
            self._chain.began(self._number, Began(job_id=job_id, host=host, progress=progress))
        before = [link for link in self._chain.links() if link.number < self._number]
        why = hopeless(before, progress)
        if why is not None:
            raise CampaignFailed(f"{why}; mend it and submit the campaign again")

    def _wait_for_store(self) -> None:
        """Returns when the store can be read, or when waiting any longer makes no sense."""
        from hpcal.cli.folders import reading

        until = time.monotonic() + OUTAGE_S
        while True:
            try:
                with reading(self._chain.root):
                    return
            except StoreError as error:
                if time.monotonic() >= until or self._due():
                    return
                _say(f"waiting: {error}")
                time.sleep(_TRY_AGAIN_S)
            except HpcalError:
                return  # which resuming says again

    def _due(self) -> bool:
        """Whether it is to end, as its job does soon or the chain was asked to."""
        left = seconds_left(self._chain.plan.margin_s)
        return self._chain.stop_asked or (left is not None and left <= 0)

    def _resume(self) -> None:
        """Runs the campaign to its end. Raises as ``hpcal resume`` does."""
        from hpcal.cli.run import resume

        until = time.monotonic() + HELD_S
        while True:
            try:
                resume(self._chain.root, site=None, inline=False)
                return
            except CampaignHeld as error:
                if time.monotonic() >= until:
                    raise
                _say(f"waiting: {error}")
                time.sleep(_TRY_AGAIN_S)

    def _submit_successor(self) -> None:
        if not self._owed:
            return
        try:
            job_id = self._chain.submit_successor(self._number)
        except (SchedulerError, OSError) as error:
            self._words = str(error)
            _say(f"note: no next controller job yet: {error}", err=True)
            return
        self._owed = False
        _say("the next controller job is there" if job_id is None else f"next controller job: {job_id}")

    @contextmanager
    def _watch(self) -> Iterator[None]:
        """Ends the controller before its job ends and when it is asked to; hands in what is owed."""
        thread = threading.Thread(target=self._look, name="chain", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _look(self) -> None:
        again = time.monotonic() + _TRY_AGAIN_S
        while not self._over.wait(_LOOK_EVERY_S):
            # Whatever it is that fails, it looks again: without it nobody ends the controller in time.
            with suppress(Exception):
                if self._due():
                    _stop_own(self._chain.root)
            if self._owed and time.monotonic() >= again:
                self._submit_successor()
                again = time.monotonic() + _TRY_AGAIN_S


@contextmanager
def _unwritten(what: str) -> Iterator[None]:
    """Says so if a record cannot be written; the campaign does not depend on it."""
    try:
        yield
    except OSError as error:
        _say(f"note: {what} of this job is not recorded: {error}", err=True)


def _stop_own(root: Path) -> None:
    """Asks for an orderly end if it is this process that holds the campaign.

    Again and again, as a controller that only just begins takes the first request for an old one.
    """
    from hpcal.cli.folders import holder
    from hpcal.engine.loop import request_stop

    found = holder(root)
    if found is not None and (found.host, found.pid) == (socket.gethostname(), os.getpid()):
        request_stop(root)


def _progress(root: Path) -> int | None:
    """Tasks of a campaign that have come to their end; None if that cannot be read now."""
    from hpcal.cli.folders import reading
    from hpcal.store import tasks

    try:
        with reading(root) as store, store.session() as session:
            return tasks.ended(session)
    except Exception:  # whatever it is, the jobs that it keeps from working have to be counted
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

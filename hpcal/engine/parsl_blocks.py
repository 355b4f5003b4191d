"""The blocks of a pool as they were last seen, and those of them that are to end.

A scheduler may take minutes to answer. The controller's loop, which records what has come in, waits
for none: where blocks stand is what Parsl's own thread was told last, and blocks are ended in a thread.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hpcal.sites.blocks import BackOff, SchedulerBlocks

logger = logging.getLogger(__name__)


def in_a_thread(work: Callable[[], None]) -> None:
    """Does work beside this thread; it ends with the process, done or not."""
    threading.Thread(target=work, name="blocks", daemon=True).start()


@dataclass
class PoolBlocks:
    """Of one executor of Parsl.

    Attributes:
        executor: a HighThroughputExecutor.
        beside: does what may take long.
    """

    executor: Any
    beside: Callable[[Callable[[], None]], None] = in_a_thread
    _due: set[str] = field(default_factory=set)
    _told: set[str] = field(default_factory=set)
    _pause: BackOff = field(default_factory=BackOff)
    _telling: bool = False

    def alive(self) -> list[str]:
        """Blocks that have not ended and are not to."""
        return [block for block in self._there() if block not in self._due]

    def waiting(self) -> dict[str, int]:
        """How many blocks have not started, by the words of a scheduler that gives any."""
        provider = self.executor.provider
        words = provider.waiting.values() if isinstance(provider, SchedulerBlocks) else ()
        return dict(sorted(Counter(filter(None, words)).items()))

    def hold(self, block: str) -> None:
        """Gives a block no more work; what it is at goes on."""
        self.executor._hold_block(block)

    def end(self, blocks: Sequence[str]) -> list[str]:
        """Has blocks ended; Parsl asks for others when there is work.

        Returns:
            The jobs of those that were not to end yet.
        """
        alive = set(self.alive())
        new = [block for block in blocks if block in alive]
        self._due.update(new)
        self.tend()
        return [self.executor.blocks_to_job_id[block] for block in new]

    def tend(self) -> None:
        """Tells the scheduler of blocks to end that it could not be told of before; to be called often."""
        left = [block for block in self._there() if block in self._due - self._told]
        if left and not self._telling and not self._pause.left_s:
            self._telling = True
            self.beside(lambda: self._tell(left))

    def _there(self) -> list[str]:
        found = list(self.executor.status_facade.items())  # Parsl's thread changes it
        return [block for block, status in found if not status.terminal]

    def _tell(self, blocks: Sequence[str]) -> None:
        jobs = [self.executor.blocks_to_job_id[block] for block in blocks]
        try:
            ends = self.executor.provider.cancel(jobs)
            self._told.update(block for block, does in zip(blocks, ends, strict=True) if does)
        except Exception as error:  # of a provider that the user brings
            logger.warning("pool %s: jobs %s are not cancelled: %s", self.executor.label, jobs, error)
        if self._told.issuperset(blocks):
            self._pause.succeeded()
        else:
            self._pause.failed()
        self._telling = False

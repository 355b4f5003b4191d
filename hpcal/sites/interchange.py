"""The process through which the workers of a pool are reached, watched for its end.

Parsl asks its interchange without a time limit. One that was killed, as where a login node runs out
of memory, would hold up whoever asks, the controller and its end included, for ever.
"""

from __future__ import annotations

from typing import Any, Final

from parsl.executors import HighThroughputExecutor
from parsl.executors.high_throughput.errors import CommandClientBadError, CommandClientTimeoutError

ANSWER_S: Final = 45.0
"""Seconds after which an interchange counts as dead."""


class Interchange:
    """That of an executor which has started; questions to it are answered in time from now on.

    One that is dead is said to have no managers and no blocks, so that Parsl can end the rest.
    """

    def __init__(self, executor: HighThroughputExecutor, answer_s: float = ANSWER_S) -> None:
        self._process, self._answer_s = executor.interchange_proc, answer_s
        self._ask = executor.command_client.run
        self._silent = False
        executor.command_client.run = self._run

    @property
    def fault(self) -> str:
        """Why no worker can be reached any more; empty while all is well."""
        exit_code = self._process.poll()
        if exit_code is not None:
            return f"was killed by signal {-exit_code}" if exit_code < 0 else f"has ended with {exit_code}"
        return f"has not answered for {self._answer_s:g} s" if self._silent else ""

    def _run(self, message: Any, **_: Any) -> Any:
        if not self.fault:
            try:
                return self._ask(message, timeout_s=self._answer_s)
            except (CommandClientTimeoutError, CommandClientBadError):
                self._silent = True
        return []

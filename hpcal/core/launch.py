"""How a worker starts a program of several ranks: as its pool says, by variables of its environment."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

MPI_COMMAND: Final = "HPCAL_MPI_COMMAND"
MPI_RANKS: Final = "HPCAL_MPI_RANKS"
_OF_A_PARENT: Final = ("OMPI_", "PMIX_", "PRTE_", "PMI_", "MPI_LOCALRANKID", "HYDI_")
"""Variables by which a rank knows its launcher; a launcher that inherits them takes itself for a rank."""


@dataclass(frozen=True, kw_only=True)
class RankLauncher:
    """Starts programs of several ranks within a worker's block.

    Attributes:
        command: words that come before the program, such as ``("srun", "--mpi=pmix", "-n", "8")``.
        ranks: how many ranks it starts.
    """

    command: tuple[str, ...]
    ranks: int

    def argv(self, program: Sequence[str]) -> list[str]:
        """The command line that runs a program on all ranks."""
        return [*self.command, *program]


def rank_launcher() -> RankLauncher | None:
    """The launcher of this worker's pool; None where programs run on their own."""
    command = os.environ.get(MPI_COMMAND)
    if not command:
        return None
    return RankLauncher(command=tuple(shlex.split(command)), ranks=int(os.environ.get(MPI_RANKS, "1")))


def child_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment for a launcher, without what makes it take itself for a rank of another program."""
    given = os.environ if environment is None else environment
    return {name: value for name, value in given.items() if not name.startswith(_OF_A_PARENT)}

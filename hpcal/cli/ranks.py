"""Commands that run as several MPI ranks: errors that all ranks agree on, and none that hangs the others.

``mpi4py`` is imported here and nowhere else, when a command is told that it runs under MPI.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

import click

from hpcal.core.errors import HpcalError, InputError, PluginError
from hpcal.core.plugins import how_to_install

T = TypeVar("T")
_SIZES: Final = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
"""Variables in which launchers say how many ranks they have started."""


def world() -> Any:
    """The communicator of all ranks.

    Raises:
        PluginError: mpi4py is not installed, or its MPI library does not load.
        InputError: a launcher started several ranks, and each of them is alone.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise PluginError(
            f"--mpi needs mpi4py and an MPI library ({error}): {how_to_install('mpi4py')}"
        ) from error
    comm = MPI.COMM_WORLD
    started = max((int(text) for name in _SIZES if (text := os.environ.get(name, "")).isdecimal()), default=1)
    if comm.size == 1 and started > 1:
        raise InputError(
            f"{started} ranks were started, and each runs alone: the launcher does not speak the PMI of the "
            "MPI library of mpi4py; use srun --mpi=pmix for OpenMPI, srun --mpi=pmi2 for MPICH, or that "
            "library's own mpirun"
        )
    return comm


def agreed(comm: Any, work: Callable[[], T]) -> T:
    """What ``work`` gives on this rank, once it has gone well on all.

    Raises:
        HpcalError: that of the first rank where it failed, there.
        OSError: the same.
        click.exceptions.Exit: in good order, on the other ranks: only one speaks.
    """
    value: T | None = None
    problem: Exception | None = None
    with aborting(comm):
        try:
            value = work()
        except (HpcalError, OSError) as error:
            problem = error
    failed = [rank for rank, bad in enumerate(comm.allgather(problem is not None)) if bad]
    if not failed:
        return value  # type: ignore[return-value]
    if problem is not None and comm.rank == failed[0]:
        raise problem
    raise click.exceptions.Exit(0)


@contextmanager
def aborting(comm: Any) -> Iterator[None]:
    """An error on this rank ends all of them, as the others may be waiting for it."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, HpcalError | KeyboardInterrupt):
            traceback.print_exc()
        said = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
        click.echo(f"hpcal: rank {comm.rank} of {comm.size}: {said}", err=True)
        interrupted = isinstance(error, KeyboardInterrupt)
        comm.Abort(130 if interrupted else getattr(error, "exit_code", 1))
        raise


def take_device(comm: Any) -> None:
    """Gives each rank of a host a GPU of its own, in turn where there are fewer."""
    import torch
    from mpi4py import MPI

    if torch.cuda.is_available():
        local = comm.Split_type(MPI.COMM_TYPE_SHARED).rank
        torch.cuda.set_device(local % torch.cuda.device_count())

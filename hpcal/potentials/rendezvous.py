"""How the ranks of a program find each other: who each is, on which host, and where they meet.

Each rank leaves a file with its host in a folder that all see. When all have come, the first one
listens on an address that the others reach, and writes it to the file ``meeting``. So no address or
port has to be agreed on beforehand, whatever started the ranks.

The address is that of the interface ``HPCAL_INTERFACE`` (or ``GLOO_SOCKET_IFNAME``) if set; the
loopback's where all ranks are on one host; and otherwise the one by which this host reaches another.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from hpcal.core.errors import FailureClass, InputError, TaskFailure
from hpcal.potentials import files

INTERFACE: Final = "HPCAL_INTERFACE"
_GLOO: Final = "GLOO_SOCKET_IFNAME"
_NCCL: Final = "NCCL_SOCKET_IFNAME"
_LOOK_EVERY_S: Final = 0.05
_MEETING: Final = "meeting"
_NAMES: Final = (
    (("RANK",), ("WORLD_SIZE",), ("LOCAL_RANK",)),
    (("OMPI_COMM_WORLD_RANK",), ("OMPI_COMM_WORLD_SIZE",), ("OMPI_COMM_WORLD_LOCAL_RANK",)),
    (("PMI_RANK",), ("PMI_SIZE",), ("PMI_LOCAL_RANK", "MPI_LOCALRANKID", "PALS_LOCAL_RANKID")),
    (("SLURM_PROCID",), ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), ("SLURM_LOCALID",)),
)
"""Variables of rank, size and rank on the host: torchrun, OpenMPI, MPICH and its kin, Slurm."""
OF_A_RANK: Final = frozenset({"RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_LOCALID"})
"""Variables of a process that is itself a rank, which a program that it starts must not take for its own."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which rank this process is of how many, and its rank on its host if the launcher says so."""

    rank: int
    size: int
    local: int | None


def place(environment: Mapping[str, str], expected: int) -> Place:
    """The place that the launcher gave to this process.

    Raises:
        InputError: it gave none, or another number of ranks than expected.
    """
    for ranks, sizes, locals_ in _NAMES:
        rank, size = _first(environment, ranks), _first(environment, sizes)
        if rank is None or size is None:
            continue
        if size != expected:
            raise InputError(
                f"the pool's launcher starts {expected} ranks, but {sizes[0]} says {size}: ranks that do not "
                "know of each other come from an srun without the right --mpi or a wrong number of ranks "
                "in the site file"
            )
        return Place(rank=rank, size=size, local=_first(environment, locals_))
    raise InputError(
        f"the pool's launcher should start {expected} ranks, but gave this process no rank (none of "
        f"{', '.join(names[0] for names, _, _ in _NAMES)} is set): use srun, mpirun or torchrun"
    )


def _first(environment: Mapping[str, str], names: Iterable[str]) -> int | None:
    return next((int(environment[name]) for name in names if environment.get(name, "").isdigit()), None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Meeting:
    """Where ranks have met.

    Attributes:
        store: through which torch.distributed sets up its connections.
        local: place of this rank among those of its host.
        cores: processor cores for this rank: those that it may use, shared with the ranks of its
            host that may use the same ones.
    """

    store: Store
    local: int
    cores: int


def meet(folder: Path, own: Place, seconds: float) -> Meeting:
    """Waits until all ranks are there and connects them; sets the interface for torch.distributed.

    Raises:
        InputError: no interface of the given name, or no way to another host.
        TaskFailure: not all came in time, or the folder is gone (class node).
    """
    mask = sorted(os.sched_getaffinity(0))
    _write(folder / f"rank-{own.rank}", {"host": socket.gethostname(), "cores": mask})
    until = time.monotonic() + seconds
    if own.rank == 0:
        _await(folder, [f"rank-{k}" for k in range(own.size)], until)
        hosts = [_read(folder / f"rank-{k}") for k in range(own.size)]
        address = _choose_interface([h["host"] for h in hosts])
        store, port = _listening(address, own.size, seconds)
        _write(folder / _MEETING, {"address": address, "port": port, "ranks": hosts})
    else:
        _await(folder, [_MEETING], until)
        meeting = _read(folder / _MEETING)
        hosts = meeting["ranks"]
        _choose_interface([h["host"] for h in hosts])
        limit = timedelta(seconds=seconds)
        store = TCPStore(meeting["address"], meeting["port"], own.size, False, limit)
    here = [k for k, h in enumerate(hosts) if h["host"] == hosts[own.rank]["host"]]
    sharing = sum(hosts[k]["cores"] == mask for k in here)
    local = here.index(own.rank) if own.local is None else own.local
    return Meeting(store=store, local=local, cores=max(1, len(mask) // sharing))


def _listening(address: str, size: int, seconds: float) -> tuple[TCPStore, int]:
    """A store that listens on one address only, as it serves whoever asks."""
    listener = socket.create_server((address, 0), backlog=size)
    port = int(listener.getsockname()[1])
    # The libuv server of some versions of torch takes no socket that is there already.
    store = TCPStore(
        address,
        port,
        size,
        is_master=True,
        timeout=timedelta(seconds=seconds),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
        use_libuv=False,
    )
    return store, port


# ── Interfaces ───────────────────────────────────────────────────────────────────────────────


def _choose_interface(hosts: Sequence[str]) -> str:
    """This host's IPv4 address for the other ranks; tells gloo (and, if given, nccl) the interface."""
    given = os.environ.get(INTERFACE) or os.environ.get(_GLOO)
    if given:
        name = given.split(",")[0]
        address = _address_of(name)
    elif len(set(hosts)) == 1:
        name, address = "lo", "127.0.0.1"
    else:
        address = _address_towards(next(h for h in hosts if h != socket.gethostname()))
        name = _interface_of(address)
    os.environ.setdefault(_GLOO, name)
    if os.environ.get(INTERFACE):
        os.environ.setdefault(_NCCL, name)
    return address


def _interfaces() -> list[tuple[str, str]]:
    import psutil

    addresses = psutil.net_if_addrs().items()
    return [(name, a.address) for name, all_ in addresses for a in all_ if a.family == socket.AF_INET]


def _address_of(name: str) -> str:
    found = [address for interface, address in _interfaces() if interface == name]
    if not found:
        there = ", ".join(sorted({interface for interface, _ in _interfaces()}))
        raise InputError(
            f"host {socket.gethostname()} has no network interface {name} with an IPv4 address (it has "
            f"{there}): correct the site's interface"
        )
    return found[0]


def _interface_of(address: str) -> str:
    return next(name for name, own in _interfaces() if own == address)


def _address_towards(host: str) -> str:
    """The address that this host would send from; nothing is sent."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))
            return str(probe.getsockname()[0])
    except OSError as error:
        raise InputError(
            f"host {socket.gethostname()} knows no way to host {host} ({error}): name the network "
            "interface that nodes reach each other by in the site file"
        ) from error


# ── Files ────────────────────────────────────────────────────────────────────────────────────


def _write(path: Path, content: Mapping[str, Any]) -> None:
    files.write_bytes(path, json.dumps(content).encode())


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _await(folder: Path, names: Sequence[str], until: float) -> None:
    """Waits for files of a folder."""
    while True:
        try:
            missing = sorted(set(names) - set(os.listdir(folder)))
        except FileNotFoundError:
            raise TaskFailure(FailureClass.NODE, f"{folder} is gone: the training was ended") from None
        if not missing:
            return
        if time.monotonic() > until:
            raise TaskFailure(
                FailureClass.NODE,
                f"in {folder} there is no {', '.join(missing)}: these ranks did not start in time, or "
                "their nodes do not share this file system",
            )
        time.sleep(_LOOK_EVERY_S)

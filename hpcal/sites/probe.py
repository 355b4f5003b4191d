"""What a worker can tell of itself and its node. The text of this module is sent and run there.

The hpcal on the worker may be another one. So this needs the standard library only and takes
nothing for granted: what cannot be found out is told as text, in place of the value or as ``fault``.
"""

from __future__ import annotations

import importlib
import os
import platform
import socket
import sys
import time
import uuid
from collections.abc import Sequence
from importlib import metadata
from typing import Any

PROBED = "HPCAL_PROBED"
"""Set in a worker that has been probed once; a second time it waits, so that others come first."""
_PINNED = "HPCAL_PINNED"


def probe(
    packages: Sequence[str], imports: Sequence[str], scratch: str, shared: str, token: str
) -> dict[str, Any]:
    """Looks around on a worker.

    Args:
        packages: distributions whose versions are asked for.
        imports: modules that are imported, with the seconds that it takes.
        scratch: folder for tasks' own files, which may hold variables of the node.
        shared: folder that the controller has made.
        token: content of the file ``token`` there.
    """
    if os.environ.get(PROBED):
        time.sleep(1.0)
    os.environ[PROBED] = "1"
    pinning = _pin()  # before a library looks for GPUs
    return {
        "host": socket.gethostname(),
        "worker": os.environ.get("PARSL_WORKER_RANK", "0"),
        "manager": os.environ.get("PARSL_WORKER_POOL_ID", ""),
        "python": platform.python_version(),
        "executable": sys.executable,
        "container": os.environ.get("APPTAINER_CONTAINER") or os.environ.get("SINGULARITY_CONTAINER") or "",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": {name: _version(name) for name in packages},
        "imports": {name: _import(name) for name in imports},
        "gpus": {
            "fault": pinning,
            "own": [name for name in os.environ.get(_PINNED, "").split(",") if name],
            "torch": _torch_count(),
        },
        "scratch": _folder(on_this_node(scratch)),
        "shared": _shared(shared, token),
    }


def on_this_node(folder: str) -> str:
    """A folder as a site names it, by its name here: with the node's variables and ``~`` filled in.

    A variable that there is not stays as it is. Here, because tasks may find other folders than the
    probe has tried if the two filled in names in ways of their own.
    """
    return os.path.expanduser(os.path.expandvars(folder))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except Exception:  # not installed, or installed badly
        return None


def _import(name: str) -> float | str:
    """Seconds, or the error."""
    start = time.monotonic()
    try:
        importlib.import_module(name)
    except BaseException as error:  # some libraries end the process that imports them
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return round(time.monotonic() - start, 3)


def _pin() -> str:
    """Pins this worker as a task would; returns what went wrong."""
    try:
        from hpcal.sites.devices import pin

        pin()
    except Exception as error:
        return str(error)
    return ""


def _torch_count() -> int | None:
    """GPUs that PyTorch sees; None without PyTorch."""
    try:
        import torch

        found = torch.cuda.device_count()
        return found or (torch.xpu.device_count() if hasattr(torch, "xpu") else 0)
    except BaseException:  # that it cannot be imported is told elsewhere
        return None


def _folder(path: str) -> dict[str, Any]:
    """A folder, what keeps it from being written, and its kind of file system."""
    fault = ""
    try:
        os.makedirs(path, exist_ok=True)
        name = os.path.join(path, f"hpcal-probe-{uuid.uuid4().hex}")
        with open(name, "w") as file:
            file.write("probe")
            file.flush()
            os.fsync(file.fileno())
        os.remove(name)
    except OSError as error:
        fault = error.strerror or str(error)
    return {"path": path, "filesystem": _filesystem(path), "fault": fault}


def _shared(path: str, token: str) -> dict[str, Any]:
    """The same of the controller's folder, which must hold what the controller has written."""
    try:
        with open(os.path.join(path, "token")) as file:
            seen = file.read() == token
    except OSError as error:
        fault = error.strerror or str(error)
        return {"path": path, "filesystem": _filesystem(path), "fault": fault, "seen": False}
    return {**_folder(path), "seen": seen}


def _filesystem(path: str) -> str:
    """Kind of the file system that a path is on, such as ``lustre``; empty if it cannot be told."""
    try:
        with open("/proc/mounts") as file:
            mounts = [line.split()[1:3] for line in file]
    except OSError:
        return ""
    real, best, kind = os.path.realpath(path) + "/", "", ""
    for point, of_kind in mounts:
        place = point.replace("\\040", " ").rstrip("/") + "/"
        if real.startswith(place) and len(place) >= len(best):
            best, kind = place, of_kind
    return kind

"""Which GPUs a worker uses: its own, of those that its batch job was given.

Pinning is done here and not by Parsl, which counts from 0 on every node: two one-GPU blocks on a
shared node would both get GPU 0, and where it sets the variables of all vendors at once, AMD's
libraries count through two of them, one after the other.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Final

from hpcal.core.errors import FailureClass, TaskFailure

NAMES: Final = "HPCAL_GPUS"
"""Names of a node's GPUs, separated by blanks, where the site gives them."""
COUNT: Final = "HPCAL_GPUS_PER_NODE"
SHARE: Final = "HPCAL_GPUS_PER_WORKER"
VENDOR: Final = "HPCAL_GPU_VENDOR"
_PINNED: Final = "HPCAL_PINNED"
_RANK: Final = "PARSL_WORKER_RANK"

VISIBLE: Final[Mapping[str, tuple[str, ...]]] = {
    "nvidia": ("CUDA_VISIBLE_DEVICES",),
    "amd": ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"),
    "intel": ("ZE_AFFINITY_MASK",),
}
"""Variables that hide GPUs, by vendor; the first is set, the others are taken away."""
_NO_GPU: Final = frozenset({"", "NoDevFiles", "-1"})
"""What schedulers and users write there for none."""


def pin() -> None:
    """Shows this worker its own GPUs only; to be called before a library looks for them.

    Raises:
        TaskFailure: class ``node`` if the job was given fewer GPUs than the site promises.
    """
    pin_in(os.environ)


def pin_in(environment: MutableMapping[str, str]) -> None:
    """The same in a given environment. A second call changes nothing."""
    count = int(environment.get(COUNT, "0"))
    if not count or environment.get(_PINNED):
        return
    vendor = environment.get(VENDOR, "nvidia")
    share, rank = int(environment.get(SHARE, "1")), int(environment.get(_RANK, "0"))
    names = visible(environment, vendor, count)
    own = names[rank * share : (rank + 1) * share]
    if len(own) < share:
        raise TaskFailure(
            FailureClass.NODE,
            f"worker {rank} of this node has no GPU: the job sees {' '.join(names) or 'none'}, and "
            f"each worker takes {share}; lower max_workers_per_node or ask for more with gpus_per_node",
        )
    first, *others = VISIBLE[vendor]
    environment[first] = ",".join(own)
    for other in others:
        environment.pop(other, None)
    if vendor == "intel":
        environment["ZE_ENABLE_PCI_ID_DEVICE_ORDER"] = "1"
    environment[_PINNED] = environment[first]


def visible(environment: Mapping[str, str], vendor: str, count: int) -> Sequence[str]:
    """Names of the GPUs of this node that the job may use.

    Those that the site names; else those that the scheduler shows, by index, UUID or MIG instance;
    else the first ``count``.
    """
    if environment.get(NAMES):
        return environment[NAMES].split()
    for variable in VISIBLE[vendor]:
        if environment.get(variable):
            names = map(str.strip, environment[variable].split(","))
            return [name for name in names if name not in _NO_GPU]
    return [str(index) for index in range(count)]

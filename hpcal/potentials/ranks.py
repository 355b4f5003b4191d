"""The processes that train one ensemble together, and the few things they say to each other.

A training computes on its rank's own share of the structures and adds up what concerns all of them.
Alone, every sum is what it is given, so one code serves both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from hpcal.core.arrays import FloatArray, IntArray


class Ranks(Protocol):
    """The ranks of a training. Every rank has to make the same calls in the same order."""

    @property
    def rank(self) -> int:
        """Place of this process among them."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def device(self, kind: str) -> torch.device:
        """The device of a kind (``cpu``, ``cuda``) that this rank computes on."""
        ...

    def summed(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Each tensor summed over the ranks, the same to the bit on all of them."""
        ...

    def total(self, values: FloatArray) -> FloatArray:
        """An array summed over the ranks."""
        ...

    def largest(self, values: FloatArray) -> FloatArray:
        """The largest of each element of an array over the ranks."""
        ...

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank."""
        ...

    def as_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrites tensors with those of the first rank."""
        ...


class Alone:
    """One process that trains on its own."""

    rank = 0
    size = 1

    def device(self, kind: str) -> torch.device:
        return torch.device(kind)

    def summed(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        return tensors

    def total(self, values: FloatArray) -> FloatArray:
        return values

    def largest(self, values: FloatArray) -> FloatArray:
        return values

    def any(self, flag: bool) -> bool:
        return flag

    def as_first(self, tensors: Sequence[Tensor]) -> None:
        """Nothing to do."""


ALONE: Final = Alone()


class Group:
    """The ranks of torch.distributed's default group: tensors on GPUs by nccl, all else by gloo.

    Args:
        local: place of this rank among those of its host, which names its GPU.
    """

    def __init__(self, local: int) -> None:
        self._local = local
        self.rank: int = dist.get_rank()
        self.size: int = dist.get_world_size()

    def device(self, kind: str) -> torch.device:
        if kind != "cuda":
            return torch.device(kind)
        # A launcher that shows each rank a GPU of its own leaves one to count.
        device = torch.device("cuda", self._local % torch.cuda.device_count())
        torch.cuda.set_device(device)
        return device

    def summed(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        return _cut(flat, tensors)

    def total(self, values: FloatArray) -> FloatArray:
        return self._reduced(values, dist.ReduceOp.SUM)

    def largest(self, values: FloatArray) -> FloatArray:
        return self._reduced(values, dist.ReduceOp.MAX)

    def any(self, flag: bool) -> bool:
        return bool(self.largest(np.array([float(flag)]))[0])

    def as_first(self, tensors: Sequence[Tensor]) -> None:
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        dist.broadcast(flat, src=0)
        with torch.no_grad():
            for tensor, part in zip(tensors, _cut(flat, tensors), strict=True):
                tensor.copy_(part)

    @staticmethod
    def _reduced(values: FloatArray, operation: dist.ReduceOp.RedOpType) -> FloatArray:
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, op=operation)
        return tensor.numpy()


def _cut(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Parts of a flat tensor in the shapes of others."""
    parts = torch.split(flat, [tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


def owners(sizes: IntArray, ranks: int) -> IntArray:
    """(n,) the rank that holds each structure, so that all hold about as much.

    Structures are dealt from the largest to the smallest, there and back, as cards are.

    Args:
        sizes: (n,) numbers of atoms.
    """
    round_, place = np.divmod(np.arange(len(sizes)), ranks)
    dealt = np.where(round_ % 2 == 1, ranks - 1 - place, place)
    result = np.empty(len(sizes), dtype=np.int64)
    result[np.argsort(-sizes, kind="stable")] = dealt
    return result

"""Random numbers of walkers: each has a stream of its own, addressed by purpose and step.

What a walker draws depends on its stream and its step alone, so it is the same whichever walkers
share its batch and wherever its trajectory is cut into tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Final

import numpy as np
import torch
from torch import Tensor

from hpcal.core.arrays import IntArray

BLOCK: Final = 32
"""Steps whose noise is drawn at once; part of what defines a stream."""


class Purpose(IntEnum):
    """What the numbers are for; numbers for different purposes are independent."""

    NOISE = 0
    VELOCITIES = 1
    BIAS = 2


def generator(stream: int, purpose: Purpose, block: int = 0) -> np.random.Generator:
    """The random numbers of one stream for one purpose.

    A counter-based generator (Philox; Salmon et al. 2011, 10.1145/2063384.2063405) with the key
    made from the stream; block and purpose are high words of its counter, so that blocks do not
    overlap and any of them is reached at once.
    """
    key = np.random.SeedSequence(stream).generate_state(2, np.uint64)
    counter = np.array([0, block, int(purpose), 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=key))


class Noise:
    """Standard normal numbers for the steps of B walkers.

    Args:
        streams: stream of each walker.
        sizes: number of atoms of each walker.
        width: atoms that the batch is padded to.
        device: where the numbers are wanted.
    """

    def __init__(
        self, streams: Sequence[int], sizes: Sequence[int], width: int, device: torch.device
    ) -> None:
        self._streams = streams
        self._sizes = sizes
        self._rows = torch.arange(len(streams), device=device)
        self._loaded = np.full(len(streams), -1, dtype=np.int64)
        self._buffer = torch.zeros((len(streams), BLOCK, width, 3), dtype=torch.float64, device=device)

    def at(self, steps: IntArray) -> Tensor:
        """(B, N, 3) numbers for the (B,) steps that the walkers make next; zero at padding."""
        blocks = steps // BLOCK
        for row in np.flatnonzero(blocks != self._loaded):
            self._load(int(row), int(blocks[row]))
        phase = torch.from_numpy(steps % BLOCK).to(self._rows.device)
        return self._buffer[self._rows, phase]

    def _load(self, row: int, block: int) -> None:
        size = self._sizes[row]
        draws = generator(self._streams[row], Purpose.NOISE, block).standard_normal((BLOCK, size, 3))
        self._buffer[row, :, :size] = torch.from_numpy(draws).to(self._buffer.device)
        self._loaded[row] = block

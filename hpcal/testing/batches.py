"""Batches in which something has changed that must not matter."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from hpcal.core.arrays import FloatArray, IntArray
from hpcal.core.batch import PADDING, Batch


def padded(batch: Batch, extra: int) -> Batch:
    """More padding, whose positions are among the atoms: they must not be looked at."""
    count = len(batch)
    nowhere = batch.numbers.new_full((count, extra), PADDING)
    beside = batch.positions[:, :1] + 0.4 * torch.arange(1, extra + 1, device=batch.positions.device)[:, None]
    return replace(
        batch,
        numbers=torch.cat([batch.numbers, nowhere], dim=1),
        positions=torch.cat([batch.positions, beside.to(batch.positions.dtype)], dim=1),
    )


def rotated(batch: Batch, rotation: FloatArray) -> Batch:
    """Positions and cells turned by a (3, 3) rotation from the right."""
    turn = torch.as_tensor(rotation, device=batch.positions.device, dtype=batch.positions.dtype)
    cell = None if batch.cell is None else batch.cell @ turn
    return replace(batch, positions=batch.positions @ turn, cell=cell)


def translated(batch: Batch, shift: FloatArray) -> Batch:
    """All atoms moved by a (3,) vector, Å."""
    by = torch.as_tensor(shift, device=batch.positions.device, dtype=batch.positions.dtype)
    return batch.at(batch.positions + by * batch.mask.unsqueeze(2))


def reordered(batch: Batch, order: IntArray) -> Batch:
    """The places of all structures in another order."""
    index = torch.as_tensor(order, device=batch.numbers.device)
    return replace(batch, numbers=batch.numbers[:, index], positions=batch.positions[:, index])


def array(values: Tensor) -> FloatArray:
    """A tensor as float64 numbers on the host."""
    found: FloatArray = values.detach().cpu().double().numpy()
    return found

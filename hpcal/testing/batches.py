"""Batches in which something has changed that must not matter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
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


def alone(batch: Batch, row: int) -> Batch:
    """One structure without companions, and so without padding."""
    only = batch.rows(torch.tensor([row], device=batch.numbers.device))
    size = int(only.n_atoms[0])
    return replace(only, numbers=only.numbers[:, :size], positions=only.positions[:, :size])


def rotated(batch: Batch, rotation: FloatArray) -> Batch:
    """Positions and cells turned by a (3, 3) rotation from the right."""
    turn = torch.as_tensor(rotation, device=batch.positions.device, dtype=batch.positions.dtype)
    cell = None if batch.cell is None else batch.cell @ turn
    return replace(batch, positions=batch.positions @ turn, cell=cell)


def translated(batch: Batch, shift: FloatArray) -> Batch:
    """All atoms moved by a (3,) vector, Å."""
    by = torch.as_tensor(shift, device=batch.positions.device, dtype=batch.positions.dtype)
    return batch.at(batch.positions + by * batch.mask.unsqueeze(2))


def backwards(batch: Batch) -> tuple[Batch, IntArray]:
    """The atoms of each structure in reverse order, and the (B, N) places that they come from."""
    sizes, width = batch.n_atoms.cpu().numpy(), batch.numbers.shape[1]
    places = np.tile(np.arange(width), (len(batch), 1))
    for row, size in enumerate(sizes):
        places[row, :size] = places[row, :size][::-1]
    index = torch.as_tensor(places, device=batch.numbers.device)
    rows = torch.arange(len(batch), device=batch.numbers.device)[:, None]
    turned = replace(batch, numbers=batch.numbers[rows, index], positions=batch.positions[rows, index])
    return turned, places


def array(values: Tensor) -> FloatArray:
    """A tensor as float64 numbers on the host."""
    found: FloatArray = values.detach().cpu().double().numpy()
    return found

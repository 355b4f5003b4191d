"""Pairs of atoms within a cutoff, for batches of molecules and of periodic cells alike."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcal.core.batch import Batch


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """P pairs within a cutoff, each once.

    Attributes:
        first: (P,) atoms, as indices into the flattened (B·N) batch.
        second: (P,) atoms, likewise; may equal ``first`` for an atom and its own image.
        row: (P,) structure of the pair.
        image: (P, 3) lattice vectors by which ``first`` is moved against ``second``, or None
            where nothing is periodic.
    """

    first: Tensor
    second: Tensor
    row: Tensor
    image: Tensor | None = None

    def vectors(self, batch: Batch) -> Tensor:
        """(P, 3) Å, from the second to the first atom; differentiable in positions and cell."""
        positions = batch.positions.reshape(-1, 3)
        vectors = positions[self.first] - positions[self.second]
        if self.image is not None and batch.cell is not None:
            image = self.image.to(vectors.dtype).unsqueeze(1)
            vectors = vectors + torch.bmm(image, batch.cell[self.row]).squeeze(1)
        return vectors


def pairs_within(batch: Batch, cutoff: float) -> Pairs:
    """All pairs of atoms at most ``cutoff`` Å apart, images of periodic structures included.

    All pairs of a structure are compared, so the cost grows with the square of its atoms.
    """
    with torch.no_grad():
        if batch.pbc is None or not bool(batch.pbc.any()):
            return _molecular(batch, cutoff)
        return _periodic(batch, cutoff)


def _molecular(batch: Batch, cutoff: float) -> Pairs:
    width = batch.numbers.shape[1]
    i, j = torch.triu_indices(width, width, 1, device=batch.numbers.device)
    distances = (batch.positions[:, i] - batch.positions[:, j]).norm(dim=-1)
    mask = batch.mask
    row, pair = ((distances <= cutoff) & mask[:, i] & mask[:, j]).nonzero(as_tuple=True)
    return Pairs(first=row * width + i[pair], second=row * width + j[pair], row=row)


def _periodic(batch: Batch, cutoff: float) -> Pairs:
    width = batch.numbers.shape[1]
    parts = [_images(batch, row, cutoff) for row in range(len(batch))]
    offsets = [torch.full_like(first, row) for row, (first, _, _) in enumerate(parts)]
    row = torch.cat(offsets)
    return Pairs(
        first=torch.cat([p[0] for p in parts]) + row * width,
        second=torch.cat([p[1] for p in parts]) + row * width,
        row=row,
        image=torch.cat([p[2] for p in parts]),
    )


def _images(batch: Batch, row: int, cutoff: float) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of one structure and the lattice translations of their first atoms."""
    device = batch.numbers.device
    n = int(batch.n_atoms[row])
    positions = batch.positions[row, :n].double()
    periodic = batch.pbc[row] if batch.pbc is not None else torch.zeros(3, dtype=torch.bool, device=device)
    i, j = torch.triu_indices(n, n, 1, device=device)
    if batch.cell is None or not bool(periodic.any()):
        near = (positions[i] - positions[j]).norm(dim=-1) <= cutoff
        return i[near], j[near], torch.zeros((int(near.sum()), 3), dtype=torch.int64, device=device)
    cell = batch.cell[row].double()
    # Atoms may lie anywhere: images are counted from their place in the central cell.
    home = torch.where(periodic, (positions @ cell.inverse()).floor(), 0.0)
    wrapped = positions - home @ cell
    shifts = _half_space(cell, periodic, cutoff)
    every = torch.arange(n, device=device)
    first = torch.cat([i, every.repeat_interleave(n).repeat(len(shifts))])
    second = torch.cat([j, every.repeat(n).repeat(len(shifts))])
    shift = torch.cat([torch.zeros((len(i), 3), device=device), shifts.repeat_interleave(n * n, dim=0)])
    vectors = wrapped[first] - wrapped[second] + shift.double() @ cell
    near = vectors.norm(dim=-1) <= cutoff
    first, second = first[near], second[near]
    image = shift[near].double() - home[first] + home[second]
    return first, second, image.to(torch.int64)


def _half_space(cell: Tensor, periodic: Tensor, cutoff: float) -> Tensor:
    """(S, 3) lattice translations to look at, one of each ±pair and without zero."""
    heights = 1.0 / cell.inverse().norm(dim=0)
    reach = torch.where(periodic, torch.ceil(cutoff / heights), 0.0).to(torch.int64).tolist()
    axes = [torch.arange(-r, r + 1, device=cell.device) for r in reach]
    grid = torch.cartesian_prod(*axes).float()
    a, b, c = grid.unbind(dim=1)
    return grid[(a > 0) | ((a == 0) & (b > 0)) | ((a == 0) & (b == 0) & (c > 0))]

"""Structures side by side in padded tensors, as potentials take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hpcal.core.structure import Structure

PADDING = 0
"""Atomic number of a place without an atom."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """B structures padded to N atoms.

    Attributes:
        numbers: (B, N) int64 atomic numbers, 0 where there is no atom.
        positions: (B, N, 3) Å.
        cell: (B, 3, 3) Å, zeros where there is none, or None if no structure has one.
        pbc: (B, 3) bool, or None if no structure is periodic.
        charges: (B,) int64, e.
        multiplicities: (B,) int64.
    """

    numbers: Tensor
    positions: Tensor
    charges: Tensor
    multiplicities: Tensor
    cell: Tensor | None = None
    pbc: Tensor | None = None

    @classmethod
    def of(
        cls,
        structures: Sequence[Structure],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Batch:
        """The structures as one batch; positions and cells in ``dtype``."""
        width = max(len(s) for s in structures)
        numbers = torch.zeros((len(structures), width), dtype=torch.int64)
        positions = torch.zeros((len(structures), width, 3), dtype=torch.float64)
        for row, s in enumerate(structures):
            numbers[row, : len(s)] = torch.tensor(s.numbers)
            positions[row, : len(s)] = torch.tensor(s.positions)
        cell = pbc = None
        if any(s.cell is not None for s in structures):
            cell = torch.zeros((len(structures), 3, 3), dtype=torch.float64)
            for row, s in enumerate(structures):
                if s.cell is not None:
                    cell[row] = torch.tensor(s.cell)
            cell = cell.to(device=device, dtype=dtype)
        if any(s.periodic for s in structures):
            pbc = torch.tensor([s.pbc for s in structures], device=device)
        return cls(
            numbers=numbers.to(device),
            positions=positions.to(device=device, dtype=dtype),
            charges=torch.tensor([s.charge for s in structures], device=device),
            multiplicities=torch.tensor([s.multiplicity for s in structures], device=device),
            cell=cell,
            pbc=pbc,
        )

    def __len__(self) -> int:
        return int(self.numbers.shape[0])

    @property
    def mask(self) -> Tensor:
        """(B, N) bool: where there is an atom."""
        return self.numbers != PADDING

    @property
    def n_atoms(self) -> Tensor:
        """(B,) number of atoms."""
        return self.mask.sum(dim=1)

    def at(self, positions: Tensor) -> Batch:
        """The same atoms at (B, N, 3) other positions, Å."""
        return replace(self, positions=positions)

    def rows(self, index: Tensor) -> Batch:
        """The structures at (K,) indices (or under a (B,) mask), in that order."""
        return Batch(
            numbers=self.numbers[index],
            positions=self.positions[index],
            charges=self.charges[index],
            multiplicities=self.multiplicities[index],
            cell=None if self.cell is None else self.cell[index],
            pbc=None if self.pbc is None else self.pbc[index],
        )

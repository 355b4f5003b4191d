"""When a walker is broken, or a made structure is none worth labelling.

Overlapping atoms, an atom that flew off, forces or a temperature beyond all sense, and numbers
that are not finite. Frames of broken walkers are never candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from hpcal.core import elements
from hpcal.core.batch import PADDING, Batch
from hpcal.core.settings import Settings
from hpcal.core.structure import Structure
from hpcal.core.walker import WalkerEnd

NEAREST_FACTOR = 1.5
"""An atom within this many sums of covalent radii is bonded, however heavy the atoms."""


class GuardSettings(Settings):
    """When a walker ends as broken."""

    min_distance_factor: float = Field(
        0.6, ge=0, description="atoms closer than this times the sum of their covalent radii overlap"
    )
    max_nearest_A: float | None = Field(  # noqa: N815
        2.5,
        gt=0,
        description="an atom of a molecule whose nearest neighbour is farther than this (and than "
        "1.5 sums of covalent radii) has dissociated, Å; null for no such check, as loosely bound "
        "complexes need",
    )
    max_force_eV_per_A: float = Field(60.0, gt=0, description="largest force on an atom, bias included, eV/Å")  # noqa: N815
    max_temperature_K: float = Field(10_000.0, gt=0, description="largest kinetic temperature of a walker, K")  # noqa: N815
    check_every: int = Field(
        5,
        ge=1,
        description="steps between checks of distances, which are also checked before a frame is "
        "scored; forces, temperature and finiteness are checked at every step",
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class DistanceLimits:
    """Distances that the atoms of a batch must keep.

    Attributes:
        shortest: (B, N, N) Å below which a pair overlaps; 0 for what is no pair.
        farthest: (B, N, N) Å beyond which a pair is not bonded; minus infinity for what is no pair.
        bound: (B, N) atoms that must be bonded to another: those of molecules of two or more.
    """

    shortest: Tensor
    farthest: Tensor
    bound: Tensor

    @classmethod
    def of(cls, batch: Batch, settings: GuardSettings) -> DistanceLimits:
        """The limits for the structures of a batch."""
        radii = torch.as_tensor(elements.COVALENT_RADII, device=batch.numbers.device)[batch.numbers]
        sums = radii[:, :, None] + radii[:, None, :]
        atoms = batch.numbers != PADDING
        same = torch.eye(batch.numbers.shape[1], dtype=torch.bool, device=atoms.device)
        pairs = atoms[:, :, None] & atoms[:, None, :] & ~same
        shortest = torch.where(pairs, settings.min_distance_factor * sums, 0.0)
        if settings.max_nearest_A is None:
            return cls(shortest=shortest, farthest=shortest, bound=torch.zeros_like(atoms))
        bonded = torch.clamp(NEAREST_FACTOR * sums, min=settings.max_nearest_A)
        molecular = pairs if batch.pbc is None else pairs & ~batch.pbc.any(dim=1)[:, None, None]
        return cls(
            shortest=shortest,
            farthest=torch.where(molecular, bonded, -torch.inf),
            bound=molecular.any(dim=2),
        )


def pair_distances(positions: Tensor, cell: Tensor | None = None, pbc: Tensor | None = None) -> Tensor:
    """(B, N, N) distances in Å at (B, N, 3) positions, to the nearest image where periodic.

    The image is found by rounding fractional coordinates, which is exact for distances below half
    the smallest height of the cell.
    """
    if cell is not None and pbc is not None and bool(pbc.any()):
        return _nearest_image_distances(positions, cell.to(positions.dtype), pbc)
    # A component at a time: differences of all three at once would not fit the cache.
    squared = torch.zeros(
        (*positions.shape[:2], positions.shape[1]), dtype=positions.dtype, device=positions.device
    )
    for component in positions.unbind(dim=2):
        squared += (component[:, :, None] - component[:, None, :]).square_()
    return squared.sqrt_()


def _nearest_image_distances(positions: Tensor, cell: Tensor, pbc: Tensor) -> Tensor:
    # Structures without a cell have zeros there, which cannot be inverted; nothing wraps in them.
    unit = torch.eye(3, dtype=cell.dtype, device=cell.device)
    cell = torch.where(pbc.any(dim=1)[:, None, None], cell, unit)
    difference = positions[:, :, None, :] - positions[:, None, :, :]
    fractional = torch.einsum("bijk,bkl->bijl", difference, torch.linalg.inv(cell))
    shift = torch.where(pbc[:, None, None, :], torch.round(fractional), 0.0)
    nearest = difference - torch.einsum("bijk,bkl->bijl", shift, cell)
    return nearest.square().sum(dim=-1).sqrt()


def broken_distances(distances: Tensor, limits: DistanceLimits) -> tuple[Tensor, Tensor]:
    """Which structures overlap and which are dissociated: two (B,) bool tensors."""
    overlap = (distances < limits.shortest).flatten(1).any(dim=1)
    alone = (distances > limits.farthest).all(dim=2) & limits.bound
    return overlap, alone.any(dim=1)


def overlap_problem(structure: Structure, min_distance_factor: float) -> str | None:
    """One sentence on the closest overlapping pair of a structure, or None if none overlaps."""
    settings = GuardSettings(min_distance_factor=min_distance_factor, max_nearest_A=None)
    return _worst_overlap(structure, settings)


def distance_sentence(structure: Structure, end: WalkerEnd, settings: GuardSettings) -> str:
    """One sentence with numbers on why a structure overlaps or is dissociated."""
    if end is WalkerEnd.OVERLAP:
        return _worst_overlap(structure, settings) or "atoms overlap"
    distances = _distances(structure)
    np.fill_diagonal(distances, np.inf)
    nearest = distances.argmin(axis=1)
    atom = int(distances.min(axis=1).argmax())
    return (
        f"{_name(structure, atom)} is {distances[atom].min():.2f} Å from its nearest neighbour, "
        f"{_name(structure, int(nearest[atom]))}; an atom farther than {settings.max_nearest_A} Å and "
        f"{NEAREST_FACTOR} sums of covalent radii from all others has dissociated"
    )


def _worst_overlap(structure: Structure, settings: GuardSettings) -> str | None:
    distances = _distances(structure)
    radii = elements.COVALENT_RADII[structure.numbers]
    sums = radii[:, None] + radii[None, :]
    ratio = distances / sums
    np.fill_diagonal(ratio, np.inf)
    i, j = np.unravel_index(int(ratio.argmin()), ratio.shape)
    if not ratio[i, j] < settings.min_distance_factor:
        return None
    return (
        f"{_name(structure, int(i))} and {_name(structure, int(j))} are {distances[i, j]:.2f} Å apart, "
        f"closer than {settings.min_distance_factor} × {sums[i, j]:.2f} Å, the sum of their covalent radii"
    )


def _distances(structure: Structure) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    batch = Batch.of([structure], dtype=torch.float64)
    found: np.ndarray[tuple[int, int], np.dtype[np.float64]] = pair_distances(
        batch.positions, batch.cell, batch.pbc
    )[0].numpy()
    return found


def _name(structure: Structure, atom: int) -> str:
    return f"atom {atom} ({elements.symbol(int(structure.numbers[atom]))})"

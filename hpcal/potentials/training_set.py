"""A data set as the trainer takes it: standardised descriptors, references, and forces of members."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hpcal.core.arrays import FloatArray, IntArray
from hpcal.core.batch import Batch
from hpcal.core.dataset import Dataset
from hpcal.core.structure import Structure
from hpcal.potentials.descriptors import Descriptor, standardisation
from hpcal.potentials.fitting import with_forces
from hpcal.potentials.jacobian import Jacobians, jacobians, memory
from hpcal.potentials.networks import Activation, Network, energies_and_slopes
from hpcal.potentials.ranks import ALONE, Ranks

_AT_ONCE = 2000
"""Atoms whose descriptors are computed together."""
_VANISHING = 1e-10
"""A feature that never exceeds this is left out of the training: its derivatives vanish with it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """Energies (M, b) less the constant, eV, and forces (M, 3A), eV/Å, of b structures."""

    energies: Tensor
    forces: Tensor


class TrainingSet:
    """Labelled structures with cached descriptors.

    Args:
        dataset: the structures, all of elements that the descriptor knows; of several ranks, the
            share of this one, which may be none.
        descriptor: gives the parameters, device and precision.
        constants: (n,) constant energy of each structure, eV.
        centres, scales: standardisation; None to take it from the structures ``basis``.
        basis: indices of the structures that the standardisation is taken from.
        keep_memory: bytes that cached derivatives may take in this process.
        ranks: those that hold the other structures.
        shares: (n, 2) scaled charge and unpaired electrons of an atom of each structure, or None for
            networks that are blind to them.
    """

    def __init__(
        self,
        dataset: Dataset,
        descriptor: Descriptor,
        *,
        constants: FloatArray,
        known: tuple[FloatArray, FloatArray, Sequence[int]] | None,
        basis: IntArray,
        keep_memory: float,
        ranks: Ranks = ALONE,
        shares: FloatArray | None = None,
    ) -> None:
        self.descriptor = descriptor
        self.structures = dataset.structures()
        self.sizes = [int(n) for n in dataset.sizes]
        device, dtype = descriptor.table.device, descriptor.computer.radial.shifts.dtype
        self.device, self.dtype = device, dtype
        raw, self.first = _descriptors(descriptor, self.structures)
        self.centres, self.scales = _frame(descriptor, raw, self.first, basis, known, ranks=ranks)
        self.kept = _kept(raw, self.centres, ranks)
        self.x = [
            ((values[:, kept] - self.centres[e][kept]) / self.scales[e])
            for e, (values, kept) in enumerate(zip(raw, self.kept, strict=True))
        ]
        self.x = [torch.tensor(x, device=device, dtype=dtype) for x in self.x]
        self.columns = [torch.tensor(kept, device=device) for kept in self.kept]
        self.inputs = self.kept
        if shares is not None:
            self._append(shares)
        reference = dataset.energies - constants
        forces = dataset.forces.copy()
        self.has_forces = with_forces(dataset)
        forces[~np.repeat(self.has_forces, dataset.sizes)] = 0.0
        self.energies = torch.tensor(reference, device=device, dtype=dtype)
        self.forces = torch.tensor(forces, device=device, dtype=dtype)
        self.offsets = dataset.offsets
        itemsize = torch.finfo(dtype).bits // 8
        width = max(len(kept) for kept in self.kept)
        self.cached: Jacobians | None = None
        # One rank that recomputes would have all the others wait for it.
        if not ranks.any(memory(self.sizes, width, itemsize) > keep_memory):
            self.cached = jacobians(descriptor, self.structures, self.columns, self.scales.tolist())

    def _append(self, shares: FloatArray) -> None:
        """Puts the shares of each atom behind its features."""
        features, n = self.descriptor.length, shares.shape[1]
        self.inputs = [np.append(kept, np.arange(features, features + n)) for kept in self.kept]
        for e, first in enumerate(self.first):
            of_atoms = np.repeat(shares, np.diff(first), axis=0)
            own = torch.tensor(of_atoms, device=self.device, dtype=self.dtype)
            self.x[e] = torch.cat([self.x[e], own], dim=1)

    def predict(self, networks: Sequence[Network], index: IntArray, activation: Activation) -> Prediction:
        """Energies and forces of some structures, differentiable once in the weights."""
        energies, slopes = torch.zeros((), device=self.device, dtype=self.dtype), []
        for e, network in enumerate(networks):
            atoms, rows = self._atoms(e, index)
            of_atoms, slope = energies_and_slopes(network, self.x[e][atoms].T, activation)
            energies = energies + of_atoms @ rows
            features = len(self.kept[e])
            slopes.append(slope if slope.shape[2] == features else slope[:, :, :features])
        sizes = [self.sizes[i] for i in index]
        if self.cached is not None:
            return Prediction(energies=energies, forces=self.cached.forces(slopes, index.tolist(), sizes))
        return Prediction(energies=energies, forces=self._recomputed(slopes, index))

    def reference(self, index: IntArray) -> tuple[Tensor, Tensor]:
        """(b,) energies less the constant and (3A,) forces of some structures."""
        atoms = np.concatenate([np.arange(self.offsets[i], self.offsets[i + 1]) for i in index])
        return self.energies[self._index(index)], self.forces[self._index(atoms)].flatten()

    def _recomputed(self, slopes: Sequence[Tensor], index: IntArray) -> Tensor:
        """(M, 3A) forces through the graph of the descriptors, for structures too large to cache.

        The product with Jᵀ is a backward pass of its own for each member, differentiable in the
        slopes.
        """
        part = [self.structures[i] for i in index]
        batch = Batch.of(part, device=self.device, dtype=self.dtype)
        positions = batch.positions.requires_grad_()
        aevs = self.descriptor(batch.at(positions)).flatten(0, 1)
        species = self.descriptor.species(batch).flatten()
        descriptors = [
            aevs[(species == e).nonzero().flatten()][:, columns] / self.scales[e]
            for e, columns in enumerate(self.columns)
        ]
        inside = batch.mask.flatten()
        forces = []
        for m in range(len(slopes[0])):
            if not aevs.requires_grad:
                forces.append(positions.new_zeros(3 * int(inside.sum())))
                continue
            (gradient,) = torch.autograd.grad(
                descriptors, positions, grad_outputs=[s[m] for s in slopes], create_graph=True
            )
            forces.append(-gradient.flatten(0, 1)[inside].flatten())
        return torch.stack(forces)

    def _atoms(self, element: int, index: IntArray) -> tuple[Tensor, Tensor]:
        """Atoms of an element in some structures, and (n, b) 1 where an atom is in a structure."""
        first = self.first[element]
        starts, counts = first[index], first[index + 1] - first[index]
        rows = np.repeat(np.arange(len(index)), counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        member = torch.zeros((len(rows), len(index)), device=self.device, dtype=self.dtype)
        member[torch.arange(len(rows), device=self.device), self._index(rows)] = 1.0
        return self._index(np.repeat(starts, counts) + within), member

    def _index(self, values: IntArray) -> Tensor:
        return torch.as_tensor(values, device=self.device)


def _descriptors(
    descriptor: Descriptor, structures: Sequence[Structure]
) -> tuple[list[FloatArray], list[IntArray]]:
    """For each element, (n, F) AEVs of its atoms in float64 and the (S + 1,) first atom of each structure."""
    n_elements = len(descriptor.elements)
    values: list[list[FloatArray]] = [[np.zeros((0, descriptor.length))] for _ in range(n_elements)]
    counts = np.zeros((len(structures), n_elements), dtype=np.int64)
    start = 0
    while start < len(structures):
        stop, width = start + 1, len(structures[start])
        while stop < len(structures):
            wider = max(width, len(structures[stop]))
            if wider * (stop + 1 - start) > _AT_ONCE:
                break
            stop, width = stop + 1, wider
        dtype = descriptor.computer.radial.shifts.dtype
        batch = Batch.of(structures[start:stop], device=descriptor.table.device, dtype=dtype)
        with torch.no_grad():
            aevs = descriptor(batch).double().cpu().numpy()
        species = descriptor.species(batch).cpu().numpy()
        for e in range(n_elements):
            values[e].append(aevs[species == e])
            counts[start:stop, e] = (species == e).sum(axis=1)
        start = stop
    first = [np.concatenate([[0], np.cumsum(counts[:, e])]) for e in range(n_elements)]
    return [np.concatenate(v) for v in values], first


def _frame(
    descriptor: Descriptor,
    raw: Sequence[FloatArray],
    first: Sequence[IntArray],
    basis: IntArray,
    known: tuple[FloatArray, FloatArray, Sequence[int]] | None,
    *,
    ranks: Ranks,
) -> tuple[FloatArray, FloatArray]:
    """Centres (E, F) and scales (E,): those known for an element, else those of the basis."""
    none = np.zeros(0, dtype=np.int64)
    chosen = [
        values[np.concatenate([none, *(np.arange(f[i], f[i + 1]) for i in basis)])]
        for values, f in zip(raw, first, strict=True)
    ]
    fitted, scales = standardisation(chosen, ranks.total)
    centres = np.stack(fitted)
    if known is not None:
        earlier = [e for e, z in enumerate(descriptor.elements) if z in known[2]]
        centres[earlier], scales[earlier] = known[0][earlier], known[1][earlier]
    return centres, scales


def _kept(raw: Sequence[FloatArray], centres: FloatArray, ranks: Ranks) -> list[IntArray]:
    """For each element, features that vary or are centred away from zero; at least one."""
    largest = ranks.largest(np.stack([np.abs(values).max(axis=0, initial=0.0) for values in raw]))
    kept = [np.flatnonzero(row) for row in (largest > _VANISHING) | (np.abs(centres) > _VANISHING)]
    return [features if len(features) else np.array([0]) for features in kept]

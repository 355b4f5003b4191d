"""Derivatives of descriptors by positions, kept for the fixed structures of a training set.

With J = ∂x/∂r of standardised descriptors x and g = ∂E/∂x from the networks, forces are F = -Jᵀ g:
a product with a constant, linear in g, so a loss on forces needs one backward pass through the
networks and none through the descriptors. Features that vanish for every atom of an element in the
set have no derivative and are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torchani.neighbors import discard_outside_cutoff, neighbors_to_triples

from hpcal.core.batch import Batch
from hpcal.core.structure import Structure
from hpcal.potentials.descriptors import Descriptor

_AT_ONCE_BYTES: Final = 256_000_000
"""Memory for the derivatives of the structures that are worked on together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Jacobians:
    """Derivatives of n structures.

    Attributes:
        blocks: for each structure and element, (k·F_e, 3N) for its k atoms of the element and the
            F_e features kept, or None without such atoms.
    """

    blocks: tuple[tuple[Tensor | None, ...], ...]

    def forces(self, slopes: Sequence[Tensor], structures: Sequence[int], sizes: Sequence[int]) -> Tensor:
        """(M, 3A) forces on the atoms of some structures, one after the other.

        Args:
            slopes: for each element, (M, n, F_e) ∂E/∂x of the atoms of these structures.
            structures: their indices.
            sizes: their numbers of atoms.
        """
        chosen = [self.blocks[i] for i in structures]
        result: Tensor = _Contraction.apply(chosen, sizes, *slopes)  # type: ignore[no-untyped-call]
        return result


def memory(sizes: Sequence[int], n_features: int, itemsize: int) -> int:
    """Bytes that the derivatives of structures with these sizes take at most: 3 N² F numbers each."""
    return sum(3 * n * n * n_features * itemsize for n in sizes)


def jacobians(
    descriptor: Descriptor, structures: Sequence[Structure], kept: Sequence[Tensor], scales: Sequence[float]
) -> Jacobians:
    """Derivatives of the standardised descriptors.

    Args:
        descriptor: gives the parameters, device and precision.
        kept: for each element, indices of the features that are kept.
        scales: scale of each element.
    """
    blocks: list[tuple[Tensor | None, ...]] = []
    for part in _parts(structures, descriptor):
        dtype, device = descriptor.computer.radial.shifts.dtype, descriptor.table.device
        batch = Batch.of(part, device=device, dtype=dtype)
        full = derivative(descriptor, batch)
        species = descriptor.species(batch)
        for row, structure in enumerate(part):
            n = len(structure)
            of_element: list[Tensor | None] = []
            for e, features in enumerate(kept):
                atoms = (species[row] == e).nonzero().flatten()
                if not len(atoms):
                    of_element.append(None)
                    continue
                own = full[row, atoms, :n][:, :, features]
                flat = own.permute(0, 2, 1, 3).reshape(len(atoms) * len(features), 3 * n)
                of_element.append(flat.div_(scales[e]))
            blocks.append(tuple(of_element))
    return Jacobians(blocks=tuple(blocks))


def _parts(structures: Sequence[Structure], descriptor: Descriptor) -> Iterator[list[Structure]]:
    """Runs of structures whose derivatives, padded to the largest, fit the memory of a step."""
    part: list[Structure] = []
    for structure in structures:
        width = max([len(structure), *(len(s) for s in part)])
        if part and memory([width] * (len(part) + 1), descriptor.length, 8) > _AT_ONCE_BYTES:
            yield part
            part = []
        part.append(structure)
    if part:
        yield part


def derivative(descriptor: Descriptor, batch: Batch) -> Tensor:
    """(B, N, N, F, 3) derivative of the AEV of each atom (second) by each position (third).

    Written out term by term; periodic images move with their atom.
    """
    with torch.no_grad():
        neighbors, _ = descriptor.neighbors(batch)
        rows, width = batch.numbers.shape
        species = descriptor.species(batch).flatten()
        radial = _radial(descriptor, neighbors, species, width)
        near = discard_outside_cutoff(neighbors, descriptor.settings.angular_cutoff)
        angular = _angular(descriptor, near, species, width)
        shape = (rows, width, width, -1, 3)
        return torch.cat([radial.view(shape), angular.view(shape)], dim=3)


def _radial(descriptor: Descriptor, neighbors: Any, species: Tensor, width: int) -> Tensor:
    """(B·N·N, E·R·3) derivative of radial features, by centre and moved atom."""
    term, n_elements = descriptor.computer.radial, len(descriptor.elements)
    d = neighbors.distances.unsqueeze(1)
    cutoff, slope = _cutoff(d, term.cutoff)
    x = d - term.shifts
    values = 0.25 * torch.exp(-term.eta * x * x) * (slope - 2.0 * term.eta * x * cutoff)
    unit = neighbors.diff_vectors / d
    push: Tensor = (values.unsqueeze(2) * unit.unsqueeze(1)).flatten(1)
    out: Tensor = push.new_zeros((len(species) * width * n_elements, push.shape[1]))
    i, j = neighbors.indices
    for centre, other, sign in ((i, j, 1.0), (j, i, -1.0)):
        by_centre = _slot(centre, centre, width, n_elements, species[other])
        by_other = _slot(centre, other, width, n_elements, species[other])
        out.index_add_(0, by_centre, push, alpha=sign).index_add_(0, by_other, push, alpha=-sign)
    return out.view(len(species) * width, -1)


def _angular(descriptor: Descriptor, near: Any, species: Tensor, width: int) -> Tensor:
    """(B·N·N, G·A·3) derivative of angular features, by centre and moved atom."""
    term, groups = descriptor.computer.angular, descriptor.computer.num_species_pairs
    features = term.num_feats * 3
    out: Tensor = near.distances.new_zeros((len(species) * width * groups, features))
    if near.distances.numel() == 0:
        return out.view(len(species) * width, -1)
    triples = neighbors_to_triples(near)
    pairs = near.indices[:, triples.side_idxs]
    ends = torch.where(triples.diff_signs == 1, pairs[1], pairs[0])
    group = descriptor.computer.triu_index[species[ends[0]], species[ends[1]]]
    by_first, by_second = _triple_slopes(term, triples)
    centre = triples.central_idxs
    here = _slot(centre, centre, width, groups, group)
    for end, push in ((ends[0], by_first), (ends[1], by_second)):
        out.index_add_(0, here, push)
        out.index_add_(0, _slot(centre, end, width, groups, group), push, alpha=-1.0)
    return out.view(len(species) * width, -1)


def _triple_slopes(term: Any, triples: Any) -> tuple[Tensor, Tensor]:
    """(T, A·3) derivatives of the terms of each triple by its two vectors, end to centre."""
    (d1, d2), (v1, v2) = triples.distances, triples.diff_vectors
    u1, u2 = v1 / d1.unsqueeze(1), v2 / d2.unsqueeze(1)
    cosine = (u1 * u2).sum(dim=1, keepdim=True)
    theta = torch.acos(0.95 * cosine) - term.sections
    half = 0.5 * (1.0 + torch.cos(theta))
    angle = 2.0 * half.pow(term.zeta)
    by_cosine = term.zeta * half.pow(term.zeta - 1.0) * torch.sin(theta)
    by_cosine = by_cosine * 0.95 / torch.sqrt(1.0 - (0.95 * cosine) ** 2)
    x = 0.5 * (d1 + d2).unsqueeze(1) - term.shifts
    shell = torch.exp(-term.eta * x * x)
    (f1, s1), (f2, s2) = (_cutoff(d.unsqueeze(1), term.cutoff) for d in (d1, d2))
    weight, by_mean = f1 * f2, -term.eta * x * shell

    def product(radial: Tensor, angular: Tensor) -> Tensor:
        return (radial.unsqueeze(2) * angular.unsqueeze(1)).flatten(1).unsqueeze(2)

    bend = product(shell * weight, by_cosine)
    slopes = []
    for own, other, d, stretch in (
        (u1, u2, d1, by_mean * weight + shell * s1 * f2),
        (u2, u1, d2, by_mean * weight + shell * s2 * f1),
    ):
        turn = ((other - cosine * own) / d.unsqueeze(1)).unsqueeze(1)
        slopes.append((product(stretch, angle) * own.unsqueeze(1) + bend * turn).flatten(1))
    return slopes[0], slopes[1]


def _slot(centre: Tensor, moved: Tensor, width: int, kinds: int, kind: Tensor) -> Tensor:
    """Row of (centre, moved atom, element or pair of elements); atoms are indices into the batch."""
    return (centre * width + moved % width) * kinds + kind


def _cutoff(d: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Cosine cutoff function and its derivative within the cutoff."""
    phase = d * (math.pi / radius)
    return 0.5 * torch.cos(phase) + 0.5, torch.sin(phase) * (-0.5 * math.pi / radius)


class _Contraction(torch.autograd.Function):
    """F = -Jᵀ g for each structure; blocks are used where they lie, without copies."""

    @staticmethod
    def forward(
        ctx: Any, blocks: Sequence[Sequence[Tensor | None]], sizes: Sequence[int], *slopes: Tensor
    ) -> Tensor:
        members = len(slopes[0])
        out = slopes[0].new_zeros((members, 3 * sum(sizes)))
        for columns, e, atoms, block in _walk(blocks, sizes, slopes):
            gradient = slopes[e][:, atoms].reshape(members, -1)
            out[:, columns].addmm_(gradient, block, alpha=-1.0)
        ctx.blocks, ctx.sizes, ctx.shapes = blocks, sizes, [s.shape for s in slopes]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (by_force,) = gradients
        by_slope = [by_force.new_empty(shape) for shape in ctx.shapes]
        for columns, e, atoms, block in _walk(ctx.blocks, ctx.sizes, by_slope):
            own = by_slope[e][:, atoms]
            product = torch.mm(by_force[:, columns], block.T).neg_()
            own.copy_(product.view(own.shape))
        return (None, None, *by_slope)


def _walk(
    blocks: Sequence[Sequence[Tensor | None]], sizes: Sequence[int], slopes: Sequence[Tensor]
) -> Iterator[tuple[slice, int, slice, Tensor]]:
    """Force columns, element, atoms of the element and block, structure after structure."""
    column, atom = 0, [0] * len(slopes)
    for of_element, size in zip(blocks, sizes, strict=True):
        columns = slice(column, column + 3 * size)
        column = columns.stop
        for e, block in enumerate(of_element):
            if block is not None:
                count = block.shape[0] // slopes[e].shape[2]
                yield columns, e, slice(atom[e], atom[e] + count), block
                atom[e] += count

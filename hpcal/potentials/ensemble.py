"""A trained ANI ensemble: descriptors once, then one batched product a layer for all members."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from hpcal.core.batch import Batch
from hpcal.core.protocols import Capabilities
from hpcal.potentials.dense import MAX_ATOMS, DenseAEV, Layout, feature_order, layout
from hpcal.potentials.descriptors import NO_SPECIES, Descriptor
from hpcal.potentials.differentiable import DifferentiableEnsemble
from hpcal.potentials.member import KIND, Frame, Member
from hpcal.potentials.networks import Network, atomic_energies, energies_and_slopes, stacked
from hpcal.potentials.states import State, of_batch

MIN_COPIES: Final = 6
"""Replicas of a molecule from which they are worth a dense pass of their own."""
_PLANS: Final = 16
_LAYOUTS: Final = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class _Group:
    """Copies of one molecule: their rows in the batch (None: all of them) and its layout."""

    rows: Tensor | None
    molecule: Layout


@dataclass(frozen=True, kw_only=True, eq=False)
class _Plan:
    """How a batch is evaluated: dense groups, and the rows (None: all) that go by neighbour lists."""

    groups: tuple[_Group, ...]
    others: Tensor | None
    by_lists: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class _Block:
    """Atoms of one evaluation of descriptors.

    Attributes:
        leaf: (B', N', 3) positions that the descriptors derive from.
        elements: for each element with atoms here, its place, (F, n) inputs of the networks, (n,)
            rows in the batch.
        networks: weights for this order of the features.
        rows: (B',) rows of the batch, or None for all.
        order: (N',) atoms of the batch that the leaf holds, or None for all.
    """

    leaf: Tensor
    elements: tuple[tuple[int, Tensor, Tensor], ...]
    networks: tuple[Network, ...]
    rows: Tensor | None
    order: Tensor | None


class ANIEnsemble(DifferentiableEnsemble):
    """M members that share descriptors; see ``DifferentiablePotential``."""

    def __init__(self, members: Sequence[Member], *, device: torch.device, dtype: torch.dtype) -> None:
        trained = frozenset.intersection(*(frozenset(m.frame.trained) for m in members))
        super().__init__(KIND, trained, len(members), device, dtype)
        states = [frozenset(m.frame.state.seen if m.frame.state else ()) for m in members]
        self._states = frozenset.intersection(*states)
        self.frame: Frame = members[0].frame
        n_elements = len(self.frame.elements)
        self._descriptor = Descriptor(self.frame.aev, self.frame.elements, device=device, dtype=dtype)
        self._dense = DenseAEV(self.frame.aev, n_elements, device=device, dtype=dtype)
        order = feature_order(self.frame.aev, n_elements).numpy()
        self._networks = tuple(_network(members, e, device, dtype) for e in range(n_elements))
        self._dense_networks = tuple(_network(members, e, device, dtype, order) for e in range(n_elements))
        # The constant of the first member is common; what others differ by is a member's own.
        constants = np.stack([_constants(m.frame) for m in members])
        self._constants = torch.tensor(constants[0], dtype=torch.float64, device=device)
        own = constants - constants[0]
        self._own = torch.tensor(own, dtype=torch.float64, device=device) if own.any() else None
        self._centres = torch.tensor(self.frame.centres, dtype=dtype, device=device)
        self._scales = torch.tensor(self.frame.scales, dtype=dtype, device=device)
        self._plans: OrderedDict[tuple[bytes, ...], _Plan] = OrderedDict()
        self._layouts: OrderedDict[tuple[int, ...], Layout] = OrderedDict()
        self._last: tuple[Tensor, Tensor | None, _Plan] | None = None

    def capabilities(self) -> Capabilities:
        """What it can do, and the elements that it was trained on."""
        return replace(super().capabilities(), charge_aware=self.frame.state is not None)

    @property
    def states(self) -> frozenset[State]:
        """Charges and multiplicities that all members saw in training; none if blind to them.

        Other states are extrapolated, and members differ on them.
        """
        return self._states

    def features(self, batch: Batch) -> Tensor:
        """(B, N, F) standardised AEVs: a centre for each element, one scale for all its features.

        Where charge and spin are known, two more: the atom's share of each.
        """
        batch = self._taken(batch)
        with torch.no_grad():
            species = self._descriptor.species(batch)
            place = species.clamp(min=0)
            values = (self._descriptor(batch) - self._centres[place]) / self._scales[place].unsqueeze(2)
            if self.frame.state is not None:
                shares = (self._shares(batch).T / self.frame.state.scale).unsqueeze(1)
                values = torch.cat([values, shares.expand(-1, values.shape[1], -1)], dim=2)
            return values * (species != NO_SPECIES).unsqueeze(2)

    def member_forces(self, batch: Batch) -> Tensor:
        """(M, B, N, 3) force of each member, eV/Å.

        The networks are differentiated once for all members; only descriptors are per member.
        """
        batch = self._taken(batch)
        forces = batch.positions.new_zeros((self.n_members, *batch.positions.shape))
        for block in self._blocks(self._leaf(batch), cut=True):
            with torch.no_grad():
                slopes = [
                    energies_and_slopes(block.networks[e], x, self.frame.activation)[1]
                    for e, x, _ in block.elements
                ]
            descriptors = [x for _, x, _ in block.elements]
            for m in range(self.n_members):
                gradient = _through(descriptors, [s[m].T for s in slopes], block.leaf)
                _place(forces[m], -gradient, block)
        return forces

    def _energies(self, batch: Batch) -> Tensor:
        total = torch.zeros((self.n_members, len(batch)), dtype=torch.float64, device=self.device)
        for block in self._blocks(batch):
            for e, x, rows in block.elements:
                atoms = atomic_energies(block.networks[e], x, self.frame.activation).double()
                if block.order is not None and block.rows is None:
                    total = total + atoms.view(self.n_members, -1, len(batch)).sum(dim=1)
                else:
                    total = total.index_add(1, rows, atoms)
        if self._own is not None:
            total = total + self._own @ self._counts(batch).T
        return total

    def _shift(self, batch: Batch) -> Tensor:
        return self._counts(batch) @ self._constants

    def _counts(self, batch: Batch) -> Tensor:
        """(B, E) atoms of each element, float64; then charge and unpaired electrons if known."""
        species = self._descriptor.species(batch)
        places = torch.arange(len(self.frame.elements), device=self.device)
        counts = (species.unsqueeze(2) == places).sum(dim=1).double()
        if self.frame.state is None:
            return counts
        return torch.cat([counts, of_batch(batch).to(self.device)], dim=1)

    def _shares(self, batch: Batch) -> Tensor:
        """(2, B) charge and unpaired electrons of a structure, divided among its atoms."""
        shares: Tensor = (of_batch(batch).to(self.device) / batch.n_atoms.unsqueeze(1)).T
        return shares.to(self.dtype).contiguous()

    def _blocks(self, batch: Batch, *, cut: bool = False) -> Iterator[_Block]:
        """Descriptors of the batch, differentiable in its positions.

        Args:
            cut: whether each block gets a leaf of its own, so that it can be differentiated alone.
        """
        plan = self._plan(batch)
        shares = None if self.frame.state is None else self._shares(batch)
        for group in plan.groups:
            rows = group.rows
            positions = batch.positions if rows is None else batch.positions[rows]
            positions = positions[:, group.molecule.order]
            yield self._dense_block(_fresh(positions) if cut else positions, group, shares)
        if plan.by_lists:
            part = batch if plan.others is None else batch.rows(plan.others)
            part = part.at(_fresh(part.positions)) if cut else part
            yield self._list_block(part, plan.others, shares)

    def _dense_block(self, positions: Tensor, group: _Group, shares: Tensor | None) -> _Block:
        with torch.enable_grad() if positions.requires_grad else torch.no_grad():
            aevs = self._dense(positions, group.molecule)
        copies = len(positions)
        rows = torch.arange(copies, device=self.device) if group.rows is None else group.rows
        parts, start = [], 0
        for e, count in enumerate(group.molecule.counts):
            if count:
                x = aevs[:, start : start + count].reshape(len(aevs), -1)
                own = rows.repeat(count)
                parts.append((e, _inputs(x, shares, own), own))
                start += count
        return _Block(
            leaf=positions,
            elements=tuple(parts),
            networks=self._dense_networks,
            rows=group.rows,
            order=group.molecule.order,
        )

    def _list_block(self, batch: Batch, rows: Tensor | None, shares: Tensor | None) -> _Block:
        with torch.enable_grad() if batch.positions.requires_grad else torch.no_grad():
            aevs = self._descriptor(batch).flatten(0, 1)
            species = self._descriptor.species(batch).flatten()
            width = batch.numbers.shape[1]
            parts = []
            for e in range(len(self.frame.elements)):
                atoms = (species == e).nonzero().flatten()
                if len(atoms):
                    row = atoms // width
                    own = row if rows is None else rows[row]
                    parts.append((e, _inputs(aevs[atoms].T, shares, own), own))
        return _Block(
            leaf=batch.positions, elements=tuple(parts), networks=self._networks, rows=rows, order=None
        )

    def _plan(self, batch: Batch) -> _Plan:
        if self._last is not None and self._last[0] is batch.numbers and self._last[1] is batch.pbc:
            return self._last[2]
        numbers = batch.numbers.cpu().numpy()
        periodic = np.zeros(len(batch), dtype=bool)
        if batch.pbc is not None:
            periodic = batch.pbc.any(dim=1).cpu().numpy()
        key = (numbers.tobytes(), bytes(str(numbers.shape), "ascii"), periodic.tobytes())
        if key not in self._plans:
            self._plans[key] = self._made_plan(numbers, periodic)
            while len(self._plans) > _PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        self._last = (batch.numbers, batch.pbc, self._plans[key])
        return self._plans[key]

    def _made_plan(self, numbers: np.ndarray, periodic: np.ndarray) -> _Plan:
        alike: OrderedDict[tuple[int, ...], list[int]] = OrderedDict()
        others: list[int] = []
        for row, values in enumerate(numbers):
            # The dense pass takes molecules whose padding is at the end.
            n = int((values != 0).sum())
            if periodic[row] or n > MAX_ATOMS or (values[:n] == 0).any():
                others.append(row)
            else:
                alike.setdefault(tuple(values[:n].tolist()), []).append(row)
        groups = []
        for molecule, rows in alike.items():
            whole = len(rows) == len(numbers)
            if whole or len(rows) >= MIN_COPIES:
                index = None if whole else torch.tensor(rows, device=self.device)
                groups.append(_Group(rows=index, molecule=self._layout(molecule)))
            else:
                others.extend(rows)
        everything = len(others) == len(numbers)
        return _Plan(
            groups=tuple(groups),
            others=None if everything else torch.tensor(sorted(others), device=self.device),
            by_lists=bool(others),
        )

    def _layout(self, numbers: tuple[int, ...]) -> Layout:
        if numbers not in self._layouts:
            species = [self.frame.elements.index(z) for z in numbers]
            self._layouts[numbers] = layout(
                species, len(self.frame.elements), device=self.device, dtype=self.dtype
            )
            while len(self._layouts) > _LAYOUTS:
                self._layouts.popitem(last=False)
        self._layouts.move_to_end(numbers)
        return self._layouts[numbers]


def _network(
    members: Sequence[Member],
    element: int,
    device: torch.device,
    dtype: torch.dtype,
    order: np.ndarray | None = None,
) -> Network:
    """Stacked layers that take raw inputs: the standardisation is part of the first layer.

    Args:
        order: of the features; all else that the networks take follows as it is.
    """
    layers = []
    for member in members:
        (weight, bias), rest = member.networks[element][0], member.networks[element][1:]
        frame = member.frame
        n = frame.n_features
        scaled = weight.astype(np.float64) / frame.input_scales(element)
        moved = bias.astype(np.float64) - scaled[:, :n] @ frame.centres[element]
        scaled = scaled if order is None else np.hstack([scaled[:, order], scaled[:, n:]])
        layers.append(
            [
                (torch.tensor(w, device=device, dtype=dtype), torch.tensor(b, device=device, dtype=dtype))
                for w, b in ((scaled, moved), *rest)
            ]
        )
    return stacked(layers)


def _constants(frame: Frame) -> np.ndarray:
    """(E,) constant energies, then those of charge and spin if known."""
    return (
        frame.self_energies if frame.state is None else np.append(frame.self_energies, frame.state.energies)
    )


def _inputs(x: Tensor, shares: Tensor | None, rows: Tensor) -> Tensor:
    """(F, n) descriptors, with the shares of their structures below them if the networks take them."""
    return x if shares is None else torch.cat([x, shares[:, rows]])


def _fresh(positions: Tensor) -> Tensor:
    return positions.detach().requires_grad_()


def _through(descriptors: Sequence[Tensor], slopes: Sequence[Tensor], leaf: Tensor) -> Tensor:
    """Derivative by positions from the derivative by descriptors."""
    if not any(x.requires_grad for x in descriptors):
        return torch.zeros_like(leaf)
    (gradient,) = torch.autograd.grad(descriptors, leaf, grad_outputs=slopes, retain_graph=True)
    return gradient


def _place(forces: Tensor, values: Tensor, block: _Block) -> None:
    """Writes the forces of a block to their rows and atoms of the batch."""
    rows = slice(None) if block.rows is None else block.rows
    if block.order is None:
        forces[rows] = values
        return
    ordered = torch.zeros_like(forces[rows])
    ordered[:, block.order] = values
    forces[rows] = ordered

"""What every potential with differentiable member energies offers, given those energies.

With E_m the energy of member m, the mean over members drives the dynamics::

    F = -∂/∂r (1/M) Σ_m E_m        F_biased = -∂/∂r [(1/M) Σ_m E_m + E_bias(E_1 … E_M, r)]
    σ = (1/V) ∂/∂ε (1/M) Σ_m E_m   under the strain r → r + ε r, cell → cell + cell ε
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from torch import Tensor

from hpcal.core.batch import Batch
from hpcal.core.elements import symbol
from hpcal.core.errors import InputError
from hpcal.core.protocols import Bias, Biased, BiasInput, Capabilities
from hpcal.potentials.descriptors import species_table

PROVIDES = frozenset({"energies", "member_forces", "features"})


class DifferentiableEnsemble(ABC):
    """M members on one device in one precision; implements ``DifferentiablePotential``.

    Args:
        name: of the kind, for messages.
        elements: atomic numbers that every member was trained on.
        n_members: M.
    """

    def __init__(
        self, name: str, elements: frozenset[int], n_members: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._name = name
        self._elements = elements
        self._n_members = n_members
        self._device = device
        self._dtype = dtype
        self._known = species_table(sorted(elements), device)
        self._checked: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of positions and forces."""
        return self._dtype

    @property
    def n_members(self) -> int:
        """Number of members."""
        return self._n_members

    def capabilities(self) -> Capabilities:
        """What it can do, and the elements that it was trained on."""
        return Capabilities(differentiable=True, periodic=True, provides=PROVIDES, elements=self._elements)

    @abstractmethod
    def _energies(self, batch: Batch) -> Tensor:
        """(M, B) float64 member energies less ``_shift``, differentiable in positions and cell."""

    @abstractmethod
    def _shift(self, batch: Batch) -> Tensor:
        """(B,) float64 constant that the members share, eV."""

    @abstractmethod
    def features(self, batch: Batch) -> Tensor:
        """(B, N, F) descriptor of each atom; zero at padding."""

    def energies(self, batch: Batch) -> Tensor:
        """(M, B) total energies, eV, float64.

        Raises:
            InputError: an element that the members were not trained on.
        """
        batch = self._taken(batch)
        with torch.no_grad():
            return self._energies(batch) + self._shift(batch)

    def forces(self, batch: Batch) -> Tensor:
        """(B, N, 3) mean force, eV/Å; zero at padding."""
        batch = self._leaf(self._taken(batch))
        with torch.enable_grad():
            mean = self._energies(batch).mean(dim=0).sum()
        return -_gradient(mean, batch.positions)

    def member_forces(self, batch: Batch) -> Tensor:
        """(M, B, N, 3) force of each member, eV/Å; M backward passes."""
        batch = self._leaf(self._taken(batch))
        with torch.enable_grad():
            energies = self._energies(batch).sum(dim=1)
        return torch.stack([-_gradient(energy, batch.positions, keep=True) for energy in energies])

    def stress(self, batch: Batch) -> Tensor:
        """(B, 3, 3) mean stress, eV/Å³, positive in tension.

        Raises:
            InputError: a structure without a cell, which has no volume.
        """
        batch = self._taken(batch)
        volumes = None if batch.cell is None else torch.linalg.det(batch.cell.double()).abs()
        if batch.cell is None or volumes is None or not bool((volumes > 0).all()):
            raise InputError(f"stress of potential {self._name!r} needs a structure with three cell vectors")
        strain = batch.positions.new_zeros((len(batch), 3, 3), requires_grad=True)
        with torch.enable_grad():
            symmetric = (strain + strain.transpose(1, 2)) / 2
            strained = replace(
                batch,
                positions=batch.positions + torch.bmm(batch.positions, symmetric),
                cell=batch.cell + torch.bmm(batch.cell, symmetric),
            )
            mean = self._energies(strained).mean(dim=0).sum()
        stress: Tensor = _gradient(mean, strain) / volumes.to(self._dtype).view(-1, 1, 1)
        return stress

    def biased(self, batch: Batch, bias: Bias | None, time_fs: Tensor) -> Biased:
        """Energy and force of mean plus bias, in one backward pass."""
        batch = self._leaf(self._taken(batch))
        with torch.enable_grad():
            energies = self._energies(batch)
            total = energies.mean(dim=0)
            added = torch.zeros_like(total)
            if bias is not None:
                n_atoms = batch.n_atoms.to(energies.dtype)
                added = bias.energy(
                    BiasInput(energies=energies, batch=batch, n_atoms=n_atoms, time_fs=time_fs)
                )
                total = total + added
            forces = -_gradient(total.sum(), batch.positions)
        return Biased(energies=energies.detach() + self._shift(batch), bias=added.detach(), forces=forces)

    def _taken(self, batch: Batch) -> Batch:
        """The batch on this device and in this precision, its elements checked."""
        batch = replace(
            batch,
            numbers=batch.numbers.to(self._device),
            positions=batch.positions.detach().to(self._device, self._dtype),
            cell=None if batch.cell is None else batch.cell.detach().to(self._device, self._dtype),
            pbc=None if batch.pbc is None else batch.pbc.to(self._device),
        )
        # Dynamics evaluates the same atoms at every step: one look at them is enough.
        if batch.numbers is not self._checked:
            missing = batch.numbers[(self._known[batch.numbers] < 0) & batch.mask].tolist()
            if missing:
                raise InputError(
                    f"potential {self._name!r} was trained on {_names(self._elements)} and cannot treat "
                    f"{_names(set(missing))}: label structures with these elements and train again"
                )
            self._checked = batch.numbers
        return batch

    @staticmethod
    def _leaf(batch: Batch) -> Batch:
        return batch.at(batch.positions.detach().requires_grad_())


def _names(numbers: frozenset[int] | set[int]) -> str:
    return ", ".join(symbol(z) for z in sorted(numbers))


def _gradient(value: Tensor, leaf: Tensor, *, keep: bool = False) -> Tensor:
    """dvalue/dleaf; zero where it does not depend on it, as for atoms out of each other's reach."""
    if not value.requires_grad:
        return torch.zeros_like(leaf)
    (gradient,) = torch.autograd.grad(value, leaf, retain_graph=keep, allow_unused=True)
    return torch.zeros_like(leaf) if gradient is None else gradient

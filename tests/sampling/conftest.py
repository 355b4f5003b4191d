"""Model systems whose ensembles, energies and forces are known in closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

from hpcal.core.batch import Batch
from hpcal.core.protocols import Bias, Biased, BiasInput, Capabilities
from hpcal.core.structure import Structure
from hpcal.core.walker import Scores, Walker

SPACING = 3.0


@dataclass
class ModelEnsemble:
    """M members whose energies are written in torch; forces by automatic differentiation."""

    factors: tuple[float, ...] = (0.97, 1.0, 1.03)
    dtype: torch.dtype = torch.float64
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    calls: int = 0

    @property
    def n_members(self) -> int:
        return len(self.factors)

    def member_energies(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    def capabilities(self) -> Capabilities:
        return Capabilities(differentiable=True, provides=frozenset({"energies", "member_forces"}))

    def energies(self, batch: Batch) -> Tensor:
        return self.member_energies(batch).to(torch.float64)

    def _leaf(self, batch: Batch) -> Batch:
        assert batch.positions.dtype == self.dtype
        return batch.at(batch.positions.detach().requires_grad_(True))

    def forces(self, batch: Batch) -> Tensor:
        self.calls += 1
        leaf = self._leaf(batch)
        (gradient,) = torch.autograd.grad(self.member_energies(leaf).mean(dim=0).sum(), leaf.positions)
        return -gradient

    def member_forces(self, batch: Batch) -> Tensor:
        leaf = self._leaf(batch)
        energies = self.member_energies(leaf)
        return torch.stack(
            [-torch.autograd.grad(e.sum(), leaf.positions, retain_graph=True)[0] for e in energies]
        )

    def stress(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    def features(self, batch: Batch) -> Tensor:
        raise NotImplementedError

    def biased(self, batch: Batch, bias: Bias | None, time_fs: Tensor) -> Biased:
        self.calls += 1
        leaf = self._leaf(batch)
        energies = self.member_energies(leaf)
        n_atoms = batch.n_atoms.to(energies.dtype)
        total = energies.mean(dim=0)
        extra = torch.zeros_like(total)
        if bias is not None:
            extra = bias.energy(BiasInput(energies=energies, batch=leaf, n_atoms=n_atoms, time_fs=time_fs))
        (gradient,) = torch.autograd.grad((total + extra).sum(), leaf.positions)
        return Biased(energies=energies.detach(), bias=extra.detach(), forces=-gradient.to(self.dtype))


@dataclass
class Wells(ModelEnsemble):
    """Each atom in a harmonic well of its own at (3 Å × index, 0, 0), without interaction."""

    stiffness: float = 5.0

    def member_energies(self, batch: Batch) -> Tensor:
        sites = torch.zeros(batch.positions.shape[1:], dtype=self.dtype)
        sites[:, 0] = SPACING * torch.arange(len(sites))
        squared = ((batch.positions - sites) ** 2).sum(dim=2) * batch.mask
        factors = torch.tensor(self.factors, dtype=self.dtype)
        return 0.5 * self.stiffness * factors[:, None] * squared.sum(dim=1)


@dataclass
class Springs(ModelEnsemble):
    """Morse springs between all pairs: D (1 − exp(−a (r − r0)))², r0 by the elements of the pair."""

    depth: float = 4.0
    width: float = 1.6
    bond_lengths: dict[tuple[int, int], float] = field(
        default_factory=lambda: {(1, 8): 0.96, (1, 1): 1.52, (6, 8): 1.16, (8, 8): 2.32, (1, 7): 1.0}
    )

    def member_energies(self, batch: Batch) -> Tensor:
        i, j = torch.triu_indices(batch.numbers.shape[1], batch.numbers.shape[1], offset=1)
        pairs = batch.mask[:, i] & batch.mask[:, j]
        rest = torch.ones(pairs.shape, dtype=self.dtype)
        for (a, b), length in self.bond_lengths.items():
            low = torch.minimum(batch.numbers[:, i], batch.numbers[:, j])
            high = torch.maximum(batch.numbers[:, i], batch.numbers[:, j])
            rest = torch.where((low == a) & (high == b), length, rest)
        difference = batch.positions[:, i] - batch.positions[:, j]
        # Pairs of padding are at distance zero, where the root has no derivative.
        squared = torch.where(pairs, (difference**2).sum(dim=2), 1.0)
        stretch = squared.sqrt() - rest
        widths = self.width * torch.tensor(self.factors, dtype=self.dtype)[:, None, None]
        return (self.depth * (1.0 - torch.exp(-widths * stretch)) ** 2 * pairs).sum(dim=2)


@dataclass
class StdScorer:
    """Energy standard deviation of an ensemble per square root of the number of atoms."""

    potential: ModelEnsemble
    threshold: float = 1e9
    batches: list[int] = field(default_factory=list)

    def trigger(self, batch: Batch) -> Tensor:
        self.batches.append(len(batch))
        return self.potential.energies(batch).std(dim=0, correction=0) / batch.n_atoms.sqrt()

    def scores(self, batch: Batch) -> list[Scores]:
        values = self.potential.energies(batch).std(dim=0, correction=0) / batch.n_atoms.sqrt()
        return [Scores(energy_std=float(v), force_std=0.0, trigger=float(v)) for v in values]


def make_water() -> Structure:
    return Structure(
        numbers=np.array([8, 1, 1]), positions=np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    )


def make_sites(n: int, number: int = 7) -> Structure:
    positions = np.zeros((n, 3))
    positions[:, 0] = SPACING * np.arange(n)
    return Structure(numbers=np.full(n, number), positions=positions, multiplicity=1 + n % 2)


def make_walker(structure: Structure, number: int = 0, **changes: object) -> Walker:
    values: dict[str, object] = {
        "id": number,
        "structure": structure,
        "steps_full": 40,
        "stream": 1000 + number,
        "temperature": 300.0,
    }
    return Walker(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def wells() -> type[Wells]:
    return Wells


@pytest.fixture
def springs() -> type[Springs]:
    return Springs


@pytest.fixture
def std_scorer() -> type[StdScorer]:
    return StdScorer


@pytest.fixture
def water() -> Structure:
    return make_water()


@pytest.fixture
def sites() -> Callable[..., Structure]:
    return make_sites


@pytest.fixture
def walker() -> Callable[..., Walker]:
    return make_walker

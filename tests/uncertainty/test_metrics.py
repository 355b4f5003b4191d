from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcal.core.batch import Batch
from hpcal.core.plugins import Group, find
from hpcal.core.protocols import Capabilities
from hpcal.core.structure import Structure
from hpcal.uncertainty.energy import EnergyDeviation, EnergyStd
from hpcal.uncertainty.force import ForceDeviation, ForceStd
from hpcal.uncertainty.scorer import EnsembleScorer


@dataclass
class Table:
    """An ensemble that answers from tables: (M, B) energies and (M, B, N, 3) forces."""

    table: np.ndarray
    force_table: np.ndarray
    dtype: torch.dtype = torch.float64
    provides: frozenset[str] = frozenset({"energies", "member_forces"})
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    asked: list[str] = field(default_factory=list)

    @property
    def n_members(self):
        return len(self.table)

    def capabilities(self):
        return Capabilities(provides=self.provides)

    def energies(self, batch):
        assert batch.positions.dtype == self.dtype
        self.asked.append("energies")
        return torch.tensor(self.table)

    def member_forces(self, batch):
        assert batch.positions.dtype == self.dtype
        self.asked.append("member_forces")
        return torch.tensor(self.force_table)


def make_batch(sizes):
    rng = np.random.default_rng(0)
    structures = [
        Structure(numbers=[8] * n, positions=rng.normal(size=(n, 3)), multiplicity=1) for n in sizes
    ]
    return Batch.of(structures, dtype=torch.float64)


def make(sizes=(3, 5, 2), members=4, seed=0, **changes):
    rng = np.random.default_rng(seed)
    energies = rng.normal(-2000, 0.3, (members, len(sizes)))
    forces = rng.normal(0, 1, (members, len(sizes), max(sizes), 3))
    for b, n in enumerate(sizes):
        forces[:, b, n:] = 0.0
    return make_batch(sizes), Table(energies, forces, **changes)


def by_hand(potential, sizes):
    """The four metrics atom by atom, as their equations are written."""
    e, f = potential.table, potential.force_table
    rows = []
    for b, n in enumerate(sizes):
        mean = sum(e[:, b]) / len(e)
        std = (sum((x - mean) ** 2 for x in e[:, b]) / len(e)) ** 0.5 / n**0.5
        dev = max(abs(x - mean) for x in e[:, b])
        atoms_std, atoms_dev = [], []
        for i in range(n):
            centre = f[:, b, i].mean(axis=0)
            lengths = [np.linalg.norm(v - centre) for v in f[:, b, i]]
            atoms_std.append((sum(x**2 for x in lengths) / len(f)) ** 0.5)
            atoms_dev.append(max(lengths))
        rows.append([std, dev, max(atoms_std), max(atoms_dev)])
    return np.array(rows).T


METRICS = (EnergyStd, EnergyDeviation, ForceStd, ForceDeviation)


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    members=st.integers(2, 6),
    seed=st.integers(0, 99),
)
def test_metrics_are_those_of_their_equations(sizes, members, seed):
    batch, potential = make(tuple(sizes), members, seed)
    for metric, expected in zip(METRICS, by_hand(potential, sizes), strict=True):
        np.testing.assert_allclose(metric().score(batch, potential).numpy(), expected, rtol=1e-9)


def test_what_stands_at_padding_does_not_count():
    batch, potential = make()
    clean = [m().score(batch, potential).tolist() for m in (ForceStd, ForceDeviation)]
    potential.force_table[:, 0, 3:] = np.random.default_rng(1).normal(0, 100, (4, 2, 3))
    assert clean == [m().score(batch, potential).tolist() for m in (ForceStd, ForceDeviation)]


def test_members_that_agree_have_no_uncertainty():
    batch, potential = make()
    potential.table[:] = potential.table[0]
    potential.force_table[:] = potential.force_table[0]
    for metric in METRICS:
        np.testing.assert_allclose(metric().score(batch, potential).numpy(), 0, atol=1e-12)


def test_a_spread_far_below_the_energy_keeps_its_digits():
    batch, potential = make()
    potential.table[:] = -1e5 + 1e-6 * np.array([1.0, -1.0, 1.0, -1.0])[:, None]
    found = EnergyStd().score(batch, potential).numpy() * np.sqrt([3, 5, 2])
    np.testing.assert_allclose(found, 1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("energy_std", EnergyStd),
        ("energy_dev", EnergyDeviation),
        ("force_std", ForceStd),
        ("force_dev", ForceDeviation),
    ],
)
def test_metrics_are_found_by_name_and_say_what_they_need(name, cls):
    metric = find(Group.METRICS, name)
    assert metric is cls
    assert metric.requires == {"energies" if "energy" in name else "member_forces"}
    assert metric.floor > 0
    batch, potential = make()
    metric().score(batch, potential)
    assert set(potential.asked) == metric.requires


@pytest.mark.parametrize("metric", METRICS)
def test_the_scorer_gives_all_scores_and_asks_once(metric):
    batch, potential = make()
    scorer = EnsembleScorer(potential=potential, metric=metric(), threshold=0.5)
    scores = scorer.scores(batch)
    assert sorted(potential.asked) == ["energies", "member_forces"]
    std, _, force, _ = by_hand(potential, (3, 5, 2))
    np.testing.assert_allclose([s.energy_std for s in scores], std)
    np.testing.assert_allclose([s.force_std for s in scores], force)
    assert [s.trigger for s in scores] == scorer.trigger(batch).tolist()
    assert [s.trigger for s in scores] == metric().score(batch, potential).tolist()


def test_the_scorer_speaks_the_precision_of_its_ensemble():
    batch, potential = make(dtype=torch.float32)
    scorer = EnsembleScorer(potential=potential, metric=EnergyStd(), threshold=0.5)
    assert batch.positions.dtype == torch.float64
    assert len(scorer.scores(batch)) == 3
    assert scorer.threshold == 0.5


def test_what_a_potential_cannot_give_is_no_number():
    batch, potential = make(provides=frozenset({"energies"}))
    scores = EnsembleScorer(potential=potential, metric=EnergyStd(), threshold=0.5).scores(batch)
    assert potential.asked == ["energies"]
    assert all(np.isnan(s.force_std) and np.isfinite(s.energy_std) for s in scores)

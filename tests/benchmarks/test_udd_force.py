"""Batched UDD forces of an ensemble against ASE calculators, member after member, in one run.

The comparison is what a user of torchani has today: one replica, one ASE calculator of torchani a
member with the very same weights, energies and forces of each, the bias put together from them::

    F = -∂/∂r [mean E + E_bias(var E)] = mean F_m + (∂E_bias/∂ρ²) (2/NM) Σ_m (E_m - mean E) F_m

Run with ``pytest -m benchmark -s tests/benchmarks``.
"""

from __future__ import annotations

import math
import statistics
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms

from hpcal.core.batch import Batch
from hpcal.core.dataset import Dataset
from hpcal.core.deadline import Deadline
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.protocols import MemberSpec
from hpcal.core.structure import Structure
from hpcal.potentials import descriptors
from hpcal.potentials.ani import ANI
from hpcal.potentials.member import Member

import torchani.arch  # isort: skip - after hpcal, which silences its warning
from torchani.nn import ANINetworks, AtomicNetwork  # isort: skip
from torchani.sae import SelfEnergy  # isort: skip

MEMBERS, REPLICAS = 8, 128
HEIGHT, WIDTH = 1.0, 0.05
SYMBOLS = ("H", "C", "N", "O")


class UDDBias:
    """A [exp(-ρ²/B²) - 1], ρ² the variance of the member energies per atom."""

    def energy(self, at):
        rho2 = (at.energies - at.energies.mean(dim=0)).square().mean(dim=0) / at.n_atoms
        return HEIGHT * (torch.exp(-rho2 / WIDTH**2) - 1.0)


def glycine() -> list[Structure]:
    from rdkit import Chem
    from rdkit.Chem import AllChem

    molecule = Chem.AddHs(Chem.MolFromSmiles("NCC(=O)O"))
    AllChem.EmbedMolecule(molecule, randomSeed=7)
    numbers = [a.GetAtomicNum() for a in molecule.GetAtoms()]
    place, rng = molecule.GetConformer().GetPositions(), np.random.default_rng(0)
    return [
        Structure(numbers=numbers, positions=place + rng.normal(0, 0.05, place.shape))
        for _ in range(REPLICAS)
    ]


def members(structures: list[Structure], folder: Path) -> list[Path]:
    """Members after one epoch on made-up labels: speed does not depend on the weights."""
    rng, level = np.random.default_rng(1), LevelOfTheory(code="none", version="0", method="random")
    some = structures[:32]
    labels = [Label(energy=rng.normal(), forces=rng.normal(size=(10, 3)), level=level) for _ in some]
    specs = [MemberSpec(index=i, seed=i) for i in range(MEMBERS)]
    kind = ANI(ANI.Settings(epochs=1, members=MEMBERS, device="cpu"))
    dataset = Dataset.of(some, labels)
    results = kind.trainer(dataset.elements, 0).fit(dataset, specs, Deadline(), folder)
    return [Path(r.path) for r in results]


def torchani_calculator(path: Path):
    """torchani's own ASE calculator of a member, its weights copied."""
    from ase.units import Hartree

    member = Member.read(path)
    frame, networks = member.frame, {}
    for e, symbol in enumerate(SYMBOLS):
        network = AtomicNetwork(frame.widths, activation=torch.nn.SiLU(), bias=True)
        layers = [*network.layers, network.final_layer]
        for layer, (weight, bias) in zip(layers, member.networks[e], strict=True):
            layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
        first = layers[0]
        first.weight.data /= frame.scales[e]
        first.bias.data -= first.weight.data @ torch.tensor(frame.centres[e], dtype=torch.float32)
        layers[-1].weight.data /= Hartree
        layers[-1].bias.data /= Hartree
        networks[symbol] = network
    constants = SelfEnergy(SYMBOLS, (frame.self_energies / Hartree).tolist())
    computer = descriptors.computer(frame.aev, len(SYMBOLS)).float()
    return torchani.arch.ANI(SYMBOLS, computer, ANINetworks(networks), constants).ase()


def one_by_one(structure: Structure, calculators) -> np.ndarray:
    atoms = Atoms(structure.numbers, structure.positions)
    energies, forces = [], []
    for calculator in calculators:
        calculator.calculate(atoms, ["energy", "forces"])
        energies.append(calculator.results["energy"])
        forces.append(calculator.results["forces"])
    spread, n = np.array(energies) - np.mean(energies), len(structure)
    rho2 = (spread**2).mean() / n
    slope = -HEIGHT / WIDTH**2 * math.exp(-rho2 / WIDTH**2)
    weights = 1.0 / MEMBERS + slope * 2.0 * spread / (n * MEMBERS)
    return np.tensordot(weights, np.array(forces), axes=1)


def seconds(call, repeats: int) -> float:
    """Median time of a call, after a warm-up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@pytest.mark.benchmark
def test_batched_udd_force_is_thirty_times_faster_than_calculators_one_by_one(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        structures = glycine()
        paths = members(structures, tmp_path)
        potential, batch = ANI.load(paths), Batch.of(structures)
        times, bias = torch.zeros(REPLICAS), UDDBias()
        calculators = [torchani_calculator(path) for path in paths]
        together = potential.biased(batch, bias, times).forces[0].numpy()
        # The same forces, or the comparison means nothing.
        assert np.abs(together - one_by_one(structures[0], calculators)).max() < 2e-3
        alone = seconds(lambda: one_by_one(structures[0], calculators), 20)
        batched = seconds(lambda: potential.biased(batch, bias, times), 20)
        n = len(structures[0])
        slow, fast = n / alone, REPLICAS * n / batched
        print(f"\nglycine, {MEMBERS} members, UDD force, one thread, atom-steps/s")
        print(f"  ASE calculators of torchani, member after member, 1 replica: {slow:10,.0f}")
        for count in (1, 16):
            part, zero = batch.rows(torch.arange(count)), torch.zeros(count)
            took = seconds(lambda part=part, zero=zero: potential.biased(part, bias, zero), 20)
            print(f"  hpcal, {count:3d} replicas:  {count * n / took:43,.0f}")
        print(f"  hpcal, {REPLICAS:3d} replicas:  {fast:43,.0f}   ratio {fast / slow:.0f}")
        assert fast / slow >= 30
    finally:
        torch.set_num_threads(threads)

"""Makes a reference set: frames of Langevin dynamics at a labeler's own level, from all minima.

    python make_reference.py glycine_500K.extxyz --temperature 500 --frames 300 --seed 2024

All torsional minima of the molecule are found, an equal number of trajectories starts from each,
and frames are kept at even intervals after an equilibration. Nothing of it depends on a trained
model, and the seed is not that of the campaign.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ase import units
from ase.calculators.calculator import Calculator, all_changes
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary

from hpcal.core.deadline import Deadline
from hpcal.core.label import Label
from hpcal.core.structure import Structure, to_ase
from hpcal.exchange.extxyz_keys import LabelledFrame
from hpcal.exchange.extxyz_write import write_labelled
from hpcal.labeling.checks import CheckedLabeler
from hpcal.labeling.forces import as_forces
from hpcal.labeling.make import make_labeler
from hpcal.sampling.conformers import ConformerSettings, enumerate_conformers
from hpcal.sampling.relaxation import find_minima


class LabelerCalculator(Calculator):
    """A labeler as an ASE calculator; keeps the last label."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self, labeler: CheckedLabeler, start: Structure) -> None:
        super().__init__()
        self.labeler = labeler
        self.start = start
        self.last: Label | None = None

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        """Labels the positions of ``atoms``."""
        super().calculate(atoms, properties, system_changes)
        result = self.labeler.label(self.start.with_positions(atoms.positions), Deadline())
        if not isinstance(result, Label):
            raise RuntimeError(f"no label on the way: {result.message}")
        self.last = result
        self.results = {"energy": result.energy, "forces": np.array(result.forces)}


def trajectory(start: Structure, labeler: CheckedLabeler, frames: int, args: argparse.Namespace, seed: int):
    """Frames of one trajectory with their labels."""
    rng = np.random.default_rng(seed)
    atoms = to_ase(start)
    calculator = LabelerCalculator(labeler, start)
    atoms.calc = calculator
    MaxwellBoltzmannDistribution(atoms, temperature_K=args.temperature, rng=rng)
    Stationary(atoms)
    dynamics = Langevin(
        atoms,
        0.5 * units.fs,
        temperature_K=args.temperature,
        friction=0.02 / units.fs,
        fixcm=False,
        rng=rng,
    )
    dynamics.run(round(args.equilibration_fs / 0.5))
    for _ in range(frames):
        dynamics.run(round(args.interval_fs / 0.5))
        atoms.get_forces()
        yield LabelledFrame(structure=start.with_positions(atoms.positions), label=calculator.last)


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--smiles", default="NCC(=O)O")
    parser.add_argument("--method", default="GFN2-xTB")
    parser.add_argument("--temperature", type=float, default=500.0, help="K")
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--equilibration-fs", type=float, default=250.0)
    parser.add_argument("--interval-fs", type=float, default=40.0)
    parser.add_argument("--seed", type=int, default=2024)
    args = parser.parse_args()
    starts = enumerate_conformers(args.smiles, ConformerSettings(), np.random.default_rng(args.seed))
    with make_labeler("xtb", {"method": args.method}) as labeler:
        minima = find_minima(starts.structures, as_forces(labeler)).relaxations
        lowest = minima[0].energy
        for minimum in minima:
            print(f"minimum at {minimum.energy - lowest:.4f} eV")
        share = np.full(len(minima), args.frames // len(minima))
        share[: args.frames % len(minima)] += 1
        found = []
        for index, (minimum, frames) in enumerate(zip(minima, share, strict=True)):
            found += trajectory(minimum.structure, labeler, int(frames), args, args.seed + index)
    write_labelled(args.out, found)
    print(f"{len(found)} frames at {args.temperature:g} K from {len(minima)} minima: {args.out}")


if __name__ == "__main__":
    main()

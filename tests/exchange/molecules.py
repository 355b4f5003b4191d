"""Water by an analytic potential, written into each format as that format's own documents say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.db
import h5py
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from hpcal.core.units import BOHR, HARTREE, KCAL_PER_MOL

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"
NUMBERS = np.array([8, 1, 1])
PLACES = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])
TOTAL = -76.4 * HARTREE
"""About the total energy of water, eV."""


@dataclass(frozen=True)
class Frames:
    """n conformations, eV and Å."""

    positions: np.ndarray
    energies: np.ndarray
    forces: np.ndarray

    def __len__(self) -> int:
        return len(self.energies)


def water(n: int = 40, scale: float = 0.05, seed: int = 1) -> Frames:
    """Displaced and turned waters, and Morse energies and forces of their three distances."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(n, 3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))[:, None, None]
    positions = (PLACES + rng.normal(scale=scale, size=(n, 3, 3))) @ turn + rng.normal(size=(n, 1, 3))
    energies, forces = np.full(n, TOTAL), np.zeros((n, 3, 3))
    for i, j, depth, width, rest in ((0, 1, 4.6, 2.2, 0.96), (0, 2, 4.6, 2.2, 0.96), (1, 2, 1.0, 1.4, 1.51)):
        step = positions[:, j] - positions[:, i]
        distance = np.linalg.norm(step, axis=1)
        decay = np.exp(-width * (distance - rest))
        energies += depth * (1 - decay) ** 2
        slope = 2 * depth * width * (1 - decay) * decay
        force = (slope / distance)[:, None] * step
        forces[:, i] += force
        forces[:, j] -= force
    return Frames(positions, energies, forces)


def npz(path: Path, frames: Frames, **arrays: Any) -> Path:
    """As revised MD17: kcal/mol and Å."""
    content = {
        "nuclear_charges": NUMBERS.astype(np.uint8),
        "coords": frames.positions,
        "energies": frames.energies / KCAL_PER_MOL,
        "forces": frames.forces / KCAL_PER_MOL,
        "old_indices": np.arange(len(frames)),
        "old_energies": frames.energies,
        "old_forces": frames.forces,
        **arrays,
    }
    np.savez(path, **{name: array for name, array in content.items() if array is not None})
    return path


def comp6(path: Path, frames: Frames, **arrays: Any) -> Path:
    """As COMP6: Hartree, Å, and gradients under the name `forces`."""
    content = {
        "coordinates": frames.positions.astype("f4"),
        "energies": frames.energies / HARTREE,
        "forces": (-frames.forces / HARTREE).astype("f4"),
        "species": np.array([b"O", b"H", b"H"]),
        "lot": np.array([b"wb97x/6-31g*"]),
        "cm5": np.tile([[-0.6, 0.3, 0.3, 0.0]], (len(frames), 1)),
        "hirshfeld": np.tile([[-0.4, 0.2, 0.2, 0.0]], (len(frames), 1)),
        **arrays,
    }
    return h5(path, {"s66x8/mol00": content})


def spice(path: Path, frames: Frames, *, units: bool = True, **arrays: Any) -> Path:
    """As SPICE: Hartree, bohr, gradients."""
    content = {
        "atomic_numbers": NUMBERS.astype("i2"),
        "conformations": frames.positions / BOHR,
        "dft_total_energy": frames.energies / HARTREE,
        "dft_total_gradient": -frames.forces / HARTREE * BOHR,
        "smiles": np.array([b"[O:1]([H:2])[H:3]"], dtype="S"),
        "subset": np.array([b"SPICE Water Clusters Single Points Dataset v1.0"], dtype="S"),
        **arrays,
    }
    names = {
        "conformations": "bohr",
        "dft_total_energy": "hartree",
        "dft_total_gradient": "hartree/bohr",
    }
    return h5(path, {"water": content}, names if units else {})


def h5(path: Path, groups: Mapping[str, Mapping[str, Any]], units: Mapping[str, str] | None = None) -> Path:
    """Groups of arrays, with the units of some."""
    with h5py.File(path, "w") as file:
        for name, arrays in groups.items():
            group = file.create_group(name)
            for key, array in arrays.items():
                if array is not None:
                    group[key] = array
                    if units and key in units:
                        group[key].attrs["units"] = units[key]
    return path


def database(path: Path, frames: Frames, **pairs: Any) -> Path:
    """As ``ase.db`` writes calculators' results."""
    with ase.db.connect(str(path), use_lock_file=False) as db:
        for x, e, f in zip(frames.positions, frames.energies, frames.forces, strict=True):
            atoms = Atoms(NUMBERS, x)
            atoms.calc = SinglePointCalculator(atoms, energy=e, forces=f)
            db.write(atoms, **pairs)
    return path


def deepmd(folder: Path, frames: Frames, *, cells: np.ndarray | None = None, **arrays: Any) -> Path:
    """As DeePMD-kit documents its systems."""
    part = folder / "set.000"
    part.mkdir(parents=True)
    (folder / "type.raw").write_text("0\n1\n1\n")
    (folder / "type_map.raw").write_text("O\nH\n")
    n = len(frames)
    content = {
        "coord": frames.positions.reshape(n, -1),
        "energy": frames.energies,
        "force": frames.forces.reshape(n, -1),
        "box": None if cells is None else cells.reshape(n, 9),
        **arrays,
    }
    if cells is None and content["box"] is None:
        (folder / "nopbc").touch()
    for name, array in content.items():
        if array is not None:
            np.save(part / f"{name}.npy", array)
    return folder


def extxyz(path: Path, frames: Frames, keys: str = "", energy: str = "REF_energy") -> Path:
    """As ASE and MACE write extended XYZ."""
    lines = []
    for x, e, f in zip(frames.positions, frames.energies, frames.forces, strict=True):
        lines += [
            "3",
            f'Properties=species:S:1:pos:R:3:REF_forces:R:3 pbc="F F F" {energy}={float(e)!r} {keys}',
        ]
        rows = np.concatenate([x, f], axis=1)
        lines += [" ".join([s, *map(repr, map(float, row))]) for s, row in zip("OHH", rows, strict=True)]
    path.write_text("\n".join(lines) + "\n")
    return path

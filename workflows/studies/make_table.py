"""Errors of finished campaigns on test sets, as a Markdown table with bootstrap intervals.

    python make_table.py two_conformers_md two_conformers_udd --test 600K=glycine_600K.extxyz

Each campaign folder is a row; the ensemble promoted last is evaluated on each test set. Intervals
are the 2.5 % and 97.5 % quantiles over resampled frames. They tell how well the test set fixes the
error of this one ensemble, not how much another seed would change it. Frames whose hydroxyl is turned
round (|C–C–O–H| below 90°), which a narrow start never saw, are told apart from the others.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from hpcal.cli.ensembles import loaded
from hpcal.cli.evaluate import predictions
from hpcal.cli.folders import reading
from hpcal.core.dataset import Dataset
from hpcal.exchange.files import read_dataset
from hpcal.report.status import campaign_status

HYDROXYL = (1, 2, 4, 9)
"""Atoms C–C–O–H of glycine in the order of the SMILES NCC(=O)O."""
RESAMPLED = 2000


def torsion(positions: np.ndarray, atoms: tuple[int, int, int, int]) -> float:
    """Dihedral angle of four atoms, degrees."""
    a, b, c, d = positions[list(atoms)]
    first, second = np.cross(b - a, c - b), np.cross(c - b, d - c)
    sine = np.cross(first, second) @ (c - b) / np.linalg.norm(c - b)
    return float(np.degrees(np.arctan2(sine, first @ second)))


def turned(dataset: Dataset) -> np.ndarray:
    """(n,) whether the hydroxyl of each frame is turned round."""
    return np.array([abs(torsion(s.positions, HYDROXYL)) < 90 for s in dataset.structures()])


def squared_errors(model: str, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """(n,) squared energy error, (eV/atom)², and (n,) mean squared force error, (eV/Å)², of each frame."""
    _, potential = loaded(model)
    energies, forces = predictions(potential, dataset)
    ends = np.cumsum(dataset.sizes)[:-1]
    by_frame = [np.mean(f**2) for f in np.split(forces - dataset.forces, ends)]
    return ((energies - dataset.energies) / dataset.sizes) ** 2, np.array(by_frame)


def with_interval(squares: np.ndarray, factor: float, digits: int) -> str:
    """Root mean square and its interval over resampled frames of equal size."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(squares), size=(RESAMPLED, len(squares)))
    low, high = np.quantile(np.sqrt(squares[drawn].mean(axis=1)), (0.025, 0.975)) * factor
    return f"{np.sqrt(squares.mean()) * factor:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def about(folder: Path) -> list[str]:
    """Labels, calculations, generations and time of a campaign."""
    with reading(folder) as store:
        status = campaign_status(store)
    labels = f"{status['labels']['accepted']} ({status['audit_share']:.0%})"
    seconds = 3600 * status["active_hours"]
    return [labels, str(status["qm_calls"]), str(status["generation"]), f"{seconds:.0f}"]


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("campaigns", nargs="+", type=Path, help="folders of finished campaigns")
    parser.add_argument("--test", action="append", required=True, metavar="NAME=FILE", help="a test set")
    args = parser.parse_args()
    sets = {name: read_dataset(Path(file)) for name, file in (text.split("=", 1) for text in args.test)}
    columns = ["run", "labels (audit)", "QM calls", "generations", "time, s"]
    for name, data in sets.items():
        share = turned(data).mean()
        columns += [f"F {name}, eV/Å", f"E {name}, meV/atom", f"F {name}, OH as in lowest ({1 - share:.0%})",
                    f"F {name}, OH turned ({share:.0%})"]  # fmt: skip
    print("| " + " | ".join(columns) + " |")
    print("| " + " | ".join("---" for _ in columns) + " |")
    for folder in args.campaigns:
        cells = [folder.name, *about(folder)]
        for data in sets.values():
            energy, force = squared_errors(f"{folder}@latest", data)
            mask = turned(data)
            cells += [with_interval(force, 1, 3), with_interval(energy, 1000, 1)]
            cells += [f"{np.sqrt(force[part].mean()):.3f}" for part in (~mask, mask)]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()

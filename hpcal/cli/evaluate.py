"""``hpcal evaluate``: errors of an ensemble on labelled structures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from hpcal.cli.ensembles import loaded, refuse_uncovered
from hpcal.cli.export import chosen_splits
from hpcal.core.dataset import Dataset
from hpcal.core.ensemble import EnsembleManifest
from hpcal.core.errors import InputError
from hpcal.core.protocols import Potential
from hpcal.engine.work.context import chunks
from hpcal.engine.work.learning import batch_of
from hpcal.exchange.files import read_dataset


def evaluate(model: str, data: Path, *, splits: Sequence[str], as_json: bool) -> None:
    """Prints the errors of an ensemble on labelled structures. Raises InputError."""
    wanted = chosen_splits(splits)
    dataset = read_dataset(data)
    if wanted is not None:
        dataset = dataset.take(np.sort(np.concatenate([dataset.where(split) for split in wanted])))
        if not len(dataset):
            raise InputError(f"{data} has no structure of split {', '.join(wanted)}")
    manifest, potential = loaded(model)
    refuse_uncovered(potential, dataset.structures(), model)
    other = other_level(manifest, dataset)
    if other:
        click.echo(f"note: {other}", err=True)
    found = errors(potential, dataset)
    click.echo(json.dumps(found) if as_json else errors_text(found))


def errors(potential: Potential, dataset: Dataset) -> dict[str, Any]:
    """Errors of the mean of an ensemble, under the keys of ``hpcal status --json``.

    Over structures of N_i atoms with energy errors e_i and force component errors f_ic, energies per
    atom and structures alike: MAE = ⟨|e_i| / N_i⟩, RMSE = ⟨(e_i / N_i)²⟩^½; forces over all components
    of structures whose label has forces. None where there is nothing to tell from.
    """
    energies, forces = predictions(potential, dataset)
    per_atom = (energies - dataset.energies) / dataset.sizes
    difference = (forces - dataset.forces)[np.isfinite(dataset.forces).all(axis=1)]
    has_forces = len(difference) > 0
    return {
        "energy_mae_ev_per_atom": float(np.abs(per_atom).mean()),
        "energy_rmse_ev_per_atom": float(np.sqrt(np.mean(per_atom**2))),
        "force_mae_ev_per_ang": float(np.abs(difference).mean()) if has_forces else None,
        "force_rmse_ev_per_ang": float(np.sqrt(np.mean(difference**2))) if has_forces else None,
        "count": len(dataset),
    }


def predictions(potential: Potential, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """(n,) mean energies, eV, and (A, 3) mean forces, eV/Å, of an ensemble."""
    energies, forces = [], []
    for items in chunks(dataset.structures()):
        batch = batch_of(items, potential)
        energies.append(potential.energies(batch).mean(dim=0).double().cpu().numpy())
        found = potential.forces(batch).double().cpu().numpy()
        forces += [found[i, : len(structure)] for i, structure in enumerate(items)]
    return np.concatenate(energies), np.concatenate(forces)


def errors_text(found: Mapping[str, Any]) -> str:
    """Errors in a few aligned lines."""
    rows = [
        ("energy MAE", found["energy_mae_ev_per_atom"], 1000, "meV/atom"),
        ("energy RMSE", found["energy_rmse_ev_per_atom"], 1000, "meV/atom"),
        ("force MAE", found["force_mae_ev_per_ang"], 1000, "meV/Å"),
        ("force RMSE", found["force_rmse_ev_per_ang"], 1000, "meV/Å"),
    ]
    lines = [
        f"{name:<12} {'-' if value is None else format(value * factor, '10.3f'):>10} {unit}"
        for name, value, factor, unit in rows
    ]
    return "\n".join([*lines, f"on {found['count']} structures"])


def other_level(manifest: EnsembleManifest, dataset: Dataset) -> str | None:
    """A sentence if data and ensemble state different levels of theory."""
    stated = manifest.info.get("level")
    level = dataset.level
    if not isinstance(stated, dict) or level is None or level.code == "file":
        return None
    own = (stated.get("code"), stated.get("method"), stated.get("settings"))
    if own == (level.code, level.method, dict(level.settings)):
        return None
    return (
        f"the ensemble learned labels of {stated.get('method')} ({stated.get('code')}), the data are "
        f"{level}: the errors hold the difference of the two"
    )

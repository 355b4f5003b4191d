"""``hpcal export``: labelled structures or an ensemble, out of a campaign."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from hpcal.cli.ensembles import LATEST, ensemble_of, save_ensemble
from hpcal.cli.folders import OWN, reading
from hpcal.core.dataset import Dataset
from hpcal.core.elements import symbol
from hpcal.core.errors import InputError
from hpcal.core.plugins import nearest
from hpcal.core.walker import Split
from hpcal.store import bulk_read, campaigns, ensembles, labels, queries
from hpcal.store.database import Store
from hpcal.store.session import Session
from hpcal.store.transitions import EnsembleState

XYZ: Final = (".extxyz", ".xyz")
HDF5: Final = (".h5", ".hdf5")
ASE: Final = (".db",)
DATA: Final = (*XYZ, *HDF5, *ASE)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which labelled structures are wanted.

    Attributes:
        splits: only these; None for all but the reference set, or for what was learned from where
            a generation is given.
        generation: those that this generation was trained on.
    """

    splits: tuple[Split, ...] | None
    generation: int | None

    def __str__(self) -> str:
        names = "any split" if self.splits is None else f"split {', '.join(self.splits)}"
        return (
            names if self.generation is None else f"{names} in the data set of generation {self.generation}"
        )


def export(
    root: Path,
    out: Path,
    *,
    splits: Sequence[str],
    generation: int | None,
    ensemble: str | None,
    layout: str | None = None,
    keys: str | None = None,
    isolated_atoms: bool = False,
) -> None:
    """Writes labelled structures or an ensemble.

    Raises:
        InputError: no campaign, nothing that fits, an extension that says nothing, options that do
            not go together, or structures that the format cannot hold.
    """
    wanted = Selection(splits=chosen_splits(splits), generation=generation)
    kind = _kind(out, ensemble, layout)
    if kind != "extxyz" and (keys is not None or isolated_atoms):
        option = f"--keys {keys}" if keys is not None else "--isolated-atoms"
        raise InputError(f"{option} is about extended XYZ; give OUT a name ending in {XYZ[0]}")
    if kind == "ensemble":
        if wanted.splits is not None:
            raise InputError(
                f"--split {wanted.splits[0]} is about labelled structures, and {out} is to be the folder of "
                f"an ensemble; for data give OUT a name ending in one of {', '.join(DATA)}"
            )
        with reading(root) as store:
            _export_ensemble(store, root, out, _generation(ensemble, generation))
        return
    _refuse_place(root, out, folder=kind == "deepmd")
    with reading(root) as store, store.session() as session:
        dataset = _labelled(session, root, wanted)
        atoms = _isolated(session, root, dataset) if isolated_atoms else None
    notes = _write(kind, out, dataset if atoms is None else Dataset.concatenate([dataset, atoms]), keys)
    for note in notes:
        click.echo(f"note: {note}", err=True)
    more = "" if atoms is None else f" and {len(atoms)} single atoms"
    click.echo(f"{len(dataset)} labelled structures{more}: {out}")


def _kind(out: Path, ensemble: str | None, layout: str | None) -> str:
    """What is to be written: ``extxyz``, ``hpcal``, ``ani``, ``db``, ``deepmd`` or ``ensemble``."""
    suffix = out.suffix.lower()
    if ensemble is not None:
        if suffix in DATA:
            raise InputError(f"{out}: an ensemble is written as a folder; give a name without {suffix}")
        if layout is not None:
            raise InputError(f"--format {layout} is a layout of data, and --ensemble asks for an ensemble")
        return "ensemble"
    if layout == "deepmd":
        if suffix in DATA:
            raise InputError(f"{out}: DeePMD data are written as a folder; give a name without {suffix}")
        return "deepmd"
    if layout is not None and suffix not in HDF5:
        raise InputError(f"--format {layout} is a layout of HDF5 files; give OUT a name ending in .h5")
    if suffix in HDF5:
        return layout or "hpcal"
    if suffix in XYZ:
        return "extxyz"
    if suffix in ASE:
        return "db"
    if suffix:
        raise InputError(
            f"{out}: the extension says how to write, and {suffix!r} is not one of {', '.join(DATA)}; give "
            "--format deepmd for a folder of DeePMD, --ensemble, or a name without extension, for a folder "
            "with the ensemble"
        )
    return "ensemble"


def chosen_splits(names: Sequence[str]) -> tuple[Split, ...] | None:
    """The splits of the given names, each once, or None for none given.

    Raises:
        InputError: for an unknown one.
    """
    for name in names:
        if name not in tuple(Split):
            raise InputError(f"unknown split {name!r}{nearest(name, [str(s) for s in Split])}")
    return tuple(Split(name) for name in dict.fromkeys(names)) or None


def _generation(ensemble: str | None, generation: int | None) -> str:
    if ensemble is None or (ensemble == LATEST and generation is not None):
        return LATEST if generation is None else str(generation)
    return ensemble


def _refuse_place(root: Path, out: Path, *, folder: bool) -> None:
    """Raises InputError where data would take the place of a folder, or of a campaign's own files."""
    if out.is_dir() and not folder:
        raise InputError(f"{out} is a folder; give the name of a file")
    place, home = out.resolve(), root.resolve()
    if place.is_relative_to(home) and place != home and place.relative_to(home).parts[0] in OWN:
        raise InputError(f"{out} belongs to the campaign itself: give a name outside of its own files")


def _export_ensemble(store: Store, root: Path, out: Path, generation: str) -> None:
    manifest = ensemble_of(store, root, generation)
    save_ensemble(manifest, out)
    click.echo(
        f"ensemble of generation {manifest.info['generation']}, {len(manifest.members)} members: {out}"
    )


def _labelled(session: Session, root: Path, wanted: Selection) -> Dataset:
    """The labelled structures that are wanted. Raises InputError if there are none."""
    row = campaigns.campaign(session)
    if row.level_of_theory_id is None:
        raise InputError(f"{root} holds a campaign that was never begun")
    up_to: int | None = None
    default: tuple[Split, ...] = queries.OWN
    if wanted.generation is not None:
        trained = (EnsembleState.PROMOTED, EnsembleState.REFUSED, EnsembleState.TRAINED)
        found = [e for e in queries.ensembles(session, *trained) if e.generation == wanted.generation]
        if not found:
            raise InputError(f"{root} has no trained ensemble of generation {wanted.generation}")
        up_to, default = ensembles.dataset_of(session, found[0]).last_seq, queries.LEARNING
    dataset = bulk_read.read_dataset(
        session,
        labels.level_by_id(session, row.level_of_theory_id),
        row.level_of_theory_id,
        splits=wanted.splits or default,
        up_to=up_to,
        with_uncertainty=True,
    )
    if dataset is None:
        raise InputError(f"{root} has no labelled structure of {wanted}")
    return dataset


def _isolated(session: Session, root: Path, dataset: Dataset) -> Dataset | None:
    """The labelled single atom of lowest energy of each element, where it is not in the data set."""
    from hpcal.exchange.extxyz_write import lowest_atoms

    level, level_id = dataset.level, campaigns.campaign(session).level_of_theory_id
    found = None
    if level is not None and level_id is not None:
        found = bulk_read.isolated_atoms(session, level, level_id)
    places = {} if found is None else lowest_atoms(found)
    missing = [symbol(z) for z in dataset.elements if z not in places]
    if missing:
        names = ", ".join(missing)
        click.echo(f"note: {root} has no label of a single atom of {names} at this level of theory", err=True)
    if found is None:
        return None
    known = set(dataset.ids.tolist())
    wanted = [places[z] for z in dataset.elements if z in places and int(found.ids[places[z]]) not in known]
    return found.take(wanted) if wanted else None


def _write(kind: str, out: Path, dataset: Dataset, keys: str | None) -> list[str]:
    """Writes a data set; returns notes for the user.

    Raises:
        InputError: the format cannot hold it, or the file system refused.
    """
    try:
        if kind == "extxyz":
            from hpcal.exchange.extxyz_write import write_dataset

            write_dataset(out, dataset, "mace" if keys == "mace" else "hpcal")
            return []
        if kind == "hpcal":
            from hpcal.exchange.hdf5 import write_shard

            write_shard(out, dataset)
            return []
        if kind == "ani":
            from hpcal.exchange.ani_write import write_ani

            return write_ani(out, dataset)
        if kind == "db":
            from hpcal.exchange.ase_db_write import write_ase_db

            return write_ase_db(out, dataset)
        from hpcal.exchange.deepmd_write import write_deepmd

        return write_deepmd(out, dataset)
    except OSError as error:
        raise InputError(
            f"{out} cannot be written: {error.strerror or error}; nothing of it was kept"
        ) from error

"""``hpcal export``: labelled structures or an ensemble, out of a campaign."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from hpcal.cli.ensembles import LATEST, ensemble_of, save_ensemble
from hpcal.cli.folders import reading
from hpcal.core.dataset import Dataset
from hpcal.core.errors import InputError
from hpcal.core.label import Label
from hpcal.core.plugins import nearest
from hpcal.core.structure import Structure
from hpcal.core.walker import Split
from hpcal.exchange.extxyz import LabelledFrame, write_labelled
from hpcal.exchange.hdf5 import write_shard
from hpcal.store import campaigns, ensembles, labels, queries, structures
from hpcal.store.database import Store
from hpcal.store.session import Session
from hpcal.store.tables import StructureRow
from hpcal.store.transitions import EnsembleState

XYZ: Final = (".extxyz", ".xyz")
HDF5: Final = (".h5", ".hdf5")
_OWN: Final = tuple(split for split in Split if split is not Split.REFERENCE)

Labelled = tuple[StructureRow, Structure, Label]


def export(
    root: Path,
    out: Path,
    *,
    splits: Sequence[str],
    generation: int | None,
    ensemble: str | None,
    layout: str | None = None,
) -> None:
    """Writes labelled structures or an ensemble.

    Raises:
        InputError: no campaign, nothing that fits, or an extension that says nothing.
    """
    suffix = out.suffix.lower()
    wanted = chosen_splits(splits)
    if layout is not None and (suffix not in HDF5 or ensemble is not None):
        raise InputError(f"--format {layout} is a layout of HDF5 files; give OUT a name ending in .h5")
    if ensemble is not None and suffix in (*XYZ, *HDF5):
        raise InputError(f"{out}: an ensemble is written as a folder; give a name without {suffix}")
    with reading(root) as store:
        if ensemble is not None or (suffix not in (*XYZ, *HDF5) and not suffix):
            _export_ensemble(store, root, out, _generation(ensemble, generation))
            return
        if suffix not in (*XYZ, *HDF5):
            raise InputError(
                f"{out}: the extension says how to write, and {suffix!r} is not one of "
                f"{', '.join((*XYZ, *HDF5))}; give --ensemble, or a name without extension, for a folder "
                "with the ensemble"
            )
        with store.session() as session:
            found = _labelled(session, root, wanted, generation)
            if not found:
                raise InputError(f"{root} has no labelled structure of {_described(wanted, generation)}")
            write = _write_xyz if suffix in XYZ else _write_hdf5
            write(session, out, found)
    click.echo(f"{len(found)} labelled structures: {out}")


def chosen_splits(names: Sequence[str]) -> tuple[Split, ...] | None:
    """The splits of the given names, or None for none given. Raises InputError for an unknown one."""
    for name in names:
        if name not in tuple(Split):
            raise InputError(f"unknown split {name!r}{nearest(name, [str(s) for s in Split])}")
    return tuple(Split(name) for name in names) or None


def _generation(ensemble: str | None, generation: int | None) -> str:
    if ensemble is None or (ensemble == LATEST and generation is not None):
        return LATEST if generation is None else str(generation)
    return ensemble


def _export_ensemble(store: Store, root: Path, out: Path, generation: str) -> None:
    manifest = ensemble_of(store, root, generation)
    save_ensemble(manifest, out)
    click.echo(
        f"ensemble of generation {manifest.info['generation']}, {len(manifest.members)} members: {out}"
    )


def _labelled(
    session: Session, root: Path, splits: tuple[Split, ...] | None, generation: int | None
) -> list[Labelled]:
    row = campaigns.campaign(session)
    if row.level_of_theory_id is None:
        raise InputError(f"{root} holds a campaign that was never begun")
    level = labels.level_by_id(session, row.level_of_theory_id)
    if generation is None:
        return labels.labelled(session, level, row.level_of_theory_id, splits=splits or _OWN)
    trained = (EnsembleState.PROMOTED, EnsembleState.REFUSED, EnsembleState.TRAINED)
    ensemble = next((e for e in queries.ensembles(session, *trained) if e.generation == generation), None)
    if ensemble is None:
        raise InputError(f"{root} has no trained ensemble of generation {generation}")
    return labels.labelled(
        session,
        level,
        row.level_of_theory_id,
        up_to=ensembles.dataset_of(session, ensemble).last_seq,
        splits=splits or queries.LEARNING,
    )


def _described(splits: tuple[Split, ...] | None, generation: int | None) -> str:
    names = "any split" if splits is None else f"split {', '.join(splits)}"
    return names if generation is None else f"{names} in the data set of generation {generation}"


def _write_xyz(session: Session, out: Path, found: Sequence[Labelled]) -> None:
    write_labelled(
        out,
        (
            LabelledFrame(
                structure=structure,
                label=label,
                info={
                    "structure_id": row.id,
                    "split": str(row.split),
                    "origin": row.origin,
                    "generation": row.generation,
                    # None where no ensemble saw it before its label, as for the bootstrap.
                    "uncertainty": structures.latest_value(session, row.id),
                },
            )
            for row, structure, label in found
        ),
    )


def _write_hdf5(session: Session, out: Path, found: Sequence[Labelled]) -> None:  # noqa: ARG001
    dataset = Dataset.of(
        [structure for _, structure, _ in found],
        [label for _, _, label in found],
        ids=[row.id for row, _, _ in found],
        splits=[row.split for row, _, _ in found],
    )
    write_shard(out, dataset)

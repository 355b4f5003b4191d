"""``hpcal train``: an ensemble from a file of labelled structures, without a campaign."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
import torch

from hpcal.cli.ensembles import refuse_other_folder, save_ensemble
from hpcal.cli.evaluate import errors, errors_text
from hpcal.cli.stages import read_block, record_path, refuse_inputs, stopping, write_record
from hpcal.core.dataset import Dataset
from hpcal.core.deadline import Deadline
from hpcal.core.elements import symbol
from hpcal.core.ensemble import MANIFEST, EnsembleManifest, MemberFile, load_ensemble
from hpcal.core.errors import InputError, Interrupted, TaskFailure
from hpcal.core.plugins import Group
from hpcal.core.protocols import Capabilities, MemberResult, MemberSpec
from hpcal.core.walker import Split
from hpcal.engine.campaign import Part, part
from hpcal.engine.streams import derive, stream
from hpcal.exchange.files import read_dataset

VALIDATION_SHARE: Final = 0.1


def train(data: Path, out: Path, settings: Path, *, seed: int, threads: int) -> None:
    """Trains an ensemble; goes on where an earlier call stopped.

    Raises:
        InputError: the data or settings cannot be used, or OUT is in use.
        TaskFailure: the training diverged.
        Interrupted: by a signal; the same call goes on.
    """
    document, folder = read_block(settings)
    potential = part(document, (), Group.POTENTIALS, "kind", folder)
    if (out / MANIFEST).exists():
        raise InputError(f"{out} holds an ensemble already: it is not overwritten; give another OUT")
    refuse_other_folder(out)
    refuse_inputs(out, data, settings)
    dataset = with_validation(read_dataset(data), seed)
    _refuse_uncovered(potential, dataset)
    torch.set_num_threads(threads)
    results = _fit(potential, dataset, out, seed)
    manifest = EnsembleManifest(
        kind=potential.name,
        members=tuple(MemberFile(path=r.path, sha256=r.sha256) for r in results),
        info={
            "level": None if dataset.level is None else dataset.level.as_dict(),
            "potential": potential.as_dict(),
            "seed": seed,
            "data": str(data),
            "n_train": len(dataset.where(Split.TRAIN)),
            "n_validation": len(dataset.where(Split.VALIDATION)),
        },
    )
    save_ensemble(manifest, out)
    shutil.rmtree(_checkpoint(out), ignore_errors=True)
    _tell(out, dataset, results)


def with_validation(dataset: Dataset, seed: int) -> Dataset:
    """The structures that may be learned from, with a validation split where there was none."""
    learning = np.sort(np.concatenate([dataset.where(Split.TRAIN), dataset.where(Split.VALIDATION)]))
    if not len(learning):
        raise InputError("the data hold no structure of split train or validation: nothing to train on")
    chosen = dataset.take(learning)
    n = len(chosen)
    if len(chosen.where(Split.VALIDATION)) or n < 2:
        return chosen
    drawn = stream(seed, "validation").permutation(n)[: max(1, round(VALIDATION_SHARE * n))]
    splits = chosen.splits.astype("U16")
    splits[drawn] = str(Split.VALIDATION)
    return replace(chosen, splits=splits)


def _refuse_uncovered(potential: Part, dataset: Dataset) -> None:
    capabilities: Capabilities = potential.build().capabilities()
    if capabilities.elements is not None:
        beyond = [symbol(z) for z in dataset.elements if z not in capabilities.elements]
        if beyond:
            raise InputError(f"potential {potential.name} does not cover {', '.join(beyond)}")
    if dataset.pbc.any() and not capabilities.periodic:
        raise InputError(f"potential {potential.name} takes molecules only, and a structure is periodic")


def _checkpoint(out: Path) -> Path:
    return out.with_name(f"{out.name}.training")


def _fit(potential: Part, dataset: Dataset, out: Path, seed: int) -> Sequence[MemberResult]:
    kind = potential.build()
    trainer = kind.trainer(dataset.elements, derive(seed, "train"))
    members = [MemberSpec(index=i, seed=derive(seed, "member", i)) for i in range(kind.n_members)]
    checkpoint = _checkpoint(out)
    checkpoint.mkdir(parents=True, exist_ok=True)
    with stopping() as stop:
        try:
            found: Sequence[MemberResult] = trainer.fit(dataset, members, Deadline(stop=stop), checkpoint)
        except (TaskFailure, KeyboardInterrupt):
            if stop():
                raise Interrupted(
                    f"the training was stopped: the same command goes on from {checkpoint}"
                ) from None
            raise
    return sorted(found, key=lambda result: result.index)


def _tell(out: Path, dataset: Dataset, results: Sequence[MemberResult]) -> None:
    """Prints the errors on the validation split, and writes the records."""
    validation = dataset.take(dataset.where(Split.VALIDATION))
    found: dict[str, Any] | None = None
    if len(validation):
        found = errors(load_ensemble(EnsembleManifest.read(out)), validation)
        click.echo(f"validation\n{errors_text(found)}")
    members = [{**asdict(result), "trained_on": len(result.trained_on)} for result in results]
    for member, path in zip(members, EnsembleManifest.read(out).members, strict=True):
        member["path"] = Path(path.path).name
    write_record(record_path(out), {"validation": found, "members": members})
    click.echo(f"{len(results)} members trained on {len(dataset.where(Split.TRAIN))} structures: {out}")

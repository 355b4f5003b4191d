"""Finding the ensemble that a user names, and making a folder of it that needs nothing else."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from hpcal.cli.folders import begun, reading
from hpcal.core.ensemble import MANIFEST, EnsembleManifest, MemberFile, verify
from hpcal.core.errors import InputError
from hpcal.core.protocols import Potential
from hpcal.core.structure import Structure
from hpcal.store import campaigns, ensembles, labels, queries
from hpcal.store.database import Store
from hpcal.store.session import Session
from hpcal.store.tables import EnsembleRow
from hpcal.store.transitions import EnsembleState

LATEST: Final = "latest"
_TRAINED: Final = (EnsembleState.PROMOTED, EnsembleState.REFUSED, EnsembleState.TRAINED)


def named_ensemble(name: str) -> EnsembleManifest:
    """The ensemble of a folder, of ``DIR@GENERATION`` or of ``DIR@latest``.

    Raises:
        InputError: there is none of that name.
    """
    path = Path(name)
    if not path.exists() and "@" in name:
        folder, _, generation = name.rpartition("@")
        return recorded_ensemble(Path(folder), generation)
    if path.is_dir() and not (path / MANIFEST).exists() and begun(path):
        return recorded_ensemble(path, LATEST)
    return EnsembleManifest.read(path)


def recorded_ensemble(root: Path, generation: str) -> EnsembleManifest:
    """An ensemble of a campaign: of a generation, or the one promoted last.

    Raises:
        InputError: there is no such campaign or generation.
    """
    with reading(root) as store:
        return ensemble_of(store, root, generation)


def ensemble_of(store: Store, root: Path, generation: str = LATEST) -> EnsembleManifest:
    """As :func:`recorded_ensemble`, of an open store."""
    with store.session() as session:
        row = _row(session, root, generation)
        manifest = ensembles.manifest_of(session, row, str(root.resolve()))
        return replace(manifest, info={**manifest.info, **_info(session)})


def _row(session: Session, root: Path, generation: str) -> EnsembleRow:
    """The newest revision of a generation."""
    if generation == LATEST:
        found = queries.newest_ensemble(session, EnsembleState.PROMOTED)
        if found is None:
            raise InputError(f"{root} has no promoted ensemble yet")
        return found[0]
    if not generation.isdecimal():
        raise InputError(f"{generation!r} is no generation: give its number, or {LATEST!r}")
    rows = queries.ensembles(session, *_TRAINED)
    wanted = [row for row in rows if row.generation == int(generation)]
    if not wanted:
        known = ", ".join(str(g) for g in sorted({row.generation for row in rows})) or "none"
        raise InputError(f"{root} has no trained ensemble of generation {generation} (there: {known})")
    return wanted[0]


def _info(session: Session) -> dict[str, Any]:
    row = campaigns.campaign(session)
    level = None if row.level_of_theory_id is None else labels.level_by_id(session, row.level_of_theory_id)
    return {"campaign": row.name, "level": None if level is None else level.as_dict()}


def save_ensemble(manifest: EnsembleManifest, out: Path) -> Path:
    """Writes an ensemble as a folder that needs nothing else: ``ensemble.json`` and its members.

    The folder takes its place whole; an ensemble that was there before gives way to it.

    Raises:
        InputError: ``out`` is something else than the folder of an ensemble.
        FormatError: a member file is missing or damaged.
    """
    refuse_other_folder(out)
    verify(manifest.members)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.with_name(f".{out.name}.{uuid4().hex[:12]}.part")
    scratch.mkdir()
    try:
        members = []
        for member in manifest.members:
            copy = scratch / Path(member.path).name
            shutil.copyfile(member.path, copy)
            members.append(MemberFile(path=str(copy), sha256=member.sha256))
        replace(manifest, members=tuple(members)).write(scratch)
        _swap(scratch, out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out


def _swap(new: Path, place: Path) -> None:
    """Puts a folder in the place of another, or of none."""
    if place.exists():
        old = place.with_name(f".{place.name}.{uuid4().hex[:12]}.old")
        place.rename(old)
        new.rename(place)
        shutil.rmtree(old, ignore_errors=True)
        return
    new.rename(place)


def refuse_other_folder(out: Path) -> None:
    """Raises InputError unless ``out`` is new, empty, or the folder of an ensemble."""
    if out.is_file():
        raise InputError(f"{out} is a file; an ensemble is a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise InputError(f"{out} is not empty and holds no ensemble: give another folder")


def refuse_single(potential: Potential, name: str) -> None:
    """Raises InputError for a model of one member, whose members cannot disagree."""
    if potential.n_members < 2:
        raise InputError(
            f"{name} has one member, which has no spread to tell uncertainty by; use an ensemble of 2 or more"
        )


def refuse_uncovered(potential: Potential, structures: list[Structure], name: str) -> None:
    """Raises InputError if an ensemble does not cover the elements or cells of structures."""
    from hpcal.core.elements import symbol

    capabilities = potential.capabilities()
    numbers = sorted({int(z) for s in structures for z in s.numbers})
    if capabilities.elements is not None:
        beyond = [symbol(z) for z in numbers if z not in capabilities.elements]
        if beyond:
            known = ", ".join(symbol(z) for z in sorted(capabilities.elements))
            raise InputError(f"ensemble {name} does not cover {', '.join(beyond)} (it covers {known})")
    if not capabilities.periodic and any(s.periodic for s in structures):
        number = next(i for i, s in enumerate(structures, start=1) if s.periodic)
        raise InputError(f"ensemble {name} takes molecules only, and structure {number} is periodic")


def loaded(name: str) -> tuple[EnsembleManifest, Potential]:
    """The ensemble that a user names, ready for use. Raises InputError."""
    import torch

    from hpcal.core.ensemble import load_ensemble

    manifest = named_ensemble(name)
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1") or 1)))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return manifest, load_ensemble(manifest, device=device)

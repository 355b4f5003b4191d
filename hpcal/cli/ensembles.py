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
TYPED: Final = ("ensemble", "model")
"""Kinds of rows that an id may name where an ensemble is asked for."""
_TRAINED: Final = (EnsembleState.PROMOTED, EnsembleState.REFUSED, EnsembleState.TRAINED)


def named_ensemble(name: str) -> EnsembleManifest:
    """The ensemble that a user names.

    Args:
        name: the folder of an ensemble or of a campaign, the file of a member, ``DIR@GENERATION``,
            ``DIR@latest``, ``DIR@ensemble:ID`` or ``DIR@model:ID``; an id alone is of the
            campaign in the current folder.

    Raises:
        InputError: there is none of that name.
    """
    path = Path(name)
    if not path.exists() and "@" in name:
        folder, _, which = name.rpartition("@")
        return recorded_ensemble(Path(folder), which)
    if not path.exists() and _typed(name):
        if not begun(Path()):
            raise InputError(
                f"{name} is an id, and the current folder holds no campaign: name its folder too, as in "
                f"DIR@{name}"
            )
        return recorded_ensemble(Path(), name)
    if path.is_dir() and not (path / MANIFEST).exists() and begun(path):
        return recorded_ensemble(path, LATEST)
    member = _member(path) if path.is_file() else None
    return EnsembleManifest.read(path) if member is None else member


def _member(path: Path) -> EnsembleManifest | None:
    """The ensemble of one member alone, by its file; None for a file that no ensemble is known to hold."""
    file = path.resolve()
    if file.name == MANIFEST:
        return None
    if (file.parent / MANIFEST).is_file():
        return _only(EnsembleManifest.read(file.parent), file)
    root = next((folder for folder in file.parents if begun(folder)), None)
    if root is None:
        return None
    with reading(root) as store, store.session() as session:
        for row in queries.ensembles(session, *EnsembleState):
            alone = _only(_manifest(session, root, row), file)
            if alone is not None:
                return alone
    return None


def _only(whole: EnsembleManifest, file: Path) -> EnsembleManifest | None:
    """An ensemble with no other member than that of a file; None if it has no such member."""
    found = tuple(m for m in whole.members if Path(m.path).resolve() == file)
    return replace(whole, members=found) if found else None


def _typed(name: str) -> bool:
    """Whether a name is meant as an id, such as ``model:3``."""
    kind, colon, number = name.partition(":")
    return bool(colon) and kind in TYPED and number.isdigit()


def recorded_ensemble(root: Path, which: str) -> EnsembleManifest:
    """An ensemble of a campaign: of a generation or an id, or the one promoted last.

    Raises:
        InputError: there is no such campaign, generation or row.
    """
    with reading(root) as store:
        return ensemble_of(store, root, which)


def ensemble_of(store: Store, root: Path, which: str = LATEST) -> EnsembleManifest:
    """As :func:`recorded_ensemble`, of an open store."""
    if _typed(which):
        return _by_id(store, root, which)
    with store.session() as session:
        return _manifest(session, root, _row(session, root, which))


def _manifest(session: Session, root: Path, row: EnsembleRow) -> EnsembleManifest:
    manifest = ensembles.manifest_of(session, row, str(root.resolve()))
    return replace(manifest, info={**manifest.info, **_info(session)})


def _by_id(store: Store, root: Path, name: str) -> EnsembleManifest:
    """The ensemble of an id, or that of one member alone. Raises InputError."""
    from hpcal.report.lineage import trace

    found = trace(store, name)
    with store.session() as session:
        row = ensembles.get(session, int(found["ensemble"]["id"]))
        manifest = _manifest(session, root, row)
    if found["kind"] == "model":
        path = (root / str(found["model"]["path"])).resolve()
        manifest = _only(manifest, path) or replace(manifest, members=())
    elif row.state not in _TRAINED:
        manifest = replace(manifest, members=())
    if not manifest.members:
        raise InputError(f"{name} of {root} is not trained: `hpcal trace {root} {name}` says why")
    return manifest


def _row(session: Session, root: Path, generation: str) -> EnsembleRow:
    """The newest revision of a generation."""
    if generation == LATEST:
        found = queries.newest_ensemble(session, EnsembleState.PROMOTED)
        if found is None:
            raise InputError(f"{root} has no promoted ensemble yet")
        return found[0]
    if not generation.isdecimal():
        raise InputError(
            f"{generation!r} is no generation: give its number, {LATEST!r}, or an id such as ensemble:2"
        )
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
        InputError: ``out`` is something else than the folder of an ensemble, or cannot be written.
        FormatError: a member file is missing or damaged.
    """
    refuse_other_folder(out)
    verify(manifest.members)
    try:
        return _saved(manifest, out)
    except OSError as error:
        raise InputError(
            f"{out} cannot be written: {error.strerror or error}; nothing of it was kept"
        ) from error


def _saved(manifest: EnsembleManifest, out: Path) -> Path:
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

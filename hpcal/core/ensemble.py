"""A trained ensemble on disk: a manifest that names its members by hash, and loading with a cache."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from hpcal.core.errors import FormatError, InputError
from hpcal.core.plugins import Group, find
from hpcal.core.protocols import Potential

MANIFEST: Final = "ensemble.json"
CACHED: Final = 4
"""Loaded ensembles that a worker keeps."""


@dataclass(frozen=True, kw_only=True)
class MemberFile:
    """One member: an immutable file and its SHA-256."""

    path: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class EnsembleManifest:
    """What an ensemble consists of.

    Attributes:
        kind: short name of the potential (entry point ``hpcal.potentials``).
        members: files in the order of their index.
        info: what a user of the ensemble wants to know: ``campaign``, ``generation``, ``metric``,
            ``threshold`` (in the metric's unit), ``level`` (level of theory); JSON values.
    """

    kind: str
    members: tuple[MemberFile, ...]
    info: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def hash(self) -> str:
        """SHA-256 over kind and members: the identity of the ensemble."""
        text = self.kind + "".join(m.sha256 for m in self.members)
        return hashlib.sha256(text.encode()).hexdigest()

    def write(self, folder: Path) -> Path:
        """Writes ``ensemble.json``; member paths inside the folder are made relative to it."""
        folder.mkdir(parents=True, exist_ok=True)
        members = [{"path": _relative(Path(m.path), folder), "sha256": m.sha256} for m in self.members]
        text = json.dumps({"kind": self.kind, "members": members, "info": dict(self.info)}, indent=1)
        path = folder / MANIFEST
        path.write_text(text + "\n", encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: Path) -> EnsembleManifest:
        """Reads the manifest of a folder, or the manifest file itself.

        Raises:
            InputError: no such file.
            FormatError: a file that is no manifest.
        """
        file = path / MANIFEST if path.is_dir() else path
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            members = tuple(
                MemberFile(path=str(file.parent / m["path"]), sha256=m["sha256"]) for m in data["members"]
            )
            return cls(kind=data["kind"], members=members, info=data.get("info", {}))
        except FileNotFoundError:
            raise InputError(f"no ensemble at {path}: {file} does not exist") from None
        except UnicodeDecodeError:
            raise FormatError(
                f"{file} is no manifest of an ensemble; give the folder that holds {MANIFEST}"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(f"{file} is no manifest of an ensemble: {error}") from error


_loaded: OrderedDict[tuple[str, str, str], Potential] = OrderedDict()


def load_ensemble(manifest: EnsembleManifest, *, device: str = "cpu", dtype: str = "float32") -> Potential:
    """The ensemble, from this process's cache where it is there.

    Raises:
        FormatError: a member file is missing or its content is not what the manifest recorded.
        PluginError: the kind is not known here.
    """
    key = (manifest.hash, device, dtype)
    if key not in _loaded:
        paths = [Path(m.path) for m in manifest.members]
        verify(manifest.members)
        kind = find(Group.POTENTIALS, manifest.kind)
        _loaded[key] = kind.load(paths, device=device, dtype=dtype)
        while len(_loaded) > CACHED:
            _loaded.popitem(last=False)
    _loaded.move_to_end(key)
    return _loaded[key]


def verify(members: Sequence[MemberFile]) -> None:
    """Compares member files with their hashes.

    Raises:
        FormatError: one is missing or has other content.
    """
    for member in members:
        try:
            found = file_sha256(Path(member.path))
        except OSError as error:
            raise FormatError(f"model file {member.path} cannot be read: {error}") from error
        if found != member.sha256:
            raise FormatError(
                f"model file {member.path} is damaged or was replaced: SHA-256 is {found[:12]}…, "
                f"recorded was {member.sha256[:12]}…; restore it or retrain"
            )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _relative(path: Path, folder: Path) -> str:
    try:
        return str(path.resolve().relative_to(folder.resolve()))
    except ValueError:
        return str(path.resolve())

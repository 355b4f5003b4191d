"""Labels that already stand in a file: replaying a labelled data set as if it were computed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from hpcal.core.arrays import FloatArray, IntArray
from hpcal.core.deadline import Deadline
from hpcal.core.errors import FailureClass, InputError
from hpcal.core.label import Label, LevelOfTheory, Rejection
from hpcal.core.settings import Settings
from hpcal.core.structure import Structure
from hpcal.labeling.failures import check_time


class LookupSettings(Settings):
    """The block ``label`` of a campaign with ``labeler: lookup``."""

    file: Path = Field(description="extended XYZ file with energies and forces")
    level: str | dict[str, Any] = Field(
        default="as stated in the file",
        description="level of theory of the labels: free text, or a record with code, version, method "
        "and settings",
    )
    tolerance_A: float = Field(  # noqa: N815
        default=1e-5,
        ge=0,
        le=0.01,
        description="largest difference of a coordinate between a structure and the one in the file; "
        "covers files that were written with few digits",
    )


class Lookup:
    """Labels read from a file, found by what a structure is: atoms, positions, charge, cell.

    Raises:
        InputError: the file has no labels, or labels of several levels of theory.
        FormatError: the file cannot be read.
    """

    Settings: ClassVar[type[Settings]] = LookupSettings
    isolate: ClassVar[bool] = False
    periodic: ClassVar[bool] = True

    def __init__(self, settings: LookupSettings) -> None:
        from hpcal.exchange.files import read_labelled

        self._settings = settings
        pairs = read_labelled(settings.file, _level(settings))
        if not pairs:
            raise InputError(f"{settings.file} holds no labelled structure")
        levels = {label.level for _, label in pairs}
        if len(levels) > 1:
            names = ", ".join(sorted(str(level) for level in levels))
            raise InputError(
                f"{settings.file} holds labels of several levels of theory ({names}); state `level` if "
                "they are one, or split the file"
            )
        self._level = next(iter(levels))
        self._exact = {structure.content_hash: label for structure, label in reversed(pairs)}
        self._shelves = {key: _Shelf.of(members) for key, members in _grouped(pairs).items()}
        self._elements = frozenset(int(z) for structure, _ in pairs for z in structure.numbers)

    @property
    def level(self) -> LevelOfTheory:
        """The level of theory of the file."""
        return self._level

    def missing_elements(self, numbers: Sequence[int]) -> tuple[int, ...]:
        """Those of the atomic numbers that occur nowhere in the file."""
        return tuple(z for z in numbers if z not in self._elements)

    def label(self, structure: Structure, deadline: Deadline) -> Label | Rejection:
        """The label of the file, or a rejection with code ``not_in_file``."""
        check_time(deadline)
        label = self._exact.get(structure.content_hash)
        if label is None and (shelf := self._shelves.get(_key(structure))) is not None:
            label = shelf.find(structure, self._settings.tolerance_A)
        if label is not None:
            return replace(label, diagnostics={**label.diagnostics, "source": self._settings.file.name})
        return Rejection(
            failure_class=FailureClass.INPUT,
            code="not_in_file",
            message=f"{structure.formula} with these positions, charge {structure.charge} and "
            f"multiplicity {structure.multiplicity} is not in {self._settings.file}; lookup labels only "
            "structures of its file",
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Shelf:
    """The labels of one composition in one order of atoms, sorted by a projection of the geometry.

    Attributes:
        weights: (C,) unequal weights of the coordinates in the projection.
        projections: (n,) ascending.
        coordinates: (n, C) positions and cell, in the order of the projections.
        labels: the labels in that order.
    """

    weights: FloatArray
    projections: FloatArray
    coordinates: FloatArray
    labels: tuple[Label, ...]

    @classmethod
    def of(cls, pairs: Sequence[tuple[Structure, Label]]) -> _Shelf:
        coordinates = np.array([_coordinates(structure) for structure, _ in pairs])
        weights = np.linspace(1.0, 2.0, coordinates.shape[1])
        projections = coordinates @ weights
        order = np.argsort(projections, kind="stable")
        return cls(
            weights=weights,
            projections=projections[order],
            coordinates=coordinates[order],
            labels=tuple(pairs[i][1] for i in order),
        )

    def find(self, structure: Structure, tolerance: float) -> Label | None:
        """The label whose geometry is nearest, if no coordinate differs by more than ``tolerance``."""
        wanted = _coordinates(structure)
        here = float(wanted @ self.weights)
        # Coordinates within the tolerance have projections within this reach; the last term is for
        # rounding in the two sums.
        reach = tolerance * float(self.weights.sum()) + 1e-9 * max(1.0, abs(here))
        low, high = np.searchsorted(self.projections, (here - reach, here + reach))
        if low == high:
            return None
        apart = np.abs(self.coordinates[low:high] - wanted).max(axis=1)
        nearest = int(np.argmin(apart))
        return self.labels[int(low) + nearest] if apart[nearest] <= tolerance else None


def _grouped(
    pairs: Iterable[tuple[Structure, Label]],
) -> dict[tuple[Any, ...], list[tuple[Structure, Label]]]:
    groups: dict[tuple[Any, ...], list[tuple[Structure, Label]]] = {}
    for structure, label in pairs:
        groups.setdefault(_key(structure), []).append((structure, label))
    return groups


def _key(structure: Structure) -> tuple[Any, ...]:
    numbers: IntArray = structure.numbers
    return (
        numbers.tobytes(),
        structure.charge,
        structure.multiplicity,
        structure.pbc,
        structure.cell is not None,
    )


def _coordinates(structure: Structure) -> FloatArray:
    if structure.cell is None:
        return structure.positions.ravel()
    return np.concatenate([structure.positions.ravel(), structure.cell.ravel()])


def _level(settings: LookupSettings) -> LevelOfTheory | None:
    """The level that the user states, or None to take the file's word."""
    if settings.level == "as stated in the file":
        return None
    if isinstance(settings.level, str):
        return LevelOfTheory(code="file", version=_digest(settings.file), method=settings.level)
    unknown = sorted(set(settings.level) - {"code", "version", "method", "settings"})
    if unknown or "method" not in settings.level:
        raise InputError(
            "`level` of a lookup is free text or a record with method, and optionally code, version and "
            f"settings; given: {json.dumps(settings.level, default=str)}"
        )
    return LevelOfTheory(
        code=str(settings.level.get("code", "file")),
        version=str(settings.level.get("version", _digest(settings.file))),
        method=str(settings.level["method"]),
        settings=settings.level.get("settings", {}),
    )


def _digest(path: Path) -> str:
    """First digits of the file's SHA-256: what stands for a version where the user gives none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:12]
    except OSError as error:
        raise InputError(f"file of labels {path} cannot be read: {error.strerror or error}") from error

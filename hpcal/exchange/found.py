"""What a reader finds in a data file: structures, labels, and what units and level they were in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure
from hpcal.core.walker import Split

Format = Literal["extxyz", "npz", "ani", "spice", "hpcal", "ase", "deepmd"]
FORMATS: Final[tuple[Format, ...]] = ("extxyz", "npz", "ani", "spice", "hpcal", "ase", "deepmd")

Source = Literal["stated by the file", "known of the format", "given", "unknown"]
"""Where a unit or a level of theory was learned from."""

Multiplicity = int | Literal["lowest"]


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What the user says of a file that the file does not say itself.

    Attributes:
        format: how to read it; None decides by extension and content.
        energy_unit: unit of energies, such as ``kcal/mol``.
        length_unit: unit of coordinates and cells.
        force_unit: unit of forces, such as ``Hartree/bohr``; the two above where not given.
        gradient: whether what the file calls forces is dE/dx (True) or −dE/dx (False); None
            takes what the format or the name of the array says.
        level: the level of theory of all labels.
        energy_key: name of the energies in the file, where it has several or an unusual one.
        forces_key: the same of the forces.
        stress_key: the same of the stress.
        charge: total charge, e, of structures whose charge is not stated.
        multiplicity: of structures whose multiplicity is not stated; ``lowest`` is 1 for an even
            and 2 for an odd number of electrons.
        split: of structures whose split is not stated.
    """

    format: Format | None = None
    energy_unit: str | None = None
    length_unit: str | None = None
    force_unit: str | None = None
    gradient: bool | None = None
    level: LevelOfTheory | None = None
    energy_key: str | None = None
    forces_key: str | None = None
    stress_key: str | None = None
    charge: int | None = None
    multiplicity: Multiplicity | None = None
    split: Split | None = None


@dataclass(frozen=True, kw_only=True)
class UnitsRead:
    """Names of the units that a file was read in, and where they were learned from.

    Attributes:
        gradient: whether the file holds gradients, whose sign was turned.
    """

    energy: str
    length: str
    force: str
    source: Source
    gradient: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class FoundFrame:
    """A structure and, where it has one, its label, in the units of hpcal.

    Attributes:
        info: what else the file says of it; ``split`` if it is known.
    """

    structure: Structure
    label: Label | None
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many structures there are, and how many of them have what.

    Attributes:
        isolated_atoms: structures of one atom that are not periodic.
        elements: atomic numbers that occur, ascending.
        formulas: structures of each Hill formula, most frequent first.
        splits: structures of each split that is stated.
    """

    structures: int
    energies: int
    forces: int
    stresses: int
    charges: int
    isolated_atoms: int
    periodic: int
    elements: tuple[int, ...]
    formulas: Mapping[str, int]
    splits: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """A data file, read whole and checked.

    Attributes:
        format: how it was read.
        frames: structures and labels in the units of hpcal, in the order of the file.
        units: those of the file; ``unknown`` of a file that holds no labels to have units.
        level_source: where the level of theory was learned from.
        notes: what a person should know of this file, one sentence each.
        unread: names of arrays and keys that may be parts of labels, but were not read as such.
    """

    path: Path
    format: Format
    frames: Sequence[FoundFrame]
    units: UnitsRead
    level_source: Source
    notes: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    @cached_property
    def levels(self) -> tuple[LevelOfTheory, ...]:
        """Levels of theory that labels are at, in order of appearance; unknown ones left out."""
        return tuple(
            level
            for level in dict.fromkeys(f.label.level for f in self.frames if f.label is not None)
            if not is_unknown(level)
        )

    @property
    def level(self) -> LevelOfTheory | None:
        """The one level of theory of all labels, or None if it is unknown or there are several."""
        everywhere = not any(f.label is not None and is_unknown(f.label.level) for f in self.frames)
        return self.levels[0] if everywhere and len(self.levels) == 1 else None

    @cached_property
    def counts(self) -> Counts:
        """How many structures there are, and how many of them have what."""
        labels = [f.label for f in self.frames if f.label is not None]
        # Formulas are told once for each list of atoms, of which a trajectory has one.
        atoms = Counter(f.structure.numbers.tobytes() for f in self.frames)
        examples = {f.structure.numbers.tobytes(): f.structure for f in self.frames}
        formulas: Counter[str] = Counter()
        for key, count in atoms.items():
            formulas[examples[key].formula] += count
        splits = Counter(str(f.info["split"]) for f in self.frames if "split" in f.info)
        return Counts(
            structures=len(self.frames),
            energies=len(labels),
            forces=sum(label.forces is not None for label in labels),
            stresses=sum(label.stress is not None for label in labels),
            charges=sum(label.charges is not None for label in labels),
            isolated_atoms=sum(len(f.structure) == 1 and not f.structure.periodic for f in self.frames),
            periodic=sum(f.structure.periodic for f in self.frames),
            elements=tuple(sorted({int(z) for s in examples.values() for z in s.numbers})),
            formulas=dict(formulas.most_common()),
            splits=dict(splits),
        )


def looks_like_forces(name: str) -> bool:
    """Whether an array of this name may hold forces or gradients."""
    return "force" in name.lower() or "grad" in name.lower()


def looks_like_label(name: str) -> bool:
    """Whether an array or key of this name may hold energies, forces or gradients."""
    return "energ" in name.lower() or looks_like_forces(name)


def unknown_level(path: Path) -> LevelOfTheory:
    """What stands for the level of theory of labels whose file does not state it."""
    return LevelOfTheory(code="file", version="unknown", method=f"as in {path.name}")


def is_unknown(level: LevelOfTheory) -> bool:
    """Whether this is what :func:`unknown_level` puts in the place of a level."""
    return (level.code, level.version) == ("file", "unknown") and level.method.startswith("as in ")


def level_of_text(text: str) -> LevelOfTheory:
    """The level of a file that states it in words alone, such as ``wb97x/6-31g*``."""
    return LevelOfTheory(code="file", version="unknown", method=text)

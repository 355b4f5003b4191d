"""From the units of a file to those of hpcal: what is stated, known or given, and what is ambiguous."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hpcal.core.errors import FormatError
from hpcal.exchange.found import ReadOptions, Source, UnitsRead
from hpcal.exchange.quantities import (
    ANGSTROM,
    EV,
    Unit,
    energy_unit,
    force_of,
    force_unit,
    length_unit,
)

Quantity = Literal["energy", "length", "force"]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The units of the numbers in a file, and the sign of its forces.

    Attributes:
        gradient: whether the file holds dE/dx instead of forces.
    """

    energy: Unit
    length: Unit
    force: Unit
    source: Source
    gradient: bool = False

    @property
    def force_factor(self) -> float:
        """What to multiply the file's forces or gradients by to have forces in eV/Å."""
        return -self.force.factor if self.gradient else self.force.factor

    def read(self) -> UnitsRead:
        """The names alone, for a person."""
        return UnitsRead(
            energy=self.energy.name,
            length=self.length.name,
            force=self.force.name,
            source=self.source,
            gradient=self.gradient,
        )


INSIDE = Scale(energy=EV, length=ANGSTROM, force=force_of(EV, ANGSTROM), source="known of the format")
"""The units of hpcal itself, which are those of ASE, extended XYZ and DeePMD too."""


@dataclass(frozen=True, kw_only=True)
class FileUnits:
    """What a file or its format says of units; None of what it does not say.

    Attributes:
        stated: what the file itself says, so that another unit given is a contradiction.
        hint: what the numbers look like, for the message on an ambiguous file.
    """

    energy: Unit | None = None
    length: Unit | None = None
    force: Unit | None = None
    gradient: bool = False
    stated: frozenset[Quantity] = frozenset()
    hint: str = ""


def resolve(path: Path, options: ReadOptions, file: FileUnits, *, labelled: bool = True) -> Scale:
    """The units to read a file in.

    Args:
        labelled: whether there are energies, whose unit has to be known.

    Raises:
        FormatError: the file is ambiguous and no option says what it is in, or an option
            contradicts what the file states.
    """
    given_energy = energy_unit(options.energy_unit) if options.energy_unit else None
    given_length = length_unit(options.length_unit) if options.length_unit else None
    given_force = force_unit(options.force_unit) if options.force_unit else None
    stated = stated_of(energy=file.energy, length=file.length, force=file.force) & file.stated
    given: dict[Quantity, Unit | None] = {
        "energy": given_energy,
        "length": given_length,
        "force": given_force,
    }
    for name in sorted(stated):
        _same(path, given[name], getattr(file, name))
    energy, length = given_energy or file.energy, given_length or file.length
    missing = [] if length else ["--length-unit (such as Å or bohr)"]
    if labelled and not energy:
        missing.insert(0, "--energy-unit (such as eV, Hartree or kcal/mol)")
    if missing or length is None:
        raise FormatError(
            f"{path} is ambiguous: neither the file nor its format says what units it is in{file.hint}; "
            f"give {' and '.join(missing)}, and --force-unit where forces are in others than these; for "
            "commands without these options, convert it with `hpcal import FILE --to …`"
        )
    energy = energy or EV
    main: Quantity = "energy" if labelled else "length"
    changed = given_energy is not None or given_length is not None
    own_force = None if changed and "force" not in stated else file.force
    anything_given = any(unit is not None and name not in stated for name, unit in given.items())
    return Scale(
        energy=energy,
        length=length,
        force=given_force or own_force or force_of(energy, length),
        source="given"
        if anything_given
        else "stated by the file"
        if main in stated
        else "known of the format",
        gradient=file.gradient if options.gradient is None else options.gradient,
    )


def stated_of(
    *, energy: Unit | None = None, length: Unit | None = None, force: Unit | None = None
) -> frozenset[Quantity]:
    """Those quantities that there is a unit of."""
    units: dict[Quantity, Unit | None] = {"energy": energy, "length": length, "force": force}
    return frozenset(name for name, unit in units.items() if unit is not None)


def refuse_names(path: Path, options: ReadOptions, kind: str, *, stress_only: bool = False) -> None:
    """Raises FormatError for names of arrays given for a format whose names are fixed.

    Args:
        kind: what the file is, for the message.
        stress_only: whether only the name of the stress is fixed, or there is none.
    """
    names = {
        "--energy-key": None if stress_only else options.energy_key,
        "--forces-key": None if stress_only else options.forces_key,
        "--stress-key": options.stress_key,
    }
    given = [option for option, value in names.items() if value is not None]
    if given:
        raise FormatError(f"{path} is {kind}, where {given[0]} names nothing that is read: leave it out")


def _same(path: Path, given: Unit | None, stated: Unit | None) -> None:
    if given is not None and stated is not None and given != stated:
        raise FormatError(
            f"{path} says that it is in {stated.name}, not {given.name}; leave the option out, or correct "
            "the attribute in the file"
        )

"""Units as people and files write them, and the factors into those of hpcal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hpcal.core.errors import InputError
from hpcal.core.units import BOHR, HARTREE, KCAL_PER_MOL

_JOULE_PER_CALORIE: Final = 4.184


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A unit by its usual name, and what one of it is in eV, Å or eV/Å."""

    name: str
    factor: float


EV: Final = Unit(name="eV", factor=1.0)
HARTREES: Final = Unit(name="Hartree", factor=HARTREE)
KCAL: Final = Unit(name="kcal/mol", factor=KCAL_PER_MOL)
ANGSTROM: Final = Unit(name="Å", factor=1.0)
BOHRS: Final = Unit(name="bohr", factor=BOHR)

ENERGIES: Final[tuple[Unit, ...]] = (
    EV,
    HARTREES,
    KCAL,
    Unit(name="kJ/mol", factor=KCAL_PER_MOL / _JOULE_PER_CALORIE),
    Unit(name="Ry", factor=HARTREE / 2.0),
    Unit(name="meV", factor=1e-3),
)
LENGTHS: Final[tuple[Unit, ...]] = (ANGSTROM, BOHRS, Unit(name="nm", factor=10.0))

_SPELLINGS: Final = {
    "electronvolt": "ev",
    "ha": "hartree",
    "eh": "hartree",
    "e_h": "hartree",
    "hartrees": "hartree",
    "kcal": "kcal/mol",
    "kcal/mole": "kcal/mol",
    "kj": "kj/mol",
    "kj/mole": "kj/mol",
    "rydberg": "ry",
    "a": "å",
    "ang": "å",
    "angstrom": "å",
    "angstroms": "å",
    "ångström": "å",
    "a0": "bohr",
    "a_0": "bohr",
    "bohrs": "bohr",
    "nanometer": "nm",
}


def energy_unit(text: str) -> Unit:
    """The unit of energy of a name, in any letter case. Raises InputError for an unknown one."""
    return _named(text, ENERGIES, "energy")


def length_unit(text: str) -> Unit:
    """The unit of length of a name, in any letter case. Raises InputError for an unknown one."""
    return _named(text, LENGTHS, "length")


def force_unit(text: str) -> Unit:
    """A unit of force: a unit of energy, a slash, a unit of length. Raises InputError otherwise."""
    energy, slash, length = text.strip().rpartition("/")
    try:
        if slash:
            return force_of(energy_unit(energy), length_unit(length))
    except InputError:
        pass
    raise InputError(f"unknown unit of force {text!r}; write energy/length, such as Hartree/bohr or eV/Å")


def force_of(energy: Unit, length: Unit) -> Unit:
    """The unit of force that belongs to a unit of energy and one of length."""
    return Unit(name=f"{energy.name}/{length.name}", factor=energy.factor / length.factor)


def _named(text: str, known: tuple[Unit, ...], quantity: str) -> Unit:
    word = "".join(text.lower().split())
    word = _SPELLINGS.get(word, word)
    for unit in known:
        if unit.name.lower() == word:
            return unit
    names = ", ".join(unit.name for unit in known)
    raise InputError(f"unknown unit of {quantity} {text!r}; known: {names}")

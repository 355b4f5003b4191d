"""A label: what quantum chemistry said of a structure, at which level, and how it was checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from hpcal.core.arrays import FloatArray, frozen
from hpcal.core.errors import FailureClass, StructureError


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How far labels of a level may scatter for numerical reasons: grid, convergence, fitting.

    Attributes:
        energy: eV/atom.
        force: eV/Å, of one component.
    """

    energy: float
    force: float

    def __post_init__(self) -> None:
        for name in ("energy", "force"):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and np.isfinite(value) and value >= 0):
                raise StructureError(
                    f"noise of a level of theory: {name} is {value!r}, not a number of 0 or more"
                )


@dataclass(frozen=True, kw_only=True, eq=False)
class LevelOfTheory:
    """Everything that decides the value of a label, as a record with a hash.

    Attributes:
        code: program or library, such as ``tblite``.
        version: its version; part of the hash, as values change between versions.
        method: Hamiltonian or functional, such as ``GFN2-xTB`` or ``wb97x``.
        settings: what else decides the value (basis, ECP, density fitting, grid, convergence,
            reference policy, dispersion …), JSON values only.
        noise: declared numerical noise of its labels, or None; says how well a level is
            calculated and not which one it is, so that it is no part of the hash.

    Raises:
        StructureError: a name that is no text, or settings that are no JSON values.
    """

    code: str
    version: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    noise: Noise | None = None

    def __post_init__(self) -> None:
        for name in ("code", "version", "method"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise StructureError(f"{name} of a level of theory is {value!r}, not a text")
        try:
            json.dumps(dict(self.settings), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise StructureError(f"settings of level of theory {self.method!r}: {error}") from error

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> LevelOfTheory:
        """The level of :meth:`as_dict`.

        Raises:
            TypeError: a key that it does not have.
        """
        noise = record.get("noise")
        return cls(**{**record, "noise": None if noise is None else Noise(**noise)})

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON values."""
        declared = {} if self.noise is None else {"noise": asdict(self.noise)}
        return {**self._decisive, **declared}

    @property
    def _decisive(self) -> dict[str, Any]:
        return {
            "code": self.code,
            "version": self.version,
            "method": self.method,
            "settings": dict(self.settings),
        }

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON of what decides a value."""
        text = json.dumps(self._decisive, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LevelOfTheory) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    def __str__(self) -> str:
        basis = self.settings.get("basis")
        return f"{self.method}/{basis} ({self.code})" if basis else f"{self.method} ({self.code})"


@dataclass(frozen=True, kw_only=True, eq=False)
class Label:
    """The result of one accepted calculation on one structure of N atoms.

    Attributes:
        energy: total energy, eV.
        forces: (N, 3) eV/Å, or None where the method gives no gradient.
        stress: (3, 3) eV/Å³, positive in tension, or None.
        dipole: (3,) e·Å about ``dipole_origin``, or None.
        dipole_origin: (3,) Å; matters for ions.
        quadrupole: (3, 3) e·Å², second moments Σ q x xᵀ of all charges about ``dipole_origin``, their
            trace included, or None.
        charges: (N,) partial charges, e, by ``charge_scheme``, or None.
        charge_scheme: name of the scheme, such as ``mulliken``.
        other_charges: (N,) partial charges, e, by the names of further schemes.
        level: the level of theory.
        diagnostics: how it was checked and what was seen (rung, reference, <S²>, net force,
            gap, timings, ``checks``); JSON values only.
        qm_calls: energy or gradient evaluations that this label took.
    """

    energy: float
    forces: FloatArray | None
    level: LevelOfTheory
    stress: FloatArray | None = None
    dipole: FloatArray | None = None
    dipole_origin: FloatArray | None = None
    quadrupole: FloatArray | None = None
    charges: FloatArray | None = None
    charge_scheme: str | None = None
    other_charges: Mapping[str, FloatArray] = field(default_factory=dict)
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    qm_calls: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "energy", float(self.energy))
        shapes = {
            "forces": (-1, 3),
            "stress": (3, 3),
            "dipole": (3,),
            "dipole_origin": (3,),
            "quadrupole": (3, 3),
            "charges": (-1,),
        }
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _shaped(name, value, shape))
        others = {name: _shaped(name, value, (-1,)) for name, value in self.other_charges.items()}
        object.__setattr__(self, "other_charges", others)


@dataclass(frozen=True, kw_only=True)
class Audit:
    """An expensive check that a sample of the labels gets.

    Attributes:
        name: short stable name, such as ``finite_difference``.
        passed: whether the label may stand; one that only informs always lets it.
        value: what was found, or None.
        limit: what is allowed, or None if it only informs.
        problem: one sentence for a person, empty if passed.
        qm_calls: evaluations that it took.
    """

    name: str
    passed: bool
    value: float | None = None
    limit: float | None = None
    problem: str = ""
    qm_calls: int = 0

    def record(self) -> dict[str, Any]:
        """What a label keeps of it."""
        return {"value": self.value, "limit": self.limit, "passed": self.passed}


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """A structure that was not labelled, and why.

    Attributes:
        failure_class: decides what happens next.
        code: short stable name, such as ``scf_not_converged``.
        message: one sentence for a person.
        diagnostics: what was seen; JSON values only.
        qm_calls: evaluations spent before it was turned away.
        quarantine: whether the structure is set aside for a person to look at, rather than
            rejected; those of class ``input`` always are.
    """

    failure_class: FailureClass
    code: str
    message: str
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    qm_calls: int = 0
    quarantine: bool = False

    @property
    def set_aside(self) -> bool:
        """Whether the structure is set aside for a person to look at."""
        return self.quarantine or self.failure_class is FailureClass.INPUT


def _shaped(name: str, value: Any, shape: tuple[int, ...]) -> FloatArray:
    """A value as a frozen array of a shape in which -1 stands for any length."""
    array = np.array(value, dtype=np.float64)
    if array.ndim != len(shape) or any(w not in (-1, h) for w, h in zip(shape, array.shape, strict=True)):
        raise StructureError(f"{name} of a label have shape {array.shape}")
    return frozen(array)

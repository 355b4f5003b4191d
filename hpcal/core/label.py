"""A label: what quantum chemistry said of a structure, at which level, and how it was checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from hpcal.core.arrays import FloatArray, frozen
from hpcal.core.errors import FailureClass, StructureError


@dataclass(frozen=True, kw_only=True, eq=False)
class LevelOfTheory:
    """Everything that decides the value of a label, as a record with a hash.

    Attributes:
        code: program or library, such as ``tblite``.
        version: its version; part of the hash, as values change between versions.
        method: Hamiltonian or functional, such as ``GFN2-xTB`` or ``wb97x``.
        settings: what else decides the value (basis, ECP, density fitting, grid, convergence,
            reference policy, dispersion …), JSON values only.
    """

    code: str
    version: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON values."""
        return {
            "code": self.code,
            "version": self.version,
            "method": self.method,
            "settings": dict(self.settings),
        }

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON."""
        text = json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"))
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
        charges: (N,) partial charges, e, by ``charge_scheme``, or None.
        charge_scheme: name of the scheme, such as ``mulliken``.
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
    charges: FloatArray | None = None
    charge_scheme: str | None = None
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    qm_calls: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "energy", float(self.energy))
        shapes = {
            "forces": (-1, 3),
            "stress": (3, 3),
            "dipole": (3,),
            "dipole_origin": (3,),
            "charges": (-1,),
        }
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is None:
                continue
            array = np.array(value, dtype=np.float64)
            if array.ndim != len(shape) or any(
                w not in (-1, h) for w, h in zip(shape, array.shape, strict=True)
            ):
                raise StructureError(f"{name} of a label have shape {array.shape}")
            object.__setattr__(self, name, frozen(array))


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """A structure that was not labelled, and why.

    Attributes:
        failure_class: decides what happens next.
        code: short stable name, such as ``scf_not_converged``.
        message: one sentence for a person.
        diagnostics: what was seen; JSON values only.
        qm_calls: evaluations spent before it was turned away.
    """

    failure_class: FailureClass
    code: str
    message: str
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    qm_calls: int = 0

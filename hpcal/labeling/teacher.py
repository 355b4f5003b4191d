"""A finished ensemble as the source of labels: cheap, exact about itself, for tests and distillation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field

from hpcal.core.batch import Batch
from hpcal.core.deadline import Deadline
from hpcal.core.ensemble import EnsembleManifest, load_ensemble
from hpcal.core.errors import FailureClass
from hpcal.core.label import Label, LevelOfTheory, Rejection
from hpcal.core.settings import Settings
from hpcal.core.structure import Structure
from hpcal.labeling.failures import check_time


class TeacherSettings(Settings):
    """The block ``label`` of a campaign with ``labeler: teacher``."""

    model: Path = Field(description="folder of a trained ensemble, or its manifest ensemble.json")


class Teacher:
    """Labels by the mean of an ensemble, in float64: energy, forces, and stress of crystals.

    Raises:
        InputError: there is no ensemble.
        FormatError: its files are damaged.
    """

    Settings: ClassVar[type[Settings]] = TeacherSettings
    isolate: ClassVar[bool] = False
    periodic: ClassVar[bool] = True

    def __init__(self, settings: TeacherSettings) -> None:
        manifest = EnsembleManifest.read(settings.model)
        self._potential = load_ensemble(manifest, dtype="float64")
        self._capabilities = self._potential.capabilities()
        self._level = LevelOfTheory(
            code="hpcal-teacher",
            version=manifest.hash[:12],
            method=manifest.kind,
            settings={"members": len(manifest.members), "dtype": "float64"},
        )

    @property
    def level(self) -> LevelOfTheory:
        """The ensemble, by its hash."""
        return self._level

    def missing_elements(self, numbers: Sequence[int]) -> tuple[int, ...]:
        """Those of the atomic numbers that the ensemble was not made for."""
        known = self._capabilities.elements
        return () if known is None else tuple(z for z in numbers if z not in known)

    def label(self, structure: Structure, deadline: Deadline) -> Label | Rejection:
        """The ensemble's mean, or a rejection of a structure that it does not take.

        Codes of rejections: ``periodic``, ``state``. An ensemble that knows of charge and spin labels only
        states that it was trained on; one that does not takes every structure for what it was trained on.
        """
        check_time(deadline)
        if structure.periodic and not self._capabilities.periodic:
            return Rejection(
                failure_class=FailureClass.INPUT,
                code="periodic",
                message=f"{structure.formula} is periodic, but potentials of kind {self._level.method!r} "
                "take molecules only",
            )
        if (refused := self._unseen(structure)) is not None:
            return refused
        batch = Batch.of([structure], device=self._potential.device, dtype=torch.float64)
        energies = self._potential.energies(batch)
        stress = self._potential.stress(batch)[0] if structure.periodic else None
        return Label(
            energy=float(energies[:, 0].mean()),
            forces=self._potential.forces(batch)[0].cpu().numpy(),
            stress=None if stress is None else stress.cpu().numpy(),
            level=self._level,
            diagnostics={"energy_std": float(energies[:, 0].std(unbiased=False))},
        )

    def _unseen(self, structure: Structure) -> Rejection | None:
        """The refusal of a charge and multiplicity that the ensemble could only extrapolate to."""
        seen: frozenset[tuple[int, int]] = getattr(self._potential, "states", frozenset())
        if not self._capabilities.charge_aware or (structure.charge, structure.multiplicity) in seen:
            return None
        known = ", ".join(
            f"charge {charge} multiplicity {multiplicity}" for charge, multiplicity in sorted(seen)
        )
        return Rejection(
            failure_class=FailureClass.INPUT,
            code="state",
            message=f"{structure.formula} has charge {structure.charge} and multiplicity "
            f"{structure.multiplicity}, on which the ensemble was not trained ({known or 'no state'} were)",
        )

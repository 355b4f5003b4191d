"""The target of delta learning: the difference of two levels of theory on one structure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final

from pydantic import Field, field_validator

from hpcal.core.arrays import FloatArray
from hpcal.core.deadline import Deadline
from hpcal.core.errors import ConfigurationError, PluginError, TaskFailure
from hpcal.core.label import Label, LevelOfTheory, Noise, Rejection
from hpcal.core.plugins import Group, find
from hpcal.core.settings import Document, Settings, validate
from hpcal.core.structure import Structure
from hpcal.labeling.audits import offered_by
from hpcal.labeling.checks import CheckedLabeler, ChecksSettings, LabelSource
from hpcal.labeling.failures import check_time

CODE: Final = "hpcal-delta"
DEFINITION: Final = "1"
"""Version of what is subtracted and how; part of the level, as a program's version is."""

MakeSource = Callable[[str, Settings], LabelSource]
"""Builds a labeler from its short name and settings, in a child process where it must be."""


class DeltaSettings(Settings):
    """The block ``label`` of a campaign with ``labeler: delta``."""

    target: dict[str, Any] = Field(description="the level to be reached: labeler: NAME and its settings")
    base: dict[str, Any] = Field(description="the level that is taken off: labeler: NAME and its settings")

    @field_validator("target", "base")
    @classmethod
    def _complete(cls, block: dict[str, Any]) -> dict[str, Any]:
        """The block with all its settings, as JSON values."""
        name = block.get("labeler")
        if not isinstance(name, str):
            raise ValueError("key `labeler` is missing; it names the labeler of this level")
        if name == "delta":
            raise ValueError("a difference has no level of its own; name a labeler other than delta")
        try:
            settings = _settings(block)
        except (ConfigurationError, PluginError) as error:
            raise ValueError(str(error)) from None
        return {"labeler": name, **settings.model_dump(mode="json")}

    def in_folder(self, folder: Path) -> DeltaSettings:
        """The same with relative paths of both levels taken as relative to a folder."""
        return DeltaSettings(target=_in_folder(self.target, folder), base=_in_folder(self.base, folder))


def _settings(block: Mapping[str, Any]) -> Settings:
    """The checked settings of one level's block."""
    name = block["labeler"]
    model: type[Settings] = find(Group.LABELERS, name).Settings
    return validate(
        model, Document({k: v for k, v in block.items() if k != "labeler"}, {}, f"labeler {name}")
    )


def _in_folder(block: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    settings = _settings(block)
    paths = {
        name: str(folder / value)
        for name in type(settings).model_fields
        if isinstance(value := getattr(settings, name), Path)
    }
    return {**block, **paths}


class Delta:
    """Labels that are target − base: energy and forces, stress and dipole where both have them.

    Both labels pass the checks before they are subtracted. The diagnostics ``target`` and ``base``
    keep level, energy (eV), qm_calls and diagnostics of each. Where one of them is rejected, that is
    the rejection, with ``rejected_level`` in its diagnostics. Charges and quadrupoles are left out.
    """

    Settings: ClassVar[type[Settings]] = DeltaSettings
    isolate: ClassVar[bool] = False
    difference: ClassVar[bool] = True
    periodic: bool = True

    def __init__(
        self, settings: DeltaSettings, *, make: MakeSource | None = None, checks: ChecksSettings | None = None
    ) -> None:
        """Puts two labelers together.

        Args:
            make: builds each of them; in this process if None.
            checks: what the labels of each must pass; the defaults if None.
        """
        policy = ChecksSettings() if checks is None else checks
        blocks = (settings.target, settings.base)
        sources = [(make or _in_process)(block["labeler"], _settings(block)) for block in blocks]
        self.periodic = all(find(Group.LABELERS, block["labeler"]).periodic for block in blocks)
        self._target, self._base = (CheckedLabeler(s, _own_audits(policy, s, sources)) for s in sources)

    @classmethod
    def compose(
        cls, settings: DeltaSettings, make: MakeSource, checks: ChecksSettings
    ) -> tuple[Delta, ChecksSettings]:
        """The labeler of two that ``make`` builds, and the checks that its own labels are to pass."""
        return cls(settings, make=make, checks=checks), of_difference(checks)

    def close(self) -> None:
        """Ends the child processes of both labelers."""
        self._target.close()
        self._base.close()

    @property
    def level(self) -> LevelOfTheory:
        """The record of both levels; its noise is that of both, where both declare it."""
        target, base = self._target.level, self._base.level
        return LevelOfTheory(
            code=CODE,
            version=DEFINITION,
            method=f"{target.method} - {base.method}",
            settings={"target": _decisive(target), "base": _decisive(base)},
            noise=_quadrature(target.noise, base.noise),
        )

    def missing_elements(self, numbers: Sequence[int]) -> tuple[int, ...]:
        """Those of the atomic numbers that one of the two cannot treat."""
        missing = {*self._target.missing_elements(numbers), *self._base.missing_elements(numbers)}
        return tuple(z for z in numbers if z in missing)

    def label(self, structure: Structure, deadline: Deadline) -> Label | Rejection:
        """The difference, or the rejection of the base or, if that stands, of the target.

        Raises:
            TaskFailure: one of the calculations failed in a way that is not the structure's.
        """
        check_time(deadline)
        base = _asked("base", self._base, structure, deadline)
        if isinstance(base, Rejection):
            return base
        target = _asked("target", self._target, structure, deadline)
        if isinstance(target, Rejection):
            kept = {**target.diagnostics, "base": _kept(base)}
            return replace(target, diagnostics=kept, qm_calls=target.qm_calls + base.qm_calls)
        dipole = _dipole(target, base, structure.charge)
        return Label(
            energy=target.energy - base.energy,
            forces=_less(target.forces, base.forces),
            stress=_less(target.stress, base.stress),
            dipole=dipole,
            dipole_origin=None if dipole is None else target.dipole_origin,
            level=self.level,
            diagnostics={"converged": True, **_size(target), "target": _kept(target), "base": _kept(base)},
            qm_calls=target.qm_calls + base.qm_calls,
        )


def of_difference(checks: ChecksSettings) -> ChecksSettings:
    """The checks of the difference of two labels that have each passed ``checks``.

    Twice the limits of forces: the largest that two labels within them can be apart. The audits are
    those of the two labels.
    """
    return checks.model_copy(
        update={
            "max_net_force_eV_per_A": 2 * checks.max_net_force_eV_per_A,
            "max_force_eV_per_A": 2 * checks.max_force_eV_per_A,
            "audit_share": 0.0,
            "audits": None,
        }
    )


def _in_process(name: str, settings: Settings) -> LabelSource:
    labeler: LabelSource = find(Group.LABELERS, name)(settings)
    return labeler


def _own_audits(
    checks: ChecksSettings, source: LabelSource, sources: Sequence[LabelSource]
) -> ChecksSettings:
    """The checks with those of the audits that are named which this labeler offers.

    Raises:
        ConfigurationError: an audit that neither of the two offers.
    """
    if checks.audits is None:
        return checks
    offered = {name for each in sources for name in offered_by(each)}
    unknown = sorted(set(checks.audits) - offered)
    if unknown:
        raise ConfigurationError(
            f"checks.audits: neither target nor base has an audit {', '.join(unknown)}; they have "
            f"{', '.join(sorted(offered)) or 'none'}"
        )
    own = tuple(name for name in checks.audits if name in offered_by(source))
    return checks.model_copy(update={"audits": own})


def _asked(role: str, labeler: CheckedLabeler, structure: Structure, deadline: Deadline) -> Label | Rejection:
    """One of the two results; a rejection or failure says whose it is."""
    try:
        result = labeler.label(structure, deadline)
    except TaskFailure as failure:
        raise TaskFailure(failure.failure_class, f"{role} of the difference: {failure}") from failure
    if isinstance(result, Label):
        return result
    message = f"{role} of the difference, {labeler.level}: {result.message}"
    return replace(result, message=message, diagnostics={**result.diagnostics, "rejected_level": role})


def _kept(label: Label) -> dict[str, Any]:
    """What the difference keeps of one of its labels."""
    return {
        "level": str(label.level),
        "energy_eV": label.energy,
        "qm_calls": label.qm_calls,
        **label.diagnostics,
    }


def _size(target: Label) -> dict[str, Any]:
    """The size of the expensive calculation, which foretells the time of the next."""
    key = "basis_functions"
    return {key: target.diagnostics[key]} if key in target.diagnostics else {}


def _less(target: FloatArray | None, base: FloatArray | None) -> FloatArray | None:
    return None if target is None or base is None else target - base


def _dipole(target: Label, base: Label, charge: int) -> FloatArray | None:
    """Δμ = μ_target − μ_base about one point, which for the same charges it does not depend on.

    A dipole moves with its origin as μ(o) = μ(o') + Q (o' − o).
    """
    if target.dipole is None or base.dipole is None:
        return None
    if not charge:
        return target.dipole - base.dipole
    if target.dipole_origin is None or base.dipole_origin is None:
        return None
    return target.dipole - (base.dipole + charge * (base.dipole_origin - target.dipole_origin))


def _decisive(level: LevelOfTheory) -> dict[str, Any]:
    """What of a level decides its values; the noise says how well they are calculated."""
    return {key: value for key, value in level.as_dict().items() if key != "noise"}


def _quadrature(target: Noise | None, base: Noise | None) -> Noise | None:
    """Independent scatter of both; unknown where one of them is."""
    if target is None or base is None:
        return None
    return Noise(energy=math.hypot(target.energy, base.energy), force=math.hypot(target.force, base.force))

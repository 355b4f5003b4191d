"""Two tiers: a cheap level turns away structures that are not worth an expensive calculation."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
from pydantic import Field

from hpcal.core.closing import Closing
from hpcal.core.deadline import Deadline
from hpcal.core.elements import symbol
from hpcal.core.errors import FailureClass, InputError, TaskFailure
from hpcal.core.label import Label, LevelOfTheory, Rejection
from hpcal.core.plugins import Group, find
from hpcal.core.protocols import Labeler
from hpcal.core.settings import Settings
from hpcal.core.structure import Structure
from hpcal.labeling.checks import CheckedLabeler, ChecksSettings, precheck
from hpcal.labeling.wire import settings_of

SCREENED: Final = "screened"
"""Code of the rejection of a structure that the screening turned away."""
SCREENING: Final = ChecksSettings(overlap="allow", max_force_eV_per_A=sys.float_info.max, audit_share=0)
"""Checks of the cheap level's own results: overlap and largest force are judged elsewhere."""


class ScreenSettings(Settings):
    """The policy in the block ``label.screen`` of a campaign, beside the labeler that screens."""

    max_force_eV_per_A: float = Field(  # noqa: N815
        default=20.0,
        gt=0,
        description="largest force on an atom, by the screening labeler, of a structure that gets a label",
    )
    on_rejection: Literal["label", "reject"] = Field(
        default="label",
        description="what becomes of a structure that the screening labeler itself rejects, such as by an "
        "SCF that does not converge: it is labelled all the same, or rejected",
    )


@dataclass(frozen=True, kw_only=True)
class Screen:
    """The labeler that screens, and where it draws the line.

    Attributes:
        name: short name of the labeler.
        settings: its checked settings.
        policy: what is turned away.
    """

    name: str
    settings: Settings
    policy: ScreenSettings

    def as_dict(self) -> dict[str, Any]:
        """As JSON values, for tasks."""
        settings, policy = self.settings.model_dump(mode="json"), self.policy.model_dump(mode="json")
        return {"name": self.name, "settings": settings, "policy": policy}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Screen:
        """The screen of :meth:`as_dict`."""
        name = record["name"]
        return cls(
            name=name,
            settings=settings_of(find(Group.LABELERS, name), name, record["settings"]),
            policy=ScreenSettings.model_validate(record["policy"]),
        )

    def check_coverage(self, structures: Sequence[Structure]) -> None:
        """Refuses structures that the screening labeler cannot calculate.

        Raises:
            PluginError: its package is not installed.
            InputError: elements that it does not cover, or periodic structures.
        """
        labeler: Labeler = find(Group.LABELERS, self.name)(self.settings)
        missing = labeler.missing_elements(sorted({int(z) for s in structures for z in s.numbers}))
        if missing:
            raise InputError(
                f"label.screen: {self.name} ({labeler.level}) does not cover "
                f"{', '.join(symbol(z) for z in missing)}; screen with a level that does, or leave "
                "`screen` out"
            )
        if not labeler.periodic and any(s.periodic for s in structures):
            raise InputError(
                f"label.screen: {self.name} ({labeler.level}) takes molecules only and a structure is "
                "periodic; screen with a periodic level such as xtb, or leave `screen` out"
            )


class ScreenedLabeler(Closing):
    """A checked labeler that is asked only about what a cheaper one lets pass; closes both with it.

    The diagnostics of labels and rejections gain ``screen``: level, largest force and its limit in eV/Å,
    seconds, and ``rejected`` with the cheap level's code if it gave no label. ``seconds`` and
    ``qm_calls`` count the screening. What fails a check before the calculation is not screened.
    """

    def __init__(
        self, labeler: CheckedLabeler, checks: ChecksSettings, screen: CheckedLabeler, policy: ScreenSettings
    ) -> None:
        """Puts a screening before a labeler.

        Args:
            checks: those of the labeler.
            screen: the cheap labeler, with the checks ``SCREENING``.
        """
        self._labeler = labeler
        self._checks = checks
        self._screen = screen
        self._policy = policy

    def close(self) -> None:
        """Ends the child processes of both labelers."""
        self._screen.close()
        self._labeler.close()

    @property
    def level(self) -> LevelOfTheory:
        """The level of theory of the labels, which is not the one that screens."""
        return self._labeler.level

    @property
    def periodic(self) -> bool:
        """Whether it takes periodic structures."""
        return self._labeler.periodic and self._screen.periodic

    def missing_elements(self, numbers: Sequence[int]) -> tuple[int, ...]:
        """Those of the atomic numbers that one of the two cannot treat."""
        missing = {*self._labeler.missing_elements(numbers), *self._screen.missing_elements(numbers)}
        return tuple(z for z in numbers if z in missing)

    def label(self, structure: Structure, deadline: Deadline) -> Label | Rejection:
        """A checked label, or why there is none; the code ``screened`` is the screening's.

        Raises:
            TaskFailure: one of the calculations failed in a way that is not the structure's.
        """
        if precheck(structure, self._labeler, self._checks) is not None:
            return self._labeler.label(structure, deadline)
        start = time.perf_counter()
        cheap = self._ask(structure, deadline)
        record: dict[str, Any] = {"level": str(self._screen.level)}
        refused = self._judge(structure, cheap, record)
        spent = round(time.perf_counter() - start, 6)
        result = self._labeler.label(structure, deadline) if refused is None else refused
        seconds = round(spent + result.diagnostics.get("seconds", 0.0), 6)
        diagnostics = {**result.diagnostics, "screen": {**record, "seconds": spent}, "seconds": seconds}
        return replace(result, diagnostics=diagnostics, qm_calls=result.qm_calls + cheap.qm_calls)

    def _ask(self, structure: Structure, deadline: Deadline) -> Label | Rejection:
        """The cheap level's result; a code that fell over on the structure has rejected it."""
        try:
            return self._screen.label(structure, deadline)
        except TaskFailure as failure:
            if failure.failure_class is not FailureClass.PHYSICS:
                raise
            return Rejection(
                failure_class=FailureClass.PHYSICS, code="failed", message=str(failure), qm_calls=1
            )

    def _judge(
        self, structure: Structure, cheap: Label | Rejection, record: dict[str, Any]
    ) -> Rejection | None:
        """Why a structure gets no label, or None; notes in ``record`` what was seen."""
        limit = self._policy.max_force_eV_per_A
        if isinstance(cheap, Rejection):
            record["rejected"] = cheap.code
            if self._policy.on_rejection == "label":
                return None
            return _turned_away(
                f"{record['level']}, which screens, gives {structure.formula} no label ({cheap.code}: "
                f"{cheap.message}), and screen.on_rejection is reject"
            )
        if cheap.forces is None:
            raise TaskFailure(
                FailureClass.INPUT, f"label.screen: {record['level']} gives no forces to screen by; use xtb"
            )
        largest = float(np.linalg.norm(cheap.forces, axis=1).max())
        record |= {"largest_force_eV_per_A": largest, "limit_eV_per_A": limit}
        if largest <= limit:
            return None
        return _turned_away(
            f"the largest force of {structure.formula} by {record['level']}, which screens, is "
            f"{largest:.1f} eV/Å, above screen.max_force_eV_per_A {limit:g}: not worth the expensive level"
        )


def _turned_away(message: str) -> Rejection:
    return Rejection(failure_class=FailureClass.PHYSICS, code=SCREENED, message=message)

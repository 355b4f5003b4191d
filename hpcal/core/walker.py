"""Walkers, what they find, and how they end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from hpcal.core.arrays import FloatArray
from hpcal.core.structure import Structure


class Split(StrEnum):
    """What a structure may be used for; a walker's frames share its split for life."""

    TRAIN = "train"
    VALIDATION = "validation"
    CALIBRATION = "calibration"
    TEST = "test"
    REFERENCE = "reference"

    @property
    def audit(self) -> bool:
        """Whether structures of this split are drawn regardless of their uncertainty."""
        return self in (Split.CALIBRATION, Split.TEST)

    @property
    def learns(self) -> bool:
        """Whether labels of this split may enter a data set."""
        return self in (Split.TRAIN, Split.VALIDATION)


class WalkerEnd(StrEnum):
    """Why a walker ended."""

    QUIET = "quiet"
    """It reached its full time without crossing the threshold."""
    FULL_TIME = "full_time"
    """An audit walker reached its full time; crossing does not end those."""
    CROSSED = "crossed"
    """Its uncertainty crossed the threshold: the frame is a candidate."""
    OVERLAP = "overlap"
    DISSOCIATED = "dissociated"
    FORCE = "force"
    TEMPERATURE = "temperature"
    NOT_FINITE = "not_finite"


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The uncertainty of one structure under one ensemble.

    Attributes:
        energy_std: standard deviation of the energy over members (ddof 0) per square root of
            the number of atoms, eV (Chem. Rev. 2024, 10.1021/acs.chemrev.4c00572, eq 13).
        force_std: largest over atoms of the root of the summed variance of the three force
            components over members, eV/Å.
        trigger: value of the metric that the campaign compares with its threshold.
    """

    energy_std: float
    force_std: float
    trigger: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Walker:
    """A trajectory between two tasks.

    Attributes:
        id: row of the walker; with ``stream`` it keys the walker's random numbers.
        structure: where it is now.
        velocities: (N, 3) Å/fs, or None before its first step.
        step: steps made since its birth.
        steps_full: steps after which it has reached its full time.
        stream: seed of its random stream; noise depends on this and ``step`` alone.
        temperature: K, drawn at birth.
        offers_candidates: False for audit walkers, which run on when they cross.
        frames_at: steps at which a frame is kept whatever its uncertainty (audit walkers).
        state: what else the sampler needs to go on; arrays and JSON values.
    """

    id: int
    structure: Structure
    steps_full: int
    stream: int
    temperature: float
    velocities: FloatArray | None = None
    step: int = 0
    offers_candidates: bool = True
    frames_at: tuple[int, ...] = ()
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """A frame worth keeping.

    Attributes:
        walker_id: who found it.
        structure: the frame.
        step: the walker's step.
        time_fs: the walker's time, fs.
        scores: its uncertainty under the ensemble of the segment.
        reason: ``crossed`` or ``audit``.
    """

    walker_id: int
    structure: Structure
    step: int
    time_fs: float
    scores: Scores
    reason: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Segment:
    """What one task did with one walker.

    Attributes:
        walker: its state at the end of the segment.
        start_step: step at which the segment began.
        end: why the walker ended, or None if it goes on in another task.
        detail: one sentence on the end, with numbers.
        max_trigger: largest value of the trigger metric seen, or None if none was computed.
        bias_ratio: mean of |bias force| / |true force|, or None without a bias.
    """

    walker: Walker
    start_step: int
    end: WalkerEnd | None = None
    detail: str = ""
    max_trigger: float | None = None
    bias_ratio: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleResult:
    """Everything a sampling task gives back.

    Attributes:
        candidates: frames worth keeping, in the order found.
        segments: one for every walker that was given, untouched reserve included.
        atom_steps: atom-steps of force evaluation, for the books.
    """

    candidates: tuple[Candidate, ...]
    segments: tuple[Segment, ...]
    atom_steps: int = 0

"""What the frames that a sampler keeps promise: which ones they are, and what is written with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from hpcal.core.batch import Batch
from hpcal.core.protocols import Potential, Scorer
from hpcal.core.walker import Candidate, Segment, Walker, WalkerEnd
from hpcal.testing import batches
from hpcal.testing.conformance import Subject
from hpcal.testing.geometry import same_atoms

BROKEN: Final = frozenset(WalkerEnd) - {WalkerEnd.QUIET, WalkerEnd.FULL_TIME, WalkerEnd.CROSSED}
"""Ends of walkers that something broke."""


@dataclass(frozen=True, kw_only=True)
class FrameCheck:
    """The candidates of one course of walkers.

    Attributes:
        tolerance: of scores, relative to their size where that is above 1.
    """

    subject: Subject
    scorer: Scorer
    driver: Potential
    tolerance: float

    def walker(self, walker: Walker, segment: Segment, found: Sequence[Candidate]) -> None:
        """The candidates of a walker fit how it ended."""
        name = f"walker {walker.id}"
        if segment.end in (WalkerEnd.QUIET, WalkerEnd.FULL_TIME):
            self.subject.promises(
                "a quiet walker has reached its full time",
                segment.walker.step == walker.steps_full,
                f"{name} ended as {segment.end} at step {segment.walker.step} of {walker.steps_full}",
            )
        for candidate in found:
            self._belongs(walker, candidate)
        if walker.offers_candidates:
            self._offered(segment, found, name)
        else:
            self._audited(walker, segment, found, name)

    def _belongs(self, walker: Walker, candidate: Candidate) -> None:
        self.subject.promises(
            "a candidate has the atoms, charge and multiplicity of its walker",
            same_atoms(candidate.structure, walker.structure),
            f"{candidate.structure.formula} of walker {walker.id}",
        )

    def _offered(self, segment: Segment, found: Sequence[Candidate], name: str) -> None:
        """A walker that offers candidates gives the frame in which it crossed, and no other."""
        promises, end = self.subject.promises, segment.end
        promises(
            "a walker that offers candidates ends as quiet, crossed or broken",
            end in BROKEN | {WalkerEnd.QUIET, WalkerEnd.CROSSED},
            f"{name} ended as {end}",
        )
        promises(
            "a walker gives one candidate if it crossed, and none otherwise",
            len(found) == (1 if end is WalkerEnd.CROSSED else 0),
            f"{len(found)} of {name}, which ended as {end}",
        )
        for candidate in found:
            promises("a crossing gives the reason 'crossed'", candidate.reason == "crossed", candidate.reason)
            promises(
                "what crossed is above the threshold",
                candidate.scores.trigger > self.scorer.threshold,
                f"{candidate.scores.trigger:.6g} of {name}, threshold {self.scorer.threshold:.6g}",
            )
            promises(
                "a walker ends in the frame in which it crossed",
                candidate.step == segment.walker.step and candidate.structure == segment.walker.structure,
                f"{name} at step {segment.walker.step}, candidate at step {candidate.step}",
            )

    def _audited(self, walker: Walker, segment: Segment, found: Sequence[Candidate], name: str) -> None:
        """An audit walker runs on when it crosses, and gives the frames that were asked for."""
        promises, last = self.subject.promises, segment.walker.step
        promises(
            "an audit walker ends at its full time or broken",
            segment.end in BROKEN | {WalkerEnd.FULL_TIME},
            f"{name} ended as {segment.end}",
        )
        other = [c.reason for c in found if c.reason != "audit"]
        promises("audit frames give the reason 'audit'", not other, f"{other} of {name}")
        given = sorted(c.step for c in found)
        due = sorted(set(walker.frames_at))
        broken = segment.end in BROKEN
        needed = [step for step in due if step < last or (step == last and not broken)]
        allowed = [step for step in due if step <= last]
        promises(
            "an audit walker gives exactly the frames of frames_at that it reached",
            set(needed) <= set(given) <= set(allowed) and len(given) == len(set(given)),
            f"steps {given} of {name} ({segment.end} at step {last}), asked for {due}",
        )

    def scores(self, candidates: Sequence[Candidate]) -> None:
        """Scores are the scorer's on the structure, and time goes with steps."""
        for candidate in candidates:
            batch = Batch.of([candidate.structure], device=self.driver.device, dtype=self.driver.dtype)
            (expected,) = self.scorer.scores(batch)
            trigger = float(batches.array(self.scorer.trigger(batch))[0])
            what = f"of walker {candidate.walker_id} at step {candidate.step}"
            for name, wanted in (
                ("energy_std", expected.energy_std),
                ("force_std", expected.force_std),
                ("trigger", trigger),
            ):
                size = 1.0 if np.isnan(wanted) else max(1.0, abs(wanted))
                self.subject.agrees(
                    f"scores of a candidate are the scorer's on its structure ({name} {what})",
                    getattr(candidate.scores, name),
                    wanted,
                    within=self.tolerance * size,
                )
        timesteps = [c.time_fs / c.step for c in candidates if c.step > 0]
        if timesteps:
            spread = max(timesteps) - min(timesteps)
            self.subject.promises(
                "the time of a candidate is positive and goes with its step",
                min(timesteps) > 0 and spread <= 1e-9 * max(timesteps),
                f"from {min(timesteps):.10g} to {max(timesteps):.10g} fs a step; tolerance 1e-9 of that",
            )

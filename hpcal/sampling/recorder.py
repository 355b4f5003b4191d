"""Looks at walkers on the way: scores them, ends those that cross, keeps frames."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hpcal.core.arrays import BoolArray, IntArray
from hpcal.core.batch import Batch
from hpcal.core.protocols import Potential, Scorer
from hpcal.core.walker import Candidate, Scores, WalkerEnd
from hpcal.sampling.bias import WalkerBias
from hpcal.sampling.integrators import PhasePoint
from hpcal.sampling.packing import Packed


@dataclass(frozen=True, kw_only=True, eq=False)
class Due:
    """Which walkers are looked at after a step.

    Attributes:
        scored: (B,) the trigger metric is computed: every ``stride`` steps of a walker after its
            burn-in, and at its full time.
        kept: (B,) a frame is kept whatever its uncertainty.
    """

    scored: BoolArray
    kept: BoolArray

    @property
    def any(self) -> BoolArray:
        """(B,) scored, kept or both."""
        return self.scored | self.kept

    def less(self, gone: BoolArray) -> Due:
        """Without those that are broken."""
        return Due(scored=self.scored & ~gone, kept=self.kept & ~gone)


@dataclass(frozen=True, kw_only=True, eq=False)
class Recorder:
    """Scores the walkers of one batch on their way.

    Attributes:
        stride, burn_in: steps, see :class:`Due`.
        timestep_fs: time of a step.
        frames_at: for each walker the steps at which a frame is kept.
    """

    packed: Packed
    scorer: Scorer
    driver: Potential
    bias: WalkerBias | None
    stride: int
    burn_in: int
    timestep_fs: float
    frames_at: tuple[frozenset[int], ...]

    def due(self, steps: IntArray) -> Due:
        """Who is to be looked at when the walkers have made (B,) steps."""
        scored = (steps >= self.burn_in) & ((steps % self.stride == 0) | (steps >= self.packed.steps_full))
        kept = np.zeros(len(steps), dtype=bool)
        for place, frames in enumerate(self.frames_at):
            if frames and int(steps[place]) in frames:
                kept[place] = True
        return Due(scored=scored, kept=kept)

    def look(self, point: PhasePoint, steps: IntArray, due: Due) -> list[Candidate]:
        """Scores, ends the walkers that cross the threshold, and returns the frames to keep."""
        crossed = self._crossed(point, due.scored)
        if self.bias is not None and due.scored.any():
            self._measure_bias(self.bias, point, steps, due.scored)
        record = np.flatnonzero(crossed | due.kept)
        if len(record) == 0:
            return []
        found = self.scorer.scores(self._at(point, record))
        candidates = []
        for place, computed in zip(record.tolist(), found, strict=True):
            row, step = self.packed.rows[place], int(steps[place])
            if crossed[place]:
                # The value that crossed, not one recomputed in a smaller batch with other rounding.
                scores = replace(computed, trigger=row.last_trigger)
                row.finish(WalkerEnd.CROSSED, self._crossing(scores, step))
            else:
                scores = computed
                row.saw(scores.trigger)
            reason = "crossed" if crossed[place] else "audit"
            candidates.append(self._candidate(point, place, step, scores, reason))
        return candidates

    def _crossed(self, point: PhasePoint, scored: BoolArray) -> BoolArray:
        """(B,) walkers that crossed the threshold; remembers the values of all."""
        crossed = np.zeros(len(scored), dtype=bool)
        places = np.flatnonzero(scored)
        if len(places) == 0:
            return crossed
        values = self.scorer.trigger(self._at(point, places)).cpu().tolist()
        for place, value in zip(places.tolist(), values, strict=True):
            row = self.packed.rows[place]
            row.saw(value)
            crossed[place] = row.walker.offers_candidates and value > self.scorer.threshold
        return crossed

    def _measure_bias(self, bias: WalkerBias, point: PhasePoint, steps: IntArray, scored: BoolArray) -> None:
        """Remembers Σ_i |F_bias,i| / Σ_i |F_mean,i| over the atoms of walkers on which the bias acts."""
        time_fs = walker_time(steps, self.timestep_fs, point.positions.device)
        places = np.flatnonzero(bias.acts(time_fs).cpu().numpy() & scored)
        if len(places) == 0:
            return
        mean = self.driver.forces(self._at(point, places)).to(torch.float64)
        total = point.forces[torch.as_tensor(places, device=point.forces.device)]
        ratio = (total - mean).norm(dim=2).sum(dim=1) / mean.norm(dim=2).sum(dim=1)
        for place, value in zip(places.tolist(), ratio.cpu().tolist(), strict=True):
            self.packed.rows[place].bias_ratios.append(value)

    def _at(self, point: PhasePoint, places: IntArray) -> Batch:
        batch = self.packed.at(point.positions)
        if len(places) == len(batch):
            return batch
        return batch.rows(torch.as_tensor(places, device=point.positions.device))

    def _candidate(self, point: PhasePoint, place: int, step: int, scores: Scores, reason: str) -> Candidate:
        walker = self.packed.rows[place].walker
        positions = point.positions[place, : len(walker.structure)].cpu().numpy()
        return Candidate(
            walker_id=walker.id,
            structure=walker.structure.with_positions(positions),
            step=step,
            time_fs=step * self.timestep_fs,
            scores=scores,
            reason=reason,
        )

    def _crossing(self, scores: Scores, step: int) -> str:
        return (
            f"its uncertainty of {scores.trigger:.4g} crossed the threshold of "
            f"{self.scorer.threshold:.4g} after {step * self.timestep_fs:.1f} fs"
        )


def walker_time(steps: IntArray, timestep_fs: float, device: torch.device) -> Tensor:
    """(B,) float64 time since birth, fs, of walkers that have made (B,) steps."""
    return torch.as_tensor(steps * timestep_fs, dtype=torch.float64, device=device)

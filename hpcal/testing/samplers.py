"""What every sampler promises, see ``hpcal.core.protocols.Sampler``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcal.core.batch import Batch
from hpcal.core.codec import pack, unpack
from hpcal.core.deadline import Deadline
from hpcal.core.errors import HpcalError
from hpcal.core.plugins import Group
from hpcal.core.protocols import Capabilities, Potential, Sampler, Scorer
from hpcal.core.settings import Settings
from hpcal.core.walker import Candidate, SampleResult, Segment, Walker
from hpcal.testing.conformance import Subject, other_global_state
from hpcal.testing.frames import FrameCheck
from hpcal.testing.geometry import same_atoms
from hpcal.testing.parts import Part, part_of


def check_sampler(
    sampler: type | str,
    settings: Settings | Mapping[str, Any] | None,
    driver: Potential,
    scorer: Scorer,
    walkers: Sequence[Walker],
    *,
    cuts: Sequence[int] = (1, 7),
    score_tolerance: float = 1e-6,
    seed: int = 0,
) -> None:
    """Checks the promises of a sampler.

    Every walker that is given comes back exactly once, no step beyond its full time, and with a
    reason if it ended; audit walkers give the frames asked for and nothing else; the scores of a
    candidate are the scorer's on its structure; the same walkers give the same result, wherever
    tasks cut their trajectories, to the bit; no time means that nothing changes.

    Args:
        sampler: a short name or class.
        settings: a block of its settings, or None for the defaults.
        driver: what moves the walkers; differentiable where the sampler requires it.
        scorer: metric and threshold; best one that some walkers cross and some do not.
        walkers: at their birth, of different ids and streams: some that offer candidates and some
            audit walkers with ``frames_at`` between 1 and ``steps_full``; of tens of steps.
        cuts: budgets of steps of the tasks into which the trajectories are cut.
        score_tolerance: of scores relative to their size; raise it for a driver in float32.
        seed: of the task's random numbers, which must not matter to a walker.

    Raises:
        ConformanceError: the first promise that is broken.
    """
    _check_walkers(walkers)
    part = part_of(Group.SAMPLERS, sampler, settings)
    check = _SamplerCheck(part=part, driver=driver, scorer=scorer, walkers=tuple(walkers))
    check.description()
    check.no_time()
    with other_global_state(1):
        whole = check.course(None, seed)
    frames = FrameCheck(subject=part.subject, scorer=scorer, driver=driver, tolerance=score_tolerance)
    for walker in walkers:
        found = [c for c in whole.candidates if c.walker_id == walker.id]
        frames.walker(walker, whole.ended[walker.id], found)
    frames.scores(whole.candidates)
    with other_global_state(2):
        check.same(check.course(None, seed), whole, "the same walkers give the same result")
    for steps in cuts:
        with other_global_state(3):
            pieces = check.course(steps, seed + 1)
        check.same(pieces, whole, f"tasks of {steps} steps do not change trajectories")


def _check_walkers(walkers: Sequence[Walker]) -> None:
    ids = {w.id for w in walkers}
    if not walkers or len(ids) < len(walkers) or any(w.step >= w.steps_full for w in walkers):
        raise ValueError("check_sampler needs walkers with different ids that are not at their full time")
    for walker in walkers:
        if any(not walker.step < frame <= walker.steps_full for frame in walker.frames_at):
            raise ValueError(f"frames_at of walker {walker.id} must be among the steps that it has to make")


@dataclass(frozen=True, kw_only=True, eq=False)
class Course:
    """Walkers from where they are to their ends.

    Attributes:
        ended: the segment in which each walker ended, by its id.
        candidates: all, by walker and step.
    """

    ended: Mapping[int, Segment]
    candidates: Sequence[Candidate]


@dataclass(frozen=True, kw_only=True)
class _SamplerCheck:
    part: Part
    driver: Potential
    scorer: Scorer
    walkers: tuple[Walker, ...]

    @property
    def subject(self) -> Subject:
        return self.part.subject

    def description(self) -> None:
        """What the class says of itself, and a driver that does not suit it."""
        promises, cls = self.subject.promises, self.part.cls
        stage, pins = getattr(cls, "stage", None), getattr(cls, "pins_ensemble", None)
        requires = getattr(cls, "requires", None)
        promises("a sampler has stage 'sampling'", stage == "sampling", repr(stage))
        promises("pins_ensemble is True or False", isinstance(pins, bool), repr(pins))
        promises(
            "requires is a frozenset, of 'differentiable' at most",
            isinstance(requires, frozenset) and requires <= {"differentiable"},
            repr(requires),
        )
        steps = self.part.build().steps_full()
        promises(
            "steps_full() is a whole number of at least 1", isinstance(steps, int) and steps >= 1, repr(steps)
        )
        plain = _Plain(self.driver)
        if "differentiable" in cls.requires:
            self.subject.refuses(
                "a driver that is not differentiable is refused",
                lambda: self._sample(self.walkers, Deadline(steps=1), 0, plain),
                HpcalError,
            )
        else:
            self._sample(self.walkers, Deadline(steps=1), 0, plain)

    def _sample(
        self, walkers: Sequence[Walker], deadline: Deadline, seed: int, driver: Potential | None = None
    ) -> SampleResult:
        """One task, with walkers as a task gets them: out of their records."""
        made: Sampler = self.part.build()
        given = [unpack(pack(w)) for w in walkers]
        before = [pack(w) for w in given]
        result = made.sample(given, driver or self.driver, self.scorer, deadline, np.random.default_rng(seed))
        self.subject.promises(
            "walkers are not written to", before == [pack(w) for w in given], "some have changed"
        )
        self._comes_back(walkers, result)
        return result

    def _comes_back(self, walkers: Sequence[Walker], result: SampleResult) -> None:
        promises = self.subject.promises
        ids, found = [w.id for w in walkers], [s.walker.id for s in result.segments]
        promises(
            "every walker that is given comes back exactly once",
            sorted(ids) == sorted(found),
            f"walkers {found}, given {ids}",
        )
        given = {w.id: w for w in walkers}
        moved = 0
        for segment in result.segments:
            walker, before = segment.walker, given[segment.walker.id]
            promises(
                "a segment begins where the walker was",
                segment.start_step == before.step,
                f"start_step {segment.start_step} of walker {walker.id} at step {before.step}",
            )
            promises(
                "steps only rise and never exceed steps_full",
                before.step <= walker.step <= before.steps_full,
                f"walker {walker.id} at step {walker.step}, {before.step} before, {before.steps_full} in all",
            )
            promises(
                "a walker that ended says why in a sentence",
                segment.end is None or bool(segment.detail.strip()),
                f"walker {walker.id} ended as {segment.end} with detail {segment.detail!r}",
            )
            kept = replace(walker, structure=before.structure, velocities=before.velocities, step=before.step)
            promises(
                "a walker keeps its id, atoms, stream, temperature, full time and audit frames",
                same_atoms(walker.structure, before.structure)
                and pack(replace(kept, state=before.state)) == pack(before),
                f"walker {walker.id} came back as another",
            )
            moved += (walker.step - before.step) * len(before.structure)
        promises(
            "atom_steps counts at least one force evaluation of every atom for each step",
            result.atom_steps >= moved,
            f"{result.atom_steps} for {moved} atom-steps made",
        )

    def no_time(self) -> None:
        """Walkers that come too late are returned as they were."""
        deadlines = {
            "a budget of no steps": Deadline(steps=0),
            "a time that is past": Deadline(at=time.monotonic() - 1.0),
            "a stop that was asked for": Deadline(stop=lambda: True),
        }
        for what, deadline in deadlines.items():
            result = self._sample(self.walkers, deadline, 0)
            changed = [
                segment.walker.id
                for walker, segment in zip(_by_id(self.walkers), _by_id_of(result.segments), strict=True)
                if pack(segment.walker) != pack(walker) or segment.end is not None
            ]
            self.subject.promises(
                f"with {what}, walkers are returned unchanged",
                not changed and not result.candidates,
                f"walkers {changed} changed, {len(result.candidates)} candidates",
            )

    def course(self, steps: int | None, seed: int) -> Course:
        """Tasks of so many steps, or without a limit, until all walkers have ended."""
        waiting, ended, candidates = list(self.walkers), dict[int, Segment](), list[Candidate]()
        while waiting:
            seed += 1
            result = self._sample(waiting, Deadline(steps=steps), seed)
            at = {w.id: w.step for w in waiting}
            went_on = [s for s in result.segments if s.end is not None or s.walker.step > at[s.walker.id]]
            self.subject.promises(
                "a task advances some walkers",
                bool(went_on),
                f"none of {len(waiting)} moved or ended with a budget of {steps} steps",
            )
            candidates += result.candidates
            ended |= {s.walker.id: s for s in result.segments if s.end is not None}
            state = {s.walker.id: s.walker for s in result.segments}
            waiting = [state[w.id] for w in waiting if w.id not in ended]
        candidates.sort(key=lambda c: (c.walker_id, c.step, c.reason))
        return Course(ended=ended, candidates=candidates)

    def same(self, found: Course, expected: Course, promise: str) -> None:
        """Two courses agree to the bit."""
        for walker in self.walkers:
            a, b = found.ended[walker.id], expected.ended[walker.id]
            self.subject.promises(
                f"{promise} (how and when walkers end)",
                (a.end, a.walker.step) == (b.end, b.walker.step),
                f"walker {walker.id}: {a.end} at step {a.walker.step}, {b.end} at step {b.walker.step}",
            )
            largest = float(np.abs(a.walker.structure.positions - b.walker.structure.positions).max())
            self.subject.repeats(
                f"{promise} (states of walkers)",
                pack(a.walker),
                pack(b.walker),
                f"walker {walker.id} ends {largest:.3g} Å elsewhere",
            )
        a_steps = [(c.walker_id, c.step) for c in found.candidates]
        b_steps = [(c.walker_id, c.step) for c in expected.candidates]
        self.subject.promises(f"{promise} (candidates)", a_steps == b_steps, f"{a_steps} and {b_steps}")
        for c, d in zip(found.candidates, expected.candidates, strict=True):
            self.subject.repeats(
                f"{promise} (candidates)",
                pack(c),
                pack(d),
                f"that of walker {c.walker_id} at step {c.step}: {c.scores}, {d.scores}",
            )


def _by_id(walkers: Sequence[Walker]) -> list[Walker]:
    return sorted(walkers, key=lambda w: w.id)


def _by_id_of(segments: Sequence[Segment]) -> list[Segment]:
    return sorted(segments, key=lambda s: s.walker.id)


class _Plain:
    """A driver of which nothing is known but forces and energies."""

    def __init__(self, driver: Potential) -> None:
        self._driver = driver

    @property
    def device(self) -> torch.device:
        return self._driver.device

    @property
    def dtype(self) -> torch.dtype:
        return self._driver.dtype

    @property
    def n_members(self) -> int:
        return self._driver.n_members

    def capabilities(self) -> Capabilities:
        return replace(self._driver.capabilities(), differentiable=False)

    def energies(self, batch: Batch) -> Tensor:
        return self._driver.energies(batch)

    def forces(self, batch: Batch) -> Tensor:
        return self._driver.forces(batch)

    def member_forces(self, batch: Batch) -> Tensor:
        return self._driver.member_forces(batch)

    def stress(self, batch: Batch) -> Tensor:
        return self._driver.stress(batch)

    def features(self, batch: Batch) -> Tensor:
        return self._driver.features(batch)

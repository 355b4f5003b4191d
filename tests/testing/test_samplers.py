"""The checks of samplers find what is wrong with a sampler."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from hpcal.core.deadline import Deadline
from hpcal.core.walker import SampleResult, Walker, WalkerEnd
from hpcal.sampling.md import NVE, Langevin
from hpcal.testing import ConformanceError, check_sampler

SETTINGS = {"timestep_fs": 0.5, "time_ps": 0.012, "stride": 3, "burn_in": 0, "batch": 4}


def changed(change):
    """Langevin dynamics whose results are changed."""

    class Changed(Langevin):
        def sample(self, walkers, driver, scorer, deadline, rng):
            result = super().sample(walkers, driver, scorer, deadline, rng)
            return change(result)

    return Changed


def segments(change):
    return changed(lambda r: replace(r, segments=tuple(change(s) for s in r.segments)))


def candidates(change):
    return changed(lambda r: replace(r, candidates=tuple(change(c) for c in r.candidates)))


def only(reason, change):
    return candidates(lambda c: change(c) if c.reason == reason else c)


class TaskNoise(Langevin):
    """Kicks walkers with the random numbers of the task, when it begins."""

    def sample(self, walkers, driver, scorer, deadline, rng):
        kicked = [
            w
            if w.velocities is None or deadline.expired()
            else replace(w, velocities=w.velocities + 1e-9 * rng.standard_normal(w.velocities.shape))
            for w in walkers
        ]
        return super().sample(kicked, driver, scorer, deadline, rng)


class GlobalNoise(Langevin):
    """Takes the stream of a walker from the global generator."""

    def sample(self, walkers, driver, scorer, deadline, rng):
        streams = {w.id: w.stream for w in walkers}
        other = [replace(w, stream=int(np.random.randint(10**6))) for w in walkers]
        result = super().sample(other, driver, scorer, deadline, rng)
        back = [replace(s, walker=replace(s.walker, stream=streams[s.walker.id])) for s in result.segments]
        return replace(result, segments=tuple(back))


class RunsLate(Langevin):
    """Makes a step before it looks at the clock."""

    def sample(self, walkers, driver, scorer, deadline, rng):
        late = Deadline(steps=1) if deadline.expired() else deadline
        return super().sample(walkers, driver, scorer, late, rng)


class Waits(Langevin):
    """Does nothing in tasks that are too short for it."""

    def sample(self, walkers, driver, scorer, deadline, rng):
        if deadline.steps is not None and deadline.steps < 5:
            deadline = Deadline(steps=0)
        return super().sample(walkers, driver, scorer, deadline, rng)


class Overruns(Langevin):
    """Gives walkers two steps more than their full time."""

    def sample(self, walkers, driver, scorer, deadline, rng):
        longer = [replace(w, steps_full=w.steps_full + 2) for w in walkers]
        return super().sample(longer, driver, scorer, deadline, rng)


class Modest(Langevin):
    requires = frozenset({"differentiable"})


class Stageless(NVE):
    stage = "dynamics"


class Undecided(NVE):
    pins_ensemble = "sometimes"


class LastFrames(Langevin):
    """Audit frames a step late."""

    def sample(self, walkers, driver, scorer, deadline, rng):
        late = [replace(w, frames_at=tuple(min(f + 1, w.steps_full) for f in w.frames_at)) for w in walkers]
        result = super().sample(late, driver, scorer, deadline, rng)
        given = {w.id: w for w in walkers}
        back = [
            replace(s, walker=replace(s.walker, frames_at=given[s.walker.id].frames_at))
            for s in result.segments
        ]
        return replace(result, segments=tuple(back))


def moved(walker: Walker) -> Walker:
    return replace(walker, structure=walker.structure.with_positions(walker.structure.positions + 1.0))


CASES = {
    "loses one": (changed(lambda r: replace(r, segments=r.segments[1:])), "comes back exactly once"),
    "doubles one": (
        changed(lambda r: replace(r, segments=(*r.segments, r.segments[0]))),
        "comes back exactly once",
    ),
    "too many steps": (
        segments(lambda s: replace(s, walker=replace(s.walker, step=s.walker.step // 24 + s.walker.step))),
        "never exceed steps_full.*at step 25, .* 24 in all",
    ),
    "no reason": (segments(lambda s: replace(s, detail="")), "says why in a sentence"),
    "another stream": (
        segments(lambda s: replace(s, walker=replace(s.walker, stream=1))),
        "keeps its id, atoms, stream",
    ),
    "other atoms": (
        segments(
            lambda s: replace(
                s, walker=replace(s.walker, structure=replace(s.walker.structure, charge=2))
            )
        ),
        "keeps its id, atoms, stream",
    ),
    "start": (segments(lambda s: replace(s, start_step=0)), "a segment begins where the walker was"),
    "books": (changed(lambda r: replace(r, atom_steps=r.atom_steps // 2)), "atom_steps counts"),
    "late": (RunsLate, "with a budget of no steps, walkers are returned unchanged"),
    "waits": (Waits, "a task advances some walkers.*budget of 1 steps"),
    "overruns": (Overruns, "keeps its id, atoms, stream, temperature, full time"),
    "task noise": (TaskNoise, r"tasks of 1 steps do not change trajectories.*bit for bit"),
    "global noise": (GlobalNoise, "the same walkers give the same result"),
    "too modest": (Modest, "driver that is not differentiable is refused"),
    "stage": (Stageless, "stage 'sampling'"),
    "pins": (Undecided, "pins_ensemble is True or False"),
    "audit frame lost": (
        changed(lambda r: replace(r, candidates=tuple(c for c in r.candidates if c.step != 3))),
        "gives exactly the frames of frames_at",
    ),
    "audit frames late": (LastFrames, "gives exactly the frames of frames_at"),
    "audit reason": (only("audit", lambda c: replace(c, reason="crossed")), "give the reason 'audit'"),
    "crossing lost": (
        changed(lambda r: replace(r, candidates=tuple(c for c in r.candidates if c.reason == "audit"))),
        "one candidate if it crossed",
    ),
    "crossing reason": (only("crossed", lambda c: replace(c, reason="audit")), "the reason 'crossed'"),
    "below threshold": (
        only("crossed", lambda c: replace(c, scores=replace(c.scores, trigger=0.1))),
        "what crossed is above the threshold.*0.1 .*threshold 0.7",
    ),
    "crossing frame": (
        only("crossed", lambda c: replace(c, step=c.step - 1)),
        "ends in the frame in which it crossed",
    ),
    "scores": (
        candidates(lambda c: replace(c, scores=replace(c.scores, force_std=c.scores.force_std + 1e-4))),
        "scores of a candidate are the scorer's.*force_std.*off by 0.0001, tolerance 1e-06",
    ),
    "frame": (
        only(
            "audit",
            lambda c: replace(c, structure=c.structure.with_positions(1.01 * c.structure.positions)),
        ),
        "scores of a candidate are the scorer's on its structure",
    ),
    "time": (only("audit", lambda c: replace(c, time_fs=5.0)), "time of a candidate"),
    "quiet early": (
        segments(lambda s: replace(s, end=WalkerEnd.QUIET) if s.end is WalkerEnd.DISSOCIATED else s),
        "quiet walker has reached its full time",
    ),
    "audit crosses": (
        segments(lambda s: replace(s, end=WalkerEnd.CROSSED) if s.end is WalkerEnd.FULL_TIME else s),
        "audit walker ends at its full time or broken",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_broken_promises(case, ensemble, scorer, walkers):
    sampler, message = CASES[case]
    with pytest.raises(ConformanceError, match=message):
        check_sampler(sampler, SETTINGS, ensemble, scorer, walkers)


class Ticks(Langevin):
    """Numbers its tasks in the state of its walkers."""

    counter = itertools.count()

    def sample(self, walkers, driver, scorer, deadline, rng):
        result = super().sample(walkers, driver, scorer, deadline, rng)
        if result.atom_steps == 0:
            return result
        tick = next(self.counter)
        marked = [replace(s, walker=replace(s.walker, state={"task": tick})) for s in result.segments]
        return replace(result, segments=tuple(marked))


def test_states_are_compared_too(ensemble, scorer, walkers):
    with pytest.raises(ConformanceError, match=r"same result \(states of walkers\)"):
        check_sampler(Ticks, SETTINGS, ensemble, scorer, walkers)


def test_the_walkers_of_these_tests_end_in_all_ways(ensemble, scorer, walkers):
    """Otherwise the checks above would look at nothing."""
    sampler = Langevin(Langevin.Settings(**SETTINGS))
    result = sampler.sample(walkers, ensemble, scorer, Deadline(), np.random.default_rng(0))
    assert isinstance(result, SampleResult)
    ends = {s.end for s in result.segments}
    assert {WalkerEnd.QUIET, WalkerEnd.CROSSED, WalkerEnd.FULL_TIME, WalkerEnd.DISSOCIATED} <= ends
    assert {c.reason for c in result.candidates} == {"audit", "crossed"}


def test_walkers_that_show_nothing_are_refused(ensemble, scorer, walkers):
    for wrong in ([], [walkers[0], walkers[0]], [replace(walkers[0], step=24)]):
        with pytest.raises(ValueError, match="different ids"):
            check_sampler(Langevin, SETTINGS, ensemble, scorer, wrong)
    with pytest.raises(ValueError, match="frames_at of walker"):
        check_sampler(Langevin, SETTINGS, ensemble, scorer, [replace(walkers[0], frames_at=(0,))])

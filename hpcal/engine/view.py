"""What the planner sees: a small snapshot of the store, whose size does not grow with the history."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hpcal.engine.label_time import LabelTimes
from hpcal.store.transitions import EnsembleState


@dataclass(frozen=True, kw_only=True)
class EnsembleView:
    """An ensemble as the planner sees it.

    Attributes:
        id: its row.
        generation: 1 for the first.
        state: where it stands.
        last_seq: commit number up to which labels are in its data set.
        quiet_rounds: quiet rounds in a row up to the moment it was promoted.
        ended: learning walkers that were born under it and have ended.
        crossed: those of them that crossed the threshold.
    """

    id: int
    generation: int
    state: EnsembleState
    last_seq: int
    quiet_rounds: int = 0
    ended: int = 0
    crossed: int = 0


@dataclass(frozen=True, kw_only=True)
class TrainingView:
    """The ensemble in training.

    Attributes:
        ensemble_id: its row.
        members: how many it is to have.
        trained: how many are there.
        longest: seconds that workers were at the longest of the tasks that are done, or None.
        waited: seconds since the quorum was there and every other task had been sent out; 0 before,
            and where durations are virtual.
    """

    ensemble_id: int
    members: int
    trained: int
    longest: float | None = None
    waited: float = 0.0


@dataclass(frozen=True, kw_only=True)
class EntryView:
    """The walkers of one entry of ``sampling``.

    Attributes:
        idle: heads of the queue of walkers that wait for a task.
        alive: idle and claimed ones.
    """

    idle: tuple[int, ...] = ()
    alive: int = 0


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Labelled structures on which an ensemble has not been evaluated."""

    ensemble_id: int
    structure_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class AuditErrors:
    """Errors of the current ensemble on the audit test group.

    Attributes:
        count: structures.
        force_rmse: eV/Å over all components.
        energy_rmse: eV/atom.
    """

    count: int
    force_rmse: float
    energy_rmse: float


@dataclass(frozen=True, kw_only=True)
class View:
    """A snapshot of the store and of the dispatcher.

    Attributes:
        seeds: seeds that wait for their relaxation.
        minima: structures that bootstraps start from.
        unchecked: those whose curvature must be looked at first.
        bootstrapped: (entry, minimum) pairs whose task was made.
        waiting: head of the queue for labels, learning structures.
        waiting_audit: head of the queue for labels, audit frames.
        n_waiting: length of the first queue.
        candidates: head of the queue for selection, all scored by the current ensemble.
        n_candidates: candidates, stale ones included.
        stale: waiting or candidate structures scored by an earlier ensemble.
        n_claimed: structures in labelling tasks.
        labels: accepted labels.
        audit_labels: accepted labels of audit frames, with those claimed.
        learnable: accepted labels that no data set holds yet.
        tasks: outstanding tasks by kind.
        pools: outstanding tasks by pool.
        slots: workers by pool.
        seconds: measured seconds per unit of work by kind.
        label_times: how long labels take by composition, or None where that is not known yet and where
            durations are virtual.
        formulas: Hill formulas of the first waiting structures, where ``label_times`` is known; the
            others wait for the next snapshot.
        label_room: seconds that a label can take at most before its batch job ends, or None.
        current: the promoted ensemble that drives sampling.
        newest: the ensemble of the highest generation.
        training: how far the newest ensemble is, if it is in training.
        gaps: what evaluations are missing, newest ensemble first.
        walkers: one view an entry of ``sampling``.
        audit: errors of the current ensemble, or None without any audit test label.
        failed_stage: a sentence if a stage has failed as a whole.
        turned_away: before the first training, a sentence if all first structures were turned away.
    """

    seeds: tuple[int, ...] = ()
    minima: tuple[int, ...] = ()
    unchecked: tuple[int, ...] = ()
    bootstrapped: frozenset[tuple[int, int]] = frozenset()
    waiting: tuple[int, ...] = ()
    waiting_audit: tuple[int, ...] = ()
    n_waiting: int = 0
    candidates: tuple[int, ...] = ()
    n_candidates: int = 0
    stale: tuple[int, ...] = ()
    n_claimed: int = 0
    labels: int = 0
    audit_labels: int = 0
    learnable: int = 0
    tasks: Mapping[str, int] = field(default_factory=dict)
    pools: Mapping[str, int] = field(default_factory=dict)
    slots: Mapping[str, int] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    label_times: LabelTimes | None = None
    formulas: Mapping[int, str] = field(default_factory=dict)
    label_room: float | None = None
    current: EnsembleView | None = None
    newest: EnsembleView | None = None
    training: TrainingView | None = None
    gaps: tuple[Gap, ...] = ()
    walkers: tuple[EntryView, ...] = ()
    audit: AuditErrors | None = None
    failed_stage: str | None = None
    turned_away: str = ""

    def outstanding(self, *kinds: str) -> int:
        """Outstanding tasks of the kinds."""
        return sum(self.tasks.get(kind, 0) for kind in kinds)

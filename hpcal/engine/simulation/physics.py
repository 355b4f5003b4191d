"""What tasks give back in a simulated campaign: numbers that follow from structures and a seed alone.

Inputs and records have the form of ``hpcal.engine.work``. Nothing is computed: an energy is a hash
of the structure, an uncertainty falls with the number of labels that an ensemble learned from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from hpcal.core.arrays import FloatArray
from hpcal.core.ensemble import MemberFile, verify
from hpcal.core.errors import FailureClass
from hpcal.core.label import Label, LevelOfTheory, Rejection
from hpcal.core.protocols import MemberResult
from hpcal.core.structure import Structure
from hpcal.core.walker import Candidate, SampleResult, Scores, Segment, Walker, WalkerEnd
from hpcal.exchange.hdf5 import read_snapshot

Record = dict[str, Any]
SEGMENT_STEPS: Final = 60
"""Steps of a walker in one task."""
TIMESTEP_FS: Final = 0.5
ATTEMPT_SHIFT_EV: Final = 1e-6
"""Two attempts at one structure differ by this much, so that a label tells which attempt it is of."""


@dataclass(frozen=True, kw_only=True)
class Nature:
    """What this campaign's structures are like.

    Attributes:
        seed: everything follows from it.
        level: level of theory of the labels.
        rejected: share of structures that quantum chemistry turns away.
        broken: share of calculations that break; another attempt may succeed.
        crossing: share of segments in which an uncertain walker crosses the threshold.
        twins: share of walkers that all find the same frames.
        saddles: share of relaxed structures that are saddle points.
        moody: share of trainings whose files are other ones each time.
        poison: share of structures whose label kills the worker.
    """

    seed: int
    level: LevelOfTheory
    rejected: float = 0.0
    broken: float = 0.0
    crossing: float = 0.5
    twins: float = 0.0
    saddles: float = 0.0
    moody: float = 0.0
    poison: float = 0.0

    def unit(self, *keys: object) -> float:
        """A number in [0, 1) of its own for each combination of keys."""
        return int.from_bytes(self._digest(keys)[:7], "little") / 2**56

    def rng(self, *keys: object) -> np.random.Generator:
        """A generator of its own for each combination of keys."""
        return np.random.default_rng(int.from_bytes(self._digest(keys)[:8], "little"))

    def energy(self, content_hash: str, attempt_id: int) -> float:
        """Energy (eV) that an attempt finds for the structure of a hash."""
        return -100.0 * (1.0 + self.unit("energy", content_hash)) + ATTEMPT_SHIFT_EV * attempt_id

    def poisonous(self, content_hash: str) -> bool:
        """Whether the label of the structure of a hash kills the worker."""
        return self.unit("poison", content_hash) < self.poison

    def _digest(self, keys: tuple[object, ...]) -> bytes:
        return hashlib.blake2b(repr((self.seed, *keys)).encode(), digest_size=8).digest()


def records(nature: Nature, kind: str, inputs: Mapping[str, Any], attempt_id: int) -> list[Record | Any]:
    """The records of an attempt at a task that comes to its end; its last one is not among them.

    Raises:
        FormatError: a shard or a member file is not what its hash says.
    """
    return _WORK[kind](nature, inputs, attempt_id)


def _label(nature: Nature, inputs: Mapping[str, Any], attempt_id: int) -> list[Any]:
    return [
        {"structure_id": item["id"], **_one_label(nature, item["structure"], attempt_id)}
        for item in inputs["structures"]
    ]


def _one_label(nature: Nature, structure: Structure, attempt_id: int) -> Record:
    key = structure.content_hash
    if nature.unit("broken", key, attempt_id) < nature.broken:
        failure = list(FailureClass)[int(5 * nature.unit("class", key, attempt_id))]
        return {"failure": failure, "message": f"the calculation broke ({failure})"}
    if nature.unit("rejected", key) < nature.rejected:
        return {
            "result": Rejection(
                failure_class=FailureClass.PHYSICS, code="scf_not_converged",
                message="no rung of the ladder converged", qm_calls=3,
            )
        }  # fmt: skip
    label = Label(
        energy=nature.energy(key, attempt_id),
        forces=nature.rng("forces", key).normal(size=(len(structure), 3)),
        level=nature.level,
        diagnostics={"rung": 0},
        qm_calls=1 + int(3 * nature.unit("calls", key)),
    )
    return {"result": label}


def _relax(nature: Nature, inputs: Mapping[str, Any], attempt_id: int) -> list[Any]:
    return [_one_relaxation(nature, item, attempt_id) for item in inputs["structures"]]


def _one_relaxation(nature: Nature, item: Mapping[str, Any], attempt_id: int) -> Record:
    structure: Structure = item["structure"]
    key = structure.content_hash
    record: Record = {"structure_id": item["id"], "qm_calls": 7}
    if nature.unit("broken relaxation", key, attempt_id) < nature.broken:
        return {**record, "failure": FailureClass.NODE, "message": "the relaxation broke"}
    return {
        **record,
        "structure": _displaced(nature, structure, 0.02, "minimum", key),
        "energy": nature.energy(key, 0),
        "converged": True,
        "same_bonds": True,
        "steps": 6,
    }


def _curvature(nature: Nature, inputs: Mapping[str, Any], _attempt_id: int) -> list[Any]:
    structure: Structure = inputs["structure"]
    key = structure.content_hash
    saddle = nature.unit("saddle", key) < nature.saddles
    seeds = [_displaced(nature, structure, 0.2, "downhill", key, side) for side in (0, 1)] if saddle else []
    return [{"seeds": seeds, "qm_calls": 6 * len(structure)}]


def _bootstrap(nature: Nature, inputs: Mapping[str, Any], _attempt_id: int) -> list[Any]:
    seed: Structure = inputs["seed"]
    made = [_displaced(nature, seed, 0.1, "boot", inputs["stream"], i) for i in range(inputs["count"])]
    return [{"structures": made, "message": "", "qm_calls": 0}]


def _train(nature: Nature, inputs: Mapping[str, Any], attempt_id: int) -> list[Any]:
    dataset = read_snapshot([(Path(shard["path"]), shard["sha256"]) for shard in inputs["shards"]])
    learned = [int(i) for i, split in zip(dataset.ids, dataset.splits, strict=True) if split == "train"]
    folder = Path(inputs["checkpoint"])
    folder.mkdir(parents=True, exist_ok=True)
    moody = nature.unit("moody", inputs["checkpoint"]) < nature.moody
    mood = attempt_id if moody else 0
    return [_member(nature, folder, member, learned, mood) for member in inputs["members"]]


def _member(
    nature: Nature, folder: Path, member: Mapping[str, Any], learned: Sequence[int], mood: int
) -> Record:
    bag = [i for i in learned if nature.unit("bag", member["seed"], i) < 0.9] or list(learned)
    content = json.dumps({"seed": member["seed"], "n_train": len(learned), "mood": mood}).encode()
    digest = hashlib.sha256(content).hexdigest()
    path = folder / f"member-{member['index']}-{digest[:12]}.json"
    path.write_bytes(content)
    result = MemberResult(
        index=member["index"], path=str(path), sha256=digest, metrics={"epochs": 1.0}, trained_on=tuple(bag)
    )
    return {**asdict(result), "trained_on": list(bag)}


def _spread(inputs: Mapping[str, Any]) -> float:
    """How uncertain an ensemble is: less, the more labels it learned from. Looks at its files."""
    members = [MemberFile(**member) for member in inputs["members"]]
    verify(members)
    n_train: int = json.loads(Path(members[0].path).read_bytes())["n_train"]
    return float((1.0 + n_train / 8.0) ** -0.5)


def _scores(nature: Nature, key: str, spread: float) -> Scores:
    value = spread * (0.05 + nature.unit("spread", key))
    return Scores(energy_std=0.1 * value, force_std=value, trigger=value)


def _evaluate(nature: Nature, inputs: Mapping[str, Any], _attempt_id: int) -> list[Any]:
    found = []
    for group in inputs["groups"]:
        spread = _spread(group["ensemble"])
        for item in group["structures"]:
            key = item["structure"].content_hash
            error = spread * (0.1 + nature.unit("error", key))
            found.append(
                {
                    "ensemble_id": group["ensemble_id"],
                    "structure_id": item["id"],
                    "scores": _scores(nature, key, spread),
                    "energy": item["energy"] + error,
                    "energy_error": error,
                    "committee_error": error,
                    "force_mae": 0.8 * error,
                    "force_rmse": error,
                }
            )
    return found


def _rescore(nature: Nature, inputs: Mapping[str, Any], _attempt_id: int) -> list[Any]:
    spread = _spread(inputs["ensemble"])
    return [
        {"structure_id": item["id"], "scores": _scores(nature, item["structure"].content_hash, spread)}
        for item in inputs["structures"]
    ]


def _select(nature: Nature, inputs: Mapping[str, Any], _attempt_id: int) -> list[Any]:
    _spread(inputs["ensemble"])
    if inputs["shards"]:
        read_snapshot([(Path(shard["path"]), shard["sha256"]) for shard in inputs["shards"]])
    candidates = inputs["candidates"]
    order = sorted(candidates, key=lambda item: nature.unit("draw", inputs["stream"], item["id"]))
    ranks = {item["id"]: rank for rank, item in enumerate(order[: inputs["budget"]])}
    return [
        {
            "structure_id": item["id"],
            "chosen": item["id"] in ranks,
            "reason": f"one of {len(ranks)} drawn from {len(candidates)}",
            "rank": ranks.get(item["id"]),
            "distance": None,
        }
        for item in candidates
    ]


def _sample(nature: Nature, inputs: Mapping[str, Any], _attempt_id: int) -> list[Any]:
    spread, threshold = _spread(inputs["ensemble"]), inputs["threshold"]
    walkers: list[Walker] = inputs["walkers"]
    # The last of a large batch is the reserve that nobody came to.
    idle = walkers[-1:] if len(walkers) > 2 else []
    moved = [_advance(nature, w, spread, threshold) for w in walkers[: len(walkers) - len(idle)]]
    segments = [segment for segment, _ in moved] + [Segment(walker=w, start_step=w.step) for w in idle]
    frames = [frame for _, found in moved for frame in found]
    return [SampleResult(candidates=tuple(frames), segments=tuple(segments), atom_steps=len(segments))]


def _advance(
    nature: Nature, walker: Walker, spread: float, threshold: float
) -> tuple[Segment, list[Candidate]]:
    start, last = walker.step, min(walker.steps_full, walker.step + SEGMENT_STEPS)
    chance = nature.unit("fate", walker.stream, start)
    end, step = None, last
    if chance > 0.96:
        end, step = WalkerEnd.OVERLAP, start + 1 + (last - start) // 2
    elif walker.offers_candidates and chance < nature.crossing * spread:
        end, step = WalkerEnd.CROSSED, start + 1 + (last - start) // 3
    elif last >= walker.steps_full:
        end = WalkerEnd.QUIET if walker.offers_candidates else WalkerEnd.FULL_TIME
    frames = [
        _frame(nature, walker, at, "audit", spread * (0.05 + nature.unit("seen", walker.stream, at)))
        for at in walker.frames_at
        if start < at <= step
    ]
    if end is WalkerEnd.CROSSED:
        frames.append(_frame(nature, walker, step, "crossed", threshold * (1.01 + chance)))
    moved = replace(
        walker,
        structure=_displaced(nature, walker.structure, 0.05, "walk", walker.stream, step),
        velocities=np.zeros((len(walker.structure), 3)),
        step=step,
    )
    return Segment(walker=moved, start_step=start, end=end, max_trigger=threshold * chance), frames


def _frame(nature: Nature, walker: Walker, step: int, reason: str, value: float) -> Candidate:
    same = nature.unit("twin", walker.stream) < nature.twins
    key = ("everybody",) if same else ("frame", walker.stream, step)
    return Candidate(
        walker_id=walker.id,
        structure=_placed(nature, walker.structure, *key),
        step=step,
        time_fs=step * TIMESTEP_FS,
        scores=Scores(energy_std=0.1 * value, force_std=value, trigger=value),
        reason=reason,
    )


def _displaced(nature: Nature, structure: Structure, amplitude: float, *keys: object) -> Structure:
    shift: FloatArray = amplitude * nature.rng(*keys).standard_normal(structure.positions.shape)
    return structure.with_positions(structure.positions + shift)


def _placed(nature: Nature, structure: Structure, *keys: object) -> Structure:
    """Atoms in a row, 1 Å apart and shaken: the same wherever the walker came from."""
    row = np.outer(np.arange(len(structure)), [1.0, 0.0, 0.0])
    return structure.with_positions(row + 0.1 * nature.rng(*keys).standard_normal(row.shape))


_WORK: Final[Mapping[str, Callable[[Nature, Mapping[str, Any], int], list[Any]]]] = {
    "relax": _relax,
    "curvature": _curvature,
    "bootstrap": _bootstrap,
    "label": _label,
    "train": _train,
    "evaluate": _evaluate,
    "rescore": _rescore,
    "select": _select,
    "sample": _sample,
}

"""What trainers of all kinds share: random streams, bags, the name of a training, and its results."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from hpcal.core.arrays import BoolArray, FloatArray, IntArray
from hpcal.core.dataset import Dataset
from hpcal.core.elements import symbol
from hpcal.core.ensemble import file_sha256
from hpcal.core.errors import FailureClass, InputError, TaskFailure
from hpcal.core.protocols import MemberResult, MemberSpec
from hpcal.core.walker import Split

CHECKPOINT_SECONDS: Final = 10.0
"""At most this much work is lost when a training is killed."""
INITIAL, BAG, ORDER = 1, 2, 3
"""What a stream of random numbers is for."""
_FINISHED: Final = "finished.json"


def stream(*key: int) -> np.random.Generator:
    """Random numbers that depend on the key alone."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([abs(int(k)) for k in key])))


def bags(members: Sequence[MemberSpec], n: int, share: float) -> tuple[IntArray, ...]:
    """Sorted indices of the training structures that each member sees, drawn by its seed."""
    size = max(1, round(share * n))
    return tuple(np.sort(stream(m.seed, BAG).permutation(n)[:size]).astype(np.int64) for m in members)


def check(dataset: Dataset, members: Sequence[MemberSpec], elements: Sequence[int]) -> None:
    """Refuses what no trainer can use.

    Raises:
        InputError: no members, no training structures, other elements, energies that are not finite.
    """
    if not members:
        raise InputError("no members to train")
    if not len(dataset.where(Split.TRAIN)):
        raise InputError("the data set has no structures of the train split: nothing to train on")
    missing = [z for z in dataset.elements if z not in elements]
    if missing:
        names = ", ".join(symbol(z) for z in missing)
        raise InputError(
            f"the data set holds {names}, which this trainer was not made for "
            f"({', '.join(symbol(z) for z in elements)}): give it the elements of all structures"
        )
    if not np.isfinite(dataset.energies).all():
        bad = int(dataset.ids[np.flatnonzero(~np.isfinite(dataset.energies))[0]])
        raise InputError(f"the energy of structure {bad} is not finite: remove its label")


def with_forces(dataset: Dataset) -> BoolArray:
    """(n,) whether the label of a structure has forces; without, it trains on its energy alone."""
    return np.array([bool(np.isfinite(dataset.forces_of(i)).all()) for i in range(len(dataset))], dtype=bool)


def fingerprint(settings: Any, key: Sequence[Any], dataset: Dataset, members: Sequence[MemberSpec]) -> str:
    """Names a training: a checkpoint of another one is not gone on from."""
    digest = hashlib.sha256()
    starts = [file_sha256(Path(m.start_from)) if m.start_from else None for m in members]
    named = [[m.index, m.seed, start] for m, start in zip(members, starts, strict=True)]
    digest.update(json.dumps([settings, list(key), named], sort_keys=True).encode())
    for array in (
        dataset.ids,
        dataset.offsets,
        dataset.numbers,
        dataset.positions,
        dataset.energies,
        dataset.forces,
        dataset.cells,
        dataset.pbc,
    ):
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update("\n".join(str(s) for s in dataset.splits).encode())
    return digest.hexdigest()


def out_of_time(done: int, total: int, seconds: float, checkpoint: Path) -> TaskFailure:
    """The deadline came before the end of a training."""
    return TaskFailure(
        FailureClass.RESOURCE,
        f"training stopped by its deadline after {done} of {total} epochs ({seconds:.0f} s in all): "
        f"the same call goes on from {checkpoint}",
    )


def diverged(members: Sequence[int], epoch: int, rate: float, largest_force: float) -> TaskFailure:
    """The loss of members is not finite any more."""
    return TaskFailure(
        FailureClass.PHYSICS,
        f"training of members {list(members)} diverged in epoch {epoch}: the loss is not finite. Likely "
        f"the learning rate {rate:g} is too high, or a label is wrong (largest reference force "
        f"{largest_force:.3g} eV/Å): lower learning_rate or reject the label",
    )


def rmse(
    name: str, energy: FloatArray, force: FloatArray, sizes: FloatArray, has_forces: BoolArray
) -> dict[str, float]:
    """RMSE of the energy (eV) and of a force component (eV/Å) over structures and atoms.

    Args:
        name: of the split, the first word of the keys.
        energy: (n,) ΔE²/N.
        force: (n,) mean over atoms of ΔF².
        sizes: (n,) number of atoms.
    """
    result = {f"{name}_energy_rmse": math.sqrt(float((energy * sizes).mean()))}
    if has_forces.any():
        summed = float((force * sizes)[has_forces].sum())
        result[f"{name}_force_rmse"] = math.sqrt(summed / (3.0 * float(sizes[has_forces].sum())))
    return result


def finish(checkpoint: Path, name: str, results: Sequence[MemberResult], state: Path) -> None:
    """Notes that a training is done, and removes what it needed to go on."""
    rows = [
        {
            "index": r.index,
            "file": Path(r.path).name,
            "sha256": r.sha256,
            "metrics": dict(r.metrics),
            "trained_on": list(r.trained_on),
        }
        for r in results
    ]
    scratch = checkpoint / f".{_FINISHED}"
    scratch.write_text(json.dumps({"fingerprint": name, "members": rows}), encoding="utf-8")
    scratch.replace(checkpoint / _FINISHED)
    for left in (state, *checkpoint.glob(f".{state.name}.*")):  # also of one that was killed as it wrote
        left.unlink(missing_ok=True)


def finished(checkpoint: Path, name: str) -> list[MemberResult] | None:
    """The results of this very training if it ran to its end here and its files are whole."""
    try:
        note = json.loads((checkpoint / _FINISHED).read_text(encoding="utf-8"))
        if note["fingerprint"] != name:
            return None
        results = [
            MemberResult(
                index=row["index"],
                path=str(checkpoint / row["file"]),
                sha256=row["sha256"],
                metrics=row["metrics"],
                trained_on=tuple(row["trained_on"]),
            )
            for row in note["members"]
        ]
        return results if all(file_sha256(Path(r.path)) == r.sha256 for r in results) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None

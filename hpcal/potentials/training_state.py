"""What a training of ANI members works on and where it stands, and the file that it goes on from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from hpcal.core.arrays import AnyArray, BoolArray, FloatArray, IntArray
from hpcal.core.errors import FormatError
from hpcal.core.protocols import MemberSpec
from hpcal.potentials import files
from hpcal.potentials.member import Frame, Member
from hpcal.potentials.training_set import TrainingSet

STATE: Final = "state.hpcal"
"""Name of the file in a training's folder."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """One call of ``fit``: what is trained on what, from where.

    Attributes:
        train, validation: structures of the two splits, as places among all n that are used.
        bags, in_bag: the training structures of each member, and the same as (M, n_train) 1 or 0.
        sizes, has_forces: (n,) numbers of atoms, and whether labels have forces.
        data: the structures that this rank holds.
        place: (n,) place of each structure in ``data``; -1 where another rank holds it.
    """

    members: tuple[MemberSpec, ...]
    train: IntArray
    validation: IntArray
    bags: tuple[IntArray, ...]
    in_bag: Tensor
    sizes: IntArray
    has_forces: BoolArray
    data: TrainingSet
    place: IntArray
    frame: Frame
    start: tuple[Member | None, ...]
    epochs: int
    peak_rate: float
    fingerprint: str

    def own(self, index: IntArray) -> IntArray:
        """Places within ``index`` of the structures that this rank holds."""
        return np.flatnonzero(self.place[index] >= 0)

    def tensor(self, values: AnyArray) -> Tensor:
        """An array on the device and in the precision of the training."""
        return torch.tensor(values, device=self.data.device, dtype=self.data.dtype)


@dataclass(kw_only=True, eq=False)
class State:
    """Where a training stands; everything that its checkpoint holds."""

    step: int
    weights: list[Tensor]
    optimiser: torch.optim.AdamW
    best: list[Tensor]
    best_loss: FloatArray
    best_epoch: IntArray
    seconds: float

    @classmethod
    def at_start(cls, job: Job, weights: Sequence[Tensor], best: Sequence[Tensor], decay: float) -> State:
        """Before the first step, from given weights.

        Args:
            decay: weight decay of AdamW.
        """
        leaves = [w.detach().requires_grad_() for w in weights]
        n = len(job.members)
        return cls(
            step=0,
            weights=leaves,
            optimiser=torch.optim.AdamW(leaves, lr=job.peak_rate, weight_decay=decay, fused=True),
            best=list(best),
            best_loss=np.full(n, np.inf),
            best_epoch=np.zeros(n, dtype=np.int64),
            seconds=0.0,
        )


def save(job: Job, state: State, checkpoint: Path) -> None:
    """Writes where a training stands, whole or not at all."""

    def arrays(tensors: Sequence[Tensor]) -> list[AnyArray]:
        return [t.detach().cpu().numpy() for t in tensors]

    moments = [state.optimiser.state.get(w, {}) for w in state.weights]
    files.write(
        checkpoint / STATE,
        {
            "kind": STATE,
            "fingerprint": job.fingerprint,
            "step": state.step,
            "weights": arrays(state.weights),
            "first": arrays([m["exp_avg"] for m in moments if m]),
            "second": arrays([m["exp_avg_sq"] for m in moments if m]),
            "best": arrays(state.best),
            "best_loss": state.best_loss,
            "best_epoch": state.best_epoch,
            "seconds": state.seconds,
        },
    )


def resumed(job: Job, checkpoint: Path, decay: float) -> State | None:
    """The state of an interrupted call; None where there is none of this very training."""
    saved = _read(checkpoint / STATE)
    if saved is None or saved["fingerprint"] != job.fingerprint:
        return None
    weights, best = ([job.tensor(w) for w in saved[name]] for name in ("weights", "best"))
    state = State.at_start(job, weights, best, decay)
    state.step, state.seconds = saved["step"], saved["seconds"]
    state.best_loss, state.best_epoch = saved["best_loss"], saved["best_epoch"]
    for weight, first, second in zip(state.weights, saved["first"], saved["second"], strict=False):
        state.optimiser.state[weight] = {
            "step": torch.tensor(float(state.step), dtype=torch.float32, device=weight.device),
            "exp_avg": job.tensor(first),
            "exp_avg_sq": job.tensor(second),
        }
    return state


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return files.read(path, STATE)
    except FormatError:
        # Only a file that was damaged from outside: training afresh costs time, not results.
        return None

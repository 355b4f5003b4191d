"""Training of ANI members: all given ones together, on forces and energies, resumable to the bit.

The loss of a member over the structures s of a batch that are in its bag::

    L = 1/b Σ_s [ w_E (E_s - Ê_s)² / N_s + w_F 1/N_s Σ_i |F_si - F̂_si|² ]

Members share batches and descriptors and nothing else: each has its own initial weights and bag,
drawn from its seed. AdamW (Loshchilov and Hutter, arXiv 1711.05101) with a linear warm-up and
cosine decay. After each epoch a member is compared on the validation split, and its best weights
are kept; without a validation split, its last.

A member that goes on from an earlier one keeps the earlier centres, scales and self energies, as
its weights only mean something with them; elements that are new get their own. The optimiser starts
afresh.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

from hpcal.core.arrays import AnyArray, FloatArray, IntArray
from hpcal.core.dataset import Dataset
from hpcal.core.deadline import Deadline
from hpcal.core.elements import symbol
from hpcal.core.errors import FormatError, InputError
from hpcal.core.protocols import MemberResult, MemberSpec
from hpcal.core.walker import Split
from hpcal.potentials import files, fitting
from hpcal.potentials.descriptors import Descriptor
from hpcal.potentials.fitting import CHECKPOINT_SECONDS, INITIAL, ORDER, rmse, stream
from hpcal.potentials.member import Frame, Layers, Member
from hpcal.potentials.networks import Layer, Network, initial, stacked
from hpcal.potentials.training_set import TrainingSet, fit_self_energies

if TYPE_CHECKING:
    from hpcal.potentials.ani import ANISettings

_STATE: Final = "state.hpcal"
_VALIDATION_BATCH: Final = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class _Job:
    """One call of ``fit``: what is trained on what, from where."""

    members: tuple[MemberSpec, ...]
    train: IntArray
    validation: IntArray
    bags: tuple[IntArray, ...]
    in_bag: Tensor
    data: TrainingSet
    frame: Frame
    start: tuple[Member | None, ...]
    epochs: int
    peak_rate: float
    fingerprint: str


@dataclass(kw_only=True, eq=False)
class _State:
    """Where a training stands; everything that its checkpoint holds."""

    step: int
    weights: list[Tensor]
    optimiser: torch.optim.AdamW
    best: list[Tensor]
    best_loss: FloatArray
    best_epoch: IntArray
    seconds: float


class ANITrainer:
    """Trains ANI members of one campaign; see ``Trainer``."""

    def __init__(self, settings: ANISettings, elements: Sequence[int], seed: int) -> None:
        if not elements:
            raise InputError("a trainer needs at least one element")
        self.settings = settings
        self.elements = tuple(sorted({int(z) for z in elements}))
        self.seed = seed

    def fit(
        self,
        dataset: Dataset,
        members: Sequence[MemberSpec],
        deadline: Deadline,
        checkpoint: Path,
    ) -> Sequence[MemberResult]:
        """Trains the members together; see ``Trainer``. A step of the deadline is an epoch.

        Raises:
            InputError: data or members to start from that do not fit.
            TaskFailure: it diverged (class physics), or the deadline came first (resource).
        """
        checkpoint = Path(checkpoint)
        fitting.check(dataset, members, self.elements)
        named = self.settings.model_dump(mode="json", exclude={"members", "jacobian_memory_GB"})
        fingerprint = fitting.fingerprint(named, [self.elements, self.seed], dataset, members)
        finished = fitting.finished(checkpoint, fingerprint)
        if finished is not None:
            return finished
        job = self._job(dataset, members, fingerprint)
        state = self._resumed(job, checkpoint) or self._begun(job)
        self._run(job, state, deadline, checkpoint)
        results = self._results(job, state, dataset, checkpoint)
        fitting.finish(checkpoint, fingerprint, results, checkpoint / _STATE)
        return results

    # What a training consists of

    def _job(self, dataset: Dataset, members: Sequence[MemberSpec], fingerprint: str) -> _Job:
        train, validation = dataset.where(Split.TRAIN), dataset.where(Split.VALIDATION)
        used = np.concatenate([train, validation])
        start = tuple(self._earlier(m.start_from) if m.start_from else None for m in members)
        earlier = next((m.frame for m in start if m is not None), None)
        known = {} if earlier is None else self._known(earlier)
        self_energies = fit_self_energies(dataset, self.elements, train, known)
        from hpcal.potentials.ani import resolve

        device = torch.device(resolve(self.settings.device))
        dtype = torch.float64 if self.settings.dtype == "float64" else torch.float32
        data = TrainingSet(
            dataset.take(used),
            Descriptor(self.settings.aev, self.elements, device=device, dtype=dtype),
            self_energies=self_energies,
            known=None if earlier is None else (earlier.centres, earlier.scales, earlier.trained),
            basis=np.arange(len(train)),
            keep_memory=self.settings.jacobian_memory_GB * 1e9,
        )
        seen = set(dataset.take(train).elements) | set(known)
        frame = Frame(
            elements=self.elements,
            trained=tuple(z for z in self.elements if z in seen),
            aev=self.settings.aev,
            hidden=self.settings.hidden,
            activation=self.settings.activation,
            centres=data.centres,
            scales=data.scales,
            self_energies=self_energies,
        )
        bags = fitting.bags(members, len(train), self.settings.bagging)
        in_bag = torch.zeros((len(members), len(train)), dtype=dtype)
        for row, bag in enumerate(bags):
            in_bag[row, torch.as_tensor(bag)] = 1.0
        warm = all(m is not None for m in start)
        return _Job(
            members=tuple(members),
            train=np.arange(len(train)),
            validation=np.arange(len(train), len(used)),
            bags=bags,
            in_bag=in_bag.to(device),
            data=data,
            frame=frame,
            start=start,
            epochs=self.settings.warm_epochs if warm else self.settings.epochs,
            peak_rate=self.settings.warm_learning_rate if warm else self.settings.learning_rate,
            fingerprint=fingerprint,
        )

    def _earlier(self, path: str) -> Member:
        member = Member.read(Path(path))
        settings, frame = self.settings, member.frame
        own = (self.elements, settings.aev, settings.hidden, settings.activation)
        if frame.architecture != own:
            raise InputError(
                f"{path} cannot be gone on from: its elements, descriptor or layers differ "
                f"(it has {[symbol(z) for z in frame.elements]}, hidden {list(frame.hidden)}, "
                f"{frame.activation}); train from random weights, without start_from"
            )
        return member

    @staticmethod
    def _known(frame: Frame) -> dict[int, float]:
        pairs = zip(frame.elements, frame.self_energies.tolist(), strict=True)
        return {z: energy for z, energy in pairs if z in frame.trained}

    # The optimisation

    def _begun(self, job: _Job) -> _State:
        weights = self._initial_weights(job)
        return self._state(job, weights, [w.clone() for w in weights])

    def _state(self, job: _Job, weights: list[Tensor], best: list[Tensor]) -> _State:
        leaves = [w.detach().requires_grad_() for w in weights]
        optimiser = torch.optim.AdamW(
            leaves, lr=job.peak_rate, weight_decay=self.settings.weight_decay, fused=True
        )
        n = len(job.members)
        return _State(
            step=0,
            weights=leaves,
            optimiser=optimiser,
            best=best,
            best_loss=np.full(n, np.inf),
            best_epoch=np.zeros(n, dtype=np.int64),
            seconds=0.0,
        )

    def _initial_weights(self, job: _Job) -> list[Tensor]:
        """Flat list of stacked weights and biases; first layers hold the kept features only."""
        members = [self._whole(job, k) for k in range(len(job.members))]
        flat: list[Tensor] = []
        for e, kept in enumerate(job.data.kept):
            layers = []
            for member in members:
                (weight, bias), rest = member[e][0], member[e][1:]
                own = [(weight[:, kept], bias), *rest]
                layers.append([(self._tensor(job, w), self._tensor(job, b)) for w, b in own])
            flat.extend(t for layer in stacked(layers) for t in layer.tensors)
        return flat

    def _whole(self, job: _Job, k: int) -> tuple[Layers, ...]:
        """Networks of a member before training, with all features."""
        rng = stream(job.members[k].seed, INITIAL)
        fresh = tuple(tuple(initial(job.frame.widths, rng)) for _ in self.elements)
        earlier = job.start[k]
        if earlier is None:
            return fresh
        moved = earlier.in_frame(job.frame)
        return tuple(
            moved.networks[e] if z in earlier.frame.trained else fresh[e] for e, z in enumerate(self.elements)
        )

    @staticmethod
    def _tensor(job: _Job, values: AnyArray) -> Tensor:
        return torch.tensor(values, device=job.data.device, dtype=job.data.dtype)

    def _run(self, job: _Job, state: _State, deadline: Deadline, checkpoint: Path) -> None:
        size = self.settings.batch_size
        per_epoch = math.ceil(len(job.train) / size)
        total, began, first = job.epochs * per_epoch, time.monotonic(), state.step
        saved, before = began, state.seconds
        while state.step < total:
            state.seconds = before + time.monotonic() - began
            if deadline.expired((state.step - first) // per_epoch):
                self._save(job, state, checkpoint)
                raise fitting.out_of_time(state.step // per_epoch, job.epochs, state.seconds, checkpoint)
            if time.monotonic() - saved >= CHECKPOINT_SECONDS:
                self._save(job, state, checkpoint)
                saved = time.monotonic()
            epoch, place = divmod(state.step, per_epoch)
            order = stream(self.seed, ORDER, epoch).permutation(len(job.train))
            self._step(job, state, np.sort(order[place * size : (place + 1) * size]), total)
            state.step += 1
            if place == per_epoch - 1:
                self._epoch_ended(job, state, epoch)
        state.seconds = before + time.monotonic() - began

    def _step(self, job: _Job, state: _State, index: IntArray, total: int) -> None:
        for group in state.optimiser.param_groups:
            group["lr"] = self._rate(job, state.step, total)
        loss = self._losses(job, self._networks(state.weights), index, job.in_bag[:, index]).sum()
        gradients = torch.autograd.grad(loss, state.weights)
        for weight, gradient in zip(state.weights, gradients, strict=True):
            weight.grad = gradient
        state.optimiser.step()

    def _rate(self, job: _Job, step: int, total: int) -> float:
        rising = self.settings.warmup * total
        if step < rising:
            return job.peak_rate * (step + 1) / max(rising, 1.0) if rising > 1 else job.peak_rate
        share = (step - rising) / max(total - rising, 1.0)
        low = min(self.settings.final_learning_rate, job.peak_rate)
        return low + 0.5 * (job.peak_rate - low) * (1.0 + math.cos(math.pi * share))

    def _losses(self, job: _Job, networks: Sequence[Network], index: IntArray, mask: Tensor) -> Tensor:
        """(M,) loss of each member over some structures, those outside its (M, b) mask left out."""
        energy, force = self._squares(job, networks, index)
        settings = self.settings
        each = settings.energy_weight * energy + settings.force_weight * force
        return (each * mask).sum(dim=1) / len(index)

    def _squares(self, job: _Job, networks: Sequence[Network], index: IntArray) -> tuple[Tensor, Tensor]:
        """(M, b) ΔE²/N and (M, b) mean over atoms of ΔF², zero where a label has no forces."""
        data = job.data
        predicted = data.predict(networks, index, self.settings.activation)
        energies, forces = data.reference(index)
        sizes = torch.tensor([data.sizes[i] for i in index], device=data.device)
        rows = torch.repeat_interleave(torch.arange(len(index), device=data.device), 3 * sizes)
        square = (predicted.forces - forces).square()
        summed = square.new_zeros((len(square), len(index))).index_add(1, rows, square)
        has = torch.as_tensor(data.has_forces[index], device=data.device)
        return (predicted.energies - energies).square() / sizes, summed / sizes * has

    def _networks(self, weights: Sequence[Tensor]) -> list[Network]:
        depth = 2 * (len(self.settings.hidden) + 1)
        return [
            tuple(Layer(weight=weights[k], bias=weights[k + 1]) for k in range(e * depth, (e + 1) * depth, 2))
            for e in range(len(self.elements))
        ]

    def _epoch_ended(self, job: _Job, state: _State, epoch: int) -> None:
        watched = job.validation if len(job.validation) else None
        if watched is None:
            finite = torch.stack([torch.isfinite(w).flatten(1).all(dim=1) for w in state.weights]).all(dim=0)
            loss = np.where(finite.cpu().numpy(), -float(epoch), np.nan)
        else:
            loss = self._validated(job, state.weights)
        if not np.isfinite(loss).all():
            bad = [job.members[k].index for k in np.flatnonzero(~np.isfinite(loss))]
            largest = float(job.data.forces.abs().max())
            raise fitting.diverged(bad, epoch + 1, job.peak_rate, largest)
        better = loss < state.best_loss
        chosen = torch.as_tensor(better, device=job.data.device)
        for kept, weight in zip(state.best, state.weights, strict=True):
            kept[chosen] = weight.detach()[chosen]
        state.best_loss = np.where(better, loss, state.best_loss)
        state.best_epoch = np.where(better, epoch + 1, state.best_epoch)

    def _validated(self, job: _Job, weights: Sequence[Tensor]) -> FloatArray:
        energy, force = self._errors(job, weights, job.validation)
        settings = self.settings
        each = settings.energy_weight * energy + settings.force_weight * force
        return np.asarray(each.mean(axis=1))

    def _errors(self, job: _Job, weights: Sequence[Tensor], index: IntArray) -> tuple[FloatArray, FloatArray]:
        """(M, n) ΔE²/N and mean ΔF² of structures."""
        networks = self._networks([w.detach() for w in weights])
        parts = []
        for start in range(0, len(index), _VALIDATION_BATCH):
            energy, force = self._squares(job, networks, index[start : start + _VALIDATION_BATCH])
            parts.append((energy.detach().double().cpu().numpy(), force.detach().double().cpu().numpy()))
        return np.concatenate([p[0] for p in parts], axis=1), np.concatenate([p[1] for p in parts], axis=1)

    # Checkpoints and results

    def _save(self, job: _Job, state: _State, checkpoint: Path) -> None:
        def arrays(tensors: Sequence[Tensor]) -> list[AnyArray]:
            return [t.detach().cpu().numpy() for t in tensors]

        moments = [state.optimiser.state.get(w, {}) for w in state.weights]
        files.write(
            checkpoint / _STATE,
            {
                "kind": _STATE,
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

    def _resumed(self, job: _Job, checkpoint: Path) -> _State | None:
        """The state of an interrupted call; None where there is none of this very training."""
        if not (checkpoint / _STATE).exists():
            return None
        try:
            saved = files.read(checkpoint / _STATE, _STATE)
        except FormatError:
            # Only a file that was damaged from outside: training afresh costs time, not results.
            return None
        if saved["fingerprint"] != job.fingerprint:
            return None
        state = self._state(
            job,
            [self._tensor(job, w) for w in saved["weights"]],
            [self._tensor(job, w) for w in saved["best"]],
        )
        state.step, state.seconds = saved["step"], saved["seconds"]
        state.best_loss, state.best_epoch = saved["best_loss"], saved["best_epoch"]
        for weight, first, second in zip(state.weights, saved["first"], saved["second"], strict=False):
            state.optimiser.state[weight] = {
                "step": torch.tensor(float(state.step), dtype=torch.float32, device=weight.device),
                "exp_avg": self._tensor(job, first),
                "exp_avg_sq": self._tensor(job, second),
            }
        return state

    def _results(self, job: _Job, state: _State, dataset: Dataset, checkpoint: Path) -> list[MemberResult]:
        train_errors = self._errors(job, state.best, job.train)
        validation_errors = self._errors(job, state.best, job.validation) if len(job.validation) else None
        train_ids = dataset.ids[dataset.where(Split.TRAIN)]
        sizes, has = np.array(job.data.sizes, dtype=np.float64), job.data.has_forces
        results = []
        for k, spec in enumerate(job.members):
            bag = job.bags[k]
            metrics = {"epochs": float(job.epochs), "best_epoch": float(state.best_epoch[k])}
            energy, force = train_errors
            metrics |= rmse("train", energy[k, bag], force[k, bag], sizes[bag], has[bag])
            if validation_errors is not None:
                (energy, force), rows = validation_errors, job.validation
                metrics |= rmse("validation", energy[k], force[k], sizes[rows], has[rows])
            info = {"index": spec.index, "seed": spec.seed, "warm": job.start[k] is not None, **metrics}
            member = Member(frame=job.frame, networks=self._trained(job, state, k), info=info)
            path, digest = files.write_member(checkpoint, spec.index, "ani", member.encode())
            results.append(
                MemberResult(
                    index=spec.index,
                    path=str(path),
                    sha256=digest,
                    metrics={**metrics, "seconds": state.seconds},
                    trained_on=tuple(int(i) for i in train_ids[bag]),
                )
            )
        return results

    def _trained(self, job: _Job, state: _State, k: int) -> tuple[Layers, ...]:
        """The best weights of a member, with features left out in training as they began."""
        before = self._whole(job, k)
        networks = []
        for e, network in enumerate(self._networks(state.best)):
            layers = [
                (layer.weight[k].cpu().numpy().copy(), layer.bias[k].cpu().numpy().copy())
                for layer in network
            ]
            whole = before[e][0][0].astype(layers[0][0].dtype)
            whole[:, job.data.kept[e]] = layers[0][0]
            layers[0] = (whole, layers[0][1])
            networks.append(tuple(layers))
        return tuple(networks)

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

Several ranks may train together (:mod:`hpcal.potentials.parallel`): each holds a share of the
structures, computes its part of the sum over s, and gradients are added up over the ranks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

from hpcal.core.arrays import FloatArray, IntArray
from hpcal.core.dataset import Dataset
from hpcal.core.deadline import Deadline
from hpcal.core.elements import symbol
from hpcal.core.errors import FailureClass, InputError, TaskFailure
from hpcal.core.launch import rank_launcher
from hpcal.core.protocols import MemberResult, MemberSpec
from hpcal.core.walker import Split
from hpcal.potentials import constants, files, fitting, parallel
from hpcal.potentials.descriptors import Descriptor
from hpcal.potentials.determinism import deterministic
from hpcal.potentials.fitting import CHECKPOINT_SECONDS, INITIAL, ORDER, rmse, stream
from hpcal.potentials.member import Frame, Layers, Member
from hpcal.potentials.networks import Layer, Network, initial, stacked
from hpcal.potentials.ranks import ALONE, Ranks, owners
from hpcal.potentials.states import of_dataset, shares
from hpcal.potentials.training_set import TrainingSet
from hpcal.potentials.training_state import STATE, Job, State, resumed, save

if TYPE_CHECKING:
    from hpcal.potentials.ani import ANISettings

_VALIDATION_BATCH: Final = 64


class ANITrainer:
    """Trains ANI members of one campaign; see ``Trainer``."""

    def __init__(
        self, settings: ANISettings, elements: Sequence[int], seed: int, ranks: Ranks = ALONE
    ) -> None:
        if not elements:
            raise InputError("a trainer needs at least one element")
        self.settings = settings
        self.elements = tuple(sorted({int(z) for z in elements}))
        self.seed = seed
        self.ranks = ranks

    def fit(
        self,
        dataset: Dataset,
        members: Sequence[MemberSpec],
        deadline: Deadline,
        checkpoint: Path,
    ) -> Sequence[MemberResult]:
        """Trains the members together; see ``Trainer``. A step of the deadline is an epoch.

        With ``data_parallel``, in a pool that starts programs of several ranks, these ranks train.

        Raises:
            InputError: data or members to start from that do not fit.
            TaskFailure: it diverged (class physics), the deadline came first (resource), or a rank
                was lost (node).
        """
        checkpoint = Path(checkpoint)
        fitting.check(dataset, members, self.elements)
        left_out, key = {"members", "jacobian_memory_GB", "data_parallel"}, [self.elements, self.seed]
        if self.settings.charge_aware:
            key.append(of_dataset(dataset).tolist())
        else:
            # Trainings that were begun without this setting go on.
            left_out.add("charge_aware")
        named = self.settings.model_dump(mode="json", exclude=left_out)
        fingerprint = fitting.fingerprint(named, key, dataset, members)
        finished = fitting.finished(checkpoint, fingerprint)
        if finished is not None:
            return finished
        order = parallel.Order(
            settings=self.settings.model_dump(mode="json"),
            elements=self.elements,
            seed=self.seed,
            members=tuple(members),
            fingerprint=fingerprint,
            every=CHECKPOINT_SECONDS,
        )
        launcher = rank_launcher() if self.settings.data_parallel else None
        if launcher is None:
            return self.train(order, dataset, deadline, checkpoint)
        return parallel.train(launcher, order, dataset, deadline, checkpoint)

    def train(
        self, order: parallel.Order, dataset: Dataset, deadline: Deadline, checkpoint: Path
    ) -> Sequence[MemberResult]:
        """Trains in this process, as one of its ranks; the first one has, and writes, the results.

        Raises:
            InputError, TaskFailure: as ``fit``.
        """
        with deterministic(self._device()):
            job = self._job(dataset, order.members, order.fingerprint)
            state = resumed(job, checkpoint, self.settings.weight_decay) or self._begun(job)
            self._check_step(state, checkpoint)
            self._run(job, state, deadline, checkpoint, order.every)
            results = self._results(job, state, dataset, checkpoint)
        if self.ranks.rank == 0:
            fitting.finish(checkpoint, order.fingerprint, results, checkpoint / STATE)
        return results

    def _check_step(self, state: State, checkpoint: Path) -> None:
        first, last = self.ranks.largest(np.array([-float(state.step), float(state.step)]))
        if -first != last:
            raise TaskFailure(
                FailureClass.NODE,
                f"the ranks read different checkpoints from {checkpoint} (steps {-first:.0f} to "
                f"{last:.0f}): it must be on a file system that all nodes share",
            )

    # What a training consists of

    def _device(self) -> torch.device:
        from hpcal.potentials.ani import resolve

        return self.ranks.device(resolve(self.settings.device))

    def _job(self, dataset: Dataset, members: Sequence[MemberSpec], fingerprint: str) -> Job:
        device = self._device()
        train, validation = dataset.where(Split.TRAIN), dataset.where(Split.VALIDATION)
        used = np.concatenate([train, validation])
        start = tuple(self._earlier(m.start_from) if m.start_from else None for m in members)
        earlier = next((m.frame for m in start if m is not None), None)
        self_energies, state = constants.fit(
            dataset, self.elements, train, earlier, charge_aware=self.settings.charge_aware
        )
        dtype = torch.float64 if self.settings.dtype == "float64" else torch.float32
        sizes = dataset.sizes[used]
        own, place = self._share(sizes, len(train))
        held = dataset.take(used[own])
        data = TrainingSet(
            held,
            Descriptor(self.settings.aev, self.elements, device=device, dtype=dtype),
            constants=constants.total(held, self.elements, self_energies, state),
            known=None if earlier is None else (earlier.centres, earlier.scales, earlier.trained),
            basis=np.flatnonzero(own < len(train)),
            keep_memory=self.settings.jacobian_memory_GB * 1e9,
            ranks=self.ranks,
            shares=None if state is None else shares(held, state.scale),
        )
        seen = set(dataset.take(train).elements) | set(constants.known(earlier))
        frame = Frame(
            elements=self.elements,
            trained=tuple(z for z in self.elements if z in seen),
            aev=self.settings.aev,
            hidden=self.settings.hidden,
            activation=self.settings.activation,
            centres=data.centres,
            scales=data.scales,
            self_energies=self_energies,
            state=state,
        )
        bags = fitting.bags(members, len(train), self.settings.bagging)
        in_bag = torch.zeros((len(members), len(train)), dtype=dtype)
        for row, bag in enumerate(bags):
            in_bag[row, torch.as_tensor(bag)] = 1.0
        warm = all(m is not None for m in start)
        return Job(
            members=tuple(members),
            train=np.arange(len(train)),
            validation=np.arange(len(train), len(used)),
            bags=bags,
            in_bag=in_bag.to(device),
            sizes=sizes,
            has_forces=fitting.with_forces(dataset)[used],
            data=data,
            place=place,
            frame=frame,
            start=start,
            epochs=self.settings.warm_epochs if warm else self.settings.epochs,
            peak_rate=self.settings.warm_learning_rate if warm else self.settings.learning_rate,
            fingerprint=fingerprint,
        )

    def _share(self, sizes: IntArray, n_train: int) -> tuple[IntArray, IntArray]:
        """Structures that this rank holds, and the (n,) place of each among them or -1."""
        splits = (sizes[:n_train], sizes[n_train:])
        owner = np.concatenate([owners(part, self.ranks.size) for part in splits])
        own = np.flatnonzero(owner == self.ranks.rank)
        place = np.full(len(sizes), -1, dtype=np.int64)
        place[own] = np.arange(len(own))
        return own, place

    def _earlier(self, path: str) -> Member:
        member = Member.read(Path(path))
        settings, frame = self.settings, member.frame
        own = (self.elements, settings.aev, settings.hidden, settings.activation, settings.charge_aware)
        if frame.architecture != own:
            raise InputError(
                f"{path} cannot be gone on from: its elements, descriptor, layers or charge_aware differ "
                f"(it has {[symbol(z) for z in frame.elements]}, hidden {list(frame.hidden)}, "
                f"{frame.activation}, charge_aware {frame.state is not None}); "
                "train from random weights, without start_from"
            )
        return member

    # The optimisation

    def _begun(self, job: Job) -> State:
        weights = self._initial_weights(job)
        return State.at_start(job, weights, [w.clone() for w in weights], self.settings.weight_decay)

    def _initial_weights(self, job: Job) -> list[Tensor]:
        """Flat list of stacked weights and biases; first layers hold the kept features only."""
        members = [self._whole(job, k) for k in range(len(job.members))]
        flat: list[Tensor] = []
        for e, inputs in enumerate(job.data.inputs):
            layers = []
            for member in members:
                (weight, bias), rest = member[e][0], member[e][1:]
                own = [(weight[:, inputs], bias), *rest]
                layers.append([(job.tensor(w), job.tensor(b)) for w, b in own])
            flat.extend(t for layer in stacked(layers) for t in layer.tensors)
        return flat

    def _whole(self, job: Job, k: int) -> tuple[Layers, ...]:
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

    def _run(self, job: Job, state: State, deadline: Deadline, checkpoint: Path, every: float) -> None:
        size = self.settings.batch_size
        per_epoch = math.ceil(len(job.train) / size)
        total, began, first = job.epochs * per_epoch, time.monotonic(), state.step
        saved, before = began, state.seconds
        while state.step < total:
            state.seconds = before + time.monotonic() - began
            # All stop at the same step, whosever clock or request it is.
            if self.ranks.any(deadline.expired((state.step - first) // per_epoch)):
                self._save(job, state, checkpoint)
                raise fitting.out_of_time(state.step // per_epoch, job.epochs, state.seconds, checkpoint)
            if time.monotonic() - saved >= every:
                self._save(job, state, checkpoint)
                saved = time.monotonic()
            epoch, place = divmod(state.step, per_epoch)
            order = stream(self.seed, ORDER, epoch).permutation(len(job.train))
            self._step(job, state, np.sort(order[place * size : (place + 1) * size]), total)
            state.step += 1
            if place == per_epoch - 1:
                self._epoch_ended(job, state, epoch)
        state.seconds = before + time.monotonic() - began

    def _step(self, job: Job, state: State, index: IntArray, total: int) -> None:
        for group in state.optimiser.param_groups:
            group["lr"] = self._rate(job, state.step, total)
        gradients = self.ranks.summed(self._gradients(job, state, index))
        for weight, gradient in zip(state.weights, gradients, strict=True):
            weight.grad = gradient
        state.optimiser.step()

    def _gradients(self, job: Job, state: State, index: IntArray) -> Sequence[Tensor]:
        """This rank's part of the gradient of the loss."""
        if not len(job.own(index)):
            return [torch.zeros_like(w) for w in state.weights]
        loss = self._losses(job, self._networks(state.weights), index, job.in_bag[:, index]).sum()
        # The fused optimiser of the CPU reads a gradient in the order of its memory, whatever its strides.
        return [gradient.contiguous() for gradient in torch.autograd.grad(loss, state.weights)]

    def _rate(self, job: Job, step: int, total: int) -> float:
        rising = self.settings.warmup * total
        if step < rising:
            return job.peak_rate * (step + 1) / max(rising, 1.0) if rising > 1 else job.peak_rate
        share = (step - rising) / max(total - rising, 1.0)
        low = min(self.settings.final_learning_rate, job.peak_rate)
        return low + 0.5 * (job.peak_rate - low) * (1.0 + math.cos(math.pi * share))

    def _losses(self, job: Job, networks: Sequence[Network], index: IntArray, mask: Tensor) -> Tensor:
        """(M,) part of this rank in the loss of each member over some structures.

        Those outside its (M, b) mask are left out.
        """
        own = job.own(index)
        energy, force = self._squares(job, networks, job.place[index[own]])
        settings = self.settings
        each = settings.energy_weight * energy + settings.force_weight * force
        return (each * mask[:, own]).sum(dim=1) / len(index)

    def _squares(self, job: Job, networks: Sequence[Network], index: IntArray) -> tuple[Tensor, Tensor]:
        """(M, b) ΔE²/N and mean over atoms of ΔF², zero where a label has no forces.

        Args:
            index: b structures by their place in the job's data.
        """
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

    def _epoch_ended(self, job: Job, state: State, epoch: int) -> None:
        # Ranks on unequal processors would drift apart in the last digits.
        self.ranks.as_first(state.weights)
        watched = job.validation if len(job.validation) else None
        if watched is None:
            finite = torch.stack([torch.isfinite(w).flatten(1).all(dim=1) for w in state.weights]).all(dim=0)
            loss = np.where(finite.cpu().numpy(), -float(epoch), np.nan)
        else:
            loss = self._validated(job, state.weights)
        if not np.isfinite(loss).all():
            bad = [job.members[k].index for k in np.flatnonzero(~np.isfinite(loss))]
            own = np.abs(job.data.forces.double().cpu().numpy()).max(initial=0.0)
            largest = float(self.ranks.largest(np.array([own]))[0])
            raise fitting.diverged(bad, epoch + 1, job.peak_rate, largest)
        better = loss < state.best_loss
        chosen = torch.as_tensor(better, device=job.data.device)
        for kept, weight in zip(state.best, state.weights, strict=True):
            kept[chosen] = weight.detach()[chosen]
        state.best_loss = np.where(better, loss, state.best_loss)
        state.best_epoch = np.where(better, epoch + 1, state.best_epoch)

    def _validated(self, job: Job, weights: Sequence[Tensor]) -> FloatArray:
        energy, force = self._errors(job, weights, job.validation)
        settings = self.settings
        each = settings.energy_weight * energy + settings.force_weight * force
        return np.asarray(each.mean(axis=1))

    def _errors(self, job: Job, weights: Sequence[Tensor], index: IntArray) -> tuple[FloatArray, FloatArray]:
        """(M, n) ΔE²/N and mean ΔF² of structures; every rank computes its own and has all."""
        networks = self._networks([w.detach() for w in weights])
        own = job.own(index)
        result = np.zeros((2, len(job.members), len(index)))
        for start in range(0, len(own), _VALIDATION_BATCH):
            part = own[start : start + _VALIDATION_BATCH]
            for which, squares in enumerate(self._squares(job, networks, job.place[index[part]])):
                result[which][:, part] = squares.detach().double().cpu().numpy()
        energy, force = self.ranks.total(result)
        return energy, force

    # Checkpoints and results

    def _save(self, job: Job, state: State, checkpoint: Path) -> None:
        if self.ranks.rank == 0:
            save(job, state, checkpoint)

    def _results(self, job: Job, state: State, dataset: Dataset, checkpoint: Path) -> list[MemberResult]:
        train_errors = self._errors(job, state.best, job.train)
        validation_errors = self._errors(job, state.best, job.validation) if len(job.validation) else None
        if self.ranks.rank != 0:
            return []
        train_ids = dataset.ids[dataset.where(Split.TRAIN)]
        sizes, has = job.sizes.astype(np.float64), job.has_forces
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

    def _trained(self, job: Job, state: State, k: int) -> tuple[Layers, ...]:
        """The best weights of a member, with features left out in training as they began."""
        before = self._whole(job, k)
        networks = []
        for e, network in enumerate(self._networks(state.best)):
            layers = [
                (layer.weight[k].cpu().numpy().copy(), layer.bias[k].cpu().numpy().copy())
                for layer in network
            ]
            whole = before[e][0][0].astype(layers[0][0].dtype)
            whole[:, job.data.inputs[e]] = layers[0][0]
            layers[0] = (whole, layers[0][1])
            networks.append(tuple(layers))
        return tuple(networks)

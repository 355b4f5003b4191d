"""Fitting Morse pair potentials: all members together, on energies and forces, resumable to the bit.

The loss is that of :mod:`hpcal.potentials.training`, over all structures of a member's bag at each
step. Parameters are the logarithms of well depths, widths and distances, so they stay positive, and
a correction of the constant of each element. Adam with cosine decay (Kingma and Ba, arXiv 1412.6980).
A member that goes on from an earlier one starts from its parameters.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from hpcal.core.arrays import FloatArray, IntArray
from hpcal.core.batch import Batch
from hpcal.core.dataset import Dataset
from hpcal.core.deadline import Deadline
from hpcal.core.elements import symbol
from hpcal.core.errors import FormatError, InputError
from hpcal.core.protocols import MemberResult, MemberSpec
from hpcal.core.walker import Split
from hpcal.potentials import files, fitting
from hpcal.potentials.constants import fit_self_energies
from hpcal.potentials.descriptors import species_table
from hpcal.potentials.fitting import CHECKPOINT_SECONDS, INITIAL, rmse, stream
from hpcal.potentials.morse import MorseMember, MorseSettings, initial_pairs, pair_terms
from hpcal.potentials.neighbors import pairs_within

_STATE: Final = "state.hpcal"
_BETAS: Final = (0.9, 0.99)
_LOWEST: Final = 1e-6
"""Smallest well depth, eV, as its logarithm is what is fitted."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Problem:
    """Pairs and references of n structures with A atoms, in float64.

    Attributes:
        distances, units: (P,) Å and (P, 3) directions from the second to the first atom.
        first, second: (P,) atoms; types: (P,) pair of elements; rows: (P,) structure.
        counts: (n, E) atoms of each element.
        energies: (n,) eV less the constant; forces: (A, 3) eV/Å.
        sizes: (n,) atoms; atom_rows: (A,) structure of each atom; has_forces: (n,) 1 or 0.
    """

    distances: Tensor
    units: Tensor
    first: Tensor
    second: Tensor
    types: Tensor
    rows: Tensor
    counts: Tensor
    energies: Tensor
    forces: Tensor
    sizes: Tensor
    atom_rows: Tensor
    has_forces: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fit:
    """One call of ``fit``: what is fitted, from where, and where its files go."""

    members: Sequence[MemberSpec]
    bags: Sequence[IntArray]
    problem: _Problem
    constants: FloatArray
    total: int
    checkpoint: Path
    fingerprint: str


@dataclass(kw_only=True, eq=False)
class _State:
    """Where a fit stands: parameters (M, K·3 + E), Adam's moments, steps made, seconds spent."""

    parameters: Tensor
    first: Tensor
    second: Tensor
    step: int = 0
    seconds: float = 0.0


class MorseTrainer:
    """Fits Morse members; see ``Trainer``."""

    def __init__(self, settings: MorseSettings, elements: Sequence[int], seed: int) -> None:
        if not elements:
            raise InputError("a trainer needs at least one element")
        self.settings = settings
        self.elements = tuple(sorted({int(z) for z in elements}))
        self.seed = seed
        upper = np.triu_indices(len(self.elements))
        self._kinds = list(zip(upper[0].tolist(), upper[1].tolist(), strict=True))

    def fit(
        self,
        dataset: Dataset,
        members: Sequence[MemberSpec],
        deadline: Deadline,
        checkpoint: Path,
    ) -> Sequence[MemberResult]:
        """Fits the members together; see ``Trainer``. A step of the deadline is an optimisation step.

        Raises:
            InputError: data or members to start from that do not fit.
            TaskFailure: it diverged (class physics), or the deadline came first (resource).
        """
        checkpoint = Path(checkpoint)
        fitting.check(dataset, members, self.elements)
        named = self.settings.model_dump(mode="json", exclude={"members"})
        fingerprint = fitting.fingerprint(named, [self.elements, self.seed], dataset, members)
        finished = fitting.finished(checkpoint, fingerprint)
        if finished is not None:
            return finished
        train = dataset.where(Split.TRAIN)
        starts = [self._start(spec) for spec in members]
        constants = self._constants(dataset, train)
        problem = self._problem(dataset.take(train), constants)
        warm = all(m.start_from for m in members)
        fit = _Fit(
            members=members,
            bags=fitting.bags(members, len(train), self.settings.bagging),
            problem=problem,
            constants=constants,
            total=self.settings.warm_steps if warm else self.settings.steps,
            checkpoint=checkpoint,
            fingerprint=fingerprint,
        )
        state = self._resumed(checkpoint, fingerprint) or self._begun(starts, constants)
        self._run(fit, state, deadline)
        results = self._results(fit, state, dataset)
        fitting.finish(checkpoint, fingerprint, results, checkpoint / _STATE)
        return results

    # What is fitted

    def _start(self, spec: MemberSpec) -> tuple[FloatArray, FloatArray | None]:
        """(E, E, 3) parameters that a member starts from, and its constants if it has had any."""
        if spec.start_from is None:
            noise = stream(spec.seed, INITIAL).normal(size=(len(self._kinds), 3)) * self.settings.spread
            pairs = initial_pairs(self.elements)
            for (a, b), shift in zip(self._kinds, noise, strict=True):
                pairs[a, b] = pairs[b, a] = pairs[a, b] * np.exp(shift * [1.0, 1.0, 0.2])
            return pairs, None
        member = MorseMember.read(Path(spec.start_from))
        if (member.elements, member.cutoff) != (self.elements, self.settings.cutoff_A):
            raise InputError(
                f"{spec.start_from} cannot be gone on from: it has the elements "
                f"{', '.join(symbol(z) for z in member.elements)} and the cutoff {member.cutoff} Å; "
                "train from initial parameters, without start_from"
            )
        return member.pairs, member.self_energies

    def _constants(self, dataset: Dataset, train: IntArray) -> FloatArray:
        """(E,) constants of the elements from what the unperturbed initial pairs leave of the energies."""
        problem = self._problem(dataset.take(train), np.zeros(len(self.elements)))
        state = self._begun([(initial_pairs(self.elements), None)], np.zeros(len(self.elements)))
        with torch.no_grad():
            energies, _ = self._predict(problem, state.parameters)
        rest = dataset.energies.copy()
        rest[train] -= energies[0].numpy()
        left = Dataset(**{**dataset.__dict__, "energies": rest})
        return fit_self_energies(left, self.elements, train, {})

    def _problem(self, data: Dataset, constants: FloatArray) -> _Problem:
        batch = Batch.of(data.structures(), dtype=torch.float64)
        width = batch.numbers.shape[1]
        found = pairs_within(batch, self.settings.cutoff_A)
        vectors = found.vectors(batch)
        distances = vectors.norm(dim=1)
        # Places in the padded batch become places among the atoms that are there.
        place = batch.mask.flatten().cumsum(0) - 1
        kind = species_table(self.elements)[batch.numbers].flatten()
        order = torch.zeros((len(self.elements), len(self.elements)), dtype=torch.int64)
        for k, (a, b) in enumerate(self._kinds):
            order[a, b] = order[b, a] = k
        counts = np.stack([(batch.numbers == z).sum(dim=1).numpy() for z in self.elements], axis=1)
        has_forces = fitting.with_forces(data)
        forces = np.where(np.repeat(has_forces, data.sizes)[:, None], data.forces, 0.0)
        return _Problem(
            distances=distances,
            units=vectors / distances.unsqueeze(1),
            first=place[found.first],
            second=place[found.second],
            types=order[kind[found.first], kind[found.second]],
            rows=found.first // width,
            counts=torch.tensor(counts, dtype=torch.float64),
            energies=torch.tensor(data.energies - counts @ constants),
            forces=torch.tensor(forces),
            sizes=torch.tensor(data.sizes),
            atom_rows=torch.arange(len(data)).repeat_interleave(torch.tensor(data.sizes)),
            has_forces=torch.tensor(has_forces.astype(np.float64)),
        )

    def _predict(self, problem: _Problem, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """(M, n) energies less the constant and (M, A, 3) forces."""
        n_pairs = 3 * len(self._kinds)
        pairs = parameters[:, :n_pairs].view(len(parameters), -1, 3).exp()
        terms, slopes = pair_terms(problem.distances, pairs[:, problem.types], self.settings.cutoff_A)
        energies = parameters[:, n_pairs:] @ problem.counts.T
        energies = energies.index_add(1, problem.rows, terms)
        push = slopes.unsqueeze(2) * problem.units
        forces = push.new_zeros((len(parameters), len(problem.atom_rows), 3))
        return energies, forces.index_add(1, problem.first, -push).index_add(1, problem.second, push)

    def _squares(self, problem: _Problem, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """(M, n) ΔE²/N and (M, n) mean over atoms of ΔF²."""
        energies, forces = self._predict(problem, parameters)
        square = (forces - problem.forces).square().sum(dim=2)
        summed = energies.new_zeros(energies.shape).index_add(1, problem.atom_rows, square)
        force = summed / problem.sizes * problem.has_forces
        return (energies - problem.energies).square() / problem.sizes, force

    # The optimisation

    def _begun(self, starts: Sequence[tuple[FloatArray, FloatArray | None]], constants: FloatArray) -> _State:
        rows = []
        for pairs, own in starts:
            logs = [np.log(np.maximum(pairs[a, b], _LOWEST)) for a, b in self._kinds]
            offsets = np.zeros(len(self.elements)) if own is None else own - constants
            rows.append(np.concatenate([*logs, offsets]))
        parameters = torch.tensor(np.stack(rows))
        moments = torch.zeros_like(parameters)
        return _State(parameters=parameters, first=moments, second=moments.clone())

    def _run(self, fit: _Fit, state: _State, deadline: Deadline) -> None:
        mask = torch.zeros((len(fit.bags), len(fit.problem.sizes)), dtype=torch.float64)
        for row, bag in enumerate(fit.bags):
            mask[row, torch.as_tensor(bag)] = 1.0 / len(bag)
        began, first, before = time.monotonic(), state.step, state.seconds
        saved = began
        while state.step < fit.total:
            now = time.monotonic()
            state.seconds = before + now - began
            if deadline.expired(state.step - first):
                self._save(fit, state)
                raise fitting.out_of_time(state.step, fit.total, state.seconds, fit.checkpoint)
            if now - saved >= CHECKPOINT_SECONDS:
                self._save(fit, state)
                saved = now
            self._step(fit.problem, state, mask, fit.total)
        state.seconds = before + time.monotonic() - began
        finite = torch.isfinite(state.parameters).all(dim=1).tolist()
        if not all(finite):
            bad = [m.index for m, good in zip(fit.members, finite, strict=True) if not good]
            largest = float(fit.problem.forces.abs().max())
            raise fitting.diverged(bad, fit.total, self.settings.learning_rate, largest)

    def _step(self, problem: _Problem, state: _State, mask: Tensor, total: int) -> None:
        leaf = state.parameters.requires_grad_()
        energy, force = self._squares(problem, leaf)
        each = self.settings.energy_weight * energy + self.settings.force_weight * force
        (gradient,) = torch.autograd.grad((each * mask).sum(), leaf)
        state.parameters = leaf.detach()
        state.step += 1
        rate = 0.5 * self.settings.learning_rate * (1.0 + math.cos(math.pi * (state.step - 1) / total))
        state.first = _BETAS[0] * state.first + (1.0 - _BETAS[0]) * gradient
        state.second = _BETAS[1] * state.second + (1.0 - _BETAS[1]) * gradient.square()
        mean = state.first / (1.0 - _BETAS[0] ** state.step)
        spread = (state.second / (1.0 - _BETAS[1] ** state.step)).sqrt() + 1e-10
        state.parameters = state.parameters - rate * mean / spread

    # Checkpoints and results

    @staticmethod
    def _save(fit: _Fit, state: _State) -> None:
        content = {
            "kind": _STATE,
            "fingerprint": fit.fingerprint,
            "step": state.step,
            "seconds": state.seconds,
            "parameters": state.parameters.detach().numpy(),
            "first": state.first.numpy(),
            "second": state.second.numpy(),
        }
        files.write(fit.checkpoint / _STATE, content)

    def _resumed(self, checkpoint: Path, fingerprint: str) -> _State | None:
        try:
            saved = files.read(checkpoint / _STATE, _STATE)
        except FormatError:
            return None
        if saved["fingerprint"] != fingerprint:
            return None
        return _State(
            parameters=torch.tensor(saved["parameters"]),
            first=torch.tensor(saved["first"]),
            second=torch.tensor(saved["second"]),
            step=saved["step"],
            seconds=saved["seconds"],
        )

    def _results(self, fit: _Fit, state: _State, dataset: Dataset) -> list[MemberResult]:
        metrics = self._metrics(fit, state, dataset)
        train_ids = dataset.ids[dataset.where(Split.TRAIN)]
        results = []
        for k, spec in enumerate(fit.members):
            values = state.parameters[k].detach().numpy()
            pairs = np.zeros((len(self.elements), len(self.elements), 3))
            for (a, b), logs in zip(self._kinds, values[: 3 * len(self._kinds)].reshape(-1, 3), strict=True):
                pairs[a, b] = pairs[b, a] = np.exp(logs)
            member = MorseMember(
                elements=self.elements,
                pairs=pairs,
                self_energies=fit.constants + values[3 * len(self._kinds) :],
                cutoff=self.settings.cutoff_A,
                info={"index": spec.index, "seed": spec.seed, **metrics[k]},
            )
            path, digest = files.write_member(fit.checkpoint, spec.index, "json", member.encode())
            epochs = {"epochs": float(fit.total), "seconds": state.seconds}
            results.append(
                MemberResult(
                    index=spec.index,
                    path=str(path),
                    sha256=digest,
                    metrics={**metrics[k], **epochs},
                    trained_on=tuple(int(i) for i in train_ids[fit.bags[k]]),
                )
            )
        return results

    def _metrics(self, fit: _Fit, state: _State, dataset: Dataset) -> list[dict[str, float]]:
        metrics: list[dict[str, float]] = [{} for _ in fit.bags]
        for name, split in (("train", Split.TRAIN), ("validation", Split.VALIDATION)):
            part = dataset.take(dataset.where(split))
            if not len(part):
                continue
            with torch.no_grad():
                squares = self._squares(self._problem(part, fit.constants), state.parameters)
            energy, force = (s.numpy() for s in squares)
            has, sizes = fitting.with_forces(part), part.sizes.astype(np.float64)
            for k, bag in enumerate(fit.bags):
                at = bag if split is Split.TRAIN else np.arange(len(part))
                metrics[k] |= rmse(name, energy[k, at], force[k, at], sizes[at], has[at])
        return metrics

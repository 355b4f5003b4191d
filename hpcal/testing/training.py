"""What every kind of potential promises, see ``hpcal.core.protocols.PotentialKind`` and ``Trainer``."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from hpcal.core.batch import Batch
from hpcal.core.dataset import Dataset
from hpcal.core.deadline import Deadline
from hpcal.core.ensemble import EnsembleManifest, MemberFile, file_sha256, load_ensemble, verify
from hpcal.core.errors import FailureClass, FormatError, TaskFailure
from hpcal.core.plugins import Group
from hpcal.core.protocols import MemberResult, MemberSpec, Potential
from hpcal.core.settings import Settings
from hpcal.core.structure import Structure
from hpcal.core.walker import Split
from hpcal.testing import batches
from hpcal.testing.conformance import Subject, other_global_state
from hpcal.testing.parts import Part, part_of
from hpcal.testing.potentials import Tolerances, check_potential

NAMED_BY: Final = 8
"""Hexadecimal digits of its hash that the name of a member file has at least."""
MOST_CALLS: Final = 2000
"""Calls of ``fit`` in which an interrupted training has to end."""


def check_potential_kind(
    kind: type | str,
    settings: Settings | Mapping[str, Any] | None,
    dataset: Dataset,
    folder: Path,
    *,
    structures: Sequence[Structure] | None = None,
    steps: int = 1,
    tolerances: Tolerances | None = None,
    single_precision: float = 1e-3,
    seed: int = 0,
) -> None:
    """Checks the promises of a kind of potential: training, files, loading, and the potential.

    The same call of ``fit`` gives the same files, also when deadlines interrupt it; files are named
    by their hash, hold what ``load`` needs and are refused where they are damaged; capabilities
    before and after training agree; float32 is close to float64. The trained ensemble then goes
    through :func:`~hpcal.testing.check_potential`.

    Args:
        kind: a short name or class.
        settings: of a training of seconds.
        dataset: two or more labelled structures in the train split, some in the validation split.
        folder: an empty folder, such as pytest's ``tmp_path``.
        structures: what the trained potential is evaluated on; by default the first four of the data.
        steps: budget of a call of ``fit`` that is to be interrupted, in the trainer's own steps.
        tolerances: of the trained potential in float64.
        single_precision: largest difference of float32 from float64, eV/atom and eV/Å.
        seed: of the members.

    Raises:
        ConformanceError: the first promise that is broken.
    """
    part = part_of(Group.POTENTIALS, kind, settings)
    check = _KindCheck(part=part, dataset=dataset, folder=folder, seed=seed)
    check.description()
    with other_global_state(1):
        results = check.fit(folder / "first")
    check.results(results)
    check.files(results)
    with other_global_state(2):
        again = check.fit(folder / "second")
    check.same(again, results, "the same training gives the same files")
    check.same(
        check.fit(folder / "first"), results, "a finished training that is asked for again gives its files"
    )
    check.interrupted(results, steps)
    check.late(results)
    shown = dataset.structures()[:4] if structures is None else structures
    potential = check.load(results, kind if isinstance(kind, str) else None)
    check.capabilities(potential)
    check.differ(potential, shown)
    check.precisions(potential, results, shown, single_precision)
    check.tampered(results)
    check_potential(potential, shown, tolerances=tolerances, seed=seed, name=f"{part.subject.name}, trained")


@dataclass(frozen=True, kw_only=True)
class _KindCheck:
    part: Part
    dataset: Dataset
    folder: Path
    seed: int

    @property
    def subject(self) -> Subject:
        return self.part.subject

    def description(self) -> None:
        """Number of members and capabilities, known before training."""
        kind = self.part.build()
        self.subject.promises("n_members is at least 1", kind.n_members >= 1, str(kind.n_members))
        elements = kind.capabilities().elements
        self.subject.promises(
            "its elements cover the data",
            elements is None or set(self.dataset.elements) <= set(elements),
            f"{sorted(elements or ())}, the data have {self.dataset.elements}",
        )

    def fit(self, checkpoint: Path, deadline: Deadline | None = None) -> Sequence[MemberResult]:
        """One call of ``fit`` of a new trainer, as a task makes it."""
        kind = self.part.build()
        trainer = kind.trainer(self.dataset.elements, self.seed)
        specs = [MemberSpec(index=i, seed=1000 * self.seed + i) for i in range(kind.n_members)]
        checkpoint.mkdir(parents=True, exist_ok=True)
        results: Sequence[MemberResult] = trainer.fit(self.dataset, specs, deadline or Deadline(), checkpoint)
        return results

    def results(self, results: Sequence[MemberResult]) -> None:
        """A result for each member, and what it says of itself."""
        promises, count = self.subject.promises, self.part.build().n_members
        indices = sorted(r.index for r in results)
        promises("fit() gives one result for each member", indices == list(range(count)), f"{indices}")
        train = set(self.dataset.ids[self.dataset.where(Split.TRAIN)].tolist())
        for r in results:
            promises(
                "a member is trained on structures of the train split only",
                bool(r.trained_on) and set(r.trained_on) <= train,
                f"member {r.index} on {len(r.trained_on)}, others are {sorted(set(r.trained_on) - train)}",
            )
            bad = {k: v for k, v in r.metrics.items() if not np.isfinite(v)}
            promises("metrics of a training are finite", not bad, f"{bad} of member {r.index}")
            missing = {"epochs", "seconds"} - set(r.metrics)
            promises("metrics have epochs and seconds", not missing, f"no {', '.join(sorted(missing))}")

    def files(self, results: Sequence[MemberResult]) -> None:
        """Each member has a file of its own, named by its hash."""
        for r in results:
            path = Path(r.path)
            self.subject.promises("a member has a file", path.is_file(), f"no file {path}")
            digest = file_sha256(path)
            self.subject.promises(
                "sha256 of a result is that of its file",
                digest == r.sha256,
                f"{r.sha256[:12]} for a file of {digest[:12]}",
            )
            words = re.findall(f"[0-9a-f]{{{NAMED_BY},}}", path.name)
            self.subject.promises(
                f"a member file is named by its hash ({NAMED_BY} digits at least)",
                any(digest.startswith(word) for word in words),
                f"{path.name} for {digest[:12]}",
            )

    def same(self, found: Sequence[MemberResult], expected: Sequence[MemberResult], promise: str) -> None:
        """The same members, by their hashes."""
        wanted = {r.index: r.sha256 for r in expected}
        other = [r.index for r in found if r.sha256 != wanted.get(r.index)]
        kept = len(found) == len(expected) and not other and all(Path(r.path).is_file() for r in found)
        self.subject.promises(
            promise, kept, f"{len(found)} results, members {other} with other hashes; tolerance: none"
        )

    def interrupted(self, expected: Sequence[MemberResult], steps: int) -> None:
        """Deadlines cut the training; the same call goes on, and ends at the same bits."""
        for call in range(MOST_CALLS):
            with other_global_state(10 + call):
                results = self._until(self.folder / "cut", Deadline(steps=steps))
            if results is not None:
                self.same(results, expected, f"a training cut into {call + 1} calls ends at the same files")
                return
        raise self.subject.broken(
            f"a call of fit() with a budget of {steps} steps goes on from its checkpoint",
            f"not at the end after {MOST_CALLS} calls",
        )

    def late(self, expected: Sequence[MemberResult]) -> None:
        """A deadline that is past stops a training in good order, and it can go on."""
        results = self._until(self.folder / "late", Deadline(at=time.monotonic() - 1.0))
        if results is None:
            results = self.fit(self.folder / "late")
        self.same(results, expected, "a training that came too late ends at the same files later")

    def _until(self, checkpoint: Path, deadline: Deadline) -> Sequence[MemberResult] | None:
        """The results, or None if the deadline came first."""
        try:
            return self.fit(checkpoint, deadline)
        except TaskFailure as failure:
            self.subject.promises(
                "a deadline ends a training with a TaskFailure of class resource",
                failure.failure_class is FailureClass.RESOURCE,
                f"class {failure.failure_class}: {failure}",
            )
            return None

    def load(self, results: Sequence[MemberResult], name: str | None) -> Potential:
        """The ensemble in float64, through its manifest where the kind has a name."""
        members = tuple(MemberFile(path=r.path, sha256=r.sha256) for r in results)
        if name is None:
            verify(members)
            loaded: Potential = self.part.cls.load([Path(m.path) for m in members], dtype="float64")
            return loaded
        EnsembleManifest(kind=name, members=members).write(self.folder / "ensemble")
        return load_ensemble(EnsembleManifest.read(self.folder / "ensemble"), dtype="float64")

    def capabilities(self, potential: Potential) -> None:
        """What was said before training holds after it."""
        promises = self.subject.promises
        said, found = self.part.build().capabilities(), potential.capabilities()
        promises(
            "capabilities before and after training agree, elements apart",
            replace(said, elements=None) == replace(found, elements=None),
            f"{found} after {said}",
        )
        promises(
            "a loaded ensemble has a member for each file",
            potential.n_members == self.part.build().n_members,
            f"{potential.n_members} members",
        )
        promises("dtype is as asked for", potential.dtype == torch.float64, str(potential.dtype))

    def differ(self, potential: Potential, structures: Sequence[Structure]) -> None:
        """Members of different seeds say different things, or their spread tells nothing."""
        energies = batches.array(potential.energies(Batch.of(structures, dtype=torch.float64)))
        different = len({row.tobytes() for row in energies})
        self.subject.promises(
            "members of different seeds differ in their energies",
            different == len(energies),
            f"{different} different ones of {len(energies)}",
        )

    def precisions(
        self,
        potential: Potential,
        results: Sequence[MemberResult],
        structures: Sequence[Structure],
        within: float,
    ) -> None:
        """The ensemble in float32 is that in float64, within the stated difference."""
        single: Potential = self.part.cls.load([Path(r.path) for r in results], dtype="float32")
        low, high = (Batch.of(structures, dtype=t) for t in (torch.float32, torch.float64))
        self.subject.promises("dtype is as asked for", single.dtype == torch.float32, str(single.dtype))
        energies = single.energies(low)
        self.subject.promises(
            "energies are float64 in any precision", energies.dtype == torch.float64, str(energies.dtype)
        )
        sizes = batches.array(high.n_atoms)
        for what, unit, found, expected in (
            (
                "energies",
                "eV/atom",
                batches.array(energies) / sizes,
                batches.array(potential.energies(high)) / sizes,
            ),
            ("forces", "eV/Å", batches.array(single.forces(low)), batches.array(potential.forces(high))),
        ):
            promise = f"{what} in float32 are those in float64"
            self.subject.agrees(promise, found, expected, within=within, unit=unit)

    def tampered(self, results: Sequence[MemberResult]) -> None:
        """Damaged files and files of something else are refused."""
        folder = self.folder / "tampered"
        folder.mkdir()
        path = Path(shutil.copy(results[0].path, folder))
        data = path.read_bytes()
        damages = {
            "cut in half": data[: len(data) // 2],
            "empty": b"",
            "of something else": b"no model, but text\n" * 40,
            "of noise": np.random.default_rng(self.seed).bytes(len(data)),
        }
        for what, content in damages.items():
            path.write_bytes(content)
            others = [Path(r.path) for r in results[1:]]
            self.subject.refuses(
                f"load() refuses a member file that is {what}",
                partial(self.part.cls.load, [path, *others]),
                FormatError,
            )
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 1
        path.write_bytes(bytes(flipped))
        self.subject.refuses(
            "one changed bit of a member file is found out by its recorded hash",
            lambda: verify([MemberFile(path=str(path), sha256=results[0].sha256)]),
            FormatError,
        )

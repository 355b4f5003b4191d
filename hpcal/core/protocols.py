"""The seams: what each kind of part promises. Parts are found by name (``hpcal.core.plugins``).

Every part is a class with a nested pydantic model ``Settings`` (its block of the campaign file)
and is built as ``Part(settings)``. Tensors carry the shapes B structures, N atoms (padded), M
members, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np

from hpcal.core.arrays import FloatArray, IntArray
from hpcal.core.deadline import Deadline
from hpcal.core.label import Audit, Label, LevelOfTheory, Rejection
from hpcal.core.structure import Structure
from hpcal.core.walker import SampleResult, Scores, Walker

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from hpcal.core.batch import Batch
    from hpcal.core.dataset import Dataset
    from hpcal.core.settings import Settings


# ── Potentials ───────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a potential can do, known before one is trained.

    Attributes:
        differentiable: has ``biased``.
        periodic: takes cells, gives stress.
        charge_aware: tells charge and spin states of one geometry apart.
        provides: quantities that metrics may ask for, of ``energies``, ``member_forces``,
            ``features``.
        elements: atomic numbers that it can cover, or None for any.
    """

    differentiable: bool = False
    periodic: bool = False
    charge_aware: bool = False
    provides: frozenset[str] = frozenset()
    elements: frozenset[int] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class BiasInput:
    """What a bias sees at one step; ``energies`` and positions carry gradients.

    Attributes:
        energies: (M, B) member energies, eV, less a constant shared by the members of a structure.
        batch: the structures.
        n_atoms: (B,) number of atoms, floating point.
        time_fs: (B,) time since each walker's birth, fs.
    """

    energies: Tensor
    batch: Batch
    n_atoms: Tensor
    time_fs: Tensor


class Bias(Protocol):
    """An energy added to the mean of the ensemble."""

    def energy(self, at: BiasInput) -> Tensor:
        """(B,) eV, differentiable in ``at.energies`` and ``at.batch.positions``."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Biased:
    """One evaluation of a biased potential.

    Attributes:
        energies: (M, B) member energies, eV, detached.
        bias: (B,) bias energy, eV, detached.
        forces: (B, N, 3) of mean plus bias, eV/Å.
    """

    energies: Tensor
    bias: Tensor
    forces: Tensor


@runtime_checkable
class Potential(Protocol):
    """An ensemble of M members (M = 1 for a single model), or any other potential."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def n_members(self) -> int: ...

    def capabilities(self) -> Capabilities:
        """What it can do; ``elements`` are those of this very potential."""
        ...

    def energies(self, batch: Batch) -> Tensor:
        """(M, B) total energies, eV, float64."""
        ...

    def forces(self, batch: Batch) -> Tensor:
        """(B, N, 3) mean force, eV/Å; zero at padding."""
        ...

    def member_forces(self, batch: Batch) -> Tensor:
        """(M, B, N, 3) force of each member, eV/Å."""
        ...

    def stress(self, batch: Batch) -> Tensor:
        """(B, 3, 3) mean stress, eV/Å³, positive in tension."""
        ...

    def features(self, batch: Batch) -> Tensor:
        """(B, N, F) descriptor of each atom, scaled to comparable spread; zero at padding."""
        ...


@runtime_checkable
class DifferentiablePotential(Potential, Protocol):
    """A potential whose energies are differentiable in positions."""

    def biased(self, batch: Batch, bias: Bias | None, time_fs: Tensor) -> Biased:
        """Energy and force of mean plus bias, in one backward pass."""
        ...


@dataclass(frozen=True, kw_only=True)
class MemberSpec:
    """One member to train.

    Attributes:
        index: its place in the ensemble.
        seed: of its initialisation, bagging and batches.
        start_from: file of the member to go on from (warm start), or None.
    """

    index: int
    seed: int
    start_from: str | None = None


@dataclass(frozen=True, kw_only=True)
class MemberResult:
    """One trained member: an immutable file, and how the training went.

    Attributes:
        index: its place in the ensemble.
        path: file, named by its hash, without code in it.
        sha256: of the file.
        metrics: ``epochs``, ``train_energy_rmse``, ``train_force_rmse``, ``validation_…``,
            ``seconds``; eV, eV/Å.
        trained_on: (n,) ids of the structures in the member's bag.
    """

    index: int
    path: str
    sha256: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    trained_on: tuple[int, ...] = ()


class Trainer(Protocol):
    """Trains members of one kind of potential."""

    def fit(
        self,
        dataset: Dataset,
        members: Sequence[MemberSpec],
        deadline: Deadline,
        checkpoint: Path,
    ) -> Sequence[MemberResult]:
        """Trains the members on the train split, watching the validation split.

        Args:
            checkpoint: folder of this training; holds what a next call needs to go on exactly,
                and the finished member files.

        Raises:
            hpcal.core.errors.TaskFailure: it diverged, or the deadline came first (class
                ``resource``; the checkpoint is written and the same call goes on).
        """
        ...


class PotentialKind(Protocol):
    """A kind of potential: its settings, trainer and loader. Entry point ``hpcal.potentials``."""

    Settings: ClassVar[type[Settings]]

    def __init__(self, settings: Any) -> None: ...

    @property
    def n_members(self) -> int:
        """Members of an ensemble of these settings."""
        ...

    def capabilities(self) -> Capabilities:
        """What potentials of these settings will be able to do."""
        ...

    def trainer(self, elements: Sequence[int], seed: int) -> Trainer:
        """A trainer for structures of these elements."""
        ...

    @classmethod
    def load(cls, members: Sequence[Path], *, device: str = "cpu", dtype: str = "float32") -> Potential:
        """The ensemble of trained member files.

        Raises:
            hpcal.core.errors.FormatError: a file that is no member of this kind.
        """
        ...


# ── Uncertainty ──────────────────────────────────────────────────────────────────────────────


class Metric(Protocol):
    """An uncertainty. Entry point ``hpcal.metrics``."""

    requires: ClassVar[frozenset[str]]
    """Quantities that the potential must provide."""
    unit: ClassVar[str]
    floor: ClassVar[float]
    """Lowest threshold that a quantile may give, in ``unit``: below it is noise."""

    def score(self, batch: Batch, potential: Potential) -> Tensor:
        """(B,) uncertainty of each structure."""
        ...


class Scorer(Protocol):
    """The campaign's metric and threshold, as samplers use them."""

    @property
    def threshold(self) -> float: ...

    def trigger(self, batch: Batch) -> Tensor:
        """(B,) value of the campaign's metric."""
        ...

    def scores(self, batch: Batch) -> list[Scores]:
        """All stored uncertainties of each structure."""
        ...


# ── Sampling ─────────────────────────────────────────────────────────────────────────────────


class Sampler(Protocol):
    """Moves walkers. Entry point ``hpcal.samplers``."""

    Settings: ClassVar[type[Settings]]
    stage: ClassVar[Literal["sampling"]]
    requires: ClassVar[frozenset[str]]
    """Of ``differentiable``; what the driver must be."""
    pins_ensemble: ClassVar[bool]
    """Whether a walker keeps the ensemble it was born under."""

    def __init__(self, settings: Any) -> None: ...

    def steps_full(self) -> int:
        """Steps after which a walker has reached its full time."""
        ...

    def sample(
        self,
        walkers: Sequence[Walker],
        driver: Potential,
        scorer: Scorer,
        deadline: Deadline,
        rng: np.random.Generator,
    ) -> SampleResult:
        """Advances the walkers until the deadline; those that do not fit wait as reserve."""
        ...


class ForceFunction(Protocol):
    """Energy (eV) and forces (N, 3) (eV/Å) of a structure, by a labeler or a potential."""

    def __call__(self, structure: Structure) -> tuple[float, FloatArray]: ...


class Generator(Protocol):
    """Makes structures from one seed without dynamics. Entry point ``hpcal.samplers`` too."""

    Settings: ClassVar[type[Settings]]
    stage: ClassVar[Literal["bootstrap"]]
    needs_minimum: ClassVar[bool]
    """Whether seeds must be relaxed first."""

    def __init__(self, settings: Any) -> None: ...

    def generate(
        self, seed: Structure, count: int, forces: ForceFunction, rng: np.random.Generator
    ) -> Sequence[Structure]:
        """``count`` structures around the seed."""
        ...


# ── Selection ────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, kw_only=True, eq=False)
class Pool:
    """What a selector chooses from.

    Attributes:
        ids: (n,) structures.
        features: (n, F) one descriptor a structure.
        values: (n,) trigger uncertainty.
    """

    ids: IntArray
    features: FloatArray
    values: FloatArray


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a selector decided on one candidate.

    Attributes:
        structure_id: the candidate.
        chosen: whether it is to be labelled.
        reason: one sentence with numbers.
        rank: place in the batch, 0 first; None if passed over.
        distance: to the nearest of known and chosen before it, or None.
    """

    structure_id: int
    chosen: bool
    reason: str
    rank: int | None = None
    distance: float | None = None


class Selector(Protocol):
    """Chooses a batch. Entry point ``hpcal.selectors``."""

    Settings: ClassVar[type[Settings]]

    def __init__(self, settings: Any) -> None: ...

    def select(
        self, pool: Pool, known: FloatArray, budget: int, rng: np.random.Generator
    ) -> Sequence[Choice]:
        """One choice for every candidate, at most ``budget`` of them chosen.

        Args:
            known: (k, F) descriptors of what is labelled or waiting.
        """
        ...


# ── Labelling ────────────────────────────────────────────────────────────────────────────────


class Labeler(Protocol):
    """Computes labels. Entry point ``hpcal.labelers``."""

    Settings: ClassVar[type[Settings]]
    isolate: ClassVar[bool]
    """Whether it runs in a child process, as compiled QM codes must."""
    periodic: ClassVar[bool]
    """Whether it takes periodic structures."""

    def __init__(self, settings: Any) -> None: ...

    @property
    def level(self) -> LevelOfTheory:
        """The level of theory of its labels."""
        ...

    def missing_elements(self, numbers: Sequence[int]) -> tuple[int, ...]:
        """Those of the atomic numbers that it cannot treat."""
        ...

    def label(self, structure: Structure, deadline: Deadline) -> Label | Rejection:
        """A label, or why there is none. Checks are put around it, see ``hpcal.labeling``."""
        ...


class AuditedLabeler(Labeler, Protocol):
    """A labeler whose labels can be audited."""

    audits: ClassVar[tuple[str, ...]]
    """What may be asked for: ``finite_difference``, which hpcal makes itself, and audits of its own."""

    def audit(self, name: str, structure: Structure, label: Label, deadline: Deadline) -> Audit:
        """An audit of its own on a label that passed its checks."""
        ...

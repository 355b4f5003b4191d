"""The campaign's metric and threshold as samplers and scoring tasks use them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hpcal.core.batch import Batch
from hpcal.core.protocols import Capabilities, Metric, Potential
from hpcal.core.walker import Scores
from hpcal.uncertainty.energy import EnergyStd
from hpcal.uncertainty.force import ForceStd


@dataclass(frozen=True, kw_only=True, eq=False)
class EnsembleScorer:
    """Scores structures by the disagreement of an ensemble.

    Attributes:
        potential: the ensemble that scores, which need not be what drives the dynamics.
        metric: the campaign's metric.
        threshold: value of it above which a structure is a candidate, in the metric's unit.
    """

    potential: Potential
    metric: Metric
    threshold: float

    def trigger(self, batch: Batch) -> Tensor:
        """(B,) value of the campaign's metric."""
        return self.metric.score(self._own(batch), self.potential)

    def scores(self, batch: Batch) -> list[Scores]:
        """All stored uncertainties of each structure.

        The energy or force part is not a number where the potential cannot give it.
        """
        own, once = self._own(batch), _Once(self.potential)
        trigger = self.metric.score(own, once).tolist()
        provides = self.potential.capabilities().provides
        unknown = [float("nan")] * len(batch)
        energy = EnergyStd().score(own, once).tolist() if "energies" in provides else unknown
        force = ForceStd().score(own, once).tolist() if "member_forces" in provides else unknown
        return [
            Scores(energy_std=e, force_std=f, trigger=t)
            for e, f, t in zip(energy, force, trigger, strict=True)
        ]

    def _own(self, batch: Batch) -> Batch:
        """The batch on the device and in the precision of the ensemble."""
        device, dtype = self.potential.device, self.potential.dtype
        return replace(
            batch,
            numbers=batch.numbers.to(device),
            positions=batch.positions.to(device=device, dtype=dtype),
            charges=batch.charges.to(device),
            multiplicities=batch.multiplicities.to(device),
            cell=None if batch.cell is None else batch.cell.to(device=device, dtype=dtype),
            pbc=None if batch.pbc is None else batch.pbc.to(device),
        )


class _Once:
    """A potential asked about one batch, which computes each quantity at most once."""

    def __init__(self, potential: Potential) -> None:
        self._potential = potential
        self._known: dict[str, Tensor] = {}

    @property
    def device(self) -> torch.device:
        return self._potential.device

    @property
    def dtype(self) -> torch.dtype:
        return self._potential.dtype

    @property
    def n_members(self) -> int:
        return self._potential.n_members

    def capabilities(self) -> Capabilities:
        return self._potential.capabilities()

    def energies(self, batch: Batch) -> Tensor:
        if "energies" not in self._known:
            self._known["energies"] = self._potential.energies(batch)
        return self._known["energies"]

    def member_forces(self, batch: Batch) -> Tensor:
        if "member_forces" not in self._known:
            self._known["member_forces"] = self._potential.member_forces(batch)
        return self._known["member_forces"]

    def features(self, batch: Batch) -> Tensor:
        if "features" not in self._known:
            self._known["features"] = self._potential.features(batch)
        return self._known["features"]

    def forces(self, batch: Batch) -> Tensor:
        return self._potential.forces(batch)

    def stress(self, batch: Batch) -> Tensor:
        return self._potential.stress(batch)

"""A labeler as a function of energy and forces, for relaxations and Hessians."""

from __future__ import annotations

from hpcal.core.arrays import FloatArray
from hpcal.core.deadline import Deadline
from hpcal.core.errors import FailureClass, TaskFailure
from hpcal.core.label import Rejection
from hpcal.core.structure import Structure
from hpcal.labeling.checks import LabelSource


class LabelerForces:
    """Energy and forces by a labeler; a :class:`~hpcal.core.protocols.ForceFunction`.

    Attributes:
        calls: QM evaluations so far, those that gave no label included.
    """

    def __init__(self, labeler: LabelSource, deadline: Deadline) -> None:
        self._labeler = labeler
        self._deadline = deadline
        self.calls = 0

    def __call__(self, structure: Structure) -> tuple[float, FloatArray]:
        """Energy (eV) and forces (N, 3) (eV/Å).

        Raises:
            TaskFailure: no label (class ``physics``), a label without forces (class ``input``), or
                whatever the labeler raises.
        """
        result = self._labeler.label(structure, self._deadline)
        self.calls += result.qm_calls
        if isinstance(result, Rejection):
            raise TaskFailure(
                FailureClass.PHYSICS, f"no forces for {structure.formula}: {result.code}: {result.message}"
            )
        if result.forces is None:
            raise TaskFailure(
                FailureClass.INPUT, f"{result.level} gives no forces, which relaxing and normal modes need"
            )
        return result.energy, result.forces


def as_forces(labeler: LabelSource, deadline: Deadline | None = None) -> LabelerForces:
    """The labeler as a function of energy and forces that counts its calls."""
    return LabelerForces(labeler, Deadline() if deadline is None else deadline)

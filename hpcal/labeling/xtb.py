"""Extended tight binding through tblite: GFN2-xTB and GFN1-xTB, molecules and crystals."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar, Final, Literal

import numpy as np
from pydantic import Field

from hpcal.core.arrays import FloatArray
from hpcal.core.deadline import Deadline
from hpcal.core.elements import masses
from hpcal.core.errors import FailureClass, PluginError
from hpcal.core.label import Label, LevelOfTheory, Rejection
from hpcal.core.plugins import how_to_install
from hpcal.core.settings import Settings
from hpcal.core.structure import Structure
from hpcal.core.units import BOHR, BOLTZMANN, HARTREE
from hpcal.labeling.audits import FINITE_DIFFERENCE
from hpcal.labeling.checks import parity
from hpcal.labeling.failures import check_time

HEAVIEST: Final = 86
"""Atomic number up to which GFN1-xTB and GFN2-xTB are parametrised."""
KEPT: Final = 8
"""Compositions whose calculator objects stay in memory."""


class XTBSettings(Settings):
    """The block ``label`` of a campaign with ``labeler: xtb``."""

    method: Literal["GFN2-xTB", "GFN1-xTB"] = Field(
        default="GFN2-xTB",
        description="Hamiltonian (10.1021/acs.jctc.8b01176 and 10.1021/acs.jctc.7b00118)",
    )
    accuracy: float = Field(
        default=1.0, gt=0, le=1000, description="numerical accuracy; smaller is tighter, as in xtb"
    )
    electronic_temperature_K: float = Field(  # noqa: N815
        default=300.0, gt=0, description="temperature of the Fermi occupation"
    )
    max_iterations: int = Field(default=250, ge=1, description="iterations of the self-consistent charges")


class XTB:
    """Labels by xTB: energy, forces, dipole, Mulliken charges; stress of crystals.

    Every calculation starts from the superposition of atomic densities, so that a label depends on
    its structure alone. The dipole is about the centre of mass, which matters for ions; a
    periodic structure has none. xTB has no spin polarisation and takes no notice of the parity of
    electrons and spin, so parity is checked here.
    """

    Settings: ClassVar[type[Settings]] = XTBSettings
    isolate: ClassVar[bool] = True
    periodic: ClassVar[bool] = True
    audits: ClassVar[tuple[str, ...]] = (FINITE_DIFFERENCE,)

    def __init__(self, settings: XTBSettings) -> None:
        self._settings = settings
        self._library = _import_tblite()
        self._calculators: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self._level = LevelOfTheory(
            code="tblite",
            version=".".join(str(part) for part in self._library.library.get_version()),
            method=settings.method,
            settings={
                "accuracy": settings.accuracy,
                "electronic_temperature_K": settings.electronic_temperature_K,
                "guess": "sad",
                "spin_polarization": False,
            },
        )

    @property
    def level(self) -> LevelOfTheory:
        """The level of theory of its labels."""
        return self._level

    def missing_elements(self, numbers: Sequence[int]) -> tuple[int, ...]:
        """Those of the atomic numbers beyond radon."""
        return tuple(z for z in numbers if z > HEAVIEST)

    def label(self, structure: Structure, deadline: Deadline) -> Label | Rejection:
        """A label, or why there is none.

        Codes of rejections: ``scf_not_converged``, ``xtb_failed``, ``parity``, ``partly_periodic``.

        Raises:
            TaskFailure: class ``resource``, no time is left.
        """
        check_time(deadline)
        refused = parity(structure) or _partly_periodic(structure)
        if refused is not None:
            return refused
        try:
            result = self._calculator(structure).singlepoint()
        except RuntimeError as error:
            # A context that has failed keeps its error.
            self._calculators.clear()
            return self._failed(structure, str(error))
        return self._label(structure, result)

    def _calculator(self, structure: Structure) -> Any:
        """The calculator of this composition, moved to these positions."""
        positions = structure.positions / BOHR
        lattice = structure.cell / BOHR if structure.periodic and structure.cell is not None else None
        key = (
            structure.numbers.tobytes(),
            structure.charge,
            structure.multiplicity,
            structure.periodic,
        )
        if key in self._calculators:
            calculator = self._calculators[key]
            calculator.update(positions, lattice)
        else:
            calculator = self._new_calculator(structure, positions, lattice)
            self._calculators[key] = calculator
            while len(self._calculators) > KEPT:
                self._calculators.popitem(last=False)
        self._calculators.move_to_end(key)
        return calculator

    def _new_calculator(self, structure: Structure, positions: FloatArray, lattice: FloatArray | None) -> Any:
        calculator = self._library.interface.Calculator(
            self._settings.method,
            structure.numbers,
            positions,
            float(structure.charge),
            structure.multiplicity - 1,
            lattice,
            None if lattice is None else np.array(structure.pbc),
        )
        calculator.set("verbosity", 0)
        calculator.set("accuracy", self._settings.accuracy)
        calculator.set("temperature", self._settings.electronic_temperature_K * BOLTZMANN / HARTREE)
        calculator.set("max-iter", self._settings.max_iterations)
        return calculator

    def _label(self, structure: Structure, result: Any) -> Label:
        stress = dipole = origin = None
        if structure.periodic and structure.cell is not None:
            volume = abs(float(np.linalg.det(structure.cell)))
            stress = np.asarray(result["virial"]) * HARTREE / volume
        else:
            weights = masses(structure.numbers)
            origin = weights @ structure.positions / weights.sum()
            dipole = np.asarray(result["dipole"]) * BOHR - structure.charge * origin
        return Label(
            energy=float(result["energy"]) * HARTREE,
            forces=-np.asarray(result["gradient"]) * HARTREE / BOHR,
            stress=stress,
            dipole=dipole,
            dipole_origin=origin,
            charges=np.asarray(result["charges"]),
            charge_scheme="mulliken",
            level=self._level,
            diagnostics={"converged": True, "dipole_origin": "centre of mass"},
        )

    def _failed(self, structure: Structure, message: str) -> Rejection:
        unconverged = "not converged" in message
        advice = (
            f" (max_iterations is {self._settings.max_iterations}, electronic_temperature_K "
            f"{self._settings.electronic_temperature_K:g})"
        )
        return Rejection(
            failure_class=FailureClass.PHYSICS,
            code="scf_not_converged" if unconverged else "xtb_failed",
            message=f"{self._settings.method} of {structure.formula}: {message}"
            + (advice if unconverged else ""),
            qm_calls=1,
        )


def _partly_periodic(structure: Structure) -> Rejection | None:
    if not structure.periodic or all(structure.pbc):
        return None
    return Rejection(
        failure_class=FailureClass.INPUT,
        code="partly_periodic",
        message=f"{structure.formula} is periodic in {sum(structure.pbc)} of three directions; tblite "
        "takes none or all: put vacuum into the cell and make it periodic throughout",
    )


def _import_tblite() -> Any:
    try:
        import tblite.interface
        import tblite.library
    except ImportError as error:
        raise PluginError(
            f"labeler 'xtb' needs the package 'tblite', which cannot be imported ({error}): "
            f"{how_to_install('tblite')}"
        ) from error
    return tblite

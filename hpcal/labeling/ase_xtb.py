"""The program ``xtb`` as a calculator of ASE, which has none for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from ase.calculators.genericfileio import BaseProfile, CalculatorTemplate, GenericFileIOCalculator

from hpcal.core.units import BOHR, HARTREE

INPUT: Final = "structure.xyz"
OUTPUT: Final = "xtb.out"
_GRADIENT: Final = "structure.engrad"
METHODS: Final = {
    "GFN2-xTB": ("--gfn", "2"),
    "GFN1-xTB": ("--gfn", "1"),
    "GFN0-xTB": ("--gfn", "0"),
    "GFN-FF": ("--gfnff",),
}


class XTBProfile(BaseProfile):  # type: ignore[misc]
    """How to start it; the arguments of a calculation come with its input."""

    arguments: tuple[str, ...] = ()

    def get_calculator_command(self, inputfile: str | None) -> list[str]:
        """The arguments."""
        return [str(inputfile), *self.arguments]

    def version(self) -> str:
        """Asked for by the labeler itself."""
        raise NotImplementedError


class XTBTemplate(CalculatorTemplate):  # type: ignore[misc]
    """Writes the input, runs the program, reads energy and gradient."""

    def __init__(self) -> None:
        super().__init__("xtb", ["energy", "free_energy", "forces"])

    def write_input(
        self,
        profile: XTBProfile,
        directory: Path,
        atoms: Any,
        parameters: dict[str, Any],
        properties: Any,  # noqa: ARG002
    ) -> None:
        """Writes the structure, and puts all else on the command line."""
        rows = zip(atoms.get_chemical_symbols(), atoms.positions, strict=True)
        lines = [f"{symbol} {x:.15f} {y:.15f} {z:.15f}" for symbol, (x, y, z) in rows]
        (directory / INPUT).write_text("\n".join([str(len(atoms)), "", *lines, ""]), encoding="utf-8")
        given = {"charge": 0, "unpaired": 0, "method": "GFN2-xTB", "options": [], **parameters}
        unknown = sorted(set(given) - {"charge", "unpaired", "method", "options"})
        if unknown or given["method"] not in METHODS:
            raise ValueError(
                f"xtb has the parameters method ({', '.join(METHODS)}) and options, a list of arguments of "
                f"the program; given: {', '.join([*unknown, str(given['method'])])}"
            )
        state = ("--chrg", str(given["charge"]), "--uhf", str(given["unpaired"]))
        options = tuple(str(option) for option in given["options"])
        profile.arguments = (*METHODS[given["method"]], *state, *options, "--grad", "--norestart")

    def execute(self, directory: Path, profile: XTBProfile) -> None:
        """Runs it; what it writes to its standard error stays with that of this process."""
        profile.run(directory, INPUT, OUTPUT)

    def read_results(self, directory: Path) -> dict[str, Any]:
        """Energy and forces from the file of the gradient, which has more digits than the output."""
        lines = (Path(directory) / _GRADIENT).read_text(encoding="utf-8").splitlines()
        numbers = [line.split() for line in lines if not line.startswith("#")]
        atoms = int(numbers[0][0])
        energy = float(numbers[1][0]) * HARTREE
        gradient = np.array([float(row[0]) for row in numbers[2 : 2 + 3 * atoms]]).reshape(atoms, 3)
        return {"energy": energy, "free_energy": energy, "forces": -gradient * HARTREE / BOHR}

    def load_profile(self, cfg: Any) -> XTBProfile:
        """By ASE's own configuration file."""
        profile: XTBProfile = XTBProfile.from_config(cfg, self.name)
        return profile


class XTBProgram(GenericFileIOCalculator):  # type: ignore[misc]
    """Energies and forces of molecules by ``xtb``.

    Args:
        profile: how to start it.
        directory: where it runs.
        parameters: ``method``, ``charge``, ``unpaired`` electrons, further ``options``.
    """

    def __init__(self, *, profile: XTBProfile | None = None, directory: str = ".", **parameters: Any) -> None:
        super().__init__(
            template=XTBTemplate(),
            profile=profile or XTBProfile("xtb"),
            directory=directory,
            parameters=parameters,
        )

"""The block ``label`` of a campaign with ``labeler: espresso``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from hpcal.core.elements import atomic_number
from hpcal.core.settings import Settings
from hpcal.core.units import HARTREE

RYDBERG: Final = HARTREE / 2
"""eV in one Rydberg."""
Value = bool | int | float | str
_OURS: Final = {
    "control": frozenset(
        {"calculation", "disk_io", "outdir", "prefix", "pseudo_dir", "restart_mode", "tprnfor", "tstress"}
        | {"nstep", "max_seconds"}
    ),
    "system": frozenset(
        {"ibrav", "nat", "ntyp", "ecutwfc", "ecutrho", "occupations", "smearing", "degauss", "nspin"}
        | {"tot_charge", "tot_magnetization", "input_dft", "noncolin", "celldm", "a", "b", "c"}
    ),
    "electrons": frozenset({"conv_thr", "electron_maxstep", "mixing_beta", "scf_must_converge"}),
}
"""Keys of pw.x that settings of hpcal or the structure decide."""


class EspressoSettings(Settings):
    """Energies of a plane-wave set with pseudopotentials, by ``pw.x`` of Quantum ESPRESSO."""

    method: str | None = Field(
        default=None,
        description="functional by the name that pw.x knows, such as PBE; by default the one that the "
        "pseudopotentials were made with",
    )
    pseudopotentials: dict[str, Path] = Field(
        min_length=1, description="file in UPF format of each element, such as `{Si: Si.pbe.UPF}`"
    )
    pseudo_dir: Path = Field(
        default=Path("."), description="folder that paths of pseudopotentials are relative to"
    )
    ecutwfc_eV: float = Field(gt=0, description="cutoff of the wave functions")  # noqa: N815
    ecutrho_eV: float | None = Field(  # noqa: N815
        default=None,
        gt=0,
        description="cutoff of the density; by default 4 times that of the wave functions, and to be stated "
        "for ultrasoft and PAW files",
    )
    kpoints: tuple[int, int, int] | None = Field(
        default=None, description="points of the Monkhorst–Pack grid along each reciprocal vector"
    )
    kspacing_per_A: float | None = Field(  # noqa: N815
        default=None,
        gt=0,
        description="instead of kpoints: largest distance of two points, 2π included, 1/Å",
    )
    kpoints_shift: tuple[Literal[0, 1], Literal[0, 1], Literal[0, 1]] = Field(
        default=(0, 0, 0), description="1 shifts the grid by half a step in that direction"
    )
    smearing: Literal["none", "gaussian", "methfessel-paxton", "marzari-vanderbilt", "fermi-dirac"] = Field(
        default="none", description="of the occupations; none: fixed occupations, for insulators"
    )
    smearing_width_eV: float | None = Field(  # noqa: N815
        default=None, gt=0, description="width of the smearing"
    )
    convergence_eV: float = Field(  # noqa: N815
        default=1e-7, gt=0, le=1e-3, description="estimated error of the energy at which the SCF ends"
    )
    max_iterations: int = Field(default=100, ge=1, description="iterations of the SCF")
    mixing_beta: float = Field(default=0.7, gt=0, le=1, description="share of the new density in the mixing")
    max_scf_correction_eV_per_A: float = Field(  # noqa: N815
        default=0.01,
        gt=0,
        description="largest correction of the forces for what the SCF has not converged, root mean square "
        "over atoms",
    )
    spin_polarised: bool = Field(
        default=False, description="start from the initial magnetic moments of the structure"
    )
    namelists: dict[Literal["control", "system", "electrons"], dict[str, Value]] = Field(
        default={}, description="further keys of pw.x, in its own units, such as `{system: {nbnd: 12}}`"
    )
    program: str = Field(default="pw.x", min_length=1, description="name or path of the program")
    timeout_s: float | None = Field(
        default=None, gt=0, description="seconds that one calculation may take; the deadline counts as well"
    )
    memory_MB: float | None = Field(  # noqa: N815
        default=None, gt=0, description="limit of the data of each process of the program"
    )
    scratch: Path | None = Field(
        default=None,
        description="folder in which calculations get directories of their own; one that all nodes see where "
        "a calculation runs on several.  By default the node's temporary space",
    )

    @field_validator("pseudopotentials")
    @classmethod
    def _elements(cls, value: dict[str, Path]) -> dict[str, Path]:
        for symbol in value:
            try:
                atomic_number(symbol)
            except KeyError:
                raise ValueError(f"{symbol!r} is not the symbol of an element") from None
        return value

    @field_validator("namelists")
    @classmethod
    def _not_ours(cls, value: dict[str, dict[str, Value]]) -> dict[str, dict[str, Value]]:
        for namelist, keys in value.items():
            for key in keys:
                name = key.lower().split("(")[0]
                if name in _OURS[namelist] or name == "starting_magnetization":
                    raise ValueError(f"{key} of &{namelist} is set by the structure or a setting of its own")
        return value

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if (self.kpoints is None) == (self.kspacing_per_A is None):
            raise ValueError("give either kpoints or kspacing_per_A")
        if self.kpoints is not None and min(self.kpoints) < 1:
            raise ValueError(f"kpoints must be 1 or more in each direction, not {list(self.kpoints)}")
        if (self.smearing == "none") != (self.smearing_width_eV is None):
            raise ValueError("smearing and smearing_width_eV go together")
        if self.ecutrho_eV is not None and self.ecutrho_eV < self.ecutwfc_eV:
            raise ValueError("ecutrho_eV is below ecutwfc_eV; 4 times as much is the least that is exact")
        return self

    def level(self) -> dict[str, Any]:
        """Those settings that decide the value of a label, for its level of theory."""
        return {
            "ecutwfc_eV": self.ecutwfc_eV,
            "ecutrho_eV": self.ecutrho_eV or 4 * self.ecutwfc_eV,
            "kpoints": None if self.kpoints is None else list(self.kpoints),
            "kspacing_per_A": self.kspacing_per_A,
            "kpoints_shift": list(self.kpoints_shift),
            "smearing": self.smearing,
            "smearing_width_eV": self.smearing_width_eV,
            "convergence_eV": self.convergence_eV,
            "spin_polarised": self.spin_polarised,
            "namelists": {name: dict(keys) for name, keys in self.namelists.items() if keys},
            "energy": "E" if self.smearing == "none" else "free energy E - TS",
        }

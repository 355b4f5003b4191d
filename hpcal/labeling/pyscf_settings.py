"""The block ``label`` of a campaign with ``labeler: pyscf``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from hpcal.core.settings import Settings
from hpcal.labeling.basis import EcpPolicy
from hpcal.labeling.charges import ChargeScheme
from hpcal.labeling.functional import Dispersion
from hpcal.labeling.scf import RUNGS, Rung

Reference = Literal["uks_bs", "rks", "rks_unchecked"]


class NoiseSettings(Settings):
    """Numerical noise that the user declares for a level."""

    energy_meV_per_atom: float = Field(ge=0, description="of an energy")  # noqa: N815
    force_meV_per_A: float = Field(ge=0, description="of a component of a force")  # noqa: N815


class PySCFSettings(Settings):
    """The block ``label`` of a campaign with ``labeler: pyscf``."""

    method: str = Field(
        description="hf, mp2, ccsd, ccsd(t), or a functional of libxc such as wb97x, pbe0, b3lyp or wb97m-v"
    )
    basis: str = Field(description="basis set by name, such as 6-31g*, def2-svp or cc-pvtz")
    density_fit: bool = Field(default=False, description="density fitting of Coulomb and exchange")
    dispersion: Dispersion = Field(default="none", description="correction for dispersion")
    grid_level: int | None = Field(
        default=None,
        ge=0,
        le=9,
        description="PySCF's integration grid; default: 4, and 5 for meta-GGAs, as on coarser ones the net "
        "force of larger molecules exceeds 10 meV/Å",
    )
    grid_response: bool = Field(
        default=False, description="include the response of the grid in the forces; then they add up to zero"
    )
    conv_tol: float = Field(
        default=1e-9, gt=0, le=1e-6, description="convergence of the energy, Hartree, as PySCF names it"
    )
    max_cycle: int = Field(default=100, ge=1, description="iterations of each rung of the ladder")
    ladder: tuple[Rung, ...] = Field(
        default=RUNGS, min_length=1, description="ways to converge, tried in this order"
    )
    reference: Reference = Field(
        default="uks_bs",
        description="of singlets. uks_bs: the lowest unrestricted solution; rks: the restricted one, where a "
        "lower unrestricted one sets the structure aside; rks_unchecked: the restricted one, unchecked",
    )
    lower_multiplicity: Literal["quarantine", "accept"] = Field(
        default="quarantine",
        description="what becomes of a singlet of broken symmetry whose triplet lies lower",
    )
    frozen_core: bool = Field(
        default=True, description="no correlation of core electrons (mp2, ccsd, ccsd(t))"
    )
    cartesian: bool = Field(default=False, description="Cartesian d and f functions instead of spherical")
    ecp: EcpPolicy = Field(
        default="basis", description="basis: the basis set's own ECPs; none: refuse elements that need one"
    )
    forces: bool = Field(default=True, description="false: energies only, at a fraction of the cost")
    charges: tuple[ChargeScheme, ...] = Field(
        default=("mulliken",),
        min_length=1,
        description="schemes of partial charges; the first is the label's own, the others go with it",
    )
    noise: NoiseSettings | None = Field(
        default=None, description="declared noise of the labels; default: as measured for such settings"
    )
    max_memory_MB: int | None = Field(  # noqa: N815
        default=None,
        gt=0,
        description="memory that PySCF tries to keep to, for one molecule; never more than 0.8 of the "
        "slot's, which is the default, or 4000 where the site states no memory",
    )

    @field_validator("charges")
    @classmethod
    def _each_once(cls, schemes: tuple[ChargeScheme, ...]) -> tuple[ChargeScheme, ...]:
        if len(set(schemes)) < len(schemes):
            raise ValueError("a scheme is named twice; name each once")
        return schemes

"""The input of ``pw.x`` for a structure: written by ASE, in the units of Quantum ESPRESSO."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from hpcal.core.elements import symbol
from hpcal.core.errors import FailureClass
from hpcal.core.label import Rejection
from hpcal.core.structure import Structure, to_ase
from hpcal.labeling.espresso_pseudo import Pseudopotential
from hpcal.labeling.espresso_settings import RYDBERG, EspressoSettings

INPUT: Final = "pw.in"
_ROUNDING: Final = 1e-6
"""By which the number of points of a grid may exceed a whole one."""


def refusal(
    structure: Structure, settings: EspressoSettings, potentials: Mapping[str, Pseudopotential]
) -> Rejection | None:
    """Why a structure cannot be calculated with these settings, or None.

    Codes: ``not_periodic``, ``element``, ``spin``, ``no_moments``, ``odd_electrons``.
    """
    name = structure.formula
    missing = sorted({symbol(int(z)) for z in structure.numbers} - potentials.keys())
    moments = structure.magnetic_moments
    magnetic = moments is not None and bool(moments.any())
    smeared = settings.smearing != "none"
    checks = {
        "not_periodic": (
            structure.cell is None or not all(structure.pbc),
            f"{name} is periodic in {sum(structure.pbc)} of three directions, and plane waves are in all: "
            "put vacuum into the cell and make it periodic throughout",
        ),
        "element": (bool(missing), f"no pseudopotential for {', '.join(missing)} in {name}"),
        "spin": (
            not settings.spin_polarised and (magnetic or structure.multiplicity > 1),
            f"{name} has multiplicity {structure.multiplicity}"
            f"{' and initial magnetic moments' if magnetic else ''}, which a calculation without spin would "
            "take no notice of; set spin_polarised: true",
        ),
        "no_moments": (
            settings.spin_polarised and smeared and not magnetic and structure.multiplicity == 1,
            f"{name} has no initial magnetic moments, and a spin-polarised calculation starts from them; "
            "give them in the column initial_magmoms, or a multiplicity above 1",
        ),
    }
    for code, (failed, message) in checks.items():
        if failed:
            return Rejection(failure_class=FailureClass.INPUT, code=code, message=message)
    return None if smeared else _odd(structure, potentials)


def electrons(structure: Structure, potentials: Mapping[str, Pseudopotential]) -> float:
    """Number of electrons that are calculated: the valences less the charge."""
    return sum(potentials[symbol(int(z))].valence for z in structure.numbers) - structure.charge


def grid(structure: Structure, settings: EspressoSettings) -> tuple[int, int, int]:
    """Points of the k-point grid along each reciprocal vector.

    Equation: N_i = max(1, ⌈|b_i| / k⌉), with b_i · a_j = 2π δ_ij.

    ====== =========================================
    N_i    points along reciprocal vector i
    b_i    reciprocal vector, 1/Å
    a_j    lattice vector, Å
    k      ``kspacing_per_A``, 1/Å
    ====== =========================================
    """
    if settings.kpoints is not None:
        return settings.kpoints
    assert structure.cell is not None
    assert settings.kspacing_per_A is not None
    lengths = 2 * np.pi * np.linalg.norm(np.linalg.inv(structure.cell), axis=0)
    points = np.maximum(1, np.ceil(lengths / settings.kspacing_per_A - _ROUNDING)).astype(int)
    return int(points[0]), int(points[1]), int(points[2])


def write_input(
    folder: Path,
    structure: Structure,
    settings: EspressoSettings,
    potentials: Mapping[str, Pseudopotential],
) -> None:
    """Writes the input file, and links to the pseudopotentials beside it."""
    from ase.io.espresso import write_espresso_in

    atoms = to_ase(structure)
    present = sorted(set(atoms.get_chemical_symbols()))
    names = {element: f"{element}.UPF" for element in present}
    for element, name in names.items():
        (folder / name).symlink_to(potentials[element].path.absolute())
    shares = np.zeros(len(structure))
    if settings.spin_polarised and structure.magnetic_moments is not None:
        valences = [potentials[element].valence for element in atoms.get_chemical_symbols()]
        # Shares of the valence electrons, which is what every version takes.
        shares = np.clip(structure.magnetic_moments / valences, -1, 1)
    atoms.set_initial_magnetic_moments(shares)
    with (folder / INPUT).open("w") as file:
        write_espresso_in(
            file,
            atoms,
            input_data=_namelists(structure, settings),
            pseudopotentials=names,
            kpts=grid(structure, settings),
            koffset=settings.kpoints_shift,
        )


def _namelists(structure: Structure, settings: EspressoSettings) -> dict[str, dict[str, Any]]:
    extra = settings.namelists
    control = {
        "calculation": "scf",
        "prefix": "hpcal",
        "outdir": "./",
        "pseudo_dir": "./",
        "tprnfor": True,
        "tstress": True,
        # Nobody reads what it would leave on the disk.
        "disk_io": "none",
    }
    system: dict[str, Any] = {
        "ecutwfc": settings.ecutwfc_eV / RYDBERG,
        "ecutrho": (settings.ecutrho_eV or 4 * settings.ecutwfc_eV) / RYDBERG,
        "tot_charge": float(structure.charge),
        "occupations": "fixed" if settings.smearing == "none" else "smearing",
    }
    if settings.smearing_width_eV is not None:
        system |= {"smearing": settings.smearing, "degauss": settings.smearing_width_eV / RYDBERG}
    if settings.method is not None:
        system["input_dft"] = settings.method
    if settings.spin_polarised:
        system["nspin"] = 2
        if fixed_magnetisation(structure, settings):
            system["tot_magnetization"] = float(structure.multiplicity - 1)
    scf = {
        "conv_thr": settings.convergence_eV / RYDBERG,
        "electron_maxstep": settings.max_iterations,
        "mixing_beta": settings.mixing_beta,
    }
    return {
        "control": control | extra.get("control", {}),
        "system": system | extra.get("system", {}),
        "electrons": scf | extra.get("electrons", {}),
    }


def fixed_magnetisation(structure: Structure, settings: EspressoSettings) -> bool:
    """Whether the total magnetisation is that of the multiplicity; else it is free, from the moments."""
    return settings.spin_polarised and (structure.multiplicity > 1 or settings.smearing == "none")


def _odd(structure: Structure, potentials: Mapping[str, Pseudopotential]) -> Rejection | None:
    """Fixed occupations need electrons that the spin can have."""
    count = electrons(structure, potentials)
    unpaired = structure.multiplicity - 1
    if abs((count - unpaired) % 2) < _ROUNDING and unpaired <= count:
        return None
    return Rejection(
        failure_class=FailureClass.INPUT,
        code="odd_electrons",
        message=f"{structure.formula} has {count:g} valence electrons, which fixed occupations cannot put "
        f"into multiplicity {structure.multiplicity}; use smearing, or state `charge` and `multiplicity`",
    )

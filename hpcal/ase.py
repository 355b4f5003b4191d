"""A finished ensemble as an ASE calculator.

::

    from hpcal.ase import EnsembleCalculator
    atoms.calc = EnsembleCalculator("path/of/ensemble")
    print(atoms.get_forces(), atoms.calc.results["force_std"])
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from hpcal.core.batch import Batch
from hpcal.core.ensemble import EnsembleManifest, load_ensemble
from hpcal.core.errors import InputError
from hpcal.core.protocols import Potential
from hpcal.core.structure import from_ase


class EnsembleCalculator(Calculator):  # type: ignore[misc]
    """Mean energy and forces of an ensemble, and how far its members disagree.

    ``results`` holds, after an energy was asked for:

    - ``energy`` (eV), ``member_energies`` (M,) eV, and ``energy_std``, their standard deviation
      per square root of the number of atoms, eV;

    after forces or ``force_std``, moreover:

    - ``forces`` (eV/Å) and ``force_std``, the largest over atoms of the root of the variance over
      members, summed over the three components, eV/Å;

    and with a cell, where asked for, ``stress`` (eV/Å³, Voigt order). Variances take ddof 0.

    Args:
        path: the folder of an ensemble, which holds ``ensemble.json``, or that file.
        device: such as ``cpu`` or ``cuda``.
        dtype: ``float32``, or ``float64`` for relaxations and normal modes to tight limits.

    Raises:
        hpcal.core.errors.InputError: no ensemble there, or its files are damaged.
    """

    implemented_properties: ClassVar[list[str]] = [
        "energy",
        "free_energy",
        "forces",
        "stress",
        "member_energies",
        "energy_std",
        "force_std",
    ]

    def __init__(self, path: str | Path, *, device: str = "cpu", dtype: str = "float64") -> None:
        super().__init__()
        self.manifest = EnsembleManifest.read(Path(path))
        self.potential: Potential = load_ensemble(self.manifest, device=device, dtype=dtype)

    @property
    def info(self) -> dict[str, Any]:
        """What the ensemble says of itself, such as its level of theory and threshold."""
        return dict(self.manifest.info)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Computes what was asked for, with the spread that belongs to it.

        Raises:
            hpcal.core.errors.InputError: an element that the ensemble does not cover, or a
                periodic structure for an ensemble without cells.
        """
        wanted = properties or ["energy"]
        super().calculate(atoms, wanted, system_changes)
        structure = from_ase(self.atoms)
        capabilities = self.potential.capabilities()
        if structure.periodic and not capabilities.periodic:
            raise InputError(f"an ensemble of kind {self.manifest.kind!r} does not take periodic structures")
        batch = Batch.of([structure], device=self.potential.device, dtype=self.potential.dtype)
        self.results = self._energies(batch, len(structure))
        if "force_std" in wanted or ("forces" in wanted and "member_forces" in capabilities.provides):
            self.results |= self._member_forces(batch)
        elif "forces" in wanted:
            self.results["forces"] = self.potential.forces(batch)[0].double().cpu().numpy()
        if "stress" in wanted:
            stress = self.potential.stress(batch)[0].double().cpu()
            self.results["stress"] = full_3x3_to_voigt_6_stress(stress.numpy())

    def _energies(self, batch: Batch, n_atoms: int) -> dict[str, Any]:
        energies = self.potential.energies(batch)[:, 0].cpu()
        mean = energies.mean()
        spread = float((energies - mean).square().mean().sqrt())
        return {
            "energy": float(mean),
            "free_energy": float(mean),
            "member_energies": energies.numpy(),
            "energy_std": spread / n_atoms**0.5,
        }

    def _member_forces(self, batch: Batch) -> dict[str, Any]:
        members = self.potential.member_forces(batch)[:, 0].double().cpu()
        mean = members.mean(dim=0)
        variance = (members - mean).square().mean(dim=0).sum(dim=1)
        return {"forces": mean.numpy(), "force_std": float(variance.sqrt().max())}

"""Any calculator of ASE as a labeler, with what ASE leaves open: limits, clean-up, and proof of convergence.

Calculators that compute in closed form run in the labelling process. All others run in a process of
their own, in a directory that is made for one calculation and removed after it, see ``ase_process``.
What becomes of a calculation is in ``ase_outcome``, what is known of programs in ``ase_recipes``.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

from hpcal.core.deadline import Deadline
from hpcal.core.elements import masses
from hpcal.core.errors import ConfigurationError, FailureClass, TaskFailure
from hpcal.core.label import Label, LevelOfTheory, Rejection
from hpcal.core.launch import rank_launcher
from hpcal.core.settings import Settings
from hpcal.core.structure import Structure
from hpcal.labeling import ase_run
from hpcal.labeling.ase_outcome import Finished, check_said, judged, version_in
from hpcal.labeling.ase_process import Job, finish
from hpcal.labeling.ase_recipes import CannotTell, Recipe
from hpcal.labeling.ase_settings import AseSettings
from hpcal.labeling.audits import FINITE_DIFFERENCE
from hpcal.labeling.checks import parity
from hpcal.labeling.failures import check_time
from hpcal.labeling.program import Call, run

PREFIX: Final = "hpcal-ase-"
PROBE_SECONDS: Final = 120.0
"""Longest time in which a program must say its version; slow file systems."""


class AseCalculator:
    """Labels by a calculator of ASE: energy, forces, and stress and dipole where it gives them.

    The energy is the free energy where the calculator gives one, as the forces are its derivatives.
    Forces that it does not give are left out of the label.

    Raises:
        ConfigurationError: parameters or files that cannot be used, a missing package.
        TaskFailure: the program cannot be run on this host (``node``).
    """

    Settings: ClassVar[type[Settings]] = AseSettings
    isolate: ClassVar[bool] = True
    periodic: ClassVar[bool] = True
    audits: ClassVar[tuple[str, ...]] = (FINITE_DIFFERENCE,)

    def __init__(self, settings: AseSettings) -> None:
        self._settings = settings
        self._recipe = recipe = settings.recipe
        files = settings.found_files()
        checksums = {name: checksum(name, path) for name, path in sorted(files.items())}
        launcher = rank_launcher()
        self._ranks = 1 if launcher is None or recipe.ranks == "none" else launcher.ranks
        self._job = Job(
            recipe=recipe,
            launcher=launcher if recipe.ranks == "launcher" and not self._alone else None,
            python=str(settings.python or sys.executable),
            timeout_seconds=settings.timeout_s,
            memory_MB=settings.memory_MB,
            files=files,
            several_nodes=launcher is not None and settings.scratch is not None,
        )
        about = self._about()
        self._properties: Sequence[str] | None = about["properties"]
        self._level = LevelOfTheory(
            code=recipe.code,
            version=self._version(about),
            method=settings.method or self._method,
            settings={
                "calculator": settings.calculator,
                "parameters": settings.parameters,
                "ase": about["ase"],
                "files": checksums,
                **({"profile": settings.profile} if settings.profile else {}),
            },
        )

    @property
    def level(self) -> LevelOfTheory:
        """The level of theory of its labels."""
        return self._level

    def missing_elements(self, numbers: Sequence[int]) -> tuple[int, ...]:
        """Those of the atomic numbers that are known to have no parameters."""
        known = self._recipe.elements
        return () if known is None else tuple(z for z in numbers if z not in known)

    def label(self, structure: Structure, deadline: Deadline) -> Label | Rejection:
        """A label, or why there is none.

        Codes of rejections: ``parity``, ``periodic``, ``not_periodic``, ``no_cell``, ``charge``,
        ``moments``, ``element``, and those of ``ase_outcome``.

        Raises:
            TaskFailure: as the table of ``ase_outcome`` says.
            ConfigurationError: the calculator or the program refuses its parameters.
        """
        check_time(deadline)
        refused = parity(structure) or refusal(structure, self._recipe, self._settings.calculator)
        if refused is not None:
            return refused
        try:
            request = self._request(structure)
        except CannotTell as error:
            return _input_rejection(
                "charge",
                f"calculator {self._settings.calculator} cannot be told of {error} of {structure.formula}; "
                "where it has parameters for them, name these as charge_key and multiplicity_key",
            )
        name = f"{self._settings.calculator} of {structure.formula}"
        if self._here:
            return self._label(structure, here(name, request), {})
        folder = self._folder()
        try:
            finished = finish(self._job, folder, request, name, deadline)
            written = self._recorded(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return self._label(structure, finished, written)

    @property
    def _parameters(self) -> dict[str, Any]:
        return {**self._recipe.arguments_of_class, **self._settings.parameters}

    @property
    def _method(self) -> str:
        return method_of(self._recipe, self._parameters) or self._settings.calculator

    @property
    def _alone(self) -> bool:
        """Whether it runs no program that could have ranks."""
        return self._recipe.command is None

    @property
    def _here(self) -> bool:
        """Whether it computes within this process: in closed form, and without limits or files of its own."""
        given = self._settings
        apart = given.timeout_s or given.memory_MB or given.files or given.python
        return self._recipe.here and not apart

    def _folder(self) -> Path:
        scratch = self._settings.scratch
        if scratch is not None:
            scratch.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=PREFIX, dir=scratch))

    def _about(self) -> Mapping[str, Any]:
        """What the calculator can do, and versions of it and of ASE."""
        request = {"calculator": self._recipe.path, "library": self._recipe.library}
        if self._recipe.here and self._settings.python is None:
            answer: Mapping[str, Any] = ase_run.about(request)
        else:
            folder = self._folder()
            try:
                finished = finish(
                    self._job, folder, request, self._settings.calculator, Deadline.after(PROBE_SECONDS)
                )
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            answer = finished.answer
            if not answer:
                raise TaskFailure(
                    FailureClass.NODE, f"{self._job.python} cannot load ASE on this host{finished.tail}"
                )
        if "error" in answer:
            raise ConfigurationError(
                f"calculator {self._settings.calculator} cannot be loaded by {self._job.python}: "
                f"{answer['error']['types'][0]}: {answer['error']['message']}"
            )
        return answer

    def _version(self, about: Mapping[str, Any]) -> str:
        """The version of the program; that of its package where it runs none."""
        if self._settings.version is not None:
            return self._settings.version
        if self._recipe.ask_version is None:
            return about["version"] or "unknown"
        assert self._recipe.command is not None
        assert self._recipe.version is not None
        folder = self._folder()
        try:
            for word in self._recipe.ask_version:
                if not word.startswith("-"):
                    (folder / word).touch()
            argv = (*shlex.split(self._recipe.command), *self._recipe.ask_version)
            call = Call(argv=argv, launcher=self._job.launcher)
            ended = run(call, folder, Deadline.after(PROBE_SECONDS))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        found = version_in(self._recipe.version, f"{ended.output}\n{ended.errors}")
        if found is None:
            raise TaskFailure(
                FailureClass.NODE,
                f"{' '.join(call.command)} does not say on this host which version it is; load its module in "
                f"the pool's worker_init, or correct `command` or the pool's launcher{ended.tail}",
            )
        return found

    def _request(self, structure: Structure) -> dict[str, Any]:
        """What the runner is asked. Raises CannotTell."""
        recipe = self._recipe
        parameters = self._parameters
        # A crystal of multiplicity 1 has whatever moment it has.
        multiplicity = None if structure.periodic and structure.multiplicity == 1 else structure.multiplicity
        if recipe.state is not None:
            parameters = recipe.state(parameters, structure.charge, multiplicity)
        elif structure.charge != 0 or multiplicity not in (None, 1):
            raise CannotTell(f"charge {structure.charge} and multiplicity {structure.multiplicity}")
        if recipe.start_ranks is not None:
            parameters = recipe.start_ranks(parameters, self._ranks)
        wanted = [name for name in ase_run.WANTED if _has(structure, name)]
        offered, moments = self._properties, structure.magnetic_moments if recipe.moments else None
        return {
            "calculator": recipe.path,
            "arguments": parameters,
            "profile": self._settings.profile,
            "properties": [name for name in wanted if offered is None or name in offered],
            "atoms": {
                "numbers": structure.numbers.tolist(),
                "positions": structure.positions.tolist(),
                "cell": None if structure.cell is None else structure.cell.tolist(),
                "pbc": list(structure.pbc),
                "magmoms": None if moments is None else moments.tolist(),
            },
        }

    def _recorded(self, folder: Path) -> dict[str, str]:
        """Checksums of what the calculation itself put together."""
        paths = {name: folder / ase_run.WORK / name for name in self._recipe.recorded}
        return {name: checksum(name, path) for name, path in paths.items() if path.is_file()}

    def _label(
        self, structure: Structure, finished: Finished, written: Mapping[str, str]
    ) -> Label | Rejection:
        refused = judged(finished, self._recipe)
        if refused is not None:
            return refused
        multiplicity = None if structure.periodic else structure.multiplicity
        asked = {"charge": structure.charge, "multiplicity": multiplicity, "ranks": self._said_ranks}
        check_said(finished, self._recipe, asked, self._level.version)
        found = finished.results
        assert found is not None
        neutral = structure.charge == 0 and not structure.periodic
        dipole = found.get("dipole") if neutral else None
        stress = found.get("stress") if structure.periodic else None
        return Label(
            energy=found.get("free_energy", found["energy"]),
            forces=found.get("forces"),
            stress=None if stress is None else full_stress(stress),
            dipole=dipole,
            dipole_origin=None if dipole is None else _centre_of_mass(structure),
            level=self._level,
            diagnostics=_diagnostics(finished, written),
        )

    @property
    def _said_ranks(self) -> int | None:
        return self._ranks if self._job.launcher is not None else None


def refusal(structure: Structure, recipe: Recipe, name: str) -> Rejection | None:
    """Why a structure cannot be given to a calculator, or None.

    Codes: ``periodic``, ``not_periodic``, ``no_cell``, ``moments``.
    """
    moments = structure.magnetic_moments
    crystal = structure.cell is not None and all(structure.pbc)
    formula = structure.formula
    checks = {
        "periodic": (
            recipe.boundaries == "molecules" and structure.periodic,
            f"{formula} is periodic, and calculator {name} is set up for molecules only",
        ),
        "not_periodic": (
            recipe.boundaries == "crystals" and not crystal,
            f"{formula} is periodic in {sum(structure.pbc)} of three directions, and {name} is in all: put "
            "vacuum into the cell and make it periodic throughout",
        ),
        "no_cell": (
            recipe.boundaries == "cell" and structure.cell is None,
            f"{formula} has no cell, and {name} calculates molecules within one too: give it one with vacuum",
        ),
        "moments": (
            structure.periodic and not recipe.moments and moments is not None and bool(moments.any()),
            f"{formula} has initial magnetic moments, of which calculator {name} would take no notice",
        ),
    }
    for code, (failed, message) in checks.items():
        if failed:
            return _input_rejection(code, message)
    return None


def here(name: str, request: Mapping[str, Any]) -> Finished:
    """A calculation within this process."""
    start = time.monotonic()
    answer = ase_run.calculated(dict(request))
    return Finished(
        name=name,
        answer=answer,
        statuses=(),
        signal=None,
        status=0,
        output="",
        log="",
        seconds=time.monotonic() - start,
    )


def full_stress(voigt: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(3, 3) stress of the six components xx, yy, zz, yz, xz, xy of ASE, or of all nine."""
    values = np.asarray(voigt, dtype=np.float64)
    if values.shape == (3, 3):
        return values
    xx, yy, zz, yz, xz, xy = values
    return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])


def method_of(recipe: Recipe, parameters: Mapping[str, Any]) -> str | None:
    """The method as the parameters name it, or None."""
    for path in recipe.method:
        value: Any = parameters
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if isinstance(value, str) and value.strip():
            return value
    return None


def checksum(name: str, path: Path) -> str:
    """SHA-256 of a file that decides a label.

    Raises:
        ConfigurationError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigurationError(
            f"files: {name}: {path} cannot be read: {error.strerror or error}; paths are "
            "relative to files_dir"
        ) from error


def _has(structure: Structure, name: str) -> bool:
    """Whether a quantity of ASE is wanted of a structure."""
    if name == "stress":
        return structure.periodic
    if name == "dipole":
        return not structure.periodic and structure.charge == 0
    if name in ("magmom", "magmoms"):
        return structure.magnetic_moments is not None
    return name in ("energy", "free_energy", "forces")


def _diagnostics(finished: Finished, written: Mapping[str, str]) -> dict[str, Any]:
    found = finished.results or {}
    free = found.get("free_energy")
    known = {
        "energy_without_entropy_eV": None if free in (None, found.get("energy")) else found["energy"],
        "magnetisation": found.get("magmom"),
        "magnetic_moments": found.get("magmoms"),
        "inputs": dict(written) or None,
    }
    return {
        "converged": True,
        "program_seconds": round(finished.seconds, 3),
        **{name: value for name, value in known.items() if value is not None},
    }


def _centre_of_mass(structure: Structure) -> Any:
    weights = masses(structure.numbers)
    return weights @ structure.positions / weights.sum()


def _input_rejection(code: str, message: str) -> Rejection:
    return Rejection(failure_class=FailureClass.INPUT, code=code, message=message)

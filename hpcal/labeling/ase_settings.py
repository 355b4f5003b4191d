"""The block ``label`` of a campaign with ``labeler: ase``."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath
from typing import Any, Final, Self

from pydantic import Field, field_validator, model_validator

from hpcal.core.plugins import nearest
from hpcal.core.settings import Settings
from hpcal.labeling.ase_recipes import ELSEWHERE, NEVER, RECIPES, Recipe, by_keys

_OURS: Final = frozenset(
    {"atoms", "command", "directory", "ignore_bad_restart_file", "label", "profile", "restart"}
)
"""Parameters of calculators that this labeler sets."""


class AseSettings(Settings):
    """Energies by a calculator of ASE, in its own units and by its own parameters."""

    calculator: str = Field(
        min_length=1,
        description="short name of ASE, such as emt, cp2k, nwchem, orca, psi4, vasp or xtb, or the dotted "
        "path of a class",
    )
    parameters: dict[str, Any] = Field(default={}, description="what the calculator is built with")
    profile: dict[str, Any] = Field(
        default={}, description="further parameters of its profile, where ASE has one for it"
    )
    method: str | None = Field(
        default=None, description="name of the method in the level of theory; by default from the parameters"
    )
    command: str | None = Field(
        default=None,
        min_length=1,
        description="program and its own arguments; what ASE adds comes after. Calculators without a recipe "
        "get it as it is",
    )
    python: Path | None = Field(
        default=None,
        description="interpreter that has ASE and the calculator, where that is not the one of hpcal",
    )
    version: str | None = Field(
        default=None, min_length=1, description="version of the program, where it cannot be asked for it"
    )
    files: dict[str, Path] = Field(
        default={},
        description="files that decide the label, by the names under which they are in the directory of the "
        "calculation, such as `{Cu.eam: potentials/Cu.eam}`; their checksums are part of the level of theory",
    )
    files_dir: Path = Field(default=Path("."), description="folder that paths of files are relative to")
    charge_key: str | None = Field(
        default=None, description="parameter that takes the charge; `a.b` is the key b within a"
    )
    multiplicity_key: str | None = Field(default=None, description="parameter that takes the multiplicity")
    magnetic_moments: bool = Field(
        default=False,
        description="the calculator starts from initial magnetic moments; with a recipe, it knows itself",
    )
    output: str | None = Field(
        default=None,
        description="name of the file with the program's output, which may hold *; default: standard output",
    )
    converged_when: tuple[str, ...] = Field(
        default=(), description="regular expressions that all are in the output of a converged calculation"
    )
    failed_when: tuple[str, ...] = Field(default=(), description="regular expressions of which none is in it")
    analytic: bool = Field(
        default=False,
        description="the calculator iterates nothing, or raises an exception where it does not converge",
    )
    timeout_s: float | None = Field(
        default=None, gt=0, description="seconds that one calculation may take; the deadline counts as well"
    )
    memory_MB: float | None = Field(  # noqa: N815
        default=None, gt=0, description="limit of the data of each process of the calculation"
    )
    scratch: Path | None = Field(
        default=None,
        description="folder in which calculations get directories of their own; one that all nodes see where "
        "a calculation runs on several.  By default the node's temporary space",
    )

    @field_validator("parameters", "profile")
    @classmethod
    def _json(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"only numbers, text, lists and mappings can be given ({error})") from None
        return value

    @field_validator("files")
    @classmethod
    def _inside(cls, value: dict[str, Path]) -> dict[str, Path]:
        for name in value:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or not path.parts:
                raise ValueError(f"{name!r} is no name within the directory of the calculation")
        return value

    @field_validator("converged_when", "failed_when")
    @classmethod
    def _patterns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return value

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        for problem in (self._name_problem(), self._parameter_problem(), self._proof_problem()):
            if problem:
                raise ValueError(problem)
        return self

    def _name_problem(self) -> str | None:
        name = self.calculator
        if name in ELSEWHERE:
            return f"calculator {name}: use {ELSEWHERE[name]}"
        if name in NEVER:
            return f"calculator {name} gives no label from parameters in a file; name a class that does"
        if "." in name or name in RECIPES:
            return None
        from ase.calculators.names import names

        known = (set(names) | set(RECIPES)) - set(ELSEWHERE) - NEVER
        return None if name in known else f"ASE has no calculator {name!r}{nearest(name, known)}"

    def _parameter_problem(self) -> str | None:
        keys = (self.charge_key, self.multiplicity_key)
        state = {key.split(".")[0] for key in keys if key is not None and "." not in key}
        taken = sorted((_OURS | self.recipe.ours | state | self._state_keys()) & self.parameters.keys())
        if taken:
            return f"parameters: {', '.join(taken)} is given by the structure or by a setting of its own"
        if self.command and self.calculator in RECIPES and re.search(r"PREFIX|[|>;&]", self.command):
            return "command: give the program alone; what ASE needs is added"
        if self.command is not None and self.recipe.here:
            return f"calculator {self.calculator} runs no program, so that it takes no command"
        return None

    def _state_keys(self) -> set[str]:
        """Parameters that the recipe gives the charge and multiplicity by."""
        if self.recipe.state is None:
            return set()
        return set(self.recipe.state({}, 0, 1)) - {"dft", "scf"}

    def _proof_problem(self) -> str | None:
        recipe, name = self.recipe, self.calculator
        if not (recipe.here or recipe.proves or self.analytic):
            return (
                f"calculator {name} has no recipe, so that it is not known how its output says that it "
                "converged: give converged_when (and output, failed_when), or analytic: true if none has to"
            )
        if recipe.files_needed and not self.files:
            return f"calculator {name}: {recipe.files_needed}"
        unknown = recipe.ask_version is None and recipe.library is None and "." not in name
        if unknown and self.version is None:
            return f"calculator {name} cannot be asked for the version of its program: give it as `version`"
        return None

    @property
    def recipe(self) -> Recipe:
        """The recipe, with what these settings say instead."""
        known = RECIPES.get(self.calculator, Recipe(path=self.calculator, code=self.calculator))
        changes: dict[str, Any] = {}
        if self.converged_when:
            changes["proves"] = self.converged_when
        if self.failed_when:
            changes["disproves"] = (*known.disproves, *self.failed_when)
        if self.output is not None:
            changes["output"] = self.output
        if self.magnetic_moments:
            changes["moments"] = True
        if self.command is not None:
            changes["command"] = self.command
        if self.charge_key is not None or self.multiplicity_key is not None:
            changes["state"] = by_keys(self.charge_key, self.multiplicity_key)
        return Recipe(**{**{name: getattr(known, name) for name in Recipe.__dataclass_fields__}, **changes})

    def found_files(self) -> dict[str, Path]:
        """The files by their names, with whole paths."""
        return {name: (self.files_dir / path).absolute() for name, path in self.files.items()}

"""One calculation by a calculator of ASE, in a process of its own: ``python ase_run.py FOLDER``.

It reads ``request.json`` in the folder, works in ``work`` there and writes ``result.json``.
It imports nothing of hpcal, so that it also runs in an interpreter that has ASE and a calculator but
not hpcal. A result says what came out or what went wrong, never what to make of it.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any, Final

REQUEST: Final = "request.json"
RESULT: Final = "result.json"
WORK: Final = "work"
"""Directory in which the calculator works; it must exist."""
WANTED: Final = ("energy", "free_energy", "forces", "stress", "dipole", "magmom", "magmoms")
"""Quantities of ASE that labels hold."""


def about(request: dict[str, Any]) -> dict[str, Any]:
    """What the calculator can do, and versions; or ``error``."""
    try:
        import ase

        cls = calculator_class(request["calculator"])
        properties = getattr(cls, "implemented_properties", None)
        return {
            "ase": ase.__version__,
            "properties": list(properties) if isinstance(properties, list | tuple | set) else None,
            "version": _package_version(request.get("library") or cls.__module__),
        }
    except Exception as error:
        return {"error": _record(error, "load")}


def calculated(request: dict[str, Any]) -> dict[str, Any]:
    """The results of a calculation, or ``error``."""
    stage = "load"
    try:
        cls = calculator_class(request["calculator"])
        stage = "build"
        calculator = cls(**request["arguments"], **_command(cls, request))
        stage = "calculate"
        return {"results": _results(calculator, request)}
    except Exception as error:
        return {"error": _record(error, stage)}


def calculator_class(name: str) -> Any:
    """The class of a short name of ASE or of a dotted path."""
    if "." not in name:
        from ase.calculators.calculator import get_calculator_class

        return get_calculator_class(name)
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _command(cls: Any, request: dict[str, Any]) -> dict[str, Any]:
    """The command as this kind of calculator takes it: by itself, or within a profile."""
    from ase.calculators.genericfileio import BaseProfile, GenericFileIOCalculator

    command, given = request.get("command"), request.get("profile", {})
    if command is None or not issubclass(cls, GenericFileIOCalculator):
        if given:
            raise TypeError(f"{cls.__name__} has no profile that could take {', '.join(sorted(given))}")
        return {} if command is None else {"command": command}
    module = sys.modules[cls.__module__]
    profiles = [
        part
        for part in vars(module).values()
        if isinstance(part, type) and issubclass(part, BaseProfile) and part.__module__ == module.__name__
    ]
    if len(profiles) != 1:
        raise TypeError(f"{module.__name__} has {len(profiles)} profiles, not one that takes the command")
    return {"profile": profiles[0](command=command, **given)}


def _results(calculator: Any, request: dict[str, Any]) -> dict[str, Any]:
    from ase.calculators.calculator import all_changes

    calculator.calculate(_atoms(request["atoms"]), request["properties"], list(all_changes))
    close = getattr(calculator, "close", None)
    if close is not None:
        close()  # a program that goes on in the background writes the end of its output now
    found = calculator.results
    return {name: _plain(found[name]) for name in WANTED if found.get(name) is not None}


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _atoms(record: dict[str, Any]) -> Any:
    from ase import Atoms

    return Atoms(**record)


def _package_version(module: str) -> str | None:
    """The version of the package that a module belongs to."""
    package = importlib.import_module(module.split(".", maxsplit=1)[0])
    version = getattr(package, "__version__", None)
    if version is None:
        from importlib.metadata import packages_distributions
        from importlib.metadata import version as version_of

        owners = packages_distributions().get(package.__name__, [])
        version = version_of(owners[0]) if owners else None
    return None if version is None else str(version)


def _record(error: Exception, stage: str) -> dict[str, Any]:
    return {
        "stage": stage,
        "types": [kind.__name__ for kind in type(error).__mro__],
        "message": str(error),
        "errno": getattr(error, "errno", None),
        "traceback": "".join(traceback.format_exception(error)),
    }


def main(folder: Path) -> None:
    """Answers the request of a folder."""
    # This file's own directory holds modules whose names are those of packages.
    here = Path(__file__).resolve().parent
    sys.path[:] = [path for path in sys.path if not path or Path(path).resolve() != here]
    request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    os.environ.update(request.get("environment", {}))
    os.chdir(folder / WORK)
    answer = calculated(request) if "atoms" in request else about(request)
    # Under its name only when it is whole.
    unfinished = folder / f"{RESULT}.new"
    unfinished.write_text(json.dumps(answer), encoding="utf-8")
    unfinished.rename(folder / RESULT)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

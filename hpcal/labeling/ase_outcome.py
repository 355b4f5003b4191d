"""What became of a calculation by a calculator of ASE: results that hold, a rejection, or a failure.

==================================================  =============================================
a pattern that disproves convergence                rejection ``scf_not_converged`` (physics)
an exception of the calculator that says so         rejection ``scf_not_converged`` (physics)
results without the patterns that prove it          rejection ``not_converged`` (physics)
proved, and numbers that ASE cannot read            rejection ``unreadable`` (physics)
the program says that it failed, or crashed         rejection ``ase_failed`` (physics)
wrong parameters or input, a missing package        ConfigurationError (input)
out of memory, SIGKILL, out of time                 ``resource``
full or broken file system, SIGTERM, no program,    ``node``
another version than where the labeler started
another charge, multiplicity or number of ranks     ``bug``
than asked for
an end without a result or a cause: garbage,        ``bug``, with the end of the output
nothing, a truncated output, a status above 0
==================================================  =============================================
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hpcal.core.errors import ConfigurationError, FailureClass, TaskFailure
from hpcal.core.label import Rejection
from hpcal.labeling.ase_recipes import Recipe
from hpcal.labeling.espresso_output import machine_failure
from hpcal.labeling.failures import NODE_ERRORS
from hpcal.labeling.program import TAIL, signal_failure

_FROM_A_SIGNAL: Final = 128
_NOT_STARTED: Final = {126: "cannot be executed", 127: "is not found"}
"""What a shell says of a program that it cannot start."""
_SETUP: Final = frozenset({"CalculatorSetupError", "BadConfiguration"})
"""Exceptions of ASE that mean the parameters."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A calculation that has ended.

    Attributes:
        name: of the calculation in messages.
        answer: ``results`` or ``error`` of the runner; empty if it wrote nothing.
        statuses: exit statuses of the programs that it started, as a shell gives them.
        signal: that ended the runner, or None.
        status: exit status of the runner.
        output: of the program, as the recipe says where.
        log: standard output and error of all that ran, those in files ``*.err`` included.
        seconds: time that it took.
    """

    name: str
    answer: Mapping[str, Any]
    statuses: Sequence[int]
    signal: int | None
    status: int
    output: str
    log: str
    seconds: float

    @property
    def results(self) -> Mapping[str, Any] | None:
        """Quantities by the names of ASE, in its units; None without."""
        found: Mapping[str, Any] | None = self.answer.get("results")
        return found

    @property
    def text(self) -> str:
        """All that was written, and the exception: some calculators put a program's last words there."""
        return f"{self.output}\n{self.log}\n{self.answer.get('error', {}).get('message', '')}"

    @property
    def tail(self) -> str:
        """The end of what was written, as the end of a message."""
        parts = (part.strip()[-TAIL:] for part in (self.output, self.log))
        text = "\n".join(part for part in parts if part)
        return f"; its last output:\n{text}" if text else "; it wrote nothing"

    @property
    def in_order(self) -> bool:
        """Whether everything exited with status 0."""
        return self.signal is None and self.status == 0 and not any(self.statuses)

    @property
    def by_signal(self) -> int | None:
        """Number of the signal that ended the runner or a program, or None."""
        known = {int(number) for number in signal.Signals}
        found = [s - _FROM_A_SIGNAL for s in self.statuses if s - _FROM_A_SIGNAL in known]
        return found[-1] if found else self.signal


def judged(finished: Finished, recipe: Recipe) -> Rejection | None:
    """None if the results hold, or the rejection of the structure.

    Raises:
        TaskFailure: as the table of this module says.
        ConfigurationError: the calculator or the program refuses its parameters.
    """
    line = first_line(recipe.disproves, finished.output)
    if line is not None:
        return rejected("scf_not_converged", f"{finished.name}: {line}", finished)
    missing = [pattern for pattern in recipe.proves if first_line((pattern,), finished.output) is None]
    if finished.results is not None and finished.in_order:
        mistake = first_line(recipe.mistakes, finished.output)
        if mistake is not None:
            raise ConfigurationError(f"{finished.name}: {mistake}: it calculated something else")
        if missing:
            return rejected(
                "not_converged",
                f"{finished.name}: its output does not say that it converged ({missing[0]!r} is not in it)"
                f"{finished.tail}",
                finished,
            )
        return None
    _raise_machine(finished)
    refused = _from_exception(finished, recipe)
    if refused is not None:
        return refused
    if finished.in_order and recipe.proves and not missing:
        return rejected(
            "unreadable", f"{finished.name}: ASE cannot read its numbers: {_message(finished)}", finished
        )
    raise TaskFailure(FailureClass.BUG, f"{finished.name} {_ending(finished)}{finished.tail}")


def check_said(finished: Finished, recipe: Recipe, asked: Mapping[str, float | None], version: str) -> None:
    """What the output says of the calculation is what was asked for.

    Raises:
        TaskFailure: another version (``node``); another charge, multiplicity or number of ranks (``bug``).
    """
    for what, pattern in recipe.says.items():
        found, expected = number_of(pattern, finished.output), asked.get(what)
        if found is not None and expected is not None and abs(found - expected) > 1e-3:
            advice = " (do the launcher and the MPI library of the program fit?)" if what == "ranks" else ""
            raise TaskFailure(
                FailureClass.BUG,
                f"{finished.name} ran with {what} {found:g}, not {expected:g}{advice}{finished.tail}",
            )
    said = None if recipe.version is None else version_in(recipe.version, finished.output)
    if said is not None and said != version:
        raise TaskFailure(
            FailureClass.NODE,
            f"{recipe.code} on this host is {said}, and {version} where the labeler started or as "
            "its settings say",
        )


def first_line(patterns: Sequence[str], text: str) -> str | None:
    """The first line in which one of the patterns is found, or None."""
    for pattern in patterns:
        found = re.search(pattern, text, re.MULTILINE)
        if found is not None:
            start = text.rfind("\n", 0, found.start()) + 1
            end = text.find("\n", found.end())
            return " ".join(text[start : None if end < 0 else end].split())
    return None


def version_in(pattern: str, text: str) -> str | None:
    """The version that a pattern finds, by its first group that matches."""
    found = re.search(pattern, text, re.MULTILINE)
    return None if found is None else next(group for group in found.groups() if group is not None)


def number_of(pattern: str, text: str) -> float | None:
    """The number that a pattern finds, or None."""
    found = re.search(pattern, text, re.MULTILINE)
    return None if found is None else float(found[1])


def rejected(code: str, message: str, finished: Finished) -> Rejection:
    """A rejection of class ``physics``."""
    return Rejection(
        failure_class=FailureClass.PHYSICS,
        code=code,
        message=message,
        diagnostics={"converged": False, "program_seconds": round(finished.seconds, 3)},
        qm_calls=1,
    )


def _raise_machine(finished: Finished) -> None:
    """Raises TaskFailure for what is not the structure's fault."""
    machine = machine_failure(finished.text)
    if machine is not None:
        raise TaskFailure(machine[0], f"{finished.name}: {machine[1]}")
    error = finished.answer.get("error", {})
    if "MemoryError" in error.get("types", ()):
        raise TaskFailure(FailureClass.RESOURCE, f"{finished.name}: out of memory; give it more")
    if error.get("errno") in NODE_ERRORS:
        raise TaskFailure(FailureClass.NODE, f"{finished.name}: the machine failed: {error['message']}")
    for status, what in _NOT_STARTED.items():
        if status in finished.statuses:
            raise TaskFailure(
                FailureClass.NODE,
                f"the program of {finished.name} {what} on this host; load its module in the pool's "
                f"worker_init, or correct `command`{finished.tail}",
            )


def _from_exception(finished: Finished, recipe: Recipe) -> Rejection | None:
    """The rejection that a signal, an exception or the program's own words stand for.

    Raises:
        TaskFailure: a signal that is not the structure's fault.
        ConfigurationError: the parameters are wrong.
    """
    number = finished.by_signal
    said = first_line(recipe.failures, finished.text)
    # A program that gives up is often ended by its own MPI library.
    if number is not None and (said is None or number == signal.SIGKILL):
        failure_class, message = signal_failure(number, finished.name)
        if failure_class is not FailureClass.PHYSICS:
            raise TaskFailure(failure_class, f"{message}{finished.tail}")
        return rejected("ase_failed", f"{message}{finished.tail}", finished)
    mistake = first_line(recipe.mistakes, finished.text)
    if mistake is not None:
        raise ConfigurationError(f"{finished.name}: {mistake}{finished.tail}")
    error = finished.answer.get("error", {})
    types = set(error.get("types", ()))
    if types & {"SCFError", *recipe.unconverged}:
        return rejected("scf_not_converged", f"{finished.name}: {_message(finished)}", finished)
    before = types & {*_SETUP, *recipe.refusals} or error.get("stage") in ("load", "build")
    if before and not finished.statuses:
        raise ConfigurationError(f"{finished.name}: {_message(finished)}")
    if said is not None:
        return rejected("ase_failed", f"{finished.name}: {said}{finished.tail}", finished)
    return None


def _message(finished: Finished) -> str:
    error = finished.answer.get("error", {})
    kind = next(iter(error.get("types", ())), "")
    return f"{kind}: {error.get('message', '')}" if error else "it gave no result"


def _ending(finished: Finished) -> str:
    """How it ended, for what has no other cause."""
    statuses = [status for status in (*finished.statuses, finished.status) if status]
    how = f"exited with status {statuses[-1]}" if statuses else "ended"
    error = finished.answer.get("error")
    if error is None:
        return f"{how} and left no result"
    if finished.statuses:
        return f"{how} without results that hold ({_message(finished)})"
    return f"{how} without results that hold: {error['traceback'].strip()}"

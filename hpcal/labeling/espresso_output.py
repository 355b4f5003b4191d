"""What the output of ``pw.x`` says: whether it converged, and the numbers, in the units of hpcal.

Only what is printed counts. ``JOB DONE`` alone means nothing: a calculation that did not converge
prints it too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from hpcal.core.arrays import FloatArray
from hpcal.core.errors import FailureClass
from hpcal.core.units import BOHR
from hpcal.labeling.espresso_settings import RYDBERG

_VERSION: Final = re.compile(r"Program PWSCF v\.?\s*(\S+) starts")
_PROCESSES: Final = re.compile(r"Number of MPI processes:\s+(\d+)|MPI\), running on\s+(\d+) processors")
_SERIAL: Final = "Serial version"
_ENERGY: Final = re.compile(r"^!\s+total energy\s+=\s*(\S+) Ry", re.MULTILINE)
_ERROR: Final = re.compile(r"Error in routine\s+(.+?)\s+\((-?\d+)\)\s*:\s*\n(.*?)\n\s*%%%", re.DOTALL)
_FORCE: Final = re.compile(r"^\s+atom\s+\d+\s+type\s+\d+\s+force =(.*)$", re.MULTILINE)
# With high verbosity the contributions follow, in lines of the same form.
_FORCES: Final = re.compile(r"Forces acting on atoms.*?\n(.*?)(?:contrib|Total force =)", re.DOTALL)
_TOTAL_FORCE: Final = re.compile(r"Total force =\s*(\S+)\s+Total SCF correction =\s*(\S+)")
_STRESS: Final = re.compile(r"total\s+stress\s+\(Ry/bohr\*\*3\).*\n((?:.*\n){3})")
_GAP: Final = re.compile(r"highest occupied, lowest unoccupied level \(ev\):\s+(\S+)\s+(\S+)")
_EMPTY_CARD: Final = re.compile(r"Warning: card .* ignored")
_NUMBERS: Final = {
    "iterations": re.compile(r"convergence has been achieved in\s+(\d+) iterations"),
    "atoms": re.compile(r"number of atoms/cell\s+=\s+(\d+)"),
    "electrons": re.compile(r"number of electrons\s+=\s+(\S+)"),
    "fermi_energy": re.compile(r"the Fermi energy is\s+(\S+) ev"),
    "magnetisation": re.compile(r"total magnetization\s+=\s+(\S+) Bohr mag/cell"),
    "absolute_magnetisation": re.compile(r"absolute magnetization\s+=\s+(\S+) Bohr mag/cell"),
    "smearing_energy": re.compile(r"smearing contrib\. \(-TS\)\s+=\s+(\S+) Ry"),
}
_ROUTINES: Final[dict[FailureClass, tuple[str, ...]]] = {
    FailureClass.INPUT: (
        "iosys",
        "read_namelists",
        "read_cards",
        "card_",
        "readpp",
        "read_pseudo",
        "upf",
        "set_dft",
    ),
    FailureClass.NODE: ("davcio", "diropn", "open_buffer", "check_tempdir", "pw_restart"),
}
"""Beginnings of the names of routines whose errors are not the structure's."""
_LINES: Final[dict[FailureClass, tuple[str, ...]]] = {
    FailureClass.NODE: (
        "No space left on device",
        "Disk quota exceeded",
        "Input/output error",
        "Stale file handle",
        "Read-only file system",
    ),
    FailureClass.RESOURCE: (
        "Cannot allocate memory",
        "Out of memory",
        "Out Of Memory",
        "oom-kill",
        "oom_kill",
        "Error allocating",
        "exceed memory limit",
        "std::bad_alloc",
        "cannot allocate",
    ),
}
"""What the machine writes when it fails, also without an error of pw.x."""


class UnreadableOutput(ValueError):
    """Numbers that are not there, or too large for their columns."""


@dataclass(frozen=True, kw_only=True)
class Error:
    """The error with which pw.x stopped.

    Attributes:
        routine: where.
        message: its words, on one line.
    """

    routine: str
    message: str

    @property
    def failure_class(self) -> FailureClass:
        """``input`` for errors in reading the input, ``node`` for files, else ``physics``."""
        routine = self.routine.lower()
        for failure_class, names in _ROUTINES.items():
            if any(routine.startswith(name) for name in names):
                return failure_class
        return FailureClass.PHYSICS


@dataclass(frozen=True, kw_only=True)
class Head:
    """What the beginning of an output says.

    Attributes:
        version: of pw.x, or None where it is not (yet) said.
        starts: how many times the program has started in this output.
        processes: MPI processes of the first of them, or None where it is not (yet) said.
        serial: whether the program is built without MPI.
    """

    version: str | None
    starts: int
    processes: int | None
    serial: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Numbers:
    """The numbers of a calculation of N atoms.

    Attributes:
        energy: total energy, eV; the free energy E − TS with smearing, of which forces and stress
            are the derivatives.
        forces: (N, 3) eV/Å.
        stress: (3, 3) eV/Å³, positive in tension.
        scf_correction: what the SCF's error may do to the forces, eV/Å, root mean square over atoms.
        gap: highest occupied to lowest empty level, eV, or None.
        iterations: of the SCF.
        atoms: that were calculated.
        electrons: that were calculated.
        fermi_energy: eV, or None.
        magnetisation: total moment, Bohr magnetons, or None.
        absolute_magnetisation: integral of its absolute value, or None.
        smearing_energy: −TS, eV, or None.
    """

    energy: float
    forces: FloatArray
    stress: FloatArray
    scf_correction: float
    gap: float | None
    iterations: int | None
    atoms: int | None
    electrons: float | None
    fermi_energy: float | None
    magnetisation: float | None
    absolute_magnetisation: float | None
    smearing_energy: float | None


def read_head(text: str) -> Head:
    """Version and number of processes."""
    versions = _VERSION.findall(text)
    found = _PROCESSES.search(text)
    return Head(
        version=versions[0] if versions else None,
        starts=len(versions),
        processes=1 if _SERIAL in text else None if found is None else int(found[1] or found[2]),
        serial=_SERIAL in text,
    )


def converged(text: str) -> bool:
    """Whether it says that it converged and that it came to its end, and nowhere that it did not."""
    return "convergence has been achieved" in text and not_converged(text) is None and "JOB DONE" in text


def not_converged(text: str) -> str | None:
    """The line that says that the SCF did not converge, or None."""
    found = re.search(r"^.*convergence NOT achieved.*$", text, re.MULTILINE)
    return None if found is None else found[0].strip()


def read_error(text: str) -> Error | None:
    """The first error of pw.x, or None."""
    found = _ERROR.search(text)
    return None if found is None else Error(routine=found[1], message=" ".join(found[3].split()))


def machine_failure(text: str) -> tuple[FailureClass, str] | None:
    """A line that says that the machine failed, and its class; None without one."""
    for failure_class, words in _LINES.items():
        for word in words:
            if (found := re.search(f"^.*{re.escape(word)}.*$", text, re.MULTILINE)) is not None:
                return failure_class, found[0].strip()
    return None


def warnings_of(text: str) -> list[str]:
    """Lines with which pw.x warns, but for cards of other programs that ASE writes empty."""
    lines = [line.strip() for line in text.splitlines() if not _EMPTY_CARD.search(line)]
    return [line for line in lines if line.lower().startswith("warning") or "reduce conv_thr" in line]


def read_numbers(text: str) -> Numbers:
    """The numbers of a calculation that converged.

    Raises:
        UnreadableOutput: one is missing, or is printed as asterisks because it is too large.
    """
    energies = _ENERGY.findall(text)
    if not energies:
        raise UnreadableOutput("there is no total energy")
    section, total = _FORCES.search(text), _TOTAL_FORCE.search(text)
    if section is None or total is None:
        raise UnreadableOutput("there are no forces")
    rows = [_row(line, "forces") for line in _FORCE.findall(section[1])]
    forces = np.array(rows).reshape(-1, 3)
    _check_total(forces, _number(total[1], "total force"))
    tensor = _STRESS.search(text)
    if tensor is None:
        raise UnreadableOutput("there is no stress")
    stress = np.array([_row(line, "stress") for line in tensor[1].splitlines()])
    gap = _GAP.search(text)
    known = {name: _last(pattern, text) for name, pattern in _NUMBERS.items()}
    smearing = known["smearing_energy"]
    return Numbers(
        energy=_number(energies[-1], "total energy") * RYDBERG,
        forces=forces * RYDBERG / BOHR,
        # pw.x prints the pressure's sign: positive in compression.
        stress=-stress * RYDBERG / BOHR**3,
        scf_correction=_number(total[2], "SCF correction") * RYDBERG / BOHR / max(1, len(forces)) ** 0.5,
        gap=None if gap is None else _number(gap[2], "gap") - _number(gap[1], "gap"),
        iterations=_whole(known["iterations"]),
        atoms=_whole(known["atoms"]),
        electrons=known["electrons"],
        fermi_energy=known["fermi_energy"],
        magnetisation=known["magnetisation"],
        absolute_magnetisation=known["absolute_magnetisation"],
        smearing_energy=None if smearing is None else smearing * RYDBERG,
    )


def _check_total(forces: FloatArray, printed: float) -> None:
    """The forces that were read are those that pw.x summed up (Ry/bohr, six decimals)."""
    total = float(np.sqrt((forces**2).sum()))
    if abs(total - printed) > 2e-6 + 1e-6 * total:
        raise UnreadableOutput(
            f"the forces that were read amount to {total:.6f} Ry/bohr, not to {printed:.6f}"
        )


def _row(text: str, what: str) -> list[float]:
    """The first three numbers of a line."""
    # Wide numbers fill their columns and touch.
    words: Sequence[str] = re.findall(r"[-+]?\d+\.\d+(?:[EeDd][-+]?\d+)?|\*+|[Nn]a[Nn]", text)
    if len(words) < 3:
        raise UnreadableOutput(f"{what}: {text.strip()!r} does not hold three numbers")
    return [_number(word, what) for word in words[:3]]


def _number(text: str, what: str) -> float:
    try:
        value = float(text.replace("D", "E"))
    except ValueError:
        raise UnreadableOutput(f"{what}: {text!r} is no number") from None
    if not np.isfinite(value):
        raise UnreadableOutput(f"{what}: {text!r} is not finite")
    return value


def _last(pattern: re.Pattern[str], text: str) -> float | None:
    found = pattern.findall(text)
    return _number(found[-1], pattern.pattern) if found else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)

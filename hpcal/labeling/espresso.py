"""Density functional theory of crystals with plane waves, through ``pw.x`` of Quantum ESPRESSO.

How a calculation may fail, and what is made of it:

==================================================  =============================================
the SCF did not converge                            rejection ``scf_not_converged`` (physics)
an error of pw.x in the calculation                 rejection ``espresso_failed`` (physics)
numbers that do not fit their columns               rejection ``unreadable`` (physics)
forces that the SCF has not converged               rejection ``forces_not_converged`` (physics)
an error in reading its input, or a pseudopotential ConfigurationError (input)
out of memory, SIGKILL, out of time                 ``resource``
full or broken file system, SIGTERM, no program     ``node``
ranks that started as programs of their own         ``bug``, with what to change in the site
an end without a result or an error                 ``bug``, with the end of the output
==================================================  =============================================
"""

from __future__ import annotations

import re
import shutil
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from hpcal.core.deadline import Deadline
from hpcal.core.elements import atomic_number
from hpcal.core.errors import ConfigurationError, FailureClass, TaskFailure
from hpcal.core.label import Label, LevelOfTheory, Rejection
from hpcal.core.launch import RankLauncher, rank_launcher
from hpcal.core.settings import Settings
from hpcal.core.structure import Structure
from hpcal.labeling.audits import FINITE_DIFFERENCE
from hpcal.labeling.checks import parity
from hpcal.labeling.espresso_input import INPUT, electrons, fixed_magnetisation, refusal, write_input
from hpcal.labeling.espresso_output import (
    Head,
    Numbers,
    UnreadableOutput,
    converged,
    machine_failure,
    not_converged,
    read_error,
    read_head,
    read_numbers,
    warnings_of,
)
from hpcal.labeling.espresso_pseudo import (
    check_density_cutoff,
    common_functional,
    read_pseudopotential,
)
from hpcal.labeling.espresso_settings import EspressoSettings
from hpcal.labeling.failures import check_time
from hpcal.labeling.program import Call, Ended, run, signal_failure

PREFIX: Final = "hpcal-espresso-"
PROBE_SECONDS: Final = 120.0
"""Longest time in which pw.x must say its version; slow file systems."""
_NO_PMI: Final = re.compile(r"not built with SLURM's PMI support|PMI\w* (?:init|Init)\w* (?:returned|failed)")
"""What MPI libraries write when their ranks were started by a launcher that they do not understand."""
_TOLERANCE: Final = 1e-2
"""Electrons and Bohr magnetons are printed with two decimals."""


class Espresso:
    """Labels by pw.x: energy, forces and stress of crystals.

    A pool that starts programs of several ranks has its launcher used, else pw.x runs on its own.
    Each calculation starts from nothing in a directory of its own, so that a label depends on its
    structure alone.

    Raises:
        ConfigurationError: a pseudopotential that cannot be used, or not with the default ecutrho_eV.
        TaskFailure: pw.x cannot be run on this host (``node``), or its ranks start as programs of
            their own (``bug``).
    """

    Settings: ClassVar[type[Settings]] = EspressoSettings
    isolate: ClassVar[bool] = True
    periodic: ClassVar[bool] = True
    audits: ClassVar[tuple[str, ...]] = (FINITE_DIFFERENCE,)

    def __init__(self, settings: EspressoSettings) -> None:
        self._settings = settings
        self._launcher = rank_launcher()
        self._potentials = {
            symbol: read_pseudopotential(settings.pseudo_dir / path, symbol)
            for symbol, path in settings.pseudopotentials.items()
        }
        if settings.ecutrho_eV is None:
            check_density_cutoff(self._potentials.values())
        self._level = LevelOfTheory(
            code="quantum-espresso",
            version=self._version(),
            method=settings.method or common_functional(self._potentials.values()),
            settings={
                **settings.level(),
                "pseudopotentials": {s: p.sha256 for s, p in sorted(self._potentials.items())},
            },
        )

    @property
    def level(self) -> LevelOfTheory:
        """The level of theory of its labels."""
        return self._level

    def missing_elements(self, numbers: Sequence[int]) -> tuple[int, ...]:
        """Those of the atomic numbers without a pseudopotential."""
        known = {atomic_number(symbol) for symbol in self._potentials}
        return tuple(z for z in numbers if z not in known)

    def label(self, structure: Structure, deadline: Deadline) -> Label | Rejection:
        """A label, or why there is none.

        Codes of rejections: ``not_periodic``, ``element``, ``parity``, ``spin``, ``no_moments``,
        ``odd_electrons``, ``scf_not_converged``, ``forces_not_converged``, ``unreadable``,
        ``espresso_failed``.

        Raises:
            TaskFailure: as the table of this module says.
            ConfigurationError: pw.x refuses its input.
        """
        check_time(deadline)
        refused = parity(structure) or refusal(structure, self._settings, self._potentials)
        if refused is not None:
            return refused
        folder = self._folder()
        try:
            write_input(folder, structure, self._settings, self._potentials)
            ended = run(self._call(), folder, deadline, self._watch)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._watch(ended.output)
        check_started(ended, self._launcher, self._settings.program)
        return self._result(structure, ended)

    def _call(self) -> Call:
        return Call(
            argv=(self._settings.program, "-in", INPUT),
            launcher=self._launcher,
            timeout_seconds=self._settings.timeout_s,
            memory_MB=self._settings.memory_MB,
            several_nodes=self._launcher is not None and self._settings.scratch is not None,
        )

    def _folder(self) -> Path:
        scratch = self._settings.scratch
        if scratch is not None:
            scratch.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=PREFIX, dir=scratch))

    def _version(self) -> str:
        """The version that pw.x says when it is given an empty input."""
        folder = self._folder()
        try:
            (folder / INPUT).touch()
            ended = run(self._call(), folder, Deadline.after(PROBE_SECONDS))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        head = read_head(ended.output)
        if head.version is None:
            check_started(ended, self._launcher, self._settings.program)
            command = " ".join(self._call().command)
            raise TaskFailure(
                FailureClass.NODE,
                f"{command} does not say on this host which version of pw.x it is; load its module in the "
                f"pool's worker_init, or correct `program` or the pool's launcher{ended.tail}",
            )
        check_ranks(head, self._launcher, self._settings.program)
        return head.version

    def _watch(self, output: str) -> bool:
        """Ends ranks that run as programs of their own at once: they write over each other's files."""
        head = read_head(output)
        check_ranks(head, self._launcher, self._settings.program)
        return head.processes is not None

    def _result(self, structure: Structure, ended: Ended) -> Label | Rejection:
        if (line := not_converged(ended.output)) is not None:
            return self._not_converged(structure, ended, line)
        if not (ended.signal is None and ended.status == 0 and converged(ended.output)):
            return self._failed(structure, ended)
        try:
            numbers = read_numbers(ended.output)
        except UnreadableOutput as error:
            return self._rejected("unreadable", f"output of pw.x for {structure.formula}: {error}", ended)
        self._check_same(structure, numbers, read_head(ended.output), ended)
        limit = self._settings.max_scf_correction_eV_per_A
        if numbers.scf_correction > limit:
            return self._rejected(
                "forces_not_converged",
                f"the SCF of {structure.formula} leaves {numbers.scf_correction:.4f} eV/Å of its forces "
                f"open; max_scf_correction_eV_per_A is {limit:g}: use a smaller convergence_eV",
                ended,
            )
        return Label(
            energy=numbers.energy,
            forces=numbers.forces,
            stress=numbers.stress,
            level=self._level,
            diagnostics=self._diagnostics(numbers, ended),
        )

    def _failed(self, structure: Structure, ended: Ended) -> Rejection:
        """The rejection or failure of a calculation that came to no result."""
        text = f"{ended.output}\n{ended.errors}"
        name = f"pw.x of {structure.formula}"
        machine, error = machine_failure(text), read_error(ended.output)
        if machine is not None:
            raise TaskFailure(machine[0], f"{name}: {machine[1]}")
        # An MPI program that gives up with an error is aborted by its own library.
        if ended.signal is not None and (error is None or ended.signal == signal.SIGKILL):
            failure_class, message = signal_failure(ended.signal, name)
            if failure_class is not FailureClass.PHYSICS:
                raise TaskFailure(failure_class, f"{message}{ended.tail}")
            return self._rejected("espresso_failed", message, ended)
        if error is None:
            raise TaskFailure(
                FailureClass.BUG,
                f"{name} exited with status {ended.status} and says neither that it converged nor what is "
                f"wrong{ended.tail}",
            )
        message = f"{name}: error in {error.routine}: {error.message}"
        if error.failure_class is FailureClass.INPUT:
            raise ConfigurationError(message)
        if error.failure_class is FailureClass.NODE:
            raise TaskFailure(FailureClass.NODE, message)
        return self._rejected("espresso_failed", message, ended)

    def _check_same(self, structure: Structure, numbers: Numbers, head: Head, ended: Ended) -> None:
        """What was calculated is what was asked for. Raises TaskFailure."""
        if head.version != self._level.version:
            raise TaskFailure(
                FailureClass.NODE,
                f"pw.x on this host is {head.version}, and {self._level.version} where the labeler started",
            )
        wanted: dict[str, tuple[float | None, float | None]] = {
            "atoms": (numbers.atoms, len(structure)),
            "rows of forces": (len(numbers.forces), len(structure)),
            "electrons": (numbers.electrons, electrons(structure, self._potentials)),
        }
        if fixed_magnetisation(structure, self._settings):
            wanted["Bohr magnetons"] = (numbers.magnetisation, structure.multiplicity - 1)
        for what, (found, expected) in wanted.items():
            if found is None or expected is None or abs(found - expected) > _TOLERANCE:
                raise TaskFailure(
                    FailureClass.BUG,
                    f"pw.x calculated {found} {what} for {structure.formula}, not {expected}{ended.tail}",
                )

    def _diagnostics(self, numbers: Numbers, ended: Ended) -> dict[str, Any]:
        head = read_head(ended.output)
        known = {
            "gap_eV": numbers.gap,
            "fermi_energy_eV": numbers.fermi_energy,
            "magnetisation": numbers.magnetisation,
            "absolute_magnetisation": numbers.absolute_magnetisation,
            "smearing_energy_eV": numbers.smearing_energy,
            "warnings": warnings_of(ended.output) or None,
        }
        return {
            "converged": True,
            "iterations": numbers.iterations,
            "scf_correction_eV_per_A": numbers.scf_correction,
            "processes": head.processes,
            "program_seconds": round(ended.seconds, 3),
            "pseudopotentials": {s: p.path.name for s, p in sorted(self._potentials.items())},
            **{name: value for name, value in known.items() if value is not None},
        }

    def _not_converged(self, structure: Structure, ended: Ended, line: str) -> Rejection:
        return self._rejected(
            "scf_not_converged",
            f"pw.x of {structure.formula}: {line} (max_iterations is {self._settings.max_iterations}, "
            f"mixing_beta {self._settings.mixing_beta:g})",
            ended,
        )

    def _rejected(self, code: str, message: str, ended: Ended) -> Rejection:
        return Rejection(
            failure_class=FailureClass.PHYSICS,
            code=code,
            message=message,
            diagnostics={"converged": False, "program_seconds": round(ended.seconds, 3)},
            qm_calls=1,
        )


def check_ranks(head: Head, launcher: RankLauncher | None, program: str) -> None:
    """Refuses ranks that run as programs of their own, which the launcher does not notice.

    Raises:
        TaskFailure: class ``bug``; the message says what to change.
    """
    ranks = 1 if launcher is None else launcher.ranks
    if head.processes is None or launcher is None or (head.processes == ranks and head.starts <= 1):
        return
    command = " ".join(launcher.command)
    if head.serial:
        raise TaskFailure(
            FailureClass.BUG,
            f"{program} is built without MPI, and {command!r} starts it {ranks} times: name the MPI build as "
            "`program`, or take the launcher out of the site file",
        )
    raise _wrong_pmi(
        f"each of the {ranks} ranks of {program} runs as a program of its own ({head.processes} MPI process)",
        launcher,
    )


def check_started(ended: Ended, launcher: RankLauncher | None, program: str) -> None:
    """Tells ranks that could not find each other from other failures: MPI libraries that say so.

    Raises:
        TaskFailure: class ``bug``; the message says what to change.
    """
    if launcher is not None and _NO_PMI.search(ended.errors):
        raise _wrong_pmi(f"the ranks of {program} do not find each other in MPI_Init", launcher)


def _wrong_pmi(what: str, launcher: RankLauncher) -> TaskFailure:
    return TaskFailure(
        FailureClass.BUG,
        f"{what}: the launcher {' '.join(launcher.command)!r} does not speak the PMI of the MPI library that "
        "the program is built with; in the site file use srun --mpi=pmix for OpenMPI, srun --mpi=pmi2 for "
        "MPICH and Intel MPI, or that library's own mpirun (`srun --mpi=list` says what there is)",
    )

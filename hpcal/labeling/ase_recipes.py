"""What has to be known of each program behind a calculator of ASE, to tell a right label from a wrong one.

ASE returns the energy and forces of an SCF that did not converge for some programs (CP2K), and for
none does it say that one did. So a recipe names the file with the output, the patterns that prove
convergence and a whole output, and those that disprove it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Parameters = dict[str, Any]
State = Callable[[Parameters, int, int | None], Parameters]
"""Parameters of a calculator with a charge and a multiplicity; None where nothing is to be said of it."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A program, or a calculator that computes by itself.

    Attributes:
        path: short name of ASE, or dotted path of the class.
        code: name of the program or library in levels of theory.
        here: computes in closed form within the labelling process; nothing can fail to converge.
        command: the program, where there is one and the user names none.
        arguments: what ASE needs after the program.
        output: name of the file with the output, which may hold ``*``; None for standard output.
        proves: patterns that all are in the output of a calculation that converged and came to its end.
        disproves: patterns of which none may be in it.
        mistakes: patterns by which the program says that its input is wrong, also where it goes on.
        failures: patterns by which it says that the structure cannot be calculated.
        unconverged: names of exceptions that say that the SCF did not converge.
        refusals: names of exceptions that say that the parameters are wrong.
        version: pattern of its version.
        ask_version: arguments with which it says its version; None where it cannot be asked.
        library: module whose version is the code's, instead.
        says: patterns of ``charge``, ``multiplicity`` and ``ranks`` in the output; what is found there
            must be what was asked for.
        state: how charge and multiplicity are given; None where they cannot be.
        boundaries: which structures it takes; ``cell`` means molecules too, but in a cell.
        moments: whether it starts from initial magnetic moments; others are not even shown them, as ASE
            makes a multiplicity of its own of them for some.
        ranks: whether the pool's launcher starts it, it starts ranks itself, or it has none.
        start_ranks: parameters with a number of ranks, for those that start them themselves.
        method: parameters that name the method, in the order in which they are looked for.
        arguments_of_class: what the constructor gets beside the user's parameters.
        ours: parameters that a user must not give: the structure or hpcal decides them.
        environment: variables to set; ``{folder}`` is that of the calculation.
        recorded: files that the calculation writes and whose checksums go with each label.
        files_needed: why the level of theory is not known without the files that the user names.
        elements: atomic numbers that it has parameters for; None for any.
    """

    path: str
    code: str
    here: bool = False
    command: str | None = None
    arguments: str = ""
    output: str | None = None
    proves: tuple[str, ...] = ()
    disproves: tuple[str, ...] = ()
    mistakes: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    unconverged: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    version: str | None = None
    ask_version: tuple[str, ...] | None = None
    library: str | None = None
    says: Mapping[str, str] = field(default_factory=dict)
    state: State | None = None
    boundaries: Literal["any", "molecules", "cell", "crystals"] = "any"
    moments: bool = False
    ranks: Literal["launcher", "own", "none"] = "launcher"
    start_ranks: Callable[[Parameters, int], Parameters] | None = None
    method: tuple[str, ...] = ("method", "xc")
    arguments_of_class: Mapping[str, Any] = field(default_factory=dict)
    ours: frozenset[str] = frozenset()
    environment: Mapping[str, str] = field(default_factory=dict)
    recorded: tuple[str, ...] = ()
    files_needed: str = ""
    elements: frozenset[int] | None = None


class CannotTell(ValueError):
    """A calculator that cannot be told a charge or a multiplicity; the message says which."""


def by_keys(
    charge: str | None,
    multiplicity: str | None,
    *,
    unpaired: bool = False,
    open_shell: Mapping[str, Any] | None = None,
) -> State:
    """Charge and multiplicity as parameters of these names; ``a.b`` is the key b within a.

    Args:
        unpaired: give the number of unpaired electrons instead of the multiplicity.
        open_shell: further parameters for multiplicities above 1.
    """

    def state(parameters: Parameters, q: int, m: int | None) -> Parameters:
        given = parameters
        if charge is not None:
            given = with_value(given, charge, q)
        elif q != 0:
            raise CannotTell(f"charge {q}")
        if multiplicity is None and m not in (None, 1):
            raise CannotTell(f"multiplicity {m}")
        if multiplicity is not None and m is not None:
            given = with_value(given, multiplicity, m - 1 if unpaired else m)
        if open_shell and m is not None and m > 1:
            given = {**given, **open_shell}
        return given

    return state


def with_value(parameters: Parameters, path: str, value: Any) -> Parameters:
    """Parameters with a value at a path such as ``dft.mult``; the given ones stay as they are."""
    key, _, rest = path.partition(".")
    inner = parameters.get(key)
    if rest and inner is not None and not isinstance(inner, dict):
        raise CannotTell(f"{path}, as {key!r} is {inner!r} and not a mapping")
    return {**parameters, key: with_value(inner or {}, rest, value) if rest else value}


def _nwchem_state(parameters: Parameters, charge: int, multiplicity: int | None) -> Parameters:
    """The multiplicity stands in the block of the module that makes the orbitals."""
    given = {**parameters, "charge": charge}
    if multiplicity is None:
        return given
    hartree_fock = parameters.get("theory") in ("scf", "mp2", "ccsd", "direct_mp2", "rimp2", "tce")
    if not hartree_fock or "dft" in parameters or "xc" in parameters:
        return with_value(given, "dft.mult", multiplicity)
    given = with_value(given, "scf.nopen", multiplicity - 1)
    return with_value(given, "scf.uhf", None) if multiplicity > 1 else given


def _psi4_state(parameters: Parameters, charge: int, multiplicity: int | None) -> Parameters:
    """Open shells are unrestricted unless the user says otherwise."""
    reference = {"reference": "uhf"} if multiplicity is not None and multiplicity > 1 else {}
    return {**reference, **parameters, "charge": charge, "multiplicity": multiplicity}


def _orca_ranks(parameters: Parameters, ranks: int) -> Parameters:
    blocks = parameters.get("orcablocks", "")
    if "%pal" in blocks.lower():
        return parameters
    return {**parameters, "orcablocks": f"{blocks}\n%pal nprocs {ranks} end".strip()}


def _analytic(name: str, elements: frozenset[int] | None = None) -> Recipe:
    """A potential in closed form that ASE computes itself."""
    return Recipe(path=name, code="ase", here=True, library="ase", ranks="none", elements=elements)


_HEAVIEST_XTB: Final = 86

RECIPES: Final[Mapping[str, Recipe]] = {
    **{name: _analytic(name) for name in ("eam", "lj", "morse", "tersoff", "tip3p", "tip4p")},
    "emt": _analytic("emt", frozenset((1, 6, 7, 8, 13, 28, 29, 46, 47, 78, 79))),
    "cp2k": Recipe(
        path="cp2k",
        code="cp2k",
        command="cp2k.psmp",
        arguments="-s",
        output="cp2k.out",
        proves=(r"SCF run converged in\s+\d+ steps", r"PROGRAM ENDED AT"),
        disproves=(r"SCF run NOT converged",),
        mistakes=(
            r"The requested \w[\w ]* <\S+> for element",
            r"unknown keyword",
            r"found an unknown (?:keyword|subsection)",
        ),
        failures=(r"\[ABORT\]",),
        version=r"CP2K\| version string:\s+CP2K version (\S+)|CP2K version (\S+)",
        ask_version=("--version",),
        says={"ranks": r"Total number of message passing processes\s+(\d+)"},
        state=by_keys("charge", "multiplicity", open_shell={"uks": True}),
        boundaries="cell",
        arguments_of_class={"label": "cp2k"},
        ours=frozenset({"print_level", "auto_write", "debug", "uks"}),
    ),
    "nwchem": Recipe(
        path="nwchem",
        code="nwchem",
        command="nwchem",
        arguments="PREFIX.nwi > PREFIX.nwo",
        output="nwchem.nwo",
        proves=(r"Total (?:DFT|SCF) energy\s+=", r"^ *Task +times +cpu:"),
        disproves=(r"Calculation failed to converge", r"not reaching convergence criteria"),
        mistakes=(
            r"There is an error in the (?:input file|specified basis set)",
            r"failed opening basis file",
        ),
        failures=(r"For further details see manual section",),
        version=r"\(NWChem\)\s+(\S+)",
        ask_version=("empty.nw",),
        says={
            "charge": r"^ +Charge +: +(-?\d+)",
            "multiplicity": r"^ +Spin multiplicity: +(\d+)",
            "ranks": r"^ +nproc +=\s+(\d+)",
        },
        state=_nwchem_state,
        boundaries="molecules",
        method=("xc", "dft.xc", "theory"),
        arguments_of_class={"label": "nwchem"},
        ours=frozenset({"task", "perm", "scratch", "restart_kw"}),
    ),
    "orca": Recipe(
        path="ase.calculators.orca.ORCA",
        code="orca",
        command="orca",
        output="orca.out",
        proves=(r"SCF CONVERGED AFTER\s+\d+ CYCLES", r"ORCA TERMINATED NORMALLY"),
        disproves=(
            r"SCF NOT CONVERGED",
            r"(?i:wavefunction (?:is )?not (?:yet |fully )*converged)",
            r"(?i:did not converge)",
        ),
        mistakes=(r"UNRECOGNIZED OR DUPLICATED KEYWORD", r"INPUT ERROR", r"Unknown identifier"),
        failures=(r"ORCA finished by error termination", r"aborting the run"),
        version=r"Program Version\s+(\S+)",
        ask_version=("no_such_input",),
        says={
            "charge": r"Total Charge\s+Charge\s+\.+\s+(-?\d+)",
            "multiplicity": r"Multiplicity\s+Mult\s+\.+\s+(\d+)",
        },
        state=by_keys("charge", "mult"),
        boundaries="molecules",
        ranks="own",
        start_ranks=_orca_ranks,
        method=("orcasimpleinput",),
    ),
    "psi4": Recipe(
        path="psi4",
        code="psi4",
        output="psi4.dat",
        proves=(r"Energy (?:and wave function )?converged",),
        disproves=(
            r"(?i:failed to converge)",
            r"(?i:could not converge)",
            r"(?i:wave ?function not converged)",
        ),
        # ASE takes its energy without the perturbative part, and forces with it.
        mistakes=(r"Double Hybrid Exchange-Correlation Functional",),
        unconverged=("ConvergenceError", "SCFConvergenceError"),
        refusals=("BasisSetNotFound", "MissingMethodError", "UpgradeHelper"),
        library="psi4",
        says={"charge": r"^ +Charge +=\s+(-?\d+)", "multiplicity": r"^ +Multiplicity +=\s+(\d+)"},
        state=_psi4_state,
        boundaries="molecules",
        ranks="none",
        arguments_of_class={"label": "psi4"},
        ours=frozenset({"PSI_SCRATCH", "num_threads", "memory"}),
        environment={"PSI_SCRATCH": "{folder}"},
    ),
    "vasp": Recipe(
        path="vasp",
        code="vasp",
        output="OUTCAR",
        proves=(r"aborting loop because EDIFF is reached", r"General timing and accounting informations"),
        disproves=(
            r"aborting loop EDIFF was not reached",
            r"electronic self-consistency was not achieved",
        ),
        failures=(r"(?i:\berror\b).*", r"VERY BAD NEWS"),
        version=r"\bvasp\.(\d\S*)",
        says={"ranks": r"running on +(\d+) (?:total cores|mpi-ranks)"},
        state=by_keys("charge", "nupdown", unpaired=True, open_shell={"ispin": 2}),
        boundaries="crystals",
        moments=True,
        arguments_of_class={"txt": "vasp.out"},
        ours=frozenset({"nsw", "ibrion", "istart", "icharg", "nelect", "net_charge", "txt"}),
        environment={"VASP_PP_PATH": "{folder}"},
        recorded=("POTCAR",),
        files_needed="its potentials are part of the level of theory: give each POTCAR under `files`, such "
        "as `potpaw_PBE/Si/POTCAR: /opt/vasp/potpaw_PBE/Si/POTCAR`",
    ),
    "xtb": Recipe(
        path="hpcal.labeling.ase_xtb.XTBProgram",
        code="xtb",
        command="xtb",
        output="xtb.out",
        proves=(
            r"convergence criteria satisfied after|G F N - F F",
            r"\* finished run on",
        ),
        disproves=(r"convergence criteria cannot be satisfied", r"did not converge"),
        # Options that it does not know are passed over with a warning.
        mistakes=(r"Unknown option '\S+' provided",),
        failures=(r"\[ERROR\].*",),
        version=r"xtb version (\S+)",
        ask_version=("--version",),
        says={"charge": r":: total charge +(-?\d+\.\d+) e"},
        state=by_keys("charge", "unpaired", unpaired=True),
        boundaries="molecules",
        ranks="none",
        arguments_of_class={"method": "GFN2-xTB"},
        elements=frozenset(range(1, _HEAVIEST_XTB + 1)),
    ),
}

ELSEWHERE: Final[Mapping[str, str]] = {
    "espresso": "labeler: espresso, which also checks pseudopotentials, ranks and convergence",
    "tblite": "labeler: xtb, which calls tblite itself",
    "xtb.ase.calculator.XTB": "labeler: xtb, which calls tblite",
    "tblite.ase.TBLite": "labeler: xtb, which calls tblite itself",
}
"""Calculators whose work a labeler of its own does better."""
NEVER: Final = frozenset({"ff", "dftd3", "plumed", "idealgas"})
"""Calculators that give no label by themselves, or take what cannot be written in a file."""

"""Names of methods for PySCF: what they mean, and which are refused because they mean too much.

Dispersion is stated in its own key. Only ``wb97x-d3bj``, ``wb97m-d3bj`` and ``b97m-d3bj`` carry it in
their name, as they are functionals of their own (the -V functional, its VV10 part replaced by
D3(BJ); Najibi and Goerigk, J. Chem. Theory Comput. 2018, 10.1021/acs.jctc.8b00842).
"""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from hpcal.core.errors import ConfigurationError, PluginError
from hpcal.core.plugins import how_to_install

Dispersion = Literal["none", "d3bj", "d4"]

HARTREE_FOCK: Final = "hf"
CORRELATED: Final = ("mp2", "ccsd", "ccsd(t)")
"""Methods on top of Hartree–Fock."""
GRID: Final = 4
META_GRID: Final = 5
_OWN_DISPERSION: Final = {"wb97x-d3bj": "d3bj", "wb97m-d3bj": "d3bj", "b97m-d3bj": "d3bj"}
_WB97: Final = "wb97x-d3bj, wb97x-v, wb97m-d3bj, wb97m-v or wb97x without dispersion"
_BANNED: Final = {
    "wb97x-d": f"PySCF has no dispersion for it and would leave it out; use {_WB97}",
    "wb97x-d3": f"PySCF does not have it; use {_WB97}",
    "wb97x-d4": f"its meaning changes between versions of PySCF; use {_WB97}",
    "wb97m-d4": f"its meaning changes between versions of PySCF; use {_WB97}",
    "b97m-d4": "its meaning changes between versions of PySCF; use b97m-d3bj or b97m-v",
    "cf22d": "its own d3zero dispersion is not offered here; use wb97m-d3bj or m06-2x",
}
_KIND: Final = re.compile(r"(?:HYB_)?(?:LDA|GGA|MGGA)_(XC|X|C|K)(?:_|$)")
"""Names of libxc: of exchange and correlation, of one of them, or of the kinetic energy."""
_LEFT_OUT: Final = re.compile(r"(?:_D3?|VDW|_3C|RVV10)$")
"""Names of libxc with a dispersion that neither libxc nor PySCF computes."""


@dataclass(frozen=True, kw_only=True)
class Functional:
    """A method as PySCF takes it.

    Attributes:
        name: lower-case name, the value of PySCF's ``xc``; ``hf`` for Hartree–Fock.
        dispersion: of ``none``, ``d3bj``, ``d4``.
        own_dispersion: whether the name itself brings the dispersion.
        components: weights and numbers of libxc, and exact exchange added to them, for the level of
            theory.
        correlation: method on top of Hartree–Fock, of ``CORRELATED``, or empty.
    """

    name: str
    dispersion: str
    own_dispersion: bool = False
    components: str = ""
    correlation: str = ""

    @property
    def hartree_fock(self) -> bool:
        """Whether there is no functional."""
        return self.name == HARTREE_FOCK

    @property
    def meta(self) -> bool:
        """Whether it depends on the kinetic energy density, which integration grids represent worse."""
        from pyscf.dft import libxc

        return not self.hartree_fock and bool(libxc.xc_type(self.name) == "MGGA")

    @property
    def exact_exchange(self) -> float:
        """Share of exact exchange; of range-separated functionals, that at short range."""
        from pyscf.dft.numint import NumInt

        return 1.0 if self.hartree_fock else float(NumInt().rsh_and_hybrid_coeff(self.name)[2])

    def grid(self, stated: int | None) -> int:
        """Level of the integration grid: as stated, or one that suits the functional."""
        return stated if stated is not None else META_GRID if self.meta else GRID


def resolve(method: str, dispersion: Dispersion) -> Functional:
    """What a method and a dispersion of the user's file mean.

    Raises:
        ConfigurationError: an unknown, ambiguous or unavailable method; names alternatives.
        PluginError: dispersion without its package.
    """
    name = method.strip().lower()
    plain = name.replace("_", "-")
    if name in CORRELATED:
        return _correlated(name, dispersion)
    _refuse_ambiguous(method, plain)
    own = _OWN_DISPERSION.get(plain)
    chosen = own or dispersion
    if own and dispersion not in ("none", own):
        raise ConfigurationError(
            f"method {method!r} brings {own} dispersion; remove dispersion: {dispersion}"
        )
    functional = Functional(
        name=plain if own else name,
        dispersion=chosen,
        own_dispersion=own is not None,
        components="" if name == HARTREE_FOCK else _components(method, plain if own else name, chosen),
    )
    if chosen != "none":
        _check_dispersion(functional)
    return functional


def _correlated(name: str, dispersion: Dispersion) -> Functional:
    if dispersion != "none":
        raise ConfigurationError(
            f"dispersion {dispersion} with method {name!r} is refused: it holds dispersion already; set "
            "dispersion: none"
        )
    return Functional(name=HARTREE_FOCK, dispersion="none", correlation=name)


def dispersion_version() -> str:
    """Version of the package that computes dispersion."""
    return importlib.metadata.version("pyscf-dispersion")


def _refuse_ambiguous(method: str, plain: str) -> None:
    if plain in _BANNED:
        raise ConfigurationError(f"method {method!r} is refused: {_BANNED[plain]}")
    if plain.endswith("3c"):
        raise ConfigurationError(
            f"method {method!r} is refused: the corrections of -3c methods are not in PySCF; use "
            "r2scan or pbe0 with dispersion: d4, or wb97x-d3bj"
        )
    suffix = re.fullmatch(r"(.+)-(d[34]\w*)", plain)
    if suffix and plain not in _OWN_DISPERSION:
        base, version = suffix.groups()
        offered = version if version in ("d3bj", "d4") else "d3bj"
        raise ConfigurationError(
            f"method {method!r} holds its dispersion; write method: {base} and dispersion: {offered}"
        )


def _components(method: str, name: str, dispersion: str) -> str:
    from pyscf.dft import libxc

    try:
        (exact, short, omega), parts = libxc.parse_xc(name)
    except (KeyError, ValueError, NotImplementedError) as error:
        close = difflib.get_close_matches(name.upper(), list(libxc.XC_CODES), n=3, cutoff=0.6)
        hint = f"; did you mean {', '.join(c.lower() for c in close)}?" if close else ""
        raise ConfigurationError(
            f"method {method!r} is neither hf, mp2, ccsd, ccsd(t) nor a functional of libxc{hint}"
        ) from error
    if not parts:
        raise ConfigurationError(
            f"method {method!r} is neither hf, mp2, ccsd, ccsd(t) nor a functional of libxc"
        )
    _refuse_incomplete(method, [int(number) for number, _ in parts], bool(exact or short), dispersion)
    terms = [f"{float(weight):g}*{int(number)}" for number, weight in parts]
    if exact or short:
        # Beyond the exact exchange that libxc's own hybrids hold.
        terms.append(f"exchange({float(exact):g},{float(short):g},{float(omega):g})")
    return "+".join(terms)


def _refuse_incomplete(method: str, numbers: Sequence[int], exact_exchange: bool, dispersion: str) -> None:
    """Half a functional, unless a comma says that it is meant, and one without the dispersion of its name."""
    from pyscf.dft import libxc

    names = [name for name, number in libxc.XC_CODES.items() if number in numbers]
    kinds = {found[1] for found in map(_KIND.match, names) if found} | ({"X"} if exact_exchange else set())
    lacking = [word for kind, word in (("X", "exchange"), ("C", "correlation")) if not kinds & {kind, "XC"}]
    if "K" in kinds or (lacking and "," not in method):
        lacks = "is of the kinetic energy" if "K" in kinds else f"has no {lacking[0]}"
        raise ConfigurationError(
            f"method {method!r} {lacks}; name a whole functional, such as svwn or blyp, or its parts with a "
            "comma between them, such as 'b88,lyp'"
        )
    without = next((name for name in names if _LEFT_OUT.search(name)), None)
    if without is not None and (dispersion == "none" or without.endswith("RVV10")):
        raise ConfigurationError(
            f"method {method!r} is refused: PySCF would leave out the dispersion that {without} of libxc was "
            "made with; add dispersion: d3bj to b97-d, and instead of others use wb97x-d3bj, wb97x-v, "
            "wb97m-d3bj, wb97m-v or scan_vv10"
        )


def _check_dispersion(functional: Functional) -> None:
    """Dispersion that exists for this functional, is not there already, and is installed."""
    from pyscf.dft import libxc

    name, version = functional.name, functional.dispersion
    if not functional.own_dispersion:
        if re.match(r"w?b97[xm]", name.replace("_", "-")):
            raise ConfigurationError(
                f"dispersion {version} with method {name!r} is refused: the published parameters belong to "
                f"another functional of that family; use {_WB97}"
            )
        if not functional.hartree_fock and libxc.is_nlc(name):
            raise ConfigurationError(f"method {name!r} holds VV10 dispersion already; set dispersion: none")
    if importlib.util.find_spec("pyscf.dispersion") is None:
        raise PluginError(
            f"dispersion {version} needs the package 'pyscf-dispersion', which is not installed: "
            f"{how_to_install('pyscf-dispersion')}"
        )
    _try_dispersion(functional)


def _try_dispersion(functional: Functional) -> None:
    """Evaluates the dispersion of H2: parameters for the functional exist, or an error says so."""
    from pyscf import dft, gto

    mean_field = dft.RKS(gto.M(atom="H 0 0 0; H 0 0 0.74", verbose=0))
    mean_field.xc = functional.name
    try:
        mean_field.get_dispersion(None if functional.own_dispersion else functional.dispersion)
    except (RuntimeError, KeyError, ValueError, NotImplementedError) as error:
        raise ConfigurationError(
            f"there are no {functional.dispersion} parameters for method {functional.name!r} ({error}); use "
            "another functional, or dispersion: none"
        ) from error

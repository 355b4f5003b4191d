"""What a pseudopotential file in UPF format says of itself, and its checksum."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hpcal.core.errors import ConfigurationError

_ATTRIBUTE: Final = r'\b{}\s*=\s*"\s*([^"]*?)\s*"'
_AUGMENTED: Final = re.compile(
    r'\bpseudo_type\s*=\s*"\s*(?:US|PAW)|\bis_(?:ultrasoft|paw)\s*=\s*"\s*\.?T|^\s*(?:US|PAW)\s',
    re.MULTILINE | re.IGNORECASE,
)
"""How version 2 and version 1 of the format say that a file is ultrasoft or PAW."""
_FUNCTIONALS: Final = {
    "SLA PZ NOGX NOGC": "LDA",
    "PZ": "LDA",
    "SLA PW PBX PBC": "PBE",
    "SLA PW PBE PBE": "PBE",
    "SLA PW PSX PSC": "PBESOL",
    "SLA LYP B88 BLYP": "BLYP",
    "SLA PW TPSS TPSS": "TPSS",
}
"""Names of functionals that files spell in their parts."""


@dataclass(frozen=True, kw_only=True)
class Pseudopotential:
    """One file.

    Attributes:
        path: where it is.
        sha256: of its bytes.
        element: symbol.
        valence: electrons that it treats.
        functional: name of the functional that it was made with, as pw.x takes it.
        augmented: ultrasoft or PAW, whose charge needs a finer grid than its wave functions do.
    """

    path: Path
    sha256: str
    element: str
    valence: float
    functional: str
    augmented: bool


def read_pseudopotential(path: Path, symbol: str) -> Pseudopotential:
    """The pseudopotential of an element.

    Raises:
        ConfigurationError: no such file, not in UPF format, or of another element.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"pseudopotential of {symbol}: {path} cannot be read: {error.strerror or error}; paths are "
            "relative to pseudo_dir"
        ) from error
    header = _header(content.decode(errors="replace"))
    if header is None:
        raise ConfigurationError(
            f"pseudopotential of {symbol}: {path} is not in UPF format: it has no header"
        )
    element, valence, functional, augmented = header
    if element.lower() != symbol.lower():
        raise ConfigurationError(f"pseudopotential of {symbol}: {path} is one of {element}")
    return Pseudopotential(
        path=path,
        sha256=hashlib.sha256(content).hexdigest(),
        element=symbol,
        valence=valence,
        functional=functional,
        augmented=augmented,
    )


def check_density_cutoff(potentials: Iterable[Pseudopotential]) -> None:
    """Refuses what four times the cutoff of the wave functions is too little for.

    Raises:
        ConfigurationError: some are ultrasoft or PAW.
    """
    augmented = ", ".join(sorted(p.element for p in potentials if p.augmented))
    if augmented:
        raise ConfigurationError(
            f"pseudopotential of {augmented}: it is ultrasoft or PAW, for which the default ecutrho_eV, 4 "
            "times ecutwfc_eV, is too little; state ecutrho_eV, 8 to 12 times ecutwfc_eV as its author says"
        )


def common_functional(potentials: Iterable[Pseudopotential]) -> str:
    """The functional that all files were made with.

    Raises:
        ConfigurationError: there are several.
    """
    found = {p.element: p.functional for p in potentials}
    if len(set(found.values())) > 1:
        named = ", ".join(f"{element}: {name}" for element, name in sorted(found.items()))
        raise ConfigurationError(
            f"the pseudopotentials were made with different functionals ({named}): take files of one "
            "functional, or state `method`"
        )
    return next(iter(found.values()))


def _header(text: str) -> tuple[str, float, str, bool] | None:
    """Element, valence, functional and whether it is augmented, of version 2 of the format or of version 1.

    None without them.
    """
    found = re.search(r"<PP_HEADER(.*?)(?:/>|</PP_HEADER>)", text, re.DOTALL)
    if found is None:
        return None
    header = found[1]
    new = [re.search(_ATTRIBUTE.format(name), header) for name in ("element", "z_valence", "functional")]
    old = [
        re.search(pattern, header, re.MULTILINE | re.IGNORECASE)
        for pattern in (
            r"^\s*([A-Z]{1,2})\s+Element",
            r"^\s*(\S+)\s+Z valence",
            r"^\s*(.*?)\s+Exchange-Correlation functional",
        )
    ]
    element, valence, functional = (a or b for a, b in zip(new, old, strict=True))
    if element is None or valence is None or functional is None:
        return None
    try:
        return element[1].strip(), float(valence[1]), _named(functional[1]), bool(_AUGMENTED.search(header))
    except ValueError:
        return None


def _named(functional: str) -> str:
    """One spelling of a functional; version 1 of the format has its parts and then its name."""
    words = functional.upper().split()
    parts = " ".join(words[:4])
    return _FUNCTIONALS.get(parts, parts)

"""Reading Apptainer definitions, as far as those of this project go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SECTIONS = frozenset(
    {"arguments", "environment", "files", "help", "labels", "post", "runscript", "startscript", "test"}
)
"""Sections that a build without root carries out; `%setup` and `%pre` run on the host."""
SHELL = ("environment", "post", "runscript", "startscript", "test")


@dataclass(frozen=True, kw_only=True)
class Definition:
    """A definition file.

    Attributes:
        header: keys before the first section, in lower case.
        sections: text of each section by name.
    """

    header: dict[str, str]
    sections: dict[str, str]


def read_definition(path: Path) -> Definition:
    """Raises ValueError for a line or section that Apptainer would not take, or not without root."""
    header: dict[str, str] = {}
    sections: dict[str, list[str]] = {}
    name = None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("%"):
            name = line[1:].split()[0]
            if name not in SECTIONS:
                raise ValueError(f"{path.name}:{number}: section %{name}")
            if name in sections:
                raise ValueError(f"{path.name}:{number}: a second %{name}")
            sections[name] = []
        elif name is not None:
            sections[name].append(line)
        elif line.strip() and not line.startswith("#"):
            key, colon, value = line.partition(":")
            if not colon or key.lower() in header:
                raise ValueError(f"{path.name}:{number}: {line}")
            header[key.lower()] = value.strip()
    return Definition(header=header, sections={n: "\n".join(lines) for n, lines in sections.items()})

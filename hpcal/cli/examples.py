"""``hpcal init``: the campaigns that ship with hpcal, written to where the user is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from hpcal.core.errors import ConfigurationError, InputError
from hpcal.core.plugins import nearest
from hpcal.core.settings import read_yaml
from hpcal.exchange.shipped import shipped_folder

SITE = Path("site_configs") / "local.yaml"


def list_examples() -> None:
    """Prints the names of the examples and what each is about."""
    found = _examples()
    width = max(map(len, found), default=0)
    for name, path in found.items():
        click.echo(f"{name:<{width}}  {_about(path)}")
    click.echo("\nwrite one here with `hpcal init NAME`")


def write_example(name: str, here: Path) -> None:
    """Writes an example campaign, the data that it names, and a site file.

    Raises:
        InputError: no such example, or a file of another content is in the way.
    """
    found = _examples()
    if name not in found:
        raise ConfigurationError(f"no example {name!r}{nearest(name, found)}")
    source = found[name]
    files = {here / source.name: source}
    for relative in _data(read_yaml(source).data):
        if (source.parent / relative).exists():
            files |= _files(source.parent / relative, here / relative)
    if not (here / SITE).exists():  # the user's own site stays what it is
        files[here / SITE] = shipped_folder("site_configs") / SITE.name
    for target, original in files.items():
        if target.exists() and (not target.is_file() or target.read_bytes() != original.read_bytes()):
            raise InputError(f"{target} exists and is not overwritten: move it, or go to another folder")
        for folder in target.parents:
            if folder.exists() and not folder.is_dir():
                raise InputError(
                    f"{folder} is a file, and {target} goes below it: move it, or go to another folder"
                )
    for target, original in files.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(original, target)
        click.echo(f"wrote {target}")
    click.echo(f"start it with `hpcal run {here / source.name}`")


def _examples() -> dict[str, Path]:
    return {path.stem: path for path in sorted(shipped_folder("workflows").glob("*.yaml"))}


def _about(path: Path) -> str:
    """The first comment of a campaign file."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            return line.lstrip("# ")
        if line.strip():
            break
    return ""


def _data(value: Any) -> Iterator[str]:
    """Every text in a campaign file that could be a path below it."""
    if isinstance(value, dict):
        for part in value.values():
            yield from _data(part)
    elif isinstance(value, list):
        for part in value:
            yield from _data(part)
    elif isinstance(value, str) and value and not Path(value).is_absolute() and ".." not in Path(value).parts:
        yield value


def _files(source: Path, target: Path) -> dict[Path, Path]:
    """The files of a file or folder, by where they go."""
    if source.is_file():
        return {target: source}
    return {target / f.relative_to(source): f for f in sorted(source.rglob("*")) if f.is_file()}

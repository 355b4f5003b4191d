"""``hpcal config check``: a campaign, site or stage file, checked whole."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from hpcal.core.plugins import Group, names
from hpcal.core.settings import Document, read_yaml

Kind = Literal["campaign", "site", "label", "potential", "sampler"]


def check_file(path: Path) -> None:
    """Says that a file is in order. Raises InputError with file, line and key if it is not."""
    if path.suffix == ".py":
        click.echo(f"{path}: {_site(path)}")
        return
    document = read_yaml(path)
    folder = path.resolve().parent
    match kind_of(document):
        case "site":
            told = _site(path)
        case "campaign":
            told = _campaign(document, folder)
        case "label":
            told = _label(document, folder)
        case "potential":
            told = _potential(document, folder)
        case "sampler":
            told = _sampler(document, folder)
    click.echo(f"{path}: {told}")


def kind_of(document: Document) -> Kind:
    """What a file is, by its keys; a campaign where they do not say."""
    keys = set(document.data) if isinstance(document.data, dict) else set()
    if "pools" in keys:
        return "site"
    if keys & {"name", "structures", "bootstrap", "sampling", "stop"}:
        return "campaign"
    if "labeler" in keys:
        return "label"
    if "sampler" in keys:
        return "sampler"
    if "kind" in keys:
        return "potential" if document.data["kind"] in names(Group.POTENTIALS) else "site"
    return "campaign"


def _site(path: Path) -> str:
    from hpcal.sites.schema import load_site

    site = load_site(path)
    slots = ", ".join(f"{name} {site.slots(name)}" for name in site.pools)
    status = "" if site.about is None else f"; {site.about.status}"
    return f"a site of kind {site.kind} with slots {slots}{status}"


def _campaign(document: Document, folder: Path) -> str:
    from hpcal.engine.campaign import campaign_of
    from hpcal.engine.start import check

    spec = campaign_of(document, folder)
    start, level = check(spec)
    notes = "".join(f"\n  {note}" for note in start.notes)
    reference = f", {len(start.reference)} reference structures" if start.reference else ""
    return (
        f"campaign {spec.name}, {len(start.seeds)} seeds, {len(start.given)} given labels{reference}, "
        f"labels of {level}{notes}"
    )


def _label(document: Document, folder: Path) -> str:
    from hpcal.engine.campaign import label_spec

    spec = label_spec(document, (), folder)
    return f"labels of {spec.part.build().level}"


def _potential(document: Document, folder: Path) -> str:
    from hpcal.engine.campaign import part

    potential = part(document, (), Group.POTENTIALS, "kind", folder)
    return f"potential {potential.name} of {potential.build().n_members} members"


def _sampler(document: Document, folder: Path) -> str:
    from hpcal.cli.sample import read_request

    request = read_request(document, folder)
    return f"{request.own.walkers} walkers of {request.part.name}"

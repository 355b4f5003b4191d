"""``hpcal site check`` and ``hpcal site render``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from hpcal.core.errors import ConfigurationError, InputError
from hpcal.sites.addresses import controller_addresses
from hpcal.sites.check import Probed, own_versions, pools_of, probe_pools
from hpcal.sites.faults import Verdict, verdict
from hpcal.sites.prechecks import precheck
from hpcal.sites.python_site import PythonSite
from hpcal.sites.render import rendered, rendered_controller
from hpcal.sites.schema import Site, load_site
from hpcal.store.location import NETWORK_FILESYSTEMS


def render(name: str, *, pool: str | None, values: Mapping[str, str]) -> None:
    """Prints the scripts of a site. Raises ConfigurationError."""
    site = load_site(name, values)
    if pool is not None:
        pools_of(site, pool)
        click.echo(rendered(site, pool)[pool], nl=False)
        return
    scripts = {f"pool {label}": text for label, text in rendered(site).items()}
    if site.controller is not None:
        scripts["controller"] = rendered_controller(site)
    for title, text in scripts.items():
        click.echo(f"===== {title} =====")
        click.echo(text)


def check(name: str, *, pool: str | None, values: Mapping[str, str], timeout_s: float, as_json: bool) -> int:
    """Checks the pools of a site, prints what was found and returns the exit code.

    Raises:
        ConfigurationError: the file cannot be read, or there is no such pool.
        InputError: the time limit is none.
    """
    if not math.isfinite(timeout_s):
        raise InputError(f"--timeout {timeout_s} is no time: give a number of seconds")
    site = load_site(name, values)
    wanted, here = pools_of(site, pool), own_versions()
    pools = _pools(site, wanted, here, timeout_s)
    good = all(found["ok"] for found in pools.values())
    if as_json:
        report = {"site": name, "kind": site.kind, "ok": good, "controller": here, "pools": pools}
        click.echo(json.dumps(report, indent=1))
    else:
        for label, found in pools.items():
            click.echo("\n".join(_told(label, found)))
    return 0 if good else 1


def _pools(
    site: Site, wanted: list[str], here: Mapping[str, str | None], timeout_s: float
) -> dict[str, dict[str, Any]]:
    """All that is to be told of each pool."""
    before = {label: precheck(site, label) for label in wanted}
    addresses: list[str] = []
    probed: dict[str, Probed] = {}
    refused = ""
    try:
        addresses = [] if isinstance(site, PythonSite) else controller_addresses(site)
        sound = [label for label in wanted if not before[label].faults]
        if sound:
            probed = probe_pools(site, sound, folder=Path.cwd(), timeout_s=timeout_s)
    except ConfigurationError as error:
        refused = str(error)
    found = {}
    for label in wanted:
        shown = probed.get(label) or Probed(pool=label, kind=site.kind_of(label), workers=0)
        after = verdict(shown, site.pools[label], here, timeout_s) if label in probed else Verdict()
        faults = [*before[label].faults, *after.faults, *filter(None, [refused])]
        found[label] = {
            "ok": not faults,
            "submitted": label in probed,
            "addresses": addresses,
            "faults": faults,
            "notes": [*before[label].notes, *after.notes],
            **{key: value for key, value in asdict(shown).items() if key != "pool"},
        }
    return found


def _told(label: str, found: Mapping[str, Any]) -> Iterator[str]:
    yield f"pool {label} ({found['kind']}): {'ok' if found['ok'] else 'NOT OK'}"
    if found["queued_s"] is not None:
        first = "" if found["started_s"] is None else f", first worker {found['started_s']:g} s later"
        yield _row("queue", f"{found['queued_s']:g} s{first}")
    if found["answers"]:
        yield from _of_workers(found)
    for fault in found["faults"]:
        yield _row("fault", fault)
    for note in found["notes"]:
        yield _row("note", note)


def _of_workers(found: Mapping[str, Any]) -> Iterator[str]:
    answers = found["answers"]
    hosts = {answer["host"]: 0 for answer in answers}
    for answer in answers:
        hosts[answer["host"]] += 1
    first = answers[0]
    yield _row("workers", ", ".join(f"{count} on {host}" for host, count in hosts.items()))
    yield _row(
        "address", f"reached at {' or '.join(found['addresses'])}" if found["addresses"] else "reached"
    )
    yield _row("python", f"{first['python']} {first['executable']}")
    if first["container"]:
        yield _row("container", first["container"])
    yield _row("versions", ", ".join(f"{k} {v or 'missing'}" for k, v in first["versions"].items()))
    gpus = [",".join(answer["gpus"]["own"]) for answer in answers]
    if any(gpus):
        yield _row(
            "gpus", f"{' | '.join(gpus)} (PyTorch sees {first['gpus']['torch'] or 'none'} in a worker)"
        )
    for key in ("scratch", "shared"):
        yield _row(key, f"{first[key]['path']} ({_kind(first[key]['filesystem'])})")
    yield _row("imports", ", ".join(f"{k} {_seconds(v)}" for k, v in _slowest(answers).items()))


def _slowest(answers: list[Mapping[str, Any]]) -> dict[str, float | str]:
    """The longest time, or else the error, of each import."""
    found: dict[str, float | str] = {}
    for answer in answers:
        for name, took in answer["imports"].items():
            before = found.get(name, 0.0)
            if isinstance(took, str) or (not isinstance(before, str) and took >= before):
                found[name] = took
    return found


def _seconds(took: float | str) -> str:
    return "fails" if isinstance(took, str) else f"{took:.1f} s"


def _kind(filesystem: str) -> str:
    if not filesystem:
        return "file system unknown"
    return f"{filesystem}, network" if filesystem in NETWORK_FILESYSTEMS else filesystem


def _row(key: str, value: str) -> str:
    return f"  {key:<9} {value}"

"""``hpcal check``: integrity and coverage of labelled data, in files or in a campaign's store."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from hpcal.cli.folders import reading
from hpcal.cli.import_data import multiplicity_of
from hpcal.core.errors import FormatError, InputError
from hpcal.exchange.files import read_found
from hpcal.exchange.found import ReadOptions
from hpcal.exchange.levels import level_given
from hpcal.labeling.checks import ChecksSettings
from hpcal.report.integrity.collection import Collection
from hpcal.report.integrity.examine import Aims, Report, report_of
from hpcal.report.integrity.stored import campaign_collection, file_findings, row_findings
from hpcal.report.integrity.text import report_text
from hpcal.store import campaigns as stored
from hpcal.store.location import exists

__all__ = ["ReadOptions", "check", "read_options"]

CUTOFF_A: Final = 5.2
"""Å; the radial cutoff of ANI."""


def check(
    what: Sequence[Path],
    *,
    as_json: bool,
    options: ReadOptions,
    cutoff: float | None,
    near: float,
    limit: int,
) -> int:
    """Prints what is wrong with data and what they cover.

    Args:
        options: what the files do not say themselves.

    Returns:
        1 if anything is wrong, 0 if not.

    Raises:
        InputError: a file or folder cannot be read.
    """
    for option, value in (("--near", near), ("--cutoff", cutoff)):
        if value is not None and not math.isfinite(value):
            raise InputError(f"{option} {value} is no length: give a number of Å")
    campaigns = [path for path in what if exists(path)]
    if campaigns and len(what) > 1:
        raise InputError(
            f"{campaigns[0]} is a campaign, which is checked by itself; export its labels (`hpcal export`) "
            "to compare them with files"
        )
    if campaigns and options != ReadOptions():
        raise InputError(
            f"{campaigns[0]} is a campaign, which states level, charge and multiplicity itself: leave "
            "--level, --charge and --multiplicity out"
        )
    if campaigns:
        report = _campaign(campaigns[0], cutoff, near, limit)
    else:
        aims = Aims(cutoff=cutoff or CUTOFF_A, near=near, checks=ChecksSettings(), gated=False, limit=limit)
        parts = [_file(path, name, options) for path, name in zip(what, _names(what), strict=True)]
        report = report_of([str(path) for path in what], Collection.joined(parts), aims)
    click.echo(json.dumps(report.record()) if as_json else report_text(report), nl=as_json)
    return 1 if report.errors else 0


def read_options(level: str | None, charge: int | None, multiplicity: str | None) -> ReadOptions:
    """Options of the command line as options of readers. Raises InputError."""
    return ReadOptions(
        level=None if level is None else level_given(level),
        charge=charge,
        multiplicity=multiplicity_of(multiplicity),
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """File names, with their folders where two are called the same."""
    counts = Counter(path.name for path in paths)
    names = [path.name if counts[path.name] == 1 else str(path) for path in paths]
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise InputError(f"{twice} is named twice: every frame of it would be found in two splits")
    return names


def _file(path: Path, name: str, options: ReadOptions) -> Collection:
    """The labelled structures of a file, numbered as in the file."""
    if not path.exists():
        raise InputError(f"no such file or folder: {path}")
    if path.is_dir() and not any(path.rglob("*.raw")):
        raise InputError(f"{path} holds neither a campaign (no store.db) nor DeePMD data (no type.raw)")
    found = read_found(path, options)
    known = [(i, frame) for i, frame in enumerate(found.frames, start=1) if frame.label is not None]
    if not known:
        raise FormatError(f"{path} holds no label: none of its {len(found.frames)} structures has an energy")
    labels = [frame.label for _, frame in known if frame.label is not None]
    collection = Collection.of_labels(
        [frame.structure for _, frame in known],
        labels,
        source=name,
        splits=[str(frame.info.get("split", "train")) for _, frame in known],
        families=[_walker(frame.info.get("walker")) for _, frame in known],
    )
    return replace(collection, ids=np.array([i for i, _ in known]))


def _walker(text: object) -> int:
    return int(str(text)) if text is not None and str(text).isdigit() else -1


def _campaign(root: Path, cutoff: float | None, near: float, limit: int) -> Report:
    with reading(root) as store, store.session() as session:
        more = [*row_findings(session, limit=limit), *file_findings(session, root, limit=limit)]
        if any(finding.kind in ("damaged_store", "unknown_state") for finding in more):
            collection = None  # rows that cannot be taken at their word
        else:
            collection = campaign_collection(session)
        spec: dict[str, Any] = stored.campaign(session).spec
    checks = ChecksSettings(**(spec.get("label", {}).get("checks") or {}))
    stated = spec.get("potential", {}).get("cutoff_A")
    aims = Aims(
        cutoff=cutoff or (float(stated) if stated else CUTOFF_A),
        near=near,
        checks=checks,
        gated=True,
        limit=limit,
    )
    return report_of([str(root)], collection, aims, more)

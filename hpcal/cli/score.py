"""``hpcal score``: the uncertainty of the structures of a file, without a campaign."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click

from hpcal.cli.ensembles import loaded, refuse_single, refuse_uncovered
from hpcal.cli.stages import record_path, write_record
from hpcal.core.errors import ConfigurationError, InputError
from hpcal.core.plugins import Group, find, names
from hpcal.core.protocols import Capabilities
from hpcal.core.walker import Scores
from hpcal.engine.work.context import chunks
from hpcal.engine.work.learning import batch_of, scorer_of
from hpcal.exchange.extxyz import write_structures
from hpcal.exchange.files import read_structures


def score(file: Path, out: Path, model: str, metric: str) -> None:
    """Writes structures with their uncertainties, and the same as JSON beside them.

    Raises:
        InputError: a file, the model or the metric cannot be used.
    """
    if out.suffix.lower() not in (".extxyz", ".xyz"):
        raise InputError(f"{out}: scores are written as extended XYZ; give a name ending in .extxyz")
    kind = find(Group.METRICS, metric)
    structures = read_structures(file)
    manifest, potential = loaded(model)
    refuse_uncovered(potential, structures, model)
    refuse_single(potential, model)
    _refuse_misfit(metric, potential.capabilities(), model)
    scorer = scorer_of(metric, potential)
    scores = [score for items in chunks(structures) for score in scorer.scores(batch_of(items, potential))]
    infos = [_known(found) for found in scores]
    write_structures(out, structures, infos)
    write_record(
        record_path(out),
        {
            "file": str(file),
            "model": model,
            "ensemble": manifest.hash,
            "metric": metric,
            "unit": kind.unit,
            "scores": [{"frame": number, **info} for number, info in enumerate(infos, start=1)],
        },
    )
    largest = max(found.trigger for found in scores)
    click.echo(f"{len(scores)} structures, largest {metric} {largest:.4g} {kind.unit}: {out}")


def _refuse_misfit(metric: str, capabilities: Capabilities, model: str) -> None:
    missing = find(Group.METRICS, metric).requires - capabilities.provides
    if not missing:
        return
    fitting = [n for n in names(Group.METRICS) if find(Group.METRICS, n).requires <= capabilities.provides]
    raise ConfigurationError(
        f"metric {metric} needs {', '.join(sorted(missing))}, which {model} does not give; metrics that fit: "
        f"{', '.join(fitting) or 'none of those installed'}"
    )


def _known(scores: Scores) -> dict[str, Any]:
    values = {
        "uncertainty": scores.trigger,
        "energy_std": scores.energy_std,
        "force_std": scores.force_std,
    }
    return {key: value for key, value in values.items() if math.isfinite(value)}

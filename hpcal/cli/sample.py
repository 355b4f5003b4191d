"""``hpcal sample``: walkers from the structures of a file to their end, without a campaign."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import click
import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt

from hpcal.cli.ensembles import loaded, refuse_single, refuse_uncovered
from hpcal.cli.stages import read_block, record_path, refuse_place, stopping, write_record
from hpcal.core.deadline import Deadline
from hpcal.core.ensemble import EnsembleManifest
from hpcal.core.errors import ConfigurationError, InputError, Interrupted
from hpcal.core.plugins import Group, find, names
from hpcal.core.protocols import Potential, Sampler
from hpcal.core.settings import Document, Settings, draw, validate
from hpcal.core.structure import Structure
from hpcal.core.walker import Candidate, Segment, Walker
from hpcal.engine.campaign import Part, part
from hpcal.engine.streams import derive, stream
from hpcal.engine.work.learning import scorer_of
from hpcal.exchange.extxyz import write_structures
from hpcal.exchange.files import read_structures
from hpcal.uncertainty.scorer import EnsembleScorer

LOOK_SECONDS: Final = 10.0
"""How often the walkers are looked at; where they go does not depend on it."""


class OwnKeys(Settings):
    """Keys of a sampling block that the sampler itself does not know."""

    walkers: PositiveInt = Field(64, description="how many walkers to run")
    threshold: float | None = Field(
        None, ge=0, description="uncertainty that ends a walker; by default the ensemble's own"
    )
    metric: str | None = Field(None, description="uncertainty to look at; by default the ensemble's own")
    seed: NonNegativeInt = Field(0, description="seed of every random choice")


@dataclass(frozen=True, kw_only=True)
class Request:
    """A checked sampling block."""

    part: Part
    own: OwnKeys


def sample(seeds: Path, out: Path, model: str, settings: Path) -> None:
    """Runs walkers; frames that crossed the threshold go to OUT, ends of walkers to its records.

    Raises:
        InputError: a file, the model or the settings cannot be used.
        Interrupted: by a signal; the frames found so far are written.
    """
    if out.suffix.lower() not in (".extxyz", ".xyz"):
        raise InputError(f"{out}: frames are written as extended XYZ; give a name ending in .extxyz")
    refuse_place(out, seeds, settings)
    document, folder = read_block(settings)
    request = read_request(document, folder)
    structures = read_structures(seeds)
    manifest, potential = loaded(model)
    refuse_uncovered(potential, structures, model)
    refuse_single(potential, model)
    metric, threshold = _trigger(request.own, manifest, model)
    _refuse_misfit(request.part, metric, potential, model)
    scorer = scorer_of(metric, potential, threshold)
    walkers = born(request, structures, manifest)
    with stopping() as stop:
        candidates, segments, done = _run(request, walkers, potential, scorer, stop)
    _write(out, candidates, segments, {"model": model, "metric": metric, "threshold": threshold})
    if not done:
        found = (
            f"the {len(candidates)} frames found so far are in {out}" if candidates else "no frame was found"
        )
        raise Interrupted(f"stopped: {found}")


def read_request(document: Document, folder: Path) -> Request:
    """The sampling block of a document. Raises ConfigurationError."""
    own = {key: document.data[key] for key in OwnKeys.model_fields if key in document.data}
    checked = validate(OwnKeys, document, own)
    sampler = part(document, (), Group.SAMPLERS, "sampler", folder, own=frozenset(OwnKeys.model_fields))
    if sampler.plugin.stage != "sampling":
        fitting = [n for n in names(Group.SAMPLERS) if find(Group.SAMPLERS, n).stage == "sampling"]
        raise document.fault(
            ("sampler",), f"{sampler.name} moves no walkers; those that do: {', '.join(fitting)}"
        )
    return Request(part=sampler, own=checked)


def _trigger(own: OwnKeys, manifest: EnsembleManifest, model: str) -> tuple[str, float]:
    """Metric and threshold: as stated, or those that the ensemble was calibrated with."""
    known = manifest.info.get("metric")
    metric = own.metric or (known if isinstance(known, str) else "force_std")
    if own.threshold is not None:
        return metric, own.threshold
    threshold = manifest.info.get("threshold")
    if not isinstance(threshold, int | float) or metric != known:
        raise ConfigurationError(
            f"ensemble {model} has no calibrated threshold for {metric}: state `threshold` in the sampler's "
            f"file, in {find(Group.METRICS, metric).unit}"
        )
    return metric, float(threshold)


def _refuse_misfit(sampler: Part, metric: str, potential: Potential, model: str) -> None:
    capabilities = potential.capabilities()
    missing = find(Group.METRICS, metric).requires - capabilities.provides
    if missing:
        raise ConfigurationError(
            f"metric {metric} needs {', '.join(sorted(missing))}, which {model} does not give"
        )
    if "differentiable" in sampler.plugin.requires and not capabilities.differentiable:
        raise ConfigurationError(f"sampler {sampler.name} needs a differentiable model, which {model} is not")


def born(request: Request, structures: Sequence[Structure], manifest: EnsembleManifest) -> list[Walker]:
    """Walkers from structures drawn at random, each with a stream of its own."""
    seed, sampler = request.own.seed, request.part.build()
    state = {"bias_width": width} if (width := manifest.info.get("bias_width")) is not None else {}
    walkers = []
    for number in range(1, request.own.walkers + 1):
        rng = stream(seed, "walker", number)
        start = structures[int(rng.integers(len(structures)))]
        walkers.append(
            Walker(
                id=number,
                structure=start,
                steps_full=sampler.steps_full(),
                stream=derive(seed, "noise", number),
                temperature=draw(getattr(request.part.settings, "temperature_K", 300.0), rng),
                state=state,
            )
        )
    return walkers


def _run(
    request: Request,
    walkers: Sequence[Walker],
    potential: Potential,
    scorer: EnsembleScorer,
    stop: Callable[[], bool],
) -> tuple[list[Candidate], list[Segment], bool]:
    """Advances all walkers; frames, the whole way of each walker, and whether all have ended."""
    sampler: Sampler = request.part.build()
    rng = np.random.default_rng(derive(request.own.seed, "sample"))
    candidates: list[Candidate] = []
    ways: dict[int, Segment] = {}
    left = list(walkers)
    while left:
        deadline = Deadline.after(LOOK_SECONDS, stop=stop)
        result = sampler.sample(left, potential, scorer, deadline, rng)
        candidates += result.candidates
        for segment in result.segments:
            number = segment.walker.id
            ways[number] = _joined(ways[number], segment) if number in ways else segment
        left = [segment.walker for segment in result.segments if segment.end is None]
        if left and stop():
            break
        if left:
            click.echo(f"{len(walkers) - len(left)} of {len(walkers)} walkers have ended", err=True)
    return candidates, [ways[walker.id] for walker in walkers], not left


def _joined(former: Segment, segment: Segment) -> Segment:
    """Two segments of a walker as one: the largest uncertainty, and the mean bias by their steps."""
    seen = [s.max_trigger for s in (former, segment) if s.max_trigger is not None]
    biased = [
        (s.walker.step - s.start_step, s.bias_ratio) for s in (former, segment) if s.bias_ratio is not None
    ]
    steps = sum(n for n, _ in biased)
    return replace(
        segment,
        start_step=former.start_step,
        max_trigger=max(seen, default=None),
        bias_ratio=sum(n * ratio for n, ratio in biased) / steps if steps else None,
    )


def _write(
    out: Path, candidates: Sequence[Candidate], segments: Sequence[Segment], about: dict[str, Any]
) -> None:
    if candidates:
        write_structures(out, [c.structure for c in candidates], [_info(c) for c in candidates])
    else:
        out.unlink(missing_ok=True)  # frames of an earlier call are not those of this one
    ends = Counter(str(segment.end or "unfinished") for segment in segments)
    records = [
        {
            "walker": segment.walker.id,
            "steps": segment.walker.step,
            "temperature_k": segment.walker.temperature,
            "end": None if segment.end is None else str(segment.end),
            "detail": segment.detail,
            "max_uncertainty": segment.max_trigger,
            "bias_ratio": segment.bias_ratio,
        }
        for segment in segments
    ]
    write_record(
        record_path(out), {**about, "frames": len(candidates), "ends": dict(ends), "walkers": records}
    )
    told = ", ".join(f"{n} {end}" for end, n in ends.items())
    where = str(out) if candidates else "no frame crossed, so none is written"
    click.echo(f"{len(segments)} walkers: {told}; {len(candidates)} frames: {where}; {record_path(out)}")


def _info(candidate: Candidate) -> dict[str, Any]:
    scores = {
        "uncertainty": candidate.scores.trigger,
        "energy_std": candidate.scores.energy_std,
        "force_std": candidate.scores.force_std,
    }
    return {
        "origin": "sample",
        "walker": candidate.walker_id,
        "step": candidate.step,
        "time_fs": candidate.time_fs,
        **{key: value for key, value in scores.items() if np.isfinite(value)},
    }

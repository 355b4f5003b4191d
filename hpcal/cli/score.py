"""``hpcal score``: the uncertainty of the structures of a file, without a campaign."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from hpcal.cli.ensembles import loaded, refuse_single, refuse_uncovered
from hpcal.cli.stages import record_path, refuse_place, write_record
from hpcal.core.codec import pack, unpack
from hpcal.core.errors import ConfigurationError, InputError
from hpcal.core.plugins import Group, find, names
from hpcal.core.protocols import Capabilities
from hpcal.core.structure import Structure
from hpcal.core.walker import Scores
from hpcal.engine.work.context import CHUNK, chunks
from hpcal.engine.work.learning import batch_of, scorer_of
from hpcal.exchange.extxyz import write_structures
from hpcal.exchange.files import read_structures
from hpcal.exchange.slices import StructureFile, look_at, read_slice, shares
from hpcal.uncertainty.scorer import EnsembleScorer


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be scored by what.

    Raises:
        InputError: OUT has another extension, is what is read or cannot be written, or the metric is not
            known.
    """

    file: Path
    out: Path
    model: str
    metric: str

    def __post_init__(self) -> None:
        if self.out.suffix.lower() not in (".extxyz", ".xyz"):
            raise InputError(f"{self.out}: scores are written as extended XYZ; give a name ending in .extxyz")
        refuse_place(self.out, self.file)
        find(Group.METRICS, self.metric)


def score(file: Path, out: Path, model: str, metric: str) -> None:
    """Writes structures with their uncertainties, and the same as JSON beside them.

    Raises:
        InputError: a file, the model or the metric cannot be used.
    """
    request = Request(file=file, out=out, model=model, metric=metric)
    structures = read_structures(file)
    ensemble, scorer = _scorer(request, structures)
    _write(request, ensemble, structures, _scores(scorer, structures))


def score_over_ranks(file: Path, out: Path, model: str, metric: str) -> None:
    """As :func:`score`, as one of several MPI ranks: each reads and scores its own part of FILE.

    The same structures are calculated together as in one process, so that the result is the same.

    Raises:
        InputError: as for :func:`score`, on one rank; FILE is not an HDF5 file of hpcal.
        PluginError: mpi4py is not installed.
    """
    from hpcal.cli.ranks import aborting, agreed, take_device, world

    comm = world()
    request, pool = agreed(
        comm, lambda: (Request(file=file, out=out, model=model, metric=metric), look_at(file))
    )
    take_device(comm)
    parts = shares(pool.count, comm.size, CHUNK)
    structures, ensemble, scorer = agreed(comm, lambda: _own_part(request, pool, parts[comm.rank]))
    with aborting(comm):
        gathered = comm.gather(pack(_scores(scorer, structures)), root=0)
        if comm.rank == 0:
            scores = [found for part in gathered for found in unpack(part)]
            _write(request, ensemble, _collected(comm, structures, parts), scores)
        else:
            for items in chunks(structures):
                comm.send(pack(items), dest=0)


def _own_part(
    request: Request, pool: StructureFile, part: range
) -> tuple[list[Structure], str, EnsembleScorer]:
    """Structures, hash of the ensemble, and what scores them, of one rank."""
    structures = read_slice(pool, part)
    try:
        return structures, *_scorer(request, structures)
    except InputError as error:
        if not structures:
            raise
        # Numbers of structures in the message count within the part.
        raise type(error)(f"frames {part.start + 1} to {part.stop} of {request.file}: {error}") from None


def _collected(comm: Any, own: Sequence[Structure], parts: Sequence[range]) -> Iterator[Structure]:
    """All structures in order, on rank 0; of the others no more at once than one chunk."""
    yield from own
    for rank, part in enumerate(parts[1:], start=1):
        for _ in chunks(part):
            yield from unpack(comm.recv(source=rank))


def _scorer(request: Request, structures: list[Structure]) -> tuple[str, EnsembleScorer]:
    """Hash of the ensemble, and what scores these structures. Raises InputError if it cannot."""
    manifest, potential = loaded(request.model)
    refuse_uncovered(potential, structures, request.model)
    refuse_single(potential, request.model)
    _refuse_misfit(request.metric, potential.capabilities(), request.model)
    return manifest.hash, scorer_of(request.metric, potential)


def _scores(scorer: EnsembleScorer, structures: Sequence[Structure]) -> list[Scores]:
    return [
        found for items in chunks(structures) for found in scorer.scores(batch_of(items, scorer.potential))
    ]


def _write(
    request: Request, ensemble: str, structures: Iterable[Structure], scores: Sequence[Scores]
) -> None:
    infos = [_known(found) for found in scores]
    write_structures(request.out, structures, infos)
    unit = find(Group.METRICS, request.metric).unit
    write_record(
        record_path(request.out),
        {
            "file": str(request.file),
            "model": request.model,
            "ensemble": ensemble,
            "metric": request.metric,
            "unit": unit,
            "scores": [{"frame": number, **info} for number, info in enumerate(infos, start=1)],
        },
    )
    largest = max(found.trigger for found in scores)
    click.echo(f"{len(scores)} structures, largest {request.metric} {largest:.4g} {unit}: {request.out}")


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

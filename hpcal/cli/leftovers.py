"""What a dead controller left behind, in sentences: jobs in the schedulers, processes of this host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from hpcal.sites.chain import Chain
from hpcal.sites.strays import JOBS_GONE_S, EndedJobs, end_stray_jobs, end_strays, scheduler_kinds

NAMES: Final = {"slurm": "Slurm", "pbs": "PBS"}


def kinds_of(root: Path, *records: Mapping[str, Any]) -> list[str]:
    """Batch systems that may hold jobs of the campaign of a folder, by the records of its sites."""
    kinds = {kind for record in records for kind in scheduler_kinds(record)}
    chain = Chain.of(root)
    return sorted(kinds | ({chain.plan.kind} if chain else set()))


def end_leftovers(run_id: str, kinds: list[str]) -> Iterator[str]:
    """Ends jobs and processes of a run that this process, its only controller, did not start.

    To be called by who holds the campaign. A job that cannot be ended is said and not waited for:
    what it still finishes is in spools of its own, and is taken once or not at all.

    Yields:
        A sentence on what there was.

    Raises:
        TimeoutError: processes of this host do not end.
    """
    for kind in kinds:
        yield from _said(kind, end_stray_jobs(kind, run_id, within_s=JOBS_GONE_S))
    count = end_strays(run_id)
    if count:
        yield f"ended {count} processes that the last controller had left behind"


def _said(kind: str, ended: EndedJobs) -> Iterator[str]:
    name = NAMES[kind]
    if ended.gone:
        yield f"cancelled {len(ended.gone)} jobs of this campaign in {name}: {', '.join(ended.gone)}"
    if ended.trouble:
        yield (
            f"{name} could not be asked for jobs of this campaign that are left ({ended.trouble}); going on: "
            "what they still finish is taken, once; look for them with `hpcal clean`"
        )
    elif ended.left:
        yield (
            f"jobs {', '.join(ended.left)} of this campaign were cancelled and are still in {name} after "
            f"{JOBS_GONE_S:.0f} s, as on a node that does not answer; going on: what they still finish is "
            "taken, once"
        )

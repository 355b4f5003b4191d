"""What a site says of a worker reaches the labels that it makes."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from ase.build import molecule

from hpcal.core.codec import pack
from hpcal.core.structure import from_ase
from hpcal.engine.dispatch import Assignment
from hpcal.engine.parsl_dispatch import ParslDispatcher
from hpcal.engine.spool import read_spool
from hpcal.labeling.checks import ChecksSettings
from hpcal.sites.schema import Site

BENZENE = from_ase(molecule("C6H6"))
LEVEL = {"method": "ccsd", "basis": "cc-pvtz"}


def assigned(folder: Path, pool: str, **settings: Any) -> Assignment:
    record = {
        "name": "pyscf",
        "settings": {**LEVEL, **settings},
        "checks": ChecksSettings().model_dump(mode="json"),
    }
    inputs = {"label": record, "structures": [{"id": 1, "structure": BENZENE}]}
    stem = folder / pool
    stem.with_suffix(".task").write_bytes(pack(inputs))
    return Assignment(
        attempt_id=len(pool),
        task_id=len(pool),
        epoch=1,
        kind="label",
        pool=pool,
        priority=0,
        payload=str(stem.with_suffix(".task")),
        spool=str(stem.with_suffix(".spool")),
        log=str(stem.with_suffix(".log")),
        scratch=str(stem),
        stop_file=str(folder / "stop"),
        seconds=60.0,
    )


def results(folder: Path, pools: dict[str, Any], *assignments: Assignment) -> list[dict[str, Any]]:
    """The first record of each attempt, from workers of a local site."""
    idle = {"init_blocks": 0, "min_blocks": 0}
    site = Site(pools={"sample": idle, "train": idle, **pools})
    with closing(ParslDispatcher(site, folder / "parsl", "test-slots")) as dispatcher:
        for assignment in assignments:
            dispatcher.submit(assignment)
        reports = 0
        while reports < len(assignments):
            reports += len(dispatcher.wait(60))
    return [read_spool(Path(assignment.spool)).values[0] for assignment in assignments]


@pytest.mark.parsl
def test_a_label_keeps_to_the_memory_of_its_slot(tmp_path: Path) -> None:
    """The 4 GB that PySCF is told of elsewhere would do for these amplitudes of 1.7 GB."""
    pools = {"label": {"mem_per_worker": 0.4}, "share": {"mem_per_node": 1, "max_workers_per_node": 2}}
    pools["label"]["scratch"] = "$HERE/fast"
    pools["label"]["environment"] = {"HERE": str(tmp_path)}
    small, share = results(tmp_path, pools, assigned(tmp_path, "label"), assigned(tmp_path, "share"))
    assert (small["failure"], share["failure"]) == ("resource", "resource")
    assert "320 MB may be used" in small["message"]
    assert "400 MB may be used" in share["message"]
    assert (tmp_path / "fast" / "hpcal-test-slots" / socket.gethostname()).is_dir()

"""The quickstart on a batch system, and what its workers see of the GPUs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import parsl

from hpcal.exchange.shipped import shipped_folder
from hpcal.sites.parsl_config import parsl_config
from hpcal.sites.schema import load_site
from support.campaigns import query

SEEN = """
import os, time
from hpcal.sites.devices import pin
pin()
time.sleep(1.5)  # long enough for the other workers to take the other tasks
print(os.getppid(), os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
"""


def run_quickstart(site: Path, root: Path, seconds: float = 600) -> None:
    """Runs the shipped quickstart on a site and checks that it ends as it does on a laptop."""
    campaign = shipped_folder("workflows") / "quickstart.yaml"
    words = [sys.executable, "-m", "hpcal", "run", str(campaign), "--site", str(site), "--dir", str(root)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, done.stderr
    out = subprocess.check_output([sys.executable, "-m", "hpcal", "status", str(root), "--json"])
    status: dict[str, Any] = json.loads(out)
    first, last = (status["history"][i]["reference"]["force_rmse_ev_per_ang"] for i in (0, -1))
    assert status["state"] == "finished"
    assert status["generation"] >= 3
    assert status["labels"]["accepted"] <= 400
    assert last <= 0.5 * first
    assert last <= 0.25
    where = dict(
        query(root, "SELECT kind, min(executor) FROM attempt JOIN task ON task.id = task_id GROUP BY 1")
    )
    assert (where["label"], where["sample"], where["train"]) == ("label", "sample", "train")
    assert query(root, "SELECT count(*) FROM attempt WHERE state = 'lost'") == [(0,)]


def gpus_seen(site: Path, folder: Path, workers: dict[str, int]) -> dict[str, list[str]]:
    """GPUs that the workers of pools see, as a task does; one word a worker, sorted.

    Args:
        workers: how many there are in each pool.
    """

    found: dict[str, list[str]] = {}
    with parsl.load(parsl_config(load_site(site), folder, "gpus-seen")) as kernel:
        futures = {
            pool: [
                parsl.python_app(
                    subprocess.check_output, data_flow_kernel=kernel, executors=[pool], cache=False
                )([sys.executable, "-c", SEEN], text=True)
                for _ in range(8 * count)
            ]
            for pool, count in workers.items()
        }
        for pool, asked in futures.items():
            by_worker = dict(future.result(timeout=120).split() for future in asked)
            assert len(by_worker) == workers[pool]
            found[pool] = sorted(by_worker.values())
    return found

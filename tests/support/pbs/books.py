"""The books of the stand-in for a PBS: its settings, its jobs, and which of them may start.

There is no server: every command does the server's work under a lock, and each running job has a
watcher (``mom.py``) that books its end. The folder is named by the variable ``PBS_STANDIN``.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SERVER = "pbs"
VERSION = "23.06.06"
UNKNOWN_JOB, FINISHED_JOB, UNKNOWN_QUEUE, NO_CONNECTION, UNKNOWN_RESOURCE, BAD_DEPENDENCY = (
    15001,
    15139,
    15018,
    15010,
    15035,
    15042,
)
"""Codes of PBS; a command exits with the last eight bits of one."""

SETTINGS: dict[str, Any] = {
    "nodes": {"node01": {"ncpus": 4, "ngpus": 2}, "node02": {"ncpus": 4, "ngpus": 0}},
    "queues": ["workq", "short"],
    "resources": ["ngpus", "filesystems"],  # those that a site adds
    "history": True,
    "history_says_so": True,  # that there is none
    "purged": [],  # numbers of ended jobs that are gone from the history
    "first_only": False,  # openpbs issue 2672
    "raw_json": False,  # openpbs issues 1255 and 2049
    "down_until": 0.0,
    "qstat_takes_s": 0.0,
    "qsub_answers_after_s": 0.0,
    "qsub_queues_after_s": 0.0,
    "unending": [],  # numbers of jobs that do not end when deleted, as on a node that is gone
    "kill_delay_s": 0.5,
    "start_delay_s": 0.0,
}

Job = dict[str, Any]


def folder() -> Path:
    return Path(os.environ["PBS_STANDIN"])


def settings() -> dict[str, Any]:
    try:
        return SETTINGS | json.loads((folder() / "control.json").read_text())
    except FileNotFoundError:
        return dict(SETTINGS)


@contextmanager
def books() -> Iterator[dict[str, Any]]:
    """The jobs by number, to read and to change; nobody else has them meanwhile."""
    with open(folder() / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = folder() / "jobs.json"
        jobs = json.loads(path.read_text()) if path.exists() else {}
        yield jobs
        new = path.with_suffix(".new")
        new.write_text(json.dumps(jobs, indent=1))
        new.replace(path)


def connect(command: str) -> None:
    """Ends the command if the server is down."""
    if time.time() < settings()["down_until"]:
        print("Connection refused", file=sys.stderr)
        print(f"{command}: cannot connect to server {SERVER} (errno={NO_CONNECTION})", file=sys.stderr)
        raise SystemExit(255 if command == "qstat" else NO_CONNECTION & 255)


def number(id_: str) -> str:
    return id_.split(".", maxsplit=1)[0]


def full(id_: str) -> str:
    """As PBS repeats an id, of which a user may give the number alone."""
    return id_ if "." in id_ else f"{id_}.{SERVER}"


def known(jobs: dict[str, Job], id_: str) -> Job | None:
    """A job that is in the books of a server, which forgets those that end unless it keeps a history."""
    job = jobs.get(number(id_))
    if job is None or (job["state"] == "F" and (not settings()["history"] or forgotten(job))):
        return None
    return job


def forgotten(job: Job) -> bool:
    return number(job["id"]) in settings()["purged"]


def who() -> str:
    return f"{getpass.getuser()}@{os.uname().nodename}"


def clock(seconds: float) -> str:
    return time.strftime("%a %b %e %H:%M:%S %Y", time.localtime(seconds))


def schedule(jobs: dict[str, Job]) -> None:
    """Starts what may start; says of the others why not."""
    config = settings()
    for job in jobs.values():
        if job["state"] not in "QH":
            continue
        waits = [id_ for id_ in job["after"] if jobs.get(number(id_), {"state": "F"})["state"] != "F"]
        job["state"] = "H" if waits else "Q"
        if waits or time.time() < job["ctime"] + config["start_delay_s"]:
            continue
        empty = place(job, {name: dict(node) for name, node in config["nodes"].items()})
        if isinstance(empty, str):
            job["comment"] = f"Can Never Run: {empty}"
            continue
        placed = place(job, free(jobs, config["nodes"]))
        if isinstance(placed, str):
            job["comment"] = f"Not Running: {placed}"
            continue
        start(job, placed, jobs)


def free(jobs: dict[str, Job], nodes: dict[str, Any]) -> dict[str, Any]:
    left = {name: {"ncpus": 0, "ngpus": 0} | node for name, node in nodes.items()}
    for job in jobs.values():
        if job["state"] in "RE":
            for chunk in job["placed"]:
                for what in ("ncpus", "ngpus"):
                    left[chunk["node"]][what] -= chunk[what]
                if "excl" in job["resources"].get("place", ""):
                    left[chunk["node"]] = {"ncpus": 0, "ngpus": 0}
    return left


def place(job: Job, left: dict[str, Any]) -> list[dict[str, Any]] | str:
    """The nodes of the chunks of a job, or what there is too little of."""
    placed: list[dict[str, Any]] = []
    scatter = "scatter" in job["resources"].get("place", "")
    for chunk in job["chunks"]:
        taken = {other["node"] for other in placed} if scatter else set()
        names = [name for name in left if name not in taken]
        fits = [n for n in names if all(left[n].get(w, 0) >= chunk[w] for w in ("ncpus", "ngpus"))]
        if not fits:
            short = next(
                (w for w in ("ncpus", "ngpus") if all(left[n].get(w, 0) < chunk[w] for n in left)), "ncpus"
            )
            have = max((left[n].get(short, 0) for n in left), default=0)
            return f"Insufficient amount of resource: {short} (R: {chunk[short]} A: {have} T: {have})"
        for what in ("ncpus", "ngpus"):
            left[fits[0]][what] -= chunk[what]
        placed.append(chunk | {"node": fits[0]})
    return placed


def start(job: Job, placed: list[dict[str, Any]], jobs: dict[str, Job]) -> None:
    used = {g for other in jobs.values() if other["state"] in "RE" for g in other.get("gpus", [])}
    gpus: list[str] = []
    for chunk in placed:
        names = [f"{chunk['node']}:{i}" for i in range(settings()["nodes"][chunk["node"]].get("ngpus", 0))]
        gpus += [name for name in names if name not in used and name not in gpus][: chunk["ngpus"]]
    parts = [
        f"({c['node']}:ncpus={c['ncpus']}" + f":ngpus={c['ngpus']}" * bool(c["ngpus"]) + ")" for c in placed
    ]
    now = time.time()
    job |= {"state": "R", "placed": placed, "gpus": gpus, "stime": now}
    when = time.strftime("%a %b %d at %H:%M", time.localtime(now))
    job["comment"] = f"Job run at {when} on {'+'.join(parts)}"
    watcher = [sys.executable, "-ES", str(Path(__file__).with_name("mom.py")), number(job["id"])]
    nowhere = subprocess.DEVNULL
    subprocess.Popen(watcher, start_new_session=True, stdin=nowhere, stdout=nowhere, stderr=nowhere)


def finish(job: Job, exit_status: int | None, how: str) -> None:
    job |= {"state": "F", "exit_status": exit_status, "etime": time.time()}
    if "comment" in job:
        job["comment"] += f" and {how}"

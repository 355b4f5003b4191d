"""Runs one job of the stand-in as a PBS does on its first node, and books its end."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

import books

WALLTIME_EXCEEDED = -29


def main(number: str) -> None:
    with books.books() as jobs:
        job = dict(jobs[number])
    spool = books.folder() / "spool"
    out, err = spool / f"{job['id']}.OU", spool / f"{job['id']}.ER"
    if job["direct"]:
        out, err = Path(job["output"]), Path(job["error"])
    with (
        open(out, "wb") as stdout,
        open(out if job["join"] else err, "ab" if job["join"] else "wb") as stderr,
    ):
        process = subprocess.Popen(
            [job["shell"], job["script"]],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT if job["join"] else stderr,
            env=environment(job),
            cwd=os.path.expanduser("~"),
            start_new_session=True,
        )
        with books.books() as jobs:
            jobs[number]["session"] = process.pid
        exit_status, how = watch(job, number, process, stderr)
    if not job["direct"]:
        stage(out, job["output"])
        if not job["join"]:
            stage(err, job["error"])
    with books.books() as jobs:
        books.finish(jobs[number], exit_status, how)
        books.schedule(jobs)


def environment(job: books.Job) -> dict[str, str]:
    """What a job finds: of the submitting shell only what `-v` or `-V` hand on."""
    own = {name: os.environ[name] for name in ("HOME", "USER", "LOGNAME") if name in os.environ}
    nodes = books.folder() / "spool" / f"{job['id']}.nodes"
    nodes.write_text("".join(f"{chunk['node']}\n" * chunk["mpiprocs"] for chunk in job["placed"]))
    gpus = [gpu.split(":")[1] for gpu in job["gpus"] if gpu.startswith(f"{job['placed'][0]['node']}:")]
    return {
        **own,
        "PATH": f"{Path(__file__).parent}:/usr/local/bin:/usr/bin:/bin",
        "SHELL": "/bin/bash",
        "PBS_STANDIN": str(books.folder()),  # where a real one has /etc/pbs.conf
        **job["variables"],
        "PBS_ENVIRONMENT": "PBS_BATCH",
        "PBS_JOBID": job["id"],
        "PBS_JOBNAME": job["name"],
        "PBS_NODEFILE": str(nodes),
        "PBS_QUEUE": job["queue"],
        "NCPUS": str(job["placed"][0]["ncpus"]),
        "OMP_NUM_THREADS": str(job["placed"][0]["ncpus"]),
        **({"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}),
    }


def watch(
    job: books.Job, number: str, process: subprocess.Popen[bytes], stderr: IO[bytes]
) -> tuple[int, str]:
    """Waits for the end of a job, or brings it about; its exit status, and PBS's word for how it ended."""
    start = time.monotonic()
    deletion = books.folder() / "spool" / f"{number}.deleted"
    while True:
        with suppress(subprocess.TimeoutExpired):
            code = process.wait(0.05)
            end(process.pid, signal.SIGKILL)
            status = code if code >= 0 else 256 - code
            return status, "finished" if code == 0 else "failed"
        ran = time.monotonic() - start
        if job["walltime_s"] is not None and ran > job["walltime_s"]:
            stderr.write(b"=>> PBS: job killed: walltime %d exceeded limit %d\n" % (ran, job["walltime_s"]))
            stop(process)
            return WALLTIME_EXCEEDED, "failed"
        if deletion.exists() and number not in books.settings()["unending"]:
            code = stop(process)
            return (code if code >= 0 else 256 - code), f"terminated by {deletion.read_text()}"


def stop(process: subprocess.Popen[bytes]) -> int:
    end(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(books.settings()["kill_delay_s"])
    end(process.pid, signal.SIGKILL)
    return process.wait()


def end(session: int, by: signal.Signals) -> None:
    """Sends a signal to all processes of a job, which PBS knows by their session."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, IndexError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == session:
                    os.kill(int(entry.name), by)


def stage(spooled: Path, to: str) -> None:
    target = Path(to)
    with suppress(OSError):  # PBS sends a mail then
        shutil.move(spooled, target / spooled.name if target.is_dir() else target)


if __name__ == "__main__":
    main(sys.argv[1])

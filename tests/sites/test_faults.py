"""What a block has shown becomes one line a fault: what, the value, the cause, what to do."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hpcal.sites.check import Probed
from hpcal.sites.faults import Verdict, verdict
from hpcal.sites.pool import Pool

HERE = {"python": "3.11.7", "hpcal": "0.1.0", "parsl": "2026.10.26", "torch": "2.13.0", "tblite": None}


def answer(**changes: Any) -> dict[str, Any]:
    """A good worker, with changes by dotted names (``gpus__torch``)."""
    good: dict[str, Any] = {
        "host": "n1",
        "worker": "0",
        "manager": "m1",
        "python": "3.11.2",
        "executable": "/env/bin/python",
        "container": "",
        "cores": 8,
        "versions": {"hpcal": "0.1.0", "parsl": "2026.10.26", "torch": "2.13.0", "tblite": None},
        "imports": {"torch": 1.5, "tblite": "ModuleNotFoundError: No module named 'tblite'"},
        "gpus": {"fault": "", "own": [], "torch": 0},
        "scratch": {"path": "/s", "filesystem": "tmpfs", "fault": ""},
        "shared": {"path": "/home/x", "filesystem": "nfs4", "fault": "", "seen": True},
    }
    good = json.loads(json.dumps(good))
    for name, value in changes.items():
        *path, last = name.split("__")
        place = good
        for key in path:
            place = place[key]
        place[last] = value
    return good


def judged(*answers: dict[str, Any], pool: Pool | None = None, **shown: Any) -> Verdict:
    probed = Probed(**{"pool": "label", "kind": "slurm", "workers": 1, "answers": answers, **shown})
    return verdict(probed, pool or Pool(), HERE, 60)


def fault(*answers: dict[str, Any], **shown: Any) -> str:
    """The only fault."""
    found = judged(*answers, **shown)
    assert len(found.faults) == 1, found
    assert "\n" not in found.faults[0]
    return found.faults[0]


def test_a_good_block_has_none() -> None:
    assert judged(answer(), output=("a warning of some library",)) == Verdict()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"versions__hpcal": "0.0.9"},
            "hpcal 0.0.9 on n1 (/env/bin/python), 0.1.0 here: install the same version there",
        ),
        ({"versions__hpcal": None}, "hpcal is missing on n1 (/env/bin/python), 0.1.0 here"),
        ({"versions__parsl": "2025.1.1"}, "parsl 2025.1.1 on n1"),
        ({"python": "3.12.1"}, "Python 3.12.1 on n1, 3.11.7 here: use the same minor version"),
        (
            {"imports__torch": "OSError: libcudart.so"},
            "torch cannot be imported on n1: OSError: libcudart.so; install it in /env/bin/python",
        ),
        (
            {"scratch__fault": "Permission denied"},
            "scratch /s cannot be written on n1: Permission denied; correct `scratch`",
        ),
        (
            {"shared__seen": False, "shared__fault": "No such file or directory"},
            "/home/x is not on n1 as it is here: No such file or directory; run the campaign on a",
        ),
        (
            {"shared__fault": "Read-only file system"},
            "/home/x cannot be written on n1: Read-only file system",
        ),
        ({"gpus__fault": "worker 1 of this node has no GPU"}, "GPUs on n1: worker 1 of this node has no GPU"),
    ],
)
def test_faults_of_a_worker(changes: dict[str, Any], told: str) -> None:
    assert told in fault(answer(**changes))


def test_the_same_fault_of_many_workers_is_told_once() -> None:
    workers = [answer(worker=str(i), versions__hpcal="0.0.9") for i in range(8)]
    assert "hpcal 0.0.9" in fault(*workers, workers=8)


def test_a_library_of_another_version_is_a_note() -> None:
    found = judged(answer(versions__torch="2.6.0"))
    assert found == Verdict(notes=("torch 2.6.0 on n1, 2.13.0 here",))


def test_fewer_cores_than_threads_are_a_note() -> None:
    found = judged(answer(cores=1), pool=Pool(cores_per_worker=4))
    assert not found.faults
    assert "may use 1 cores but 4 threads" in found.notes[0]


def test_gpus() -> None:
    pool = Pool(gpus_per_node=2, max_workers_per_node=2)
    one, two = answer(gpus__own=["0"], gpus__torch=1), answer(worker="1", gpus__own=["1"], gpus__torch=1)
    assert not judged(one, two, workers=2, pool=pool).faults
    elsewhere = answer(host="n2", manager="m2", gpus__own=["0"], gpus__torch=1)
    assert not judged(one, elsewhere, workers=2, pool=pool).faults
    both = answer(worker="1", gpus__own=["0"], gpus__torch=1)
    assert "two workers of n1 use GPU 0" in fault(one, both, workers=2, pool=pool)
    blind = answer(gpus__own=["0"])
    assert "PyTorch 2.13.0 sees no GPU on n1, of 2 asked for" in fault(blind, pool=pool)


def test_workers_outside_of_their_container() -> None:
    pool = Pool(container={"image": "/x/h.sif"})
    assert "workers on n1 are not in the container /x/h.sif" in fault(answer(), pool=pool)
    assert not judged(answer(container="/x/h.sif"), pool=pool).faults


def test_workers_that_do_not_answer() -> None:
    assert "only 1 of the 4 workers of a block have answered" in fault(answer(), workers=4)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("script: line 9: module: command not found", "the nodes have no command `module`"),
        ("ERROR: Unable to locate a modulefile for 'gcc/99'", "a module cannot be loaded"),
        ('Lmod has detected: The following module(s) are unknown: "x"', "a module cannot be loaded"),
        ("script: line 3: /x/bin/python: No such file or directory", "the interpreter is not on the node"),
        ("FileNotFoundError: [Errno 2] No such file or directory: '/x/python'", "the interpreter is not on"),
        ("/usr/bin/python3: No module named parsl", "the Python of the nodes lacks hpcal or Parsl"),
        ("ConnectionError: No viable ZMQ url from: tcp://10.0.0.1:54321", "does not reach the controller"),
        ("FATAL:   could not open image /x.sif", "the container does not start"),
        ("script: line 4: apptainer: command not found", "the container does not start"),
        ("script: line 4: cd: /nowhere: No such file or directory", "a command before the workers fails"),
    ],
)
@pytest.mark.parametrize("came", [False, True])
def test_what_a_job_writes_tells_the_cause(line: str, told: str, came: bool) -> None:
    answers = (answer(),) if came else ()
    found = fault(*answers, output=("Loading …", line, "the end"), state="failed", words="FAILED")
    assert told in found
    assert repr(line) in found


@pytest.mark.parametrize(
    ("shown", "told"),
    [
        (
            {"state": "pending", "words": "Resources"},
            "its block still waits in the queue after 60 s: Resources; give --timeout",
        ),
        (
            {"state": "owed", "words": "qsub did not answer within 60 s"},
            "its job could not be handed in within 60 s: qsub did not answer within 60 s; see whether",
        ),
        (
            {"state": "running", "output": ("hm",)},
            "its block runs, but no worker has reached the controller within 60 s; it wrote 'hm'; give",
        ),
        (
            {"state": "missing", "words": "FAILED (NonZeroExitCode), exit code 3"},
            "its block ended before a worker answered: FAILED (NonZeroExitCode), exit code 3; it wrote",
        ),
        (
            {"words": "pool label: the scheduler will not take its jobs: sbatch: bad; correct the site file"},
            "the scheduler does not take the job: sbatch: bad; correct what it names",
        ),
        (
            {"words": "Manager version info py.v=3.10 does not match interchange version info py.v=3.11"},
            "another Python or Parsl on the node: Manager version info py.v=3.10",
        ),
    ],
)
def test_a_block_that_never_answers(shown: dict[str, Any], told: str) -> None:
    assert told in fault(**{"state": "pending", **shown})

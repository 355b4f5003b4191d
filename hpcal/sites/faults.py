"""What is wrong with a pool, by what its block has shown: each fault in one sentence, with what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from hpcal.sites.check import IMPORTS, Probed
from hpcal.sites.pool import Pool

Versions = Mapping[str, str | None]

_MUST_AGREE: Final = ("hpcal", "parsl")
_QUOTED: Final = 5
"""Lines of a job's output that are shown."""
_REFUSED: Final = re.compile(r"will not take its jobs: (.*?)(?:; correct the site file)?$")
_MISMATCH: Final = "does not match interchange"
_SHELL_ERRORS: Final = (
    (
        re.compile(
            r"Unable to locate a modulefile|module\(s\) (?:are unknown|cannot be loaded)", re.IGNORECASE
        ),
        "a module cannot be loaded",
        "see `module avail` on a node, and correct `modules` or `worker_init`",
    ),
    (
        re.compile(r"module: (?:command )?not found"),
        "the nodes have no command `module`",
        "source its set-up in `worker_init`, or take `modules` out",
    ),
    (
        re.compile(r"No viable ZMQ url|ConnectionError"),
        "the node does not reach the controller",
        "give `interface` or `address` of a network that the nodes see (`ip -brief address` here), or ask "
        "whether a firewall closes ports 54000 to 55000",
    ),
    (
        re.compile(r"No module named '?(?:hpcal|parsl)"),
        "the Python of the nodes lacks hpcal or Parsl",
        "correct `python`, or activate the environment in `worker_init`",
    ),
    (
        re.compile(r"FATAL:.*|could not open image|(?:apptainer|singularity): (?:command )?not found"),
        "the container does not start",
        "correct `container`, or load the module that brings it",
    ),
    (
        re.compile(
            r"python\S*: (?:No such file or directory|(?:command )?not found)"
            r"|No such file or directory: '\S*python"
        ),
        "the interpreter is not on the node",
        "correct `python` to a path that the nodes see",
    ),
    (
        re.compile(r"command not found|: not found|No such file or directory|Permission denied"),
        "a command before the workers fails",
        "correct `worker_init`",
    ),
)
"""What shells and programs write when a block is set up wrongly, from the particular to the general."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is to be said of a pool.

    Attributes:
        faults: each keeps a campaign from running well there.
        notes: each is worth knowing.
    """

    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default_factory=tuple)


def verdict(probed: Probed, pool: Pool, here: Versions, timeout_s: float) -> Verdict:
    """Judges what a block has shown.

    Args:
        here: versions of the controller's packages, and of Python.
        timeout_s: for which it was waited for.
    """
    faults = list(dict.fromkeys(_faults(probed, pool, here, timeout_s)))
    return Verdict(faults=tuple(faults), notes=tuple(dict.fromkeys(_notes(probed, pool, here))))


def _faults(probed: Probed, pool: Pool, here: Versions, timeout_s: float) -> Iterator[str]:
    shell = _of_the_shell(probed)
    if not probed.answers:
        yield _silence(probed, timeout_s) if _MISMATCH in probed.words or not shell else shell
        return
    if shell:
        yield shell
    if len(probed.answers) < probed.workers:
        yield (
            f"only {len(probed.answers)} of the {probed.workers} workers of a block have answered: look at "
            "the nodes that are missing, or lower nodes_per_block or max_workers_per_node"
        )
    for answer in probed.answers:
        yield from _of_a_worker(answer, pool, here)
    yield from _shared_gpus(probed)


def _silence(probed: Probed, timeout_s: float) -> str:
    """Why no worker has answered."""
    words, wrote = probed.words, _quoted(probed)
    if _MISMATCH in words:
        return f"another Python or Parsl on the node: {words}; install the versions of this host there"
    if refused := _REFUSED.search(words):
        return f"the scheduler does not take the job: {refused[1]}; correct what it names"
    because = f": {words}" if words else ""
    if probed.state == "owed":
        return (
            f"its job could not be handed in within {timeout_s:g} s{because}; see whether the scheduler "
            "answers here"
        )
    if probed.state == "pending":
        return (
            f"its block still waits in the queue after {timeout_s:g} s{because}; give --timeout, or a queue "
            "that is less full"
        )
    if probed.state == "running":
        return (
            f"its block runs, but no worker has reached the controller within {timeout_s:g} s{because}; "
            f"{wrote}; give `interface` or `address` of a network that the nodes see, or --timeout if it "
            "starts slowly"
        )
    return (
        f"its block ended before a worker answered{because}; {wrote}; correct "
        "`worker_init`, `python` or what the job asks for"
    )


def _of_the_shell(probed: Probed) -> str:
    """An error that was written before the workers came or in their place, the most telling one."""
    for pattern, what, advice in _SHELL_ERRORS:
        for line in reversed(probed.output):
            if pattern.search(line):
                return f"{what}: it wrote {line!r}; {advice}"
    return ""


def _quoted(probed: Probed) -> str:
    return f"it wrote {' | '.join(probed.output[-_QUOTED:])!r}" if probed.output else "it wrote nothing"


def _of_a_worker(answer: Mapping[str, Any], pool: Pool, here: Versions) -> Iterator[str]:
    host, versions = answer["host"], answer["versions"]
    if _minor(answer["python"]) != _minor(here["python"]):
        yield f"Python {answer['python']} on {host}, {here['python']} here: use the same minor version"
    for name in _MUST_AGREE:
        if versions.get(name) != here[name]:
            yield (
                f"{name} {versions.get(name) or 'is missing'} on {host} ({answer['executable']}), "
                f"{here[name]} here: install the same version there, or correct `python` or `worker_init`"
            )
    for name in IMPORTS:
        outcome = answer["imports"].get(name)
        if isinstance(outcome, str) and here.get(name) is not None:
            yield f"{name} cannot be imported on {host}: {outcome}; install it in {answer['executable']}"
    if answer["gpus"]["fault"]:
        yield f"GPUs on {host}: {answer['gpus']['fault']}"
    elif pool.gpu_count and answer["gpus"]["torch"] == 0:
        yield (
            f"PyTorch {versions.get('torch')} sees no GPU on {host}, of {pool.gpu_count} asked for: install "
            "a build of PyTorch for these GPUs, or load their driver's module"
        )
    if pool.container is not None and not answer["container"]:
        yield f"workers on {host} are not in the container {pool.container.image}"
    yield from _of_folders(answer)


def _of_folders(answer: Mapping[str, Any]) -> Iterator[str]:
    host, scratch, shared = answer["host"], answer["scratch"], answer["shared"]
    if not shared["seen"]:
        yield (
            f"the folder {shared['path']} is not on {host} as it is here"
            f"{': ' + shared['fault'] if shared['fault'] else ''}; run the campaign on a file system "
            "that all nodes share"
        )
    elif shared["fault"]:
        yield f"the folder {shared['path']} cannot be written on {host}: {shared['fault']}"
    if scratch["fault"] and scratch["path"] != shared["path"]:
        yield f"scratch {scratch['path']} cannot be written on {host}: {scratch['fault']}; correct `scratch`"


def _shared_gpus(probed: Probed) -> Iterator[str]:
    """Two workers with one GPU."""
    owner: dict[tuple[str, str], str] = {}
    for answer in probed.answers:
        for name in answer["gpus"]["own"]:
            if owner.setdefault((answer["host"], name), _worker(answer)) != _worker(answer):
                yield (
                    f"two workers of {answer['host']} use GPU {name}: ask for more with gpus_per_node, or "
                    "lower max_workers_per_node"
                )


def _worker(answer: Mapping[str, Any]) -> str:
    return f"{answer['manager']} {answer['worker']}"


def _notes(probed: Probed, pool: Pool, here: Versions) -> Iterator[str]:
    for answer in probed.answers:
        for name, version in answer["versions"].items():
            if name not in _MUST_AGREE and version != here.get(name):
                yield f"{name} {version or 'missing'} on {answer['host']}, {here.get(name) or 'missing'} here"
        if probed.kind != "local" and answer["cores"] < pool.cores_per_worker:
            yield (
                f"a worker on {answer['host']} may use {answer['cores']} cores but {pool.cores_per_worker} "
                "threads: give cores_per_node, or lower cores_per_worker"
            )


def _minor(version: str | None) -> str:
    return ".".join((version or "").split(".")[:2])

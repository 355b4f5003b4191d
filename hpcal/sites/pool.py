"""The keys of a pool of workers, and of the batch jobs in which they run."""

from __future__ import annotations

import re
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from hpcal.core.settings import Settings

KINDS: Final = ("local", "slurm", "pbs")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WALLTIME: Final = re.compile(r"(\d{1,3}):([0-5]\d):([0-5]\d)")
_LOCAL_BEATS: Final = (2, 10)
_BATCH_BEATS: Final = (15, 90)
_BLANK: Final = re.compile(r"\s")


def _known_kind(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"no such kind of site; there are {', '.join(map(repr, KINDS))}, and .py files")
    return kind


def _always_encrypted(encrypted: Any) -> Any:
    if encrypted is not True:
        raise ValueError(
            "the connection between controller and workers is always encrypted, because what crosses it "
            "is executed: whoever could write to it could run programs as you; take this line out"
        )
    return encrypted


def _walltime(text: Any) -> Any:
    if text is not None and not (isinstance(text, str) and _WALLTIME.fullmatch(text)):
        raise ValueError('a walltime is written "HH:MM:SS", in quotes, such as "24:00:00"')
    return text


def _one_word(text: str | None) -> str | None:
    if text is not None and (not text or _BLANK.search(text)):
        raise ValueError("must be one word, as it goes to the scheduler's command line")
    return text


def _as_written(path: str) -> str:
    if path.startswith("~") or "$" in path:
        raise ValueError(
            "no shell reads it: give the whole path, or write ${NAME}, which is filled in from the "
            "environment of this host"
        )
    return path


Kind = Annotated[str, AfterValidator(_known_kind)]
Encrypted = Annotated[bool, BeforeValidator(_always_encrypted)]
Walltime = Annotated[str | None, BeforeValidator(_walltime)]
Word = Annotated[str | None, AfterValidator(_one_word)]
Written = Annotated[str, AfterValidator(_as_written)]


class Container(Settings):
    """An Apptainer image in which the workers run; see ``containers/``."""

    image: Written = Field(min_length=1, description="image file (.sif), as seen from the nodes")
    gpu: Literal["none", "nvidia", "amd"] = Field(
        default="none", description="GPU flavour: nvidia is `--nv`, amd is `--rocm`"
    )
    binds: list[Written] = Field(
        default_factory=list, description="folders to show inside, `PATH` or `FROM:TO`"
    )
    options: str = Field(default="", description="further options of `apptainer exec`")
    python: str = Field(default="python3", description="interpreter inside the image")
    program: str = Field(default="apptainer", description="`apptainer`, or `singularity` on older sites")


class Ranks(Settings):
    """How a worker of a pool starts programs of several ranks (MPI, data-parallel training)."""

    command: str = Field(
        min_length=1,
        description="launcher before the program, such as `srun --mpi=pmix --nodes={nodes} "
        "--ntasks={ranks}` or `mpirun -n {ranks}`; {nodes} and {ranks} are filled in",
    )
    ranks: int = Field(ge=1, description="ranks that a task starts")

    @field_validator("command")
    @classmethod
    def _placeholders(cls, command: str) -> str:
        try:
            command.format(nodes=1, ranks=1)
        except (KeyError, IndexError, ValueError):
            raise ValueError("only {nodes} and {ranks} may stand in braces") from None
        return command


class JobKeys(Settings):
    """What a batch job is asked for with, whatever runs in it; keys that a site may give for all pools."""

    account: Word = Field(default=None, description="account that pays; best written ${ACCOUNT}")
    partition: Word = Field(default=None, description="Slurm partition")
    queue: Word = Field(default=None, description="PBS queue")
    qos: Word = Field(default=None, description="Slurm quality of service")
    constraint: Word = Field(default=None, description="Slurm constraint on nodes, such as `gpu`")
    walltime: Walltime = Field(
        default=None,
        description='time after which a block is replaced, "HH:MM:SS"; must be given with a scheduler',
    )
    exclusive: bool = Field(default=False, description="whether nodes are shared with no other job")
    scheduler_options: str = Field(
        default="", description="further lines of the batch script, such as `#SBATCH --reservation=x`"
    )
    select_options: str = Field(
        default="", description="PBS: further words of `-l select`, such as `ngpus=4:system=polaris`"
    )
    filesystems: Word = Field(
        default=None, description="PBS: file systems that must be up, such as `home:eagle`"
    )
    modules: list[str] = Field(default_factory=list, description="environment modules to load")
    worker_init: str = Field(default="", description="shell commands before the workers start")
    environment: dict[str, str] = Field(default_factory=dict, description="variables set for the workers")
    python: Written | None = Field(
        default=None, description="interpreter on the nodes that has hpcal; the controller's own if null"
    )
    container: Container | None = Field(default=None, description="image in which the workers run")
    staged_environment: Written | None = Field(
        default=None,
        description="archive (.tar, .tar.gz) of an environment, unpacked on each node before the workers "
        "start, as made by conda-pack or venv-pack",
    )
    scratch: str | None = Field(
        default=None,
        description="folder for tasks' own files, on the nodes; may hold $VARIABLES of the nodes; the "
        "campaign's folder if null",
    )
    cmd_timeout: int = Field(default=60, ge=1, description="seconds that a scheduler's command may take")
    status_polling_interval: float = Field(
        default=30, gt=0, description="seconds between looks at the batch jobs"
    )
    submit_grace: float = Field(
        default=60,
        ge=0,
        description="seconds after its submission in which a batch job that the scheduler does not show "
        "counts as waiting",
    )

    @field_validator("environment")
    @classmethod
    def _variables(cls, environment: dict[str, str]) -> dict[str, str]:
        for name in environment:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is no name of an environment variable")
        return environment

    @model_validator(mode="after")
    def _one_environment(self) -> Self:
        given = [n for n in ("python", "container", "staged_environment") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: workers have one environment; give one of them")
        archive = self.staged_environment
        if archive is not None and not archive.endswith((".tar", ".tar.gz", ".tgz")):
            raise ValueError(f"staged_environment must be a .tar or .tar.gz file, not {archive!r}")
        return self

    @property
    def walltime_s(self) -> int | None:
        """The walltime in seconds, or None without one."""
        if self.walltime is None:
            return None
        hours, minutes, seconds = map(int, self.walltime.split(":"))
        return 3600 * hours + 60 * minutes + seconds


class ControllerJob(JobKeys):
    """The batch jobs in which ``hpcal submit`` runs the controller."""

    kind: Kind | None = Field(default=None, description="kind of scheduler, if not that of the site")
    cores: int = Field(default=1, ge=1, description="cores of the job")
    mem: int | None = Field(default=None, ge=1, description="memory of the job, GB")
    walltime_margin: int = Field(
        default=120, ge=20, description="seconds before the end of the job at which the controller stops"
    )
    chain: Literal["batch", "scrontab"] = Field(
        default="batch",
        description="how the next job comes: submitted by the job before it, or by scrontab where jobs "
        "may not submit",
    )


class Pool(JobKeys):
    """Workers of one kind; the keys are those of Parsl's executors and providers."""

    kind: Kind | None = Field(default=None, description="kind of scheduler, if not that of the site")
    nodes_per_block: int = Field(default=1, ge=1, description="nodes of one batch job")
    init_blocks: int = Field(default=1, ge=0, description="batch jobs at the start")
    min_blocks: int = Field(default=1, ge=0, description="batch jobs kept when there is nothing to do")
    max_blocks: int = Field(default=1, ge=1, description="most batch jobs at a time")
    max_workers_per_node: int = Field(default=1, ge=1, description="workers on each node, one task each")
    cores_per_worker: int = Field(default=1, ge=1, description="threads that each worker may use")
    mem_per_worker: float | None = Field(
        default=None, gt=0, description="memory of each worker, GB; the limit of its labels"
    )
    cores_per_node: int | None = Field(
        default=None, ge=1, description="cores asked for on each node; those of its workers if null"
    )
    mem_per_node: int | None = Field(
        default=None, ge=1, description="memory asked for on each node, GB; that of its workers if null"
    )
    gpus_per_node: int = Field(default=0, ge=0, description="GPUs asked for on each node")
    gpus_per_worker: int = Field(default=1, ge=1, description="GPUs that each worker of such a node sees")
    available_accelerators: int | list[str] = Field(
        default=0,
        description="GPUs of a node, by count or by name, such as `0.0` for a tile; where empty, those "
        "that the scheduler shows the job, or else 0 to gpus_per_node - 1",
    )
    gpu_vendor: Literal["nvidia", "amd", "intel"] = Field(
        default="nvidia", description="whose GPUs they are: says which variable shows them to a worker"
    )
    cpu_affinity: str = Field(
        default="none",
        description="how workers are pinned to cores: `none`, `block`, `block-reverse`, `alternating`, or "
        "`list:0-7:8-15` with the cores of each worker",
    )
    launcher: Literal["single", "srun", "mpiexec", "mpirun"] | None = Field(
        default=None,
        description="what starts a manager on each node of a block; if null, none for one node, `srun` "
        "on Slurm and `mpiexec` on PBS",
    )
    launcher_options: str = Field(default="", description="further options of the launcher")
    mpi: Ranks | None = Field(
        default=None,
        description="makes the tasks programs of several ranks over the nodes of a block; a worker then "
        "stands on the first node of its block only",
    )
    heartbeat_period: int | None = Field(
        default=None, ge=1, description="seconds between signs of life; null: 2, or 15 with a scheduler"
    )
    heartbeat_threshold: int | None = Field(
        default=None,
        ge=2,
        description="seconds of silence after which workers or controller count as lost; null: 10, or 90 "
        "with a scheduler",
    )
    walltime_margin: int = Field(
        default=60, ge=0, description="seconds before the end of a block at which tasks stop with their state"
    )
    larger: str | None = Field(
        default=None,
        description="pool with more memory or a longer walltime, to which work that ran out of either goes",
    )
    encrypted: Encrypted = Field(default=True, description="always true")

    @field_validator("cpu_affinity")
    @classmethod
    def _affinity(cls, text: str) -> str:
        if text not in ("none", "block", "block-reverse", "alternating") and not text.startswith("list:"):
            raise ValueError("must be none, block, block-reverse, alternating or list:CORES:CORES…")
        return text

    @field_validator("available_accelerators")
    @classmethod
    def _distinct(cls, names: int | list[str]) -> int | list[str]:
        if isinstance(names, list) and len(set(names)) < len(names):
            raise ValueError("names a GPU twice; two workers would share it")
        return names

    @model_validator(mode="after")
    def _blocks(self) -> Self:
        for name in ("init_blocks", "min_blocks"):
            if getattr(self, name) > self.max_blocks:
                given = getattr(self, name)
                raise ValueError(f"{name} ({given}) is above max_blocks ({self.max_blocks}); raise it")
        if self.mpi is not None and self.launcher not in (None, "single"):
            raise ValueError(
                f"launcher: {self.launcher} starts workers on every node, but a pool with mpi has one on the "
                "first node only, whose tasks start their own ranks; leave launcher out"
            )
        if self.mpi is not None and self.container is not None:
            raise ValueError(
                "mpi: its launcher would be looked for inside the container, where the node's is not; give "
                "this pool the python of an environment outside"
            )
        return self

    @model_validator(mode="after")
    def _gpus(self) -> Self:
        count = self.gpu_count
        if count and self.max_workers_per_node * self.gpus_per_worker > count:
            raise ValueError(
                f"max_workers_per_node ({self.max_workers_per_node}) times gpus_per_worker "
                f"({self.gpus_per_worker}) is above the {count} GPUs of a node; workers would share one"
            )
        return self

    def heartbeats(self, kind: str) -> tuple[int, int]:
        """Seconds between signs of life, and of silence after which somebody counts as lost."""
        period, threshold = _LOCAL_BEATS if kind == "local" else _BATCH_BEATS
        return self.heartbeat_period or period, self.heartbeat_threshold or threshold

    @property
    def gpu_count(self) -> int:
        """GPUs of a node, 0 without any."""
        named = self.available_accelerators
        return (named if isinstance(named, int) else len(named)) or self.gpus_per_node

    @property
    def tasks_per_block(self) -> int:
        """Tasks that run in a block at a time."""
        return self.max_workers_per_node * (1 if self.mpi else self.nodes_per_block)

    @property
    def ranks_per_node(self) -> int:
        """Ranks that tasks start on a node; 1 where they start none."""
        return 1 if self.mpi is None else -(-self.mpi.ranks // self.nodes_per_block)

    @property
    def cores_asked(self) -> int:
        """Cores asked for on each node."""
        return self.cores_per_node or self.max_workers_per_node * self.ranks_per_node * self.cores_per_worker

    @property
    def memory_asked(self) -> int | None:
        """Memory asked for on each node, GB, or None."""
        if self.mem_per_node is not None:
            return self.mem_per_node
        if self.mem_per_worker is None:
            return None
        return max(1, ceil(self.max_workers_per_node * self.mem_per_worker))

    @property
    def memory_MB(self) -> float | None:  # noqa: N802 - units are spelled as they are
        """Memory of each worker in units of 10⁶ bytes; its share of the node where only that is known."""
        if self.mem_per_worker is not None:
            return 1000.0 * self.mem_per_worker
        return None if self.mem_per_node is None else 1000.0 * self.mem_per_node / self.max_workers_per_node

    @property
    def task_seconds(self) -> float | None:
        """Longest time that a task can have in a block, s, or None without a walltime."""
        return None if self.walltime_s is None else max(0.0, float(self.walltime_s - self.walltime_margin))

    def scratch_of(self, run_id: str) -> str | None:
        """A campaign's folder in the scratch space of the nodes, with their variables; None without."""
        return None if self.scratch is None else str(Path(self.scratch) / f"hpcal-{run_id}")

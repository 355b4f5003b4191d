"""Site files: the machine on which a campaign runs, in Parsl's own words."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

from pydantic import Field, field_validator, model_validator

from hpcal.core.errors import ConfigurationError, InputError
from hpcal.core.plugins import nearest
from hpcal.core.settings import Settings, read_yaml, validate
from hpcal.exchange.shipped import shipped_folder
from hpcal.sites.dialect import fault_of_words
from hpcal.sites.pool import ControllerJob, Encrypted, JobKeys, Kind, Pool, Word
from hpcal.sites.variables import filled, used

REQUIRED_POOLS: Final = ("label", "sample", "train")
_STANDS_IN: Final = {"score": "sample"}
_POOL_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")
LEAST_WORK_S: Final = 30
"""Seconds of work that a batch job must have room for."""
_SUFFIXES: Final = (".yaml", ".yml", ".py")


class About(Settings):
    """Where the settings of a shipped site come from."""

    source: str = Field(min_length=1, description="page of the machine's own documentation")
    parsl: str = Field(min_length=1, description="version of Parsl that it was written for")
    status: str = Field(min_length=1, description="`tested`, with when and where, or `untested template`")

    @field_validator("status")
    @classmethod
    def _said(cls, status: str) -> str:
        if status != "untested template" and not status.startswith("tested"):
            raise ValueError("begins with `tested`, or is `untested template`")
        return status


class Site(JobKeys):
    """A machine: its pools of workers, one for each kind of work.

    Keys of batch jobs given here hold for all pools that do not give them.
    """

    about: About | None = Field(default=None, description="where these settings come from")
    kind: Kind = Field(
        default="local", description="kind of scheduler: `slurm`, `pbs`, or `local` for this machine"
    )
    address: str | None = Field(
        default=None,
        min_length=1,
        description="where workers reach the controller, an IP address; if null, that of `interface`, or "
        "127.0.0.1 where all pools are local, or all of this host's, tried in turn",
    )
    interface: Word = Field(
        default=None, description="network interface of the controller that the nodes reach, such as `ib0`"
    )
    encrypted: Encrypted = Field(default=True, description="always true")
    pools: dict[str, Pool] = Field(
        description="workers for `label`, `sample` and `train`; `score` is done by `sample` unless given"
    )
    controller: ControllerJob | None = Field(
        default=None, description="batch jobs of the controller itself, for `hpcal submit`"
    )

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, data: Any) -> Any:
        """Gives each pool what the site says for all of them."""
        if not isinstance(data, Mapping):
            return data
        common = {key: data[key] for key in JobKeys.model_fields if key in data}
        passed = dict(data)
        if isinstance(data.get("pools"), Mapping):
            passed["pools"] = {
                name: _joined(common, pool) if isinstance(pool, Mapping) else pool
                for name, pool in data["pools"].items()
            }
        if isinstance(data.get("controller"), Mapping):
            # It calls sbatch or qsub, which are not in an image.
            on_host = {key: value for key, value in common.items() if key != "container"}
            passed["controller"] = _joined(on_host, data["controller"])
        return passed

    @field_validator("pools")
    @classmethod
    def _complete(cls, pools: dict[str, Pool]) -> dict[str, Pool]:
        missing = [name for name in REQUIRED_POOLS if name not in pools]
        if missing:
            raise ValueError(f"missing pools: {', '.join(missing)}")
        for name in pools:
            if not _POOL_NAME.fullmatch(name):
                raise ValueError(f"a pool's name is made of a-z, 0-9 and _, not {name!r}")
        return pools

    @model_validator(mode="after")
    def _pools_fit_their_kind(self) -> Self:
        for name, pool in self.pools.items():
            fault = _fault_of(pool, self.kind_of(name))
            if fault is not None:
                raise ValueError(f"pool {name}: {fault}")
        return self

    @model_validator(mode="after")
    def _larger_pools(self) -> Self:
        for name in self.pools:
            chain = [name]
            while (larger := self.pools[chain[-1]].larger) is not None:
                if larger not in self.pools:
                    raise ValueError(
                        f"pool {chain[-1]}: larger names {larger!r}, which is no pool of this site"
                        f"{nearest(larger, self.pools)}"
                    )
                if larger in chain:
                    raise ValueError(
                        f"pool {chain[-1]}: larger leads in a circle ({' → '.join([*chain, larger])}); "
                        "the largest pool names none"
                    )
                chain.append(larger)
        return self

    def larger(self, stage: str, size: int) -> str:
        """The pool for work of a stage that ran out of memory or time ``size`` times.

        Where there are no more larger pools, the largest of them.
        """
        name = self.pool_name(stage)
        for _ in range(size):
            name = self.pools[name].larger or name
        return name

    def room(self, stage: str) -> float | None:
        """Seconds that work of a stage can have at most, in its own or a larger pool; None without limit."""
        chain = [self.pool_name(stage)]
        while (larger := self.pools[chain[-1]].larger) is not None:
            chain.append(larger)
        rooms = [None if self.kind_of(name) == "local" else self.pools[name].task_seconds for name in chain]
        return max((room for room in rooms if room is not None), default=None) if None not in rooms else None

    def pool_name(self, stage: str) -> str:
        """The pool that does the work of a stage.

        Raises:
            ConfigurationError: there is none.
        """
        if stage in self.pools:
            return stage
        if _STANDS_IN.get(stage) in self.pools:
            return _STANDS_IN[stage]
        raise ConfigurationError(f"the site has no pool {stage!r}{nearest(stage, self.pools)}")

    def pool(self, stage: str) -> Pool:
        """The settings of the pool that does the work of a stage."""
        return self.pools[self.pool_name(stage)]

    def slots(self, stage: str) -> int:
        """Tasks that can run at a time in the pool of a stage when all its blocks are there."""
        pool = self.pool(stage)
        return pool.max_blocks * pool.tasks_per_block

    def kind_of(self, stage: str) -> str:
        """Kind of scheduler of the pool of a stage."""
        return self.pool(stage).kind or self.kind

    @property
    def on_one_machine(self) -> bool:
        """Whether all pools are on the controller's own machine."""
        return all(self.kind_of(name) == "local" for name in self.pools)


def _joined(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """A pool's keys with those of its site; variables of both, shell commands of the site first."""
    joined = {**common, **own}
    if isinstance(common.get("environment"), Mapping) and isinstance(own.get("environment"), Mapping):
        joined["environment"] = {**common["environment"], **own["environment"]}
    if common.get("worker_init") and own.get("worker_init"):
        joined["worker_init"] = f"{common['worker_init']}\n{own['worker_init']}"
    if any(own.get(key) for key in ("python", "container", "staged_environment")):
        for key in ("python", "container", "staged_environment"):
            joined[key] = own.get(key)
    return joined


def _fault_of(pool: Pool, kind: str) -> str | None:
    """What a kind of scheduler cannot do with a pool."""
    period, threshold = pool.heartbeats(kind)
    if threshold < 2 * period:
        return (
            f"heartbeat_threshold ({threshold} s) must be at least twice heartbeat_period ({period} s): one "
            "late sign of life is no death"
        )
    if kind == "local":
        if pool.nodes_per_block != 1:
            return f"nodes_per_block is {pool.nodes_per_block}, but a local site is one node"
        return None
    if pool.walltime is None:
        return f'walltime is missing: a {kind} job has a limit, such as "04:00:00"'
    if (pool.walltime_s or 0) - 2 * pool.walltime_margin < LEAST_WORK_S:
        return (
            f"walltime {pool.walltime} less twice walltime_margin ({pool.walltime_margin} s) leaves no time: "
            "a block takes no new tasks in its last two margins; give a longer walltime or a shorter margin"
        )
    if pool.launcher == "single" and pool.nodes_per_block > 1 and pool.mpi is None:
        return (
            f"launcher: single starts workers on the first of {pool.nodes_per_block} nodes only; leave it "
            "out, or give mpi for programs over the nodes of a block"
        )
    return fault_of_words(pool, kind)


def load_site(name_or_path: str | Path, values: Mapping[str, str] | None = None) -> Site:
    """The site of a path, or of a name.

    A name is looked for in ``site_configs/`` of the current folder, in the user's configuration
    folder (``$XDG_CONFIG_HOME/hpcal/sites``), and among the sites that ship with hpcal.

    Args:
        values: stand for ``${NAME}`` in the file before those of the environment.

    Raises:
        ConfigurationError: no such site (says which there are), a fault in its file with line and
            key, or a ``${NAME}`` without a value.
    """
    file = site_file(name_or_path)
    if file.suffix == ".py":
        from hpcal.sites.python_site import read_python_site

        return read_python_site(file)
    document = read_yaml(file)
    return validate(Site, document, filled(document, values or {}))


def values_of_environment(name_or_path: str | Path, values: Mapping[str, str]) -> dict[str, str]:
    """What the environment gave for each ``${NAME}`` of a site's file; see :func:`load_site`.

    So that a campaign can be resumed where the environment has them no more, as in a batch job.
    """
    file = site_file(name_or_path)
    found = {} if file.suffix == ".py" else used(read_yaml(file).data, values)
    return {name: value for name, value in found.items() if name not in values}


def site_file(name_or_path: str | Path) -> Path:
    """The file of a site; arguments and errors as for :func:`load_site`."""
    text = str(name_or_path)
    path = Path(text).expanduser()
    if isinstance(name_or_path, Path) or os.sep in text or path.suffix in _SUFFIXES:
        return path
    sites = dict(_sites())
    if text in sites:
        return sites[text]
    raise ConfigurationError(
        f"no site {text!r}{nearest(text, sites)}; a site is a path, or the name of a file in "
        f"{', '.join(str(folder) for folder in _folders())} (there: {', '.join(sorted(sites)) or 'none'})"
    )


def _sites() -> Iterator[tuple[str, Path]]:
    """Names and files; a name that is found twice comes last from where it counts."""
    for folder in reversed(_folders()):
        if folder.is_dir():
            yield from sorted((file.stem, file) for file in folder.iterdir() if file.suffix in _SUFFIXES)


def _folders() -> list[Path]:
    configuration = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    folders = [Path("site_configs"), configuration / "hpcal" / "sites"]
    with suppress(InputError):  # an installation without them still has the user's own
        folders.append(shipped_folder("site_configs"))
    return folders

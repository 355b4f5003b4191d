"""Site files: the machine on which a campaign runs, in Parsl's own words."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from hpcal.core.errors import ConfigurationError, InputError
from hpcal.core.plugins import nearest
from hpcal.core.settings import Settings, read_yaml, validate
from hpcal.exchange.shipped import shipped_folder

KINDS: Final = ("local",)
REQUIRED_POOLS: Final = ("label", "sample", "train")
_STANDS_IN: Final = {"score": "sample"}
_POOL_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WALLTIME: Final = re.compile(r"(\d{1,3}):([0-5]\d):([0-5]\d)")


def _known_kind(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"no such kind of site; there is {' and '.join(map(repr, KINDS))}")
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


Kind = Annotated[str, AfterValidator(_known_kind)]
Encrypted = Annotated[bool, BeforeValidator(_always_encrypted)]


class Pool(Settings):
    """Workers of one kind; the keys are those of Parsl's executors and providers."""

    kind: Kind | None = Field(default=None, description="kind of scheduler, if not that of the site")
    max_workers_per_node: int = Field(default=1, ge=1, description="workers on each node, one task each")
    cores_per_worker: int = Field(default=1, ge=1, description="threads that each worker may use")
    nodes_per_block: int = Field(default=1, ge=1, description="nodes of one batch job")
    init_blocks: int = Field(default=1, ge=0, description="batch jobs at the start")
    min_blocks: int = Field(default=1, ge=0, description="batch jobs kept when there is nothing to do")
    max_blocks: int = Field(default=1, ge=1, description="most batch jobs at a time")
    walltime: Annotated[str | None, BeforeValidator(_walltime)] = Field(
        default=None, description='time after which a block is replaced, "HH:MM:SS", or null for never'
    )
    worker_init: str = Field(default="", description="shell commands before the workers start")
    environment: dict[str, str] = Field(default_factory=dict, description="variables set for the workers")
    available_accelerators: int | list[str] = Field(
        default=0, description="GPUs of a node, by count or by name; each worker is given one"
    )
    heartbeat_period: int = Field(default=2, ge=1, description="seconds between signs of life")
    heartbeat_threshold: int = Field(
        default=10, ge=2, description="seconds of silence after which workers or controller count as lost"
    )
    larger: str | None = Field(
        default=None,
        description="pool with more memory or a longer walltime, to which work that ran out of either goes",
    )
    encrypted: Encrypted = Field(default=True, description="always true")

    @field_validator("environment")
    @classmethod
    def _variables(cls, environment: dict[str, str]) -> dict[str, str]:
        for name in environment:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is no name of an environment variable")
        return environment

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("init_blocks", "min_blocks"):
            if getattr(self, name) > self.max_blocks:
                given = getattr(self, name)
                raise ValueError(f"{name} ({given}) is above max_blocks ({self.max_blocks}); raise it")
        if self.heartbeat_threshold < 2 * self.heartbeat_period:
            raise ValueError(
                f"heartbeat_threshold ({self.heartbeat_threshold} s) must be at least twice "
                f"heartbeat_period ({self.heartbeat_period} s): one late sign of life is no death"
            )
        return self

    @property
    def walltime_s(self) -> int | None:
        """The walltime in seconds, or None without one."""
        if self.walltime is None:
            return None
        hours, minutes, seconds = map(int, self.walltime.split(":"))
        return 3600 * hours + 60 * minutes + seconds


class Site(Settings):
    """A machine: its pools of workers, one for each kind of work."""

    kind: Kind = Field(default="local", description="kind of scheduler; `local` is this machine")
    address: str = Field(
        default="127.0.0.1", min_length=1, description="where workers reach the controller; an IP address"
    )
    encrypted: Encrypted = Field(default=True, description="always true")
    pools: dict[str, Pool] = Field(
        description="workers for `label`, `sample` and `train`; `score` is done by `sample` unless given"
    )

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
    def _one_machine(self) -> Self:
        for name, pool in self.pools.items():
            if (pool.kind or self.kind) == "local" and pool.nodes_per_block != 1:
                raise ValueError(
                    f"pool {name}: nodes_per_block is {pool.nodes_per_block}, but a local site is one node"
                )
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
        return pool.max_blocks * pool.nodes_per_block * pool.max_workers_per_node


def load_site(name_or_path: str | Path) -> Site:
    """The site of a path, or of a name.

    A name is looked for in ``site_configs/`` of the current folder, in the user's configuration
    folder (``$XDG_CONFIG_HOME/hpcal/sites``), and among the sites that ship with hpcal.

    Raises:
        ConfigurationError: no such site (says which there are), or a fault in its file with
            line and key.
    """
    return validate(Site, read_yaml(site_file(name_or_path)))


def site_file(name_or_path: str | Path) -> Path:
    """The file of a site; arguments and errors as for :func:`load_site`."""
    text = str(name_or_path)
    path = Path(text).expanduser()
    if isinstance(name_or_path, Path) or os.sep in text or path.suffix in (".yaml", ".yml"):
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
            yield from sorted(
                (file.stem, file) for file in folder.iterdir() if file.suffix in (".yaml", ".yml")
            )


def _folders() -> list[Path]:
    configuration = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    folders = [Path("site_configs"), configuration / "hpcal" / "sites"]
    with suppress(InputError):  # an installation without them still has the user's own
        folders.append(shipped_folder("site_configs"))
    return folders

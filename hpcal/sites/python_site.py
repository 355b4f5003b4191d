"""A site that is a Python file with a ``parsl.Config`` of the user's own: the way out.

The file has a name ``config`` that is a ``parsl.Config``, or a function without arguments that
returns one. Its executors are named like pools: ``label``, ``sample``, ``train`` and any more.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

from hpcal.core.errors import ConfigurationError
from hpcal.sites.pool import Pool
from hpcal.sites.schema import REQUIRED_POOLS, Site

KIND = "parsl"


class PythonSite(Site):
    """A site whose executors and providers are the user's own."""

    python_file: str


def read_python_site(file: Path) -> Site:
    """The site of a Python file.

    Raises:
        ConfigurationError: no such file, it fails, or its configuration cannot serve.
    """
    config = read_config(file)
    pools = {executor.label: _pool_of(executor) for executor in config.executors}
    missing = [name for name in REQUIRED_POOLS if name not in pools]
    if missing:
        raise ConfigurationError(
            f"{file}: no executor is labelled {', '.join(missing)}; hpcal needs one for each of "
            f"{', '.join(REQUIRED_POOLS)} (there: {', '.join(pools) or 'none'})"
        )
    return PythonSite.model_construct(kind=KIND, pools=pools, python_file=str(file.resolve()))


def read_config(file: Path) -> Any:
    """The ``parsl.Config`` of a file; a new one each time, as Parsl uses one only once. Raises as above."""
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor

    if not file.is_file():
        raise ConfigurationError(f"no such file: {file}")
    try:
        config = runpy.run_path(str(file)).get("config")
        config = config() if callable(config) and not isinstance(config, Config) else config
    except Exception as error:  # whatever a user's program raises
        raise ConfigurationError(f"{file} fails: {type(error).__name__}: {error}") from error
    if not isinstance(config, Config):
        raise ConfigurationError(
            f"{file}: `config` must be a parsl.Config or a function that returns one, not "
            f"{type(config).__name__}"
        )
    for executor in config.executors:
        if not isinstance(executor, HighThroughputExecutor):
            raise ConfigurationError(
                f"{file}: executor {executor.label!r} is a {type(executor).__name__}; hpcal works with "
                "HighThroughputExecutor"
            )
        if not executor.encrypted:
            raise ConfigurationError(
                f"{file}: executor {executor.label!r} is not encrypted; what crosses the connection is "
                "executed, so give encrypted=True"
            )
    return config


def _pool_of(executor: Any) -> Pool:
    provider = executor.provider
    workers = executor.workers_per_node
    return Pool.model_construct(
        kind=KIND,
        max_workers_per_node=int(workers),
        cores_per_worker=max(1, int(executor.cores_per_worker)),
        mem_per_worker=executor.mem_per_worker,
        nodes_per_block=provider.nodes_per_block,
        init_blocks=provider.init_blocks,
        min_blocks=provider.min_blocks,
        max_blocks=max(1, provider.max_blocks),
        walltime=getattr(provider, "walltime", None),
    )

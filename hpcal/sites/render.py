"""Batch scripts of a site as they would be sent, without a scheduler.

They are written by the executors and providers that a campaign uses, given a scheduler that only
reads. What is known only when a campaign runs stands there in capitals: its folder, its id, and of
its controller the port and, for blocks on this machine, the process.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider
from parsl.providers.cluster_provider import ClusterProvider

from hpcal.core.errors import ConfigurationError
from hpcal.sites.addresses import controller_addresses
from hpcal.sites.blocks import SchedulerBlocks
from hpcal.sites.controller_script import FOLDER as FOLDER_OF_CONTROLLER
from hpcal.sites.controller_script import controller_script
from hpcal.sites.parsl_config import parsl_config
from hpcal.sites.python_site import PythonSite
from hpcal.sites.scheduler import Job
from hpcal.sites.schema import Site

FOLDER: Final = "/CAMPAIGN"
RUN_ID: Final = "RUN_ID"
PORT: Final = "PORT"
CONTROLLER: Final = "CONTROLLER"
ADDRESS: Final = "ADDRESS"


class Reading:
    """A scheduler that takes no job and keeps the scripts that it is given."""

    def __init__(self) -> None:
        self.scripts: list[str] = []

    def submit(self, script: Path, *, mark: str, after: str | None = None) -> str:  # noqa: ARG002
        """Keeps the text of a script."""
        self.scripts.append(script.read_text(encoding="utf-8"))
        return str(len(self.scripts))

    def look(self, ids: Sequence[str]) -> Mapping[str, Job]:  # noqa: ARG002
        """Nothing: no job is there."""
        return {}

    def marked(self, prefix: str) -> list[Job]:  # noqa: ARG002
        """Nothing: no job is there."""
        return []

    def cancel(self, ids: Sequence[str]) -> None:
        """Nothing: no job is there."""


def rendered(site: Site, only: str | None = None) -> dict[str, str]:
    """The script of a block of each pool, by its name.

    Args:
        only: the one pool to render.

    Raises:
        ConfigurationError: no such pool, or a setting that the scheduler would not take.
    """
    wanted = None if only is None else site.pool_name(only)
    with tempfile.TemporaryDirectory(prefix="hpcal-render-") as folder:
        anywhere = site.model_copy(update={"address": None, "interface": None})
        made = parsl_config(anywhere, Path(folder).resolve() / "parsl", RUN_ID)
        addresses, scripts = _addresses(site), {}
        for executor in made.executors:
            if wanted in (None, executor.label):
                executor.all_addresses = addresses or executor.all_addresses
                text = _script(executor, Path(made.run_dir))
                scripts[executor.label] = _public(text, Path(made.run_dir).parent)
        return scripts


def rendered_controller(site: Site) -> str:
    """The script of a controller's job. Raises ConfigurationError if the site has none."""
    with tempfile.TemporaryDirectory(prefix="hpcal-render-") as folder:
        root = Path(folder).resolve()
        (root / FOLDER_OF_CONTROLLER).mkdir()
        return _public(controller_script(site, root), root)


def _addresses(site: Site) -> list[str] | None:
    """Where the nodes would reach the controller; also where this host is not the one that it will be on."""
    if isinstance(site, PythonSite):
        return None
    try:
        return controller_addresses(site)
    except ConfigurationError:
        return [site.address or ADDRESS]


def _script(executor: HighThroughputExecutor, folder: Path) -> str:
    """What the provider of an executor would send for its first block."""
    provider = executor.provider
    scripts = folder / "000" / "submit_scripts"
    scripts.mkdir(parents=True, exist_ok=True)
    executor.run_dir, executor.worker_port = str(scripts.parent), PORT
    executor.cert_dir = str(scripts.parent / executor.label / "certificates")
    executor.logconf_path = None
    provider.script_dir = str(scripts)
    executor.initialize_scaling()
    command, name = executor._get_launch_command("0"), f"parsl.{executor.label}.block-0"
    if isinstance(provider, SchedulerBlocks):
        provider.scheduler = reading = Reading()
        provider.submit(command, 1, name)
        if not reading.scripts:
            raise ConfigurationError(f"pool {executor.label}: {next(iter(provider.blocks.values())).words}")
        return reading.scripts[0]
    if isinstance(provider, LocalProvider):
        launched = provider.launcher(command, 1, provider.nodes_per_block, str(scripts))
        return f"{provider.worker_init}\nexport JOBNAME={name}\n{launched}\n"
    if isinstance(provider, ClusterProvider):
        return _of_parsls_own(provider, command, name, scripts)
    raise ConfigurationError(
        f"executor {executor.label}: hpcal cannot show what a {type(provider).__name__} would send"
    )


def _of_parsls_own(provider: ClusterProvider, command: str, name: str, scripts: Path) -> str:
    """The script that a provider of Parsl writes before it calls the scheduler, which it may not here."""
    provider.execute_wait = lambda *_, **__: (1, "", "")
    with suppress(Exception):  # it could not submit
        provider.submit(command, 1, name)
    written = sorted(path for path in scripts.iterdir() if name in path.name)
    if not written:
        raise ConfigurationError(f"{type(provider).__name__} has written no script")
    return written[0].read_text(encoding="utf-8")


def _public(script: str, folder: Path) -> str:
    """A script with the names of what is not there yet."""
    text = re.sub(rf"(leash\.py block) {os.getpid()}\b", rf"\1 {CONTROLLER}", script)
    return text.replace(str(folder), FOLDER)

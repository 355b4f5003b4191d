"""Finds the files that ship with hpcal: example campaigns and site files.

They lie at the top of the source tree and are put under ``hpcal/examples`` by the build
configuration, so an installed package and a checkout hold them at different places.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import hpcal
from hpcal.core.errors import InputError

Folder = Literal["site_configs", "workflows"]


def shipped_folder(name: Folder) -> Path:
    """The folder of shipped site files or example campaigns.

    Raises:
        InputError: it is neither in the installed package nor in a checkout around it.
    """
    package = Path(hpcal.__file__).resolve().parent
    installed = package / "examples" / name
    if installed.is_dir():
        return installed
    checkout = package.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / name).is_dir():
        return checkout / name
    raise InputError(f"the {name} that ship with hpcal are not in {package}: install hpcal again")

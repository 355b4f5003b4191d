"""Help is instant, so nothing heavy may be imported for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "parsl", "pydantic", "numpy", "sqlalchemy", "ase", "rich", "yaml", "scipy", "rdkit")


def test_importing_the_command_imports_nothing_heavy():
    code = f"import hpcal.cli.main, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "args", [["--help"], ["run", "--help"], ["config", "--help"], ["label", "-h"], ["--version"]]
)
def test_help_imports_nothing_heavy_either(args):
    code = (
        "import sys\nfrom hpcal.cli.main import cli\n"
        f"try: cli.main({args!r}, prog_name='hpcal')\n"
        f"except SystemExit as end: print(end.code, [m for m in {HEAVY!r} if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"

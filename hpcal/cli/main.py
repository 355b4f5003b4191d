"""The command ``hpcal``. Only click and the standard library are imported here, so that help is instant.

What a command does is in a module of its own, imported when it is run.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

import click

from hpcal.cli.campaign_commands import CAMPAIGN_COMMANDS
from hpcal.cli.file_commands import FILE_COMMANDS
from hpcal.cli.group import HpcalGroup
from hpcal.cli.site_commands import SITE_COMMANDS


@click.group(
    cls=HpcalGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    invoke_without_command=False,
)
@click.option("--debug", is_flag=True, help="Show the traceback of an unexpected error.")
@click.version_option(package_name="hpcal", message="hpcal %(version)s")
def cli(debug: bool) -> None:
    """Active learning for machine-learning interatomic potentials.

    Start with `hpcal init` for an example, then `hpcal run CAMPAIGN`.

    Exit codes: 0 done, 1 failed, 2 bad input or usage, 3 another controller holds the campaign,
    130 interrupted in good order.
    """


for command in (*CAMPAIGN_COMMANDS, *FILE_COMMANDS, *SITE_COMMANDS):
    cli.add_command(command)


def main() -> None:
    """Entry point of the command ``hpcal``; SIGTERM ends it as Ctrl-C does, so that it clears away."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(cli.main(prog_name="hpcal"))


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()

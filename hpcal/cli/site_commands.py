"""Commands on site files: their arguments and help. What they do is imported when they run."""

from __future__ import annotations

from typing import Final

import click

from hpcal.cli.campaign_commands import set_option

pool_option = click.option("--pool", metavar="NAME", help="Only this pool.")


@click.group(short_help="Prove a site file: a probe job in each pool, or its scripts.")
def site() -> None:
    """Prove a site file: a probe job in each pool, or the scripts that would be sent."""


@site.command("check")
@click.argument("name", metavar="SITE")
@pool_option
@set_option
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    default=600.0,
    show_default=True,
    metavar="S",
    help="Seconds that each pool may take, its time in the queue included.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; times in s.")
def site_check(
    name: str, *, pool: str | None, assignments: tuple[str, ...], timeout_s: float, as_json: bool
) -> None:
    """Submit a probe block to each pool of SITE, and say what its workers have there.

    Runs in a folder of its own below the current one, which is to be where campaigns will be. Exits 0
    if all pools are fine, 1 with faults, 2 for a file that cannot be read.
    """
    from hpcal.cli import site as command
    from hpcal.sites.variables import parse_assignments

    values = parse_assignments(assignments)
    code = command.check(name, pool=pool, values=values, timeout_s=timeout_s, as_json=as_json)
    click.get_current_context().exit(code)


@site.command("render")
@click.argument("name", metavar="SITE")
@pool_option
@set_option
def site_render(name: str, pool: str | None, assignments: tuple[str, ...]) -> None:
    """Print the batch script of each pool of SITE as it would be sent; nothing is submitted.

    With --pool, that script alone. CAMPAIGN, RUN_ID, PORT and CONTROLLER stand for what is known only
    when a campaign runs, ADDRESS for an interface that this host has not, @NUMBER@ for the place of a
    controller job in its chain.
    """
    from hpcal.cli import site as command
    from hpcal.sites.variables import parse_assignments

    command.render(name, pool=pool, values=parse_assignments(assignments))


SITE_COMMANDS: Final = (site,)

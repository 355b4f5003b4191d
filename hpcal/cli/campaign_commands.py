"""Commands on campaigns: their arguments and help. What they do is imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

FILE: Final = click.Path(path_type=Path)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON; energies in eV, lengths in Å."
)
site_option = click.option("--site", metavar="SITE", help="Site file, or the name of one.")
inline_option = click.option(
    "--inline",
    is_flag=True,
    help="Do all work in this process, one task after the other and the same to the bit each time; "
    "for debugging and tests.",
)


@click.command(short_help="Write an example campaign here, or list the examples.")
@click.argument("example", required=False)
def init(example: str | None) -> None:
    """Write an example campaign and a site file here; without EXAMPLE, list the examples."""
    from hpcal.cli import examples

    if example is None:
        examples.list_examples()
    else:
        examples.write_example(example, Path())


@click.command(short_help="Start a campaign, or resume it in its folder.")
@click.argument("campaign", type=FILE)
@site_option
@click.option("--dir", "folder", type=FILE, help="Folder of the campaign.  [default: its name]")
@click.option("--accept-changes", is_flag=True, help="Go on although the campaign file has changed.")
@inline_option
def run(campaign: Path, site: str | None, folder: Path | None, accept_changes: bool, inline: bool) -> None:
    """Start the campaign of a file, or resume it where its folder already holds it."""
    from hpcal.cli import run as command

    command.run(campaign, site=site, folder=folder, accept_changes=accept_changes, inline=inline)


@click.command(short_help="Resume the campaign of a folder.")
@click.argument("folder", metavar="DIR", type=FILE)
@site_option
@inline_option
def resume(folder: Path, site: str | None, inline: bool) -> None:
    """Resume the campaign in DIR, on the site it ran on or another one."""
    from hpcal.cli import run as command

    command.resume(folder, site=site, inline=inline)


@click.command(short_help="End a running campaign in good order.")
@click.argument("folder", metavar="DIR", type=FILE)
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until it has ended.")
def stop(folder: Path, wait: bool) -> None:
    """End the campaign in DIR in good order; everything finished is kept."""
    from hpcal.cli import stop as command

    command.stop(folder, wait=wait)


@click.command(short_help="Say where a campaign stands.")
@click.argument("folder", metavar="DIR", type=FILE)
@json_option
@click.option("--watch", is_flag=True, help="Look again every few seconds, until the campaign ends.")
def status(folder: Path, as_json: bool, watch: bool) -> None:
    """Say where the campaign in DIR stands."""
    from hpcal.cli import look

    look.status(folder, as_json=as_json, watch=watch)


@click.command(short_help="Dry run: what comes next, and what it may cost.")
@click.argument("what", metavar="CAMPAIGN|DIR", type=FILE)
@json_option
def plan(what: Path, as_json: bool) -> None:
    """Dry run: check a campaign, and say what it would do next and what that may cost."""
    from hpcal.cli import dryrun

    dryrun.plan(what, as_json=as_json)


@click.command(short_help="Tell the life of a structure, model or data set.")
@click.argument("folder", metavar="DIR", type=FILE)
@click.argument("what", metavar="ID")
@json_option
def trace(folder: Path, what: str, as_json: bool) -> None:
    """Tell the whole life of a structure (ID), or of model:ID, ensemble:ID, dataset:ID, task:ID."""
    from hpcal.cli import look

    look.trace(folder, what, as_json=as_json)


@click.command(short_help="Write one HTML file with pictures and numbers.")
@click.argument("folder", metavar="DIR", type=FILE)
@click.option("--out", type=FILE, help="File to write.  [default: DIR/report.html]")
def report(folder: Path, out: Path | None) -> None:
    """Write one HTML file with the campaign's pictures and numbers."""
    from hpcal.cli import look

    look.report(folder, out)


@click.command(short_help="Export labelled structures or an ensemble.")
@click.argument("folder", metavar="DIR", type=FILE)
@click.argument("out", type=FILE)
@click.option(
    "--split",
    "splits",
    multiple=True,
    metavar="SPLIT",
    help="Only this split, of train, validation, calibration, test, reference; may be repeated.  "
    "[default: all but reference]",
)
@click.option("--generation", type=int, metavar="G", help="The data set that generation G was trained on.")
@click.option(
    "--ensemble",
    is_flag=False,
    flag_value="latest",
    metavar="[GENERATION]",
    help="The ensemble of a generation, or the one promoted last, as a folder.",
)
@click.option(
    "--format", "layout", type=click.Choice(["hpcal"]), help="Layout of an HDF5 file.  [default: hpcal]"
)
def export(
    *,
    folder: Path,
    out: Path,
    splits: tuple[str, ...],
    generation: int | None,
    ensemble: str | None,
    layout: str | None,
) -> None:
    """Export labelled structures (OUT ends in .extxyz, .xyz or .h5) or an ensemble (OUT is a folder)."""
    from hpcal.cli import export as command

    command.export(folder, out, splits=splits, generation=generation, ensemble=ensemble, layout=layout)


@click.group(short_help="Check a campaign or site file, or print its schema.")
def config() -> None:
    """Check a campaign or site file, or print its schema."""


@config.command("check")
@click.argument("file", type=FILE)
def config_check(file: Path) -> None:
    """Check a campaign, site or stage file whole; a fault names its line."""
    from hpcal.cli import check

    check.check_file(file)


@config.command("schema")
@click.argument("file", type=FILE, required=False)
def config_schema(file: Path | None) -> None:
    """Print the JSON schema of campaign files, or of the kind of FILE (campaign or site)."""
    from hpcal.cli import schema

    schema.print_schema(file)


CAMPAIGN_COMMANDS: Final = (init, run, resume, stop, status, plan, trace, report, export, config)

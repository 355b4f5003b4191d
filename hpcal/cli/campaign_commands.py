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
set_option = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="NAME=VALUE",
    help="Value of ${NAME} in the site file, before that of the environment; may be repeated.",
)
store_option = click.option(
    "--store",
    "store_url",
    metavar="URL",
    help="PostgreSQL database for the store of a new campaign, such as postgresql://user@host/database; "
    "its password comes from ~/.pgpass or PGPASSWORD.  [default: SQLite in the folder]",
)
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
@set_option
@click.option("--dir", "folder", type=FILE, help="Folder of the campaign.  [default: its name]")
@click.option("--accept-changes", is_flag=True, help="Go on although the campaign file has changed.")
@store_option
@inline_option
def run(
    campaign: Path,
    *,
    site: str | None,
    folder: Path | None,
    accept_changes: bool,
    store_url: str | None,
    inline: bool,
    assignments: tuple[str, ...],
) -> None:
    """Start the campaign of a file, or resume it where its folder already holds it."""
    from hpcal.cli import run as command
    from hpcal.sites.variables import parse_assignments

    command.run(
        campaign,
        site=site,
        folder=folder,
        accept_changes=accept_changes,
        inline=inline,
        store_url=store_url,
        values=parse_assignments(assignments),
    )


@click.command(short_help="Run the controller itself as a chain of batch jobs.")
@click.argument("campaign", type=FILE)
@click.option("--site", metavar="SITE", required=True, help="Site file, or the name of one.")
@set_option
@click.option("--dir", "folder", type=FILE, help="Folder of the campaign.  [default: its name]")
@click.option("--accept-changes", is_flag=True, help="Go on although the campaign file has changed.")
@store_option
def submit(
    *,
    campaign: Path,
    site: str,
    folder: Path | None,
    accept_changes: bool,
    store_url: str | None,
    assignments: tuple[str, ...],
) -> None:
    """Check the campaign of a file, and run it by a chain of batch jobs of the site's `controller` block.

    Each job hands in the next one first; the chain ends with the campaign, or by `hpcal stop`.
    """
    from hpcal.cli import submit as command
    from hpcal.sites.variables import parse_assignments

    command.submit(
        campaign,
        site=site,
        folder=folder,
        accept_changes=accept_changes,
        store_url=store_url,
        values=parse_assignments(assignments),
    )


@click.command(short_help="Resume the campaign of a folder.")
@click.argument("folder", metavar="DIR", type=FILE)
@site_option
@set_option
@inline_option
def resume(folder: Path, site: str | None, inline: bool, assignments: tuple[str, ...]) -> None:
    """Resume the campaign in DIR, on the site it ran on or another one."""
    from hpcal.cli import run as command
    from hpcal.sites.variables import parse_assignments

    command.resume(folder, site=site, inline=inline, values=parse_assignments(assignments))


@click.command(short_help="Ask for more labels, generations or samplers.")
@click.argument("folder", metavar="DIR", type=FILE)
@click.option("--labels", metavar="N", help="Accepted labels at which to stop: 600, or +200 for 200 more.")
@click.option("--generations", metavar="N", help="Generations at which to stop: 12, or +4 for 4 more.")
@click.option("--quiet-generations", metavar="N", help="Quiet generations at which to stop, likewise.")
@click.option("--force-rmse", type=float, metavar="X", help="Target on the audit test group, eV/Å.")
@click.option("--energy-rmse", type=float, metavar="X", help="Target on the audit test group, meV/atom.")
@click.option(
    "--walkers",
    multiple=True,
    metavar="[SAMPLER=]N",
    help="Walkers that a sampler keeps alive; may be repeated.",
)
@click.option(
    "--add-sampler",
    "samplers",
    type=FILE,
    multiple=True,
    metavar="FILE",
    help="YAML file with one more entry of `sampling`; may be repeated.",
)
@site_option
@click.option("--run/--no-run", default=True, show_default=True, help="Go on at once, or wait for `resume`.")
@inline_option
def extend(
    *,
    folder: Path,
    labels: str | None,
    generations: str | None,
    quiet_generations: str | None,
    force_rmse: float | None,
    energy_rmse: float | None,
    walkers: tuple[str, ...],
    samplers: tuple[Path, ...],
    site: str | None,
    run: bool,
    inline: bool,
) -> None:
    """Ask for more of the campaign in DIR, which is finished or was stopped, and go on with it."""
    from hpcal.cli import extend as command
    from hpcal.engine.extend import Extension

    extension = Extension(
        labels=labels,
        generations=generations,
        quiet_generations=quiet_generations,
        force_rmse=force_rmse,
        energy_rmse=energy_rmse,
        walkers=walkers,
        samplers=samplers,
    )
    command.extend(folder, extension, site=site, run=run, inline=inline)


@click.command(short_help="Bring the store of an older hpcal up to date.")
@click.argument("folder", metavar="DIR", type=FILE)
def migrate(folder: Path) -> None:
    """Bring the store of the campaign in DIR, made by an older hpcal, up to date; a copy is kept."""
    from hpcal.store.migrate import migrate as bring_up_to_date

    done = bring_up_to_date(folder)
    if done.before == done.after:
        click.echo(f"{folder} is up to date (schema {done.after})")
        return
    kept = "" if done.copy is None else f"; the store as it was: {done.copy}"
    click.echo(f"{folder}: schema {done.before} to {done.after}{kept}")


@click.command(short_help="End a running campaign in good order.")
@click.argument("folder", metavar="DIR", type=FILE)
@click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until it has ended.")
def stop(folder: Path, wait: bool) -> None:
    """End the campaign in DIR in good order; everything finished is kept."""
    from hpcal.cli import stop as command

    command.stop(folder, wait=wait)


@click.command(short_help="End and remove what a dead controller left behind.")
@click.argument("folder", metavar="DIR", type=FILE)
@click.option("--dry-run", is_flag=True, help="Only say what there is.")
def clean(folder: Path, dry_run: bool) -> None:
    """End what a dead controller of the campaign in DIR left behind: batch jobs, processes, scratch.

    Only what belongs to this campaign, and nothing of its results. Refused while a controller runs it.
    """
    from hpcal.cli import clean as command

    command.clean(folder, dry_run=dry_run)


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


@click.command(short_help="Say what happened to a task, and what to do.")
@click.argument("folder", metavar="DIR", type=FILE)
@click.argument("what", metavar="TASK")
@json_option
def why(folder: Path, what: str, as_json: bool) -> None:
    """Say what happened to a task (17 or task:17), or to the last task of a structure (structure:5)."""
    from hpcal.cli import why as command

    command.why(folder, what, as_json=as_json)


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
    "--format",
    "layout",
    type=click.Choice(["hpcal", "ani", "deepmd"]),
    help="Layout of an HDF5 file (hpcal, ani), or a folder of DeePMD.  [default: hpcal for .h5]",
)
@click.option(
    "--keys",
    type=click.Choice(["hpcal", "mace"]),
    help="Extended XYZ: mace adds charge and multiplicity as total_charge and total_spin.  [default: hpcal]",
)
@click.option(
    "--isolated-atoms",
    is_flag=True,
    help="Extended XYZ: add the labelled single atom of each element, as config_type IsolatedAtom.",
)
def export(
    *,
    folder: Path,
    out: Path,
    splits: tuple[str, ...],
    generation: int | None,
    ensemble: str | None,
    layout: str | None,
    keys: str | None,
    isolated_atoms: bool,
) -> None:
    """Export labelled structures or an ensemble.

    By the name of OUT: .extxyz or .xyz, .h5, .db (of ASE); a name without extension is a folder with the
    ensemble, or with data of DeePMD where --format says so.
    """
    from hpcal.cli import export as command

    command.export(
        folder,
        out,
        splits=splits,
        generation=generation,
        ensemble=ensemble,
        layout=layout,
        keys=keys,
        isolated_atoms=isolated_atoms,
    )


@click.command(short_help="Look for faults in labelled data, and at what they cover.")
@click.argument("what", metavar="DATA...|DIR", type=FILE, nargs=-1, required=True)
@json_option
@click.option("--level", metavar="LEVEL", help="Level of theory of files that do not state it.")
@click.option("--charge", type=int, metavar="Q", help="Charge of structures that do not state it.")
@click.option("--multiplicity", metavar="M", help="Their multiplicity: 2S + 1, or `lowest`.")
@click.option(
    "--cutoff",
    type=click.FloatRange(min=0, min_open=True),
    metavar="A",
    help="Cutoff of the potential, Å, for pairs and sizes.  [default: the campaign's, or 5.2]",
)
@click.option(
    "--near",
    type=click.FloatRange(min=0),
    default=0.01,
    show_default=True,
    metavar="A",
    help="Structures of two splits with no atom displaced by more than this are near-duplicates, Å.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    metavar="N",
    help="Examples to show of each finding.",
)
def check(
    *,
    what: tuple[Path, ...],
    as_json: bool,
    level: str | None,
    charge: int | None,
    multiplicity: str | None,
    cutoff: float | None,
    near: float,
    limit: int,
) -> None:
    """Look for duplicates, contradictions, outliers, leakage and gaps in labelled data.

    DATA are files of labels, each a split of its own if there are several; DIR is a campaign, whose
    rows and files are checked too. Exits 0 without errors, 1 with errors, 2 for what cannot be read.
    """
    from hpcal.cli import integrity

    options = integrity.read_options(level, charge, multiplicity)
    code = integrity.check(what, as_json=as_json, options=options, cutoff=cutoff, near=near, limit=limit)
    click.get_current_context().exit(code)


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


CAMPAIGN_COMMANDS: Final = (
    init,
    run,
    resume,
    extend,
    migrate,
    submit,
    stop,
    clean,
    status,
    plan,
    trace,
    why,
    report,
    export,
    check,
    config,
)

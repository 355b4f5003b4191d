"""Commands on files without a campaign, one stage each: their arguments and help."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from hpcal.cli.campaign_commands import FILE, json_option

model_option = click.option(
    "--model", required=True, metavar="MODEL", help="Folder of an ensemble, DIR@GENERATION or DIR@latest."
)

threads_option = click.option(
    "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Threads to use."
)


@click.command(short_help="Errors of an ensemble on labelled data.")
@click.argument("model")
@click.argument("data", type=FILE)
@click.option("--split", "splits", multiple=True, metavar="SPLIT", help="Only this split; may be repeated.")
@json_option
def evaluate(model: str, data: Path, splits: tuple[str, ...], as_json: bool) -> None:
    """Print the errors of MODEL on labelled DATA (.extxyz, .xyz or .h5).

    MODEL is the folder of an ensemble, DIR@GENERATION or DIR@latest.
    """
    from hpcal.cli import evaluate as command

    command.evaluate(model, data, splits=splits, as_json=as_json)


@click.command(short_help="Label the structures of a file.")
@click.argument("file", type=FILE)
@click.argument("out", type=FILE)
@click.option("--config", "settings", required=True, type=FILE, help="YAML file: the block `label`.")
@threads_option
def label(file: Path, out: Path, settings: Path, threads: int) -> None:
    """Label the structures of FILE; what was labelled goes to OUT, all records to JSON beside it.

    The same command goes on where it was interrupted. Exits 0 if any structure was labelled, 1 if
    none was.
    """
    from hpcal.cli import label as command

    command.label(file, out, settings, threads=threads)


@click.command(short_help="Train an ensemble on labelled data.")
@click.argument("data", type=FILE)
@click.argument("out", type=FILE)
@click.option("--config", "settings", required=True, type=FILE, help="YAML file: the block `potential`.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of all draws.")
@threads_option
def train(data: Path, out: Path, settings: Path, seed: int, threads: int) -> None:
    """Train an ensemble on labelled DATA; OUT is its folder.

    Calibration, test and reference structures are left out. Where DATA has no validation split,
    10 % are drawn. The same command goes on where it was interrupted.
    """
    from hpcal.cli import train as command

    command.train(data, out, settings, seed=seed, threads=threads)


@click.command(short_help="Run walkers from the structures of a file.")
@click.argument("seeds", type=FILE)
@click.argument("out", type=FILE)
@model_option
@click.option("--config", "settings", required=True, type=FILE, help="YAML file: one entry of `sampling`.")
def sample(seeds: Path, out: Path, model: str, settings: Path) -> None:
    """Run walkers from the structures of SEEDS to their end; frames that cross go to OUT.

    Besides the sampler's own keys the YAML takes walkers, threshold, metric and seed.
    """
    from hpcal.cli import sample as command

    command.sample(seeds, out, model, settings)


@click.command(short_help="Uncertainties of the structures of a file.")
@click.argument("file", type=FILE)
@click.argument("out", type=FILE)
@model_option
@click.option("--metric", required=True, help="Name of the uncertainty, such as force_std.")
def score(file: Path, out: Path, model: str, metric: str) -> None:
    """Write the uncertainty of each structure of FILE under MODEL to OUT, and to JSON beside it."""
    from hpcal.cli import score as command

    command.score(file, out, model, metric)


FILE_COMMANDS: Final = (evaluate, label, train, sample, score)

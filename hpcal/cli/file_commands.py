"""Commands on files without a campaign, one stage each: their arguments and help."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from hpcal.cli.campaign_commands import FILE, json_option

if TYPE_CHECKING:
    from hpcal.exchange.found import Format

model_option = click.option(
    "--model",
    required=True,
    metavar="MODEL",
    help="Folder of an ensemble, DIR@GENERATION, DIR@latest or DIR@ensemble:ID.",
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
    """Print the errors of MODEL on labelled DATA (.extxyz, .xyz, .h5, .db or a folder of DeePMD).

    MODEL is the folder of an ensemble, the file of one of its members, DIR@GENERATION, DIR@latest,
    DIR@ensemble:ID or DIR@model:ID; in the folder of a campaign ensemble:ID or model:ID will do.
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
@click.option(
    "--mpi",
    is_flag=True,
    help="Run as one of several ranks under mpirun or srun; each reads its own part of FILE, an HDF5 file of "
    "hpcal.",
)
def score(file: Path, out: Path, model: str, metric: str, mpi: bool) -> None:
    """Write the uncertainty of each structure of FILE under MODEL to OUT, and to JSON beside it."""
    from hpcal.cli import score as command

    run = command.score_over_ranks if mpi else command.score
    run(file, out, model, metric)


@click.command("import", short_help="Read data files, check them, and convert or adopt them.")
@click.argument("files", metavar="FILE...", type=FILE, nargs=-1, required=True)
@click.option("--to", "out", metavar="DEST", type=FILE, help="File (.h5, .extxyz) or folder of a campaign.")
@click.option(
    "--format",
    "layout",
    type=click.Choice(["extxyz", "npz", "ani", "spice", "hpcal", "ase", "deepmd"]),
    help="How to read.  [default: by extension and content]",
)
@click.option("--energy-unit", metavar="UNIT", help="eV, Hartree, kcal/mol, kJ/mol, Ry or meV.")
@click.option("--length-unit", metavar="UNIT", help="Å (or angstrom), bohr or nm.")
@click.option("--force-unit", metavar="UNIT", help="Such as Hartree/bohr.  [default: of the two above]")
@click.option("--gradient/--forces", default=None, help="Whether forces are dE/dx or -dE/dx.")
@click.option(
    "--level",
    metavar="TEXT",
    help="Level of theory of the labels: 'CODE VERSION METHOD[/BASIS] [KEY=VALUE ...]', such as "
    "'orca 4.2 PBE/def2-SVP grid=7', or a YAML file with code, version, method and settings.",
)
@click.option("--energy-key", metavar="NAME", help="Name of the energies in the file.")
@click.option("--forces-key", metavar="NAME", help="Name of the forces in the file.")
@click.option("--stress-key", metavar="NAME", help="Name of the stress or virial in extended XYZ.")
@click.option("--charge", type=int, metavar="Q", help="Charge of structures that state none.  [default: 0]")
@click.option(
    "--multiplicity",
    metavar="M",
    help="Multiplicity of structures that state none; `lowest` is 1 or 2, as the electrons ask for.  "
    "[default: 1]",
)
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "calibration", "test", "reference"]),
    help="Split of structures that state none.  [default: train; drawn in a campaign]",
)
@click.option("--labelled-only", is_flag=True, help="Leave structures without a label out.")
@click.option(
    "--accept-unlabelled", is_flag=True, help="Let structures without a label wait for one in a campaign."
)
@click.option(
    "--no-consistency-check",
    "unchecked",
    is_flag=True,
    help="Take energies and forces that contradict each other as they are.",
)
@json_option
def import_(
    *,
    files: tuple[Path, ...],
    out: Path | None,
    level: str | None,
    layout: Format | None,
    multiplicity: str | None,
    split: str | None,
    labelled_only: bool,
    accept_unlabelled: bool,
    unchecked: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Say what data files hold, and convert them (--to data.h5) or adopt them into a campaign (--to DIR).

    Reads extended XYZ, npz (revised MD17, sGDML), HDF5 (ANI, COMP6, SPICE, hpcal's own), databases of
    ASE (.db) and folders of DeePMD. Everything is read and checked whole before anything is written.

    Units that neither the file nor its format states have to be given. Energies of near conformations
    are checked against forces: mixed units, or gradients taken for forces, are an error.
    """
    from hpcal.cli import import_data
    from hpcal.core.walker import Split
    from hpcal.exchange.found import ReadOptions
    from hpcal.exchange.levels import level_given

    options = ReadOptions(
        format=layout,
        level=None if level is None else level_given(level),
        multiplicity=import_data.multiplicity_of(multiplicity),
        split=None if split is None else Split(split),
        **given,
    )
    wishes = import_data.Wishes(
        destination=out,
        check=not unchecked,
        accept_unlabelled=accept_unlabelled,
        labelled_only=labelled_only,
    )
    import_data.import_files(files, options, wishes, as_json=as_json)


FILE_COMMANDS: Final = (import_, evaluate, label, train, sample, score)

"""``hpcal import``: data files, read whole and checked, into a file of hpcal's or a campaign."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import numpy as np

from hpcal.core import elements
from hpcal.core.dataset import Dataset
from hpcal.core.errors import FormatError, InputError
from hpcal.exchange.consistency import CONFIDENCE, Consistency, agrees, consistency, stretched
from hpcal.exchange.extxyz import LabelledFrame, write_labelled, write_structures
from hpcal.exchange.files import read_found, split_of
from hpcal.exchange.found import Found, FoundFrame, Multiplicity, ReadOptions, is_unknown
from hpcal.exchange.hdf5 import write_shard
from hpcal.exchange.quantities import energy_unit
from hpcal.exchange.total_energy import unit_it_looks_like
from hpcal.store import location

if TYPE_CHECKING:
    from hpcal.engine.adopt import ImportResult

_XYZ: Final = (".extxyz", ".xyz")
_HDF5: Final = (".h5", ".hdf5")
_WRITABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_FORMULAS: Final = 4
_NAMED: Final = 6
_DIGITS: Final = 19
"""Of numbers that no longer fit into 64 bits for sure."""
_SAMPLED: Final = 200
"""Labels whose energy is compared with a rough total energy of their atoms."""


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """What is to be done with what is found.

    Attributes:
        destination: file or folder of a campaign; None only says what was found.
        check: whether energies that contradict forces are an error.
        accept_unlabelled: whether structures without a label enter a campaign.
        labelled_only: whether structures without a label are left out.
    """

    destination: Path | None = None
    check: bool = True
    accept_unlabelled: bool = False
    labelled_only: bool = False


def import_files(paths: Sequence[Path], options: ReadOptions, wishes: Wishes, *, as_json: bool) -> None:
    """Reads and checks all files, says what they hold, and only then writes.

    Raises:
        InputError: a file that cannot be used, or a destination that cannot hold what was found.
    """
    found, checks = [], []
    for path in paths:
        item = read_found(path, options)
        if not wishes.accept_unlabelled:
            _check_labels(item)
        item = _with_state_note(item, options)
        checks.append(_checked(item, check=wishes.check))
        if wishes.labelled_only:
            item = replace(item, frames=[frame for frame in item.frames if frame.label is not None])
            if not item.frames:
                raise InputError(f"{path} holds no labelled structure")
        _check_splits(item)
        found.append(item)
    result = _put(found, wishes, paths) if wishes.destination is not None else None
    if as_json:
        files = [_record(item, check) for item, check in zip(found, checks, strict=True)]
        where = None if wishes.destination is None else str(wishes.destination)
        click.echo(json.dumps({"files": files, "destination": where, "imported": result}, indent=1))
        return
    for item, check in zip(found, checks, strict=True):
        click.echo("\n".join(_lines(item, check)))
    if result is not None:
        told = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in result.items())
        click.echo(f"{wishes.destination}: {told}")


def multiplicity_of(text: str | None) -> Multiplicity | None:
    """A multiplicity from the command line. Raises InputError for what is none."""
    if text is None or text == "lowest":
        return "lowest" if text else None
    if text.isascii() and text.isdigit() and 0 < int(text) < 1000:
        return int(text)
    raise InputError(f"--multiplicity {text!r} must be a number from 1, or lowest")


def _checked(found: Found, *, check: bool) -> Consistency:
    judged = consistency(found)
    problem = judged.problem or _unit_problem(found)
    if problem is not None and check:
        size = stretched(found.frames)
        raise FormatError(f"{found.path}: {problem}{f'; {size}' if size else ''}")
    return judged


def _unit_problem(found: Found) -> str | None:
    """Why energies were read in a wrong unit; energies and forces scaled alike still agree."""
    labelled = [
        (f.structure, f.label) for f in found.frames if f.label is not None and not f.structure.periodic
    ]
    chosen = labelled[:: max(1, len(labelled) // _SAMPLED)]
    if not chosen:
        return None
    factor = energy_unit(found.units.energy).factor
    unit = unit_it_looks_like([s.numbers for s, _ in chosen], [label.energy / factor for _, label in chosen])
    # Valence energies in eV can come to all-electron energies in Ry (ethanol by GFN2-xTB does), and codes
    # that count in Ry have pseudopotentials.
    if unit is None or unit.name in (found.units.energy, "Ry"):
        return None
    return (
        f"read in {found.units.energy}, its energies are what total energies of these molecules are in "
        f"{unit.name}: give --energy-unit for the unit of the file, or --no-consistency-check"
    )


def _check_labels(found: Found) -> None:
    """Raises FormatError where no label was found in a file that seems to hold some."""
    if found.unread and not found.counts.energies:
        names = ", ".join(found.unread[:_NAMED])
        raise FormatError(
            f"{found.path}: no labels were found, although it holds {names}: name the energies with "
            "--energy-key (forces with --forces-key), or --accept-unlabelled takes the structures alone"
        )


def _with_state_note(found: Found, options: ReadOptions) -> Found:
    """``lowest`` is a doublet at most, and the ground states of many atoms are higher."""
    atoms = found.counts.isolated_atoms
    if options.multiplicity != "lowest" or not atoms:
        return found
    note = (
        f"--multiplicity lowest applies to single atoms, too ({atoms} here), whose ground state may be "
        "higher, such as 3 of C and O or 4 of N: state theirs in the file"
    )
    return replace(found, notes=(*found.notes, note))


def _check_splits(found: Found) -> None:
    for number, frame in enumerate(found.frames, start=1):
        split_of(frame.info.get("split"), f"{found.path}, frame {number}")


def _put(found: Sequence[Found], wishes: Wishes, paths: Sequence[Path]) -> dict[str, int]:
    out = wishes.destination
    if out is None:
        return {}
    frames = [frame for item in found for frame in item.frames]
    unlabelled = sum(frame.label is None for frame in frames)
    if location.exists(out):
        return _into_campaign(out, found, unlabelled, accept_unlabelled=wishes.accept_unlabelled)
    suffix = out.suffix.lower()
    if suffix not in (*_XYZ, *_HDF5):
        raise InputError(
            f"{out} is neither the folder of a campaign nor a file whose name ends in "
            f"{', '.join((*_XYZ, *_HDF5))}"
        )
    if any(out.exists() and path.exists() and out.samefile(path) for path in paths):
        raise InputError(f"{out} is what is read: give another name to write to")
    if unlabelled and (suffix in _HDF5 or unlabelled < len(frames)):
        holds = "labelled structures only" if suffix in _HDF5 else "either labelled structures or none"
        raise InputError(
            f"{unlabelled} of {len(frames)} structures have no label, and {out.name} can hold {holds}; "
            "--labelled-only leaves them out"
        )
    unknown = {f.label.level for f in frames if f.label is not None and is_unknown(f.label.level)}
    if len(unknown) > 1:
        raise InputError(
            f"{len(unknown)} files do not state their level of theory, and in {out.name} their labels would "
            "seem to be of one: give --level"
        )
    if suffix in _HDF5:
        write_shard(out, dataset_of(frames))
    elif unlabelled:
        write_structures(out, [frame.structure for frame in frames], [_info(frame) for frame in frames])
    else:
        write_labelled(
            out,
            (
                LabelledFrame(structure=frame.structure, label=frame.label, info=_info(frame))
                for frame in frames
                if frame.label is not None
            ),
        )
    return {"labelled": len(frames) - unlabelled, "unlabelled": unlabelled}


def dataset_of(frames: Sequence[FoundFrame]) -> Dataset:
    """Labelled frames as one data set, with what is known of their origin.

    Raises:
        InputError: labels of more than one level of theory.
    """
    labels = [frame.label for frame in frames if frame.label is not None]
    dataset = Dataset.of(
        [frame.structure for frame in frames],
        labels,
        splits=[split_of(frame.info.get("split"), "") for frame in frames],
    )
    if labels and is_unknown(labels[0].level):
        dataset = replace(dataset, level=None)
    infos = [frame.info for frame in frames]
    ids = [_whole(info.get("structure_id")) for info in infos]
    if len({i for i in ids if i is not None}) == len(infos):
        dataset = replace(dataset, ids=np.array(ids, dtype=np.int64))
    generations = [_whole(info.get("generation")) for info in infos]
    if any(g is not None for g in generations):
        dataset = replace(dataset, generations=np.array([-1 if g is None else g for g in generations]))
    uncertainties = np.array([_number(info.get("uncertainty")) for info in infos])
    if not np.isnan(uncertainties).all():
        dataset = replace(dataset, uncertainties=uncertainties)
    if any("origin" in info for info in infos):
        dataset = replace(dataset, origins=np.array([str(info.get("origin", "")) for info in infos]))
    return dataset


def _whole(value: object) -> int | None:
    """A whole number from 0 that a file states, or None."""
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() and len(text) < _DIGITS else None


def _number(value: object) -> float:
    """A finite number that a file states, or NaN."""
    try:
        number = float(str(value))
    except ValueError:
        return float("nan")
    return number if np.isfinite(number) else float("nan")


def _info(frame: FoundFrame) -> dict[str, Any]:
    """What extended XYZ can say besides: words of a plain comment line are no keys."""
    return {k: v for k, v in frame.info.items() if _WRITABLE.fullmatch(k) and "\n" not in str(v)}


def _into_campaign(
    root: Path, found: Sequence[Found], unlabelled: int, *, accept_unlabelled: bool
) -> dict[str, int]:
    if unlabelled and not accept_unlabelled:
        raise InputError(
            f"{unlabelled} structures have no label; --accept-unlabelled lets them wait for one in the "
            "campaign, --labelled-only leaves them out"
        )
    for item in found:
        if any(frame.label is not None and is_unknown(frame.label.level) for frame in item.frames):
            raise InputError(
                f"{item.path} does not state its level of theory, and labels of a campaign must be of one: "
                "give --level, such as --level 'orca 4.2 PBE/def2-SVP'"
            )
    from hpcal.engine.adopt import import_found

    result: ImportResult = import_found(root, found, accept_unlabelled=accept_unlabelled)
    return {
        "labelled": result.labelled,
        "unlabelled": result.unlabelled,
        "duplicates": result.duplicates,
        "other_level": result.other_level,
    }


def _notes(found: Found, check: Consistency) -> list[str]:
    size = stretched(found.frames)
    return [*found.notes, *([size] if size else []), *([check.note] if check.note else [])]


def _levels(found: Found) -> list[str]:
    unknown = any(f.label is not None and is_unknown(f.label.level) for f in found.frames)
    return [*map(str, found.levels), *(["unknown"] if unknown else [])]


def _record(found: Found, check: Consistency) -> dict[str, Any]:
    counts = asdict(found.counts)
    counts["elements"] = [elements.symbol(z) for z in found.counts.elements]
    return {
        "path": str(found.path),
        "format": found.format,
        "counts": counts,
        "units": asdict(found.units),
        "levels": [level.as_dict() for level in found.levels],
        "level_source": found.level_source,
        "consistency": asdict(check),
        "notes": _notes(found, check),
    }


def _lines(found: Found, check: Consistency) -> list[str]:
    counts, units = found.counts, found.units
    formulas = [f"{name} {count}" for name, count in list(counts.formulas.items())[:_FORMULAS]]
    more = len(counts.formulas) - len(formulas)
    others = f" and {more} formulas more" if more else ""
    rows = {
        "structures": f"{counts.structures} ({', '.join(formulas)}{others})",
        "elements": ", ".join(elements.symbol(z) for z in counts.elements),
        "special": f"{counts.periodic} periodic, {counts.isolated_atoms} isolated atoms",
        "labels": f"{counts.energies} with energy, {counts.forces} with forces, {counts.stresses} with "
        f"stress, {counts.charges} with charges",
    }
    if counts.splits:
        rows["splits"] = ", ".join(f"{name} {count}" for name, count in counts.splits.items())
    if counts.energies:
        turned = ", gradients whose sign was turned" if units.gradient else ""
        rows["units"] = f"{units.energy}, {units.length}, {units.force}{turned} ({units.source})"
        levels = _levels(found)
        source = "" if levels == ["unknown"] else f" ({found.level_source})"
        rows["level"] = ", ".join(levels) + source
        rows["check"] = _told(check)
    width = max(map(len, rows))
    lines = [f"  {name:<{width}}  {text}" for name, text in rows.items()]
    return [f"{found.path}: {found.format}", *lines, *(f"  note: {note}" for note in _notes(found, check))]


def _told(check: Consistency) -> str:
    if check.interval is None or check.ratio is None:
        return f"{check.pairs} pairs of near conformations, too few"
    low, high = check.interval
    if agrees(check.interval):
        verdict = "energies and forces agree"
    elif check.problem:
        verdict = "energies and forces do not agree"
    else:
        verdict = f"whether energies and forces agree cannot be told (interval {low:.3g} to {high:.3g})"
    return (
        f"{verdict}: ratio {check.ratio:.3g} ({low:.3g} to {high:.3g} at "
        f"{CONFIDENCE:.2%}) over {check.pairs} pairs"
    )

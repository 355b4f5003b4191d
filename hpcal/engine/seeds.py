"""Where a campaign starts from: its seeds, labels that are there already, its reference set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from hpcal.core.errors import ConfigurationError
from hpcal.core.geometries import Geometries
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure
from hpcal.core.walker import Split
from hpcal.engine.campaign import CampaignSpec
from hpcal.engine.streams import stream
from hpcal.engine.taken import Given, Taken, different_level, take_labels
from hpcal.exchange.files import read_labelled, read_structures
from hpcal.sampling.conformers import ConformerSettings, enumerate_conformers

_UNSTATED: Final = "file"
"""Code of a level of theory that a file does not state as a record."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """What is there before the first calculation.

    Attributes:
        seeds: geometries to relax, or to start from as they are.
        given: labelled structures to learn from, each structure once.
        reference: labelled structures that every ensemble is evaluated on and none learns from.
        taken: what came from other campaigns, one entry each.
        notes: what a person would want to know of them.
    """

    seeds: tuple[Structure, ...]
    given: tuple[Given, ...]
    reference: tuple[tuple[Structure, Label], ...]
    taken: tuple[Taken, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def structures(self) -> list[Structure]:
        """All structures, in the order of the attributes."""
        return [*self.seeds, *(g.structure for g in self.given), *(s for s, _ in self.reference)]

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that occur, ascending."""
        return tuple(sorted({int(z) for s in self.structures for z in s.numbers}))


def load_start(spec: CampaignSpec, level: LevelOfTheory) -> Start:
    """Reads and makes what a campaign starts from.

    Raises:
        InputError: a file that cannot be read whole, a SMILES that does not parse, another campaign
            that is not there, or given labels of another level of theory.
    """
    reference = read_labelled(spec.reference) if spec.reference is not None else []
    reference = _at_level(reference, level, "evaluate.reference")
    given: list[Given] = []
    taken: list[Taken] = []
    for index, block in enumerate(spec.bootstrap):
        key = f"bootstrap.{index}"
        if block.file is not None:
            found = _at_level(read_labelled(block.file), level, f"{key}.file")
            given += [Given(structure=s, label=label) for s, label in found]
        elif block.campaign is not None:
            labels, source = take_labels(block.campaign, level, f"{key}.campaign")
            given += labels
            taken.append(source)
    kept, notes = distinct(given, [s for s, _ in reference])
    seeds, made = _seeds(spec)
    if not spec.relaxes:
        seeds, kept = _labelled_seeds(seeds, kept)
    return Start(
        seeds=tuple(seeds),
        given=tuple(kept),
        reference=tuple(reference),
        taken=tuple(taken),
        notes=(*made, *(source.sentence for source in taken), *notes),
    )


def distinct(given: Iterable[Given], reference: Sequence[Structure]) -> tuple[list[Given], list[str]]:
    """Each geometry once, and none of the reference set; with a sentence on what was left out.

    Of several labels of one structure the first one counts. A structure that is an audit frame
    anywhere is one everywhere: a label that audits never trains.
    """
    evaluates: Geometries[bool] = Geometries()
    for structure in reference:
        evaluates.add(structure, True)
    places: Geometries[int] = Geometries()
    kept: list[Given] = []
    twice = judged = 0
    for item in given:
        if evaluates.find(item.structure):
            judged += 1
        elif found := places.find(item.structure):
            twice += 1
            if item.split is not None and item.split.audit:
                kept[found[0]] = replace(kept[found[0]], split=item.split)
        else:
            places.add(item.structure, len(kept))
            kept.append(item)
    notes = []
    if twice:
        notes.append(
            f"{twice} of {len(kept) + twice} given labels are of structures given before: "
            "the first one counts"
        )
    if judged:
        notes.append(f"{judged} given labels are left out: their structures are in the reference set")
    return kept, notes


def _labelled_seeds(
    seeds: Sequence[Structure], given: Sequence[Given]
) -> tuple[list[Structure], list[Given]]:
    """Seeds that have a label already are started from, and not labelled again."""
    started: Geometries[bool] = Geometries()
    for seed in seeds:
        started.add(seed, True)
    known: Geometries[bool] = Geometries()
    marked = []
    for item in given:
        known.add(item.structure, True)
        audits = item.split is not None and item.split.audit
        begins = bool(started.find(item.structure)) and not audits
        marked.append(replace(item, origin="given", split=item.split or Split.TRAIN) if begins else item)
    fresh: list[Structure] = []
    for seed in seeds:
        if not known.find(seed):
            known.add(seed, True)
            fresh.append(seed)
    return fresh, marked


def _seeds(spec: CampaignSpec) -> tuple[list[Structure], list[str]]:
    block = spec.file.structures
    if block.file is not None:
        factor = None if spec.label.checks.overlap == "allow" else spec.label.checks.min_distance_factor
        return read_structures(spec.folder / block.file, factor), []
    smiles = [block.smiles] if isinstance(block.smiles, str) else list(block.smiles or ())
    settings = ConformerSettings(max_conformers=block.max_conformers)
    seeds: list[Structure] = []
    notes = []
    for index, text in enumerate(smiles):
        found = enumerate_conformers(text, settings, stream(spec.seed, "conformers", index))
        seeds += found.structures
        notes.append(f"{text}: {len(found.structures)} starting geometries over all torsions")
    return seeds, notes


def _at_level(
    items: Sequence[tuple[Structure, Label]], level: LevelOfTheory, key: str
) -> list[tuple[Structure, Label]]:
    """Labels whose file does not state a level count as the campaign's; a stated one must agree."""
    for stated in {label.level for _, label in items}:
        if stated.code != _UNSTATED and stated != level:
            raise ConfigurationError(f"{key}: its labels are {different_level(stated, level)}")
    return [(structure, replace(label, level=level)) for structure, label in items]

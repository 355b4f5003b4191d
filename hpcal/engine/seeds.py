"""Where a campaign starts from: seeds of the campaign file, its given labels, its reference set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hpcal.core.errors import ConfigurationError
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure
from hpcal.engine.campaign import CampaignSpec
from hpcal.engine.streams import stream
from hpcal.exchange.files import read_labelled, read_structures
from hpcal.sampling.conformers import ConformerSettings, enumerate_conformers


@dataclass(frozen=True, kw_only=True)
class Start:
    """What is there before the first calculation.

    Attributes:
        seeds: geometries to relax, or to start from as they are.
        given: labelled structures to learn from.
        reference: labelled structures that every ensemble is evaluated on and none learns from.
        notes: what a person would want to know of them.
    """

    seeds: tuple[Structure, ...]
    given: tuple[tuple[Structure, Label], ...]
    reference: tuple[tuple[Structure, Label], ...]
    notes: tuple[str, ...] = ()

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers that occur, ascending."""
        every = [*self.seeds, *(s for s, _ in self.given), *(s for s, _ in self.reference)]
        return tuple(sorted({int(z) for s in every for z in s.numbers}))


def load_start(spec: CampaignSpec, level: LevelOfTheory) -> Start:
    """Reads and makes what a campaign starts from.

    Raises:
        InputError: a file that cannot be read whole, a SMILES that does not parse, or given labels
            of another level of theory.
    """
    given = [item for block in spec.bootstrap if block.file is not None for item in read_labelled(block.file)]
    reference = read_labelled(spec.reference) if spec.reference is not None else []
    seeds, notes = _seeds(spec)
    return Start(
        seeds=tuple(seeds),
        given=tuple(_at_level(given, level, "bootstrap")),
        reference=tuple(_at_level(reference, level, "evaluate.reference")),
        notes=tuple(notes),
    )


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
    for _, label in items:
        stated = label.level
        if stated.code != "file" and (stated.code, stated.method) != (level.code, level.method):
            raise ConfigurationError(
                f"{key}: its labels are {stated}, those of the campaign {level}; two levels of theory "
                "are never mixed in one target"
            )
    return [(structure, replace(label, level=level)) for structure, label in items]

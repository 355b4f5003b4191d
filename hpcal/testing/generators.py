"""What every generator promises, see ``hpcal.core.protocols.Generator``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcal.core.plugins import Group
from hpcal.core.protocols import ForceFunction
from hpcal.core.settings import Settings
from hpcal.core.structure import Structure
from hpcal.testing.conformance import Subject, other_global_state
from hpcal.testing.geometry import closest_contact, same_atoms
from hpcal.testing.parts import Part, part_of


def check_generator(
    generator: type | str,
    settings: Settings | Mapping[str, Any] | None,
    seed_structure: Structure,
    forces: ForceFunction,
    *,
    count: int = 6,
    min_distance_factor: float = 0.5,
    seed: int = 0,
) -> None:
    """Checks the promises of a generator of structures.

    As many structures as asked for, of the same atoms, charge and multiplicity as the seed,
    all different, none with overlapping atoms; the same random numbers give the same structures to
    the bit, others give others.

    Args:
        generator: a short name or class.
        settings: a block of its settings, or None for the defaults.
        seed_structure: a minimum of ``forces``, where the generator needs one.
        forces: energy (eV) and forces (eV/Å).
        count: structures to ask for.
        min_distance_factor: closest distance in sums of covalent radii.
        seed: of the random numbers.

    Raises:
        ConformanceError: the first promise that is broken.
    """
    part = part_of(Group.SAMPLERS, generator, settings)
    check = _GeneratorCheck(part=part, seed_structure=seed_structure, forces=forces)
    check.description()
    with other_global_state(1):
        made = check.generate(count, seed)
    check.structures(made, count, min_distance_factor)
    with other_global_state(2):
        again = check.generate(count, seed)
    check.repeats(made, again, check.generate(count, seed + 1))
    check.structures(check.generate(1, seed), 1, min_distance_factor)


@dataclass(frozen=True, kw_only=True)
class _GeneratorCheck:
    part: Part
    seed_structure: Structure
    forces: ForceFunction

    @property
    def subject(self) -> Subject:
        return self.part.subject

    def description(self) -> None:
        """What the class says of itself."""
        stage, needs = getattr(self.part.cls, "stage", None), getattr(self.part.cls, "needs_minimum", None)
        self.subject.promises("a generator has stage 'bootstrap'", stage == "bootstrap", repr(stage))
        self.subject.promises("needs_minimum is True or False", isinstance(needs, bool), repr(needs))

    def generate(self, count: int, seed: int) -> Sequence[Structure]:
        """Structures of a new generator."""
        before = self.seed_structure.positions.tobytes()
        rng = np.random.default_rng(seed)
        made: Sequence[Structure] = self.part.build().generate(self.seed_structure, count, self.forces, rng)
        self.subject.promises(
            "the seed is not written to",
            self.seed_structure.positions.tobytes() == before,
            "its positions have changed",
        )
        return made

    def structures(self, made: Sequence[Structure], count: int, min_distance_factor: float) -> None:
        """Number, atoms, differences and distances."""
        promises, seed = self.subject.promises, self.seed_structure
        promises("as many structures as asked for", len(made) == count, f"{len(made)}, asked for {count}")
        for structure in made:
            promises(
                "structures have the atoms, charge and multiplicity of the seed",
                same_atoms(structure, seed),
                f"{structure.formula}, charge {structure.charge}, multiplicity {structure.multiplicity}",
            )
            closest = closest_contact(structure) if len(structure) > 1 else np.inf
            promises(
                "no atoms overlap",
                closest >= min_distance_factor,
                f"two at {closest:.3f} of the sum of their covalent radii, smallest allowed "
                f"{min_distance_factor:g}",
            )
        promises(
            "structures differ from each other and from the seed",
            len({seed.content_hash} | {s.content_hash for s in made}) == count + 1,
            "some are the same",
        )

    def repeats(
        self, first: Sequence[Structure], again: Sequence[Structure], other: Sequence[Structure]
    ) -> None:
        """Random numbers decide, and nothing else."""
        hashes, repeated = [s.content_hash for s in first], [s.content_hash for s in again]
        moved = sum(a != b for a, b in zip(hashes, repeated, strict=True))
        self.subject.promises(
            "the same random numbers give the same structures",
            moved == 0,
            f"{moved} of {len(hashes)} differ; tolerance: none, bit for bit",
        )
        self.subject.promises(
            "other random numbers give other structures",
            hashes != [s.content_hash for s in other],
            "the same ones",
        )

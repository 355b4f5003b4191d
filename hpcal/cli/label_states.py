"""Frames in several electronic states, for ``hpcal label``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hpcal.core.label import Label, LevelOfTheory, Rejection
from hpcal.core.structure import Structure
from hpcal.engine.pairing import check_policy
from hpcal.engine.states import Outcome, StatesSettings, compare, expanded


@dataclass(frozen=True, kw_only=True)
class Item:
    """What is to be labelled: a frame of the file, in one of its states.

    Attributes:
        frame: number in the file, from 1.
    """

    frame: int
    structure: Structure

    @property
    def hash(self) -> str:
        """Content hash of the structure."""
        return self.structure.content_hash


def items_of(
    policy: StatesSettings | None, structures: Sequence[Structure], level: LevelOfTheory
) -> list[Item]:
    """Every frame in each of its states, its own first.

    Raises:
        ConfigurationError: the policy does not fit one of them.
    """
    if policy is not None:
        check_policy(policy, structures, level)
    return [Item(frame=place + 1, structure=s) for place, s in expanded(policy, structures)]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What comes of comparing multiplicities, by content hash.

    Attributes:
        not_kept: labels that are not the lowest, or not known to be, with a sentence.
        held: labels of which that is open, as another multiplicity has no result yet.
    """

    not_kept: Mapping[str, str]
    held: frozenset[str]


def compared(
    policy: StatesSettings | None, items: Sequence[Item], results: Mapping[str, Label | Rejection]
) -> Compared:
    """Compares the multiplicities of each frame and charge, if only the lowest is kept."""
    groups: dict[tuple[int, int], list[Item]] = defaultdict(list)
    if policy is not None and policy.keep == "lowest":
        for item in items:
            groups[item.frame, item.structure.charge].append(item)
    not_kept: dict[str, str] = {}
    held: set[str] = set()
    for (frame, charge), group in groups.items():
        if any(item.hash not in results for item in group):
            held |= {item.hash for item in group if isinstance(results.get(item.hash), Label)}
            continue
        lowest, sentences = compare(charge, [_outcome(frame, item, results[item.hash]) for item in group])
        not_kept |= {
            item.hash: sentence
            for place, (item, sentence) in enumerate(zip(group, sentences, strict=True))
            if place != lowest and isinstance(results[item.hash], Label)
        }
    return Compared(not_kept=not_kept, held=frozenset(held))


def _outcome(frame: int, item: Item, result: Label | Rejection) -> Outcome:
    multiplicity = item.structure.multiplicity
    if isinstance(result, Label):
        return Outcome(name=f"frame {frame}", multiplicity=multiplicity, energy=result.energy)
    problem = f"rejected: {result.message}"
    return Outcome(name=f"frame {frame}", multiplicity=multiplicity, energy=None, problem=problem)

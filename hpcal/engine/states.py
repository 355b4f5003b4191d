"""Several electronic states of one geometry: which of them are labelled, and which are learned from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator

from hpcal.core.settings import Settings
from hpcal.core.structure import Structure


class StatesSettings(Settings):
    """The block ``label.states`` of a campaign."""

    charges: tuple[int, ...] = Field(
        (0,),
        min_length=1,
        description="total charges that are labelled, relative to the structure's own, which is 0; "
        "[-1, 0, 1] is the anion, the structure as given and the cation",
    )
    multiplicities: Literal["lowest"] | tuple[PositiveInt, ...] = Field(
        "lowest",
        description="multiplicities of each charge: the lowest that its electrons allow (the structure's own "
        "charge keeps the structure's multiplicity), or those of a list that its electrons allow",
    )
    keep: Literal["all", "lowest"] = Field(
        "all",
        description="learn from every state, or for each charge only from the multiplicity that was found "
        "lowest in energy",
    )

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        listed = self.multiplicities != "lowest"
        if len(set(self.charges)) < len(self.charges):
            raise ValueError("charges: one of them stands there twice")
        if 0 not in self.charges:
            raise ValueError("charges: 0, the structure's own charge, is always labelled; add it")
        if listed and len(set(self.multiplicities)) < max(1, len(self.multiplicities)):
            raise ValueError("multiplicities: give at least one, and none twice")
        if not listed and self.charges == (0,):
            raise ValueError(
                "they name no second state; give charges, such as [-1, 0, 1], or multiplicities, such as "
                "[1, 3]"
            )
        if self.keep == "lowest" and len(self.multiplicities if listed else ()) < 2:
            raise ValueError(
                "keep: lowest chooses between multiplicities; give several, such as multiplicities: [1, 3]"
            )
        return self


@dataclass(frozen=True, kw_only=True, order=True)
class State:
    """An electronic state: total charge, e, and multiplicity 2S + 1."""

    charge: int
    multiplicity: int

    @classmethod
    def of(cls, structure: Structure) -> State:
        """The state of a structure."""
        return cls(charge=structure.charge, multiplicity=structure.multiplicity)

    def __str__(self) -> str:
        return f"charge {self.charge} multiplicity {self.multiplicity}"


def states_of(policy: StatesSettings, structure: Structure, base: State | None = None) -> list[State]:
    """The states of a geometry under a policy, ascending.

    A charge that leaves no electron has none, and of listed multiplicities those count that the
    electrons of a charge allow. The base is always among them.

    Args:
        base: what charges are relative to; the structure's own state if None.
    """
    base = base or State.of(structure)
    protons = int(structure.numbers.sum())
    found = {base}
    for charge in (base.charge + step for step in policy.charges):
        if policy.multiplicities != "lowest":
            chosen = [m for m in policy.multiplicities if _fits(protons - charge, m)]
        elif charge == base.charge:
            chosen = []
        else:
            chosen = [1 + (protons - charge) % 2]
        found |= {State(charge=charge, multiplicity=m) for m in chosen if protons > charge}
    return sorted(found)


def learned_of(policy: StatesSettings, structure: Structure) -> list[str]:
    """What a potential has to tell apart in one geometry: states, or charges where one is kept of each."""
    states = states_of(policy, structure)
    if policy.keep == "lowest":
        return [f"charge {charge}" for charge in sorted({state.charge for state in states})]
    return [str(state) for state in states]


def without_multiplicity(policy: StatesSettings, structure: Structure) -> int | None:
    """A charge whose electrons none of the listed multiplicities fits, or None."""
    if policy.multiplicities == "lowest":
        return None
    protons, listed = int(structure.numbers.sum()), policy.multiplicities
    for charge in (structure.charge + step for step in policy.charges if step):
        if protons > charge and not any(_fits(protons - charge, m) for m in listed):
            return charge
    return None


def in_state(structure: Structure, state: State) -> Structure:
    """The geometry of a structure in another state; magnetic moments, a guess for its own, are left out."""
    return replace(structure, charge=state.charge, multiplicity=state.multiplicity, magnetic_moments=None)


def labels_each(policy: StatesSettings | None) -> int:
    """How many labels one geometry takes, at most (an unusual multiplicity of its own aside)."""
    if policy is None:
        return 1
    if policy.multiplicities == "lowest":
        return len(policy.charges)
    listed = policy.multiplicities
    return (
        max(sum((m + step) % 2 == parity for step in policy.charges for m in listed) for parity in (0, 1))
        or 1
    )


def learned_each(policy: StatesSettings | None) -> int:
    """How many of them are learned from, at most."""
    if policy is not None and policy.keep == "lowest":
        return len(policy.charges)
    return labels_each(policy)


def expanded(
    policy: StatesSettings | None, structures: Sequence[Structure]
) -> Iterator[tuple[int, Structure]]:
    """Every structure in each of its states, with its place in ``structures``; its own state first."""
    for place, structure in enumerate(structures):
        yield place, structure
        if policy is not None:
            own = State.of(structure)
            yield from ((place, in_state(structure, s)) for s in states_of(policy, structure) if s != own)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one multiplicity of a geometry and charge.

    Attributes:
        name: what it is called in sentences, such as ``structure 12``.
        energy: eV, or None without a label.
        problem: why there is none.
    """

    name: str
    multiplicity: int
    energy: float | None
    problem: str = ""


def compare(charge: int, outcomes: Sequence[Outcome]) -> tuple[int | None, list[str]]:
    """The place of the lowest multiplicity of a charge, and a sentence on each of them.

    Without a label of every multiplicity it is not known which is the lowest: None.
    """
    missing = next((o for o in outcomes if o.energy is None), None)
    if missing is not None:
        open_ = f"{missing.name}, multiplicity {missing.multiplicity}, has no label ({missing.problem})"
        return None, [
            f"not known to be the lowest at charge {charge}: multiplicity {o.multiplicity} has "
            f"{o.energy:.6f} eV, and {open_}"
            if o.energy is not None
            else open_
            for o in outcomes
        ]
    order = sorted(range(len(outcomes)), key=lambda i: (outcomes[i].energy, outcomes[i].multiplicity))
    energies = ", ".join(
        f"multiplicity {outcomes[i].multiplicity} {outcomes[i].energy:.6f} eV ({outcomes[i].name})"
        for i in order
    )
    words = ["the lowest" if i == order[0] else "not the lowest" for i in range(len(outcomes))]
    return order[0], [f"{word} at charge {charge}: {energies}" for word in words]


def _fits(electrons: int, multiplicity: int) -> bool:
    """Whether so many electrons can have a multiplicity: 2S of their parity, and no more than they are."""
    unpaired = multiplicity - 1
    return (electrons - unpaired) % 2 == 0 and unpaired <= electrons

"""Pair potentials of Morse form: the cheapest ensemble there is, and an analytic teacher.

For atoms i < j of elements a, b at a distance r below the cutoff::

    E = Σ_i e_a(i) + Σ_ij D_ab [(1 - exp(-α_ab (r - r_ab)))² - 1] s(r)

s goes smoothly from 1 to 0 over the last quarter of the cutoff. Morse, Phys. Rev. 1929,
10.1103/PhysRev.34.57.

=======  ======================
symbol   variable
=======  ======================
D        ``well_depth_eV``
α        ``width_per_A``
r_ab     ``distance_A``
e        ``self_energies_eV``
=======  ======================
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from hpcal.core.arrays import FloatArray
from hpcal.core.batch import Batch
from hpcal.core.elements import COVALENT_RADII, atomic_number, symbol
from hpcal.core.errors import FormatError, InputError
from hpcal.core.protocols import Capabilities
from hpcal.core.settings import Settings
from hpcal.potentials import files
from hpcal.potentials.descriptors import species_table
from hpcal.potentials.differentiable import PROVIDES, DifferentiableEnsemble
from hpcal.potentials.neighbors import pairs_within

if TYPE_CHECKING:
    from hpcal.potentials.morse_fit import MorseTrainer

KIND: Final = "morse"
PARAMETERS: Final = ("well_depth_eV", "width_per_A", "distance_A")
_SWITCH: Final = 0.75
"""Share of the cutoff from which pairs fade."""
_BINS: Final = 12
_DTYPES: Final = {"float32": torch.float32, "float64": torch.float64}
_DEPTH_EV, _WIDTH_PER_A, _CUTOFF_A = 4.0, 1.8, 6.0


class MorseSettings(Settings):
    """An ensemble of Morse pair potentials and its fit."""

    members: int = Field(8, ge=1, description="number of members")
    cutoff_A: float = Field(_CUTOFF_A, gt=0, description="pairs further apart do not interact, Å")  # noqa: N815
    steps: int = Field(150, ge=1, description="optimisation steps of a fit from initial parameters")
    warm_steps: int = Field(60, ge=1, description="optimisation steps of a fit from earlier members")
    learning_rate: float = Field(0.05, gt=0, description="highest rate of the optimiser (Adam)")
    bagging: float = Field(0.9, gt=0, le=1, description="share of the training structures a member sees")
    spread: float = Field(0.05, ge=0, description="relative spread of the members' initial parameters")
    energy_weight: float = Field(1.0, ge=0, description="weight of ΔE²/N, 1/eV²")
    force_weight: float = Field(1.0, ge=0, description="weight of the mean ΔF² over atoms, Å²/eV²")


@dataclass(frozen=True, kw_only=True, eq=False)
class MorseMember:
    """One member.

    Attributes:
        elements: atomic numbers, ascending.
        pairs: (E, E, 3) symmetric: well depth eV, width 1/Å, distance Å.
        self_energies: (E,) eV.
        cutoff: Å.
        info: how it was fitted; JSON values.
    """

    elements: tuple[int, ...]
    pairs: FloatArray
    self_energies: FloatArray
    cutoff: float
    info: Mapping[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The bytes of its JSON file."""
        names = [symbol(z) for z in self.elements]
        pairs = {
            f"{names[a]}-{names[b]}": dict(zip(PARAMETERS, map(float, self.pairs[a, b]), strict=True))
            for a, b in itertools.combinations_with_replacement(range(len(names)), 2)
        }
        content = {
            "kind": KIND,
            "cutoff_A": self.cutoff,
            "self_energies_eV": dict(zip(names, map(float, self.self_energies), strict=True)),
            "pairs": pairs,
            "info": dict(self.info),
        }
        return (json.dumps(content, indent=1) + "\n").encode()

    @classmethod
    def read(cls, path: Path) -> MorseMember:
        """Reads the file of a member.

        Raises:
            FormatError: it cannot be read or is no member of this kind.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content["kind"] != KIND:
                raise ValueError(f"it holds {content['kind']!r}, not {KIND!r}")
            energies = content["self_energies_eV"]
            elements = tuple(sorted(atomic_number(name) for name in energies))
            pairs = np.zeros((len(elements), len(elements), len(PARAMETERS)))
            for name, values in content["pairs"].items():
                a, b = (elements.index(atomic_number(part)) for part in name.split("-"))
                pairs[a, b] = pairs[b, a] = [float(values[key]) for key in PARAMETERS]
            constants = np.array([float(energies[symbol(z)]) for z in elements])
            if not (np.isfinite(pairs).all() and (pairs[..., 1:] > 0).all()):
                raise ValueError("parameters are missing, not finite or not positive")
            return cls(
                elements=elements,
                pairs=pairs,
                self_energies=constants,
                cutoff=float(content["cutoff_A"]),
                info=content["info"],
            )
        except OSError as error:
            raise FormatError(f"model file {path} cannot be read: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{path} is no member file of the kind {KIND!r}: {error}") from error


class Morse:
    """The kind ``morse``."""

    Settings: ClassVar[type[Settings]] = MorseSettings

    def __init__(self, settings: MorseSettings) -> None:
        self.settings = settings

    @property
    def n_members(self) -> int:
        """Members of an ensemble of these settings."""
        return self.settings.members

    def capabilities(self) -> Capabilities:
        """Differentiable, periodic, blind to charge and spin, for any element."""
        return Capabilities(differentiable=True, periodic=True, provides=PROVIDES)

    def trainer(self, elements: Sequence[int], seed: int) -> MorseTrainer:
        """A trainer for structures of these elements."""
        from hpcal.potentials.morse_fit import MorseTrainer

        return MorseTrainer(self.settings, elements, seed)

    @classmethod
    def load(cls, members: Sequence[Path], *, device: str = "cpu", dtype: str = "float32") -> MorseEnsemble:
        """The ensemble of member files.

        Raises:
            InputError: no files, or an unknown precision.
            FormatError: a file that is no member, or other elements than the first.
        """
        if not members:
            raise InputError("an ensemble needs at least one member file")
        if dtype not in _DTYPES:
            raise InputError(f"dtype {dtype!r} is not one of {', '.join(_DTYPES)}")
        loaded = [MorseMember.read(Path(path)) for path in members]
        for path, member in zip(members, loaded, strict=True):
            if (member.elements, member.cutoff) != (loaded[0].elements, loaded[0].cutoff):
                raise FormatError(f"{path} has other elements or another cutoff than {members[0]}")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return MorseEnsemble(loaded, device=torch.device(device), dtype=_DTYPES[dtype])

    @classmethod
    def write_member(
        cls,
        path: Path,
        elements: Sequence[int],
        *,
        well_depth_eV: float = _DEPTH_EV,  # noqa: N803 - units are spelled as they are
        width_per_A: float = _WIDTH_PER_A,  # noqa: N803
        cutoff_A: float = _CUTOFF_A,  # noqa: N803
        self_energies_eV: Mapping[int, float] | None = None,  # noqa: N803
        pairs: Mapping[tuple[int, int], tuple[float, float, float]] | None = None,
    ) -> Path:
        """Writes an analytic member, such as a teacher that needs no training.

        Args:
            path: the file, ending in ``.json``.
            elements: atomic numbers.
            well_depth_eV: of all pairs but two hydrogens, which hardly attract each other.
            width_per_A: of all pairs.
            self_energies_eV: constant energy of an atom; 0 where an element is not named.
            pairs: (well depth eV, width 1/Å, distance Å) of single pairs of elements instead.
        """
        numbers = tuple(sorted({int(z) for z in elements}))
        table = initial_pairs(numbers, well_depth_eV, width_per_A)
        for (a, b), values in (pairs or {}).items():
            i, j = numbers.index(a), numbers.index(b)
            table[i, j] = table[j, i] = values
        own = self_energies_eV or {}
        member = MorseMember(
            elements=numbers,
            pairs=table,
            self_energies=np.array([float(own.get(z, 0.0)) for z in numbers]),
            cutoff=float(cutoff_A),
            info={"analytic": True},
        )
        files.write_bytes(Path(path), member.encode())
        return Path(path)


def initial_pairs(
    elements: Sequence[int], well_depth: float = _DEPTH_EV, width: float = _WIDTH_PER_A
) -> FloatArray:
    """(E, E, 3) parameters from covalent radii: bonds at the sum of the radii.

    Two hydrogens of one molecule are not bonded: a shallow well at 1.6 Å.
    """
    table = np.zeros((len(elements), len(elements), len(PARAMETERS)))
    for (i, a), (j, b) in itertools.product(enumerate(elements), repeat=2):
        bond = float(COVALENT_RADII[a] + COVALENT_RADII[b])
        table[i, j] = (0.02 * well_depth, width, 1.6) if a == b == 1 else (well_depth, width, bond)
    return table


def pair_terms(d: Tensor, pairs: Tensor, cutoff: float) -> tuple[Tensor, Tensor]:
    """Energy of pairs, eV, and its derivative by the distance, eV/Å.

    Args:
        d: (P,) Å.
        pairs: (..., P, 3) well depth, width, distance.
    """
    depth, width, distance = pairs.unbind(dim=-1)
    decay = torch.exp(-width * (d - distance))
    bare = depth * ((1.0 - decay) ** 2 - 1.0)
    slope = 2.0 * depth * width * (1.0 - decay) * decay
    start = _SWITCH * cutoff
    u = ((d - start) / (cutoff - start)).clamp(0.0, 1.0)
    switch = 1.0 - u**3 * (10.0 - 15.0 * u + 6.0 * u * u)
    falling = -30.0 * (u * (1.0 - u)) ** 2 / (cutoff - start)
    return bare * switch, slope * switch + bare * falling


class MorseEnsemble(DifferentiableEnsemble):
    """M Morse members; see ``DifferentiablePotential``."""

    def __init__(self, members: Sequence[MorseMember], *, device: torch.device, dtype: torch.dtype) -> None:
        self.elements = members[0].elements
        super().__init__(KIND, frozenset(self.elements), len(members), device, dtype)
        self.cutoff = members[0].cutoff
        self._table = species_table(self.elements, device)
        stacked = np.stack([m.pairs for m in members]).reshape(len(members), -1, len(PARAMETERS))
        self._pairs = torch.tensor(stacked, device=device, dtype=dtype)
        constants = np.stack([m.self_energies for m in members])
        self._constants = torch.tensor(constants[0], device=device)
        self._own = torch.tensor(constants - constants[0], device=device)

    def features(self, batch: Batch) -> Tensor:
        """(B, N, E·12) Gaussian histograms of the distances to atoms of each element, by a cutoff of 4 Å."""
        batch = self._taken(batch)
        reach = min(4.0, self.cutoff)
        with torch.no_grad():
            found = pairs_within(batch, reach)
            d = found.vectors(batch).norm(dim=-1)
            centres = torch.linspace(0.6, reach, _BINS, device=self.device, dtype=self.dtype)
            fade = 0.5 * (1.0 + torch.cos(torch.pi * d / reach))
            smeared = torch.exp(-0.5 * ((d.unsqueeze(1) - centres) / 0.3) ** 2) * fade.unsqueeze(1)
            kind = self._table[batch.numbers].flatten()
            n = len(self.elements)
            out = smeared.new_zeros((batch.numbers.numel() * n, _BINS))
            out.index_add_(0, found.first * n + kind[found.second], smeared)
            out.index_add_(0, found.second * n + kind[found.first], smeared)
            return out.view(*batch.numbers.shape, n * _BINS)

    def _energies(self, batch: Batch) -> Tensor:
        found = pairs_within(batch, self.cutoff)
        d = found.vectors(batch).norm(dim=-1)
        kind = self._table[batch.numbers].flatten()
        types = kind[found.first] * len(self.elements) + kind[found.second]
        terms, _ = pair_terms(d, self._pairs[:, types], self.cutoff)
        total = torch.zeros((self.n_members, len(batch)), dtype=torch.float64, device=self.device)
        return total.index_add(1, found.row, terms.double()) + self._own @ self._counts(batch).T

    def _shift(self, batch: Batch) -> Tensor:
        return self._counts(batch) @ self._constants

    def _counts(self, batch: Batch) -> Tensor:
        places = torch.arange(len(self.elements), device=self.device)
        return (self._table[batch.numbers].unsqueeze(2) == places).sum(dim=1).double()

"""Total charge and unpaired electrons as inputs of the networks of each atom.

The global state of a structure of N atoms is its charge Q and its number of unpaired electrons
U = 2S. Both are shared among the atoms in equal parts, and have a linear part in the constant::

    E = Σ_i [ε(i) + e(x_i, Q/(N s), U/(N s))] + a Q + b U

The inputs are the same for all atoms of a structure, so forces have no term of their own, and twice
a crystal with twice its charge and spin has twice the energy. Networks that share the total among
atoms by learned weights are AIMNet-NSE (Zubatyuk et al., Nat. Commun. 2021,
10.1038/s41467-021-24904-0) and SpookyNet (Unke et al., Nat. Commun. 2021,
10.1038/s41467-021-27504-0).

======  ==================
symbol  variable
======  ==================
a, b    ``energies`` (eV)
s       ``scale``
======  ==================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from hpcal.core.arrays import FloatArray, IntArray
from hpcal.core.batch import Batch
from hpcal.core.dataset import Dataset

COLUMNS: Final = 2
"""Charge and unpaired electrons."""
_WEIGHT: Final = 10.0
"""What an electron moves an input by; all features together have about this spread."""

State = tuple[int, int]
"""Charge in e, and multiplicity."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StateFrame:
    """What the weights of a member that knows charge and spin depend on besides.

    Attributes:
        seen: states that occurred in training, ascending.
        scale: s, from the share that an atom of a typical structure has of one electron.
        energies: (2,) energy of a charge of one e and of an unpaired electron, eV.
    """

    seen: tuple[State, ...]
    scale: float
    energies: FloatArray

    @property
    def known(self) -> tuple[float | None, float | None]:
        """Those of the two energies that training had something to say about."""
        charged = any(charge for charge, _ in self.seen)
        open_shell = any(multiplicity > 1 for _, multiplicity in self.seen)
        a, b = self.energies.tolist()
        return (a if charged else None), (b if open_shell else None)

    def content(self) -> dict[str, Any]:
        """As it stands in a file."""
        return {
            "seen": [list(state) for state in self.seen],
            "scale": self.scale,
            "energies": self.energies,
        }

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> StateFrame:
        """From a file.

        Raises:
            KeyError, TypeError, ValueError: it holds something else.
        """
        energies, scale = content["energies"], float(content["scale"])
        if energies.shape != (COLUMNS,) or not scale > 0.0:
            raise ValueError(f"state energies of shape {energies.shape}, scale {scale}")
        seen = tuple((int(charge), int(multiplicity)) for charge, multiplicity in content["seen"])
        return cls(seen=seen, scale=scale, energies=energies)


def of_dataset(dataset: Dataset) -> IntArray:
    """(n, 2) charge and unpaired electrons of each structure."""
    return np.stack([dataset.charges, dataset.multiplicities - 1], axis=1)


def of_batch(batch: Batch) -> Tensor:
    """(B, 2) charge and unpaired electrons of each structure, float64."""
    return torch.stack([batch.charges, batch.multiplicities - 1], dim=1).double()


def shares(dataset: Dataset, scale: float) -> FloatArray:
    """(n, 2) charge and unpaired electrons of each structure as an atom's input has them."""
    return of_dataset(dataset) / (scale * dataset.sizes[:, None])


def seen(dataset: Dataset, index: IntArray) -> set[State]:
    """States of some structures."""
    pairs = zip(dataset.charges[index].tolist(), dataset.multiplicities[index].tolist(), strict=True)
    return {(int(charge), int(multiplicity)) for charge, multiplicity in pairs}


def scale(sizes: IntArray) -> float:
    """Root of the mean of 1/N² over structures, by the weight of an electron among the inputs.

    Args:
        sizes: (n,) numbers of atoms.
    """
    return float(np.sqrt(np.mean(1.0 / sizes.astype(np.float64) ** 2))) / _WEIGHT

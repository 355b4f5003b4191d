"""ANI: element networks on atomic environment vectors, all members of an ensemble in one pass.

Behler and Parrinello, Phys. Rev. Lett. 2007, 10.1103/PhysRevLett.98.146401;
Smith, Isayev, Roitberg, Chem. Sci. 2017, 10.1039/C6SC05720A.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field

from hpcal.core.errors import FormatError, InputError
from hpcal.core.protocols import Capabilities
from hpcal.core.settings import Settings
from hpcal.potentials.descriptors import AEVSettings
from hpcal.potentials.differentiable import PROVIDES
from hpcal.potentials.ensemble import ANIEnsemble
from hpcal.potentials.member import Member
from hpcal.potentials.networks import Activation
from hpcal.potentials.training import ANITrainer

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


class ANISettings(Settings):
    """An ensemble of ANI networks and its training."""

    members: int = Field(8, ge=1, description="number of members")
    hidden: tuple[int, ...] = Field((48, 32), min_length=1, description="widths of the hidden layers")
    activation: Activation = Field("silu", description="activation between layers")
    aev: AEVSettings = Field(AEVSettings(), description="descriptor")
    epochs: int = Field(80, ge=1, description="epochs of a training from random weights")
    warm_epochs: int = Field(30, ge=1, description="epochs of a training from earlier members")
    learning_rate: float = Field(8e-3, gt=0, description="highest rate of a training from random weights")
    warm_learning_rate: float = Field(6e-3, gt=0, description="highest rate from earlier members")
    final_learning_rate: float = Field(1e-5, gt=0, description="rate at the end of the cosine decay")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps in which the rate rises")
    weight_decay: float = Field(1e-4, ge=0, description="weight decay of AdamW")
    bagging: float = Field(0.9, gt=0, le=1, description="share of the training structures a member sees")
    batch_size: int = Field(16, ge=1, description="structures of one optimisation step")
    energy_weight: float = Field(1.0, ge=0, description="weight of ΔE²/N, 1/eV²")
    force_weight: float = Field(1.0, ge=0, description="weight of the mean ΔF² over atoms, Å²/eV²")
    jacobian_memory_GB: float = Field(  # noqa: N815 - units are spelled as they are
        2.0, ge=0, description="descriptor derivatives are kept if they fit; recomputed otherwise"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where training runs")
    dtype: Literal["float32", "float64"] = Field("float32", description="precision of training")
    charge_aware: bool = Field(
        False, description="whether the networks know the charge and the multiplicity of a structure"
    )
    data_parallel: bool = Field(
        False, description="train on all ranks that the pool's launcher starts, each with a share of the data"
    )


class ANI:
    """The kind ``ani``."""

    Settings: ClassVar[type[Settings]] = ANISettings

    def __init__(self, settings: ANISettings) -> None:
        self.settings = settings

    @property
    def n_members(self) -> int:
        """Members of an ensemble of these settings."""
        return self.settings.members

    def capabilities(self) -> Capabilities:
        """Differentiable, periodic, for any element; blind to charge and spin unless asked for."""
        return Capabilities(
            differentiable=True,
            periodic=True,
            charge_aware=self.settings.charge_aware,
            provides=PROVIDES,
        )

    def trainer(self, elements: Sequence[int], seed: int) -> ANITrainer:
        """A trainer for structures of these elements; the seed orders the batches."""
        return ANITrainer(self.settings, elements, seed)

    @classmethod
    def load(cls, members: Sequence[Path], *, device: str = "cpu", dtype: str = "float32") -> ANIEnsemble:
        """The ensemble of trained member files.

        Raises:
            InputError: no files, an unknown precision, or members of different architectures.
            FormatError: a file that is no member, or is damaged.
        """
        if not members:
            raise InputError("an ensemble needs at least one member file")
        if dtype not in _DTYPES:
            raise InputError(f"dtype {dtype!r} is not one of {', '.join(_DTYPES)}")
        loaded = [Member.read(Path(path)) for path in members]
        for path, member in zip(members, loaded, strict=True):
            if member.frame.architecture != loaded[0].frame.architecture:
                raise FormatError(
                    f"{path} has other elements, descriptors or layers than {members[0]}, or only one of "
                    "them knows charge and spin (charge_aware): members of one ensemble must share these"
                )
        return ANIEnsemble(loaded, device=torch.device(resolve(device)), dtype=_DTYPES[dtype])


def resolve(device: str) -> str:
    """The device that ``auto`` stands for."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"

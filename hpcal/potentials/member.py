"""One member of an ANI ensemble as numpy arrays: everything that its file holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from hpcal.core.arrays import AnyArray, FloatArray
from hpcal.core.errors import FormatError
from hpcal.potentials import files
from hpcal.potentials.descriptors import AEVSettings
from hpcal.potentials.networks import Activation
from hpcal.potentials.states import COLUMNS, StateFrame

KIND: Final = "ani"

Layers = tuple[tuple[AnyArray, AnyArray], ...]
"""Weights (out, in) and biases (out,) of each layer of one element's network."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """What the weights of a member depend on.

    Attributes:
        elements: atomic numbers, in the order of the descriptor.
        trained: those of them that occurred in training.
        aev: parameters of the descriptor.
        hidden: widths of the hidden layers.
        activation: name of the activation.
        centres: (E, F) centre of the descriptor of each element.
        scales: (E,) scale of the descriptor of each element.
        self_energies: (E,) constant energy of an atom of each element, eV.
        state: of networks that know charge and spin, else None.
    """

    elements: tuple[int, ...]
    trained: tuple[int, ...]
    aev: AEVSettings
    hidden: tuple[int, ...]
    activation: Activation
    centres: FloatArray
    scales: FloatArray
    self_energies: FloatArray
    state: StateFrame | None = None

    @property
    def architecture(self) -> tuple[Any, ...]:
        """What members must share to be evaluated together."""
        return self.elements, self.aev, self.hidden, self.activation, self.state is not None

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of all layers, the inputs first."""
        return (self.n_features + (0 if self.state is None else COLUMNS), *self.hidden, 1)

    @property
    def n_features(self) -> int:
        """F; what the networks take besides follows it."""
        return self.aev.length(len(self.elements))

    def input_scales(self, element: int) -> FloatArray:
        """Scale of each input of an element's network."""
        scales = np.full(self.widths[0], self.scales[element])
        if self.state is not None:
            scales[self.n_features :] = self.state.scale
        return scales


@dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """A trained member.

    Attributes:
        frame: elements, descriptor, standardisation, constants.
        networks: layers of the network of each element.
        info: how it was trained; JSON values.
    """

    frame: Frame
    networks: tuple[Layers, ...]
    info: Mapping[str, Any] = field(default_factory=dict)

    def in_frame(self, frame: Frame) -> Member:
        """The same function of geometry with the standardisation and constants of another frame.

        With x̂ = (x - c)/s, W x̂ + b equals W' x̂' + b' for W' = W s'/s and b' = b + W (c' - c)/s.
        The energies of charge and spin are of a structure, not of its atoms: where those of the
        frames differ, charged and open-shell states are moved by the difference.
        """
        own = self.frame
        networks = []
        for e, layers in enumerate(self.networks):
            (weight, bias), rest = layers[0], list(layers[1:])
            wide = weight.astype(np.float64)
            of_features = wide[:, : own.n_features]
            moved = bias + of_features @ ((frame.centres[e] - own.centres[e]) / own.scales[e])
            first = (wide * (frame.input_scales(e) / own.input_scales(e)), moved)
            last_weight, last_bias = rest[-1] if rest else first
            last = (last_weight, last_bias + (own.self_energies[e] - frame.self_energies[e]))
            joined = [first, *rest[:-1], last] if rest else [last]
            networks.append(tuple((w.astype(weight.dtype), b.astype(bias.dtype)) for w, b in joined))
        return replace(self, frame=frame, networks=tuple(networks))

    def encode(self) -> bytes:
        """The bytes of its file."""
        frame = self.frame
        state = {} if frame.state is None else {"state": frame.state.content()}
        return files.encode(
            {
                "kind": KIND,
                "elements": list(frame.elements),
                "trained": list(frame.trained),
                "aev": frame.aev.model_dump(),
                "hidden": list(frame.hidden),
                "activation": frame.activation,
                "centres": frame.centres,
                "scales": frame.scales,
                "self_energies": frame.self_energies,
                **state,
                "networks": [[[w, b] for w, b in layers] for layers in self.networks],
                "info": dict(self.info),
            }
        )

    @classmethod
    def read(cls, path: Path) -> Member:
        """Reads the file of a member.

        Raises:
            FormatError: it is damaged or no member of this kind.
        """
        content = files.read(path, KIND)
        try:
            frame = Frame(
                elements=tuple(content["elements"]),
                trained=tuple(content["trained"]),
                aev=AEVSettings(**content["aev"]),
                hidden=tuple(content["hidden"]),
                activation=content["activation"],
                centres=content["centres"],
                scales=content["scales"],
                self_energies=content["self_energies"],
                state=StateFrame.of(content["state"]) if "state" in content else None,
            )
            networks = tuple(tuple((w, b) for w, b in layers) for layers in content["networks"])
            _check_shapes(frame, networks)
            return cls(frame=frame, networks=networks, info=content["info"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(f"model file {path} is incomplete: {error}") from error


def _check_shapes(frame: Frame, networks: tuple[Layers, ...]) -> None:
    widths = frame.widths
    expected = list(zip(widths[1:], widths[:-1], strict=True))
    if len(networks) != len(frame.elements):
        raise ValueError(f"{len(networks)} networks for {len(frame.elements)} elements")
    for layers in networks:
        found = [tuple(weight.shape) for weight, _ in layers]
        if found != expected or [bias.shape for _, bias in layers] != [(out,) for out, _ in expected]:
            raise ValueError(f"layers have shapes {found}, not {expected}")

"""Element networks of all members of an ensemble, evaluated as one batched product a layer.

For the atoms of one element with standardised descriptors x::

    z_1 = W_1 x + b_1,   z_l = W_l h_(l-1) + b_l,   h_l = a(z_l),   e = w · h_L + b
    ∂e/∂x = W_1ᵀ (a'(z_1) ∘ W_2ᵀ (a'(z_2) ∘ … wᵀ))

The second line, written out, makes a loss on forces differentiable with a single backward pass.
Arrays hold atoms in their last dimension. M members, n atoms, F features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

import numpy as np
import torch
from torch import Tensor

Activation = Literal["celu", "gelu", "silu"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """One affine layer of M members: weights (M, out, in) and biases (M, out)."""

    weight: Tensor
    bias: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """Weights and biases."""
        return self.weight, self.bias


Network = tuple[Layer, ...]
"""Layers of one element, of M members; the last has one output."""


def _celu(z: Tensor) -> tuple[Tensor, Tensor]:
    """CELU with α = 0.1, as in ANI, and its derivative."""
    slope = (z.clamp(max=0.0) * 10.0).exp()
    return z.clamp(min=0.0) + 0.1 * (slope - 1.0), slope


def _gelu(z: Tensor) -> tuple[Tensor, Tensor]:
    """Z Φ(z) and its derivative, Φ the normal distribution function."""
    share = 0.5 * (1.0 + torch.erf(z * math.sqrt(0.5)))
    density = torch.exp(-0.5 * z * z) * (1.0 / math.sqrt(2.0 * math.pi))
    return z * share, share + z * density


def _silu(z: Tensor) -> tuple[Tensor, Tensor]:
    """Z σ(z) and its derivative, σ the logistic function."""
    share = torch.sigmoid(z)
    value = z * share
    return value, share + value * (1.0 - share)


_WITH_SLOPE: Final[dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]]] = {
    "celu": _celu,
    "gelu": _gelu,
    "silu": _silu,
}
_PLAIN: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "celu": lambda z: torch.nn.functional.celu(z, alpha=0.1),
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
}


def atomic_energies(network: Network, x: Tensor, activation: Activation) -> Tensor:
    """(M, n) energies of atoms of one element from their (F, n) descriptors."""
    act = _PLAIN[activation]
    hidden = _first(network[0], x)
    for layer in network[1:]:
        hidden = torch.baddbmm(layer.bias.unsqueeze(2), layer.weight, act(hidden))
    return hidden.squeeze(1)


def energies_and_slopes(network: Network, x: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """(M, n) energies of atoms of one element, and their (M, n, F) derivatives by the descriptors.

    Both are differentiable in the weights.
    """
    act = _WITH_SLOPE[activation]
    hidden, slopes = _first(network[0], x), []
    for layer in network[1:]:
        hidden, slope = act(hidden)
        slopes.append(slope)
        hidden = torch.baddbmm(layer.bias.unsqueeze(2), layer.weight, hidden)
    if not slopes:
        gradient = network[0].weight.expand(-1, x.shape[1], -1)
        return hidden.squeeze(1), gradient
    back = network[-1].weight.transpose(1, 2) * slopes[-1]
    for layer, slope in zip(reversed(network[1:-1]), reversed(slopes[:-1]), strict=True):
        back = torch.bmm(layer.weight.transpose(1, 2), back) * slope
    return hidden.squeeze(1), torch.bmm(back.transpose(1, 2), network[0].weight)


def _first(layer: Layer, x: Tensor) -> Tensor:
    """(M, out, n): the members share the input, so their first layers are one product."""
    members, out, _ = layer.weight.shape
    z = torch.mm(layer.weight.reshape(members * out, -1), x).view(members, out, -1)
    return z + layer.bias.unsqueeze(2)


def initial(
    widths: Sequence[int], rng: np.random.Generator, *, gain: float = 1.0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights and biases of one member and element, drawn uniformly as for linear layers in torch.

    Args:
        widths: features, hidden widths …, 1.
        gain: factor on the bound 1/√fan_in.
    """
    layers = []
    for fan_in, fan_out in pairwise(widths):
        bound = gain / math.sqrt(fan_in)
        weight = rng.uniform(-bound, bound, (fan_out, fan_in))
        layers.append((weight, rng.uniform(-bound, bound, fan_out)))
    return layers


def stacked(members: Sequence[Sequence[tuple[Tensor, Tensor]]]) -> Network:
    """The network of one element from the layers of each member."""
    return tuple(
        Layer(
            weight=torch.stack([weight for weight, _ in layer]).contiguous(),
            bias=torch.stack([bias for _, bias in layer]).contiguous(),
        )
        for layer in zip(*members, strict=True)
    )

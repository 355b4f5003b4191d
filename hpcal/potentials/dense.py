"""AEVs of many copies of one small molecule at once, with a first derivative written out.

Replicas of one molecule, as walkers are, have their atoms in the same order. All pairs and triples
are then known before the geometry is, no lists are built, sums over neighbours become products
with constant 0/1 matrices, and arrays have the replicas as their last, contiguous dimension.
Angles come from distances by the law of cosines, so every quantity is a function of the pair
distances alone and the force is a sum of pair forces.

Terms beyond a cutoff are computed and multiplied by zero, which pays up to ``MAX_ATOMS`` atoms.
Values are those of :class:`~hpcal.potentials.descriptors.Descriptor` to rounding; the order of the
features differs, see :func:`feature_order`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hpcal.potentials.descriptors import AEVSettings

MAX_ATOMS: Final = 16
"""Largest molecule for which this pass is faster than lists of neighbours."""
_TRIPLES_AT_ONCE: Final = 16384
"""Triples whose terms stay in a processor's cache."""
_FLOOR: Final = 1e-6
"""Smallest distance told from zero, Å; atoms this close have no forces worth computing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """What is known of a molecule of n atoms (sorted by element) before its geometry.

    Attributes:
        order: (n,) places of the atoms in the batch, sorted by element.
        counts: atoms of each element, in the order of the elements.
        first, second: (P,) atoms of each pair.
        radial: (E·n, P) 1 where a pair counts for an atom and the element of the other.
        sides: (2, n·T) pairs that are the sides of each triple, by its centre.
        opposite: (n·T,) pair that closes the triple.
        group: (n·T,) centre · G + pair of elements of each triple.
        angular: (n, G, T) 1 where a triple belongs to a pair of elements.
    """

    order: Tensor
    counts: tuple[int, ...]
    first: Tensor
    second: Tensor
    radial: Tensor
    sides: Tensor
    opposite: Tensor
    group: Tensor
    angular: Tensor

    @property
    def n_atoms(self) -> int:
        """Atoms of the molecule."""
        return len(self.order)


def layout(species: Sequence[int], n_elements: int, *, device: torch.device, dtype: torch.dtype) -> Layout:
    """The layout of a molecule with the given elements (places, 0 ≤ place < n_elements)."""
    n = len(species)
    order = sorted(range(n), key=lambda atom: (species[atom], atom))
    kind = [species[atom] for atom in order]
    pairs = list(combinations(range(n), 2))
    place = {pair: p for p, pair in enumerate(pairs)}
    radial = torch.zeros((n_elements, n, len(pairs)))
    for p, (i, j) in enumerate(pairs):
        radial[kind[j], i, p] = radial[kind[i], j, p] = 1.0
    kinds = list(combinations_with_replacement(range(n_elements), 2))
    group_of = {pair: g for g, pair in enumerate(kinds)}
    sides, opposite, group = [], [], []
    angular = torch.zeros((n, len(kinds), (n - 1) * (n - 2) // 2))
    for i in range(n):
        others = [j for j in range(n) if j != i]
        for t, (j, k) in enumerate(combinations(others, 2)):
            # Atoms are sorted by element, so the pairs of elements come sorted too.
            g = group_of[kind[j], kind[k]]
            sides.append((place[min(i, j), max(i, j)], place[min(i, k), max(i, k)]))
            opposite.append(place[j, k])
            group.append(i * len(kinds) + g)
            angular[i, g, t] = 1.0

    def index(values: Sequence[Any]) -> Tensor:
        return torch.tensor(values, device=device, dtype=torch.int64)

    return Layout(
        order=index(order),
        counts=tuple(kind.count(e) for e in range(n_elements)),
        first=index([i for i, _ in pairs]),
        second=index([j for _, j in pairs]),
        radial=radial.view(n_elements * n, len(pairs)).to(device=device, dtype=dtype),
        sides=index(sides).reshape(-1, 2).T.contiguous(),
        opposite=index(opposite),
        group=index(group),
        angular=angular.to(device=device, dtype=dtype),
    )


def feature_order(settings: AEVSettings, n_elements: int) -> Tensor:
    """(F,) where each feature of this module stands in the order of torchani.

    Here the term runs slower than the element or the pair of elements, there it runs faster.
    """
    terms, pairs = settings.angular_count * settings.section_count, n_elements * (n_elements + 1) // 2
    radial = torch.arange(n_elements * settings.radial_count).view(n_elements, settings.radial_count)
    angular = torch.arange(pairs * terms).view(pairs, terms) + radial.numel()
    return torch.cat([radial.T.reshape(-1), angular.T.reshape(-1)])


class DenseAEV:
    """AEVs of copies of one molecule, for a set of parameters."""

    def __init__(
        self, settings: AEVSettings, n_elements: int, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, device=device, dtype=dtype).view(-1, 1, 1)

        self.settings = settings
        self.n_elements = n_elements
        self.radial_shifts = column(settings.radial_shifts)
        self.angular_shifts = column(settings.angular_shifts)
        self.cosines = column([math.cos(z) for z in settings.sections])
        self.sines = column([math.sin(z) for z in settings.sections])

    def __call__(self, positions: Tensor, molecule: Layout) -> Tensor:
        """(F, n, B) AEVs in the feature order of this module.

        Differentiable once.

        Args:
            positions: (B, n, 3) Å, atoms in the order of ``molecule.order``.
        """
        step = max(8, _TRIPLES_AT_ONCE // max(len(molecule.opposite), 1))
        if len(positions) <= step or positions.is_cuda:
            return self._some(positions, molecule)
        return torch.cat([self._some(part, molecule) for part in torch.split(positions, step)], dim=2)

    def _some(self, positions: Tensor, molecule: Layout) -> Tensor:
        aevs: Tensor = _DenseAEV.apply(positions, self, molecule)  # type: ignore[no-untyped-call]
        return aevs

    # The derivative is taken with respect to the pair distances; p is a pair, t a triple, b a copy.

    def radial(self, d: Tensor, molecule: Layout) -> tuple[Tensor, Tensor]:
        """(R, E·n, B) radial AEVs and the (R, P, B) derivative of their terms by the distance."""
        cutoff, slope = _cutoff(d, self.settings.radial_cutoff)
        x = d - self.radial_shifts
        terms = torch.exp(x.square().mul_(-self.settings.radial_eta)).mul_(0.25)
        derivative = x.mul_(-2.0 * self.settings.radial_eta).mul_(cutoff).add_(slope).mul_(terms)
        return torch.matmul(molecule.radial, terms.mul_(cutoff)), derivative

    def angular(self, d: Tensor, molecule: Layout) -> tuple[Tensor, _Triples]:
        """(S·Z, n, G, B) angular AEVs and what the backward pass needs of the triples."""
        copies = d.shape[1]
        cutoff, slope = _cutoff(d, self.settings.angular_cutoff)
        t = _Triples.of(d, cutoff, slope, molecule)
        zeta = self.settings.angular_zeta
        half = (t.cosine * self.cosines).add_(t.sine * self.sines).add_(1.0).mul_(0.5)
        t.angle = _power(half, zeta).mul_(2.0)
        # d/dq of the angular factor, q = cos θ: sin θ is at least 0.31, as |q| ≤ 0.95.
        by_cosine = self.cosines - t.cosine.div(t.sine) * self.sines
        t.angle_slope = by_cosine.mul_(0.5 * zeta).mul_(t.angle).div_(half)
        x = t.mean - self.angular_shifts
        t.shell = torch.exp(x.square().mul_(-self.settings.angular_eta))
        t.shell_slope = x.mul_(-2.0 * self.settings.angular_eta).mul_(t.shell)
        terms = (t.shell * t.weight).unsqueeze(1) * t.angle.unsqueeze(0)
        n, _, per_centre = molecule.angular.shape
        count = len(self.angular_shifts) * len(self.sines)
        return torch.matmul(molecule.angular, terms.view(count, n, per_centre, copies)), t

    def angular_backward(self, gradient: Tensor, t: _Triples, d: Tensor, molecule: Layout) -> Tensor:
        """(P, B) derivative by the distances from the (S·Z, n·G, B) derivative by angular AEVs."""
        shells, sections, copies = len(self.angular_shifts), len(self.sines), d.shape[1]
        by_term = gradient.index_select(1, molecule.group).view(shells, sections, len(molecule.group), copies)
        by_angle = torch.zeros_like(t.angle)
        by_weight = torch.zeros_like(t.weight)
        by_mean = torch.zeros_like(t.weight)
        for s in range(shells):
            by_shell = (by_term[s] * t.angle).sum(dim=0)
            by_weight.addcmul_(t.shell[s], by_shell)
            by_mean.addcmul_(t.shell_slope[s], by_shell)
            by_angle.addcmul_(by_term[s], t.shell[s])
        by_cosine = by_angle.mul_(t.angle_slope).sum(dim=0).mul_(t.weight).mul_(0.95)
        by_mean.mul_(t.weight).mul_(0.5)
        return t.to_distances(by_cosine, by_mean, by_weight, molecule, len(d))


@dataclass(kw_only=True, eq=False)
class _Triples:
    """Quantities of each triple, (n·T, B): sides a and b about the centre, and their angle."""

    a: Tensor
    b: Tensor
    c: Tensor
    cut_a: Tensor
    cut_b: Tensor
    slope_a: Tensor
    slope_b: Tensor
    cosine: Tensor
    sine: Tensor
    mean: Tensor
    weight: Tensor
    angle: Tensor
    angle_slope: Tensor
    shell: Tensor
    shell_slope: Tensor

    @classmethod
    def of(cls, d: Tensor, cutoff: Tensor, slope: Tensor, molecule: Layout) -> _Triples:
        one, two = molecule.sides
        a, b, c = d[one], d[two], d[molecule.opposite]
        cut_a, cut_b = cutoff[one], cutoff[two]
        # 0.95 keeps the arccosine of the published descriptor off its singular ends.
        cosine = (a * a).addcmul_(b, b).addcmul_(c, c, value=-1.0).div_(a * b).mul_(0.5 * 0.95)
        # Between atoms on top of each other the rounded cosine may be anything.
        cosine.clamp_(-0.95, 0.95)
        empty = d.new_empty(0)
        return cls(
            a=a,
            b=b,
            c=c,
            cut_a=cut_a,
            cut_b=cut_b,
            slope_a=slope[one],
            slope_b=slope[two],
            cosine=cosine,
            sine=cosine.square().neg_().add_(1.0).sqrt_(),
            mean=(a + b).mul_(0.5),
            weight=cut_a * cut_b,
            angle=empty,
            angle_slope=empty,
            shell=empty,
            shell_slope=empty,
        )

    def to_distances(
        self, by_cosine: Tensor, by_mean: Tensor, by_weight: Tensor, molecule: Layout, n_pairs: int
    ) -> Tensor:
        """(P, B) chain rule from angle, mean distance and cutoffs to the three sides.

        cos = (a² + b² - c²) / 2ab, so ∂cos/∂a = 1/b - cos/a, ∂cos/∂b = 1/a - cos/b, ∂cos/∂c = -c/ab.
        """
        plain = self.cosine / 0.95
        by_a = (1.0 / self.b - plain / self.a).mul_(by_cosine).add_(by_mean)
        by_a.addcmul_(by_weight * self.cut_b, self.slope_a)
        by_b = (1.0 / self.a - plain / self.b).mul_(by_cosine).add_(by_mean)
        by_b.addcmul_(by_weight * self.cut_a, self.slope_b)
        by_c = (self.c / (self.a * self.b)).mul_(by_cosine).neg_()
        total = by_a.new_zeros((n_pairs, by_a.shape[1]))
        total.index_add_(0, molecule.sides[0], by_a)
        total.index_add_(0, molecule.sides[1], by_b)
        return total.index_add_(0, molecule.opposite, by_c)


class _DenseAEV(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, positions: Tensor, aev: DenseAEV, molecule: Layout) -> Tensor:
        copies, n, _ = positions.shape
        points = positions.permute(2, 1, 0).contiguous()
        vectors = points[:, molecule.first] - points[:, molecule.second]
        d = vectors.square().sum(dim=0).sqrt_().clamp_(min=_FLOOR)
        radial, radial_slope = aev.radial(d, molecule)
        angular, triples = aev.angular(d, molecule)
        terms, _, groups, _ = angular.shape
        rows = radial.shape[0] * aev.n_elements
        out = positions.new_empty((rows + terms * groups, n, copies))
        out[:rows] = radial.view(-1, n, copies)
        out[rows:].view(terms, groups, n, copies).copy_(angular.transpose(1, 2))
        ctx.aev, ctx.molecule, ctx.rows, ctx.kept = aev, molecule, rows, (vectors, d, radial_slope, triples)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        vectors, d, radial_slope, triples = ctx.kept
        molecule = ctx.molecule
        _, n, copies = gradient.shape
        terms = len(radial_slope)
        radial = gradient[: ctx.rows].reshape(terms, -1, copies)
        by_distance = (torch.matmul(molecule.radial.T, radial) * radial_slope).sum(dim=0)
        groups = molecule.angular.shape[1]
        angular = gradient[ctx.rows :].view(-1, groups, n, copies).transpose(1, 2)
        by_distance += ctx.aev.angular_backward(angular.reshape(-1, n * groups, copies), triples, d, molecule)
        by_vector = vectors * (by_distance / d)
        by_point = by_vector.new_zeros((n, 3 * copies))
        flat = by_vector.transpose(0, 1).reshape(-1, 3 * copies)
        by_point.index_add_(0, molecule.first, flat).index_add_(0, molecule.second, flat, alpha=-1)
        return by_point.view(n, 3, copies).permute(2, 0, 1).contiguous(), None, None


def _cutoff(d: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Cosine cutoff function and its derivative, both zero from the radius on."""
    phase = (d * (math.pi / radius)).clamp_(max=math.pi)
    value = torch.cos(phase).add_(1.0).mul_(0.5)
    return value, torch.sin(phase).mul_(-0.5 * math.pi / radius)


def _power(base: Tensor, exponent: float) -> Tensor:
    """Base ** exponent; by squaring where the exponent is a power of two, which is faster."""
    if exponent >= 2 and math.log2(exponent).is_integer():
        power = base.square()
        for _ in range(int(math.log2(exponent)) - 1):
            power.mul_(power)
        return power
    return base.pow(exponent)

"""The checks of metrics find what is wrong with a metric."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from hpcal.testing import ConformanceError, check_metric


class Spread:
    """Largest less smallest energy of the members."""

    requires: ClassVar[frozenset[str]] = frozenset({"energies"})
    unit: ClassVar[str] = "eV"
    floor: ClassVar[float] = 0.01

    def score(self, batch, potential):
        energies = potential.energies(batch)
        return energies.amax(dim=0) - energies.amin(dim=0)


def changed(change):
    class Changed(Spread):
        def score(self, batch, potential):
            return change(super().score(batch, potential), batch, potential)

    return Changed


def described(**attributes):
    return type("Described", (Spread,), attributes)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (changed(lambda v, b, p: v[:, None]), r"shape \(B,\) = \(3,\).*\(3, 1\)"),
        (changed(lambda v, b, p: v.tolist()), "gives a tensor"),
        (changed(lambda v, b, p: v / 0.0), "are finite"),
        (changed(lambda v, b, p: -v), "not negative"),
        (changed(lambda v, b, p: 0.0 * v), "where members disagree"),
        (changed(lambda v, b, p: v / v.max()), "companions in the batch.*tolerance 1e-08 eV"),
        (changed(lambda v, b, p: v + torch.arange(len(v))), "order of a batch"),
        (changed(lambda v, b, p: v / b.numbers.shape[1]), "companions"),
        (changed(lambda v, b, p: v + b.positions[:, 0, 0].abs()), "rotation does not matter"),
        (changed(lambda v, b, p: v + b.positions[:, 0].norm(dim=1)), "translation does not matter"),
        (changed(lambda v, b, p: v + (p.energies(b)[0] - p.energies(b)[1]).abs()), "order of members"),
        (changed(lambda v, b, p: v + 0.1), "zero where all members are the same"),
        (changed(lambda v, b, p: v + p.forces(b).norm()), "asks the potential only.*asks for forces"),
        (changed(lambda v, b, p: v + p.features(b).norm()), "asks the potential only.*asks for features"),
        (described(requires=frozenset({"stress"})), "requires is a frozenset of"),
        (described(unit=" "), "unit is text"),
        (described(floor=-1.0), "floor is a finite number"),
    ],
)
def test_broken_promises(metric, message, ensemble, batch):
    with pytest.raises(ConformanceError, match=message):
        check_metric(metric, ensemble, batch)


def test_padding_that_counts_is_found_without_companions(ensemble, waters):
    """Structures of one size, so that only the added padding can show it."""
    from hpcal.core.batch import Batch

    metric = changed(lambda v, b, p: v / b.numbers.shape[1])
    with pytest.raises(ConformanceError, match="padding does not matter"):
        check_metric(metric, ensemble, Batch.of(waters, dtype=torch.float64))


def test_a_good_metric_passes(ensemble, batch):
    check_metric(Spread, ensemble, batch)
    check_metric(Spread(), ensemble, batch)


def test_what_cannot_show_anything_is_refused(ensemble, batch):
    with pytest.raises(ValueError, match="two or more structures"):
        check_metric(Spread, ensemble, batch.rows(torch.tensor([0])))

"""The checks of generators find what is wrong with a generator."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
from pydantic import Field

from hpcal.core.settings import Settings
from hpcal.core.structure import Structure
from hpcal.testing import ConformanceError, check_generator
from hpcal.testing.geometry import closest_contact


class ShakeSettings(Settings):
    width: float = Field(0.05, description="of the displacement, Å")


class Shake:
    """Displaces all atoms."""

    Settings: ClassVar[type[Settings]] = ShakeSettings
    stage: ClassVar[str] = "bootstrap"
    needs_minimum: ClassVar[bool] = False

    def __init__(self, settings):
        self.settings = settings

    def numbers(self, rng):
        return rng

    def generate(self, seed, count, forces, rng):
        shape = (count, *seed.positions.shape)
        shifts = self.numbers(rng).normal(0, self.settings.width, shape)
        return [seed.with_positions(seed.positions + shift) for shift in shifts]


def changed(change):
    class Changed(Shake):
        def generate(self, seed, count, forces, rng):
            return change(super().generate(seed, count, forces, rng))

    return Changed


class GlobalRandom(Shake):
    def numbers(self, rng):
        return np.random


class FixedSeed(Shake):
    def numbers(self, rng):
        return np.random.default_rng(1)


class OtherStage(Shake):
    stage = "sampling"


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        (changed(lambda made: made[1:]), "as many structures as asked for.*5, asked for 6"),
        (changed(lambda made: [*made[1:], made[1]]), "differ from each other"),
        (changed(lambda made: [replace(s, charge=1) for s in made]), "atoms, charge and multiplicity"),
        (changed(lambda made: [s.with_positions(0.3 * s.positions) for s in made]), "no atoms overlap"),
        (GlobalRandom, "same random numbers give the same.*tolerance: none"),
        (FixedSeed, "other random numbers give other structures"),
        (OtherStage, "stage 'bootstrap'"),
    ],
)
def test_broken_promises(generator, message, waters):
    with pytest.raises(ConformanceError, match=message):
        check_generator(generator, {}, waters[0], lambda s: (0.0, np.zeros((3, 3))))


def test_a_good_generator_passes(waters):
    check_generator(Shake, {}, waters[0], lambda s: (0.0, np.zeros((3, 3))))


def test_images_count_as_contacts():
    """Two helium atoms 2.8 Å apart in a cell of 4 Å along x are 1.2 Å from each other's images."""
    cell = np.diag([4.0, 20.0, 20.0])
    crystal = Structure(numbers=[2, 2], positions=[[0, 0, 0], [2.8, 0, 0]], cell=cell, pbc=(True, True, True))
    radius = 0.28
    assert closest_contact(crystal) == pytest.approx(1.2 / (2 * radius))
    assert closest_contact(replace(crystal, pbc=(False,) * 3)) == pytest.approx(2.8 / (2 * radius))

"""Units and signs are told from energies and forces alone, and real data are never refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from exchange import molecules
from exchange.molecules import NUMBERS, Frames, water

from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure
from hpcal.core.units import BOHR, HARTREE, KCAL_PER_MOL
from hpcal.exchange.consistency import CONFIDENCE, FEWEST, agrees, consistency, median_interval, stretched
from hpcal.exchange.files import read_found
from hpcal.exchange.found import Found, FoundFrame, ReadOptions, UnitsRead

LEVEL = LevelOfTheory(code="a", version="1", method="m")
EV = UnitsRead(energy="eV", length="Å", force="eV/Å", source="known of the format")


def found(frames: Frames, *, energy: float = 1.0, force: float = 1.0, units: UnitsRead = EV) -> Found:
    items = [
        FoundFrame(
            structure=Structure(numbers=NUMBERS, positions=x),
            label=Label(energy=energy * e, forces=force * f, level=LEVEL),
        )
        for x, e, f in zip(frames.positions, frames.energies, frames.forces, strict=True)
    ]
    return Found(path=Path("a"), format="extxyz", frames=items, units=units, level_source="unknown")


WATERS = water(120, scale=0.06)


def test_a_consistent_file_has_a_ratio_near_one() -> None:
    judged = consistency(found(WATERS))
    assert judged.pairs >= 40
    assert judged.ratio == pytest.approx(1.0, abs=0.03)
    assert judged.interval[0] <= judged.ratio <= judged.interval[1]
    assert (judged.problem, judged.note) == (None, None)


@pytest.mark.parametrize(
    ("energy", "force", "words"),
    [
        (1.0, -1.0, "gradients, not forces: give --gradient"),
        (1.0, 1.0 / KCAL_PER_MOL, "--force-unit kcal/mol/Å (instead of eV/Å)"),
        (1.0, KCAL_PER_MOL, "--energy-unit kcal/mol (instead of eV)"),
        (1.0, 1.0 / HARTREE, "--force-unit Hartree/Å (instead of eV/Å)"),
        (1.0 / HARTREE, 1.0, "--energy-unit Hartree (instead of eV)"),
        (1.0, BOHR, "--force-unit eV/bohr (instead of eV/Å)"),
        (1.0, BOHR / HARTREE, "--force-unit Hartree/bohr (instead of eV/Å)"),
        (4.184 / KCAL_PER_MOL, 1.0, "--energy-unit kJ/mol (instead of eV)"),
    ],
)
def test_mixed_units_and_signs_are_named(energy: float, force: float, words: str) -> None:
    judged = consistency(found(WATERS, energy=energy, force=force))
    assert judged.problem is not None
    assert words in judged.problem
    assert "--no-consistency-check" in judged.problem
    assert "\n" not in judged.problem


def test_forces_read_as_gradients_are_named() -> None:
    judged = consistency(found(WATERS, force=-1.0, units=replace(EV, gradient=True)))
    assert "give --forces" in judged.problem


def test_too_few_pairs_judge_nothing() -> None:
    few = consistency(found(water(2 * FEWEST - 1, scale=0.06), force=-1.0))
    assert few.pairs < FEWEST
    assert (few.interval, few.problem) == (None, None)
    far = consistency(found(water(60, scale=1.5), force=-1.0))
    assert far.problem is None


def test_energies_that_forces_do_not_explain_are_not_refused() -> None:
    rng = np.random.default_rng(3)
    shuffled = replace(WATERS, energies=WATERS.energies + rng.normal(scale=3.0, size=len(WATERS)))
    assert consistency(found(shuffled)).problem is None


def test_pairs_are_of_one_molecule_in_one_order() -> None:
    """Two molecules whose energies differ by far: mixing them would be noticed."""
    shifted = replace(WATERS, energies=WATERS.energies + 500.0)
    other = [
        replace(frame, structure=replace(frame.structure, numbers=np.array([1, 8, 1])))
        for frame in found(shifted).frames
    ]
    both = replace(
        found(WATERS), frames=[f for pair in zip(found(WATERS).frames, other, strict=True) for f in pair]
    )
    judged = consistency(both)
    assert judged.ratio == pytest.approx(1.0, abs=0.03)
    assert judged.pairs >= 80


def test_periodic_displacements_are_the_shortest() -> None:
    """An atom that leaves a cell on one side and comes back on the other has not moved far."""
    rng = np.random.default_rng(4)
    cell = np.diag([6.0, 6.0, 6.0])
    steps = rng.normal(scale=0.05, size=(80, 2, 3))
    rest = np.array([[0.0, 0.0, 0.0], [3.0, 3.0, 3.0]])
    items = [
        FoundFrame(
            structure=Structure(
                numbers=np.array([14, 14]), positions=(rest + s) % 6.0, cell=cell, pbc=(True, True, True)
            ),
            # Two oscillators about the middle of each other's cell: E = ½ k |s₂ − s₁|².
            label=Label(
                energy=2.5 * float(((s[1] - s[0]) ** 2).sum()),
                forces=5.0 * np.array([s[1] - s[0], s[0] - s[1]]),
                level=LEVEL,
            ),
        )
        for s in steps
    ]
    judged = consistency(replace(found(WATERS), frames=items))
    assert judged.pairs >= FEWEST
    assert judged.ratio == pytest.approx(1.0, abs=1e-6)


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    """Of 4000 samples of 21 skewed values at most 4 miss at 99.99 %: chance of more below 1e-3."""
    rng = np.random.default_rng(5)
    misses = 0
    for _ in range(4000):
        low, high = median_interval(rng.exponential(size=21))
        misses += not low <= np.log(2.0) <= high
    assert CONFIDENCE == 0.9999
    assert misses <= 4
    values = np.arange(15.0)
    assert median_interval(values) == (0.0, 14.0)
    with pytest.raises(ValueError, match="too few"):
        median_interval(values[1:])


@pytest.mark.parametrize(
    ("factor", "words"), [(1 / BOHR, "in bohr"), (BOHR, "Å taken for bohr"), (1.0, None)]
)
def test_lengths_between_angstrom_and_bohr_are_noticed(factor: float, words: str | None) -> None:
    told = stretched(found(replace(WATERS, positions=WATERS.positions * factor)).frames)
    assert told is None if words is None else words in told


# ── Published data ───────────────────────────────────────────────────────────────────────────

PUBLISHED = {
    "rmd17/rmd17_ethanol_train_01.npz": (1000, 150),
    "rmd17/rmd17_ethanol_test_01.npz": (1000, 150),
    "s66x8/s66x8_wb97x6-31gd.h5": (528, 120),
    "ethanol_botnet/train.xyz": (1000, 150),
    "ethanol_botnet/test_MD.xyz": (1000, 150),
    "ethanol_botnet/train_eth_meth.xyz": (1300, 200),
    "ethanol_botnet/test_eth_meth.xyz": (1145, 150),
    "ethanol_botnet/test_H_removal.xyz": (60, 0),
    "ethanol_botnet/test_dimers.xyz": (429, 0),
    "ethanol_botnet/isolated_atoms.xyz": (4, 0),
    "zuo2020/Cu_train.xyz": (262, 0),
    "zuo2020/Cu_test.xyz": (31, 0),
    "zuo2020/Si_train.xyz": (214, 0),
    "zuo2020/Si_test.xyz": (25, 0),
}


def published(name: str, **options: object) -> Found:
    path = molecules.SHARED / name
    if not path.exists():
        pytest.skip(f"needs {name} in ../shared/data")
    return read_found(path, ReadOptions(**options))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_data_are_read_whole_and_not_refused(name: str) -> None:
    structures, pairs = PUBLISHED[name]
    item = published(name, multiplicity="lowest")
    assert item.counts.structures == item.counts.energies == structures
    judged = consistency(item)
    assert judged.problem is None
    assert judged.note is None
    assert judged.pairs >= pairs
    if pairs:
        assert judged.ratio == pytest.approx(1.0, abs=0.05)
    assert stretched(item.frames) is None


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("s66x8/s66x8_wb97x6-31gd.h5", {"gradient": False}, "give --gradient"),
        ("s66x8/s66x8_wb97x6-31gd.h5", {"force_unit": "Hartree/bohr"}, "--force-unit Hartree/Å"),
        ("rmd17/rmd17_ethanol_test_01.npz", {"force_unit": "eV/Å"}, "--force-unit kcal/mol/Å"),
        ("ethanol_botnet/train.xyz", {"gradient": True}, "give --forces"),
        ("ethanol_botnet/train.xyz", {"energy_unit": "Hartree", "force_unit": "eV/Å"}, "--energy-unit eV"),
    ],
)
def test_published_data_in_wrong_units_are_refused(name: str, options: dict[str, object], words: str) -> None:
    problem = consistency(published(name, **options)).problem
    assert problem is not None
    assert words in problem


def test_energies_of_published_data_are_those_of_their_molecules() -> None:
    """Ethanol at PBE/def2-SVP is near −4209 eV in both data sets, whatever their units."""
    rmd17 = published("rmd17/rmd17_ethanol_train_01.npz")
    botnet = published("ethanol_botnet/train.xyz")
    for item in (rmd17, botnet):
        energies = np.array([f.label.energy for f in item.frames])
        assert item.counts.formulas == {"C2H6O": 1000}
        assert energies.min() == pytest.approx(-4209.8, abs=0.6)
        assert 0.5 < np.ptp(energies) < 3.0
    assert str(rmd17.level) == "PBE/def2-SVP (rMD17)"
    assert rmd17.level_source == "known of the format"


def test_s66x8_energies_against_the_hartree_of_the_file() -> None:
    """Water dimer: −152.7889 Hartree at its minimum, some 6 kcal/mol below two apart."""
    item = published("s66x8/s66x8_wb97x6-31gd.h5")
    assert item.counts.charges == 528
    dimer = np.array([f.label.energy for f in item.frames[:8]])
    assert item.frames[0].structure.formula == "H4O2"
    assert dimer.min() / HARTREE == pytest.approx(-152.78889851, abs=1e-7)
    assert 4.0 < (dimer[-1] - dimer.min()) / KCAL_PER_MOL < 8.0
    assert np.abs(np.array([f.label.charges.sum() for f in item.frames])).max() < 1e-3
    assert item.level.method == "wb97x"


def test_zuo2020_is_periodic_and_bound() -> None:
    for name, number, low, high in (("Cu_train", 29, -4.2, -3.0), ("Si_train", 14, -5.5, -4.0)):
        item = published(f"zuo2020/{name}.xyz")
        per_atom = np.array([f.label.energy / len(f.structure) for f in item.frames])
        assert item.counts.periodic == item.counts.structures == item.counts.forces
        assert item.counts.elements == (number,)
        assert low < np.median(per_atom) < high
        assert item.counts.stresses == 0


def test_random_forces_agree_with_nothing() -> None:
    forces = np.random.default_rng(5).normal(size=WATERS.forces.shape)
    judged = consistency(found(replace(WATERS, forces=forces)))
    assert judged.interval is not None
    assert not agrees(judged.interval)
    assert judged.note is not None

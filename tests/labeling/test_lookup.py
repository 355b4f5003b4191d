"""Labels found in a file by what a structure is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpcal.core.deadline import Deadline
from hpcal.core.errors import ConfigurationError, FailureClass, InputError
from hpcal.core.label import Label, LevelOfTheory, Rejection
from hpcal.core.structure import Structure
from hpcal.exchange.extxyz import LabelledFrame, write_labelled
from hpcal.labeling.checks import ChecksSettings
from hpcal.labeling.lookup import Lookup, LookupSettings
from hpcal.labeling.make import make_labeler

LEVEL = LevelOfTheory(code="orca", version="6", method="pbe0", settings={"basis": "def2-svp"})
N = 50


def structures() -> list[Structure]:
    rng = np.random.default_rng(5)
    shape = np.array([[0, 0, 0], [0, 0, 0.96], [0.93, 0, -0.24]])
    return [Structure(numbers=[8, 1, 1], positions=shape + rng.normal(0, 0.02, (3, 3))) for _ in range(N)]


def force_of(i: int) -> np.ndarray:
    return np.array([[i, 0, 1], [0.1, 0, -1], [-i - 0.1, 0, 0]]) / N


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "labels.xyz"
    write_labelled(
        path,
        [
            LabelledFrame(structure=s, label=Label(energy=-100.0 - i, forces=force_of(i), level=LEVEL))
            for i, s in enumerate(structures())
        ],
    )
    return path


def test_each_structure_gets_its_own_label(file: Path) -> None:
    lookup = Lookup(LookupSettings(file=file))
    assert lookup.level == LEVEL
    for i, structure in enumerate(structures()):
        label = lookup.label(structure, Deadline())
        assert isinstance(label, Label)
        assert label.energy == -100.0 - i
        assert np.array_equal(label.forces, force_of(i))


def test_positions_of_few_digits_are_found(file: Path) -> None:
    lookup = Lookup(LookupSettings(file=file))
    for i, structure in enumerate(structures()):
        label = lookup.label(structure.with_positions(structure.positions.round(5)), Deadline())
        assert isinstance(label, Label)
        assert label.energy == -100.0 - i


def test_a_structure_that_is_elsewhere_is_not_in_the_file(file: Path) -> None:
    lookup = Lookup(LookupSettings(file=file))
    structure = structures()[7]
    moved = structure.positions.copy()
    moved[2, 1] += 2e-5
    result = lookup.label(structure.with_positions(moved), Deadline())
    assert isinstance(result, Rejection)
    assert (result.code, result.failure_class) == ("not_in_file", FailureClass.INPUT)
    loose = Lookup(LookupSettings(file=file, tolerance_A=1e-4))
    assert loose.label(structure.with_positions(moved), Deadline()).energy == -107.0


@pytest.mark.parametrize(
    "change",
    [
        {"charge": 2},
        {"multiplicity": 3},
        {"numbers": [8, 1, 9]},
        {"cell": np.eye(3) * 9, "pbc": (True, True, True)},
    ],
)
def test_the_same_positions_are_not_enough(file: Path, change: dict[str, object]) -> None:
    first = structures()[0]
    kwargs = {"numbers": first.numbers, "positions": first.positions, **change}
    result = Lookup(LookupSettings(file=file)).label(Structure(**kwargs), Deadline())
    assert isinstance(result, Rejection)


def test_elements_of_the_file(file: Path) -> None:
    assert Lookup(LookupSettings(file=file)).missing_elements([1, 6, 8]) == (6,)


def plain_file(tmp_path: Path, energy: float = -5.0) -> Path:
    path = tmp_path / "plain.xyz"
    path.write_text(
        f"1\nProperties=species:S:1:pos:R:3:forces:R:3 energy={energy}\nHe 0.0 0.0 0.0 0.0 0.0 0.0\n"
    )
    return path


HELIUM = Structure(numbers=[2], positions=[[0, 0, 0]])


def test_a_level_in_words(tmp_path: Path) -> None:
    lookup = Lookup(LookupSettings(file=plain_file(tmp_path), level="CCSD(T)/CBS of my thesis"))
    assert lookup.level.method == "CCSD(T)/CBS of my thesis"
    assert lookup.label(HELIUM, Deadline()).level == lookup.level
    other = tmp_path / "other"
    other.mkdir()
    changed = Lookup(LookupSettings(file=plain_file(other, -6.0), level="CCSD(T)/CBS of my thesis"))
    assert changed.level != lookup.level


def test_a_level_as_a_record(tmp_path: Path) -> None:
    record = {"code": "molpro", "version": "2024", "method": "mp2", "settings": {"basis": "vtz"}}
    lookup = Lookup(LookupSettings(file=plain_file(tmp_path), level=record))
    assert lookup.level.as_dict() == record


@pytest.mark.parametrize("record", [{"code": "molpro"}, {"method": "mp2", "basis": "vtz"}])
def test_records_that_are_no_level(tmp_path: Path, record: dict[str, str]) -> None:
    with pytest.raises(InputError, match="level"):
        Lookup(LookupSettings(file=plain_file(tmp_path), level=record))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.xyz"):
        Lookup(LookupSettings(file=tmp_path / "nothing.xyz"))


def test_through_the_front_door(file: Path) -> None:
    with make_labeler("lookup", {"file": str(file)}) as labeler:
        label = labeler.label(structures()[3], Deadline())
        assert label.energy == -103.0
        assert label.diagnostics["source"] == "labels.xyz"
    strict = ChecksSettings(max_force_eV_per_A=0.5)
    with make_labeler("lookup", LookupSettings(file=file), strict) as labeler:
        assert labeler.label(structures()[49], Deadline()).code == "force_limit"
    with pytest.raises(ConfigurationError, match="fiel"):
        make_labeler("lookup", {"fiel": str(file)})

"""One front door for data files, by extension."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpcal.core.errors import FormatError, InputError
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure
from hpcal.core.walker import Split
from hpcal.exchange import files
from hpcal.exchange.extxyz import LabelledFrame, write_labelled
from hpcal.exchange.hdf5 import write_shard

LEVEL = LevelOfTheory(code="tblite", version="0.8", method="GFN2-xTB")
OTHER = LevelOfTheory(code="pyscf", version="2.14", method="wb97x")


def frame(energy: float, level: LevelOfTheory = LEVEL, **info: object) -> LabelledFrame:
    structure = Structure(numbers=np.array([2, 2]), positions=np.array([[0, 0, 0], [0, 0, 0.3]]))
    return LabelledFrame(structure=structure, label=Label(energy=energy, forces=None, level=level), info=info)


@pytest.mark.parametrize("name", ["a.xyz", "a.extxyz", "A.XYZ"])
def test_text_and_shards_hold_the_same(tmp_path: Path, name: str) -> None:
    items = [frame(1.0, split="test"), frame(2.0), frame(3.0, split=Split.VALIDATION)]
    write_labelled(tmp_path / name, items)
    from_text = files.read_dataset(tmp_path / name)
    write_shard(tmp_path / "a.h5", from_text)
    from_shard = files.read_dataset(tmp_path / "a.h5")
    for dataset in (from_text, from_shard):
        assert dataset.splits.tolist() == ["test", "train", "validation"]
        assert dataset.energies.tolist() == [1.0, 2.0, 3.0]
        assert dataset.level == LEVEL
        assert dataset.structures() == [item.structure for item in items]
    for path in (tmp_path / name, tmp_path / "a.h5"):
        assert files.read_structures(path) == [item.structure for item in items]
        assert [label.energy for _, label in files.read_labelled(path)] == [1.0, 2.0, 3.0]
        with pytest.raises(FormatError, match=r"frame 1: atoms 0 .* overlap"):
            files.read_structures(path, min_distance_factor=0.6)
        for read in (files.read_labelled, files.read_dataset):
            with pytest.raises(FormatError, match="its level of theory is GFN2-xTB"):
                read(path, OTHER)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    for read in (files.read_structures, files.read_labelled, files.read_dataset):
        with pytest.raises(FormatError, match=r"the extension '\.cif' is not one that is read \(\.xyz, "):
            read(tmp_path / "a.cif")
    path = tmp_path / "a.xyz"
    write_labelled(path, [frame(1.0), frame(2.0, split="holdout")])
    with pytest.raises(FormatError, match="frame 2: unknown split 'holdout'"):
        files.read_dataset(path)
    write_labelled(path, [frame(1.0), frame(2.0, level=OTHER)])
    with pytest.raises(InputError, match="different levels of theory"):
        files.read_dataset(path)

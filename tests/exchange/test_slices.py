"""Parts of an HDF5 file of hpcal: the same structures as all of it, and no more is read."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcal.core.dataset import Dataset
from hpcal.core.errors import FormatError
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure
from hpcal.exchange.files import read_structures
from hpcal.exchange.hdf5 import write_shard
from hpcal.exchange.slices import look_at, read_slice, shares

LEVEL = LevelOfTheory(code="none", version="1", method="none")


def mixed(count: int) -> list[Structure]:
    rng = np.random.default_rng(3)
    structures = []
    for i in range(count):
        n = 1 + i % 4
        periodic = i % 3 == 0
        structures.append(
            Structure(
                numbers=rng.choice([2, 10, 18], n),
                positions=rng.normal(size=(n, 3)),
                cell=np.eye(3) * (5 + i) if periodic else None,
                pbc=(periodic, periodic, False),
                charge=2 * (i % 2),
                magnetic_moments=rng.normal(size=n) if i % 5 == 0 else None,
            )
        )
    return structures


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    structures = mixed(23)
    labels = [Label(energy=-1.0, forces=np.zeros((len(s), 3)), level=LEVEL) for s in structures]
    write_shard(tmp_path / "pool.h5", Dataset.of(structures, labels))
    return tmp_path / "pool.h5"


def test_parts_are_the_structures_of_the_whole_file_in_order(pool: Path) -> None:
    file, whole = look_at(pool), read_structures(pool)
    assert (file.count, file.atoms) == (23, sum(map(len, whole)))
    assert read_slice(file, range(23)) == whole
    for ranks in (1, 2, 3, 7, 40):
        parts = shares(file.count, ranks, 4)
        assert [s for part in parts for s in read_slice(file, part)] == whole
    assert read_slice(file, range(5, 5)) == []


@pytest.mark.parametrize(("count", "ranks", "chunk"), [(1, 4, 128), (1000, 4, 128), (128, 2, 128), (7, 3, 2)])
def test_shares_are_whole_chunks_and_even(count: int, ranks: int, chunk: int) -> None:
    parts = shares(count, ranks, chunk)
    assert len(parts) == ranks
    assert [i for part in parts for i in part] == list(range(count))
    assert all(part.start % chunk == 0 for part in parts if part)
    sizes = [-(-len(part) // chunk) for part in parts]
    assert max(sizes) - min(sizes) <= 1


def test_only_the_rows_of_a_part_are_read(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = look_at(pool)
    part = range(8, 12)
    atoms = sum(len(s) for s in read_slice(file, part))
    read: dict[str, int] = {}
    original = h5py.Dataset.__getitem__

    def counted(self, selection, **kwargs):
        result = original(self, selection, **kwargs)
        read[self.name] = read.get(self.name, 0) + len(result)
        return result

    monkeypatch.setattr(h5py.Dataset, "__getitem__", counted)
    read_slice(file, part)
    assert read["/positions"] == read["/numbers"] == atoms
    assert read["/energies"] == 4
    assert read["/offsets"] == 5
    assert "/forces" not in read


def test_what_is_no_file_of_hpcal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no such file"):
        look_at(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("text")
    with pytest.raises(FormatError, match="cannot be read as an HDF5 file of hpcal"):
        look_at(tmp_path / "text.h5")
    with h5py.File(tmp_path / "ani.h5", "w") as file:
        file["a/coordinates"] = np.zeros((2, 1, 3))
    with pytest.raises(FormatError, match=r"hpcal import .*ani\.h5 --to pool\.h5"):
        look_at(tmp_path / "ani.h5")


@pytest.mark.parametrize(
    ("name", "index", "value", "words"),
    [
        ("positions", 20, np.nan, "positions are not all finite"),
        ("numbers", 20, 200, "atomic numbers from"),
        ("multiplicities", 9, 0, "frame 10: multiplicity 0"),
        ("offsets", 9, 0, "its offsets do not divide"),
        ("offsets", 23, 1, "its offsets do not divide"),
    ],
)
def test_damage_is_found_in_the_part_where_it_is(
    pool: Path, name: str, index: int, value: float, words: str
) -> None:
    with h5py.File(pool, "r+") as file:
        file[name][index] = value
    with pytest.raises(FormatError, match=words):
        read_slice(look_at(pool), range(8, 12))

"""Shards: equal data give equal bytes, other bytes are refused, two levels do not mix."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcal.core.dataset import OPTIONAL_PER_ATOM, OPTIONAL_PER_STRUCTURE, Dataset
from hpcal.core.errors import FormatError
from hpcal.core.label import Label, LevelOfTheory
from hpcal.core.structure import Structure
from hpcal.core.walker import Split
from hpcal.exchange.hdf5 import read_shard, read_snapshot, write_shard

LEVEL = LevelOfTheory(code="tblite", version="0.8", method="GFN2-xTB", settings={"accuracy": 0.1})
OTHER = LevelOfTheory(code="pyscf", version="2.14", method="wb97x")


def random_dataset(n: int, seed: int = 0, level: LevelOfTheory | None = LEVEL) -> Dataset:
    """Structures and labels of all kinds, and what a store knows of them."""
    rng = np.random.default_rng(seed)
    structures, labels = [], []
    for i in range(n):
        size = int(rng.integers(1, 7))
        cell = rng.normal(size=(3, 3)) * 8 if i % 3 == 0 else None
        structures.append(
            Structure(
                numbers=rng.integers(1, 119, size),
                positions=rng.normal(size=(size, 3)),
                cell=cell,
                pbc=(cell is not None, False, cell is not None),
                charge=int(rng.integers(-2, 3)),
                multiplicity=int(rng.integers(1, 4)),
                magnetic_moments=rng.normal(size=size) if i % 3 == 1 else None,
            )
        )
        labels.append(
            Label(
                energy=rng.normal() * 1e4,
                forces=rng.normal(size=(size, 3)) if i % 4 else None,
                stress=rng.normal(size=(3, 3)) if i % 3 == 0 else None,
                dipole=rng.normal(size=3) if i % 3 else None,
                dipole_origin=rng.normal(size=3) if i % 3 else None,
                charges=rng.normal(size=size) if i % 2 else None,
                charge_scheme="mulliken" if i % 2 else None,
                level=level or OTHER,
            )
        )
    splits = [tuple(Split)[i % len(Split)] for i in range(n)]
    dataset = Dataset.of(structures, labels, ids=[7 * i for i in range(n)], splits=splits)
    return replace(
        dataset,
        level=level,
        origins=np.array([("sample", "bootstrap", "audit")[i % 3] for i in range(n)]),
        generations=np.arange(n),
        uncertainties=np.where(np.arange(n) % 2, np.arange(n) / 7, np.nan),
    )


def bare(dataset: Dataset) -> Dataset:
    """The data set without what it may lack."""
    return replace(dataset, **dict.fromkeys((*OPTIONAL_PER_STRUCTURE, *OPTIONAL_PER_ATOM)))


def assert_equal(found: Dataset, expected: Dataset) -> None:
    for field in fields(Dataset):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if field.name == "level" or b is None:
            assert a == b
        else:
            assert a.dtype.kind == b.dtype.kind
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("level", [LEVEL, None])
def test_a_shard_comes_back(tmp_path: Path, level: LevelOfTheory | None) -> None:
    dataset = random_dataset(30, level=level)
    path = tmp_path / "a.h5"
    digest = write_shard(path, dataset)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert_equal(read_shard(path), dataset)
    assert_equal(read_shard(path, digest), dataset)
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_data_set_lacks_is_not_in_the_file(tmp_path: Path) -> None:
    dataset = bare(random_dataset(7))
    write_shard(tmp_path / "a.h5", dataset)
    assert_equal(read_shard(tmp_path / "a.h5"), dataset)
    with h5py.File(tmp_path / "a.h5") as file:
        assert len(file) == 11


def test_shards_of_version_1_are_read(tmp_path: Path) -> None:
    whole = random_dataset(7)
    dataset = bare(whole)
    digest = write_shard(tmp_path / "old.h5", whole, version=1)
    with h5py.File(tmp_path / "old.h5") as file:
        assert file.attrs["version"] == 1
        assert len(file) == 11
    assert_equal(read_shard(tmp_path / "old.h5", digest), dataset)
    new = random_dataset(5, seed=1)
    shards = [(tmp_path / "old.h5", digest), (tmp_path / "new.h5", write_shard(tmp_path / "new.h5", new))]
    joined = read_snapshot(shards)
    assert joined.structures() == dataset.structures() + new.structures()
    assert joined.hashes.tolist() == [""] * 7 + new.hashes.tolist()
    assert joined.origins.tolist() == [""] * 7 + new.origins.tolist()
    assert joined.generations.tolist() == [-1] * 7 + new.generations.tolist()
    assert np.isnan(joined.stresses[:7]).all()
    assert np.isnan(joined.atomic_charges[: dataset.offsets[-1]]).all()
    np.testing.assert_array_equal(joined.stresses[7:], new.stresses)


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk."""
    write_shard(tmp_path / "a.h5", random_dataset(3))
    before = (tmp_path / "a.h5").read_bytes()
    code = (
        "import resource, signal, sys; sys.path[:0] = [sys.argv[2]]\n"
        "from pathlib import Path; import test_hdf5 as t\n"
        "dataset = t.random_dataset(3000)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "try:\n    t.write_shard(Path(sys.argv[1]), dataset)\n"
        "except OSError as error:\n    print('refused')\n"
    )
    run = [sys.executable, "-c", code, str(tmp_path / "a.h5"), str(Path(__file__).parent)]
    output = subprocess.run(run, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "refused"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.h5"]
    assert (tmp_path / "a.h5").read_bytes() == before


def test_equal_data_have_one_hash_in_any_process_at_any_time(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    first = write_shard(path, random_dataset(5))
    time.sleep(1.1)  # HDF5 stores times in whole seconds
    again = (
        "import sys; sys.path[:0] = [sys.argv[2]]; from pathlib import Path; import test_hdf5 as t\n"
        "print(t.write_shard(Path(sys.argv[1]), t.random_dataset(5)))"
    )
    output = subprocess.run(
        [sys.executable, "-c", again, str(tmp_path / "b.h5"), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert output.stdout.strip() == first
    assert write_shard(tmp_path / "c.h5", random_dataset(5, seed=1)) != first


def test_each_array_states_its_unit_and_level(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.h5", random_dataset(3))
    with h5py.File(tmp_path / "a.h5") as file:
        units = {name: file[name].attrs["unit"] for name in file}
        for name in file:
            assert json.loads(file[name].attrs["level_of_theory"]) == LEVEL.as_dict()
    assert units["positions"] == "Å"
    assert units["energies"] == "eV"
    assert units["forces"] == "eV/Å"
    assert units["charges"] == "e"
    assert units["stresses"] == "eV/Å^3"
    assert units["dipoles"] == "e Å"
    assert units["atomic_charges"] == "e"
    assert {"hashes", "splits", "uncertainties"} <= units.keys()


def test_a_changed_byte_is_refused_by_the_hash(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    digest = write_shard(path, random_dataset(4))
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(3)
    for at in rng.integers(0, len(data), 20):
        damaged = data.copy()
        damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match="is not what was written: SHA-256"):
            read_shard(path, digest)


def test_a_file_cut_anywhere_is_refused_without_a_hash_too(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    dataset = random_dataset(4)
    write_shard(path, dataset)
    data = path.read_bytes()
    for length in range(0, len(data), 97):
        path.write_bytes(data[:length])
        with pytest.raises(FormatError, match=r"a\.h5"):
            read_shard(path)


def edit(path: Path, name: str, array: np.ndarray) -> None:
    with h5py.File(path, "r+") as file:
        attributes = dict(file[name].attrs)
        del file[name]
        file[name] = array
        file[name].attrs.update(attributes)


def test_arrays_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    dataset = random_dataset(4)
    atoms = int(dataset.offsets[-1])
    broken = {
        "offsets": np.array([0, atoms, 1, 2, atoms]),
        "numbers": np.zeros(atoms, dtype="u1"),
        "positions": np.full((atoms, 3), np.nan),
        "energies": np.array([1, 2, np.inf, 3]),
        "forces": np.zeros((atoms, 2)),
        "cells": np.zeros((4, 3, 3), dtype="f4"),
        "splits": np.full(4, 200, dtype="u1"),
        "hashes": np.zeros((4, 31), dtype="u1"),
        "stresses": np.zeros((3, 3, 3)),
        "atomic_charges": np.zeros(atoms + 1),
    }
    for name, array in broken.items():
        write_shard(path, dataset)
        edit(path, name, array)
        with pytest.raises(FormatError, match=r"a\.h5"):
            read_shard(path)


def test_a_claim_of_a_billion_numbers_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_shard(path, random_dataset(4))
    with h5py.File(path, "r+") as file:
        level = file["energies"].attrs["level_of_theory"]
        for name, shape in {"numbers": (10**12,), "positions": (10**12, 3), "forces": (10**12, 3)}.items():
            del file[name]
            kind = "u1" if name == "numbers" else "f8"
            file.create_dataset(name, shape=shape, dtype=kind, chunks=(1024, *shape[1:]))
            file[name].attrs["level_of_theory"] = level
    with pytest.raises(FormatError, match="missing"):
        read_shard(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no such file"):
        read_shard(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("3\n\nO 0 0 0\n")
    with pytest.raises(FormatError, match="cannot be read"):
        read_shard(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["coordinates"] = np.zeros((2, 3))
    with pytest.raises(FormatError, match="not of labelled structures"):
        read_shard(tmp_path / "other.h5")
    write_shard(tmp_path / "new.h5", random_dataset(2))
    with h5py.File(tmp_path / "new.h5", "r+") as file:
        file.attrs["version"] = 99
    with pytest.raises(FormatError, match="newer hpcal"):
        read_shard(tmp_path / "new.h5")


def test_a_snapshot_is_its_shards_in_order(tmp_path: Path) -> None:
    parts = [random_dataset(n, seed=n) for n in (3, 1, 6)]
    shards = [(path := tmp_path / f"{i}.h5", write_shard(path, part)) for i, part in enumerate(parts)]
    joined = read_snapshot(shards)
    assert len(joined) == 10
    expected = [s for part in parts for s in part.structures()]
    assert joined.structures() == expected
    np.testing.assert_array_equal(joined.forces_of(3), parts[1].forces_of(0))
    np.testing.assert_array_equal(joined.ids, np.concatenate([part.ids for part in parts]))
    assert joined.level == LEVEL
    with pytest.raises(FormatError, match="at least one shard"):
        read_snapshot([])


def test_two_levels_do_not_mix(tmp_path: Path) -> None:
    shards = []
    for i, level in enumerate((LEVEL, OTHER)):
        path = tmp_path / f"{i}.h5"
        shards.append((path, write_shard(path, random_dataset(2, level=level))))
    with pytest.raises(FormatError, match=r"two levels of theory.*GFN2-xTB.*wb97x.*1\.h5"):
        read_snapshot(shards)


@pytest.mark.benchmark
def test_a_hundred_thousand_structures_open_in_two_seconds(tmp_path: Path) -> None:
    n, size = 100_000, 20
    rng = np.random.default_rng(0)
    dataset = Dataset(
        ids=np.arange(n),
        splits=np.array(["train"] * n),
        offsets=np.arange(n + 1) * size,
        numbers=rng.integers(1, 10, n * size),
        positions=rng.normal(size=(n * size, 3)),
        energies=rng.normal(size=n),
        forces=rng.normal(size=(n * size, 3)),
        charges=np.zeros(n, dtype=np.int64),
        multiplicities=np.ones(n, dtype=np.int64),
        cells=np.zeros((n, 3, 3)),
        pbc=np.zeros((n, 3), dtype=bool),
        level=LEVEL,
    )
    start = time.perf_counter()
    digest = write_shard(tmp_path / "a.h5", dataset)
    written = time.perf_counter() - start
    start = time.perf_counter()
    found = read_shard(tmp_path / "a.h5", digest)
    seconds = time.perf_counter() - start
    print(f"100,000 x 20 atoms: written in {written:.2f} s, opened with its hash in {seconds:.2f} s")
    assert len(found) == n
    assert seconds < 2


def test_parts_of_a_data_set_keep_everything() -> None:
    dataset = random_dataset(12)
    index = [7, 0, 7, 11]
    part = dataset.take(index)
    assert part.structures() == [dataset.structure(i) for i in index]
    for field in (*OPTIONAL_PER_STRUCTURE, "energies", "splits", "ids"):
        np.testing.assert_array_equal(getattr(part, field), getattr(dataset, field)[index])
    for new, old in enumerate(index):
        for name in ("forces", "stress", "dipole", "charges"):
            np.testing.assert_array_equal(getattr(part.label(new), name), getattr(dataset.label(old), name))
    assert_equal(Dataset.concatenate([dataset.take(range(5)), dataset.take(range(5, 12))]), dataset)
    assert len(dataset.take([])) == 0
    assert part.has_forces.tolist() == [i % 4 != 0 for i in index]

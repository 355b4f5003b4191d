"""A data set of 100,000 structures of 20 atoms: out of the store, and into a trainer's memory.

Beside it, in the same run, what ``ase.db`` needs to write the same structures (measured on fewer of
them, and scaled). Run with ``pytest -m benchmark -s tests/benchmarks``.
"""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import insert

from hpcal.cli.export import export
from hpcal.core.label import LevelOfTheory
from hpcal.exchange.ase_db_write import write_ase_db
from hpcal.exchange.hdf5 import read_shard, read_snapshot, write_shard
from hpcal.store import campaigns
from hpcal.store.database import Store
from hpcal.store.rows import level_id
from hpcal.store.tables import LabelRow, SelectionRow, StructureRow

N, ATOMS, SHARDS, FEW = 100_000, 20, 10, 2_000
EXPORT_LIMIT_S, OPEN_LIMIT_S = 10.0, 2.0
LEVEL = LevelOfTheory(code="pyscf", version="2.14", method="wb97x", settings={"basis": "6-31g*"})


def fill(folder: Path) -> None:
    """A store of N labelled structures, each with the decision that it was chosen by."""
    rng, numbers = np.random.default_rng(0), np.array([6] * 8 + [1] * 10 + [8] * 2, dtype="u1").tobytes()
    store = Store.create(folder)
    with store.write() as session:
        campaigns.add_campaign(session, name="large", spec={}, spec_folder=".", site={})
        level = campaigns.campaign(session).level_of_theory_id = level_id(session, LEVEL)
        for start in range(0, N, 10_000):
            ids = range(start + 1, start + 10_001)
            positions = rng.normal(size=(len(ids), ATOMS, 3))
            forces = rng.normal(size=(len(ids), ATOMS, 3))
            shared = {"created": 0.0, "generation": start // 10_000, "charge": 0, "multiplicity": 1}
            structures = [
                {
                    "id": i, "hash": f"{i:064x}", "state": "labelled", "origin": "sample", "split": "train",
                    "n_atoms": ATOMS, "formula": "C8H10O2", "numbers": numbers, "pbc": 0,
                    "positions": positions[i - start - 1].tobytes(), "priority": 0.0, "failures": 0, **shared,
                }
                for i in ids
            ]  # fmt: skip
            labels = [
                {
                    "seq": i, "structure_id": i, "level_of_theory_id": level, "split": "train",
                    "energy": -10_000.0 + i / N, "forces": forces[i - start - 1].tobytes(), "diagnostics": {},
                    "qm_calls": 1, "created": 0.0,
                }
                for i in ids
            ]  # fmt: skip
            chosen = [
                {"structure_id": i, "decision": "chosen", "rule": "random", "value": i / N, "reason": "drawn"}
                for i in ids
            ]
            session.execute(insert(StructureRow.__table__), structures)
            session.execute(insert(LabelRow.__table__), labels)
            session.execute(insert(SelectionRow.__table__), chosen)
    store.close()


def timed(call):
    start = time.perf_counter()
    found = call()
    return found, time.perf_counter() - start


@pytest.mark.benchmark
def test_a_hundred_thousand_structures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "run")
    out = tmp_path / "all.h5"
    _, exported = timed(lambda: export(tmp_path / "run", out, splits=(), generation=None, ensemble=None))
    dataset = read_shard(out)
    assert len(dataset) == N
    assert dataset.uncertainties[N // 2] == (N // 2 + 1) / N
    shards = []
    for i, part in enumerate(np.array_split(np.arange(N), SHARDS)):
        path = tmp_path / f"{i}.h5"
        shards.append((path, write_shard(path, dataset.take(part))))
    snapshot, opened = timed(lambda: read_snapshot(shards))
    assert np.array_equal(snapshot.forces, dataset.forces)
    few = dataset.take(np.arange(FEW))
    _, ase = timed(lambda: write_ase_db(tmp_path / "few.db", few))
    _, ours = timed(lambda: write_shard(tmp_path / "few.h5", few))
    ase_all = ase * N / FEW
    with capsys.disabled():
        print(f"\n{N:,} structures of {ATOMS} atoms, {os.path.getsize(out) / 1e6:.0f} MB as HDF5, seconds")
        print(
            f"  hpcal export to HDF5, read from SQLite included: {exported:7.2f}  (limit {EXPORT_LIMIT_S:g})"
        )
        print(
            f"  training snapshot of {SHARDS} shards, hashes checked: {opened:7.2f}  (limit {OPEN_LIMIT_S:g})"
        )
        print(f"  ase.db, write only, scaled from {FEW:,}:            {ase_all:7.1f}")
        print(f"  ase.db to hpcal export: {ase_all / exported:.0f}; writing alone: {ase / ours:.0f}")
        print(f"  peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
    assert exported < EXPORT_LIMIT_S
    assert opened < OPEN_LIMIT_S
    assert exported < ase_all

"""The store at size, beside a plain SQLite loop and AiiDA's own bulk insert.

Every limit is one that the project promises (docs/performance.md has the figures with date and
machine); each is printed with what was measured.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import pytest
import yaml
from support.large import LEVEL, make_store, row_count
from support.postgres import POSTGRES_VARIABLE, drop_schemas

from hpcal.core.dataset import Dataset
from hpcal.core.label import Label
from hpcal.core.settings import Document
from hpcal.engine import snapshot
from hpcal.engine.campaign import campaign_of
from hpcal.engine.completions import Completions
from hpcal.engine.context import Context, Folders
from hpcal.engine.dispatch import InlineDispatcher, Report
from hpcal.engine.loop import Controller
from hpcal.engine.plan import plan
from hpcal.engine.spool import SpoolWriter
from hpcal.engine.start import recorded_spec
from hpcal.engine.tasks import END
from hpcal.report.lineage import trace
from hpcal.report.status import campaign_status
from hpcal.store import bulk, campaigns, structures, tasks
from hpcal.store.database import Store
from hpcal.store.rows import level_id
from hpcal.store.transitions import StructureState, TaskState

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(1500)]

ATOMS = 20
INSERTED = 40_000
NUMBERS = np.array([6] * 6 + [1] * 10 + [8] * 2 + [7] * 2)
SLOTS = {"label": 4, "sample": 2, "train": 1}
SPEC = yaml.safe_load("""
name: large
seed: 3
structures: {smiles: "O"}
label: {labeler: xtb, method: GFN2-xTB}
potential: {kind: morse, members: 4}
bootstrap: [{sampler: random_displacement, count: 16, amplitude_A: 0.08}]
sampling: [{sampler: langevin, walkers: 64, time_ps: 0.05, temperature_K: 900}]
selection: {batch: 40, audit_share: 0.2}
stop: {labels: 100000000}
""")


def molecules(n: int) -> Dataset:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(ATOMS, 3)) * 3
    return Dataset(
        ids=np.arange(n),
        splits=np.array(["train"] * n),
        offsets=np.arange(n + 1) * ATOMS,
        numbers=np.tile(NUMBERS, n),
        positions=(base + 0.1 * rng.normal(size=(n, ATOMS, 3))).reshape(-1, 3),
        energies=rng.normal(size=n),
        forces=rng.normal(size=(n * ATOMS, 3)),
        charges=np.zeros(n, dtype=np.int64),
        multiplicities=np.ones(n, dtype=np.int64),
        cells=np.zeros((n, 3, 3)),
        pbc=np.zeros((n, 3), dtype=bool),
        level=LEVEL,
    )


def context_of(store: Store, root: Path) -> Context:
    folders = Folders(root=root)
    folders.make()
    return Context(
        spec=campaign_of(Document(SPEC, {}, "benchmark"), root),
        store=store,
        folders=folders,
        dispatcher=InlineDispatcher(SLOTS, None),
        level=LEVEL,
        level_id=1,
        elements=(1, 6, 7, 8),
    )


def empty_store(root: Path, url: str | None = None) -> Store:
    store = Store.create(root, url)
    with store.write() as session:
        campaigns.add_campaign(session, name="bench", spec=SPEC, spec_folder=str(root), site={"pools": {}})
        campaigns.campaign(session).level_of_theory_id = level_id(session, LEVEL)
    store.acquire()
    return store


def best(times: int, run) -> float:
    """Seconds of the fastest run."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return min(taken)


# ── Insert ───────────────────────────────────────────────────────────────────────────────────


def insert_rate(root: Path, url: str | None) -> float:
    """Labelled structures a second, hashes, fingerprints and durable commit included."""
    data, store = molecules(INSERTED), empty_store(root, url)
    try:
        began = time.perf_counter()
        with store.write() as session:
            ids = bulk.add_structures(session, data, origin="file", state=StructureState.LABELLED)
            bulk.add_labels(session, ids, data, level_id=1)
        seconds = time.perf_counter() - began
        with store.session() as session:
            assert structures.states_of(session, [INSERTED])[INSERTED] is StructureState.LABELLED
    finally:
        store.release()
        store.close()
    return INSERTED / seconds


def plain_loop_rate(path: Path) -> float:
    """The same numbers by one INSERT a row into two bare tables: no hash, no index, one commit."""
    data = molecules(INSERTED)
    positions = data.positions.reshape(INSERTED, -1)
    forces = data.forces.reshape(INSERTED, -1)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE structure (id INTEGER PRIMARY KEY, numbers BLOB, positions BLOB)")
    connection.execute("CREATE TABLE label (structure_id INTEGER, energy REAL, forces BLOB)")
    began = time.perf_counter()
    for i in range(INSERTED):
        connection.execute(
            "INSERT INTO structure VALUES (?, ?, ?)",
            (i, data.numbers[i * ATOMS : (i + 1) * ATOMS].tobytes(), positions[i].tobytes()),
        )
        connection.execute("INSERT INTO label VALUES (?, ?, ?)", (i, data.energies[i], forces[i].tobytes()))
    connection.commit()
    rate = INSERTED / (time.perf_counter() - began)
    connection.close()
    return rate


PLAIN = 150_000
"""Rate of the bare tables on the machine that the promises were measured on (docs/performance.md)."""


def owed(promised: float, plain: float) -> float:
    """What of a promised rate a machine owes whose bare tables take ``plain`` rows a second."""
    return promised * min(1.0, plain / PLAIN)


AIIDA = """
import json, sys, time, uuid
import numpy as np
from aiida.manage.configuration import create_default_user  # noqa: F401
from aiida.storage.sqlite_temp import SqliteTempBackend
from aiida.manage import get_manager
from aiida import load_profile
from aiida.orm.entities import EntityTypes
n, atoms = int(sys.argv[1]), int(sys.argv[2])
profile = SqliteTempBackend.create_profile("bench", debug=False)
load_profile(profile, allow_switch=True)
backend = get_manager().get_profile_storage()
from aiida import orm
user = orm.User(email="a@b.c").store().pk
rng = np.random.default_rng(0)
x, f = rng.normal(size=(n, atoms, 3)), rng.normal(size=(n, atoms, 3))
from datetime import datetime, timezone
now = datetime.now(timezone.utc)
began = time.perf_counter()
rows = [
    {
        "user_id": user, "node_type": "data.core.dict.Dict.", "process_type": None, "dbcomputer_id": None,
        "uuid": str(uuid.uuid4()), "ctime": now, "mtime": now, "label": "", "description": "",
        "attributes": {
            "numbers": [6] * atoms, "positions": x[i].tolist(), "energy": 0.0, "forces": f[i].tolist()
        },
        "extras": {}, "repository_metadata": {},
    }
    for i in range(n)
]
with backend.transaction():
    backend.bulk_insert(EntityTypes.NODE, rows)
print(n / (time.perf_counter() - began))
"""


def aiida_rate(folder: Path, n: int = 4000) -> float | str:
    """Nodes a second by AiiDA's bulk insert into SQLite, in an environment of its own; or why not."""
    try:
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True)
        python = folder / "bin" / "python"
        command = [str(python), "-m", "pip", "install", "--quiet", "aiida-core"]
        subprocess.run(command, check=True, capture_output=True, timeout=400)
        environment = {**os.environ, "AIIDA_PATH": str(folder)}
        done = subprocess.run(
            [str(python), "-c", AIIDA, str(n), str(ATOMS)],
            check=True, capture_output=True, text=True, timeout=300, env=environment,
        )  # fmt: skip
        return float(done.stdout.strip().splitlines()[-1])
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        detail = getattr(error, "stderr", b"") or b""
        text = detail if isinstance(detail, str) else detail.decode()
        return f"not run: {text.strip().splitlines()[-1] if text.strip() else error}"


def told(what: str, rate: float, remark: str) -> None:
    print(f"  {what:<55} {rate:10,.0f}  ({remark})")


def test_bulk_insert(tmp_path):
    sqlite_rate = max(insert_rate(tmp_path / f"s{i}", None) for i in range(2))
    plain = plain_loop_rate(tmp_path / "plain.db")
    aiida = aiida_rate(tmp_path / "aiida")
    print(f"\nbulk insert of labelled structures of {ATOMS} atoms, durable, per second:")
    told("SQLite, hashes, fingerprints and indexes included", sqlite_rate, "promised 20,000")
    told("bare SQLite, one INSERT a row, none of these", plain, f"ratio {sqlite_rate / plain:.2f}")
    if isinstance(aiida, float):
        told("AiiDA's bulk_insert into SQLite", aiida, f"ratio {sqlite_rate / aiida:.1f}")
    else:
        print(f"  AiiDA: {aiida}")
    url = os.environ.get(POSTGRES_VARIABLE)
    if url is None:
        print(f"  PostgreSQL: {POSTGRES_VARIABLE} names no database")
    else:
        rate = max(insert_rate(tmp_path / f"p{i}", url) for i in range(2))
        drop_schemas(url, tmp_path)
        told("PostgreSQL, hashes, fingerprints and indexes included", rate, "promised 10,000")
        assert rate >= owed(10_000, plain)
    assert sqlite_rate >= owed(20_000, plain)


# ── A million structures ─────────────────────────────────────────────────────────────────────


def times_of(root: Path, n: int) -> dict[str, float]:
    """Milliseconds of what a controller and a user do most often."""
    made = make_store(root, n, spec=SPEC)
    rows = row_count(made)
    made.release()
    made.close()

    began = time.perf_counter()
    store = Store.open(root)
    store.acquire()
    context = replace(context_of(store, root), spec=recorded_spec(store))
    Completions(context).recover()
    Controller(context)._dispatch_queued()

    def planned() -> None:
        with store.write() as session:
            plan(snapshot.take(session, context), context.spec)

    planned()
    resume = time.perf_counter() - began
    planning = best(5, planned)
    store.release()
    store.close()
    reader = Store.read(root)
    try:
        status = best(3, lambda: campaign_status(reader))
        ids = np.linspace(2, n, 20).astype(int)
        tracing = max(best(2, lambda i=i: trace(reader, str(i))) for i in ids)
        others = max(best(2, lambda i=i: trace(reader, i)) for i in ("ensemble:3", "dataset:20", "task:17"))
    finally:
        reader.close()
    return {
        "rows": rows, "plan": planning, "trace": tracing, "trace of ensemble, dataset, task": others,
        "status": status, "resume": resume,
    }  # fmt: skip


def test_a_million_structures(tmp_path):
    small, large = (times_of(tmp_path / str(n), n) for n in (10_000, 1_000_000))
    limits = {"plan": 0.05, "trace": 0.1, "status": 1.0, "resume": 5.0}
    print(f"\nmilliseconds with 10⁴ structures ({small['rows']:,} rows) and 10⁶ ({large['rows']:,} rows):")
    for name in ("plan", "trace", "trace of ensemble, dataset, task", "status", "resume"):
        limit = f"(promised {1000 * limits[name]:.0f})" if name in limits else ""
        print(f"  {name:<34} {1000 * small[name]:9.1f} {1000 * large[name]:9.1f}  {limit}")
    assert large["rows"] >= 5_000_000
    assert all(large[name] < limit for name, limit in limits.items()), large
    # The same work on a hundredfold history: what is left is noise of the clock and of the caches.
    assert large["plan"] < 1.5 * small["plan"] + 0.005
    shutil.rmtree(tmp_path / "1000000")


# ── Completions ──────────────────────────────────────────────────────────────────────────────


def test_completions(tmp_path):
    """Labelling tasks of one structure each, from their spool files to a durable commit."""
    n, group = 4000, 500
    store = empty_store(tmp_path)
    context = context_of(store, tmp_path)
    data = molecules(n)
    with store.write() as session:
        ids = list(bulk.add_structures(session, data, origin="bootstrap", state=StructureState.CLAIMED))
        rows = [tasks.add_task(session, "label", "label", {"structure_ids": [i]}, units=1) for i in ids]
        attempts = [tasks.dispatch(session, row, epoch=store.epoch, executor="label") for row in rows]
        session.flush()
        for attempt in attempts:
            attempt.spool = f"tasks/{attempt.id}.spool"
        attempt_ids = [attempt.id for attempt in attempts]
    label = Label(energy=-1.0, forces=np.zeros((ATOMS, 3)), level=LEVEL, qm_calls=1)
    for structure_id, attempt_id in zip(ids, attempt_ids, strict=True):
        path = context.folders.tasks / f"{attempt_id}.spool"
        with SpoolWriter(path, attempt=attempt_id, epoch=store.epoch) as writer:
            writer.append({"structure_id": structure_id, "result": label})
            writer.append({END: True})
    plain = plain_loop_rate(tmp_path / "plain.db")
    completions = Completions(context)
    taken = []
    for start in range(0, n, group):
        began = time.perf_counter()
        reports = [
            Report(attempt_id=i, host="node1", pid=1, start=0.0, end=1.0)
            for i in attempt_ids[start : start + group]
        ]
        completions.record(reports)
        taken.append(time.perf_counter() - began)
    rate = group / median(taken)
    with store.session() as session:
        assert set(structures.states_of(session, ids).values()) == {StructureState.LABELLED}
        assert not tasks.unfinished(session, TaskState.DISPATCHED)
    store.release()
    store.close()
    print(f"\ncompletions committed in groups of {group}, durable: {rate:,.0f} a second (promised 3,000)")
    assert rate >= owed(3000, plain)
